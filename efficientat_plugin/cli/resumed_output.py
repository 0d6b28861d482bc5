"""Keeps results in parts until one file is written, so that a run can resume."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin import __version__
from efficientat_plugin.cli.inputs import Failures
from efficientat_plugin.support.files import atomic_file, explain_write_errors
from efficientat_plugin.support.locks import LOCK_FILE, lock_folder
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.tagging.base import SoundTagger

PART_SOUNDS = 500  # a part is written after this many sounds,
PART_SECONDS = 60.0  # or after this time, whichever comes first
SETTINGS, PARTS = "settings.json", "part-*.npz"
OWN = (LOCK_FILE, SETTINGS, PARTS, f".{SETTINGS}-*.part", f".{PARTS}-*.part")


class SoundFile(NamedTuple):
    """A file as it was when scored; a new size or time means a new sound."""

    name: str  # absolute path
    size: int  # bytes
    modified_ns: int


def sound_files(paths: Iterable[Path], failures: Failures) -> dict[Path, SoundFile]:
    """Returns the path, size and time of files, without reading them.

    Arguments
    ---------
    paths : iterable of Path
    failures : Failures
        Receives files that are gone.
    """
    files = {}
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            failures.add(path, error.strerror)
        else:
            name = os.path.abspath(path)
            files[path] = SoundFile(name, state.st_size, state.st_mtime_ns)
    return files


def settings_of(tagger: "SoundTagger", **options: Any) -> dict[str, Any]:
    """Returns everything that a result depends on besides the sound.

    Arguments
    ---------
    tagger : SoundTagger
    **options
        Options of the command.

    Returns
    -------
    dict
        Serialisable as JSON.
    """
    return {"version": __version__} | tagger.fingerprint() | options


@contextmanager
def parts_beside(output: Path, settings: dict[str, Any]) -> "Iterator[ResultParts]":
    """Opens the parts of ``output``; deletes them once it is written, else keeps them.

    Arguments
    ---------
    output : Path
        The file that is written within the block.
    settings : dict
        See ``settings_of``.

    Yields
    ------
    ResultParts
    """
    folder = output.with_name(output.name + ".parts")
    with closing(ResultParts(folder, settings)) as parts:
        try:
            yield parts
        except BaseException:
            parts.flush()
            raise
        parts.remove()


class ResultParts:
    """A folder with a row for each sound, in parts that are each written atomically.

    Arguments
    ---------
    folder : Path
        Created if missing, else resumed from.
    settings : dict
        All that results depend on: stored, and compared when a run resumes.

    Raises
    ------
    ValueError
        If the folder has results with other settings, is used by another run, or
        contains foreign files.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.done: dict[SoundFile, tuple[Path, int]] = {}  # part, row
        self._new: list[tuple[SoundFile, NDArray[np.float32]]] = []
        self._begun = time.monotonic()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{shown(folder)} is not a folder; give another --output")
        with explain_write_errors(folder):
            folder.mkdir(exist_ok=True)
        self._lock = lock_folder(folder, "give another --output")
        try:
            self._refuse_others()
            for unfinished in folder.glob("*.part"):
                unfinished.unlink()
            with explain_write_errors(folder):
                self._check_settings(settings)
            for part in sorted(folder.glob(PARTS)):
                self._read_names(part)
        except BaseException:
            self.close()
            raise

    def add(self, sounds: Sequence[SoundFile], rows: NDArray[np.float32]) -> None:
        """Adds rows [sounds, D], which are kept in the same part."""
        self._new += zip(sounds, rows, strict=True)
        is_old = time.monotonic() - self._begun > PART_SECONDS
        if is_old or len(self._new) >= PART_SOUNDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows added since the last part."""
        self._begun = time.monotonic()
        if not self._new:
            return
        sounds = [sound for sound, _ in self._new]
        part = self._next_part()
        with explain_write_errors(self.folder), atomic_file(part, "wb") as file:
            np.savez(
                file,
                names=np.array([sound.name for sound in sounds]),
                sizes=np.array([sound.size for sound in sounds], np.int64),
                modified_ns=np.array([sound.modified_ns for sound in sounds], np.int64),
                results=np.stack([row for _, row in self._new]),
            )
        self.done |= {sound: (part, row) for row, sound in enumerate(sounds)}
        self._new = []

    def rows(self, sounds: Iterable[SoundFile]) -> Iterator[NDArray[np.float32]]:
        """Yields the row [D] of each sound, in order; all of them must be done."""
        self.flush()

        @lru_cache(maxsize=8)  # parts of several runs may alternate
        def results_of(part: Path) -> NDArray[np.float32]:
            with np.load(part) as content:
                return np.asarray(content["results"])

        for sound in sounds:
            part, row = self.done[sound]
            yield results_of(part)[row]

    def remove(self) -> None:
        """Deletes the parts, once the output file is written."""
        for part in self.folder.glob(PARTS):
            part.unlink()
        (self.folder / SETTINGS).unlink()  # last: without it, parts cannot be resumed
        (self.folder / LOCK_FILE).unlink(missing_ok=True)
        with suppress(OSError):  # another run has just begun
            self.folder.rmdir()

    def close(self) -> None:
        """Releases the folder, so that another run may resume from it."""
        self._lock.release()

    def _refuse_others(self) -> None:
        for file in self.folder.iterdir():
            if not any(file.match(pattern) for pattern in OWN):
                raise ValueError(
                    f"{shown(self.folder)} contains {shown(file.name)}, which no run "
                    "writes there; give another --output"
                )

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not any(self.folder.glob(PARTS)):
            with atomic_file(path) as file:
                json.dump(settings, file, indent=1)
            return
        is_there = path.is_file()
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if is_there else {}
        except (ValueError, RecursionError):
            kept = None
        if not isinstance(kept, dict):
            raise ValueError(
                f"{shown(path)} is corrupt, so the settings of the results are "
                "unknown; delete the folder"
            )
        # JSON turns tuples into lists
        settings = json.loads(json.dumps(settings))
        differing = [
            name
            for name in sorted(kept.keys() | settings)
            if kept.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{shown(self.folder)} has results of a run with other settings "
                f"({shown(', '.join(differing))[:200]}); delete the folder, or repeat "
                "the options of that run"
            )

    def _read_names(self, part: Path) -> None:
        try:
            # Opened here, because numpy leaves an unreadable file open.
            with open(part, "rb") as file, np.load(file) as content:
                columns = [content[name] for name in ("names", "sizes", "modified_ns")]
                results = content["results"]  # read to check that it is complete
            rows = zip(*(column.tolist() for column in columns), strict=True)
            numbered = zip(range(len(results)), rows, strict=True)
            done = {SoundFile(*values): (part, row) for row, values in numbered}
        except Exception:  # a corrupt archive can raise almost anything
            part.unlink()  # its sounds are scored again
            return
        self.done |= done

    def _next_part(self) -> Path:
        numbers = [
            int(part.stem.removeprefix("part-")) for part in self.folder.glob(PARTS)
        ]
        return self.folder / f"part-{max(numbers, default=-1) + 1:06d}.npz"
