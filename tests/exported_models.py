"""Students to export, without weights that were trained: random, but of sane scale."""

from functools import cache

import numpy as np
import torch

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.source import Source
from efficientat_plugin.export.test_clips import synthesised
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.students.mn import MN

CLIP_SECONDS = 0.7


@cache
def log_mels(n_mels, num_frames, hop_length):
    """Of synthesised sounds: [8, 1, F, T]"""
    log_mel = LogMel(n_mels=n_mels, hop_length=hop_length).eval()
    num_samples = hop_length * num_frames
    clips = [synthesised(num_samples, 32000, number) for number in range(8)]
    return log_mel(torch.from_numpy(np.stack(clips))).unsqueeze(1)


def random_weights(student, hop_length=320):
    """Weights whose activations neither vanish nor explode, and of which sounds differ.

    They were not trained: numbers of such a student show that two programs compute
    alike, and nothing of how good it is.
    """
    torch.manual_seed(0)
    bands = getattr(student, "n_mels", 128)
    frames = student.n_frames if "t" in getattr(student, "se_dims", "") else 64
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    for module in student.classifier.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0.0, module.in_features**-0.5)
    student.train()
    with torch.no_grad():
        student(log_mels(bands, frames, hop_length))
    return student.eval()


def source_of(
    student, target="multilabel", clip_seconds=CLIP_SECONDS, short="repeat", **front_end
):
    """A random student as a model to export."""
    names = [f"class {number}" for number in range(student.num_classes)]
    labels = LabelTable([f"/m/{name}" for name in names], names)
    student.front_end, student.options = front_end, {}
    model = TrainedModel(student, labels, target, clip_seconds, short)
    return Source("random", "0" * 64, model, LogMel(**front_end).eval())


def content_of(source, precision="fp32", front_end="in", levels=None):
    """Of the file."""
    _, model = build_model(source, precision, front_end, OLDEST_OPSET, levels)
    return model.SerializeToString()


@cache
def small_source():
    """An MN of seven classes and clips of a second."""
    torch.manual_seed(0)
    return source_of(random_weights(MN(7, width=0.1)), clip_seconds=1.0)


@cache
def small_content(front_end):
    """The file of ``small_source``, with the front end "in" or "out"."""
    return content_of(small_source(), front_end=front_end)
