"""Makes a transfer set: many unlabelled mixes of a few clips, for a teacher to score.

A student learns more from a teacher's scores of new mixes than from its scores of the
same few clips again, and mixes need no labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.clips import MAX_REPLACEMENTS
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.digests import digest_of_clips, sounds_of
from efficientat_plugin.data.parquet import audioset_row, write_rows
from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.files import atomic_folder

MAX_GAIN_DB = 15.0  # by which a source is attenuated
PEAK_DB = (-18.0, -1.0)  # of a mix, relative to full scale
SPLIT = "transfer"
MADE = "made_of.json"  # settings and clips, which tell transfer sets apart


def write_transfer_set(
    rows: datasets.Dataset,
    reader: ClipReader,
    folder: str | Path,
    num_clips: int,
    max_sources: int = 3,
    seed: int = 0,
) -> Path:
    """Writes mixes of one to ``max_sources`` clips, each shifted, as split "transfer".

    A mix is a function of (seed, its number) and the rows. The folder gets its name
    once all of it is written.

    Arguments
    ---------
    rows : datasets.Dataset
        Clips to mix, from ``load_rows``.
    reader : ClipReader
        Sets the length of clips; unreadable ones are left out.
    folder : str | Path
        Folder to create; must not exist yet.
    num_clips : int
        Number of mixes.
    max_sources : int
        Largest number of clips in a mix.
    seed : int
        Another seed makes other mixes.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    FileExistsError
        If ``folder`` already exists.
    UnreadableClip
        If no sound is found in the rows.
    """
    folder = Path(folder)
    made = {
        "num_clips": num_clips,
        "max_sources": max_sources,
        "seed": seed,
        "clip_seconds": reader.num_samples / reader.sample_rate,
        "sample_rate": reader.sample_rate,
        "clips": _digest(rows),
    }
    _refuse_existing(folder, made)
    if num_clips < 1 or max_sources < 1:
        raise ValueError(
            f"num_clips={num_clips} and max_sources={max_sources} must be 1 or more"
        )
    with atomic_folder(folder) as partial:
        mixes = _mixes(rows, reader, num_clips, max_sources, seed)
        write_rows(partial / SPLIT / "00.parquet", mixes)
        (partial / MADE).write_text(json.dumps(made, indent=1), encoding="utf-8")
    return folder


def _digest(rows: datasets.Dataset) -> str:
    """Computes the digest of the clips that are mixed."""
    ids = rows.select_columns(["video_id"])["video_id"][:]
    return digest_of_clips(ids, [()] * len(ids), sounds_of(rows))


def _refuse_existing(folder: Path, made: dict[str, Any]) -> None:
    if not folder.exists():
        return
    try:
        found = json.loads((folder / MADE).read_text(encoding="utf-8"))
        other = differences_of(found, made)
    except (OSError, ValueError, AttributeError, RecursionError):
        other = []  # not a transfer set
    listed = f" ({'; '.join(map(str, other))})" if other else ""
    raise FileExistsError(
        f"{folder} already exists{listed}; delete it or pass another --folder"
    )


def _mixes(
    rows: datasets.Dataset,
    reader: ClipReader,
    num_clips: int,
    max_sources: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    for number in tqdm(range(num_clips), desc=SPLIT, unit="clip"):
        rng = np.random.default_rng([seed, number])
        for _ in range(MAX_REPLACEMENTS):
            mix = np.zeros(reader.num_samples)
            for _ in range(rng.integers(1, max_sources, endpoint=True)):
                mix += _source(rows, reader, rng)
            if mix.any():
                break
        else:  # none of the sources was readable, or all were silent
            raise UnreadableClip(
                f"{MAX_REPLACEMENTS} draws of 1 to {max_sources} clips gave no sound; "
                "check the data"
            )
        peak = 10 ** (rng.uniform(*PEAK_DB) / 20)
        mix *= peak / np.abs(mix).max()
        yield audioset_row(f"mix-{seed}-{number:06d}", mix, reader.sample_rate)


def _source(
    rows: datasets.Dataset, reader: ClipReader, rng: np.random.Generator
) -> np.ndarray:
    """Returns a random clip at a random level and shift; silence if unreadable."""
    row, shift = rng.integers(len(rows)), rng.integers(reader.num_samples)
    gain = 10 ** (-rng.uniform(0, MAX_GAIN_DB) / 20)
    try:
        waveform = reader.read(rows[int(row)]).waveform.numpy()
    except UnreadableClip:
        return np.zeros(reader.num_samples)
    level = np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))
    return gain * np.roll(waveform, shift) / max(level, 1e-6)
