"""F-scores of classes at a threshold, or at the one that is best for each class."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from efficientat_plugin.evaluation.count_curves import Curve
from efficientat_plugin.evaluation.event_truth import FloatArray, IntArray
from efficientat_plugin.support.plain_text import some_of

TRUE, FALSE = range(2)  # what is counted: correct and false detections
Threshold = float | Mapping[str, float]  # one for all classes, or by name


class FScores(NamedTuple):
    """F-scores, from 0 to 1: 2 correct / (detected + annotated)."""

    macro: float  # mean of the classes with events
    micro: float  # of the counts of all classes together
    per_class: dict[str, float]  # NaN without events
    thresholds: dict[str, float]  # what a score has to exceed


def floor_of(threshold: Threshold | None, classes: Sequence[str]) -> FloatArray:
    """Returns the threshold of each class, [K]; -inf to look for the best.

    Raises
    ------
    ValueError
        If a threshold is missing, of an unknown class, or NaN.
    """
    if threshold is None:
        return np.full(len(classes), -np.inf)
    if isinstance(threshold, Mapping):
        differing = set(threshold) ^ set(classes)
        if differing:
            raise ValueError(
                f"thresholds and classes differ in {some_of(sorted(differing))}; give "
                f"one threshold for each class, or a number for all"
            )
        found = [float(threshold[name]) for name in classes]
    else:
        found = [float(threshold)] * len(classes)
    if any(math.isnan(one) for one in found):
        raise ValueError("a threshold is NaN; give a number, or None for the best")
    return np.array(found)


def f_scores(
    curves: Sequence[Curve],
    annotated: IntArray,
    classes: Sequence[str],
    given: FloatArray | None,
) -> FScores:
    """Computes F-scores from the counts of correct and false detections.

    Arguments
    ---------
    curves : sequence of Curve
        Of each class.
    annotated : array
        [K], how many there are to detect.
    classes : sequence of str
        K names.
    given : array or None
        [K] thresholds, below which curves do not go; None: the best of each class.
    """
    counts = np.zeros((len(classes), 2))
    thresholds = np.zeros(len(classes))
    for k, curve in enumerate(curves):
        if given is None:
            row, thresholds[k] = _best(curve, int(annotated[k]))
        else:
            row, thresholds[k] = len(curve.score) - 1, given[k]
        counts[k] = curve.counts[row]
    each = np.full(len(classes), np.nan)
    present = annotated > 0
    each[present] = _f_score(counts[present], annotated[present])
    return FScores(
        macro=float(each[present].mean()),
        micro=float(_f_score(counts.sum(axis=0), annotated.sum())),
        per_class=dict(zip(classes, each.tolist(), strict=True)),
        thresholds=dict(zip(classes, thresholds.tolist(), strict=True)),
    )


def _best(curve: Curve, annotated: int) -> tuple[int, float]:
    """The row of the highest F-score, and a threshold amid those that give it.

    Of equal ones, the highest threshold. The lowest has no end: -inf.
    """
    row = int(np.argmax(_f_score(curve.counts, max(annotated, 1))))
    if row == len(curve.score) - 1:
        return row, -np.inf if row else np.inf
    return row, float((curve.score[row] + curve.score[row + 1]) / 2)


def _f_score(counts: FloatArray, annotated: IntArray | int) -> FloatArray:
    correct = counts[..., TRUE]
    return 2 * correct / (counts.sum(axis=-1) + annotated)
