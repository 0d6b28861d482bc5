"""A trained student as a file that runs without torch: ONNX, checked as it is written.

``sources`` finds the model, ``front_end`` and ``networks`` say it in the operators of
``graph``, ``quantize`` finds the ranges of int8, ``parity`` holds the file against
PyTorch, ``golden`` writes what a port to another language is checked with, and
``onnx_file`` puts them together. The files run in :mod:`efficientat_plugin.runtime`.
``litert_file`` leaves the graph to litert-torch.
"""
