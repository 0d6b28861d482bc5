"""What the tests of the command line share: sounds, a small model, parsed results."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
import torch
from exported_models import random_weights

from efficientat_plugin.cli import main
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.pretrained.folder import TrainedModel
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 32000


# What no file of weights tells
STATED = ["--front-end", "n_mels=128,hop_length=320", "--clip-seconds", "10"]


def sound_of(seconds, seed=0):
    """Noise whose spectrum wanders, so that its parts differ."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(seconds * RATE))
    time = np.arange(len(sound)) / RATE
    return (0.1 * sound * np.sin(2 * np.pi * 0.7 * time)).astype(np.float32)


def write_sound(path, seconds=1.0, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound_of(seconds, seed), RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small student in a file of a published name; its numbers are random."""
    student = random_weights(MN(527, width=0.1))
    path = tmp_path_factory.mktemp("model") / "mn01_as_mAP_298.pt"
    torch.save(student.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tagger(model):
    return AudioTagger.from_student(model, run_opts={"device": "cpu"})


@pytest.fixture
def mixed_folder(tmp_path):
    """Two good sounds, and a corrupt, an empty, a written and a far too loud one."""
    folder = tmp_path / "sounds"
    good = write_sound(folder / "good.wav", 1.0)
    write_sound(folder / "below" / "also.flac.wav", 0.5, seed=1)
    (folder / "corrupt.wav").write_bytes(good.read_bytes()[:20])
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "loud.wav", 32768 * sound_of(1.0), RATE, subtype="FLOAT")
    (folder / "text.wav").write_text("This is no sound.")
    (folder / "notes.txt").write_text("No sound by its name, so not even tried.")
    return folder


@pytest.fixture
def five(tmp_path):
    folder = tmp_path / "five"
    for number in range(5):
        write_sound(folder / f"{number}.wav", 0.2 * (number + 1), seed=number)
    return folder


@pytest.fixture
def run(model, capsys):
    """Runs a command with the small student: exit code, stdout, stderr."""

    def run(command, *rest):
        options = [] if command in ("list", "info") else ["--model", model]
        options += [] if command == "list" else ["--device", "cpu"]
        code = main([command, *map(str, rest), *map(str, options)])
        return code, *capsys.readouterr()

    return run


def tags_of(tagger, path, top):
    return [(tag.name, tag.probability) for tag in tagger.tag(path, top_k=top)]


def parsed(text, form):
    found = {}
    if form == "jsonl":
        for line in text.splitlines():
            entry = json.loads(line)
            tags = [(tag["name"], tag["probability"]) for tag in entry["tags"]]
            found[entry["sound"]] = tags
        return found, 1e-5
    if form == "csv":
        for row in csv.DictReader(io.StringIO(text)):
            tag = (row["name"], float(row["probability"]))
            found.setdefault(row["sound"], []).append(tag)
        return found, 1e-5
    for line in text.splitlines():
        if line.startswith("  "):
            probability, name = line.split(maxsplit=1)
            tags.append((name, float(probability)))
        else:
            tags = found.setdefault(line, [])
    return found, 6e-4


def small_model():
    student = MN(2, width=0.1)
    student.front_end = {"sample_rate": 32000, "n_mels": 64, "hop_length": 640}
    return TrainedModel(
        student, LabelTable(["a", "b"], ["Ay", "Bee"]), "multilabel", 1.0
    )
