"""Sorts the rows of tables of events: events, weak labels, and what is left out."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_columns import Annotations
from efficientat_plugin.data.events.event_targets import in_time, merge_events
from efficientat_plugin.data.labels import LabelTable, most_frequent
from efficientat_plugin.support.plain_text import some_of

NAMED = 5  # rows that a report names
# Why a row is left out
NO_CLIP = "rows without a sound"
ABSENT = "rows of sounds that are not there"
UNLABELLED = "sounds without a class"
NO_LABEL = "events without a class"
NO_START = "events without a start"
NO_END = "events without an end"
NEGATIVE = "events that start before their sound"
NO_LENGTH = "events of no length"
BACKWARDS = "events that end before they start"
OUTSIDE = "events that start after the end of their sound"
UNKNOWN = "rows of other classes"
LOW = "events whose score is too low"
NOT_EMPTY = "rows without events, of sounds that have some"
NO_LABELS = "files that are no label tracks"


class LeftOut(NamedTuple):
    """What is left out for one reason."""

    reason: str
    num_rows: int  # or files
    names: tuple[str, ...]  # of the first: sound, class and times; or of classes

    def __str__(self) -> str:
        more = self.num_rows - len(self.names)
        if self.reason == UNKNOWN:  # these are named by their classes
            more = 0
        text = f"{self.reason} ({self.num_rows}): {', '.join(self.names)}"
        return f"{text} and {more} more" if more else text


class EventTable(NamedTuple):
    """Events by clip, and what else is known of the clips."""

    # Sorted by start, end and class. A clip without events is known to hold none of the
    # classes; one that is not here was not annotated, or none of its rows is usable.
    events: dict[str, list[Event]]
    weak: dict[str, list[str]]  # classes that a clip holds somewhere
    left_out: list[LeftOut]

    @property
    def empty(self) -> list[str]:
        """The clips that are known to hold no event."""
        return [clip for clip, events in self.events.items() if not events]

    @property
    def only_weak(self) -> list[str]:
        """The clips whose classes are known, but not their times."""
        return [clip for clip in self.weak if clip not in self.events]

    @property
    def classes(self) -> list[str]:
        """The classes of all events and weak labels, sorted."""
        found = {event.label for events in self.events.values() for event in events}
        return sorted(found.union(*self.weak.values()))

    def __str__(self) -> str:
        num_events = sum(map(len, self.events.values()))
        parts = [f"{_count(num_events, 'event')} in {_count(len(self.events), 'clip')}"]
        if self.empty:
            parts.append(f"{len(self.empty)} of them without events")
        if self.only_weak:
            parts.append(f"{_count(len(self.only_weak), 'clip')} with weak labels only")
        parts.append(_count(len(self.classes), "class", "es"))
        return ", ".join(parts) + "".join(f"; left out {e}" for e in self.left_out)


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural * (number != 1)}"


class EventSorter:
    """Sorts rows into events, weak labels, clips without events, and what is left.

    Arguments
    ---------
    table : LabelTable or None
        Classes to keep; labels become their names, or ids if names repeat. None: any.
    durations : mapping
        Lengths of clips by id, s, where they are known.
    min_score : float or None
        Events with a lower score are left out.
    """

    def __init__(
        self,
        table: LabelTable | None,
        durations: Mapping[str, float],
        min_score: float | None,
    ) -> None:
        self._table, self._durations = table, durations
        self._class_names: tuple[str, ...] = ()
        if table is not None:
            is_unique = len({*table.names}) == len(table)
            self._class_names = table.names if is_unique else table.mids
        self._min_score = -math.inf if min_score is None else min_score
        self._events: dict[str, list[Event]] = {}
        self._weak: dict[str, dict[str, None]] = {}
        self._silent: dict[str, None] = {}
        self._unusable: set[str] = set()  # clips with events that are not usable
        self._count: Counter[str] = Counter()
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        self.unknown: Counter[str] = Counter()
        self.num_known = 0

    def add(self, clip: str | None, found: Annotations, row: int) -> None:
        """Adds a row; ``clip`` is "" if it is not there."""
        labels, start, end = found.labels[row], found.starts[row], found.ends[row]
        if not clip:
            self.leave_out(NO_CLIP if clip is None else ABSENT, found, row)
            return
        known = self._known(labels, found, row)
        if start is None and end is None:
            if known:
                self._weak.setdefault(clip, {}).update(dict.fromkeys(known))
            elif not labels and found.is_weak:
                self.leave_out(UNLABELLED, found, row)
            elif not labels:
                self._silent[clip] = None
            return
        if labels and not known:
            self._events.setdefault(clip, [])
            return
        reason = self._problem(clip, start, end) if labels else NO_LABEL
        if reason is not None or start is None or end is None:
            self._unusable.add(clip)
            self.leave_out(reason or NO_END, found, row)
            return
        events, score = self._events.setdefault(clip, []), found.scores[row]
        if score is not None and score < self._min_score:
            self.leave_out(LOW, found, row)
            return
        end = min(end, self._durations.get(clip, end))
        events += [Event(label, start, end, score) for label in known]

    def leave_out(self, reason: str, found: Annotations | str, row: int = 0) -> None:
        """Counts a row or a file that is not used."""
        self._count[reason] += 1
        if self._count[reason] <= NAMED:
            name = found if isinstance(found, str) else _name_of(found, row)
            self._names[reason].append(some_of([name]))

    def _known(self, labels: list[str], found: Annotations, row: int) -> list[str]:
        if self._table is None:
            return labels
        places, unknown = self._table.indices(labels)
        self.num_known += len(places)
        self.unknown.update(unknown)
        if unknown:
            self.leave_out(UNKNOWN, found, row)
        return [self._class_names[place] for place in places]

    def _problem(self, clip: str, start: float | None, end: float | None) -> str | None:
        """Returns why an event with these times is not usable."""
        if start is None:
            return NO_START
        if end is None:
            return NO_END
        if end < start:
            return BACKWARDS
        if start < 0:
            return NEGATIVE
        if end == start:
            return NO_LENGTH
        seconds = self._durations.get(clip)
        return OUTSIDE if seconds is not None and start >= seconds else None

    def result(self, merge: bool) -> EventTable:
        """Returns what was added."""
        for clip in self._silent:
            if clip in self._events or clip in self._weak or clip in self._unusable:
                self.leave_out(NOT_EMPTY, clip)
            else:
                self._events[clip] = []
        order = merge_events if merge else in_time
        events = {clip: order(events) for clip, events in self._events.items()}
        # Of these, nothing is known but that they hold some event.
        unusable = [c for c in self._unusable if not events.get(c)]
        for clip in unusable:
            events.pop(clip, None)
        if self.unknown:
            self._names[UNKNOWN] = [most_frequent(self.unknown)]
        left_out = [
            LeftOut(reason, count, tuple(self._names[reason]))
            for reason, count in self._count.items()
        ]
        return EventTable(events, {c: [*w] for c, w in self._weak.items()}, left_out)


def _name_of(found: Annotations, row: int) -> str:
    """Names a row by its clip, classes and times."""
    times = [
        "?" if t is None else f"{t:g}" for t in (found.starts[row], found.ends[row])
    ]
    parts = [found.clips[row] or "?", ", ".join(found.labels[row])]
    parts += ["-".join(times)] if times != ["?", "?"] else []
    return " ".join(filter(None, parts))
