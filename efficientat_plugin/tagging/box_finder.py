"""Finds sound event bounding boxes in scores over time, as the scores arrive."""

import math

from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.score_boxes import Boxes, BoxSearch
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.tagging.event_finder import (
    EventOptions,
    class_thresholds,
    long_enough,
)


class BoxFinder:
    """Finds bounding boxes in scores that arrive frame by frame, as `EventFinder`.

    Arguments
    ---------
    labels, frame_seconds, options, start_seconds
        As of `EventFinder`.

    Example
    -------
    >>> options = EventOptions(boxes=True, box_step_seconds=0.4)
    >>> finder = BoxFinder(LabelTable(["d"], ["Dog"]), 0.1, options)
    >>> import numpy as np
    >>> finder.feed(np.array([[0.0], [0.0], [0.7], [0.9], [0.0], [0.0], [0.0]]))
    [Event(label='Dog', start_seconds=0.2, end_seconds=0.4, score=0.8)]
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
        self._min_seconds = options.min_seconds
        self._frame_seconds, self._start_seconds = frame_seconds, start_seconds
        count = len(self._thresholds.places)
        self._search = BoxSearch(count, frame_seconds, options.of_boxes)

    @property
    def look_ahead_seconds(self) -> float:
        """Sound that the step filter needs behind a frame, s."""
        return self._search.half * self._frame_seconds

    def feed(self, scores: NDArray) -> list[Event]:
        """Adds frames, [T', K]; returns the events that nothing can change anymore."""
        found = self._search.feed(scores[:, self._thresholds.places])
        return self._events(found, math.inf)

    def finish(self, end_seconds: float) -> list[Event]:
        """Ends the sound; returns the events that are left, which end with it."""
        return self._events(self._search.finish(), end_seconds)

    def _events(self, boxes: Boxes, latest: float) -> list[Event]:
        events = []
        columns = (column.tolist() for column in boxes)
        for label, begin, end, score in zip(*columns, strict=True):
            if score <= self._thresholds.on[label]:
                continue
            start, stop = (
                max(0.0, round(self._start_seconds + frame * self._frame_seconds, 9))
                for frame in (begin, end)
            )
            if start < latest:
                name = self._thresholds.names[label]
                events.append(Event(name, start, min(stop, latest), round(score, 9)))
        return long_enough(events, self._min_seconds)
