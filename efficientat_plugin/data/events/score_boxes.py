"""Sound event bounding boxes: events whose extent does not depend on a threshold.

A box is a stretch of time with one score. Its ends are where scores rise and fall most
steeply, so a threshold decides which boxes are events, not how long these are.

Source: J. Ebbers, F. Germain, G. Wichern and J. Le Roux, "Sound Event Bounding Boxes",
Interspeech 2024: the variant with change detection. Boxes follow the scores at the
distance of their frames, as the step filter is rounded to whole ones. Where its output
is level, ends are chosen so that a score of 0 and 1 is found as it is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS

Integers = NDArray[np.int64]
ROUNDING = 1e-5  # of averages of probabilities
ONE = 2**30  # a score of 1: sums of whole numbers are exact, however they are cut
FLOOR = ONE // 1000  # added where scores are divided, as in the published code


class BoxOptions(NamedTuple):
    """How scores become boxes.

    Arguments
    ---------
    step_seconds : float
        Length of the step filter, s: how much of the scores before and behind a place
        together decide whether it is an end. Pauses and events shorter than half of it
        move the ends of what is next to them. Published values are from 0.32 to 0.64.
    merge_difference : float or None
        Neighbours are one box if the scores between them fall by less than this below
        the highest of each, from 0 to 1. Published values are from 0.15 to 0.3, with
        any ratio. None: any difference.
    merge_ratio : float or None
        And if the highest of each is less than this many times the lowest between them,
        with 0.001 added to all. Published values are from 1.5 to 3. None: any ratio.
        Without either, no neighbours are merged.
    """

    step_seconds: float = 0.48
    merge_difference: float | None = None
    merge_ratio: float | None = 2.0

    def check(self) -> None:
        """Raises a ``ValueError`` for options out of range."""
        if not 0 < self.step_seconds < float("inf"):
            raise ValueError(f"step_seconds={self.step_seconds} must be above 0")
        if self.merge_difference is not None and not 0 <= self.merge_difference <= 1:
            raise ValueError(
                f"merge_difference={self.merge_difference} must be from 0 to 1"
            )
        if self.merge_ratio is not None and not self.merge_ratio >= 1:
            raise ValueError(f"merge_ratio={self.merge_ratio} must be at least 1")

    def half_frames(self, frame_seconds: float) -> int:
        """Frames of a half of the step filter, at least 1."""
        return max(1, round(self.step_seconds / (2 * frame_seconds)))


USUAL = BoxOptions()


class Boxes(NamedTuple):
    """Boxes of any classes, in the order in which they became final."""

    label: NDArray[np.intp]  # [D], column of the scores
    begin: Integers  # [D], first frame
    end: Integers  # [D], frame behind the last one
    score: NDArray[np.float64]  # [D], mean of its frames


class BoxSearch:
    """Finds boxes in scores that arrive frame by frame.

    What it finds in all does not depend on how the scores are cut into pieces. It
    keeps a few numbers per class, and half a step filter of frames.

    Arguments
    ---------
    num_classes : int
        K.
    frame_seconds : float
        From one frame to the next.
    options : BoxOptions

    Raises
    ------
    ValueError
        For illegal options, and scores that are no probabilities.

    Example
    -------
    >>> search = BoxSearch(num_classes=1, options=BoxOptions(step_seconds=0.16))
    >>> scores = np.array([0, 0, 0.9, 0.7, 0.8, 0, 0, 0.2, 0.2])[:, None]
    >>> search.feed(scores)
    Boxes(label=array([0]), begin=array([2]), end=array([5]), score=array([0.8]))
    >>> search.finish()
    Boxes(label=array([0]), begin=array([7]), end=array([9]), score=array([0.2]))
    """

    def __init__(
        self,
        num_classes: int,
        frame_seconds: float = FRAME_SECONDS,
        options: BoxOptions = USUAL,
    ) -> None:
        options.check()
        self._options, self.half = options, options.half_frames(frame_seconds)
        # Silence before the sound, so that a score may begin with it
        self._held = np.zeros((2 * self.half, num_classes), np.int64)
        self._step = np.zeros(num_classes, np.int64)  # output of the filter
        self._place = -self.half  # where that is: between frames place - 1 and place
        self._rises = np.ones(num_classes, bool)  # and a box has not begun
        # Since when the output is level; the scores from the last end up to there, and
        # from there on
        self._level = np.full(num_classes, self._place)
        self._sum = np.zeros(num_classes, np.int64)  # of all frames before the place
        self._sum_at_level = self._sum.copy()
        self._before, self._since = _Range.empty(num_classes), _Range.empty(num_classes)
        # The box of each class that has ended, and may yet be merged; end 0: none
        self._begin, self._end = self._level.copy(), np.zeros(num_classes, np.int64)
        self._sum_at_begin, self._sum_at_end = self._sum.copy(), self._sum.copy()
        self._highest = self._sum.copy()  # of its last part
        self._lowest = self._sum.copy()  # behind it
        self._new_begin, self._new_sum = self._begin.copy(), self._sum.copy()
        self._found: list[Boxes] = []

    def feed(self, scores: NDArray) -> Boxes:
        """Adds frames, probabilities [T', K]; returns boxes that are final."""
        low, high = (scores.min(), scores.max()) if scores.size else (0.0, 1.0)
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nor NaN
            raise ValueError(
                f"scores are from {low:g} to {high:g}; boxes are found in "
                "probabilities, from 0 to 1"
            )
        whole = np.rint(scores.clip(0, 1).astype(np.float64) * ONE).astype(np.int64)
        self._go_on(whole)
        # A gap that is deep enough already ends a box, whatever comes behind it.
        gap = self._before.lowest
        deep = (self._end > 0) & self._rises & ~self._is_shallow(self._highest, gap)
        self._let_go(np.flatnonzero(deep))
        return self._taken()

    def finish(self) -> Boxes:
        """Ends the sound; returns the boxes that are left."""
        self._go_on(np.zeros((2 * self.half, len(self._step)), np.int64))
        self._let_go(np.flatnonzero(self._end > 0))
        return self._taken()

    def _go_on(self, new: Integers) -> None:
        """Adds frames, and moves the filter to all places that it can cover."""
        half, frames = self.half, np.concatenate([self._held, new])
        sums = np.concatenate([np.zeros_like(frames[:1]), frames.cumsum(axis=0)])
        middle = sums[half : len(sums) - half]
        steps = sums[2 * half :] + sums[: len(sums) - 2 * half] - 2 * middle
        # Row 0 is the place that was the last one.
        for step, frame in zip(steps[1:], frames[half:], strict=False):
            self._move(step, frame)
        self._held = frames[len(frames) - 2 * half :]

    def _move(self, step: Integers, frame: Integers) -> None:
        """Moves the filter by a frame, behind which its output is ``step``."""
        falls_now, rises_now = step < self._step, step > self._step
        turns = (self._rises & falls_now) | (~self._rises & rises_now)
        changed = falls_now | rises_now
        if turns.any():
            self._turn(np.flatnonzero(turns))
        # ``_turn`` left what is behind the end as the range before.
        self._before.join(self._since, changed)
        self._before.add(frame, changed)
        self._since.clear(changed)
        self._since.add(frame, ~changed)
        self._step, self._place = step, self._place + 1
        self._sum = self._sum + frame
        self._level = np.where(changed, self._place, self._level)
        self._sum_at_level = np.where(changed, self._sum, self._sum_at_level)

    def _turn(self, labels: NDArray[np.intp]) -> None:
        """Notes the highest outputs, where boxes begin, and the lowest, their ends."""
        step, rises = self._step[labels], self._rises[labels]
        # Where a steep side is level, the box is the shorter one; elsewhere the longer.
        at_place = np.where(rises, step > 0, step >= 0)
        place = np.where(at_place, self._place, self._level[labels])
        sums = np.where(at_place, self._sum[labels], self._sum_at_level[labels])
        here = labels[at_place]
        self._before.join_at(self._since, here)
        low, high = self._before.lowest[labels], self._before.highest[labels]
        self._before.move_at(self._since, labels, here)
        begun = labels[rises]
        self._lowest[begun] = low[rises]
        self._new_begin[begun], self._new_sum[begun] = place[rises], sums[rises]
        self._close(labels[~rises], place[~rises], sums[~rises], high[~rises])
        self._rises[labels] = ~rises

    def _close(
        self, labels: NDArray[np.intp], end: Integers, sums: Integers, high: Integers
    ) -> None:
        """Ends boxes, which are one with the last one of their class, or follow it."""
        gap = self._lowest[labels]
        joins = (self._end[labels] > 0) & self._is_shallow(high, gap)
        joins &= self._is_shallow(self._highest[labels], gap)
        new = labels[~joins]
        self._let_go(new[self._end[new] > 0])
        self._begin[new], self._sum_at_begin[new] = (
            self._new_begin[new],
            self._new_sum[new],
        )
        self._end[labels], self._sum_at_end[labels] = end, sums
        self._highest[labels] = high

    def _is_shallow(self, high: Integers, low: Integers) -> NDArray[np.bool_]:
        """Whether scores fall so little that boxes on both sides are one."""
        difference, ratio = self._options.merge_difference, self._options.merge_ratio
        shallow = np.full(len(high), difference is not None or ratio is not None)
        if difference is not None:
            shallow &= high - low < difference * ONE
        if ratio is not None:
            shallow &= high + FLOOR < ratio * (low + FLOOR)
        return shallow

    def _let_go(self, labels: NDArray[np.intp]) -> None:
        """Hands out the last boxes of classes, which are final."""
        if not len(labels):
            return
        begin, end = self._begin[labels], self._end[labels]
        total = self._sum_at_end[labels] - self._sum_at_begin[labels]
        self._found.append(Boxes(labels, begin, end, total / (end - begin) / ONE))
        self._end[labels] = 0

    def _taken(self) -> Boxes:
        none = np.zeros(0, np.intp)
        parts = self._found or [Boxes(none, none, none, np.zeros(0))]
        self._found = []
        return Boxes(*map(np.concatenate, zip(*parts, strict=True)))


class _Range(NamedTuple):
    """The lowest and highest scores of a stretch of frames of each class: [K]."""

    lowest: Integers
    highest: Integers

    @classmethod
    def empty(cls, num_classes: int) -> "_Range":
        return cls(np.full(num_classes, ONE + 1), np.full(num_classes, -1))

    def add(self, frame: Integers, where: NDArray[np.bool_]) -> None:
        np.minimum(self.lowest, frame, out=self.lowest, where=where)
        np.maximum(self.highest, frame, out=self.highest, where=where)

    def join(self, other: "_Range", where: NDArray[np.bool_]) -> None:
        np.minimum(self.lowest, other.lowest, out=self.lowest, where=where)
        np.maximum(self.highest, other.highest, out=self.highest, where=where)

    def clear(self, where: NDArray[np.bool_]) -> None:
        self.lowest[where], self.highest[where] = ONE + 1, -1

    def join_at(self, other: "_Range", labels: NDArray[np.intp]) -> None:
        """Takes what ``other`` holds of some classes, which is then empty there."""
        self.lowest[labels] = np.minimum(self.lowest[labels], other.lowest[labels])
        self.highest[labels] = np.maximum(self.highest[labels], other.highest[labels])

    def move_at(
        self, other: "_Range", labels: NDArray[np.intp], empty: NDArray[np.intp]
    ) -> None:
        """Begins anew with what ``other`` holds, or with nothing."""
        other.lowest[empty], other.highest[empty] = ONE + 1, -1
        self.lowest[labels] = other.lowest[labels]
        self.highest[labels] = other.highest[labels]
        other.lowest[labels], other.highest[labels] = ONE + 1, -1


def box_scores(
    scores: NDArray,
    frame_seconds: float = FRAME_SECONDS,
    options: BoxOptions = USUAL,
) -> NDArray[np.float32]:
    """Replaces the scores of a clip by those of its boxes, to evaluate these.

    Arguments
    ---------
    scores : array
        Probabilities [T', K].
    frame_seconds : float
        From one frame to the next.
    options : BoxOptions

    Returns
    -------
    array
        [T', K]: in a box, its score; elsewhere 0. `psds` of it is that of the boxes.

    Example
    -------
    >>> scores = np.array([[0.0], [0.0], [0.5], [0.9], [0.7], [0.0]])
    >>> box_scores(scores, options=BoxOptions(step_seconds=0.16))[:, 0].round(2)
    array([0. , 0. , 0.7, 0.7, 0.7, 0. ], dtype=float32)
    """
    search = BoxSearch(scores.shape[1], frame_seconds, options)
    found = np.zeros(scores.shape, np.float32)
    for boxes in (search.feed(scores), search.finish()):
        for label, begin, end, score in zip(*boxes, strict=True):
            found[begin:end, label] = score
    return found
