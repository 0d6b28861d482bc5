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
    floor: FloatArray,
    find_best: bool,
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
    floor : array
        [K] thresholds, below which curves do not go.
    find_best : bool
        Whether to look for the best thresholds; else those of ``floor`` hold.
    """
    counts = np.zeros((len(classes), 2))
    thresholds = np.zeros(len(classes))
    for k, curve in enumerate(curves):
        if find_best:
            row, thresholds[k] = best_of(curve, int(annotated[k]), floor[k])
        else:
            row, thresholds[k] = len(curve.score) - 1, floor[k]
        counts[k] = curve.counts[row]
    each = np.full(len(classes), np.nan)
    present = annotated > 0
    each[present] = f_score(counts[present], annotated[present])
    return FScores(
        macro=float(each[present].mean()),
        micro=float(f_score(counts.sum(axis=0), annotated.sum())),
        per_class=dict(zip(classes, each.tolist(), strict=True)),
        thresholds=dict(zip(classes, thresholds.tolist(), strict=True)),
    )


def best_of(curve: Curve, annotated: int, floor: float) -> tuple[int, float]:
    """Finds the row with the highest F-score, and a threshold amid those that give it.

    Of equal ones, it is the highest. The counts change again at the ``floor``.
    """
    row = int(np.argmax(f_score(curve.counts, max(annotated, 1))))
    below = curve.score[row + 1] if row + 1 < len(curve.score) else floor
    return row, float((curve.score[row] + below) / 2) if row else np.inf


def f_score(counts: FloatArray, annotated: IntArray | int) -> FloatArray:
    """Computes F-scores from counts [..., 2] of correct and false detections."""
    correct = counts[..., TRUE]
    return 2 * correct / (counts.sum(axis=-1) + annotated)
