"""Reads events from the columns of a table, in whatever form they were written."""

import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.audio_column import ID_NAMES
from efficientat_plugin.data.columns import (
    AUDIO_NAMES,
    LABEL_NAMES,
    cell_text,
    find_column,
    numbers_in,
    plain_name,
    read_labels,
)
from efficientat_plugin.data.segments import END_NAMES, LENGTH_NAMES, START_NAMES
from efficientat_plugin.data.text_tables import refuse_too_large
from efficientat_plugin.support.plain_text import of_cell, some_of

logger = logging.getLogger(__name__)

UNITS = {"s": 1.0, "ms": 1000.0}  # of a second
# In the form of `columns.plain_name`; the first that a table has is used.
CLIP_NAMES = (*AUDIO_NAMES, "sound", "recording", "clip", *ID_NAMES, "begin_path")
ONSET_NAMES = ("onset", "event_onset", "start_time_seconds", *START_NAMES)
OFFSET_NAMES = ("event_offset", "end_time_seconds", *END_NAMES)
SPECIES_NAMES = ("annotation", "annotations", "species", "common_name", "species_code")
EVENT_NAMES = (*LABEL_NAMES, "event", "events", "name", *SPECIES_NAMES)
SCORE_NAMES = ("score", "confidence", "probability")
IN_MS = re.compile(r"_?\(?(ms|msecs?|millis|milliseconds)\)?$")
IN_FRAMES = re.compile(r"(onset|offset|start|end|begin|stop)_(frames?|samples?)")
NO_TIME = "is not a time in seconds, such as 12.5; correct it"


class Annotations(NamedTuple):
    """Holds the rows of tables of events, as somebody wrote them.

    A row with times is an event; one with a label and no times says that a clip holds
    a class somewhere; one with neither, in a table with columns of times, says that a
    clip holds no event.
    """

    clips: list[str | None]  # names of sounds
    labels: list[list[str]]  # several if a cell holds several
    starts: list[float | None]  # s
    ends: list[float | None]  # s
    scores: list[float | None]
    is_soft: bool = False  # whether a score is the share of annotators who agree
    is_weak: bool = False  # whether there are no columns of times


def found_nothing(sound: str) -> Annotations:
    """Says that somebody looked for events in a sound and found none."""
    return Annotations([sound], [[]], [None], [None], [None])


def with_names(columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """Names the columns of DCASE's tables that were written without a header."""
    dcase = ("filename", "onset", "offset", "event_label", "confidence")
    if [*columns] not in (["filename", *"123"], ["filename", *"1234"]):
        return columns
    return dict(zip(dcase, columns.values(), strict=False))


class TimeColumns(NamedTuple):
    """Names the columns of times; ``length`` if there is no end."""

    start: str
    end: str | None
    length: str | None
    is_ms: bool


def find_event_times(columns: Mapping[str, Any], source: str) -> TimeColumns | None:
    """Finds the columns of times: onset and offset, start and end, or a duration.

    In DCASE's tables an offset is an end; next to a duration, and without an onset, it
    is a start. None if there are no times, so that labels are those of whole clips.

    Raises
    ------
    ValueError
        If there are only starts, or times in frames or samples.

    Example
    -------
    >>> find_event_times({"file": [], "onset": [], "offset": []}, "a.tsv")
    TimeColumns(start='onset', end='offset', length=None, is_ms=False)
    >>> find_event_times({"file": [], "start_ms": [], "end_ms": []}, "a.csv")
    TimeColumns(start='start_ms', end='end_ms', length=None, is_ms=True)
    """
    in_ms = {}
    for name in columns:
        without, found = IN_MS.subn("", plain_name(name))
        if found:
            in_ms[without] = name
    for names, is_ms in (({name: name for name in columns}, False), (in_ms, True)):
        start = find_column(names, ONSET_NAMES)
        ends = OFFSET_NAMES if start is None else ("offset", *OFFSET_NAMES)
        end = find_column(names, ends)
        length = None if end else find_column(names, LENGTH_NAMES)
        if start is None and length:
            start = find_column(names, ("offset",))
        if start is not None and (end or length):
            chosen = [name and names[name] for name in (start, end, length)]
            return TimeColumns(str(chosen[0]), chosen[1], chosen[2], is_ms)
    if frames := [name for name in columns if IN_FRAMES.fullmatch(plain_name(name))]:
        raise ValueError(
            f"{source} has times in frames or samples ({some_of(frames)}); write "
            "columns start and end, in seconds"
        )
    if start := find_column(columns, ONSET_NAMES):
        raise ValueError(
            f"{source} has a column of starts ({start}), but none of ends or "
            "durations; write a column end, in seconds"
        )
    return None


def one_row_per_event(
    columns: Mapping[str, Sequence[Any]], path: Path
) -> Mapping[str, Sequence[Any]]:
    """Gives each event a row of its own, where a cell lists all events of a sound.

    Such cells are lists of objects, or lists of equal length in several columns or in
    one object. A sound with an empty list keeps one row, without an event.

    Raises
    ------
    ValueError
        If lists of one row differ in length, or there are too many events.

    Example
    -------
    >>> columns = {"file": ["a", "b"], "events": [[{"start": 1}, {"start": 2}], []]}
    >>> one_row_per_event(columns, Path("a.json"))
    {'file': ['a', 'a', 'b'], 'start': [1, 2, None]}
    """
    times = find_event_times(columns, path.name)
    if times is not None:
        if not _are(columns[times.start], list):
            return columns
        nested = [name for name in columns if _are(columns[name], list)]
        cells = [columns[name] for name in nested]
        listed = [_zipped(nested, row, path) for row in zip(*cells, strict=True)]
    else:
        nested = [name for name in columns if _holds_objects(columns[name])][:1]
        if not nested:
            return columns
        listed = [_objects(cell, path) for cell in columns[nested[0]]]
    names = dict.fromkeys(name for events in listed for each in events for name in each)
    repeated = {
        name: columns[name] for name in columns if name not in (*nested, *names)
    }
    places = [
        (row, each) for row, events in enumerate(listed) for each in events or [{}]
    ]
    refuse_too_large(path, len(places), len(repeated) + len(names))
    outer = {n: [values[row] for row, _ in places] for n, values in repeated.items()}
    return outer | {name: [each.get(name) for _, each in places] for name in names}


def _are(values: Sequence[Any], kind: type) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, kind) for value in present)


def _holds_objects(values: Sequence[Any]) -> bool:
    if not _are(values, list):
        return _are(values, dict) and any(values)
    return _are([each for value in values for each in value or ()], dict)


def _objects(cell: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(cell, dict):
        return _zipped([*cell], [*cell.values()], path)
    return [each or {} for each in cell or ()]


def _zipped(
    names: Sequence[str], cells: Sequence[Any], path: Path
) -> list[dict[str, Any]]:
    """Makes an object for each place of several lists."""
    lists = [cell if isinstance(cell, list) else [] for cell in cells]
    if len({len(each) for each in lists}) > 1:
        lengths = some_of(
            f"{name} ({len(each)})" for name, each in zip(names, lists, strict=True)
        )
        raise ValueError(
            f"a sound of {path} has lists of different lengths: {lengths}; give each "
            "event a start, an end and a label"
        )
    return [
        dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)
    ]


def number_in(text: str) -> float | None:
    """Returns a finite number, whose decimals may follow a comma; None for others."""
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def name_in(value: Any) -> str | None:
    """Returns the name of a sound as its writer meant it."""
    text = cell_text(value)
    return None if text is None else of_cell(text)


def labels_in(values: Sequence[Any], column: str) -> list[list[str]]:
    plain = [of_cell(each) if isinstance(each, str) else each for each in values]
    return read_labels(plain, column)


def times_in(
    columns: Mapping[str, Sequence[Any]],
    times: TimeColumns | None,
    source: str,
    unit: str | None,
    rows: int,
) -> tuple[list[float | None], list[float | None]]:
    """Reads starts and ends, s; None where there are none."""
    if times is None:
        return [None] * rows, [None] * rows
    name = times.end or times.length or ""
    scale = UNITS[unit or ("ms" if times.is_ms else "s")]
    starts = seconds_in(columns[times.start], times.start, source, scale)
    ends = seconds_in(columns[name], name, source, scale)
    if times.length:
        ends = [
            None if start is None or length is None else start + length
            for start, length in zip(starts, ends, strict=True)
        ]
    return starts, ends


def seconds_in(
    values: Sequence[Any], column: str, source: str, scale: float
) -> list[float | None]:
    numbers = _numbers(values, column, source, NO_TIME)
    if scale == 1:
        return numbers
    return [None if number is None else number / scale for number in numbers]


def scores_in(columns: Mapping[str, Sequence[Any]], source: str) -> list[float | None]:
    name = find_column(columns, SCORE_NAMES)
    if name is None:
        return [None] * len(next(iter(columns.values())))
    return _numbers(columns[name], name, source, "is not a number; correct it")


def _numbers(
    values: Sequence[Any], column: str, source: str, what: str
) -> list[float | None]:
    """Reads numbers, also negative ones and those with a decimal comma."""
    points: list[Any] = []
    commas = []
    for value in values:
        if isinstance(value, str) and "," in value and number_in(value) is not None:
            commas.append(value)
            value = value.replace(",", ".")
        points.append(value)
    if commas:
        logger.warning(
            "%s: commas in column %s are read as decimal points, %d times: %s",
            source,
            column,
            len(commas),
            some_of(commas, 2),
        )
    return numbers_in(points, column, source, what, least=-sys.float_info.max)
