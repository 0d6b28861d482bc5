"""Small models, as a training would leave them, and their folders."""

import numpy as np
import torch

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import classification_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.finetuning import batch_norms

NAMES = ("Dog, <big>", "cat's => 'C'", "bird: é")


def trained_model(target="multiclass", family=MN, **options):
    """Returns a model of three classes whose statistics are of some noise."""
    options = {"num_classes": 3, "width": 0.1} | options
    front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    student, log_mel = family(**options), LogMel(**front_end).eval()
    for norm in batch_norms(student):
        norm.momentum = None  # statistics are averages
    with torch.no_grad():
        student(log_mel(0.1 * torch.randn(4, 16000)).unsqueeze(1))
        for layer in student.classifier.class_layers:
            torch.nn.init.normal_(student.classifier.get_submodule(layer).weight)
    student.options, student.front_end = options, front_end
    labels = LabelTable([f"/m/{k}" for k in range(3)], NAMES)
    return TrainedModel(student.eval(), labels, target, 1.0)


def write_model(folder, model, scores=None):
    """Writes its folder, by default with perfect scores."""
    if scores is None:
        scores = {"test, 3 clips": classification_scores(np.eye(3), np.eye(3))}
    provenance = Provenance("my pets/2024", "mn10_as", "3 clips", "CC0", scores)
    return write_model_folder(folder, model, provenance)
