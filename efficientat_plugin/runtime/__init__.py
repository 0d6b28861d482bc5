"""Tags sound with exported models, using numpy, soundfile, soxr and a runtime.

``model_file`` reads a file's metadata, ``front_end`` computes the log-mel in numpy,
``sessions`` runs the graph in ONNX Runtime or OpenVINO, and ``tagger`` combines them.
On the command line, `efficientat tag --model MODEL.onnx` does the same.

Neither this package nor anything it imports needs torch.
"""

from efficientat_plugin.runtime.tagger import Tagger

__all__ = ["Tagger"]
