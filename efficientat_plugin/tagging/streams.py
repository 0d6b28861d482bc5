"""Cuts, batches and averages sound as it arrives, without keeping it.

Scoring is left to the tagger, which passes its function in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import ScanWindow
from efficientat_plugin.data.decoding import (
    BLOCK_FRAMES,
    Resampler,
    UnreadableClip,
    as_array,
    decode_blocks,
    mono_samples,
)
from efficientat_plugin.tagging.windows import Window, WindowCutter

if TYPE_CHECKING:
    from torch import Tensor

TOO_SHORT = "it is shorter than a sample at the student's rate"
Piece = TypeVar("Piece", covariant=True)
Sound: TypeAlias = (
    "str | Path | bytes | bytearray | BinaryIO | dict[str, Any] | NDArray | Tensor"
)


def blocks_of(
    sound: Any, source_rate: int | None, sample_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Reads any sound as mono blocks at ``sample_rate``.

    Arguments
    ---------
    sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
        A file, its bytes, an open file, the ``sound_of`` a row, a decoded row of
        `datasets`, or samples as for ``mono_samples``.
    source_rate : int or None
        Sample rate of an array, Hz; files contain theirs.
    sample_rate : int
        Sample rate of the blocks, Hz.

    Yields
    ------
    NDArray
        [samples]

    Raises
    ------
    ValueError
        If the input is not a sound; ``UnreadableClip`` if a file cannot be decoded.
    """
    sound, source_rate = _read(sound, source_rate)
    if isinstance(sound, str | Path | bytes | dict):
        yield from decode_blocks(sound, sample_rate)
        return
    if source_rate is None:
        raise ValueError("an array has no sample rate; pass sample_rate in Hz with it")
    samples = mono_samples(sound)
    if not len(samples):
        raise UnreadableClip("it has no samples")
    resampler = Resampler(source_rate, sample_rate)
    for start in range(0, len(samples), BLOCK_FRAMES):
        yield resampler.feed(samples[start : start + BLOCK_FRAMES])
    yield resampler.finish()


def _read(sound: Any, source_rate: int | None) -> tuple[Any, int | None]:
    """Unpacks a buffer, an open file or a decoded row; returns sound and rate."""
    if isinstance(sound, bytearray | memoryview):
        return bytes(sound), source_rate
    if isinstance(sound, dict) and sound.get("array") is not None:
        return sound["array"], sound.get("sampling_rate", source_rate)
    if hasattr(sound, "read"):
        content = sound.read()
        if not isinstance(content, bytes) or not content:
            raise UnreadableClip(
                "the open file is at its end, or does not return bytes; call seek(0), "
                'or open it with "rb"'
            )
        return content, source_rate
    return sound, source_rate


def clips_of(waveforms: "NDArray | Tensor") -> NDArray[np.float32]:
    """Checks clips of one length and converts them to the input of a model.

    Arguments
    ---------
    waveforms : NDArray or Tensor
        [B, N], floating point in [-1, 1], on any device.

    Returns
    -------
    NDArray
        [B, N], float32.

    Raises
    ------
    ValueError
        For another shape or type.

    Example
    -------
    >>> clips_of(np.zeros((2, 100))).dtype
    dtype('float32')
    """
    clips = as_array(waveforms)
    if clips.ndim != 2 or not len(clips) or clips.dtype.kind != "f":
        raise ValueError(
            f"waveforms of shape {clips.shape} and type {clips.dtype} were given; give "
            "one or more, [B, N], floating point"
        )
    return np.ascontiguousarray(clips, np.float32)


class Cutter(Protocol[Piece]):
    """Cuts sound into pieces, or computes them, as it arrives."""

    @property
    def num_samples(self) -> int:
        """Samples that have arrived."""

    def feed(self, samples: NDArray[np.float32]) -> Iterable[Piece]:
        """Adds samples; returns the pieces that are complete."""

    def finish(self) -> Iterable[Piece]:
        """Ends the sound; returns the pieces that are left."""


def gathered(
    blocks: Iterable[NDArray[np.float32]], num_samples: int
) -> Iterator[NDArray[np.float32]]:
    """Joins blocks to ones of at least ``num_samples``; the last one may be shorter.

    Example
    -------
    >>> blocks = [np.zeros(3, np.float32)] * 5
    >>> [len(block) for block in gathered(blocks, 5)]
    [6, 6, 3]
    """
    held: list[NDArray[np.float32]] = []
    try:
        for block in blocks:
            held.append(block)
            if sum(map(len, held)) >= num_samples:
                yield np.concatenate(held)
                held = []
    except UnreadableClip:  # yields what was read before the error first
        if held:
            yield np.concatenate(held)
        raise
    if held:
        yield np.concatenate(held)


def cut(
    blocks: Iterable[NDArray[np.float32]], cutter: Cutter[Piece], sound: Sound
) -> Iterator[Piece]:
    """Cuts blocks from ``blocks_of`` into windows, or what else ``cutter`` returns.

    Raises ``UnreadableClip`` if there are no samples; if ``sound``, the source of the
    blocks, is a file, the error includes its name.
    """
    try:
        for block in blocks:
            yield from cutter.feed(block)
        if not cutter.num_samples:
            raise UnreadableClip(TOO_SHORT)
    except UnreadableClip as fault:
        if isinstance(sound, dict) and sound.get("bytes") is None:
            sound = sound.get("path", "")
        if isinstance(sound, str | Path):
            raise UnreadableClip(fault.reason, sound) from fault
        raise
    yield from cutter.finish()


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Groups items into lists of ``size``; the last one may be shorter.

    Example
    -------
    >>> list(batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    if size < 1:
        raise ValueError(f"batch_size={size} must be 1 or more")
    batch = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except UnreadableClip:  # yields what was read before the error first
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class TagStream:
    """Tags sound that arrives in chunks; created by ``SoundTagger.stream``.

    Arguments
    ---------
    resampler : Resampler
        From the rate of the chunks to the student's.
    cutter : WindowCutter
        Cuts samples at the student's rate.
    score : callable
        Scores windows, given the length in samples to which each is lengthened.
    batch_size : int
        Windows per batch.

    Example
    -------
    >>> def score(windows, num_samples):
    ...     return [(window.start, num_samples) for window in windows]
    >>> stream = TagStream(Resampler(8000, 8000), WindowCutter(4, hop=2), score, 16)
    >>> stream.feed(np.zeros(5)), stream.finish()
    ([(0, 4)], [(1, 4)])
    """

    def __init__(
        self,
        resampler: Resampler,
        cutter: WindowCutter,
        score: Callable[[Sequence[Window], int], list[ScanWindow]],
        batch_size: int,
    ) -> None:
        self._resampler = resampler
        self._cutter = cutter
        self._score = score
        self._batch_size = batch_size

    def feed(self, chunk: "NDArray | Tensor") -> list[ScanWindow]:
        """Adds a chunk of samples, as for ``tag``; returns the completed windows."""
        samples = self._resampler.feed(mono_samples(chunk))
        return self._scored(self._cutter.feed(samples))

    def finish(self) -> list[ScanWindow]:
        """Ends the sound and returns the remaining windows."""
        windows = [*self._cutter.feed(self._resampler.finish())]
        return self._scored([*windows, *self._cutter.finish()])

    def _scored(self, windows: Iterable[Window]) -> list[ScanWindow]:
        scored: list[ScanWindow] = []
        for batch in batches(windows, self._batch_size):
            scored += self._score(batch, self._cutter.window)
        return scored
