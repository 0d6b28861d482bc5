"""A teacher's logits, made beforehand and kept on disk, found again by clip.

A store is a folder of three files: ``manifest.json`` says whose logits they are and
how much of the other two counts, ``logits.f16`` is raw little-endian ``[count, K]``,
and ``clips.tsv`` names the clip of each row and, after a tab, the digest of the
samples that the teacher heard (may be empty). Whatever lies beyond the lengths in
the manifest was never committed, so a job killed at any byte loses its last append
and nothing else.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from efficientat_plugin.contracts import TeacherTarget

FORMAT, VERSION = "logits store", 1
MANIFEST, LOGITS, CLIPS = "manifest.json", "logits.f16", "clips.tsv"
MAX_ID_BYTES = 255  # the index is as wide as the longest id


@dataclass(frozen=True)
class Manifest:  # no named tuple: those have a method called count
    """Whose logits a store holds, and how much of its files is committed.

    Raises
    ------
    ValueError
        Naming the first field that is not legal.
    """

    teacher: str  # its name
    teacher_sha256: str | None  # digest of its weights
    labels_sha256: str  # digest of the table of class names, in order
    num_classes: int  # K
    sample_rate: int  # of what the teacher heard, Hz
    clip_seconds: float  # the window it heard
    count: int = 0  # rows committed
    logits_bytes: int = 0
    clips_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("teacher", "labels_sha256"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name}={value!r} must be a string, not empty")
        if not isinstance(self.teacher_sha256, str | None):
            raise ValueError(
                f"teacher_sha256={self.teacher_sha256!r} must be a string or None"
            )
        for name, least in [
            ("num_classes", 1),
            ("sample_rate", 1),
            ("count", 0),
            ("logits_bytes", 0),
            ("clips_bytes", 0),
        ]:
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} must be an int of {least} or more")
        seconds = self.clip_seconds
        if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
            raise ValueError(f"clip_seconds={seconds!r} must be above 0 and finite")
        if self.logits_bytes != self.count * self.num_classes * 2:
            raise ValueError(
                f"logits_bytes={self.logits_bytes} is not count={self.count} rows of "
                f"{self.num_classes} classes of 2 bytes"
            )


def file_size(path: Path) -> int:
    """Of a file, bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def read_manifest(path: Path) -> Manifest:
    """The manifest of a store, whose files are at least as long as it promises.

    Arguments
    ---------
    path : Path
        Folder of the store.

    Returns
    -------
    manifest : Manifest

    Raises
    ------
    FileNotFoundError
        When there is no store.
    ValueError
        When the manifest is damaged, of another version, or promises more.
    """
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no logits store at {path}: it must be a folder with {MANIFEST}; make "
            "one with StoreWriter, or set the path to null to do without"
        ) from None
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise ValueError(
            f"{path / MANIFEST} is not the manifest of a logits store, which is JSON "
            f'with "format": "{FORMAT}"; check the path'
        )
    if entries.get("version") != VERSION:
        raise ValueError(
            f"{path} is a store of version {entries.get('version')!r} and only "
            f"version {VERSION} is read here; make it anew or use the release that "
            "wrote it"
        )
    names = [field.name for field in fields(Manifest)]
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(
            f"{path / MANIFEST} lacks {', '.join(missing)}; make the store anew"
        )
    try:
        manifest = Manifest(**{name: entries[name] for name in names})
    except ValueError as error:
        raise ValueError(
            f"{path / MANIFEST} was damaged: {error}; make the store anew"
        ) from None
    for name, length in [
        (LOGITS, manifest.logits_bytes),
        (CLIPS, manifest.clips_bytes),
    ]:
        if file_size(path / name) < length:
            raise ValueError(
                f"{path / name} has {file_size(path / name)} bytes and the manifest "
                f"promises {length}; the copy is incomplete, so copy the store again"
            )
    return manifest


class LogitsStore:
    """The logits of a teacher, read-only and mapped into memory.

    Opening reads the clip ids into a sorted array of bytes and leaves the logits on
    disk. It pickles as its path: a worker process opens the files anew.

    Arguments
    ---------
    path : str or Path
        Folder of the store.

    Raises
    ------
    FileNotFoundError
        When there is no store.
    ValueError
        When there is one that cannot be relied upon.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> from efficientat_plugin.teachers.writer import StoreWriter
    >>> about = {"teacher": "passt", "labels_sha256": "0" * 64, "num_classes": 2}
    >>> heard = {"sample_rate": 32000, "clip_seconds": 10.0}
    >>> with TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/passt", **about, **heard) as writer:
    ...         writer.append(["a", "b"], torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    ...     store = LogitsStore(f"{folder}/passt")
    ...     store.lookup(["b", "unheard"])
    TeacherTarget(logits=tensor([[ 3., -4.],
            [ 0.,  0.]]), known=tensor([ True, False]))
    """

    def __init__(self, path: str | os.PathLike) -> None:
        # A worker may run in another folder.
        self.path = Path(os.path.abspath(path))
        self.manifest = read_manifest(self.path)
        self._sorted_ids, self._order, self._line_starts = self._index_clips()
        shape = (self.manifest.count, self.manifest.num_classes)
        self._logits = (
            np.memmap(self.path / LOGITS, dtype="<f2", mode="r", shape=shape)
            if shape[0]  # an empty file cannot be mapped
            else np.empty(shape, dtype="<f2")
        )

    @classmethod
    def open_or_none(cls, path: str | None) -> "LogitsStore | None":
        """The store at ``path``, or None for None: what a YAML's ``null`` means.

        Arguments
        ---------
        path : str or None
            Folder of the store.

        Returns
        -------
        store : LogitsStore or None
        """
        return None if path is None else cls(path)

    def _index_clips(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids sorted, the row of each, and where each row's line starts, bytes."""
        count, length = self.manifest.count, self.manifest.clips_bytes
        if not count:
            return np.empty(0, "S1"), np.empty(0, np.int64), np.empty(0, np.int64)
        text = np.memmap(self.path / CLIPS, dtype=np.uint8, mode="r", shape=(length,))
        ends = np.flatnonzero(text == ord("\n"))
        tabs = np.flatnonzero(text == ord("\t"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        if not (
            len(ends) == len(tabs) == count
            and ends[-1] == length - 1
            and (starts < tabs).all()
            and (tabs < ends).all()
            and (tabs - starts).max() <= MAX_ID_BYTES
        ):
            raise ValueError(
                f"{self.path / CLIPS} must have {count} lines of a clip id, a tab and "
                "a digest, and has not; it was damaged, so make the store anew"
            )
        # Column by column: no Python string per clip, of which there are millions.
        widths = tabs - starts
        letters = np.zeros((count, widths.max()), np.uint8)
        for column in range(letters.shape[1]):
            rows = np.flatnonzero(widths > column)
            letters[rows, column] = text[starts[rows] + column]
        ids = letters.view(f"S{letters.shape[1]}")[:, 0]
        order = np.argsort(ids)
        ids = ids[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            raise ValueError(
                f"{self.path / CLIPS} has clip {ids[twice[0]].decode()!r} twice; a "
                "clip has one row, so make the store anew"
            )
        return ids, order, starts

    def __len__(self) -> int:
        return self.manifest.count

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and bool(self.rows([clip_id])[0] >= 0)

    def __repr__(self) -> str:
        return f"LogitsStore({str(self.path)!r}), {len(self)} clips"

    def __reduce__(self) -> tuple:
        return type(self), (str(self.path),)

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """The row of each clip.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B of them, known or not, the same one several times if need be.

        Returns
        -------
        rows : np.ndarray
            [B], int64; -1 where the clip is unknown.
        """
        if isinstance(clip_ids, str) or not all(isinstance(i, str) for i in clip_ids):
            raise ValueError(
                f"clip_ids={str(clip_ids)[:80]!r} must be a list of strings; "
                "convert the ids of the clips to str"
            )
        rows = np.full(len(clip_ids), -1, np.int64)
        if not len(clip_ids) or not len(self):
            return rows
        # What is too long or ends in NUL would be cut to fit, and then found; no id
        # is empty, so the empty one never is.
        width = self._sorted_ids.dtype.itemsize
        queries = [clip_id.encode(errors="surrogatepass") for clip_id in clip_ids]
        queries = [q if len(q) <= width and b"\0" not in q else b"" for q in queries]
        wanted = np.array(queries, dtype=self._sorted_ids.dtype)
        places = np.searchsorted(self._sorted_ids, wanted)
        places = np.minimum(places, len(self) - 1)
        found = self._sorted_ids[places] == wanted
        rows[found] = self._order[places[found]]
        return rows

    def lookup(self, clip_ids: Sequence[str]) -> TeacherTarget:
        """What the teacher says of a batch of clips.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B of them, known or not.

        Returns
        -------
        target : TeacherTarget
            On the CPU, logits in float32.
        """
        rows = self.rows(clip_ids)
        known = rows >= 0
        logits = np.zeros((len(rows), self.manifest.num_classes), np.float32)
        logits[known] = self._logits[rows[known]]
        return TeacherTarget(torch.from_numpy(logits), torch.from_numpy(known))

    def clip(self, row: int) -> tuple[str, str]:
        """Whose row this is.

        Arguments
        ---------
        row : int
            From 0 to ``len(store) - 1``.

        Returns
        -------
        clip_id : str
        digest : str
            Of the samples that the teacher heard; may be empty.
        """
        if not 0 <= row < len(self):
            raise ValueError(f"row={row} must be from 0 to {len(self) - 1}")
        with open(self.path / CLIPS, "rb") as clips:
            clips.seek(self._line_starts[row])
            clip_id, digest = clips.readline().decode().rstrip("\n").split("\t")
        return clip_id, digest

    def digest(self, clip_id: str) -> str:
        """Digest of the samples that the teacher heard of a clip.

        Arguments
        ---------
        clip_id : str
            A clip of the store.

        Returns
        -------
        digest : str
            Empty when none was kept.

        Raises
        ------
        ValueError
            When the clip is unknown.
        """
        row = int(self.rows([clip_id])[0])
        if row < 0:
            raise ValueError(
                f"clip {clip_id!r} is not in {self.path}; ask `clip_id in store` first"
            )
        return self.clip(row)[1]
