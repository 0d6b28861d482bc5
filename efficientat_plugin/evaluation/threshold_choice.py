"""Chooses the thresholds of a detector, on clips that it was not trained on."""

from collections.abc import Sequence
from typing import NamedTuple

from efficientat_plugin.data.events.frame_events import FRAME_SECONDS
from efficientat_plugin.evaluation.event_scores import event_scores
from efficientat_plugin.evaluation.event_truth import (
    Durations,
    Events,
    Scores,
    read_truth,
)
from efficientat_plugin.evaluation.f_scores import FScores
from efficientat_plugin.evaluation.segment_scores import segment_scores
from efficientat_plugin.support.plain_text import shown, some_of

CHOSEN_BY = ("event_F", "segment_F")


class ChosenThresholds(NamedTuple):
    """Thresholds of K classes, in their order, and how they were chosen."""

    classes: list[str]  # names
    thresholds: list[float]  # probabilities that an event has to exceed
    num_events: list[int]  # of the class, in the clips that they were chosen on
    kept: list[str]  # classes that keep the default, for want of events
    default: float
    chosen_by: str  # one of `CHOSEN_BY`
    fewest_events: int

    def __str__(self) -> str:
        num_chosen = len(self.classes) - len(self.kept)
        text = (
            f"thresholds of {num_chosen} of {len(self.classes)} classes are chosen by "
            f"{self.chosen_by}"
        )
        if self.kept:
            text += (
                f"; {self.default:g} is kept for those with fewer than "
                f"{self.fewest_events} events, or of which nothing is detected right: "
                f"{shown(some_of(self.kept))}"
            )
        return text


def check_choice_options(chosen_by: str, fewest_events: int) -> None:
    """Raises a ``ValueError`` for options of `choose_thresholds` out of range."""
    if chosen_by not in CHOSEN_BY or not fewest_events >= 1:
        raise ValueError(
            f"thresholds are chosen by {chosen_by!r}, which must be one of "
            f"{', '.join(CHOSEN_BY)}, for classes of fewest_events={fewest_events} or "
            "more, which must be 1 or more"
        )


def choose_thresholds(
    scores: Scores,
    events: Events,
    seconds: Durations,
    classes: Sequence[str],
    default: float = 0.5,
    chosen_by: str = "segment_F",
    fewest_events: int = 5,
    onsets_only: bool = False,
    frame_seconds: float = FRAME_SECONDS,
) -> ChosenThresholds:
    """Chooses for each class the threshold with its highest F-score.

    F-scores of segments are the better guide with few clips, also to the F-score of
    events: a class has many more segments, and they are right or wrong by themselves.
    A class with few events keeps the default, since the best threshold for two or three
    tells little about others. So does a class of which nothing is detected right.

    Arguments
    ---------
    scores : mapping
        Probabilities by clip id, [T', K], smoothed as they will be in use.
    events, seconds, classes
        As in ``efficientat_plugin.evaluation.events.psds``.
    default : float
        Threshold of classes with too few events.
    chosen_by : str
        "event_F" or "segment_F": the score of `event_scores` or `segment_scores` to
        maximise.
    fewest_events : int
        Events of a class from which its threshold is chosen, 1 or more.
    onsets_only : bool
        Whether the F-score of events is of their starts alone.
    frame_seconds : float
        Seconds between the starts of two frames.

    Returns
    -------
    ChosenThresholds

    Raises
    ------
    ValueError
        For options out of range, and as ``psds``.

    Example
    -------
    >>> import numpy as np
    >>> scores = {"a": np.array([[0.1], [0.75], [0.75]]), "b": np.full((3, 1), 0.25)}
    >>> events = {"a": [(0.04, 0.12, "dog")], "b": []}
    >>> known = (events, {"a": 0.12, "b": 0.12}, ["dog"])
    >>> choose_thresholds(scores, *known, fewest_events=1).thresholds
    [0.5]
    >>> print(choose_thresholds(scores, *known, fewest_events=9))
    thresholds of 0 of 1 classes are chosen by segment_F; 0.5 is kept for those with ...
    """
    check_choice_options(chosen_by, fewest_events)
    best: FScores
    if chosen_by == "event_F":
        best = event_scores(
            *(scores, events, seconds, classes),
            onsets_only=onsets_only,
            frame_seconds=frame_seconds,
        )
    else:
        best = segment_scores(
            scores, events, seconds, classes, frame_seconds=frame_seconds
        )
    num_events = read_truth(events, seconds, classes, scores).counts.tolist()
    thresholds, kept = [], []
    for name, number in zip(classes, num_events, strict=True):
        if number < fewest_events or not best.per_class[name] > 0:
            kept.append(name)
            thresholds.append(float(default))
        else:  # -inf detects all, as 0 does, which no probability reaches
            thresholds.append(max(0.0, best.thresholds[name]))
    return ChosenThresholds(
        [*classes], thresholds, num_events, kept, default, chosen_by, fewest_events
    )
