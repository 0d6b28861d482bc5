"""Events as targets of frames, and events of one class made one where they touch."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import FRAME_SECONDS
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.support.plain_text import shown

DIGITS = 6  # of a time in frames: 0.28 / 0.04 is 7.000000000000001


def merge_events(events: Iterable[Event]) -> list[Event]:
    """Makes events of one class one where they overlap or touch.

    A merged event has the highest score of its parts.

    Arguments
    ---------
    events : iterable of Event
        Of one sound, in any order.

    Returns
    -------
    list of Event
        Sorted by start, end and class.

    Source
    ------
    Event detection with AudioSet's strong labels, as published: an event begins only
    where the one before has ended (offset < onset).

    Example
    -------
    >>> events = [Event("dog", 1.0, 2.0), Event("dog", 0.0, 1.0), Event("cat", 0.5, 3)]
    >>> [tuple(event) for event in merge_events(events)]
    [('dog', 0.0, 2.0, None), ('cat', 0.5, 3, None)]
    """
    by_class: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event.start_seconds):
        same = by_class.setdefault(event.label, [])
        if same and event.start_seconds <= same[-1].end_seconds:
            before = same.pop()
            scores = [each.score for each in (before, event) if each.score is not None]
            event = before._replace(
                end_seconds=max(before.end_seconds, event.end_seconds),
                score=max(scores, default=None),
            )
        same.append(event)
    return in_time([event for same in by_class.values() for event in same])


def in_time(events: Iterable[Event]) -> list[Event]:
    """Sorts events by start, end and class."""
    return sorted(events, key=lambda e: (e.start_seconds, e.end_seconds, e.label))


def frame_targets(
    events: Iterable[Event],
    classes: LabelTable | Sequence[str],
    num_frames: int,
    frame_seconds: float = FRAME_SECONDS,
    use_scores: bool = False,
) -> NDArray[np.float32]:
    """Marks the frames of a clip in which each class is active.

    Arguments
    ---------
    events : iterable of Event
        Of one clip.
    classes : LabelTable or sequence of str
        The K classes. A label is an id or, in any case, a name of them.
    num_frames : int
        T', at least 1. What lies outside these frames is not marked.
    frame_seconds : float
        Distance of the frames, above 0. Frame t covers the time from
        ``t * frame_seconds`` to ``(t + 1) * frame_seconds``.
    use_scores : bool
        True: a frame has the highest score of its events, such as the share of the
        annotators who heard them; an event without a score counts 1.

    Returns
    -------
    array
        [K, T'], float32: 1 from the frame that an event starts in up to the one that it
        ends in, 0 elsewhere.

    Raises
    ------
    ValueError
        If a label is not among the classes, or a number makes no sense.

    Source
    ------
    AudioSet's strong labels as targets, as published: an event is active from the frame
    ``floor(start / frame_seconds)`` and before ``ceil(end / frame_seconds)``. Differs
    from it in that rounding errors of the division add no frame.

    Example
    -------
    >>> frame_targets([Event("dog", 0.05, 0.12)], ["cat", "dog"], num_frames=5)
    array([[0., 0., 0., 0., 0.],
           [0., 1., 1., 0., 0.]], dtype=float32)
    """
    if num_frames < 1 or not 0 < frame_seconds < np.inf:
        raise ValueError(
            f"num_frames={num_frames} and frame_seconds={frame_seconds} must be at "
            "least 1 and above 0"
        )
    table = class_table(classes)
    targets = np.zeros((len(table), num_frames), np.float32)
    for label, start, end, score in events:
        known, unknown = table.indices([label])
        if unknown:
            raise ValueError(
                f"an event is labelled {shown(label)}, which is none of the "
                f"{len(table)} classes; pass classes to read_events to leave others out"
            )
        first = int(np.floor(np.round(start / frame_seconds, DIGITS)))
        behind = int(np.ceil(np.round(end / frame_seconds, DIGITS)))
        active = targets[known[0], max(first, 0) : max(behind, 0)]
        value = score if use_scores and score is not None else 1.0
        np.maximum(active, value, out=active)
    return targets


def class_table(classes: LabelTable | Sequence[str]) -> LabelTable:
    """Returns a table of the classes that accepts ids and names as labels.

    Example
    -------
    >>> class_table(["dog", "cat"]).indices(["Dog"])
    ([0], [])
    """
    if not isinstance(classes, LabelTable):
        classes = LabelTable(classes, classes)
    return classes if classes.index_of_name else classes.with_names()
