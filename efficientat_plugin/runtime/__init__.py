"""Tags sound and detects events with exported models, using numpy and a runtime.

``model_file`` reads a file's metadata, ``front_end`` computes the log-mel in numpy,
``sessions`` runs the graph in ONNX Runtime or OpenVINO, and ``tagger`` combines them;
``detector`` says when a file's events are less exact. On the command line,
`efficientat tag --model MODEL.onnx` tags.

Neither this package nor anything it imports needs torch. Sound is read by soundfile and
resampled by soxr.
"""

from efficientat_plugin.runtime.detector import Detector
from efficientat_plugin.runtime.tagger import Tagger

__all__ = ["Detector", "Tagger"]
