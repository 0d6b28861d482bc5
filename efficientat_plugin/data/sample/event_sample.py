"""A small set of clips with events, for a run that needs no data."""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from efficientat_plugin.data.parquet import audioset_row, write_rows
from efficientat_plugin.data.sample import synthesis
from efficientat_plugin.data.sample.synthesis import Synth
from efficientat_plugin.support.files import atomic_folder

VERSION = 1
SAMPLE_RATE = 32000  # Hz
# Sounds that go on as long as they are asked to
SOUNDS = {
    "Sine wave": synthesis.sine_wave,
    "White noise": synthesis.white_noise,
    "Siren": synthesis.siren,
    "Busy signal": synthesis.busy_signal,
    "Organ": synthesis.organ,
    "Helicopter": synthesis.helicopter,
}
MOST_EVENTS = 4  # of a clip
SECONDS = (0.4, 2.5)  # of an event
LEVELS = (0.05, 0.2)  # RMS of an event, of full scale
BACKGROUND = 0.003  # RMS

_Row = tuple[str, float, float, str]  # of the table of events


def write_event_sample(
    folder: str | Path,
    num_train: int = 240,
    num_valid: int = 40,
    num_test: int = 60,
    clip_seconds: float = 5.0,
    seed: int = 0,
) -> Path:
    """Writes synthetic clips with events, unless they exist already.

    Each clip has up to four events of six classes, which may overlap, in faint noise.

    Arguments
    ---------
    folder : str or Path
        Parent of the sample's folder; created if needed.
    num_train, num_valid, num_test : int
        Clips of each split.
    clip_seconds : float
        Length of every clip, at least 3 s.
    seed : int
        Another seed makes another sample.

    Returns
    -------
    Path
        A folder with ``<split>/00.parquet``. Beside it is ``events.tsv``, in the form
        of DCASE. The folder of both is named by a digest of the arguments.

    Raises
    ------
    ValueError
        If the clips are too short.

    Example
    -------
    >>> folder = write_event_sample(getfixture("tmp_path"), 1, 1, 1, clip_seconds=3.0)
    >>> (folder.parent / "events.tsv").read_text().splitlines()[0].split()
    ['filename', 'onset', 'offset', 'event_label']
    """
    if clip_seconds < 3:
        raise ValueError(f"clip_seconds={clip_seconds} must be at least 3")
    counts = {"train": num_train, "valid": num_valid, "test": num_test}
    text = repr((VERSION, counts, float(clip_seconds), seed))
    final = Path(folder) / f"events-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if (final / "events.tsv").is_file():
        return final / "data"
    try:
        with atomic_folder(final) as partial:
            _write(partial, counts, clip_seconds, seed)
    except OSError:
        # Another process may have written the same clips first.
        if not (final / "events.tsv").is_file():
            raise
    return final / "data"


def _write(folder: Path, counts: dict[str, int], seconds: float, seed: int) -> None:
    table: list[_Row] = []
    with tqdm(total=sum(counts.values()), desc="sample", unit="clip") as bar:
        for split, count in counts.items():
            path = folder / "data" / split / "00.parquet"
            write_rows(path, _rows(split, count, seconds, seed, table, bar))
    with open(folder / "events.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["filename", "onset", "offset", "event_label"])
        writer.writerows(table)


def _rows(
    split: str, count: int, seconds: float, seed: int, table: list[_Row], bar: tqdm
) -> Iterator[dict]:
    for number in range(count):
        name = f"{split}-{number}"
        rng = np.random.default_rng([seed, *split.encode(), number])
        waveform, events = _clip(rng, seconds)
        table += [(name, *event) for event in events]
        bar.update()
        yield audioset_row(
            name, waveform, SAMPLE_RATE, sorted({label for *_, label in events})
        )


def _clip(
    rng: np.random.Generator, seconds: float
) -> tuple[NDArray[np.float64], list[tuple[float, float, str]]]:
    """Mixes events into noise: the clip, and start, end and class of each."""
    waveform = BACKGROUND * rng.standard_normal(round(seconds * SAMPLE_RATE))
    events = []
    for label in rng.choice([*SOUNDS], rng.integers(1, MOST_EVENTS, endpoint=True)):
        length = round(rng.uniform(*SECONDS), 2)
        start = round(rng.uniform(0, seconds - length), 2)
        num_samples = round(length * SAMPLE_RATE)
        sound = SOUNDS[label](Synth(rng, num_samples, SAMPLE_RATE))
        level = rng.uniform(*LEVELS) / np.sqrt(np.mean(np.square(sound)) + 1e-12)
        first = round(start * SAMPLE_RATE)
        waveform[first : first + num_samples] += level * sound
        events.append((start, round(start + length, 2), str(label)))
    return np.clip(waveform, -1, 1), events
