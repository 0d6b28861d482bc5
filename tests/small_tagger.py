"""A tagger of three classes with random weights, and sounds for it."""

import io

import numpy as np
import soundfile
import torch

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 32000
LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])


def member(seed=0, num_classes=3):
    torch.manual_seed(seed)
    student = MN(num_classes, width=0.1)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that sounds differ
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.3)
    return WaveformStudent(LogMel(), student)


def small_tagger(*members, **settings):
    settings = {
        "labels": LABELS,
        "sample_rate": RATE,
        "clip_seconds": 1.0,
        "target": "multilabel",
        "short_clips": "repeat",
    } | settings
    ensemble = Ensemble(list(members) or [member()])
    return AudioTagger({"ensemble": ensemble}, settings, {"device": "cpu"})


def noise(seconds, seed=0, rate=RATE):
    """Noise whose spectrum wanders, so that its parts differ."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(seconds * rate))
    time = np.arange(len(sound)) / rate
    return (0.1 * sound * np.sin(2 * np.pi * 0.7 * time)).astype(np.float32)


def wav(sound, rate=RATE, subtype="FLOAT", form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, sound, rate, subtype=subtype, format=form)
    return file.getvalue()


def scores_of(tagger, sound, rate=RATE):
    return tagger.probabilities([sound], rate)[0]


def assert_alike(one, other, atol=1e-5):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)
