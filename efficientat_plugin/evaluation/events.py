"""PSDS: how well events are detected, whatever the threshold.

The polyphonic sound detection score is the area under a curve: how many of the events
are found, over how many false detections there are in an hour. It is exact, over all
thresholds, and equals that of ``sed_scores_eval``.

`evaluation.event_scores` has the F-scores of events, `evaluation.segment_scores` what
is computed over segments of one second.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS
from efficientat_plugin.evaluation.count_curves import CountCurves, Curve
from efficientat_plugin.evaluation.detections import (
    Detections,
    all_detections,
    highest_scores,
    overlap,
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

# DCASE's two scenarios: times have to be right, and classes must not be mistaken
PSDS1: dict[str, Any] = {"dtc": 0.7, "gtc": 0.7, "alpha_st": 1.0}
PSDS2: dict[str, Any] = {
    **{"dtc": 0.1, "gtc": 0.1, "cttc": 0.3},
    **{"alpha_ct": 0.5, "alpha_st": 1.0},
}
DECIMALS = 6  # of seconds: shares of lengths that differ by rounding errors are equal
FOUND, FALSE, CROSSING = range(3)  # what is counted


class Psds(NamedTuple):
    """A PSDS, from 0 to 1."""

    value: float  # of all classes together
    per_class: dict[str, float]  # of each by itself; NaN without events

    @property
    def macro(self) -> float:
        """Mean of the classes with events: what is published for AudioSet strong."""
        return float(np.nanmean(list(self.per_class.values())))


class _Criteria(NamedTuple):
    dtc: float
    gtc: float
    cttc: float | None
    alpha_ct: float
    alpha_st: float
    max_efpr: float


def psds(
    scores: Scores,
    events: Events,
    durations: Durations,
    classes: Sequence[str],
    dtc: float = 0.7,
    gtc: float = 0.7,
    cttc: float | None = None,
    alpha_ct: float = 0.0,
    alpha_st: float = 1.0,
    max_efpr: float = 100.0,
    frame_seconds: float = FRAME_SECONDS,
) -> Psds:
    """Computes the polyphonic sound detection score, exactly over all thresholds.

    A class is detected where its score exceeds the threshold. A detection counts if
    annotated events of its class cover the share ``dtc`` of it; else it is false. An
    event is found if such detections cover the share ``gtc`` of it. A false detection
    is a cross trigger of any other class whose events cover the share ``cttc`` of it.

    Arguments
    ---------
    scores : Mapping
        Probabilities or logits [T', K] by clip id. It may load them when asked; it is
        asked for each clip twice, one after the other, so that they need not all be in
        memory.
    events : Mapping
        Annotated events ``(start, end, label)`` by clip id, in seconds. Those of one
        class that overlap or touch count as one. A clip that is not in it has none.
    durations : Mapping
        Seconds by clip id: the clips that are evaluated.
    classes : sequence of str
        Names of the K columns of the scores. Those without an event are left out.
    dtc, gtc : float
        Tolerance criteria of detections and of events, above 0, at most 1.
    cttc : float, optional
        Tolerance criterion of cross triggers, above 0, at most 1. Needed with
        ``alpha_ct``, and without effect otherwise.
    alpha_ct : float
        Weight of the rate of cross triggers, at least 0.
    alpha_st : float
        Weight of the standard deviation over classes, at least 0. With 0, the score is
        the mean of the classes.
    max_efpr : float
        False detections of a class in an hour up to which the area is computed.
    frame_seconds : float
        Seconds between the starts of two frames. Frames end with the clip.

    Returns
    -------
    Psds
        The score, and those of single classes by name. Their mean, ``macro``, is what
        is published for AudioSet strong.

    Raises
    ------
    ValueError
        If a criterion is out of range; clips, classes or shapes do not fit; or a score
        is NaN or infinite.

    Source
    ------
    C. Bilen et al., "A Framework for the Robust Evaluation of Sound Event Detection",
    ICASSP 2020. J. Ebbers et al., "Threshold Independent Evaluation of Sound Event
    Detection Scores", ICASSP 2022.

    Example
    -------
    >>> scores = {"a": np.array([[0.1], [0.9], [0.8], [0.3]])}
    >>> events = {"a": [(0.04, 0.12, "dog")]}
    >>> psds(scores, events, {"a": 0.16}, ["dog"])
    Psds(value=1.0, per_class={'dog': 1.0})
    >>> value, per_class = psds(scores, events, {"a": 0.16}, ["dog"], **PSDS2)
    >>> value
    1.0
    """
    criteria = _checked(_Criteria(dtc, gtc, cttc, alpha_ct, alpha_st, max_efpr))
    truth = read_truth(events, durations, classes, scores)
    floor = _floor(scores, truth, max_efpr, frame_seconds)
    curves = CountCurves(len(truth.classes), 3 if alpha_ct else 2)
    for found in all_detections(scores, truth, floor, frame_seconds):
        _count(curves, found, truth, criteria)
    present = np.flatnonzero(truth.counts).tolist()
    rocs = [_roc(curves.curve(k), truth, k, criteria) for k in present]
    per_class = dict.fromkeys(truth.classes, float("nan"))
    for k, roc in zip(present, rocs, strict=True):
        per_class[truth.classes[k]] = _area(roc, max_efpr)
    return Psds(_area(_effective(rocs, alpha_st), max_efpr), per_class)


def _checked(criteria: _Criteria) -> _Criteria:
    shares = {"dtc": criteria.dtc, "gtc": criteria.gtc}
    if criteria.cttc is not None:
        shares["cttc"] = criteria.cttc
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share}; give a share above 0 and at most 1")
    for name in ("alpha_ct", "alpha_st"):
        weight = getattr(criteria, name)
        if not 0 <= weight < np.inf:
            raise ValueError(f"{name}={weight}; give a weight of at least 0")
    if not 0 < criteria.max_efpr < np.inf:
        raise ValueError(
            f"max_efpr={criteria.max_efpr}; give a rate above 0 per hour, such as 100"
        )
    if criteria.alpha_ct and criteria.cttc is None:
        raise ValueError(
            f"alpha_ct={criteria.alpha_ct} weighs cross triggers, which need cttc; "
            f"set cttc=0.3, or alpha_ct=0"
        )
    return criteria


def _floor(
    scores: Scores, truth: Truth, max_efpr: float, frame_seconds: float
) -> NDArray:
    """[K], below which there are more false detections than ``max_efpr`` allows.

    Each clip without the class in which a score exceeds the threshold has a false
    detection of it. Nearly all scores of a large set are below, and need no memory.
    """
    absent = truth.counts == 0
    allowed = int(max_efpr * truth.durations.sum() / 3600 * (1 + 1e-9))
    if allowed >= len(truth.clips):
        return np.where(absent, np.inf, -np.inf)
    highest = highest_scores(scores, truth, frame_seconds)
    highest[np.divmod(truth.group_key, len(truth.classes))] = -np.inf
    highest.partition(len(highest) - 1 - allowed, axis=0)
    return np.where(absent, np.inf, highest[len(highest) - 1 - allowed])


def _count(
    curves: CountCurves, found: Detections, truth: Truth, criteria: _Criteria
) -> None:
    """Adds what changes as detections appear and disappear."""
    relevant, found_events = _covered(found, truth, criteria)
    false = found.only(~relevant)
    dtype = np.int32 if curves.num_kinds == 2 else np.float64  # rates are no integers
    change = np.zeros((len(false.clip), curves.num_kinds), dtype)
    change[:, FALSE] = 1
    if criteria.cttc is not None and criteria.alpha_ct:
        change[:, CROSSING] = _crossing_rate(false, truth, criteria.cttc)
    clip, label, score, sign = found_events
    change_of_found = np.zeros((len(clip), curves.num_kinds), dtype)
    change_of_found[:, FOUND] = sign
    curves.add(
        np.concatenate((false.clip, false.clip, clip)),
        np.concatenate((false.label, false.label, label)),
        np.concatenate((false.high, false.low, score)),
        np.concatenate((change, -change, change_of_found)),
    )


_Changes = tuple[IntArray, IntArray, NDArray, NDArray]  # clip, label, score, sign


def _covered(
    found: Detections, truth: Truth, criteria: _Criteria
) -> tuple[NDArray, _Changes]:
    """Which detections meet ``dtc``, and where events are found or no longer found."""
    group = truth.group_of(found.clip, found.label)
    own = np.flatnonzero(group >= 0)
    begins = truth.group_begins
    owner, event = pairs_of(begins[group[own]], begins[group[own] + 1])
    which = own[owner]
    seconds = overlap(found, truth, which, event)
    covered = np.bincount(which, weights=seconds, minlength=len(found.clip))
    least = np.round(criteria.dtc * found.seconds, DECIMALS)
    relevant = (np.round(covered, DECIMALS) >= least) & (group >= 0)
    use = relevant[which] & (seconds > 0)
    which, event, seconds = which[use], event[use], seconds[use]
    return relevant, _found_events(found, truth, which, event, seconds, criteria.gtc)


def _found_events(
    found: Detections,
    truth: Truth,
    which: IntArray,
    event: IntArray,
    seconds: FloatArray,
    gtc: float,
) -> _Changes:
    """Where the detections that exist together begin or cease to cover an event."""
    score = np.concatenate((found.high[which], found.low[which]))
    event = np.concatenate((event, event))
    change = np.concatenate((seconds, -seconds))
    order = np.lexsort((-score, event))
    score, event, change = score[order], event[order], change[order]
    first = np.ones(len(event), dtype=bool)
    first[1:] = np.diff(event) != 0
    total = np.cumsum(change)
    # Each event begins at 0.
    before = (total - change)[first]
    total -= before[np.cumsum(first) - 1]
    last = np.ones(len(event), dtype=bool)  # of equal scores
    last[:-1] = first[1:] | (score[1:] != score[:-1])
    score, event, total = score[last], event[last], total[last]

    length = truth.end[event] - truth.start[event]
    is_found = np.round(total, DECIMALS) >= np.round(gtc * length, DECIMALS)
    was_found = np.zeros(len(event), dtype=bool)
    was_found[1:] = is_found[:-1] & (np.diff(event) == 0)
    sign = is_found.astype(np.int32) - was_found
    here = np.flatnonzero(sign)
    clip, label = np.divmod(
        truth.group_key[truth.group[event[here]]], len(truth.classes)
    )
    return clip, label, score[here], sign[here]


def _crossing_rate(false: Detections, truth: Truth, cttc: float) -> FloatArray:
    """[D], what each false detection adds to the mean rate of cross triggers."""
    num_others = int((truth.counts > 0).sum()) - 1
    begins = truth.clip_begins
    which, event = pairs_of(begins[false.clip], begins[false.clip + 1])
    other = truth.label[event]
    different = other != false.label[which]
    which, event, other = which[different], event[different], other[different]
    if not len(which):
        return np.zeros(len(false.clip))
    new = np.ones(len(which), dtype=bool)  # a detection and another class
    new[1:] = (np.diff(which) != 0) | (np.diff(other) != 0)
    first = np.flatnonzero(new)
    covered = np.add.reduceat(overlap(false, truth, which, event), first)
    which, other = which[first], other[first]
    least = np.round(cttc * false.seconds[which], DECIMALS)
    crosses = np.round(covered, DECIMALS) >= least
    rate = crosses / truth.seconds[other] / num_others
    sums = np.bincount(which, weights=rate, minlength=len(false.clip))
    return sums.astype(np.float64)


class _Roc(NamedTuple):
    """A staircase: from ``rate[i]`` on, the share ``found[i]`` is found."""

    rate: FloatArray  # effective false detections in an hour, rising from 0
    found: FloatArray  # share of the events


def _roc(curve: Curve, truth: Truth, label: int, criteria: _Criteria) -> _Roc:
    rate = curve.counts[:, FALSE] / truth.durations.sum()
    if criteria.alpha_ct:
        rate = rate + criteria.alpha_ct * curve.counts[:, CROSSING]
    found = curve.counts[:, FOUND] / truth.counts[label]
    rate = np.maximum(rate * 3600, 0.0)  # sums of rates may end below 0 by rounding
    order = np.lexsort((found, rate))
    rate, found = rate[order], np.maximum.accumulate(found[order])
    last = np.append(np.diff(rate) > 0, True)  # of equal rates
    rate, found = rate[last], found[last]
    rises = np.append(True, np.diff(found) > 0) & (rate <= criteria.max_efpr)
    return _Roc(rate[rises], found[rises])


STEPS_AT_ONCE = 4096


def _effective(rocs: list[_Roc], alpha_st: float) -> _Roc:
    """Mean over classes, less ``alpha_st`` standard deviations."""
    rate = np.unique(np.concatenate([roc.rate for roc in rocs]))
    found = np.empty_like(rate)
    for begin in range(0, len(rate), STEPS_AT_ONCE):
        part = slice(begin, begin + STEPS_AT_ONCE)
        each = np.stack(
            [
                roc.found[np.searchsorted(roc.rate, rate[part], side="right") - 1]
                for roc in rocs
            ]
        )
        found[part] = each.mean(axis=0) - alpha_st * each.std(axis=0)
    return _Roc(rate, np.maximum(found, 0.0))


def _area(roc: _Roc, max_efpr: float) -> float:
    area = roc.found @ np.diff(roc.rate, append=max_efpr) / max_efpr
    return min(float(area), 1.0)  # rounding may end above
