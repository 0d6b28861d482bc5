"""Embeddings on their way to one file, kept in parts so that a killed run goes on."""

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.cli.outputs import written_aside
from efficientat_plugin.locks import FolderLock
from efficientat_plugin.plain_text import shown

PART_SOUNDS = 500  # a part is written after so many sounds,
PART_SECONDS = 60.0  # or after so long, whichever comes first


class SoundFile(NamedTuple):
    """A file as it was when it was heard; another size or time means another sound."""

    name: str
    size: int  # bytes
    modified_ns: int

    @classmethod
    def of(cls, path: Path, folder: Path) -> "SoundFile":
        """What is known of a file without reading it."""
        state = path.stat()
        name = path.relative_to(folder).as_posix()
        return cls(name, state.st_size, state.st_mtime_ns)


class EmbeddingParts:
    """A folder of embeddings, part by part; each part is whole or not there.

    Arguments
    ---------
    folder : Path
        Made where it is not there, else gone on with.
    settings : dict
        All that embeddings depend on: kept, and compared when a run goes on.

    Raises
    ------
    ValueError
        For a folder with embeddings of other settings, and one that another run fills.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.done: dict[SoundFile, tuple[Path, int]] = {}  # part, row
        self._new: list[tuple[SoundFile, NDArray[np.float32]]] = []
        self._begun = time.monotonic()
        folder.mkdir(exist_ok=True)
        try:
            self._lock = FolderLock(folder)
        except BlockingIOError:
            raise ValueError(
                f"{shown(folder)} is being filled by another run; wait for it or end "
                "it, or give another --output"
            ) from None
        try:
            for unfinished in folder.glob("*.part"):
                unfinished.unlink()
            self._check_settings(settings)
            for part in sorted(folder.glob("part-*.npz")):
                self._read_names(part)
        except BaseException:
            self.close()
            raise

    def add(self, sound: SoundFile, embedding: NDArray[np.float32]) -> None:
        """One more; [D]."""
        self._new.append((sound, embedding))
        is_old = time.monotonic() - self._begun > PART_SECONDS
        if is_old or len(self._new) >= PART_SOUNDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last part."""
        self._begun = time.monotonic()
        if not self._new:
            return
        sounds = [sound for sound, _ in self._new]
        part = self._next_part()
        with written_aside(part) as unfinished, open(unfinished, "wb") as file:
            np.savez(
                file,
                names=np.array([sound.name for sound in sounds]),
                sizes=np.array([sound.size for sound in sounds], np.int64),
                modified_ns=np.array([sound.modified_ns for sound in sounds], np.int64),
                embeddings=np.stack([embedding for _, embedding in self._new]),
            )
            file.flush()
            os.fsync(file.fileno())
        self.done |= {sound: (part, row) for row, sound in enumerate(sounds)}
        self._new = []

    def gather(self, sounds: Iterable[SoundFile]) -> NDArray[np.float32]:
        """[sounds, D], in their order; all of them must be done."""
        rows_of: dict[Path, list[tuple[int, int]]] = {}
        number = -1
        for number, sound in enumerate(sounds):
            part, row = self.done[sound]
            rows_of.setdefault(part, []).append((number, row))
        gathered = np.zeros((0, 0), np.float32)
        for part, rows in rows_of.items():
            with np.load(part) as content:
                embeddings = content["embeddings"]
            if not len(gathered):
                gathered = np.zeros((number + 1, embeddings.shape[1]), np.float32)
            numbers, sources = zip(*rows, strict=True)
            gathered[list(numbers)] = embeddings[list(sources)]
        return gathered

    def remove(self) -> None:
        """The file is written: the parts are not needed any more."""
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Another run may go on with what is there."""
        self._lock.release()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not any(self.folder.glob("part-*.npz")):
            with written_aside(path) as unfinished:
                unfinished.write_text(json.dumps(settings, indent=1), encoding="utf-8")
            return
        is_there = path.is_file()
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if is_there else {}
        except (ValueError, RecursionError):
            kept = None
        if not isinstance(kept, dict):
            raise ValueError(
                f"{shown(path)} is damaged, so that nobody knows of what settings the "
                "embeddings are; delete the folder"
            )
        # As JSON has it, where a tuple is a list
        settings = json.loads(json.dumps(settings))
        differing = [
            name
            for name in sorted(kept.keys() | settings)
            if kept.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{shown(self.folder)} holds embeddings that differ in "
                f"{shown(', '.join(differing))[:200]}; delete the folder, or give the "
                "options of the run that it is of"
            )

    def _read_names(self, part: Path) -> None:
        try:
            # numpy leaves a file open that it opened and cannot read.
            with open(part, "rb") as file, np.load(file) as content:
                columns = [content[name] for name in ("names", "sizes", "modified_ns")]
                embeddings = content["embeddings"]  # read to see that it is whole
            rows = zip(*(column.tolist() for column in columns), strict=True)
            numbered = zip(range(len(embeddings)), rows, strict=True)
            done = {SoundFile(*values): (part, row) for row, values in numbered}
        except Exception:  # of a damaged archive, nearly anything
            part.unlink()  # its sounds are heard again
            return
        self.done |= done

    def _next_part(self) -> Path:
        numbers = [
            int(part.stem.removeprefix("part-"))
            for part in self.folder.glob("part-*.npz")
        ]
        return self.folder / f"part-{max(numbers, default=-1) + 1:06d}.npz"
