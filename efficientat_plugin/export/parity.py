"""An exported file held against PyTorch, before it is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from efficientat_plugin.export.source import Source
from efficientat_plugin.export.test_clips import read_clips, spread, synthesised
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    LOGITS,
    PROBABILITIES,
)
from efficientat_plugin.runtime.sessions import installed_backends
from efficientat_plugin.runtime.tagger import Tagger

Array = NDArray[np.float32]

# By precision: the largest error of a probability, and the least power of logits and
# embeddings over that of their errors. int8 is judged by the second alone.
LIMITS = {
    "fp32": (1e-4, 60.0),
    "fp16": (2e-2, 25.0),
    "int8_weights": (1.0, 15.0),
    "int8": (1.0, 10.0),
}
MAX_SOUNDS, BATCH_SIZE = 32, 8


class Parity(NamedTuple):
    """How near a file is to PyTorch."""

    probability_error: float  # the largest
    logits_decibels: float  # their power over that of their error
    embedding_decibels: float
    same_top_class: float  # share of the sounds
    num_sounds: int
    backends: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"probabilities within {self.probability_error:.1e}, logits and embedding "
            f"{self.logits_decibels:.0f} and {self.embedding_decibels:.0f} dB over "
            f"their errors, top class alike in {self.same_top_class:.0%} of "
            f"{self.num_sounds} sounds, in {' and '.join(self.backends)}"
        )


def check_parity(
    content: bytes, source: Source, precision: str, sounds: Sequence[str | Path] = ()
) -> Parity:
    """Runs a file in every runtime that is installed, and compares.

    Arguments
    ---------
    content : bytes
        Of the file.
    source : Source
    precision : str
    sounds : sequence of str or Path
        To compare on; none: synthesised ones.

    Returns
    -------
    Parity
        Of the runtime that is worse.

    Raises
    ------
    ImportError
        Without a runtime.
    ValueError
        Where the file says something else than PyTorch.
    """
    batches = list(_batches(source, sounds))
    expected = [torch_says(source, waveforms) for waveforms in batches]
    found = []
    backends = installed_backends() or ["onnxruntime"]
    for backend in backends:
        tagger = Tagger(content, backend)
        said = [tagger.outputs(waveforms) for waveforms in batches]
        found.append(compared(expected, said))
    worst = worst_of(found)._replace(backends=tuple(backends))
    judge(worst, precision, source.name)
    return worst


def _batches(source: Source, sounds: Sequence[str | Path]) -> Iterator[Array]:
    """Clips as they are trained on, by themselves and together; and a shorter one."""
    rate, num_samples = source.log_mel.sample_rate, source.clip_samples
    if sounds:
        clips = read_clips(source, spread(sounds, MAX_SOUNDS))
    else:
        clips = [synthesised(num_samples, rate, number) for number in range(4)]
    yield clips[0][None]
    for start in range(1, len(clips), BATCH_SIZE):
        yield np.stack(clips[start : start + BATCH_SIZE])
    if source.num_frames is None:  # of no whole number of hops
        yield clips[0][None, : max(num_samples // 3 + 1, source.min_samples)]


def torch_says(source: Source, waveforms: Array) -> dict[str, Array]:
    """Probabilities, logits and embeddings of clips, in PyTorch."""
    with torch.inference_mode():
        log_mel = source.log_mel(torch.from_numpy(waveforms))
        logits, embedding = source.model.student(log_mel.unsqueeze(1))
    is_multilabel = source.model.target == "multilabel"
    probabilities = logits.sigmoid() if is_multilabel else logits.softmax(dim=1)
    return {
        LOGITS: logits.numpy(),
        EMBEDDING: embedding.numpy(),
        PROBABILITIES: probabilities.numpy(),
    }


def compared(
    expected: Sequence[dict[str, Array]], said: Sequence[dict[str, Array]]
) -> Parity:
    """Both over all batches."""

    def joined(batches: Sequence[dict[str, Array]], name: str) -> Array:
        return np.concatenate([batch[name] for batch in batches]).astype(np.float64)

    wanted, given = (
        {name: joined(batches, name) for name in (LOGITS, EMBEDDING, PROBABILITIES)}
        for batches in (expected, said)
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
    """The worst of each number, of the same sounds; what is not finite stays so.

    Example
    -------
    >>> one = Parity(0.1, 30.0, 40.0, 1.0, 4, ("onnxruntime",))
    >>> worst_of([one, one._replace(logits_decibels=float("nan"))]).logits_decibels
    nan
    """
    # Unlike Python's own, these never lose a NaN.
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
    """Refuses what is too far off."""
    most, least = LIMITS[precision]
    decibels = min(parity.logits_decibels, parity.embedding_decibels)
    if not (parity.probability_error <= most and decibels >= least):  # nor NaN
        raise ValueError(
            f"{name} in {precision} says something else than PyTorch ({parity}; the "
            f"limits are {most:g} and {least:g} dB), so nothing was written; "
            + ("report it" if precision == "fp32" else "choose another precision")
        )
