"""Keeps results next to an output file until it is written, so that a run can resume.

``FILE.parts`` has a JSON line of settings, and then one for each sound. Results are
appended to it, and it is deleted once FILE is written.
"""

import base64
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin import __version__
from efficientat_plugin.cli.inputs import Failures
from efficientat_plugin.support.files import explain_write_errors
from efficientat_plugin.support.locks import lock
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.tagging.base import SoundTagger


class SoundFile(NamedTuple):
    """A file as it was when scored; a new size or time means a new sound."""

    name: str  # absolute path
    size: int  # bytes
    modified_ns: int


def sound_files(paths: Iterable[Path], failures: Failures) -> dict[Path, SoundFile]:
    """Returns the state of files; ``failures`` receives those that are gone."""
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
    """Returns everything, as JSON, that a result depends on besides the sound."""
    settings = {"version": __version__} | tagger.fingerprint() | options
    return json.loads(json.dumps(settings))  # turns tuples into lists


@contextmanager
def kept_beside(
    output: Path, settings: dict[str, Any], dtype: str = "<f4"
) -> "Iterator[KeptResults]":
    """Opens what is kept for ``output``; deletes it if the block, which writes that,
    succeeds.
    """
    path = output.with_name(output.name + ".parts")
    with closing(KeptResults(path, settings, dtype)) as kept:
        yield kept
        path.unlink()


class KeptResults:
    """A file with a row of numbers for each sound.

    Arguments
    ---------
    path : Path
        Created if missing, else resumed from.
    settings : dict
        See ``settings_of``: stored, and compared when a run resumes.
    dtype : str
        Type of the numbers, the same whenever a run resumes.

    Raises
    ------
    ValueError
        If the file has results with other settings, is used by another run, or is not
        such a file.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], dtype: str = "<f4"
    ) -> None:
        self._path, self._dtype = path, dtype
        self.done: dict[SoundFile, int] = {}  # where in the file its line begins
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{shown(path)} is not a file; give another --output")
        with explain_write_errors(path):
            self._locked = open(path, "ab")
        try:
            lock(self._locked)
            self._read(settings)
        except BlockingIOError:
            self.close()
            raise ValueError(
                f"{shown(path)} is in use by another run; wait for it or end it, or "
                "give another --output"
            ) from None
        except BaseException:
            self.close()
            raise

    def add(self, sounds: Sequence[SoundFile], rows: Iterable[NDArray]) -> None:
        """Appends rows [sounds, D], whose D may differ."""
        lines = []
        where = self._path.stat().st_size
        for sound, row in zip(sounds, rows, strict=True):
            values = base64.b64encode(row.astype(self._dtype).tobytes()).decode()
            lines.append(json.dumps([*sound, values]).encode() + b"\n")
            self.done[sound] = where
            where += len(lines[-1])
        self._append(b"".join(lines))

    def rows(self, sounds: Iterable[SoundFile]) -> Iterator[NDArray]:
        """Yields the row [D] of each sound, in order; all of them must be done."""
        with open(self._path, "rb") as file:
            for sound in sounds:
                file.seek(self.done[sound])
                yield _parsed(file.readline(), self._dtype)[1]

    def close(self) -> None:
        """Releases the file, so that another run may resume from it."""
        self._locked.close()

    def _read(self, settings: dict[str, Any]) -> None:
        """Finds the sounds that are done, and removes a line that was cut short."""
        header = json.dumps(settings).encode() + b"\n"
        where = 0
        with open(self._path, "rb") as file:
            for line in file:
                if where == 0 and line != header and not header.startswith(line):
                    self._refuse(line, settings)
                if not line.endswith(b"\n"):
                    break
                try:
                    self.done |= {_parsed(line, self._dtype)[0]: where} if where else {}
                except (ValueError, TypeError, RecursionError):
                    pass  # the line is corrupt; its sound is scored again
                where += len(line)
        os.truncate(self._path, where)
        if not where:
            self._append(header)

    def _refuse(self, line: bytes, settings: dict[str, Any]) -> None:
        """Raises a ``ValueError`` for a file that begins with another line."""
        try:
            kept = json.loads(line)
            names = sorted(kept.keys() | settings)
        except (ValueError, AttributeError, RecursionError):
            raise ValueError(
                f"{shown(self._path)} does not begin with the settings of a run; "
                "delete it, or give another --output"
            ) from None
        differing = [name for name in names if kept.get(name) != settings.get(name)]
        raise ValueError(
            f"{shown(self._path)} has results of a run with other settings "
            f"({shown(', '.join(differing))[:200]}); delete it, or repeat the options "
            "of that run"
        )

    def _append(self, content: bytes) -> None:
        with explain_write_errors(self._path), open(self._path, "ab") as file:
            file.write(content)


def _parsed(line: bytes, dtype: str) -> tuple[SoundFile, NDArray]:
    name, size, modified_ns, values = json.loads(line)
    row = np.frombuffer(base64.b64decode(values, validate=True), dtype)
    return SoundFile(name, size, modified_ns), row
