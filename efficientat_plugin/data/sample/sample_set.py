"""Makes the embedded sample: clips of synthetic sound in AudioSet's schema.

Nothing is downloaded: `write_sample` makes a small folder of Parquet files with the
layout of ``agkphysics/AudioSet``. A model trained on AudioSet recognises their sounds,
so that distillation can be tried at once and tested for real.

A clip is a function of (seed, split, number) alone. Arithmetic is float64, rounded to
int16 at the end. Machines differ in the last bit of a sine or a transform, by some
1e-15, and the rounding step is 3e-5, so about one clip in a hundred thousand may
differ in one sample between two machines.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.parquet import audioset_row, to_pcm, write_rows
from efficientat_plugin.data.sample.synthesis import SOUNDS, Synth, Waveform
from efficientat_plugin.support.files import atomic_folder

# Raise this whenever a clip changes: samples on disk are then made again.
SAMPLE_VERSION = 1

# Folder -> its name in clip ids. The order numbers the random streams: keep it.
SPLITS = {"bal_train": "train", "unlabelled": "unlabelled", "eval": "eval"}

MIN_SECONDS = 2.0  # a shorter clip may fall into the pause of a sound that repeats
MIN_SAMPLE_RATE = 24000  # the smoke detector's overtones reach 10.5 kHz
SAMPLE_TEACHER = Path(__file__).parent / "sample_teacher"


class SampleClip(NamedTuple):
    """A clip and its classes, in the order in which they were mixed."""

    clip_id: str
    waveform: Waveform  # [N], float64 in [-1, 1), on the int16 grid
    labels: list[str]  # MIDs
    human_labels: list[str]  # AudioSet's display names


@cache
def sample_classes() -> dict[str, str]:
    """Returns the classes of the sample's clips.

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
    """Returns the folder of the store with mn04_as's logits for the default sample.

    The recipe ``dump_teacher_logits.py`` wrote it with the published model; see the
    README.
    """
    return str(SAMPLE_TEACHER)


def _source(
    rng: np.random.Generator, name: str, num_samples: int, sample_rate: int
) -> Waveform:
    """Makes the sound of one class, throughout a clip or for a while, at one level."""
    length, start = num_samples, 0
    shortest = int(MIN_SECONDS * sample_rate)
    if rng.random() < 0.4 and num_samples > shortest:
        length = int(rng.integers(shortest, num_samples + 1)) // 800 * 800
        start = int(rng.integers(0, num_samples - length + 1))
    synth = Synth(rng, length, sample_rate)
    sound = SOUNDS[name](synth) * synth.plateau(length, 0.02)
    # Clicks have little RMS and noise has low peaks: the larger measure counts.
    level = max(np.sqrt(np.mean(np.square(sound))), np.max(np.abs(sound)) / 8)
    out = np.zeros(num_samples)
    out[start : start + length] = sound / level
    return out


def _check(clip_seconds: float, sample_rate: int, seed: int, **counts: int) -> None:
    """Refuses settings that cannot be synthesised."""
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
    """Makes one clip: one to three overlapping classes over background noise.

    The number sets the first class, in turn, so that as many clips as there are classes
    cover every class. The other classes, the levels and the times are random.

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
        Labelled in every split; `write_sample` leaves out the labels of
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

    # PCG64 by name, because the generator behind `default_rng` may change.
    stream = np.random.SeedSequence([seed, list(SPLITS).index(split), number])
    rng = np.random.Generator(np.random.PCG64(stream))
    names = list(SOUNDS)
    first = names[number % len(names)]
    others = [names[i] for i in rng.permutation(len(names)) if names[i] != first]
    num_others = int(np.searchsorted([0.5, 0.85], rng.random()))
    chosen = [first, *others[:num_others]]

    num_samples = round(clip_seconds * sample_rate)
    slope, background_db = rng.uniform(-2, 0), rng.uniform(-50, -22)
    mix = Synth(rng, num_samples, sample_rate).noise(slope=slope)
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
    """Writes the sample as Parquet, unless it exists already.

    Each set of arguments has its own folder, named by their digest, so that none is
    taken for another. The folder gets its name once all of it is written: a killed run
    leaves one whose name begins with a dot, which is not used.

    Arguments
    ---------
    folder : str or Path
        Parent of the sample's folder; created if needed.
    num_labelled : int
        Number of clips in ``bal_train``. A split of at least ``len(sample_classes())``
        clips has every class.
    num_unlabelled : int
        Number of clips in ``unlabelled``, whose lists of labels are empty.
    num_eval : int
        Number of clips in ``eval``.
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

    try:
        with (
            atomic_folder(final) as partial,
            tqdm(total=sum(counts.values()), desc="sample", unit="clip") as bar,
        ):
            for split, count in zip(SPLITS, counts.values(), strict=True):
                path = partial / "data" / split / "00.parquet"
                for_split = (split, count, clip_seconds, sample_rate, seed)
                write_rows(path, _rows(*for_split, bar))
            (partial / "sample.json").write_text(text, encoding="utf-8")
    except OSError as error:
        if not final.exists():
            raise
        # Another process may have written the same clips first.
        if not (final / "sample.json").is_file():
            raise FileExistsError(
                f"{final} already exists but is not a complete sample: it has no "
                "sample.json; delete it and run again"
            ) from error
    return final
