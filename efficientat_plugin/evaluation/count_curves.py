"""Counts of a class at every threshold, collected as changes at scores."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.evaluation.event_truth import FloatArray, IntArray

POINTS_AT_ONCE = 4_000_000  # changes that wait until equal scores are summed


class Curve(NamedTuple):
    """Counts of one class at falling thresholds.

    Row i holds while the threshold is at least ``score[i + 1]`` and below ``score[i]``.
    Row 0, with an infinite score, is of thresholds that nothing exceeds.
    """

    score: NDArray  # [P], falling from inf
    counts: FloatArray  # [P, kinds]


class CountCurves:
    """Collects changes of counts, of which there are ``num_kinds`` in each class.

    Arguments
    ---------
    num_classes : int
        K.
    num_kinds : int
        How many counts there are: true positives, false positives, ...

    Example
    -------
    >>> curves = CountCurves(num_classes=1, num_kinds=1)
    >>> label, score = np.array([0, 0]), np.array([0.2, 0.7])
    >>> curves.add(np.array([0, 0]), label, score, np.array([[-1], [1]]))
    >>> curves.curve(0)
    Curve(score=array([inf, 0.7, 0.2]), counts=array([[0.],
           [1.],
           [0.]]))
    """

    def __init__(self, num_classes: int, num_kinds: int) -> None:
        self.num_classes = num_classes
        self.num_kinds = num_kinds
        self._points: list[list[tuple[NDArray, NDArray]]] = [
            [] for _ in range(num_classes)
        ]
        self._waiting = 0

    def add(
        self, clip: IntArray, label: IntArray, score: NDArray, change: NDArray
    ) -> None:
        """Adds changes [n, kinds] that happen when the threshold falls below a score.

        All changes of a clip have to come in one call: where they cancel each other,
        nothing happens at that score. A score of -inf is never passed.
        """
        passed = score > -np.inf
        key = clip[passed] * self.num_classes + label[passed]
        key, score, change = _summed(key, score[passed], change[passed])
        happens = change.any(axis=1)
        label, score, change = (
            key[happens] % self.num_classes,
            score[happens],
            change[happens],
        )
        order = np.argsort(label, kind="stable")
        label, score, change = label[order], score[order], change[order]
        ends = np.cumsum(np.bincount(label, minlength=self.num_classes))
        for k in np.unique(label):
            part = slice(ends[k - 1] if k else 0, ends[k])
            self._points[k].append((score[part], change[part]))
        self._waiting += len(label)
        if self._waiting > POINTS_AT_ONCE:
            self._sum_equal_scores()

    def curve(self, label: int) -> Curve:
        """Returns the counts of a class at every threshold."""
        score, change = self._of_class(label)
        counts = np.cumsum(change[::-1], axis=0, dtype=np.float64)
        return Curve(
            np.concatenate(([np.inf], score[::-1])),
            np.concatenate((np.zeros((1, self.num_kinds)), counts)),
        )

    def _of_class(self, label: int) -> tuple[NDArray, NDArray]:
        if not self._points[label]:
            return np.zeros(0), np.zeros((0, self.num_kinds))
        scores, changes = zip(*self._points[label], strict=True)
        score, change = np.concatenate(scores), np.concatenate(changes)
        _, score, change = _summed(np.zeros(len(score), np.int64), score, change)
        return score, change

    def _sum_equal_scores(self) -> None:
        for label in range(self.num_classes):
            self._points[label] = [self._of_class(label)]
        self._waiting = 0


def _summed(
    key: IntArray, score: NDArray, change: NDArray
) -> tuple[IntArray, NDArray, NDArray]:
    """Sums the changes of equal keys and scores; sorts by key, then by score."""
    order = np.lexsort((score, key))
    key, score, change = key[order], score[order], change[order]
    new = np.ones(len(key), dtype=bool)
    new[1:] = (np.diff(key) != 0) | (score[1:] != score[:-1])
    begins = np.flatnonzero(new)
    if not len(begins):
        return key, score, change
    return key[begins], score[begins], np.add.reduceat(change, begins, 0, change.dtype)
