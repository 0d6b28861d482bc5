"""Reads events, the labels that sound event detection learns: classes with times."""

import logging
import math
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.clip_ids import ids_of_files, without_suffix, youtube_id
from efficientat_plugin.data.event_forms import (
    FORMS,
    UNITS,
    Annotations,
    Reading,
    read_annotations,
    sound_of,
)
from efficientat_plugin.data.event_targets import class_table, in_time, merge_events
from efficientat_plugin.data.folders import is_hidden
from efficientat_plugin.data.labels import LabelTable, most_frequent
from efficientat_plugin.support.files import refuse_special
from efficientat_plugin.support.limits import MAX_ROWS
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

SOFT_THRESHOLD = 0.5  # of annotators, where labels are shares of them
NAMED = 5  # rows that a report names
FAR = 10  # times the length of a clip: no rounding, and no sound cut short

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
    count: int
    names: tuple[str, ...]  # of the first: sound, class and times

    def __str__(self) -> str:
        more = self.count - len(self.names)
        text = f"{self.reason} ({self.count}): {', '.join(self.names)}"
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
        count = sum(map(len, self.events.values()))
        parts = [f"{count} events in {len(self.events)} clips"]
        if self.empty:
            parts.append(f"{len(self.empty)} of them without events")
        if self.only_weak:
            parts.append(f"{len(self.only_weak)} clips with weak labels only")
        parts.append(f"{len(self.classes)} classes")
        return ", ".join(parts) + "".join(f"; left out {e}" for e in self.left_out)


def read_events(
    path: str | Path,
    *,
    form: str = "auto",
    classes: LabelTable | Sequence[str] | None = None,
    durations: Mapping[str, float] | None = None,
    clip_ids: Collection[str] | None = None,
    merge: bool = True,
    min_score: float | None = None,
    unit: str | None = None,
    audio_column: str | None = None,
    label_column: str | None = None,
) -> EventTable:
    """Reads events with their times in any common form, and weak labels beside them.

    The form is found by content: a table of AudioSet's strong labels, of DCASE (strong
    or weak), of Raven, or any table with columns of sounds, classes and times; or the
    label track of one sound, as of Audacity or MAESTRO Real, named after it. See
    ``docs/events.md``.

    Arguments
    ---------
    path : str or Path
        A table (CSV, TSV, JSON, JSONL, Parquet), a label track, or a folder with one
        text file (``.txt``) for each sound, at any depth.
    form : str
        "auto", "audioset", "dcase", "maestro", "audacity", "raven" or "table".
    classes : LabelTable or sequence of str or None
        Events of other classes are left out; labels become the names of the table. A
        label is an id or, in any case, a name. None: any class.
    durations : mapping or None
        Length of each clip by its id, s. Events are cut at the end of their clip.
    clip_ids : collection of str or None
        Ids of the clips that exist; None: those of ``durations``. Without either, the
        id of a clip is its name in the table without the suffix, and for AudioSet the
        YouTube id. Names find clips by the end of their path, too.
    merge : bool
        Whether events of one class that overlap or touch become one.
    min_score : float or None
        Events with a lower score are left out. None: with MAESTRO's labels, whose
        scores are shares of annotators, 0.5 if events are merged, otherwise none.
    unit : str or None
        Unit of times, "s" or "ms"; None: ms for columns such as ``onset_ms``, else s.
    audio_column, label_column : str or None
        Columns of the sounds' names and of the classes; None: usual names.

    Returns
    -------
    EventTable
        ``events`` and ``weak`` by clip id, times in seconds. Rows that are left out are
        counted and reported: those without a class, a start or an end; of no or
        negative length; before or behind their clip; of other classes; of clips that
        are not there.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a folder holds no text file.
    ValueError
        If nothing is a table of events, columns are missing, a time is no number, times
        seem to be in ms, or nothing at all fits the clips or classes.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "strong.tsv"
    >>> _ = path.write_text(
    ...     "filename\\tonset\\toffset\\tevent_label\\na.wav\\t0.5\\t1.5\\tSpeech\\n"
    ...     "a.wav\\t1.0\\t2.0\\tSpeech\\nb.wav\\t\\t\\t\\n"
    ... )
    >>> table = read_events(path)
    >>> table.events["a"]
    [Event(label='Speech', start_seconds=0.5, end_seconds=2.0, score=None)]
    >>> table.empty, table.left_out
    (['b'], [])
    """
    _check_options(form, unit)
    reading, path = Reading(form, unit, audio_column, label_column), Path(path)
    others: list[str] = []
    if path.is_dir():
        found, others = _read_folder(path, reading)
    else:
        refuse_special(path)
        found = read_annotations(path, reading, None)
    if clip_ids is None and durations is not None:
        clip_ids = durations.keys()
    ids = _ids(found.clips, clip_ids, path.name)
    if unit is None:
        _refuse_milliseconds(ids, found, durations or {}, path.name)
    if min_score is None and found.is_soft and merge:
        min_score = SOFT_THRESHOLD
    table = None if classes is None else class_table(classes)
    sorter = _Sorter(table, durations or {}, min_score)
    for row, clip in enumerate(ids):
        sorter.add(clip, found, row)
    for name in others:
        sorter.leave_out(NO_LABELS, name)
    result = sorter.result(merge)
    _refuse_other_classes(sorter, table, path.name)
    for each in result.left_out:
        logger.warning("%s: left out %s", path.name, each)
    return result


def _check_options(form: str, unit: str | None) -> None:
    if form not in FORMS:
        raise ValueError(f"form={form!r} must be one of {', '.join(FORMS)}")
    if unit not in (None, *UNITS):
        raise ValueError(f"unit={unit!r} must be s or ms, or None")


def _read_folder(folder: Path, reading: Reading) -> tuple[Annotations, list[str]]:
    """Reads the text files of a folder, and names those of another kind."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() == ".txt"
        and path.is_file()
        and not any(map(is_hidden, path.relative_to(folder).parts))
    ]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no label tracks (.txt, one for each sound); name a table "
            "to read it"
        )
    parts, others, empty = [], {}, []
    rows = 0
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if reading.form == "auto" and path.stat().st_size == 0:
            empty.append(sound_of(name))
            continue
        try:
            parts.append(read_annotations(path, reading, sound_of(name)))
        except ValueError as error:
            others[name] = error
            continue
        rows += len(parts[-1].clips)
        if rows > MAX_ROWS:
            raise ValueError(f"{folder} has more than {MAX_ROWS} labels; split it")
    if not parts and not empty:
        raise next(iter(others.values()))
    nothing = [None] * len(empty)
    parts.append(Annotations([*empty], [[]] * len(empty), nothing, nothing, nothing))
    return _joined(parts), [*others]


def _joined(parts: Iterable[Annotations]) -> Annotations:
    parts = list(parts)
    columns: list[Any] = [
        [each for part in parts for each in part[k]] for k in range(5)
    ]
    return Annotations(
        *columns,
        is_soft=any(part.is_soft for part in parts),
        is_weak=all(part.is_weak for part in parts),
    )


def _ids(
    names: Sequence[str | None], clip_ids: Collection[str] | None, source: str
) -> list[str | None]:
    """Returns the clip id of each name; "" for sounds that are not there."""
    plain = {name: _plain_path(name) for name in dict.fromkeys(names) if name}
    if clip_ids is None:
        own = dict(zip(plain, ids_of_files(plain.values()), strict=True))
    else:
        own = match_clips(plain, clip_ids)
        if plain and not own:
            raise ValueError(
                f"none of the {len(plain)} sounds of {source} "
                f"({some_of(plain, 2)}) is among the {len(clip_ids)} clips "
                f"({some_of(clip_ids, 2)}); name sounds as the clips are named"
            )
    return [own.get(name, "") if name else None for name in names]


def _plain_path(name: str) -> str:
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def match_clips(names: Mapping[str, str], clip_ids: Collection[str]) -> dict[str, str]:
    """Finds the clip that each name of a sound means.

    A name is a clip's id, with or without a suffix; or, if no two names mean one clip
    and no two clips are meant, their paths end alike, or their YouTube ids are equal.

    Arguments
    ---------
    names : mapping
        Paths with slashes, by name.
    clip_ids : collection of str

    Returns
    -------
    dict
        Clip ids by name, without names that mean none.

    Example
    -------
    >>> match_clips({"x": "/data/dog/a.wav", "y": "b.wav"}, ["dog/a", "c"])
    {'x': 'dog/a'}
    """
    exact = {unicodedata.normalize("NFC", str(clip)): str(clip) for clip in clip_ids}
    found, others = {}, {}
    for name, path in names.items():
        clip = exact.get(path) or exact.get(without_suffix(path))
        if clip is None:
            others[name] = without_suffix(path)
        else:
            found[name] = clip
    by_tail: defaultdict[str, set[str]] = defaultdict(set)
    for clip in exact.values():
        for tail in _tails(clip):
            by_tail[tail].add(clip)
    meant = {}
    for name, path in others.items():
        tails = [tail for tail in _tails(path) if tail in exact]
        clips = {exact[tails[0]]} if tails else set[str]()
        video = youtube_id(os.path.basename(path))
        clips |= by_tail.get(path, set()) | by_tail.get(video, set())
        if len(clips) == 1:
            meant[name] = min(clips)
    counts = Counter([*meant.values(), *found.values()])
    return found | {name: clip for name, clip in meant.items() if counts[clip] == 1}


def _tails(path: str) -> list[str]:
    """Returns the ends of a path, the longest first, and a YouTube id in its name."""
    parts = path.strip("/").split("/")
    tails = ["/".join(parts[place:]) for place in range(len(parts))]
    return [*tails, youtube_id(os.path.basename(path))]


def _refuse_milliseconds(
    ids: Sequence[str | None],
    found: Annotations,
    durations: Mapping[str, float],
    source: str,
) -> None:
    known = [
        (end, durations[clip])
        for clip, end in zip(ids, found.ends, strict=True)
        if clip and clip in durations and end is not None
    ]
    far = [(end, seconds) for end, seconds in known if end > FAR * seconds]
    fitting = [end for end, seconds in far if end / UNITS["ms"] <= seconds + 1]
    if known and 2 * len(fitting) > len(known):
        raise ValueError(
            f"{len(fitting)} of {len(known)} events of {source} end far behind their "
            f"sounds, such as at {fitting[0]:g} s in a sound of {far[0][1]:g} s, and "
            "would fit in milliseconds; pass unit='ms', or unit='s' if they are seconds"
        )


def _refuse_other_classes(
    sorter: "_Sorter", table: LabelTable | None, source: str
) -> None:
    if table is not None and sorter.unknown and not sorter.num_known:
        raise ValueError(
            f"{source} has events of {most_frequent(sorter.unknown)}, but none of the "
            f"{len(table)} classes, such as {shown(table.mids[0])!r} or "
            f"{shown(table.names[0])!r}; pass other classes, or another label_column"
        )


class _Sorter:
    """Sorts rows into events, weak labels, clips without events, and what is left."""

    def __init__(
        self,
        table: LabelTable | None,
        durations: Mapping[str, float],
        min_score: float | None,
    ) -> None:
        self._table, self._durations = table, durations
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
        return [self._table.names[place] for place in places]

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
