"""A small model of frames, three_sounds and runs of ``efficientat detect`` on them."""

import numpy as np
import pytest
import soundfile
import torch
from command_line import sound_of
from exported_models import random_weights

from efficientat_plugin import EventDetector, FrameMN, LabelTable
from efficientat_plugin.cli import main
from efficientat_plugin.cli.event_formats import (
    EVENT_FORMATS,
)
from efficientat_plugin.contracts import Event
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)

RATE = 16000
LABELS = LabelTable(
    ["/m/a", "/m/b", "/m/c"], ["Dog", "Child speech, kid speaking", "=SUM(A1)"]
)
FIELDS = ("label", "start_seconds", "end_seconds", "score")
READABLE = [form for form in EVENT_FORMATS if form != "srt"]


@pytest.fixture(scope="module")
def frame_folder(tmp_path_factory):
    """A model folder of a student that scores frames; its numbers are random."""
    torch.manual_seed(0)
    student = FrameMN(3, width=0.1, sequence_model="tf", sequence_dim=16)
    random_weights(student)
    student.front_end = {"sample_rate": RATE, "n_fft": 512, "win_length": 400}
    student.front_end |= {"hop_length": 160, "n_mels": 64, "f_max": 7000.0}
    model = TrainedModel(student, LABELS, "multilabel", 1.0)
    path = tmp_path_factory.mktemp("model") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}))


@pytest.fixture(scope="module")
def frame_detector(frame_folder):
    return EventDetector.from_hparams(frame_folder, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def three_sounds(tmp_path_factory):
    """Three sounds that come and go, in two folders."""
    top = tmp_path_factory.mktemp("sounds")
    for number, name in enumerate(["a.wav", "below/b.flac", "below/c.wav"]):
        path = top / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, sound_of(2.5 + number, seed=number), 32000)
    return top


@pytest.fixture(scope="module")
def middle_thresholds(frame_detector, three_sounds):
    """A probability that each class is above of now and then."""
    scores = frame_detector.frames(three_sounds / "a.wav").scores
    return {
        mid: float(np.quantile(column, 0.7))
        for mid, column in zip(LABELS.mids, scores.T, strict=True)
    }


@pytest.fixture
def detect(frame_folder, middle_thresholds, capsys):
    """Runs the command: exit code, stdout, stderr."""

    def detect(*arguments, model=frame_folder, thresholds=True):
        words = ["detect", *arguments, "--model", model, "--device", "cpu"]
        for mid, value in middle_thresholds.items() if thresholds else ():
            words += ["--threshold", f"{mid}={value}"]
        code = main([*map(str, words)])
        return code, *capsys.readouterr()

    return detect


def rounded(events):
    """Events as a table has them: 6 decimals, sorted, those that touch as one."""
    rows = [
        Event(label, round(start, 6), round(end, 6), round(score, 6))
        for label, start, end, score in events
    ]
    return sorted(rows, key=lambda event: (*event[1:3], event.label))


def files_of(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def lanes_of(path):
    """Rows of pixels of the lower panel, in which a bar is, as groups."""
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    # Colours that are no grey: of the log-mel, the bars and the colour bar
    coloured = np.ptp(pixels, axis=2) > 20
    axes = coloured[:, : int(0.93 * coloured.shape[1])]
    rows = axes.sum(axis=1) > 3
    edges = np.flatnonzero(np.diff(np.pad(rows.astype(int), 1)))
    groups = edges.reshape(-1, 2)
    heights = np.diff(groups, axis=1)[:, 0]
    return heights[heights.argmax() + 1 :]  # below the log-mel
