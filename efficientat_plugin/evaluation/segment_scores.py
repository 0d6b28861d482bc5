"""Scores over segments of a fixed length, which are right or wrong each by itself."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS
from efficientat_plugin.evaluation.count_curves import Curve
from efficientat_plugin.evaluation.event_truth import (
    ClipScores,
    Durations,
    Events,
    FloatArray,
    Scores,
    Truth,
    clip_by_clip,
    read_truth,
)
from efficientat_plugin.evaluation.f_scores import (
    FALSE,
    TRUE,
    FScores,
    Threshold,
    f_scores,
    floor_of,
)

DECIMALS = 6  # of seconds: a frame that ends with a segment is not in the next one


def segment_scores(
    scores: Scores,
    events: Events,
    durations: Durations,
    classes: Sequence[str],
    threshold: Threshold | None = None,
    segment_seconds: float = 1.0,
    frame_seconds: float = FRAME_SECONDS,
) -> FScores:
    """Computes F-scores of segments by class, exactly at a threshold or at the best.

    A segment has a class if an event of it lies in the segment, however little; it is
    detected if a frame that lies in the segment exceeds the threshold.

    Arguments
    ---------
    scores, events, durations, classes
        As in ``efficientat_plugin.evaluation.events.psds``. Macro averages leave
        classes without events out; micro averages count their detections as false.
    threshold : float, Mapping or None
        What a score has to exceed: for all classes, or by name. None: of each class,
        the one with the highest F-score.
    segment_seconds : float
        Length of segments; the last of a clip may be shorter.
    frame_seconds : float
        Seconds between the starts of two frames.

    Returns
    -------
    FScores
        Macro and micro averages, F-scores and thresholds by class.

    Raises
    ------
    ValueError
        As ``psds``, and if ``segment_seconds`` or a threshold make no sense.

    Source
    ------
    A. Mesaros et al., "Metrics for Polyphonic Sound Event Detection", Applied Sciences
    2016; as ``sed_eval``'s segment-based metrics.

    Example
    -------
    >>> scores = {"a": np.array([[0.1]] * 25 + [[0.8]] * 10)}
    >>> events = {"a": [(1.1, 1.3, "dog")]}
    >>> segment_scores(scores, events, {"a": 1.4}, ["dog"], threshold=0.5).macro
    1.0
    """
    truth = read_truth(events, durations, classes, scores)
    floor = floor_of(threshold, truth.classes)
    segments = _segments(scores, truth, segment_seconds, frame_seconds)
    curves = [_curve(segments, k) for k in range(len(truth.classes))]
    annotated = [int(curve.counts[-1, TRUE]) for curve in curves]
    above = [_above(curve, one) for curve, one in zip(curves, floor, strict=True)]
    find_best = threshold is None
    return f_scores(above, np.array(annotated), truth.classes, floor, find_best)


def segment_auroc(
    scores: Scores,
    events: Events,
    durations: Durations,
    classes: Sequence[str],
    max_fpr: float = 0.1,
    segment_seconds: float = 1.0,
    frame_seconds: float = FRAME_SECONDS,
) -> tuple[float, dict[str, float]]:
    """Computes the partial area under the ROC curve of segments.

    The curve is a staircase, and its area up to ``max_fpr`` is divided by ``max_fpr``.

    Arguments
    ---------
    scores, events, durations, classes
        As in ``efficientat_plugin.evaluation.events.psds``.
    max_fpr : float
        Share of the segments without a class that may be detected, above 0, at most 1.
    segment_seconds : float
        Length of segments; the last of a clip may be shorter.
    frame_seconds : float
        Seconds between the starts of two frames.

    Returns
    -------
    tuple[float, dict]
        The mean, and the area of each class by name: NaN, and left out of the mean, if
        no segment has the class, or all have it.

    Raises
    ------
    ValueError
        As ``psds``, and if ``max_fpr`` or ``segment_seconds`` make no sense.

    Source
    ------
    ``sed_scores_eval.segment_based.auroc``; with segments of 1 s and ``max_fpr`` 0.1
    as published for AudioSet strong (PretrainedSED).

    Example
    -------
    >>> scores = {"a": np.array([[0.1]] * 25 + [[0.8]] * 10)}
    >>> segment_auroc(scores, {"a": [(1.1, 1.3, "dog")]}, {"a": 1.4}, ["dog"])
    (1.0, {'dog': 1.0})
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}; give a share above 0 and at most 1")
    truth = read_truth(events, durations, classes, scores)
    segments = _segments(scores, truth, segment_seconds, frame_seconds)
    curves = (_curve(segments, k) for k in range(len(truth.classes)))
    areas = [_partial_area(curve, max_fpr) for curve in curves]
    mean = float(np.nanmean(areas)) if np.isfinite(areas).any() else math.nan
    return mean, dict(zip(truth.classes, areas, strict=True))


_Segments = list[tuple[NDArray, NDArray]]  # of each clip: scores [S, K], bool [S, K]


def _segments(
    scores: Scores, truth: Truth, segment_seconds: float, frame_seconds: float
) -> _Segments:
    """The highest score of each segment, -inf without frames, and what lies in it."""
    if not (math.isfinite(segment_seconds) and segment_seconds > 0):
        raise ValueError(f"segment_seconds={segment_seconds}; give seconds above 0")
    found = []
    for clip in clip_by_clip(scores, truth, frame_seconds):
        seconds = float(truth.durations[clip.clip])
        count = math.ceil(round(seconds / segment_seconds, DECIMALS))
        bounds = np.round(np.arange(count + 1) * segment_seconds, DECIMALS)
        found.append((_highest(clip, bounds), _has_event(clip.clip, truth, bounds)))
    return found


def _highest(clip: ClipScores, bounds: FloatArray) -> NDArray:
    times = np.round(clip.times, DECIMALS)
    first = np.searchsorted(times, bounds[:-1], side="right") - 1
    end = np.searchsorted(times, bounds[1:], side="left")
    parts = (clip.scores[a:b] for a, b in zip(first, end, strict=True))
    return np.stack([part.max(axis=0, initial=-np.inf) for part in parts])


def _has_event(clip: int, truth: Truth, bounds: FloatArray) -> NDArray:
    active = np.zeros((len(bounds) - 1, len(truth.classes)), dtype=bool)
    first, end = truth.clip_begins[clip : clip + 2]
    for event in range(first, end):
        inside = (bounds[:-1] < truth.end[event]) & (bounds[1:] > truth.start[event])
        active[inside, truth.group_key[truth.group[event]] % len(truth.classes)] = True
    return active


def _curve(segments: _Segments, label: int) -> Curve:
    values = np.concatenate([score[:, label] for score, _ in segments])
    active = np.concatenate([is_active[:, label] for _, is_active in segments])
    order = np.argsort(-values, kind="stable")
    values, active = values[order], active[order]
    last = np.append(values[1:] != values[:-1], True)
    counts = np.zeros((int(last.sum()) + 1, 2))
    counts[1:, TRUE] = np.cumsum(active)[last]
    counts[1:, FALSE] = np.cumsum(~active)[last]
    return Curve(np.append(np.inf, values[last]), counts)


def _above(curve: Curve, floor: float) -> Curve:
    above = curve.score > floor
    above[0] = True
    return Curve(curve.score[above], curve.counts[above])


def _partial_area(curve: Curve, max_fpr: float) -> float:
    correct, false = curve.counts[:, TRUE], curve.counts[:, FALSE]
    if not (correct[-1] and false[-1]):
        return math.nan
    share = correct / correct[-1]
    steps = np.minimum(np.append(false / false[-1], 1.0), max_fpr)
    return float(share @ np.diff(steps) / max_fpr)
