"""Reads annotated events as somebody wrote them, in any common form."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.columns import (
    PLURAL_NAMES,
    cell_text,
    choose_column,
    find_column,
    plain_name,
)
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.events.event_clips import videos_of
from efficientat_plugin.data.events.event_columns import (
    CLIP_NAMES,
    EVENT_NAMES,
    SPECIES_NAMES,
    UNITS,
    Annotations,
    find_event_times,
    found_nothing,
    labels_in,
    name_in,
    number_in,
    one_row_per_event,
    scores_in,
    seconds_in,
    times_in,
    with_names,
)
from efficientat_plugin.data.events.textgrids import is_textgrid, read_textgrid
from efficientat_plugin.data.table_sources import read_table_file
from efficientat_plugin.data.text_tables import refuse_too_large, text_of
from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

FORMS = (
    *("auto", "audioset", "dcase", "maestro", "audacity"),
    *("raven", "textgrid", "table"),
)
SNIFFED_BYTES = 1 << 16


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
    if form == "textgrid":
        name = sound or sound_of(path.name)
        return read_textgrid(path, name, reading.label_column)
    if form in ("track", "audacity", "maestro"):
        return _read_track(path, form, reading, sound or sound_of(path.name))
    if form == "no selections":
        return found_nothing(sound or sound_of(path.name))
    facts = Facts(audio_column=reading.audio_column, label_column=reading.label_column)
    columns = with_names(read_table_file(path, path.parent, facts).columns)
    if not columns:
        raise ValueError(f"{path} holds nothing but sound, so it has no events")
    if form == "raven" or (reading.form == "auto" and _is_raven(columns)):
        return _read_raven(path.name, columns, reading, sound or sound_of(path.name))
    columns = one_row_per_event(columns, path)
    return _read_columns(path.name, columns, reading._replace(form=form), sound)


def sound_of(name: str) -> str:
    """Returns the name of the sound that a file of labels is named after.

    Example
    -------
    >>> sound_of("a.txt"), sound_of("b.wav.txt"), sound_of("c.Table.1.selections.txt")
    ('a', 'b.wav', 'c')
    """
    suffix = r"\.(txt|tsv|csv|json|jsonl|parquet|textgrid)$"
    stem = re.sub(suffix, "", name, flags=re.I)
    raven = r"(\.Table\.\d+)?(\.BirdNET)?\.selections?(\.table)?$"
    return re.sub(raven, "", stem, flags=re.I)


def _form_of(path: Path, form: str) -> str:
    """Tells a label track, which has no header, and Raven's table from others."""
    if path.suffix.lower() in (".parquet", ".json", ".jsonl", ".ndjson"):
        return form if form != "auto" else "table"
    with open_file(path) as file:
        content = file.read(SNIFFED_BYTES)
    if form == "auto" and is_textgrid(content):
        return "textgrid"
    head = content.decode("utf-8-sig", errors="replace")
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        raise ValueError(
            f"{path} is empty; if somebody looked for events in its sound and found "
            "none, pass form='audacity'"
        )
    fields = lines[0].split("\t")
    if _is_raven(fields):
        return "raven" if len(lines) > 1 else "no selections"
    is_track = None not in map(number_in, _parts(lines[0])[:2])
    return form if form != "auto" else "track" if is_track else "table"


def _is_raven(columns: Iterable[str]) -> bool:
    return {"selection", "begin_time"} <= {plain_name(name) for name in columns}


def _read_track(path: Path, form: str, reading: Reading, sound: str) -> Annotations:
    """Reads the label track of a sound, with confidences if every line has one.

    An Audacity label track has none: a label is all that follows the times.
    """
    rows = _track_rows(path)
    if not rows:
        return found_nothing(sound)
    is_soft = all(row[3] is not None for row in rows)
    if form == "maestro" and not is_soft:
        raise ValueError(
            f"{path} has lines without a confidence from 0 to 1 in a fourth column, "
            "which form='maestro' needs"
        )
    is_soft = is_soft and form != "audacity"
    if not is_soft:
        rows = [(*row[:2], _whole(row[2:]), None) for row in rows]
    starts, ends, labels, scores = zip(*rows, strict=True)
    scale = UNITS[reading.unit or "s"]
    return Annotations(
        [sound] * len(rows),
        [[text] if (text := cell_text(label)) else [] for label in labels],
        seconds_in(starts, "start", path.name, scale),
        seconds_in(ends, "end", path.name, scale),
        [None if score is None else number_in(score) for score in scores],
        is_soft,
    )


def _track_rows(path: Path) -> list[tuple[str, str, str, str | None]]:
    """Reads lines of start, end, class and perhaps a confidence.

    A line that begins with a backslash gives the frequencies of the label before.
    """
    lines = text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    refuse_too_large(path, len(lines), 4)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        start, end, label = _parts(line)
        if number_in(start) is None or number_in(end) is None:
            raise ValueError(
                f"line {number} of {path} is no label: {shown(line)[:80]!r}; a label "
                "track has a start and an end in seconds and a class, separated by tabs"
            )
        rows.append((start, end, *_with_confidence(label)))
    return rows


def _parts(line: str) -> list[str]:
    """Splits a line at tabs, or without any at spaces: start, end and the rest."""
    fields = line.split("\t", 2) if "\t" in line else line.split(None, 2)
    return [*fields, "", "", ""][:3]


def _with_confidence(label: str) -> tuple[str, str | None]:
    """Splits a class and a confidence from 0 to 1 behind a tab."""
    name, tab, last = label.rpartition("\t")
    number = number_in(last) if tab else None
    return (label, None) if number is None or not 0 <= number <= 1 else (name, last)


def _whole(parts: Sequence[str | None]) -> str:
    return " ".join(part for part in parts if part is not None).replace("\t", " ")


def _read_columns(
    source: str,
    columns: Mapping[str, Sequence[Any]],
    reading: Reading,
    sound: str | None,
) -> Annotations:
    """Reads a table with a row for each event, or for each clip and its classes."""
    segment = find_column(columns, ("segment_id",))
    clip = reading.audio_column
    if clip is None and find_column(columns, CLIP_NAMES) is None:
        clip = segment
    if clip is None and find_column(columns, CLIP_NAMES) is None and sound is not None:
        clips: list[str | None] = [sound] * len(next(iter(columns.values())))
    else:
        clip = choose_column(columns, clip, CLIP_NAMES, "audio_column", source)
        clips = [name_in(value) for value in columns[clip]]
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
    starts, ends = times_in(columns, times, source, reading.unit, len(clips))
    labels, scores = labels_in(columns[label], label), scores_in(columns, source)
    return Annotations(clips, labels, starts, ends, scores, is_weak=times is None)


def _read_raven(
    source: str, columns: Mapping[str, Sequence[Any]], reading: Reading, sound: str
) -> Annotations:
    """Reads a selection table, each selection once: every view repeats it.

    If sounds are opened together, the begin time of a selection counts from the start
    of the first, and its file offset from the start of its own.
    """
    clip = reading.audio_column or find_column(columns, ("begin_file", "begin_path"))
    rows = len(next(iter(columns.values())))
    clips: list[str | None] = [sound] * rows
    if clip is not None:
        clip = choose_column(columns, clip, CLIP_NAMES, "audio_column", source)
        clips = [name_in(value) for value in columns[clip]]
    usual = (*SPECIES_NAMES, *EVENT_NAMES)
    label = choose_column(columns, reading.label_column, usual, "label_column", source)
    labels = labels_in(columns[label], label)
    times = find_event_times(columns, source)
    if times is None:
        raise ValueError(f"{source} has no columns Begin Time (s) and End Time (s)")
    starts, ends = times_in(columns, times, source, reading.unit, rows)
    offset = find_column(columns, ("file_offset",))
    if offset is not None:
        offsets = seconds_in(
            columns[offset], offset, source, UNITS[reading.unit or "s"]
        )
        for row, at in enumerate(offsets):
            start, end = starts[row], ends[row]
            if start is None or end is None or at is None:
                continue
            if at != start:  # the end keeps its digits
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
    found = (clips, labels, starts, ends, scores_in(columns, source))
    kept: list[Any] = [[values[row] for row in first.values()] for values in found]
    return Annotations(*kept)
