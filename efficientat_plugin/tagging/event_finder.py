"""Finds events in scores over time, as the scores arrive."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import median_filter
from efficientat_plugin.data.events.score_boxes import USUAL, BoxOptions
from efficientat_plugin.data.labels import LabelTable, places_of
from efficientat_plugin.support.plain_text import shown

# One threshold for all classes, or one for each class that is named
Threshold = float | Mapping[str, float]
Scores = NDArray[np.float32]


class EventOptions(NamedTuple):
    """How scores become events.

    An event is a stretch of frames with scores above ``off_threshold`` of which at
    least one is above ``threshold``. Then events of a class are merged across short
    gaps, and those that are still short are left out.

    Arguments
    ---------
    threshold : float or mapping
        Probability from 0 to 1, or one per class: {name or MID: probability}. Classes
        that a mapping leaves out have no events.
    off_threshold : float or mapping or None
        At most the threshold; None: the threshold.
    median_seconds : float
        Length of the median filter over scores, s; below two frames: no filter.
    min_seconds : float
        Shorter events are left out.
    max_gap_seconds : float
        Events of a class with at most this gap between them are merged.
    max_seconds : float
        Events are not merged into a longer one than this.
    classes : sequence of str or None
        Names or MIDs of the classes to find; None: all.
    boxes : bool
        Whether events are sound event bounding boxes instead, whose ends no threshold
        moves (see `BoxOptions`): those with a mean score above ``threshold``. Scores
        are not filtered then, and options that extend or merge events have no place.
    box_step_seconds, box_merge_difference, box_merge_ratio
        ``step_seconds``, ``merge_difference`` and ``merge_ratio`` of `BoxOptions`.
    """

    threshold: Threshold = 0.5
    off_threshold: Threshold | None = None
    median_seconds: float = 0.36
    min_seconds: float = 0.0
    max_gap_seconds: float = 0.0
    max_seconds: float = math.inf
    classes: Sequence[str] | None = None
    boxes: bool = False
    box_step_seconds: float = USUAL.step_seconds
    box_merge_difference: float | None = USUAL.merge_difference
    box_merge_ratio: float | None = USUAL.merge_ratio

    @property
    def of_boxes(self) -> BoxOptions:
        """The options of boxes."""
        return BoxOptions(
            self.box_step_seconds, self.box_merge_difference, self.box_merge_ratio
        )

    def check(self) -> None:
        """Raises a ``ValueError`` for options out of range, or without effect."""
        plain = self._field_defaults
        for name in ("off_threshold", "max_gap_seconds", "max_seconds"):
            if self.boxes and getattr(self, name) != plain[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)} does nothing to boxes; merge them by"
                    " box_merge_difference or box_merge_ratio, or leave out boxes"
                )
        for name in ("median_seconds", "min_seconds", "max_gap_seconds", "max_seconds"):
            value = getattr(self, name)
            if not value >= 0:  # nor NaN
                raise ValueError(f"{name}={value} must be 0 or more")
        self.of_boxes.check()


def options_of_model(stored: Mapping[str, Any], labels: LabelTable) -> dict[str, Any]:
    """Reads and checks the options of events that are stored with a model.

    Arguments
    ---------
    stored : mapping
        Fields of `EventOptions`; its ``threshold`` may be a list, in the order of
        ``labels``.
    labels : LabelTable
        The model's.

    Returns
    -------
    dict
        Arguments of `EventOptions`, with thresholds by MID.

    Raises
    ------
    ValueError
        For anything else, and for illegal options.

    Example
    -------
    >>> labels = LabelTable(["/m/1", "/m/2"], ["Dog", "Cat"])
    >>> options_of_model({"threshold": [0.2, 0.6]}, labels)
    {'threshold': {'/m/1': 0.2, '/m/2': 0.6}}
    """
    legal = [name for name in EventOptions._fields if name != "classes"]
    if unknown := [name for name in stored if name not in legal]:
        raise ValueError(
            f"event_options has {shown(unknown[0])}; its options are {', '.join(legal)}"
        )
    options: dict[str, Any] = {}
    for name, value in stored.items():
        if isinstance(value, list) and name.endswith("threshold"):
            if len(value) != len(labels):
                raise ValueError(
                    f"event_options has {len(value)} numbers as {name}, but there are "
                    f"{len(labels)} classes; give one for each, in their order"
                )
            options[name] = {
                mid: _number(each) for mid, each in zip(labels.mids, value, strict=True)
            }
        else:
            options[name] = _number(value)
    chosen = EventOptions(**options)
    chosen.check()
    class_thresholds(chosen, labels)
    return options


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"event_options has {value!r:.80} in the place of a number")
    return float(value)


class ClassThresholds(NamedTuple):
    """Thresholds of the classes to find."""

    places: NDArray[np.intp]  # of these classes among all of the model's
    names: list[str]
    on: NDArray[np.float64]
    off: NDArray[np.float64]


def class_thresholds(options: EventOptions, labels: LabelTable) -> ClassThresholds:
    """Looks up the classes and thresholds of ``options`` among a model's labels.

    Raises
    ------
    ValueError
        For unknown classes, thresholds that are no probabilities, and an
        ``off_threshold`` above the threshold.

    Example
    -------
    >>> labels = LabelTable(["/m/1", "/m/2"], ["Dog", "Cat"])
    >>> class_thresholds(EventOptions(threshold={"Cat": 0.3}), labels).on
    array([0.3])
    """
    on = _by_place(options.threshold, labels, "threshold")
    off = on
    if options.off_threshold is not None:
        off = _by_place(options.off_threshold, labels, "off_threshold")
    places = [*on] if options.classes is None else places_of(options.classes, labels)
    places = [place for place in places if place in on]
    for place in places:
        if off.setdefault(place, on[place]) > on[place]:
            raise ValueError(
                f"off_threshold={off[place]:g} of {labels.names[place]} is above its "
                f"threshold, {on[place]:g}; give at most that"
            )
    return ClassThresholds(
        np.array(places, np.intp),
        [labels.names[place] for place in places],
        np.array([on[place] for place in places], np.float64),
        np.array([off[place] for place in places], np.float64),
    )


def _by_place(threshold: Threshold, labels: LabelTable, name: str) -> dict[int, float]:
    if isinstance(threshold, Mapping):
        named = labels.with_names()
        found = {
            place: value
            for name_of_class, value in threshold.items()
            for place in places_of([name_of_class], named)
        }
    else:
        found = dict.fromkeys(range(len(labels)), threshold)
    for place, value in found.items():
        if not 0 <= value <= 1:  # nor NaN
            raise ValueError(
                f"{name}={value} of {labels.names[place]} is no probability; give one "
                "from 0 to 1"
            )
    return found


class EventFinder:
    """Finds events in scores that arrive frame by frame.

    What it returns in all does not depend on how the scores are cut into pieces.

    Arguments
    ---------
    labels : LabelTable
        Of the scores.
    frame_seconds : float
        From one frame to the next.
    options : EventOptions
    start_seconds : float
        Start of the first frame; events begin at 0 or later.

    Raises
    ------
    ValueError
        For illegal options.

    Example
    -------
    >>> options = EventOptions(median_seconds=0.0, max_gap_seconds=0.1)
    >>> finder = EventFinder(LabelTable(["d"], ["Dog"]), 0.1, options)
    >>> finder.feed(np.array([[0.2], [0.8], [0.1], [0.9]]))
    []
    >>> finder.finish(end_seconds=10.0)
    [Event(label='Dog', start_seconds=0.1, end_seconds=0.4, score=0.9)]
    """

    def __init__(
        self,
        labels: LabelTable,
        frame_seconds: float,
        options: EventOptions,
        start_seconds: float = 0.0,
    ) -> None:
        options.check()
        self._thresholds = class_thresholds(options, labels)
        self._options = options
        self._frame_seconds, self._start_seconds = frame_seconds, start_seconds
        half = int(options.median_seconds / (2 * frame_seconds) + 1e-6)
        self._smoother = _Smoother(half)
        self._num_frames = 0  # smoothed
        # By class: the stretch above the off-threshold that has not ended, as first
        # frame and highest score, and the last event, which may yet be merged.
        self._open: dict[int, tuple[int, float]] = {}
        self._last: dict[int, _Stretch] = {}

    @property
    def look_ahead_seconds(self) -> float:
        """Sound that the median filter needs behind a frame, s."""
        return self._smoother.half * self._frame_seconds

    def feed(self, scores: NDArray) -> list[Event]:
        """Adds frames, [T', K]; returns the events that nothing can change anymore."""
        chosen = scores[:, self._thresholds.places]
        return self._found(self._smoother.feed(chosen))

    def finish(self, end_seconds: float) -> list[Event]:
        """Ends the sound; returns the events that are left, which end with it."""
        events = self._found(self._smoother.finish())
        for place in [*self._open]:
            events += self._close(place, self._num_frames)
        left = [self._event(place, last) for place, last in self._last.items()]
        self._last = {}
        cut = [
            event._replace(end_seconds=min(event.end_seconds, end_seconds))
            for event in [*events, *left]
            if event.start_seconds < end_seconds
        ]
        return self._long_enough(cut)

    def _found(self, scores: Scores) -> list[Event]:
        """Continues with smoothed frames."""
        if not len(scores):
            return []
        first, events = self._num_frames, []
        self._num_frames += len(scores)
        is_open = np.zeros(scores.shape[1], bool)
        is_open[[*self._open]] = True
        active = np.concatenate([is_open[None], scores > self._thresholds.off])
        changes = np.diff(active.astype(np.int8), axis=0)
        for place in np.flatnonzero(active.any(axis=0)).tolist():
            begun = 0
            for frame in np.flatnonzero(changes[:, place]).tolist():
                if changes[frame, place] > 0:
                    begun = frame
                    self._open[place] = (first + frame, -math.inf)
                else:
                    self._raise(place, scores[begun:frame, place])
                    events += self._close(place, first + frame)
            if place in self._open:
                self._raise(place, scores[begun:, place])
        for place, last in [*self._last.items()]:
            soonest, _ = self._open.get(place, (self._num_frames, 0.0))
            if not self._may_reach(last, soonest):
                events.append(self._event(place, self._last.pop(place)))
        return self._long_enough(events)

    def _raise(self, place: int, scores: Scores) -> None:
        """Notes the highest score of a stretch that has not ended."""
        begin, score = self._open[place]
        if len(scores):
            self._open[place] = begin, max(score, float(scores.max()))

    def _close(self, place: int, end: int) -> list[Event]:
        """Ends a stretch of a class; returns the event that it cannot be merged with"""
        begin, score = self._open.pop(place)
        if score <= self._thresholds.on[place]:
            return []
        new, last = _Stretch(begin, end, score), self._last.get(place)
        if last is not None and self._may_reach(last, begin):
            merged = _Stretch(last.begin, end, max(last.score, score))
            if merged.num_frames * self._frame_seconds <= self._options.max_seconds:
                self._last[place] = merged
                return []
        self._last[place] = new
        return [] if last is None else [self._event(place, last)]

    def _may_reach(self, last: "_Stretch", frame: int) -> bool:
        """Whether the gap from an event to a frame is short enough to merge."""
        gap = (frame - last.end) * self._frame_seconds
        return gap <= self._options.max_gap_seconds + 1e-9

    def _event(self, place: int, stretch: "_Stretch") -> Event:
        start, end = (
            max(0.0, round(self._start_seconds + frame * self._frame_seconds, 9))
            for frame in (stretch.begin, stretch.end)
        )
        return Event(self._thresholds.names[place], start, end, stretch.score)

    def _long_enough(self, events: Sequence[Event]) -> list[Event]:
        return long_enough(events, self._options.min_seconds)


def long_enough(events: Sequence[Event], min_seconds: float) -> list[Event]:
    """Sorts the events that are long enough by their start."""
    shortest = min_seconds - 1e-9
    long = [e for e in events if e.end_seconds - e.start_seconds >= shortest]
    return sorted(long, key=lambda each: (each.start_seconds, each.label))


class _Stretch(NamedTuple):
    """Frames from ``begin`` to before ``end``, and their highest score."""

    begin: int
    end: int
    score: float

    @property
    def num_frames(self) -> int:
        return self.end - self.begin


class _Smoother:
    """A median filter over frames that arrive in pieces, as `median_filter`."""

    def __init__(self, half: int) -> None:
        self.half = half  # frames to either side
        self._held: Scores | None = None  # what the next frames need
        self._left = 0  # frames of it that are only context

    def feed(self, scores: NDArray) -> Scores:
        held = scores if self._held is None else np.concatenate([self._held, scores])
        smoothed = self._smoothed(held, len(held) - self.half)
        done = self._left + len(smoothed)
        start = max(0, done - self.half)
        # The first frames of all are reflected, so are kept until they have context.
        self._held, self._left = held[start:].copy(), done - start
        return smoothed

    def finish(self) -> Scores:
        if self._held is None:
            return np.zeros((0, 0), np.float32)
        return self._smoothed(self._held, len(self._held))

    def _smoothed(self, held: Scores, end: int) -> Scores:
        """Smooths the frames up to ``end`` of what is held that are not done yet."""
        if end <= self._left:
            return held[:0]
        return median_filter(held, 2 * self.half + 1)[self._left : end]
