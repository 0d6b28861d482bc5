"""Tags files, arrays, long recordings and streams, independent of the backend.

``torch_tagger`` computes with torch, ``runtime`` without it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import ScanWindow, Tag
from efficientat_plugin.data.decoding import Resampler
from efficientat_plugin.data.labels import LabelTable, likeliest
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.support.limits import MAX_WINDOW_SECONDS
from efficientat_plugin.tagging.detection import DetectsEvents, finite
from efficientat_plugin.tagging.overlap import unfolded
from efficientat_plugin.tagging.streams import (
    Sound,
    TagStream,
    batches,
    blocks_of,
    cut,
)
from efficientat_plugin.tagging.windows import Window, WindowCutter, runs_of

if TYPE_CHECKING:
    from torch import Tensor

# Rows [B, K] of equally long waveforms [B, N]
Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class SoundTagger(DetectsEvents):
    """Tags sound of any length, rate and number of channels.

    A sound longer than ``clip_seconds`` is scored in half-overlapping windows of that
    length, and their probabilities are averaged; ``short_clips`` sets how shorter
    sounds are lengthened. ``events`` and ``frames`` score over time.

    A subclass sets these attributes and implements ``score``, ``fingerprint``,
    ``_log_mels`` and ``_embeddings``; ``_score_overlapping`` where it can be faster,
    and ``frame_samples`` with ``_score_frames`` if the model scores frames:

    - ``labels``: a ``LabelTable``;
    - ``sample_rate``: of the student's input, Hz;
    - ``clip_seconds``: length of the clips that the student was trained on;
    - ``short_clips``: "repeat", "zero_pad" or "as_is";
    - ``target``: "multilabel" or "multiclass";
    - ``min_samples``: the shortest input that gives a frame.
    """

    labels: LabelTable
    sample_rate: int
    clip_seconds: float
    short_clips: str
    target: str
    min_samples: int
    batch_size: int = 16  # sounds or windows per batch

    @property
    def clip_samples(self) -> int:
        """Length of the clips that the student was trained on, in samples."""
        return round(self.clip_seconds * self.sample_rate)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} of {len(self.labels)} classes ({self.target}), "
            f"clips of {self.clip_seconds:g} s at {self.sample_rate} Hz"
        )

    def score(self, waveforms: "NDArray | Tensor") -> NDArray[np.float32]:
        """Computes the probabilities of clips of one length: [B, N] -> [B, K]."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """Returns, for JSON, everything besides the sound that sets probabilities."""
        raise NotImplementedError

    # --- Clips ------------------------------------------------------------------

    def tag(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        top_k: int | None = 10,
        threshold: float = 0.0,
    ) -> list[Tag]:
        """Predicts the most likely classes of a sound, sorted by probability.

        Arguments
        ---------
        sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
            A file, its bytes, an open file, a row of `datasets` (with "array" and
            "sampling_rate", or "bytes" or "path"), or samples: [N], [N, channels] or
            [channels, N], floating point in [-1, 1] or integers at full scale.
        sample_rate : int or None
            Sample rate of an array, Hz; files contain theirs.
        top_k : int or None
            Maximum number of classes; None: all.
        threshold : float
            Minimum probability of a class.

        Returns
        -------
        list of Tag

        Raises
        ------
        ValueError
            If the input is not a sound; ``UnreadableClip`` if a file cannot be decoded.
        """
        probabilities = self.probabilities([sound], sample_rate)[0]
        return likeliest(self.labels, probabilities, top_k, threshold)

    def tag_batch(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None = None,
        top_k: int | None = 10,
        threshold: float = 0.0,
        batch_size: int | None = None,
    ) -> list[list[Tag]]:
        """Tags several sounds, of any lengths, each as ``tag`` would, without padding.

        A sound that cannot be read raises the same error as in ``tag``.
        """
        probabilities = self.probabilities(sounds, sample_rate, batch_size)
        return [likeliest(self.labels, row, top_k, threshold) for row in probabilities]

    def probabilities(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Computes the class probabilities of each sound: [sounds, K]."""
        rows = self._averages(self.score, sounds, sample_rate, batch_size)
        return np.stack(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def embed(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Computes the embedding [D] of a sound, for search and probes.

        With torch, the embeddings of an ensemble's members are concatenated. An
        exported model has one embedding: the average over the maps before the head,
        or over the frames.

        Arguments
        ---------
        sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
            As for ``tag``; embeddings of a long sound's windows are averaged.
        sample_rate : int or None
            Sample rate of an array, Hz.
        batch_size : int or None
            Windows per batch; None: the backend's default.
        **options
            With torch, arguments of ``LayerEmbedding``: ``sources`` and ``pooling``.

        Returns
        -------
        NDArray
        """
        model = self._embeddings(**options)
        [embedding] = self._averages(model, [sound], sample_rate, batch_size)
        return embedding

    def log_mel_of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes the log-mel of a sound, for plotting: [N] -> [F, T].

        Example
        -------
        >>> tagger = AudioTagger.from_student("mn10_as")  # doctest: +SKIP
        >>> tagger.log_mel_of(np.zeros(32000, np.float32)).shape  # doctest: +SKIP
        (128, 100)
        """
        samples = lengthened(samples, self.min_samples, "zero_pad")
        return self._log_mels(samples[None])[0]

    # --- Long sound -------------------------------------------------------------

    def scan(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        batch_size: int | None = None,
    ) -> Iterator[ScanWindow]:
        """Scores a long sound window by window, as it is read, in constant memory.

        Windows begin every ``hop_seconds``. If the last of them does not reach the
        end, one more window ends with the sound. A sound shorter than a window is
        scored as by ``tag``.

        Arguments
        ---------
        sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
            As for ``tag``.
        sample_rate : int or None
            Sample rate of an array, Hz.
        window_seconds : float or None
            None: the length of the clips that the student was trained on.
        hop_seconds : float or None
            None: half a window.
        batch_size : int or None
            Windows per batch; None: the backend's default, and fewer if windows are
            long.

        Yields
        ------
        ScanWindow

        Raises
        ------
        ValueError
            For windows too short for a frame, and hops longer than a window.
        """
        cutter = self._cutter(window_seconds, hop_seconds)
        blocks = blocks_of(sound, sample_rate, self.sample_rate)
        windows = cut(blocks, cutter, sound)
        size = self._windows_per_batch(batch_size, cutter.window)
        for batch in batches(windows, size):
            yield from self._score_windows(batch, cutter.window)

    def stream(
        self,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
    ) -> TagStream:
        """Tags sound that arrives in chunks, as from a microphone or a socket.

        Arguments
        ---------
        sample_rate : int or None
            Sample rate of the chunks, Hz; None: the student's own.
        window_seconds : float or None
            As for ``scan``.
        hop_seconds : float or None
            As for ``scan``.

        Returns
        -------
        TagStream
            ``feed(chunk)`` returns the windows that are complete, ``finish()`` the
            rest; together they equal ``scan`` on the full recording.

        Raises
        ------
        ValueError
            As ``scan``.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        resampler = Resampler(rate, self.sample_rate)
        cutter = self._cutter(window_seconds, hop_seconds)
        size = self._windows_per_batch(None, cutter.window)
        return TagStream(resampler, cutter, self._score_windows, size)

    # --- Shared steps -----------------------------------------------------------

    def _averages(
        self,
        model: Model,
        sounds: Iterable[Sound],
        sample_rate: int | None,
        batch_size: int | None,
    ) -> list[NDArray[np.float32]]:
        """Applies ``model`` to the windows of each sound; returns the mean of each."""
        totals: list[Any] = []  # in float64; windows themselves are not kept
        counts: list[int] = []
        windows = self._windows(sounds, sample_rate)
        size = self._windows_per_batch(batch_size, self.clip_samples)
        for batch in batches(windows, size):
            rows = self._rows(model, [window.samples for _, window in batch])
            for (number, _), row in zip(batch, rows, strict=True):
                if number == len(totals):
                    totals.append(0.0)
                    counts.append(0)
                totals[number] = totals[number] + row.astype(np.float64)
                counts[number] += 1
        pairs = zip(totals, counts, strict=True)
        return [(total / count).astype(np.float32) for total, count in pairs]

    def _log_mels(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Computes log-mels, of an ensemble's first member: [B, N] -> [B, F, T]."""
        raise NotImplementedError

    def _embeddings(self, **options: Any) -> Model:
        """Returns the function that computes embeddings: [B, N] -> [B, D]."""
        raise NotImplementedError

    def _score_overlapping(
        self, sound: NDArray[np.float32], window: int, hop: int
    ) -> NDArray[np.float32]:
        """Scores windows every ``hop`` samples: [N] -> [windows, K]."""
        return self.score(unfolded(sound, window, hop))

    def _score_windows(
        self, windows: Sequence[Window], num_samples: int
    ) -> list[ScanWindow]:
        """Scores windows; those shorter than ``num_samples`` are lengthened."""
        rows: list[NDArray[np.float32]] = []
        for run in runs_of(windows):
            if len(run) == 1:
                full = self._as_long_as_needed(run[0], num_samples)
                rows += list(self.score(full.samples[None]))
            else:
                hop = run[1].start - run[0].start
                added = [window.samples[-hop:] for window in run[1:]]
                sound = np.concatenate([run[0].samples, *added])
                length = len(run[0].samples)
                rows += list(self._score_overlapping(sound, length, hop))
        rate = self.sample_rate
        return [
            ScanWindow(start / rate, (start + len(samples)) / rate, finite(row))
            for (start, samples), row in zip(windows, rows, strict=True)
        ]

    def _windows_per_batch(self, batch_size: int | None, num_samples: int) -> int:
        """Returns the windows per batch; long ones do not add up to more sound."""
        if batch_size is not None:
            return batch_size
        longer = max(1.0, num_samples / max(1, self.clip_samples))
        return max(1, int(self.batch_size / longer))

    def _rows(
        self,
        model: Model,
        waveforms: Sequence[NDArray[np.float32]],
    ) -> list[NDArray[np.float32]]:
        """Applies ``model`` to waveforms, batched by length; returns a row for each."""
        by_length: dict[int, list[int]] = {}
        for number, waveform in enumerate(waveforms):
            by_length.setdefault(len(waveform), []).append(number)
        rows: dict[int, NDArray[np.float32]] = {}
        for numbers in by_length.values():
            stacked = np.stack([waveforms[number] for number in numbers])
            rows |= zip(numbers, finite(model(stacked)), strict=True)
        return [rows[number] for number in range(len(waveforms))]

    def _windows(
        self, sounds: Iterable[Sound], sample_rate: int | None
    ) -> Iterator[tuple[int, Window]]:
        """Yields half-overlapping windows of clip length, with their sound's number."""
        is_one = isinstance(sounds, str | Path | bytes | bytearray | Mapping)
        if is_one or hasattr(sounds, "read") or getattr(sounds, "ndim", 2) < 2:
            raise ValueError(
                f"a {type(sounds).__name__} is one sound, but several are expected; "
                "give a list, or use tag"
            )
        hop = max(1, self.clip_samples // 2)
        for number, sound in enumerate(sounds):
            cutter = WindowCutter(self.clip_samples, hop)
            blocks = blocks_of(sound, sample_rate, self.sample_rate)
            for window in cut(blocks, cutter, sound):
                yield number, self._as_long_as_needed(window, self.clip_samples)

    def _cutter(
        self, window_seconds: float | None, hop_seconds: float | None
    ) -> WindowCutter:
        if window_seconds is None:
            window_seconds = self.clip_seconds
        if not window_seconds <= MAX_WINDOW_SECONDS:  # nor NaN
            raise ValueError(
                f"window_seconds={window_seconds} is too long; give at most "
                f"{MAX_WINDOW_SECONDS}"
            )
        if hop_seconds is None:
            hop_seconds = window_seconds / 2
        window = round(window_seconds * self.sample_rate)
        if window < self.min_samples:
            raise ValueError(
                f"window_seconds={window_seconds} is too short for a frame; give at "
                f"least {self.min_samples / self.sample_rate:.3f}"
            )
        return WindowCutter(window, round(hop_seconds * self.sample_rate))

    def _as_long_as_needed(self, window: Window, num_samples: int) -> Window:
        samples = lengthened(window.samples, num_samples, self.short_clips)
        # "as_is" can leave it too short for one frame.
        samples = lengthened(samples, self.min_samples, "zero_pad")
        return window._replace(samples=samples)
