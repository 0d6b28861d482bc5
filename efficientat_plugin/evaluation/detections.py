"""The events that a detector finds at each of all thresholds, without trying them.

At a threshold, a class is detected where its scores exceed it. As the threshold falls,
a detection appears at a local maximum, grows and merges with its neighbours. So a clip
of T' frames has at most T' different detections of a class, and each of them exists for
one range of thresholds: from the smallest score in it down to the larger one of its two
neighbours. What they count for, summed from the highest score down, are the counts at
every threshold.

Source: J. Ebbers, R. Serizel, R. Haeb-Umbach, "Threshold Independent Evaluation of
Sound Event Detection Scores", ICASSP 2022. Here the detections are found from the
nearest lower scores, for all classes at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.evaluation.event_truth import (
    ClipScores,
    FloatArray,
    IntArray,
    Scores,
    Truth,
    clip_by_clip,
)

FRAMES_AT_ONCE = 250_000  # of one class each: at most about 150 MB


class Detections(NamedTuple):
    """Detections of many clips and classes, [D] each.

    A detection exists at the thresholds t with ``low <= t < high``.
    """

    clip: IntArray
    label: IntArray
    start: FloatArray  # seconds
    end: FloatArray  # seconds
    high: NDArray  # the smallest score in it
    low: NDArray  # the larger score beside it; -inf: it exists at any lower threshold

    @property
    def seconds(self) -> FloatArray:
        """[D], their lengths."""
        return self.end - self.start

    def only(self, which: NDArray) -> "Detections":
        """Returns those of a mask or of indices."""
        return Detections(*(each[which] for each in self))


def highest_scores(scores: Scores, truth: Truth, frame_seconds: float) -> NDArray:
    """Returns the highest score of each clip and class, [N, K]."""
    clips = clip_by_clip(scores, truth, frame_seconds)
    return np.stack([clip.scores.max(axis=0, initial=-np.inf) for clip in clips])


class _Frames(NamedTuple):
    """The frames of a clip whose scores exceed the floor of their class, [n] each."""

    clip: NDArray[np.int32]
    label: NDArray[np.int32]
    frame: NDArray[np.int32]
    value: NDArray
    start: FloatArray
    end: FloatArray


def all_detections(
    scores: Scores, truth: Truth, floor: NDArray, frame_seconds: float
) -> Iterator[Detections]:
    """Finds the detections at all thresholds from ``floor`` up, some clips at a time.

    Arguments
    ---------
    scores : Mapping
        [T', K] by clip id.
    truth : Truth
        The clips.
    floor : array
        [K], the lowest threshold of each class: -inf for all, inf for none.
    frame_seconds : float
        Seconds between frames.

    Yields
    ------
    Detections
        ``low`` is -inf where it is not above the floor.
    """
    waiting: list[_Frames] = []
    for clip in clip_by_clip(scores, truth, frame_seconds):
        waiting.append(_frames_above(clip, floor))
        if sum(len(frames.value) for frames in waiting) >= FRAMES_AT_ONCE:
            yield _detections(waiting)
            waiting = []
    if waiting:
        yield _detections(waiting)


def _frames_above(clip: ClipScores, floor: NDArray) -> _Frames:
    highest = clip.scores.max(axis=0, initial=-np.inf)
    classes = np.flatnonzero(highest > floor)
    above = clip.scores.T[classes]
    row, frame = np.nonzero(above > floor[classes, None])
    return _Frames(
        clip=np.full(len(row), clip.clip, dtype=np.int32),
        label=classes[row].astype(np.int32),
        frame=frame.astype(np.int32),
        value=above[row, frame],
        start=clip.times[frame],
        end=clip.times[frame + 1],
    )


def _detections(clips: list[_Frames]) -> Detections:
    frames = _Frames(*(np.concatenate(each) for each in zip(*clips, strict=True)))
    if not len(frames.value):
        return Detections(*(np.zeros(0, each) for each in ("i8", "i8", *4 * ["f8"])))
    # A score of -inf goes before each run of frames, and one to the end.
    breaks = np.ones(len(frames.value), dtype=bool)
    breaks[1:] = (
        (np.diff(frames.clip) != 0)
        | (np.diff(frames.label) != 0)
        | (np.diff(frames.frame) != 1)
    )
    place = np.arange(len(frames.value)) + np.cumsum(breaks)
    value = np.full(place[-1] + 2, -np.inf, dtype=frames.value.dtype)
    value[place] = frames.value
    source = np.zeros(len(value), dtype=np.int64)
    source[place] = np.arange(len(place))

    left = _nearest(value, place, -1, or_equal=True)
    first = value[left] < value[place]  # of frames with equal scores in one detection
    place, left = place[first], left[first]
    right = _nearest(value, place, 1, or_equal=False)
    return Detections(
        clip=frames.clip[source[place]].astype(np.int64),
        label=frames.label[source[place]].astype(np.int64),
        start=frames.start[source[left + 1]],
        end=frames.end[source[right - 1]],
        high=value[place],
        low=np.maximum(value[left], value[right]),
    )


def _nearest(value: NDArray, place: IntArray, step: int, or_equal: bool) -> IntArray:
    """Finds the nearest place with a lower score before (step -1) or behind (1) each.

    All scores between a place and the one that it points to are at least its own, so it
    may take over where that one points to.
    """
    points_to = np.arange(len(value)) + step
    points_to[[0, -1]] = 0, len(value) - 1
    exceeds = np.greater if or_equal else np.greater_equal
    active = np.arange(1, len(value) - 1)
    active = active[np.isfinite(value[active])]
    while len(active):
        active = active[exceeds(value[points_to[active]], value[active])]
        points_to[active] = points_to[points_to[active]]
    return points_to[place]


def pairs_of(begins: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Lists every index of ranges: the number of the range, and the index.

    Example
    -------
    >>> pairs_of(np.array([0, 5]), np.array([2, 6]))
    (array([0, 0, 1]), array([0, 1, 5]))
    """
    counts = ends - begins
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return owner, np.arange(len(owner)) - before + begins[owner]


def overlap(
    found: Detections, truth: Truth, which: IntArray, event: IntArray
) -> FloatArray:
    """Computes how many seconds detections ``which`` and events have in common."""
    begin = np.maximum(found.start[which], truth.start[event])
    end = np.minimum(found.end[which], truth.end[event])
    return np.maximum(end - begin, 0.0)
