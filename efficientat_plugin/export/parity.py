"""Compares an exported model with PyTorch, before its file is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.export.comparison_clips import read_clips, spread, synthesised
from efficientat_plugin.export.source import Source
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    LOGITS,
    PROBABILITIES,
)
from efficientat_plugin.runtime.sessions import installed_backends
from efficientat_plugin.runtime.tagger import Tagger

Array = NDArray[np.float32]

# By precision: the largest error of a probability, and the lowest ratio, in dB, of the
# power of logits and embeddings to that of their errors. int8 uses only the second.
LIMITS = {
    "fp32": (1e-4, 60.0),
    "fp16": (2e-2, 25.0),
    "int8_weights": (1.0, 15.0),
    "int8": (1.0, 10.0),
}
MAX_SOUNDS, BATCH_SIZE = 32, 8


class Parity(NamedTuple):
    """How closely a file matches PyTorch."""

    probability_error: float  # the largest
    logits_decibels: float  # ratio of their power to that of their errors
    embedding_decibels: float
    same_top_class: float  # share of the sounds
    num_sounds: int
    backends: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"maximum error of a probability {self.probability_error:.1e}, "
            f"signal-to-error ratio {self.logits_decibels:.0f} dB (logits) and "
            f"{self.embedding_decibels:.0f} dB (embedding), same top class in "
            f"{self.same_top_class:.0%} of {self.num_sounds} sounds, in "
            f"{' and '.join(self.backends)}"
        )


def check_parity(
    content: bytes, source: Source, precision: str, sounds: Sequence[str | Path] = ()
) -> Parity:
    """Compares a file with PyTorch, in every runtime that is installed.

    Arguments
    ---------
    content : bytes
        Content of the file.
    source : Source
    precision : str
    sounds : sequence of str or Path
        Sounds to compare on; empty: synthesised ones.

    Returns
    -------
    Parity
        The worst over the runtimes.

    Raises
    ------
    ImportError
        If no runtime is installed.
    ValueError
        If the file's results differ from PyTorch's.
    """
    batches = list(_batches(source, sounds))
    expected = [source.outputs(waveforms) for waveforms in batches]
    found = []
    backends = installed_backends() or ["onnxruntime"]
    for backend in backends:
        tagger = Tagger(content, backend)
        outputs = [tagger.outputs(waveforms) for waveforms in batches]
        found.append(compared(expected, outputs))
    worst = worst_of(found)._replace(backends=tuple(backends))
    judge(worst, precision, source.name)
    return worst


def _batches(source: Source, sounds: Sequence[str | Path]) -> Iterator[Array]:
    """Yields clips of the training length, alone and batched; and a shorter one."""
    rate, num_samples = source.log_mel.sample_rate, source.clip_samples
    if sounds:
        clips = read_clips(source, spread(sounds, MAX_SOUNDS))
    else:
        clips = [synthesised(num_samples, rate, number) for number in range(4)]
    yield clips[0][None]
    for start in range(1, len(clips), BATCH_SIZE):
        yield np.stack(clips[start : start + BATCH_SIZE])
    if source.num_frames is None:  # not a whole number of hops
        yield clips[0][None, : max(num_samples // 3 + 1, source.min_samples)]


def compared(
    expected: Sequence[dict[str, Array]], found: Sequence[dict[str, Array]]
) -> Parity:
    """Compares two lists of results, over all batches."""

    def joined(batches: Sequence[dict[str, Array]], name: str) -> Array:
        return np.concatenate([batch[name] for batch in batches]).astype(np.float64)

    wanted, given = (
        {name: joined(batches, name) for name in (LOGITS, EMBEDDING, PROBABILITIES)}
        for batches in (expected, found)
    )
    error = {name: given[name] - wanted[name] for name in wanted}
    tops = wanted[LOGITS].argmax(axis=1) == given[LOGITS].argmax(axis=1)
    return Parity(
        float(np.abs(error[PROBABILITIES]).max()),
        _decibels(wanted[LOGITS], error[LOGITS]),
        _decibels(wanted[EMBEDDING], error[EMBEDDING]),
        float(tops.mean()),
        len(tops),
        (),
    )


def worst_of(parities: Sequence[Parity]) -> Parity:
    """Returns the worst of each number, on the same sounds; NaN is kept.

    Example
    -------
    >>> one = Parity(0.1, 30.0, 40.0, 1.0, 4, ("onnxruntime",))
    >>> worst_of([one, one._replace(logits_decibels=float("nan"))]).logits_decibels
    nan
    """
    # Unlike Python's own min and max, NumPy's always return a NaN.
    return parities[0]._replace(
        probability_error=float(np.max([each.probability_error for each in parities])),
        logits_decibels=float(np.min([each.logits_decibels for each in parities])),
        embedding_decibels=float(
            np.min([each.embedding_decibels for each in parities])
        ),
        same_top_class=float(np.min([each.same_top_class for each in parities])),
    )


def _decibels(signal: NDArray, error: NDArray) -> float:
    powers = np.square(signal).mean(), np.square(error).mean()
    return float(10 * np.log10(max(powers[0], 1e-30) / max(powers[1], 1e-30)))


def judge(parity: Parity, precision: str, name: str) -> None:
    """Raises a ``ValueError`` if the difference exceeds the limits."""
    most, least = LIMITS[precision]
    decibels = min(parity.logits_decibels, parity.embedding_decibels)
    if not (parity.probability_error <= most and decibels >= least):  # nor NaN
        raise ValueError(
            f"{name} in {precision} differs from PyTorch ({parity}; the limits are "
            f"{most:g} and {least:g} dB), so nothing was written; "
            + ("report it" if precision == "fp32" else "choose another precision")
        )
