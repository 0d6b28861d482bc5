"""F-scores of events: a detection is correct if its times are right within a collar."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS
from efficientat_plugin.evaluation.count_curves import CountCurves, Curve
from efficientat_plugin.evaluation.detections import (
    Detections,
    all_detections,
    highest_scores,
    pairs_of,
)
from efficientat_plugin.evaluation.event_truth import (
    Durations,
    Events,
    FloatArray,
    IntArray,
    Scores,
    Truth,
    read_truth,
)
from efficientat_plugin.evaluation.f_scores import (
    FALSE,
    TRUE,
    FScores,
    Threshold,
    f_score,
    f_scores,
    floor_of,
)

DECIMALS = 6  # of seconds: differences that equal the collar but for rounding errors


def event_scores(
    scores: Scores,
    events: Events,
    durations: Durations,
    classes: Sequence[str],
    threshold: Threshold | None = None,
    collar_seconds: float = 0.2,
    length_share: float = 0.5,
    onsets_only: bool = False,
    frame_seconds: float = FRAME_SECONDS,
) -> FScores:
    """Computes F-scores of events by class, exactly at a threshold or at the best.

    Each detection may be correct for one event of its class, and each event be met by
    one detection; as many as possible are.

    Arguments
    ---------
    scores, events, durations, classes
        As in ``efficientat_plugin.evaluation.events.psds``. Macro averages leave
        classes without events out; micro averages count their detections as false.
    threshold : float, Mapping or None
        What a score has to exceed: for all classes, or by name. None: of each class,
        the one with the highest F-score, amid those that detect the same.
    collar_seconds : float
        How far a start may be off, and an end at least: 0 or more.
    length_share : float
        How far an end may be off, if that is more: a share of the annotated event, 0
        to 1. ``sed_eval`` has 0.5; DCASE's Task 4 has 0.2.
    onsets_only : bool
        Whether ends do not matter.
    frame_seconds : float
        Seconds between the starts of two frames.

    Returns
    -------
    FScores
        Macro and micro averages, F-scores and thresholds by class.

    Raises
    ------
    ValueError
        As ``psds``, and if collar, share or threshold are out of range.

    Source
    ------
    A. Mesaros et al., "Metrics for Polyphonic Sound Event Detection", Applied Sciences
    2016; as ``sed_eval``'s event-based metrics with its optimal matching, and
    ``sed_scores_eval.collar_based``.

    Example
    -------
    >>> scores = {"a": np.array([[0.1], [0.9], [0.8], [0.3]])}
    >>> events = {"a": [(0.04, 0.12, "dog")]}
    >>> event_scores(scores, events, {"a": 0.16}, ["dog"], threshold=0.5).macro
    1.0
    >>> times = {"collar_seconds": 0.01, "length_share": 0.0}
    >>> best = event_scores(scores, events, {"a": 0.16}, ["dog"], **times)
    >>> best.per_class, best.thresholds
    ({'dog': 1.0}, {'dog': 0.55})
    """
    if not 0 <= collar_seconds < np.inf:
        raise ValueError(f"collar_seconds={collar_seconds}; give seconds of 0 or more")
    if not 0 <= length_share <= 1:
        raise ValueError(f"length_share={length_share}; give a share from 0 to 1")
    truth = read_truth(events, durations, classes, scores)

    def curves_above(floor: NDArray) -> list[Curve]:
        curves = CountCurves(len(truth.classes), 2)
        for found in all_detections(scores, truth, floor, frame_seconds):
            hits = _hits(found, truth, collar_seconds, length_share, onsets_only)
            _count(curves, found, truth, *hits)
        return [curves.curve(k) for k in range(len(truth.classes))]

    if threshold is None:
        highest = highest_scores(scores, truth, frame_seconds)
        floor, every = _down_to_the_best(curves_above, highest, truth.counts)
    else:
        floor = floor_of(threshold, truth.classes)
        every = curves_above(floor)
    return f_scores(every, truth.counts, truth.classes, floor, threshold is None)


ENOUGH = 4  # detections of a class for each of its events: more give an F below 0.4


def _down_to_the_best(
    curves_above: Callable[[NDArray], list[Curve]],
    highest: NDArray,
    annotated: IntArray,
) -> tuple[NDArray, list[Curve]]:
    """Computes curves down to floors [K] below which no F-score is the best.

    Every clip whose highest score exceeds the threshold has a detection, and D
    detections of E events have an F-score of at most 2 E / (D + E). Floors are first
    set for an F-score that most detectors reach, then, where it is not, for what was.
    """
    floor = _exceeded_in(highest, ENOUGH * annotated)
    floor[annotated == 0] = np.inf
    curves = curves_above(floor)
    reached = [
        f_score(curve.counts, max(count, 1)).max()
        for curve, count in zip(curves, annotated, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = annotated * (2 / np.array(reached) - 1)
    lower = _exceeded_in(highest, np.where(np.isnan(needed), 0, needed))
    deeper = lower < floor
    deeper[annotated == 0] = False
    if not deeper.any():
        return floor, curves
    others = curves_above(np.where(deeper, lower, np.inf))
    pairs = zip(curves, others, deeper, strict=True)
    return (
        np.where(deeper, lower, floor),
        [other if again else curve for curve, other, again in pairs],
    )


def _exceeded_in(highest: NDArray, counts: FloatArray | IntArray) -> NDArray:
    """[K], the highest floors below which more than ``counts`` clips have a score."""
    falling = -np.sort(-highest, axis=0)
    falling = np.concatenate([falling, np.full_like(falling[:1], -np.inf)])
    rows = np.minimum(np.floor(counts), len(highest)).astype(np.int64)
    return np.take_along_axis(falling, rows[None], axis=0)[0]


def _hits(
    found: Detections,
    truth: Truth,
    collar_seconds: float,
    length_share: float,
    onsets_only: bool,
) -> tuple[IntArray, IntArray]:
    """Pairs of detections and events whose times agree."""
    group = truth.group_of(found.clip, found.label)
    own = np.flatnonzero(group >= 0)
    begins = truth.group_begins
    owner, event = pairs_of(begins[group[own]], begins[group[own] + 1])
    which = own[owner]
    start, end = truth.start[event], truth.end[event]
    agree = _is_near(found.start[which], start, collar_seconds)
    if not onsets_only:
        collar = np.maximum(collar_seconds, length_share * (end - start))
        agree &= _is_near(found.end[which], end, collar)
    return which[agree], event[agree]


def _is_near(
    time: FloatArray, other: FloatArray, collar: FloatArray | float
) -> NDArray:
    return np.round(np.abs(time - other) - collar, DECIMALS) <= 0


_Hit = tuple[float, float, int, int]  # high and low of a detection, it, an event


def _count(
    curves: CountCurves,
    found: Detections,
    truth: Truth,
    which: IntArray,
    event: IntArray,
) -> None:
    """Adds what changes: the detections, and how many of them are correct."""
    change = np.zeros((len(found.clip), 2), np.int32)
    change[:, FALSE] = 1
    group, score, more = _changes_of_correct(found, truth, which, event)
    clip, label = np.divmod(truth.group_key[group], len(truth.classes))
    correct = np.zeros((len(group), 2), np.int32)
    correct[:, TRUE], correct[:, FALSE] = more, -more
    curves.add(
        np.concatenate((found.clip, found.clip, clip)),
        np.concatenate((found.label, found.label, label)),
        np.concatenate((found.high, found.low, score.astype(found.high.dtype))),
        np.concatenate((change, -change, correct)),
    )


def _changes_of_correct(
    found: Detections, truth: Truth, which: IntArray, event: IntArray
) -> tuple[IntArray, NDArray, NDArray]:
    """Groups of events, scores where their correct detections change, by how many."""
    hits: dict[int, list[_Hit]] = {}
    columns = (truth.group[event], found.high[which], found.low[which], which, event)
    for group, *hit in zip(*(each.tolist() for each in columns), strict=True):
        hits.setdefault(group, []).append(tuple(hit))
    rows = [
        (group, score, change)
        for group, of_group in hits.items()
        for score, change in _changes(of_group)
    ]
    groups, scores, changes = zip(*rows, strict=True) if rows else ((), (), ())
    return (
        np.array(groups, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        np.array(changes, dtype=np.int32),
    )


def _changes(hits: list[_Hit]) -> list[tuple[float, int]]:
    """The scores below which more or fewer detections of a clip are correct."""
    levels = {hit[0] for hit in hits} | {hit[1] for hit in hits} - {-np.inf}
    changes, before = [], 0
    for level in sorted(levels, reverse=True):
        active = [(hit[2], hit[3]) for hit in hits if hit[1] < level <= hit[0]]
        correct = most_pairs(active)
        if correct != before:
            changes.append((level, correct - before))
        before = correct
    return changes


def most_pairs(hits: list[tuple[int, int]]) -> int:
    """Counts the most pairs of hits in which none of either kind comes twice.

    Example
    -------
    >>> most_pairs([(0, 0), (0, 1), (1, 0)])
    2
    """
    if len({one for one, _ in hits}) == len({other for _, other in hits}) == len(hits):
        return len(hits)
    others: dict[int, list[int]] = {}
    for one, other in hits:
        others.setdefault(one, []).append(other)
    partner: dict[int, int] = {}

    def finds_one(one: int, tried: set[int]) -> bool:
        for other in others[one]:
            if other not in tried:
                tried.add(other)
                if other not in partner or finds_one(partner[other], tried):
                    partner[other] = one
                    return True
        return False

    return sum(finds_one(one, set()) for one in others)
