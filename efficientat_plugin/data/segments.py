"""Turns the rows of one file into segments of it, or merges them into one clip."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from efficientat_plugin.data.columns import find_column, numbers_in
from efficientat_plugin.data.sound_files import UnreadableClip, open_sound
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

# In the form of `columns.plain_name`. All times in this file are in seconds.
START_NAMES = ("start", "start_time", "begin", "begin_time", "start_s", "start_sec") + (
    *("start_seconds", "t_start", "tmin", "xmin"),
)
END_NAMES = ("end", "end_time", "stop", "stop_time", "end_s", "end_sec") + (
    *("end_seconds", "t_end", "tmax", "xmax"),
)
LENGTH_NAMES = ("duration", "duration_s", "duration_sec", "duration_seconds", "length")
# Events within a clip in DCASE's tables, where offset is an end.
EVENT_NAMES = ("onset", "offset", "event_onset", "event_offset")
# Names of columns in other units: of starts, and of ends or durations
_UNIT = "(ms|msecs?|millis|milliseconds|frames?|samples?)"
_STARTS = "(start|begin|onset|offset)(_time)?"
_REACHES = "(end|stop|offset|duration|length|num)(_time)?"
LOOKED_AT = 50  # headers read to check whether files are as long as their segments say


class Times(NamedTuple):
    """Names the columns that give the part of a file that a row describes."""

    start: str
    end: str | None
    length: str | None  # if there is no end


def find_times(columns: Mapping[str, Any]) -> Times | None:
    """Finds the columns that cut segments: start and end, or offset and duration.

    Example
    -------
    >>> find_times({"File": [], "Begin Time (s)": [], "End Time (s)": []})
    Times(start='Begin Time (s)', end='End Time (s)', length=None)
    >>> find_times({"file": [], "onset": [], "offset": [], "event_label": []})
    """
    start = find_column(columns, START_NAMES)
    end = find_column(columns, END_NAMES)
    length = find_column(columns, LENGTH_NAMES)
    if start is None and find_column(columns, ("onset",)) is None:
        start = find_column(columns, ("offset",))
        end = None
    if start is None or (end is None and length is None):
        _report_unused(columns, start)
        return None
    return Times(start, end, length if end is None else None)


def _report_unused(columns: Iterable[str], start: str | None) -> None:
    """Warns of columns of times that cut no segments, such as ``end_ms``."""
    plain = {name: re.sub("[^a-z]+", "_", name.lower()).strip("_") for name in columns}

    def in_other_units(word: str) -> list[str]:
        pattern = re.compile(f"{word}_{_UNIT}|{_UNIT}_{word}")
        return [name for name, text in plain.items() if pattern.fullmatch(text)]

    starts = in_other_units(_STARTS) if start is None else [start]
    others = dict.fromkeys([*starts, *in_other_units(_REACHES)])
    if start is not None and len(others) == 1:
        logger.warning(
            "Column %s cuts no segments, because no column has ends or durations",
            start,
        )
    elif starts:
        logger.warning(
            "Columns %s are not used, because %s not in seconds, and whole files are "
            "read; to cut segments, write start and end, or offset and duration, in "
            "seconds",
            some_of(others),
            "they are" if start is None else f"{some_of([*others][1:])} is",
        )


def read_times(
    columns: Mapping[str, Sequence[Any]], times: Times, source: str
) -> dict[str, list[float | None]]:
    """Reads when each row's segment starts and ends, s; None if it gives no time.

    Raises
    ------
    ValueError
        If a value is not a time, or a segment is empty.
    """
    what = (
        "is not a time in seconds; write seconds, or pass segments=False to read whole "
        "files"
    )
    name = times.end or times.length or ""
    starts = numbers_in(columns[times.start], times.start, source, what)
    ends = numbers_in(columns[name], name, source, what)
    if times.length:
        ends = [
            None if length is None else (start or 0.0) + length
            for start, length in zip(starts, ends, strict=True)
        ]
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end is not None and end <= (start or 0.0):
            raise ValueError(
                f"row {row + 1} of {source} has a segment from {start or 0.0:g} to "
                f"{end:g} s ({times.start}, {name}), which is empty; correct it or "
                "pass segments=False to read whole files"
            )
    return {"start": starts, "end": ends}


def merge_rows(
    table: dict[str, list[Any]],
    files: Sequence[str | None],
    kept: Sequence[int],
    source: str,
    columns: Mapping[str, Any],
) -> list[int]:
    """Merges rows into one for each file or segment, with all of its labels.

    The first of several merged rows gets all of their labels, in ``table`` itself, and
    if files have several segments, each file becomes a group. Returns the rows of
    ``kept`` that represent their file or segment. ``columns`` are those of the source,
    among which may be times of events; ``files`` has None for a row that names none.

    Raises
    ------
    ValueError
        If rows of one clip are in two splits, folds or groups.
    """
    nothing = [None] * len(files)
    starts, ends = table.get("start", nothing), table.get("end", nothing)
    first: dict[Any, int] = {}
    for row in kept:
        name = (row,) if files[row] is None else (files[row], starts[row], ends[row])
        place = first.setdefault(name, row)
        if place != row:
            _merge(table, place, row, files[row], source)
    merged = list(first.values())
    if len(merged) < len(kept):
        events = [name for name in columns if find_column([name], EVENT_NAMES)]
        unused = f" The times ({', '.join(events)}) are not used." if events else ""
        logger.warning(
            "%s: %d rows describe %d clips. Rows of the same clip are read as events "
            "in it, so the clip gets the labels of all of them.%s",
            source,
            len(kept),
            len(merged),
            unused,
        )
    if "start" in table:
        num_files = len({files[row] for row in merged})
        logger.info("%s: %d segments of %d files", source, len(merged), num_files)
        if num_files < len(merged):
            _group_by_file(table, files, merged)
    return merged


def _merge(
    table: dict[str, list[Any]], place: int, row: int, file: Any, source: str
) -> None:
    for name in ("labels", "judged"):
        if name in table:
            both = [*(table[name][place] or ()), *(table[name][row] or ())]
            table[name][place] = list(dict.fromkeys(both))
    for name in ("split", "fold", "group", "device"):
        if name in table and table[name][place] != table[name][row]:
            raise ValueError(
                f"{source} has {shown(str(file))} in {name} {table[name][place]} and "
                f"in {name} {table[name][row]}; put all rows of a file into one"
            )


def _group_by_file(
    table: dict[str, list[Any]], files: Sequence[str | None], kept: Sequence[int]
) -> None:
    """Groups the segments of a file, and the files that share a group."""
    own = table.get("group", [None] * len(files))
    parent: dict[Any, Any] = {}

    def root(name: Any) -> Any:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for row in kept:
        file = ("file", files[row])
        if own[row] is not None:
            parent[root(file)] = root(("group", own[row]))
    groups: list[Any] = [None] * len(files)
    for row in kept:
        kind, name = root(("file", files[row]))
        groups[row] = None if name is None else name if kind == "group" else str(name)
    table["group"] = groups


def are_cut_already(
    files: Sequence[str | None], table: Mapping[str, Sequence[Any]], kept: Sequence[int]
) -> bool:
    """Whether each file is itself a segment, cut from a recording that is not included.

    This is so if no file has two rows and most of the files that are checked end before
    their segments do: the times are those in the recording, as in UrbanSound8K.
    """
    if max(Counter(files[row] for row in kept).values(), default=0) > 1:
        return False
    step = max(1, len(kept) // LOOKED_AT)
    beyond = known = 0
    for row in kept[::step]:
        try:
            with open_sound(files[row] or "") as sound:
                length = sound.count_frames() / sound.samplerate
        except UnreadableClip:
            continue
        start, end = table["start"][row], table["end"][row]
        beyond += max(start or 0.0, end or 0.0) > length + 1.0
        known += 1
    return 2 * beyond > known
