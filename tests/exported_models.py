"""Students to export, without weights that were trained: random, but of sane scale."""

from functools import cache

import numpy as np
import pytest
import soundfile
import torch

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export import parity
from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.source import Source
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN

CLIP_SECONDS = 0.7
BACKENDS = ("onnxruntime", "openvino")
NARROW = {"num_classes": 7, "width": 0.1}
# What no file of weights tells
STATED = {"n_mels": 128, "hop_length": 320, "clip_seconds": 10.0}


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
    heads = ("classifier", "strong_head", "weak_head")  # of taggers, and of FrameMN
    for name, module in student.named_modules():
        if name.startswith(heads) and isinstance(module, torch.nn.Linear):
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


@pytest.fixture(scope="module")
def mn():
    torch.manual_seed(0)
    return source_of(random_weights(MN(**NARROW)))


@pytest.fixture(scope="module")
def dymn():
    torch.manual_seed(0)
    return source_of(random_weights(DyMN(**NARROW)))


@pytest.fixture(scope="module")
def calibration_sounds(tmp_path_factory):
    """Files to calibrate on."""
    folder = tmp_path_factory.mktemp("sounds")
    paths = [folder / f"{number}.wav" for number in range(4)]
    for number, path in enumerate(paths):
        soundfile.write(path, synthesised(16000, 32000, number), 32000)
    return paths


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A file of weights, and the labels that go with it."""
    path = tmp_path_factory.mktemp("weights") / "student.pt"
    torch.manual_seed(0)
    torch.save(random_weights(MN(**NARROW)).state_dict(), path)
    names = [f"class {number}" for number in range(NARROW["num_classes"])]
    return path, LabelTable(names, names)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model folder, of clips of half a second."""
    torch.manual_seed(0)
    student = random_weights(MN(num_classes=3, width=0.1), 640)
    student.options = {"num_classes": 3, "width": 0.1}
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    labels = LabelTable(["/m/a", "/m/b", "/m/c"], ["chien", "été", "猫"])
    model = TrainedModel(student, labels, "multiclass", 0.5)
    path = tmp_path_factory.mktemp("folder") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}))


@pytest.fixture
def any_int8(monkeypatch):
    """Random weights are worse off in int8 than trained ones."""
    monkeypatch.setitem(parity.LIMITS, "int8", (1.0, 3.0))
