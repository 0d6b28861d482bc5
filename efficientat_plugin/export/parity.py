"""Compares an exported model with PyTorch, before its file is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.export.comparison_clips import read_clips, spread, synthesised
from efficientat_plugin.export.source import Source
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    FRAME_LOGITS,
    LOGITS,
    OUTPUTS,
    PROBABILITIES,
)
from efficientat_plugin.runtime.sessions import installed_backends
from efficientat_plugin.runtime.tagger import Tagger, as_probabilities

Array = NDArray[np.float32]

# By precision: the largest error of a probability, and the lowest ratio, in dB, of the
# power of logits and embeddings to that of their errors. int8 uses only the second.
LIMITS = {
    "fp32": (1e-4, 60.0),
    "fp16": (2e-2, 25.0),
    "int8_weights": (1.0, 15.0),
    "int8": (1.0, 10.0),
}
# A frame's probability is no average over the clip, so it varies more. In float32, the
# rounding of quiet bands in a front end alone changes it by up to 5e-5 (from float64),
# in PyTorch as in the graph; the network by 1e-6. A wrong operator is off by far more.
FRAME_LIMITS = {"fp32": 1e-3, "fp16": 5e-2, "int8_weights": 1.0, "int8": 1.0}
MAX_SOUNDS, BATCH_SIZE = 32, 8
# What is measured: the worst of an error is the largest, of the others the smallest
ERRORS = ("probability_error", "frame_error")
DECIBELS = ("logits_decibels", "embedding_decibels", "frame_decibels")
MEASURES = (*ERRORS, *DECIBELS, "same_top_class")


class Parity(NamedTuple):
    """How closely a file matches PyTorch."""

    probability_error: float  # the largest
    logits_decibels: float  # ratio of their power to that of their errors
    embedding_decibels: float
    same_top_class: float  # share of the sounds
    num_sounds: int
    backends: tuple[str, ...]
    # Of models that score frames: the same of their probabilities and logits
    frame_error: float | None = None
    frame_decibels: float | None = None

    def __str__(self) -> str:
        of_frames = ""
        if self.frame_error is not None:
            of_frames = (
                f"of frames {self.frame_error:.1e} and {self.frame_decibels:.0f} dB, "
            )
        return (
            f"maximum error of a probability {self.probability_error:.1e}, "
            f"signal-to-error ratio {self.logits_decibels:.0f} dB (logits) and "
            f"{self.embedding_decibels:.0f} dB (embedding), {of_frames}same top class "
            f"in {self.same_top_class:.0%} of {self.num_sounds} sounds, in "
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
        found.append(compared(expected, outputs, source.model.target))
    worst = worst_of(found)._replace(backends=tuple(backends))
    judge(worst, precision, source.name)
    return worst


def _batches(source: Source, sounds: Sequence[str | Path]) -> Iterator[Array]:
    """Yields clips of the training length, alone and batched; and other lengths."""
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
    longer = np.concatenate([*clips[:2], clips[0][: num_samples // 3 + 1]])
    if source.frame_samples is not None and fits(source, len(longer)):
        yield longer[None]


def fits(source: Source, num_samples: int) -> bool:
    """Whether the student takes a sound of so many samples."""
    most = source.max_frames
    return most is None or source.log_mel.num_frames(num_samples) <= most


def compared(
    expected: Sequence[dict[str, Array]],
    found: Sequence[dict[str, Array]],
    target: str = "multilabel",
) -> Parity:
    """Compares two lists of results, over all batches."""
    names = [name for name in OUTPUTS if name in expected[0]]

    def joined(batches: Sequence[dict[str, Array]], name: str) -> Array:
        # Frames of all clips one after another, as their numbers differ
        rows = [batch[name].reshape(-1, batch[name].shape[-1]) for batch in batches]
        return np.concatenate(rows).astype(np.float64)

    wanted, given = (
        {name: joined(batches, name) for name in names} for batches in (expected, found)
    )
    error = {name: given[name] - wanted[name] for name in wanted}
    tops = wanted[LOGITS].argmax(axis=1) == given[LOGITS].argmax(axis=1)
    frame_error = frame_decibels = None
    if FRAME_LOGITS in names:
        scores = [
            as_probabilities(each[FRAME_LOGITS], target) for each in (wanted, given)
        ]
        frame_error = float(np.abs(scores[1] - scores[0]).max())
        frame_decibels = _decibels(wanted[FRAME_LOGITS], error[FRAME_LOGITS])
    return Parity(
        float(np.abs(error[PROBABILITIES]).max()),
        _decibels(wanted[LOGITS], error[LOGITS]),
        _decibels(wanted[EMBEDDING], error[EMBEDDING]),
        float(tops.mean()),
        len(tops),
        (),
        frame_error,
        frame_decibels,
    )


def worst_of(parities: Sequence[Parity]) -> Parity:
    """Returns the worst of each number, on the same sounds; NaN is kept.

    Example
    -------
    >>> one = Parity(0.1, 30.0, 40.0, 1.0, 4, ("onnxruntime",))
    >>> worst_of([one, one._replace(logits_decibels=float("nan"))]).logits_decibels
    nan
    """
    worst: dict[str, Any] = {}
    for name in MEASURES:
        values = [getattr(each, name) for each in parities]
        if values[0] is not None:
            # Unlike Python's own min and max, NumPy's always return a NaN.
            worst[name] = float((np.max if name in ERRORS else np.min)(values))
    return parities[0]._replace(**worst)


def _decibels(signal: NDArray, error: NDArray) -> float:
    powers = np.square(signal).mean(), np.square(error).mean()
    return float(10 * np.log10(max(powers[0], 1e-30) / max(powers[1], 1e-30)))


def judge(parity: Parity, precision: str, name: str) -> None:
    """Raises a ``ValueError`` if the difference exceeds the limits."""
    most, least = LIMITS[precision]
    decibels = [getattr(parity, name) for name in DECIBELS]
    is_close = [parity.probability_error <= most]  # not NaN either
    is_close += [each >= least for each in decibels if each is not None]
    of_frames = ""
    if parity.frame_error is not None:
        is_close.append(parity.frame_error <= FRAME_LIMITS[precision])
        of_frames = f", of frames {FRAME_LIMITS[precision]:g},"
    if not all(is_close):
        raise ValueError(
            f"{name} in {precision} differs from PyTorch ({parity}; the limits are "
            f"{most:g}{of_frames} and {least:g} dB), so nothing was written; "
            + ("report it" if precision == "fp32" else "choose another precision")
        )
