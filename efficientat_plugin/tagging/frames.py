"""Scores over time for sound of any length, in constant memory.

Long sound is scored in overlapping pieces. A model of frames scores each piece frame by
frame, and the frames that pieces share are cross-faded; a model of clips scores each
piece as a whole, which is the score of the middle of it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.tagging.windows import WindowCutter

Scores = NDArray[np.float32]


class FrameScores(NamedTuple):
    """Probabilities over time. Frame k begins at ``start + k * frame_seconds``."""

    scores: Scores  # [T', K]
    start_seconds: float  # of the first frame; may be slightly below 0
    frame_seconds: float

    @property
    def times(self) -> NDArray[np.float64]:
        """The starts of the frames, s: [T'].

        Example
        -------
        >>> FrameScores(np.zeros((3, 1), np.float32), 0.0, 0.04).times
        array([0.  , 0.04, 0.08])
        """
        steps = np.arange(len(self.scores)) * self.frame_seconds
        return np.round(self.start_seconds + steps, 9)


class ChunkCutter(WindowCutter):
    """Cuts chunks that all begin with a frame of scores, the last one too.

    Arguments
    ---------
    window : int
        Samples of a chunk.
    hop : int
        Samples from one chunk to the next, a multiple of ``frame``.
    frame : int
        Samples of a frame.

    Example
    -------
    >>> cutter = ChunkCutter(window=8, hop=4, frame=2)
    >>> sound = np.arange(13, dtype=np.float32)
    >>> [(each.start, len(each.samples)) for each in cutter.feed(sound)]
    [(0, 8), (4, 8)]
    >>> [(each.start, len(each.samples)) for each in cutter.finish()]
    [(6, 7)]
    """

    def __init__(self, window: int, hop: int, frame: int) -> None:
        super().__init__(window, hop)
        if hop % frame:
            raise ValueError(f"a hop of {hop} samples must be a multiple of {frame}")
        self.frame = frame

    def _last_start(self) -> int:
        start = self.num_samples - self.window
        return -(-start // self.frame) * self.frame


class CrossFader:
    """Joins the scores of overlapping chunks; neighbours are cross-faded.

    A frame's score is the average of those of all chunks with this frame. Weights rise
    linearly from the start of a chunk and fall to its end, so that no chunk begins or
    ends abruptly.

    Arguments
    ---------
    chunk : int
        Frames of a chunk.
    hop : int
        Frames from one chunk to the next, at most ``chunk``.

    Example
    -------
    >>> fader = CrossFader(chunk=4, hop=2)
    >>> fader.feed(0, np.zeros((4, 1)))[:, 0]
    array([0., 0.], dtype=float32)
    >>> fader.feed(2, np.ones((4, 1)))[:, 0]
    array([0.25, 0.75], dtype=float32)
    >>> fader.finish()[:, 0]
    array([1., 1.], dtype=float32)
    """

    def __init__(self, chunk: int, hop: int) -> None:
        ramp = (np.arange(chunk) + 0.5) / max(1, chunk - hop)
        self._rising = np.minimum(ramp, 1.0)
        self._hop, self._first = hop, 0
        self._next = 0  # nominal start of the next chunk
        self._sums: NDArray[np.float64] | None = None  # from frame ``_first`` on
        self._weights = np.zeros(0)

    def feed(self, start: int, scores: Scores, is_last: bool = False) -> Scores:
        """Adds the scores [T', K] of the next chunk; returns frames that are final.

        Arguments
        ---------
        start : int
            Its first frame: a multiple of the hop, unless it is the last chunk.
        scores : array
        is_last : bool
            Whether it ends the sound. What it says of frames before the place where
            a next chunk would begin is left out, as these are final.

        Returns
        -------
        array
        """
        scores = scores[self._next - start :]
        weights = np.ones(len(scores))
        if self._next > 0:
            weights *= self._rising[: len(scores)]
        if not is_last:
            weights *= self._rising[: len(scores)][::-1]
        self._add(weights, scores)
        self._next += self._hop
        return self._cut(self._next - self._first)

    def finish(self) -> Scores:
        """Returns the frames that are left."""
        if self._sums is None:
            return np.zeros((0, 0), np.float32)
        return self._cut(len(self._weights))

    def _add(self, weights: NDArray[np.float64], scores: Scores) -> None:
        if self._sums is None:
            self._sums = np.zeros((0, scores.shape[1]))
        place = self._next - self._first
        num_new = place + len(scores) - len(self._weights)
        if num_new > 0:
            self._weights = np.pad(self._weights, (0, num_new))
            self._sums = np.pad(self._sums, ((0, num_new), (0, 0)))
        self._weights[place : place + len(scores)] += weights
        self._sums[place : place + len(scores)] += weights[:, None] * scores

    def _cut(self, num_frames: int) -> Scores:
        assert self._sums is not None
        final = self._sums[:num_frames] / self._weights[:num_frames, None]
        self._sums = self._sums[num_frames:]
        self._weights = self._weights[num_frames:]
        self._first += len(final)
        return final.astype(np.float32)
