"""Random scores and events, small enough to try every threshold."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_targets import merge_events
from efficientat_plugin.data.events.frame_events import FRAME_SECONDS

TimedLabel = tuple[float, float, str]


class Case(NamedTuple):
    """What an evaluation takes."""

    scores: dict[str, NDArray]
    events: dict[str, list[TimedLabel]]
    durations: dict[str, float]
    classes: list[str]

    def changed(self, change: Any) -> "Case":
        """Returns the case with every array of scores changed."""
        return self._replace(scores={k: change(v) for k, v in self.scores.items()})


def random_case(seed: int, most_clips: int = 6, most_classes: int = 4) -> Case:
    """Draws clips of unequal length; some scores have ties, some are smooth."""
    rng = np.random.default_rng(seed)
    classes = [f"class {k}" for k in range(rng.integers(1, most_classes + 1))]
    width = int(rng.integers(1, 15))
    levels = rng.choice([2, 5, 0])  # 0: no ties
    case = Case({}, {}, {}, classes)
    for clip in range(rng.integers(1, most_clips + 1)):
        name = f"clip {clip}"
        seconds = max(0.3, round(rng.uniform(0.3, 3.0), int(rng.integers(1, 4))))
        num_frames = int(np.ceil(round(seconds / FRAME_SECONDS, 6)))
        case.durations[name] = seconds
        case.events[name] = _events(rng, seconds, classes)
        scores = rng.normal(size=(num_frames + width - 1, len(classes)))
        windows = np.lib.stride_tricks.sliding_window_view(scores, width, axis=0)
        scores = windows.mean(axis=-1)
        starts = FRAME_SECONDS * np.arange(num_frames)
        for start, end, label in case.events[name]:
            inside = (starts > start - FRAME_SECONDS) & (starts < end)
            scores[inside, classes.index(label)] += rng.uniform(0, 3)
        if levels:
            scores = np.round(scores * levels) / levels
        case.scores[name] = scores
    if not any(case.events.values()):
        case.events["clip 0"].append((0.1, 0.3, classes[0]))
    return case


def _events(
    rng: np.random.Generator, seconds: float, classes: list[str]
) -> list[TimedLabel]:
    events = []
    for label in classes:
        for _ in range(rng.integers(0, 4)):
            start = round(rng.uniform(0, seconds), int(rng.integers(1, 5)))
            end = min(round(start + rng.exponential(), 3), seconds)
            if start < end:
                events.append((start, end, label))
    return events


def random_criteria(seed: int) -> dict[str, float]:
    """Draws the criteria of a PSDS."""
    rng = np.random.default_rng(seed)
    criteria = {
        name: float(rng.choice([0.1, 0.5, 0.7, 1.0])) for name in ("dtc", "gtc")
    }
    criteria["alpha_st"] = float(rng.choice([0.0, 0.5, 1.0]))
    criteria["max_efpr"] = float(rng.choice([20, 100, 1000, 20000]))
    if rng.random() < 0.6:
        criteria["alpha_ct"] = float(rng.choice([0.3, 1.0]))
        criteria["cttc"] = float(rng.choice([0.1, 0.3, 0.8]))
    return criteria


def merged(events):
    """Tuples of start, end and class with those that overlap or touch made one."""
    every = merge_events(Event(label, start, end) for start, end, label in events)
    return [(start, end, label) for label, start, end, _ in every]
