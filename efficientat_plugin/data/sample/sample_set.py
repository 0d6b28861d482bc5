"""The embedded sample: clips of synthetic sound in AudioSet's schema, made on the spot.

Nothing is downloaded: `write_sample` makes a folder of Parquet files as
``agkphysics/AudioSet`` has them, small, with sounds that a model trained on AudioSet
recognises, so that distillation can be tried at once and tested for real.

A clip is a function of (seed, split, number) alone. The arithmetic is float64 and
rounded to int16 at the end. Machines differ in the last bit of a sine or a transform,
some 1e-15; what is rounded has a step of 3e-5, so that about one clip in a hundred
thousand may differ in one sample between two machines.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.parquet import audioset_row, to_pcm, write_rows
from efficientat_plugin.data.sample.synthesis import SOUNDS, Waveform, noise, plateau

# Raise this whenever a clip changes: samples on disk are then made anew.
SAMPLE_VERSION = 1

# Folder -> what a clip id calls it. The order numbers the random streams: keep it.
SPLITS = {"bal_train": "train", "unlabelled": "unlabelled", "eval": "eval"}

MIN_SECONDS = 2.0  # less, and a sound that repeats may be caught in its pause
MIN_SAMPLE_RATE = 24000  # the smoke detector's overtones reach 10.5 kHz
SAMPLE_TEACHER = Path(__file__).parent / "sample_teacher"


class SampleClip(NamedTuple):
    """A clip and what is in it, in the order it was mixed."""

    clip_id: str
    waveform: Waveform  # [N], float64 in [-1, 1), on the int16 grid
    labels: list[str]  # MIDs
    human_labels: list[str]  # AudioSet's display names


@cache
def sample_classes() -> dict[str, str]:
    """The classes that the sample's clips are made of.

    Returns
    -------
    classes : dict[str, str]
        AudioSet's display name -> its MID.

    Example
    -------
    >>> sample_classes()["Sine wave"]
    '/m/01v_m0'
    """
    labels = audioset_labels()
    mids = dict(zip(labels.names, labels.mids, strict=True))
    return {name: mids[name] for name in SOUNDS}


def sample_teacher() -> str:
    """Folder of the store with what the published mn04_as says of the default sample.

    The recipe ``dump_teacher_logits.py`` made it; see the README.
    """
    return str(SAMPLE_TEACHER)


def _source(
    rng: np.random.Generator, name: str, num_samples: int, sample_rate: int
) -> Waveform:
    """One class's part of a clip: all the time or for a while, its level evened out."""
    length, start = num_samples, 0
    shortest = int(MIN_SECONDS * sample_rate)
    if rng.random() < 0.4 and num_samples > shortest:
        length = int(rng.integers(shortest, num_samples + 1)) // 800 * 800
        start = int(rng.integers(0, num_samples - length + 1))
    sound = SOUNDS[name](rng, length, sample_rate) * plateau(length, sample_rate, 0.02)
    # A click has no RMS to speak of and noise has no peak: go by what is the louder.
    level = max(np.sqrt(np.mean(np.square(sound))), np.max(np.abs(sound)) / 8)
    out = np.zeros(num_samples)
    out[start : start + length] = sound / level
    return out


def _check(clip_seconds: float, sample_rate: int, seed: int, **counts: int) -> None:
    """Refuse what cannot be synthesised."""
    if not MIN_SECONDS <= clip_seconds <= 60:
        raise ValueError(
            f"clip_seconds={clip_seconds} is out of range; set it within "
            f"[{MIN_SECONDS}, 60]"
        )
    if sample_rate < MIN_SAMPLE_RATE:
        raise ValueError(
            f"sample_rate={sample_rate} is too low for the sounds; set it to "
            f"{MIN_SAMPLE_RATE} Hz or more (AudioSet models use 32000)"
        )
    for what, value in {"seed": seed, **counts}.items():
        if value < 0:
            raise ValueError(f"{what}={value} is negative; set it to 0 or more")


def sample_clip(
    split: str,
    number: int,
    clip_seconds: float = 5.0,
    sample_rate: int = 32000,
    seed: int = 0,
) -> SampleClip:
    """Make one clip: one to three classes, overlapping, over a background of noise.

    The first class goes by the number, in turn, so that as many clips as there are
    classes have every class among them. The others, the levels and the times are
    drawn.

    Arguments
    ---------
    split : str
        ``"bal_train"``, ``"unlabelled"`` or ``"eval"``: their sounds differ.
    number : int
        Which clip of the split, from 0.
    clip_seconds : float
        Length, from 2 to 60 s.
    sample_rate : int
        24000 Hz or more.
    seed : int
        0 or more; another seed makes another sample.

    Returns
    -------
    clip : SampleClip
        Labelled in every split; it is `write_sample` that hides the labels of
        ``"unlabelled"``.

    Raises
    ------
    ValueError
        If the split is not one of the three or a number is out of range.

    Example
    -------
    >>> clip = sample_clip("eval", 7)
    >>> clip.clip_id, clip.human_labels[0], clip.waveform.shape
    ('sample-eval-0007', 'Siren', (160000,))
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    _check(clip_seconds, sample_rate, seed, number=number)

    # The bit generator is named, as what `default_rng` stands for may change.
    stream = np.random.SeedSequence([seed, list(SPLITS).index(split), number])
    rng = np.random.Generator(np.random.PCG64(stream))
    names = list(SOUNDS)
    first = names[number % len(names)]
    others = [names[i] for i in rng.permutation(len(names)) if names[i] != first]
    num_others = int(np.searchsorted([0.5, 0.85], rng.random()))
    chosen = [first, *others[:num_others]]

    num_samples = round(clip_seconds * sample_rate)
    slope, background_db = rng.uniform(-2, 0), rng.uniform(-50, -22)
    mix = noise(rng, num_samples, sample_rate, slope=slope)
    mix *= 10 ** (background_db / 20)
    for name in chosen:
        gain = 10 ** (rng.uniform(-8, 0) / 20)
        mix += gain * _source(rng, name, num_samples, sample_rate)
    peak = 10 ** (rng.uniform(-18, -1) / 20)
    waveform = to_pcm(mix * (peak / np.max(np.abs(mix)))) / 32768

    return SampleClip(
        clip_id=f"sample-{SPLITS[split]}-{number:04d}",
        waveform=waveform,
        labels=[sample_classes()[name] for name in chosen],
        human_labels=chosen,
    )


def _rows(
    split: str,
    count: int,
    clip_seconds: float,
    sample_rate: int,
    seed: int,
    bar: tqdm,
) -> Iterator[dict[str, Any]]:
    for number in range(count):
        clip = sample_clip(split, number, clip_seconds, sample_rate, seed)
        labelled = split != "unlabelled"
        yield audioset_row(
            clip.clip_id,
            clip.waveform,
            sample_rate,
            clip.labels if labelled else [],
            clip.human_labels if labelled else [],
        )
        bar.update()


def write_sample(
    folder: str | Path,
    num_labelled: int = 60,
    num_unlabelled: int = 500,
    num_eval: int = 150,
    clip_seconds: float = 5.0,
    sample_rate: int = 32000,
    seed: int = 0,
) -> Path:
    """Write the sample as Parquet, unless it is there already.

    Every choice of the arguments has its own folder, named by their digest, so that
    none is ever taken for another. It takes its name when all of it is written: what
    was interrupted is left under a name that begins with a dot, and is not used.

    Arguments
    ---------
    folder : str or Path
        Where to make the sample's folder; made if need be.
    num_labelled : int
        Clips of ``bal_train``. Each class is in a split of at least
        ``len(sample_classes())`` clips.
    num_unlabelled : int
        Clips of ``unlabelled``: their list of labels is empty.
    num_eval : int
        Clips of ``eval``.
    clip_seconds : float
        Length of every clip, from 2 to 60 s.
    sample_rate : int
        24000 Hz or more.
    seed : int
        0 or more; another seed makes another sample.

    Returns
    -------
    sample : Path
        ``<folder>/sample-<digest>``, which holds ``data/<split>/00.parquet`` and
        ``sample.json``, the arguments.

    Raises
    ------
    ValueError
        If a number is out of range.
    FileExistsError
        If something else has the name of the sample's folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> sample = write_sample(folder, 1, 1, 1, clip_seconds=2.0)
    >>> sorted(str(path.relative_to(sample)) for path in sample.rglob("*.parquet"))
    ['data/bal_train/00.parquet', 'data/eval/00.parquet', 'data/unlabelled/00.parquet']
    >>> write_sample(folder, 1, 1, 1, clip_seconds=2.0) == sample  # at once
    True
    """
    counts = {
        "num_labelled": num_labelled,
        "num_unlabelled": num_unlabelled,
        "num_eval": num_eval,
    }
    _check(clip_seconds, sample_rate, seed, **counts)
    parameters = {
        "version": SAMPLE_VERSION,
        **counts,
        "clip_seconds": float(clip_seconds),
        "sample_rate": sample_rate,
        "seed": seed,
    }
    text = json.dumps(parameters, indent=2, sort_keys=True) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    final = Path(folder) / f"sample-{digest}"
    if (final / "sample.json").is_file():
        return final

    partial = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        with tqdm(total=sum(counts.values()), desc="sample", unit="clip") as bar:
            for split, count in zip(SPLITS, counts.values(), strict=True):
                path = partial / "data" / split / "00.parquet"
                for_split = (split, count, clip_seconds, sample_rate, seed)
                write_rows(path, _rows(*for_split, bar))
        (partial / "sample.json").write_text(text, encoding="utf-8")
        try:
            os.rename(partial, final)
        except OSError as error:
            # Another process may have been quicker, with the same clips.
            if not (final / "sample.json").is_file():
                raise FileExistsError(
                    f"{final} is in the way and is not a complete sample: it has no "
                    "sample.json; delete it and run again"
                ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final
