"""Writes events as tables of many sounds, or as label tracks of one sound each."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, TextIO

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.clip_ids import ids_of_files
from efficientat_plugin.data.events.event_rows import (
    DECIMALS,
    CsvEventWriter,
    DcaseWriter,
    EventRows,
    decimal,
)
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import cell, path_cell, shown, some_of

HIGH_HZ = 16000  # Raven draws a box up to here: half the sample rate of the models
SRT_UNIT = 1000  # of a second


class EventWriter(Protocol):
    """What writes the events of sounds, one sound after the other."""

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of a sound."""

    def finish(self) -> None:
        """Writes what comes at the end."""


class JsonEventWriter:
    """Writes a JSON list with an object for each event, whose names are unchanged.

    A sound without events has an object without times.

    Arguments
    ---------
    file : TextIO
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._before = file, "[\n"

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of a sound."""
        nothing = dict.fromkeys(CsvEventWriter.HEADER[1:])
        for content in [_content(event) for event in events] or [nothing]:
            self._file.write(self._before + json.dumps({"sound": str(sound)} | content))
            self._before = ",\n"

    def finish(self) -> None:
        """Ends the list."""
        self._file.write("\n]\n" if self._before == ",\n" else "[]\n")


class RavenWriter(EventRows):
    """Writes a selection table of Raven, whose boxes span all frequencies.

    Begin times count from the start of each file. Raven itself counts from the start of
    the first of all files that are open, so open a table of many files with none but
    tools that read ``File Offset (s)``, and write one table for each sound for Raven.

    Arguments
    ---------
    file : TextIO
    """

    HEADER = (
        *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
        *("Low Freq (Hz)", "High Freq (Hz)", "Begin File", "File Offset (s)"),
        *("Label", "Score"),
    )

    def __init__(self, file: TextIO) -> None:
        super().__init__(file, self.HEADER, "\t")
        self._number = 0

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of a sound; one without any has no row."""
        for label, start, end, score in events:
            self._number += 1
            times = (decimal(start), decimal(end))
            box = ("Spectrogram 1", 1, *times, "0.0", f"{HIGH_HZ:.1f}")
            where = (path_cell(sound), times[0])
            content = (cell(label), decimal(score))
            self._rows.writerow([self._number, *box, *where, *content])


class LabelTrackWriter:
    """Writes a label track of Audacity: start, end and class of the events of a sound.

    Arguments
    ---------
    file : TextIO
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of the one sound."""
        for label, start, end, _ in events:
            print(f"{start:.6f}\t{end:.6f}\t{shown(label)}", file=self._file)

    def finish(self) -> None:
        """A label track has no end of its own."""


class SrtWriter:
    """Writes subtitles (SubRip), which players show over a video of the sound.

    Arguments
    ---------
    file : TextIO

    Example
    -------
    >>> import sys
    >>> SrtWriter(sys.stdout).write("a.wav", [Event("Dog", 0.5, 3661.0)])
    1
    00:00:00,500 --> 01:01:01,000
    Dog
    <BLANKLINE>
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._number = file, 0

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of the one sound."""
        for label, start, end, _ in events:
            self._number += 1
            begin = round(start * SRT_UNIT)
            behind = max(round(end * SRT_UNIT), begin + 1)
            text = shown(label).replace("-->", "->")
            times = f"{_clock(begin)} --> {_clock(behind)}"
            print(f"{self._number}\n{times}\n{text}\n", file=self._file)

    def finish(self) -> None:
        """Subtitles have no end of their own."""


def _content(event: Event) -> dict[str, object]:
    return {
        "start_seconds": round(float(event.start_seconds), DECIMALS),
        "end_seconds": round(float(event.end_seconds), DECIMALS),
        "label": event.label,
        "score": None if event.score is None else round(float(event.score), DECIMALS),
    }


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"


# Tables that name their sounds, and files for one sound each
EVENT_TABLES = {
    "csv": CsvEventWriter,
    "json": JsonEventWriter,
    "dcase": DcaseWriter,
    "raven": RavenWriter,
}
EVENT_TRACKS = {"audacity": LabelTrackWriter, "srt": SrtWriter}
EVENT_FORMATS: Mapping[str, type] = EVENT_TABLES | EVENT_TRACKS
SUFFIXES = {
    "csv": ".csv",
    "json": ".json",
    "dcase": ".tsv",
    "raven": ".selections.txt",
    "audacity": ".txt",
    "srt": ".srt",
}


def write_events(
    events: Mapping[str, Iterable[Event]],
    path: str | Path,
    form: str,
    per_sound: bool = False,
) -> list[Path]:
    """Writes the events of sounds in one file, or in a file for each sound.

    Every file is written completely or not at all. ``read_events`` reads every format
    but SRT; times and scores have 6 decimals.

    Arguments
    ---------
    events : mapping
        Events by the name of their sound; a sound may have none.
    path : str or Path
        The file; or, with ``per_sound``, the folder, which is made if there is none.
    form : str
        "csv", "json", "dcase" or "raven", tables of any number of sounds; or "audacity"
        or "srt", which hold one sound.
    per_sound : bool
        True: a file for each sound, named after it and in the same folders.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        If there is no such format, or it cannot hold as many sounds; or if two sounds
        would be written to one file.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> paths = write_events(
    ...     {"a.wav": [Event("Dog", 0.5, 1)]}, folder, "audacity", True
    ... )
    >>> paths[0].name, paths[0].read_text()
    ('a.txt', '0.500000\\t1.000000\\tDog\\n')
    """
    if form not in EVENT_FORMATS:
        raise ValueError(f"form={form!r} must be one of {', '.join(EVENT_FORMATS)}")
    if per_sound:
        files = files_of_sounds(events, Path(path), SUFFIXES[form])
        for sound, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_file({sound: events[sound]}, file, form)
        return [*files.values()]
    if form in EVENT_TRACKS and len(events) != 1:
        raise ValueError(
            f"a file of the format {form} holds one sound, not {len(events)}; write a "
            f"file for each sound, or one of {', '.join(EVENT_TABLES)}"
        )
    _write_file(events, Path(path), form)
    return [Path(path)]


def _write_file(events: Mapping[str, Iterable[Event]], path: Path, form: str) -> None:
    with atomic_file(path) as file:
        writer: EventWriter = EVENT_FORMATS[form](file)
        for sound, each in events.items():
            writer.write(sound, each)
        writer.finish()


def files_of_sounds(
    sounds: Iterable[str], folder: Path, suffix: str
) -> dict[str, Path]:
    """Names a file in a folder after each sound, wherever the sound itself is.

    Raises
    ------
    ValueError
        If two sounds would have one file.

    Example
    -------
    >>> files = files_of_sounds(["b/a.wav", "../../c.mp3"], Path("out"), ".txt")
    >>> [path.as_posix() for path in files.values()]
    ['out/b/a.txt', 'out/c.txt']
    """
    names = list(sounds)
    files = {
        name: folder / (_inside(stem) + suffix)
        for name, stem in zip(names, ids_of_files(names), strict=True)
    }
    by_file: dict[str, list[str]] = {}
    for name, file in files.items():
        # Some disks have one file for both cases
        by_file.setdefault(str(file).casefold(), []).append(name)
    if twice := [names for names in by_file.values() if len(names) > 1]:
        raise ValueError(
            f"the sounds {some_of(twice[0])} would be written to one file; rename one, "
            "or write one table of all sounds"
        )
    return files


def _inside(name: str) -> str:
    """Returns a path that leads out of no folder, and hides nothing."""
    plain = os.path.splitdrive(name.replace("\\", "/"))[1]
    parts = [shown(part) for part in plain.split("/") if part.strip(". ")]
    return "/".join(part.lstrip(".") for part in parts) or "sound"
