"""Tagging with exported models: numpy, soundfile, soxr and a runtime, no torch.

``model_file`` is what a file tells of itself, ``front_end`` the log-mel in numpy,
``sessions`` runs the graph in ONNX Runtime or OpenVINO, ``tagger`` puts them together.
On the command line, `efficientat tag --model MODEL.onnx` does the same.

Nothing here, and nothing that it imports, imports torch.
"""

from efficientat_plugin.runtime.tagger import Tagger

__all__ = ["Tagger"]
