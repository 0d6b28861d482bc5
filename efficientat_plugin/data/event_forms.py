"""Reads annotated events as somebody wrote them, in any common form."""

import logging
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.audio_column import ID_NAMES
from efficientat_plugin.data.clip_ids import youtube_id
from efficientat_plugin.data.columns import (
    AUDIO_NAMES,
    LABEL_NAMES,
    PLURAL_NAMES,
    cell_text,
    choose_column,
    find_column,
    numbers_in,
    plain_name,
    read_labels,
)
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.segments import END_NAMES, LENGTH_NAMES, START_NAMES
from efficientat_plugin.data.table_sources import read_table_file
from efficientat_plugin.data.text_tables import refuse_too_large, text_of
from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.plain_text import of_cell, shown, some_of

logger = logging.getLogger(__name__)

FORMS = ("auto", "audioset", "dcase", "maestro", "audacity", "raven", "table")
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
SNIFFED_BYTES = 1 << 16
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


class Reading(NamedTuple):
    """How a table of events is read; see ``events.read_events``."""

    form: str = "auto"
    unit: str | None = None
    audio_column: str | None = None
    label_column: str | None = None


def read_annotations(path: Path, reading: Reading, sound: str | None) -> Annotations:
    """Reads one table of events, or the label track of one sound.

    Arguments
    ---------
    path : Path
    reading : Reading
    sound : str or None
        The sound that a file is about if it names none; None: a table of any form but
        a label track and Raven's must name them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table of events, or a time is no number.
    """
    form = reading.form
    if form in ("auto", "raven"):
        form = _form_of(path, form)
    if form in ("track", "audacity", "maestro"):
        return _read_track(path, form, reading, sound or sound_of(path.name))
    if form == "no selections":
        return found_nothing(sound or sound_of(path.name))
    facts = Facts(audio_column=reading.audio_column, label_column=reading.label_column)
    columns = _with_names(read_table_file(path, path.parent, facts).columns)
    if not columns:
        raise ValueError(f"{path} holds nothing but sound, so it has no events")
    if form == "raven" or (reading.form == "auto" and _is_raven(columns)):
        return _read_raven(path, columns, reading, sound or sound_of(path.name))
    return _read_columns(path, columns, reading._replace(form=form), sound)


def sound_of(name: str) -> str:
    """Returns the name of the sound that a file of labels is named after.

    Example
    -------
    >>> sound_of("a.txt"), sound_of("b.wav.txt"), sound_of("c.Table.1.selections.txt")
    ('a', 'b.wav', 'c')
    """
    stem = re.sub(r"\.(txt|tsv|csv|json|jsonl|parquet)$", "", name, flags=re.I)
    raven = r"(\.Table\.\d+)?(\.BirdNET)?\.selections?(\.table)?$"
    return re.sub(raven, "", stem, flags=re.I)


def _form_of(path: Path, form: str) -> str:
    """Tells a label track, which has no header, and Raven's table from others."""
    if path.suffix.lower() in (".parquet", ".json", ".jsonl", ".ndjson"):
        return form if form != "auto" else "table"
    with open_file(path) as file:
        head = file.read(SNIFFED_BYTES).decode("utf-8-sig", errors="replace")
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        raise ValueError(
            f"{path} is empty; if somebody looked for events in its sound and found "
            "none, pass form='audacity'"
        )
    fields = lines[0].split("\t")
    if _is_raven(fields):
        return "raven" if len(lines) > 1 else "no selections"
    times = [_number(field) for field in fields[:2]]
    is_track = len(times) == 2 and None not in times
    return form if form != "auto" else "track" if is_track else "table"


def _is_raven(columns: Iterable[str]) -> bool:
    return {"selection", "begin_time"} <= {plain_name(name) for name in columns}


def _number(text: str) -> float | None:
    """Returns a finite number, whose decimals may follow a comma; None for others."""
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_track(path: Path, form: str, reading: Reading, sound: str) -> Annotations:
    """Reads lines of start, end, class and perhaps confidence, separated by tabs.

    In an Audacity label track, a line that begins with a backslash gives the
    frequencies of the label before. A label is all that follows the times.
    """
    lines = text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    refuse_too_large(path, len(lines), 5)
    rows: list[tuple[str, str, str, str | None]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        start, end, label = (line.split("\t", 2) + ["", ""])[:3]
        if _number(start) is None or _number(end) is None:
            raise ValueError(
                f"line {number} of {path} is no label: {shown(line)[:80]!r}; a label "
                "track has a start and an end in seconds and a class, separated by tabs"
            )
        rows.append((start, end, *_with_confidence(label)))
    is_soft = bool(rows) and all(row[3] is not None for row in rows)
    if form == "maestro" and rows and not is_soft:
        raise ValueError(
            f"{path} has lines without a confidence from 0 to 1 in a fourth column, "
            "which form='maestro' needs"
        )
    if not rows:  # somebody found nothing in the sound
        return found_nothing(sound)
    is_soft = is_soft and form != "audacity"
    if not is_soft:
        rows = [(*row[:2], _whole(row[2:]), None) for row in rows]
    starts, ends, labels, scores = zip(*rows, strict=True)
    scale = UNITS[reading.unit or "s"]
    return Annotations(
        [sound] * len(rows),
        [[text] if (text := cell_text(label)) else [] for label in labels],
        _seconds(starts, "start", path.name, scale),
        _seconds(ends, "end", path.name, scale),
        [None if score is None else _number(score) for score in scores],
        is_soft,
    )


def _with_confidence(label: str) -> tuple[str, str | None]:
    """Splits a class and a confidence from 0 to 1 behind a tab."""
    name, tab, last = label.rpartition("\t")
    number = _number(last) if tab else None
    return (label, None) if number is None or not 0 <= number <= 1 else (name, last)


def _whole(parts: Sequence[str | None]) -> str:
    return " ".join(part for part in parts if part is not None).replace("\t", " ")


def _with_names(columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
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


def _read_columns(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    reading: Reading,
    sound: str | None,
) -> Annotations:
    """Reads a table with a row for each event, or for each clip and its classes."""
    source = path.name
    segment = find_column(columns, ("segment_id",))
    clip = reading.audio_column
    if clip is None and find_column(columns, CLIP_NAMES) is None:
        clip = segment
    if clip is None and sound is not None and not find_column(columns, CLIP_NAMES):
        clips: list[str | None] = [sound] * len(next(iter(columns.values())))
    else:
        clip = choose_column(columns, clip, CLIP_NAMES, "audio_column", source)
        clips = [_name(value) for value in columns[clip]]
    if reading.form == "audioset" or (segment is not None and clip == segment):
        clips = videos_of(clips, source)
    label = choose_column(
        columns, reading.label_column, EVENT_NAMES, "label_column", source
    )
    times = find_event_times(columns, source)
    if times is None and plain_name(label) not in PLURAL_NAMES:
        logger.warning(
            "%s has no columns of times, such as onset and offset, so its labels are "
            "read as those of whole clips",
            source,
        )
    starts, ends = _times(columns, times, source, reading.unit, len(clips))
    labels, scores = _labels(columns[label], label), _scores(columns, source)
    return Annotations(clips, labels, starts, ends, scores, is_weak=times is None)


def _read_raven(
    path: Path, columns: Mapping[str, Sequence[Any]], reading: Reading, sound: str
) -> Annotations:
    """Reads a selection table, each selection once: every view repeats it.

    If sounds are opened together, the begin time of a selection counts from the start
    of the first, and its file offset from the start of its own.
    """
    source = path.name
    clip = reading.audio_column or find_column(columns, ("begin_file", "begin_path"))
    rows = len(next(iter(columns.values())))
    clips: list[str | None] = [sound] * rows
    if clip is not None:
        clip = choose_column(columns, clip, CLIP_NAMES, "audio_column", source)
        clips = [_name(value) for value in columns[clip]]
    usual = (*SPECIES_NAMES, *EVENT_NAMES)
    label = choose_column(columns, reading.label_column, usual, "label_column", source)
    labels = _labels(columns[label], label)
    times = find_event_times(columns, source)
    if times is None:
        raise ValueError(f"{source} has no columns Begin Time (s) and End Time (s)")
    starts, ends = _times(columns, times, source, reading.unit, rows)
    offset = find_column(columns, ("file_offset",))
    if offset is not None:
        offsets = _seconds(columns[offset], offset, source, UNITS[reading.unit or "s"])
        for row, at in enumerate(offsets):
            start, end = starts[row], ends[row]
            if start is not None and end is not None and at is not None:
                starts[row], ends[row] = at, at + (end - start)
    elif len({*clips}) > 1:
        logger.warning(
            "%s names %d files and has no column File Offset (s), so begin times are "
            "read as counted from the start of each file",
            source,
            len({*clips}),
        )
    selection = find_column(columns, ("selection",))
    numbers = columns[selection] if selection else range(rows)
    names = map(tuple, labels)
    first: dict[Any, int] = {}
    for row, key in enumerate(zip(numbers, clips, starts, ends, names, strict=True)):
        first.setdefault(str(key), row)
    found = (clips, labels, starts, ends, _scores(columns, source))
    kept: list[Any] = [[values[row] for row in first.values()] for values in found]
    return Annotations(*kept)


def videos_of(clips: Sequence[str | None], source: str) -> list[str | None]:
    """Returns the YouTube id of each segment, or its own id if a video has several.

    Example
    -------
    >>> videos_of(["b0RFKhbpFJA_30000", "b0RFKhbpFJA_30000", None], "strong.tsv")
    ['b0RFKhbpFJA', 'b0RFKhbpFJA', None]
    """
    segments = defaultdict(set)
    for name in clips:
        if name is not None:
            segments[youtube_id(name)].add(name)
    several = sorted(video for video, names in segments.items() if len(names) > 1)
    if several:
        logger.warning(
            "%s has several segments of %d videos, which keep their own ids: %s",
            source,
            len(several),
            some_of(several),
        )
    alone = {name: video for video, names in segments.items() for name in names}
    alone |= {name: name for video in several for name in segments[video]}
    return [name and alone[name] for name in clips]


def _name(value: Any) -> str | None:
    """Returns the name of a sound as its writer meant it."""
    text = cell_text(value)
    return None if text is None else of_cell(text)


def _labels(values: Sequence[Any], column: str) -> list[list[str]]:
    plain = [of_cell(each) if isinstance(each, str) else each for each in values]
    return read_labels(plain, column)


def _times(
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
    starts = _seconds(columns[times.start], times.start, source, scale)
    ends = _seconds(columns[name], name, source, scale)
    if times.length:
        ends = [
            None if start is None or length is None else start + length
            for start, length in zip(starts, ends, strict=True)
        ]
    return starts, ends


def _seconds(
    values: Sequence[Any], column: str, source: str, scale: float
) -> list[float | None]:
    numbers = _numbers(values, column, source, NO_TIME)
    if scale == 1:
        return numbers
    return [None if number is None else number / scale for number in numbers]


def _scores(columns: Mapping[str, Sequence[Any]], source: str) -> list[float | None]:
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
        if isinstance(value, str) and "," in value and _number(value) is not None:
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
