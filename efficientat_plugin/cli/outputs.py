"""Writes results as a table, JSON lines or CSV, atomically."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import cell, path_cell, shown

if TYPE_CHECKING:
    from efficientat_plugin.contracts import Tag

DECIMALS = 6  # of probabilities and seconds, in JSON lines and CSV


class Finding(NamedTuple):
    """The tags of a sound, or of a window of it."""

    path: Path
    tags: "Sequence[Tag]"
    seconds: tuple[float, float] | None = None  # where the window starts and ends


class TableWriter:
    """Writes a readable table: the name of each sound, then its tags or windows.

    Arguments
    ---------
    file : TextIO
    has_windows : bool
    """

    def __init__(self, file: TextIO, has_windows: bool) -> None:
        self._file, self._has_windows = file, has_windows
        self._path: Path | None = None

    def write(self, finding: Finding) -> None:
        """Writes a finding."""
        if finding.path != self._path:
            self._path = finding.path
            print(shown(finding.path), file=self._file)
        if finding.seconds is not None:
            start, end = finding.seconds
            found = ", ".join(
                f"{shown(tag.name)} {tag.probability:.3f}" for tag in finding.tags
            )
            print(f"  {start:9.2f} {end:9.2f}  {found or '-'}", file=self._file)
            return
        for tag in finding.tags:
            print(f"  {tag.probability:.3f}  {shown(tag.name)}", file=self._file)
        if not finding.tags:
            print("  -", file=self._file)


class JsonLinesWriter:
    """Writes JSON lines: an object per sound or window, with names unchanged.

    Arguments
    ---------
    file : TextIO
    has_windows : bool
    """

    def __init__(self, file: TextIO, has_windows: bool) -> None:
        self._file = file

    def write(self, finding: Finding) -> None:
        """Writes a finding."""
        content: dict[str, object] = {"sound": str(finding.path)}
        if finding.seconds is not None:
            start, end = finding.seconds
            content["start_seconds"] = round(start, DECIMALS)
            content["end_seconds"] = round(end, DECIMALS)
        content["tags"] = [
            tag._asdict() | {"probability": round(tag.probability, DECIMALS)}
            for tag in finding.tags
        ]
        print(json.dumps(content), file=self._file)


class CsvWriter:
    """Writes CSV: a row per class of a sound or window; no cell becomes a formula.

    Arguments
    ---------
    file : TextIO
    has_windows : bool
    """

    def __init__(self, file: TextIO, has_windows: bool) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        where = ["start_seconds", "end_seconds"] if has_windows else []
        self._rows.writerow(["sound", *where, "name", "mid", "probability"])

    def write(self, finding: Finding) -> None:
        """Writes a finding."""
        where = [f"{moment:.{DECIMALS}f}" for moment in finding.seconds or ()]
        for tag in finding.tags:
            chance = f"{tag.probability:.{DECIMALS}f}"
            name, mid = cell(tag.name), cell(tag.mid)
            self._rows.writerow([path_cell(finding.path), *where, name, mid, chance])


FORMATS: dict[str, type[TableWriter] | type[JsonLinesWriter] | type[CsvWriter]] = {
    "table": TableWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
}


def check_target(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raises a ``ValueError`` early if an output file is not suitable.

    Arguments
    ---------
    path : Path
        The file to write.
    suffixes : sequence of str
        Legal suffixes; empty: any but those of sound files.

    Raises
    ------
    ValueError
        For another suffix, and if the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffixes and suffix not in suffixes:
        raise ValueError(
            f"the name of the output file {shown(path)} must end in "
            f"{' or '.join(suffixes)}"
        )
    if suffix in AUDIO_SUFFIXES:
        raise ValueError(
            f"the output file {shown(path)} has the suffix of a sound file; give "
            "another name"
        )
    is_another = path.exists() and not path.is_file()  # a device would be replaced
    if is_another or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"{shown(path)} cannot be written; give a file in an existing folder with "
            "write permission"
        )


@contextmanager
def text_output(path: Path | None) -> Iterator[TextIO]:
    """Opens stdout, or a file that is written completely or not at all."""
    if path is None:
        yield sys.stdout
        return
    with atomic_file(path) as file:
        yield file


def hides_progress(output: Path | None) -> bool:
    """Whether a progress bar would not be visible, or would mix with the results."""
    return not sys.stderr.isatty() or (output is None and sys.stdout.isatty())
