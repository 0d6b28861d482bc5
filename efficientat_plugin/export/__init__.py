"""Exports a trained student to an ONNX file that runs without torch, and checks it.

``source`` finds the model; ``log_mel`` and ``networks``, for events ``frame_networks``
and ``sequence_networks``, express it in the operators of ``graph``; ``quantize`` finds
the ranges of int8, ``parity`` compares the file with PyTorch, ``golden`` writes
reference vectors for ports to other languages, and ``onnx_file`` combines them. The
files run in :mod:`efficientat_plugin.runtime`.
``litert_file`` leaves the graph to litert-torch.
"""
