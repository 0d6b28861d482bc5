"""PSDS and F-scores by their definitions: every threshold is tried, one by one."""

from itertools import permutations
from typing import Any

import numpy as np
from small_detections import Case, Event

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS


def thresholds_of(case: Case, label: int) -> list[float]:
    """Returns one below all scores of a class, and each of them."""
    values = np.unique(
        np.concatenate([each[:, label] for each in case.scores.values()])
    )
    return [values[0] - 1, *values]


def detected(
    case: Case, clip: str, label: int, threshold: float
) -> list[tuple[float, float]]:
    """Returns starts and ends of the runs of frames above a threshold."""
    seconds = case.durations[clip]
    runs: list[tuple[float, float]] = []
    is_running = False
    for frame, score in enumerate(case.scores[clip][:, label]):
        start = min(round(frame * FRAME_SECONDS, 9), seconds)
        end = min(round((frame + 1) * FRAME_SECONDS, 9), seconds)
        if score > threshold and end > start:
            runs.append((runs.pop()[0] if is_running else start, end))
        is_running = score > threshold
    return runs


def merged(events: list[Event], label: str) -> list[tuple[float, float]]:
    """Returns the events of a class, those that overlap or touch as one."""
    found: list[tuple[float, float]] = []
    for start, end, name in sorted(events):
        if name == label and found and start <= found[-1][1]:
            first, last = found.pop()
            found.append((first, max(last, end)))
        elif name == label:
            found.append((start, end))
    return found


def psds_by_definition(
    case: Case,
    dtc: float,
    gtc: float,
    cttc: float = 1.0,
    alpha_ct: float = 0.0,
    alpha_st: float = 1.0,
    max_efpr: float = 100.0,
) -> tuple[float, dict[str, float]]:
    """Computes both values of ``psds``, over the classes that have events."""
    truth = {
        (clip, name): merged(case.events[clip], name)
        for clip in case.durations
        for name in case.classes
    }
    seconds = {
        name: sum(b - a for clip in case.durations for a, b in truth[clip, name])
        for name in case.classes
    }
    present = [name for name in case.classes if seconds[name]]
    hours = sum(case.durations.values()) / 3600
    points: dict[str, list[tuple[float, float]]] = {}
    for name in present:
        others = [other for other in present if other != name]
        number = sum(len(truth[clip, name]) for clip in case.durations)
        points[name] = [(0.0, 0.0)]
        label = case.classes.index(name)
        for threshold in thresholds_of(case, label):
            found, false, crossing = 0, 0, dict.fromkeys(others, 0)
            for clip in case.durations:
                runs = detected(case, clip, label, threshold)
                good = [run for run in runs if _covers(truth[clip, name], run, dtc)]
                found += sum(_covers(good, event, gtc) for event in truth[clip, name])
                bad = [run for run in runs if run not in good]
                false += len(bad)
                for other in others:
                    crossing[other] += sum(
                        _covers(truth[clip, other], run, cttc) for run in bad
                    )
            rate = false / hours
            if others:
                rates = [crossing[other] / seconds[other] for other in others]
                rate += alpha_ct * 3600 * float(np.mean(rates))
            points[name].append((rate, found / number))
    return (
        _area(points, present, alpha_st, max_efpr),
        {name: _area(points, [name], 0.0, max_efpr) for name in present},
    )


def _covers(
    spans: list[tuple[float, float]], of: tuple[float, float], share: float
) -> bool:
    """Whether spans cover a share of another one, and any of it."""
    common = sum(max(0.0, min(b, of[1]) - max(a, of[0])) for a, b in spans)
    return common > 1e-9 and common >= share * (of[1] - of[0]) - 5e-7


def _area(
    points: dict[str, list[tuple[float, float]]],
    names: list[str],
    alpha_st: float,
    max_efpr: float,
) -> float:
    """Area under the mean of staircases, less deviations, up to ``max_efpr``."""
    inside = {rate for name in names for rate, _ in points[name] if rate < max_efpr}
    edges = sorted(inside) + [max_efpr]
    area = 0.0
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        best = [
            max(found for rate, found in points[name] if rate <= begin)
            for name in names
        ]
        area += max(0.0, np.mean(best) - alpha_st * np.std(best)) * (end - begin)
    return area / max_efpr


def event_counts_by_definition(
    case: Case,
    label: int,
    threshold: float,
    collar: float,
    share: float,
    onsets_only: bool,
) -> tuple[int, int, int]:
    """Returns the numbers of correct detections, detections and events of a class."""
    counts = np.zeros(3, dtype=int)
    for clip in case.durations:
        runs = detected(case, clip, label, threshold)
        events = merged(case.events[clip], case.classes[label])
        pairs = np.array(
            [
                [_agree(run, e, collar, share, onsets_only) for e in events]
                for run in runs
            ]
        )
        counts += _most(pairs), len(runs), len(events)
    return int(counts[0]), int(counts[1]), int(counts[2])


def _agree(
    run: tuple[float, float],
    event: tuple[float, float],
    collar: float,
    share: float,
    onsets_only: bool,
) -> bool:
    most = max(collar, share * (event[1] - event[0]))
    return abs(run[0] - event[0]) <= collar + 5e-7 and (
        onsets_only or abs(run[1] - event[1]) <= most + 5e-7
    )


def _most(pairs: Any) -> int:
    """The most pairs without a row or a column twice: all orders are tried."""
    if not pairs.size or not pairs.any():
        return 0
    pairs = pairs[pairs.any(axis=1)]
    if len(pairs) > pairs.shape[1]:
        pairs = pairs.T
    orders = permutations(range(pairs.shape[1]), len(pairs))
    return max(sum(pairs[range(len(pairs)), order]) for order in map(list, orders))
