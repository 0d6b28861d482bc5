"""Detects sound events in files, arrays and streams, independent of the backend."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event, ScanWindow
from efficientat_plugin.data.decoding import Resampler, mono_samples
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.tagging.box_finder import BoxFinder
from efficientat_plugin.tagging.event_finder import EventFinder, EventOptions
from efficientat_plugin.tagging.frames import (
    ChunkCutter,
    CrossFader,
    FrameScores,
)
from efficientat_plugin.tagging.streams import (
    Sound,
    batches,
    blocks_of,
    cut,
    gathered,
)
from efficientat_plugin.tagging.windows import Window, WindowCutter

if TYPE_CHECKING:
    from torch import Tensor

Scores = NDArray[np.float32]

OVERLAP = 0.2  # of a chunk, with the next one
# Of models of clips, s. Shorter windows tell times better and classes worse.
WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.25
SCORES_CLIPS = (
    "%s scores clips, not frames, so the times of events come from overlapping windows "
    "and are less exact; a FrameMN, such as fmn10_tf_256_strong, scores frames"
)


class FrameScorer(Protocol):
    """Scores sound over time as it arrives."""

    frame: int  # samples from one frame to the next
    start: int  # sample at which the first frame begins, at most 0
    look_ahead: int  # samples behind a frame that its score needs
    batch_samples: int  # from one full batch to the next

    @property
    def num_samples(self) -> int:
        """Samples that have arrived."""

    def feed(self, samples: NDArray[np.float32]) -> Iterator[Scores]:
        """Adds samples; yields the frames that are final, [T', K]."""

    def finish(self) -> Iterator[Scores]:
        """Ends the sound; yields the frames that are left."""


class ChunkScorer:
    """Scores by a model of frames, chunk by chunk.

    Arguments
    ---------
    score : callable
        [B, N] -> [B, T', K], probabilities of frames.
    cutter : ChunkCutter
    lengthen : callable
        Lengthens a sound that is shorter than a chunk.
    batch_size : int
        Chunks per batch.

    Example
    -------
    >>> def score(waveforms):  # the mean of each frame of two samples
    ...     return waveforms.reshape(len(waveforms), -1, 2).mean(2)[:, :, None]
    >>> cutter = ChunkCutter(window=8, hop=4, frame=2)
    >>> scorer = ChunkScorer(score, cutter, lambda samples: samples, batch_size=2)
    >>> pieces = [*scorer.feed(np.arange(14, dtype=np.float32)), *scorer.finish()]
    >>> np.concatenate(pieces)[:, 0]
    array([ 0.5,  2.5,  4.5,  6.5,  8.5, 10.5, 12.5], dtype=float32)
    """

    def __init__(
        self,
        score: Callable[[NDArray[np.float32]], Scores],
        cutter: ChunkCutter,
        lengthen: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        batch_size: int,
    ) -> None:
        self._score, self._cutter, self._lengthen = score, cutter, lengthen
        self._batch_size = batch_size
        self.frame, self.start, self.look_ahead = cutter.frame, 0, cutter.window
        self.batch_samples = batch_size * cutter.hop
        self._fader = CrossFader(
            cutter.window // cutter.frame, cutter.hop // cutter.frame
        )

    @property
    def num_samples(self) -> int:
        """Samples that have arrived."""
        return self._cutter.num_samples

    def feed(self, samples: NDArray[np.float32]) -> Iterator[Scores]:
        """Adds samples; yields the frames that are final, [T', K]."""
        for batch in batches(self._cutter.feed(samples), self._batch_size):
            scored = self._score(np.stack([chunk.samples for chunk in batch]))
            for chunk, scores in zip(batch, scored, strict=True):
                yield self._fader.feed(chunk.start // self.frame, scores)

    def finish(self) -> Iterator[Scores]:
        """Ends the sound; yields the frames that are left."""
        for start, samples in self._cutter.finish():
            num_frames = -(-len(samples) // self.frame)
            [scores] = self._score(self._lengthen(samples)[None])
            place = start // self.frame
            yield self._fader.feed(place, scores[:num_frames], is_last=True)
        yield self._fader.finish()


class WindowScorer:
    """Scores by a model of clips, window by window.

    A window's score is that of the frame in the middle of it, as long as the hop. The
    first one is also that of the frames before, the last one of those behind.

    Arguments
    ---------
    score : callable
        Scores windows, given the length in samples to which each is lengthened.
    cutter : WindowCutter
    batch_size : int
        Windows per batch.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Window], int], list[ScanWindow]],
        cutter: WindowCutter,
        batch_size: int,
    ) -> None:
        self._score, self._cutter, self._batch_size = score, cutter, batch_size
        middle = (cutter.window - cutter.hop) // 2  # where the first one's frame starts
        self._num_before = -(-middle // cutter.hop)
        self.frame, self.start = cutter.hop, middle - self._num_before * cutter.hop
        self.look_ahead, self.batch_samples = cutter.window, batch_size * cutter.hop
        self._last: Scores | None = None  # of the window before, [1, K]
        self._num_frames = 0

    @property
    def num_samples(self) -> int:
        """Samples that have arrived."""
        return self._cutter.num_samples

    def feed(self, samples: NDArray[np.float32]) -> Iterator[Scores]:
        """Adds samples; yields the frames that are final, [T', K]."""
        yield from self._scored(self._cutter.feed(samples))

    def finish(self) -> Iterator[Scores]:
        """Ends the sound; yields the frames that are left."""
        num_left = -(-(self.num_samples - self.start) // self.frame) - self._num_frames
        left = self._cutter.finish()
        last = self._rows(left) if left else self._last
        if last is not None:
            yield last.repeat(max(0, num_left), axis=0)

    def _scored(self, windows: Iterable[Window]) -> Iterator[Scores]:
        for batch in batches(windows, self._batch_size):
            rows = self._rows(batch)
            if self._last is None:
                rows = np.concatenate([rows[:1].repeat(self._num_before, axis=0), rows])
            self._last = rows[-1:]
            self._num_frames += len(rows)
            yield rows

    def _rows(self, windows: Sequence[Window]) -> Scores:
        scored = self._score(windows, self._cutter.window)
        return np.stack([window.probabilities for window in scored])


class EventStream:
    """Detects events in sound that arrives in chunks; `SoundTagger.event_stream`.

    Arguments
    ---------
    resampler : Resampler
        From the rate of the chunks to the student's.
    scorer : FrameScorer
    finder : EventFinder or BoxFinder
    sample_rate : int
        The student's, Hz.
    """

    def __init__(
        self,
        resampler: Resampler,
        scorer: FrameScorer,
        finder: EventFinder | BoxFinder,
        sample_rate: int,
    ) -> None:
        self._resampler, self._scorer, self._finder = resampler, scorer, finder
        self._sample_rate = sample_rate

    @property
    def look_ahead_seconds(self) -> float:
        """Sound that must have arrived behind a frame before its score is final, s.

        An event is returned once what ends it is final: a frame below its threshold,
        behind a gap that is too long to merge events across.
        """
        of_scores = self._scorer.look_ahead / self._sample_rate
        return of_scores + self._finder.look_ahead_seconds

    def feed(self, chunk: "NDArray | Tensor") -> list[Event]:
        """Adds a chunk of samples, as for ``tag``; returns the events that ended."""
        return self._fed(self._resampler.feed(mono_samples(chunk)))

    def finish(self) -> list[Event]:
        """Ends the sound and returns the remaining events."""
        events = self._fed(self._resampler.finish())
        for scores in self._scorer.finish():
            if len(scores):
                events += self._finder.feed(scores)
        return events + self._finder.finish(
            self._scorer.num_samples / self._sample_rate
        )

    def _fed(self, samples: NDArray[np.float32]) -> list[Event]:
        events: list[Event] = []
        for scores in self._scorer.feed(samples):
            if len(scores):
                events += self._finder.feed(scores)
        return events


class DetectsEvents:
    """The part of `SoundTagger` that scores over time; see there."""

    labels: LabelTable
    sample_rate: int
    clip_seconds: float
    min_samples: int
    # Samples from one frame to the next, if the model scores frames; None: clips only
    frame_samples: int | None = None
    takes_only_clips: bool = False  # and no windows of another length
    # Of `EventOptions`, where ``events`` is given no other: those of the model
    event_options: Mapping[str, Any] = {}

    def frames(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        batch_size: int | None = None,
    ) -> FrameScores:
        """Scores a sound over time.

        A model of frames, such as `FrameMN`, scores each of them, in overlapping chunks
        whose scores are cross-faded. A model of clips scores overlapping windows, and
        the score of a window is that of the middle of it.

        Arguments
        ---------
        sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
            As for ``tag``.
        sample_rate : int or None
            Sample rate of an array, Hz.
        window_seconds : float or None
            Length of a chunk or window; None: of chunks, that of the clips that the
            student was trained on; of windows, 2 s or that, if it is shorter or the
            student takes no other.
        hop_seconds : float or None
            From one chunk or window to the next; None: 0.8 of a chunk; 0.25 s, or at
            most a window.
        batch_size : int or None
            Chunks or windows per batch; None: the backend's default.

        Returns
        -------
        FrameScores
            All in memory: 447 classes take 160 MB an hour. ``events`` does not need it.

        Raises
        ------
        ValueError
            For windows too short for a frame, and hops longer than a window.
        """
        scorer = self._scorer(window_seconds, hop_seconds, batch_size)
        blocks = blocks_of(sound, sample_rate, self.sample_rate)
        blocks = gathered(blocks, scorer.batch_samples)  # or no batch would be full
        pieces = [each for each in cut(blocks, scorer, sound) if len(each)]
        start, step = scorer.start / self.sample_rate, scorer.frame / self.sample_rate
        return FrameScores(np.concatenate(pieces), start, step)

    def events(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[Event]:
        """Detects what sounds when, in constant memory.

        Arguments
        ---------
        sound, sample_rate, window_seconds, hop_seconds, batch_size
            As for ``frames``.
        **options
            Fields of `EventOptions`, such as ``threshold``, ``median_seconds`` and
            ``classes``; those of ``event_options`` if they are stored with the model,
            such as thresholds chosen on validation clips.

        Returns
        -------
        list of Event
            Sorted by start.

        Raises
        ------
        ValueError
            As ``frames``; and for illegal options, and classes that the model lacks.

        Example
        -------
        >>> tagger.events("street.wav", threshold=0.3)[0]  # doctest: +SKIP
        Event(label='Car', start_seconds=1.2, end_seconds=3.56, score=0.81)
        """
        scorer = self._scorer(window_seconds, hop_seconds, batch_size)
        finder = self._finder(scorer, options)
        blocks = blocks_of(sound, sample_rate, self.sample_rate)
        blocks = gathered(blocks, scorer.batch_samples)  # or no batch would be full
        events: list[Event] = []
        for scores in cut(blocks, scorer, sound):
            if len(scores):
                events += finder.feed(scores)
        events += finder.finish(scorer.num_samples / self.sample_rate)
        return sorted(events, key=lambda event: (event.start_seconds, event.label))

    def event_stream(
        self,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        **options: Any,
    ) -> EventStream:
        """Detects events in sound that arrives in chunks, as from a microphone.

        Arguments
        ---------
        sample_rate : int or None
            Sample rate of the chunks, Hz; None: the student's own.
        window_seconds, hop_seconds, **options
            As for ``events``. Shorter windows return events earlier; see
            ``look_ahead_seconds`` of the result.

        Returns
        -------
        EventStream
            ``feed(chunk)`` returns the events that have ended, ``finish()`` the rest;
            together they equal ``events`` of the full recording.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        scorer = self._scorer(window_seconds, hop_seconds, None)
        finder = self._finder(scorer, options)
        resampler = Resampler(rate, self.sample_rate)
        return EventStream(resampler, scorer, finder, self.sample_rate)

    # --- Steps ------------------------------------------------------------------

    def _finder(
        self, scorer: FrameScorer, options: dict[str, Any]
    ) -> EventFinder | BoxFinder:
        step, start = scorer.frame / self.sample_rate, scorer.start / self.sample_rate
        try:
            chosen = EventOptions(**{**self.event_options, **options})
        except TypeError as error:
            unknown = [name for name in options if name not in EventOptions._fields]
            raise TypeError(
                f"events has no option {', '.join(unknown)}; its options are "
                f"{', '.join(EventOptions._fields)}"
            ) from error
        finder = BoxFinder if chosen.boxes else EventFinder
        return finder(self.labels, step, chosen, start)

    def _scorer(
        self,
        window_seconds: float | None,
        hop_seconds: float | None,
        batch_size: int | None,
    ) -> FrameScorer:
        if self.frame_samples is None:
            if window_seconds is None:
                longest = math.inf if self.takes_only_clips else WINDOW_SECONDS
                window_seconds = min(longest, self.clip_seconds)
            if hop_seconds is None:
                hop_seconds = min(HOP_SECONDS, window_seconds)
            windows = self._cutter(window_seconds, hop_seconds)
            size = self._windows_per_batch(batch_size, windows.window)
            return WindowScorer(self._score_windows, windows, size)
        chunks = self._chunks(window_seconds, hop_seconds, self.frame_samples)
        size = self._windows_per_batch(batch_size, chunks.window)

        def lengthen(samples: NDArray[np.float32]) -> NDArray[np.float32]:
            whole = Window(0, samples)
            return self._as_long_as_needed(whole, chunks.window).samples

        return ChunkScorer(self._finite_frames, chunks, lengthen, size)

    def _chunks(
        self, window_seconds: float | None, hop_seconds: float | None, frame: int
    ) -> ChunkCutter:
        """Checks and rounds the length and the hop of chunks to whole frames."""
        if window_seconds is None:
            window_seconds = self.clip_seconds
        if hop_seconds is None:
            hop_seconds = window_seconds * (1 - OVERLAP)
        window = self._cutter(window_seconds, hop_seconds).window // frame * frame
        hop = round(hop_seconds * self.sample_rate) // frame * frame
        if window < max(frame, self.min_samples) or not hop:
            least = frame * -(-self.min_samples // frame) / self.sample_rate
            raise ValueError(
                f"window_seconds={window_seconds:g} and hop_seconds={hop_seconds:g} "
                f"were given; give at least {least:.3f} and "
                f"{frame / self.sample_rate:.3f}, a frame"
            )
        return ChunkCutter(window, hop, frame)

    def _finite_frames(self, waveforms: NDArray[np.float32]) -> Scores:
        return finite(self._score_frames(waveforms))

    def _score_frames(self, waveforms: NDArray[np.float32]) -> Scores:
        """Computes probabilities of frames: [B, N] -> [B, T', K]."""
        raise NotImplementedError

    # Of `SoundTagger`
    _cutter: Callable[..., WindowCutter]
    _windows_per_batch: Callable[[int | None, int], int]
    _score_windows: Callable[[Sequence[Window], int], list[ScanWindow]]
    _as_long_as_needed: Callable[[Window, int], Window]


def finite(rows: Scores) -> Scores:
    """Raises a ``ValueError`` for NaN and infinity, which would sort arbitrarily."""
    if not np.isfinite(rows).all():
        raise ValueError(
            "the model computes numbers that are not finite, so its weights are "
            "corrupt; export, download or train it again"
        )
    return rows
