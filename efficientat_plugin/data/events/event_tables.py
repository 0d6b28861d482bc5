"""Reads events, the labels that sound event detection learns: classes with times."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from efficientat_plugin.data.events.event_clips import ids_of_clips
from efficientat_plugin.data.events.event_columns import (
    UNITS,
    Annotations,
    found_nothing,
)
from efficientat_plugin.data.events.event_forms import (
    FORMS,
    Reading,
    read_annotations,
    sound_of,
)
from efficientat_plugin.data.events.event_sorting import (
    NO_LABELS,
    EventSorter,
    EventTable,
)
from efficientat_plugin.data.events.event_targets import class_table
from efficientat_plugin.data.folders import is_hidden
from efficientat_plugin.data.labels import LabelTable, most_frequent
from efficientat_plugin.support.files import refuse_special
from efficientat_plugin.support.limits import MAX_ROWS
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

SOFT_THRESHOLD = 0.5  # of annotators, where labels are shares of them
FAR = 10  # times the length of a clip: no rounding, and no sound cut short


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
    label track of one sound, as of Audacity or MAESTRO Real, or its TextGrid, as of
    Praat, named after it. See ``docs/events.md``.

    Arguments
    ---------
    path : str or Path
        A table (CSV, TSV, JSON, JSONL, Parquet), a label track, or a folder with one
        text file (``.txt`` or ``.TextGrid``) for each sound, at any depth.
    form : str
        "auto", "audioset", "dcase", "maestro", "audacity", "raven", "textgrid" or
        "table".
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
        Columns of the sounds' names and of the classes; None: usual names. For a
        TextGrid, ``label_column`` is the name of a tier; None: all tiers.

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
    source = path.name or str(path)
    others: list[str] = []
    if path.is_dir():
        found, others = _read_folder(path, reading)
    else:
        refuse_special(path)
        found = read_annotations(path, reading, None)
    if clip_ids is None and durations is not None:
        clip_ids = durations.keys()
    ids = ids_of_clips(found.clips, clip_ids, source)
    if unit is None:
        _refuse_milliseconds(ids, found, durations or {}, source)
    if min_score is None and found.is_soft and merge:
        min_score = SOFT_THRESHOLD
    table = None if classes is None else class_table(classes)
    sorter = EventSorter(table, durations or {}, min_score)
    for row, clip in enumerate(ids):
        sorter.add(clip, found, row)
    for name in others:
        sorter.leave_out(NO_LABELS, name)
    result = sorter.result(merge)
    _refuse_other_classes(sorter, table, source)
    for each in result.left_out:
        logger.warning("%s: left out %s", source, each)
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
        if path.suffix.lower() in (".txt", ".textgrid")
        and path.is_file()
        and not any(map(is_hidden, path.relative_to(folder).parts))
    ]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no label tracks (.txt or .TextGrid, one for each sound); "
            "name a table to read it"
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
    parts += map(found_nothing, empty)
    return _joined(parts), [*others]


def _joined(parts: Sequence[Annotations]) -> Annotations:
    return Annotations(
        [clip for part in parts for clip in part.clips],
        [labels for part in parts for labels in part.labels],
        [start for part in parts for start in part.starts],
        [end for part in parts for end in part.ends],
        [score for part in parts for score in part.scores],
        is_soft=any(part.is_soft for part in parts),
        is_weak=all(part.is_weak for part in parts),
    )


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
    fitting = [
        (end, seconds)
        for end, seconds in known
        if FAR * seconds < end <= (seconds + 1) * UNITS["ms"]
    ]
    if 2 * len(fitting) > len(known):
        raise ValueError(
            f"{len(fitting)} of {len(known)} events of {source} end far behind their "
            f"sounds, such as at {fitting[0][0]:g} s in one of {fitting[0][1]:g} s, "
            "and would fit in milliseconds; pass unit='ms', or unit='s' if they are "
            "seconds"
        )


def _refuse_other_classes(
    sorter: EventSorter, table: LabelTable | None, source: str
) -> None:
    if table is not None and sorter.unknown and not sorter.num_known:
        raise ValueError(
            f"{source} has events of {most_frequent(sorter.unknown)}, but none of the "
            f"{len(table)} classes, such as {shown(table.mids[0])!r} or "
            f"{shown(table.names[0])!r}; pass other classes, or another label_column"
        )
