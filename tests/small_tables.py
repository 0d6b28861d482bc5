"""Small tables, and the sounds that they name, for tests of what reads them."""

import csv
import io

import numpy as np
import soundfile

RATE = 16000
LABELS = {"a1": "dog", "a2": "cat", "b1": "dog", "b2": "cow", "c1": "cat", "c2": "dog"}
SEEDS = {name: seed for seed, name in enumerate(LABELS)}
NAMES = ("a", "b", "c", "d")
CLASSES = ("dog", "cat", "dog", "cat")


def waveform(seed):
    """0.1 s of noise, by a number or a name of ``LABELS``."""
    rng = np.random.default_rng(SEEDS.get(seed, seed))
    return rng.integers(-9000, 9000, RATE // 10).astype(np.int16)


def write_sound(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform(seed), RATE)


def sound_bytes(seed):
    file = io.BytesIO()
    soundfile.write(file, waveform(seed), RATE, format="FLAC")
    return file.getvalue()


def write_csv(path, header, lines, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = [header, *lines] if header else lines
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_labelled(folder):
    """The sounds of ``LABELS``."""
    for name in LABELS:
        write_sound(folder / f"{name}.wav", name)


def files(pattern="audio/{}.wav"):
    return [pattern.format(name) for name in NAMES]


def write_files(folder):
    """The sounds that ``files`` names."""
    for number, name in enumerate(files()):
        write_sound(folder / name, number)


def write_table(folder, header, columns, name="clips.csv"):
    write_csv(folder / name, header, zip(*columns, strict=True))
    return folder / name
