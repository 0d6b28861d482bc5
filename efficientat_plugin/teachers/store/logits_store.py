"""Looks up a teacher's logits, computed beforehand and kept on disk, by clip id.

A store is a folder of three files. ``manifest.json`` describes the logits and says how
much of the other two files is committed. ``logits.f16`` is raw little-endian
``[count, K]``, or ``[count, K, T']`` of frames, where K more of the whole clip may
follow those of each clip's frames. ``clips.tsv`` has the clip id of each row and, after
a tab, the digest of the samples that were scored (may be empty). Bytes beyond the
lengths in the manifest were never committed, so a job killed at any byte loses its last
append and nothing else.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from efficientat_plugin.contracts import TeacherTarget
from efficientat_plugin.teachers.store.manifest import (
    CLIPS,
    LOGITS,
    Manifest,
    map_rows,
    read_manifest,
)

MAX_ID_BYTES = 255  # of a clip id or digest: the arrays are as wide as the longest one
MAX_LINE_BYTES = 2 * MAX_ID_BYTES + 2
LINES_AT_ONCE = 1 << 16
NUMBERS_AT_ONCE = 1 << 22  # read to sum up rows: 16 MB in float32


class LogitsStore:
    """The logits of a teacher, read-only and memory-mapped.

    Opening reads the clip ids and digests into arrays of bytes, about 40 bytes for each
    of AudioSet's clips, and leaves the logits on disk. It pickles as its path, so a
    worker process opens the files again.

    Arguments
    ---------
    path : str or Path
        Folder of the store.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If the store is corrupt.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> from efficientat_plugin.teachers.store.writer import StoreWriter
    >>> about = {"teacher": "passt", "labels_sha256": "0" * 64, "num_classes": 2}
    >>> about |= {"sample_rate": 32000, "clip_seconds": 10.0}
    >>> with TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/passt", **about) as writer:
    ...         writer.append(["a", "b"], torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    ...     store = LogitsStore(f"{folder}/passt")
    ...     store.lookup(["b", "unknown"])
    TeacherTarget(logits=tensor([[ 3., -4.],
            [ 0.,  0.]]), known=tensor([ True, False]), ...)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        # A worker may run in another folder.
        self.path = Path(os.path.abspath(path))
        self.manifest = read_manifest(self.path)
        self._ids, self._digests = _read_clips(self.path / CLIPS, self.manifest)
        self._order = np.argsort(self._ids)
        in_order = self._ids[self._order]
        repeated = in_order[1:][in_order[1:] == in_order[:-1]]
        if len(repeated):
            raise ValueError(
                f"{self.path / CLIPS} has clip {repeated[0].decode()!r} twice; a clip "
                "has one row, so rebuild the store"
            )
        self._rows = map_rows(self.path, self.manifest)

    def __len__(self) -> int:
        return self.manifest.count

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and bool(self.rows([clip_id])[0] >= 0)

    def __repr__(self) -> str:
        return f"LogitsStore({str(self.path)!r}), {len(self)} clips"

    def __reduce__(self) -> tuple:
        return type(self), (str(self.path),)

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Returns the row of each clip.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B ids, in the store or not, with or without repetitions.

        Returns
        -------
        rows : np.ndarray
            [B], int64; -1: not in the store.
        """
        if isinstance(clip_ids, str) or not all(isinstance(i, str) for i in clip_ids):
            raise ValueError(
                f"clip_ids={str(clip_ids)[:80]!r} must be a list of strings; "
                "convert the ids of the clips to str"
            )
        rows = np.full(len(clip_ids), -1, np.int64)
        if not len(clip_ids) or not len(self):
            return rows
        # numpy would cut ids that are too long or end in NUL, and then find them. They
        # are replaced by the empty id, which no clip has.
        width = self._ids.dtype.itemsize
        queries = [clip_id.encode(errors="surrogatepass") for clip_id in clip_ids]
        queries = [q if len(q) <= width and b"\0" not in q else b"" for q in queries]
        wanted = np.array(queries, dtype=self._ids.dtype)
        places = np.searchsorted(self._ids, wanted, sorter=self._order)
        nearest = self._order[np.minimum(places, len(self) - 1)]
        found = self._ids[nearest] == wanted
        rows[found] = nearest[found]
        return rows

    def lookup(self, clip_ids: Sequence[str]) -> TeacherTarget:
        """Returns the teacher's logits of a batch of clips.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B ids, in the store or not.

        Returns
        -------
        target : TeacherTarget
            [B, K], or [B, K, T'] of frames; on the CPU, in float32.
        """
        rows = self.rows(clip_ids)
        known = torch.from_numpy(rows >= 0)
        logits = self._read(rows[rows >= 0])
        if not known.all():  # else, another copy would cost as much as reading
            of_known = logits
            logits = torch.zeros(len(rows), *self.manifest.shape)
            logits[known] = of_known
        return TeacherTarget(logits, known)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Reads the logits of some rows.

        Arguments
        ---------
        rows : np.ndarray
            [B], from 0 to ``len(store) - 1``.

        Returns
        -------
        logits : np.ndarray
            [B, K], or [B, K, T'] of frames; float32.

        Raises
        ------
        OSError
            If the file was cut short since the store was opened.
        """
        return self._read(rows).numpy()

    def _read(self, rows: np.ndarray) -> torch.Tensor:
        self._refuse_cut_file()  # reading missing rows would crash the process
        shape = self.manifest.shape
        numbers = self._rows[rows].astype(np.float16, copy=False)  # whole rows: faster
        # torch converts many times faster than numpy does
        found = torch.from_numpy(numbers)[:, : math.prod(shape)].float()
        return found.reshape(len(rows), *shape)

    def weak_logits(self, rows: np.ndarray) -> np.ndarray | None:
        """Reads the logits of whole clips that a teacher of frames also computed.

        Arguments
        ---------
        rows : np.ndarray
            [B], from 0 to ``len(store) - 1``.

        Returns
        -------
        logits : np.ndarray or None
            [B, K], float32; None: the store has none.

        Raises
        ------
        OSError
            If the file was cut short since the store was opened.
        """
        if not self.manifest.has_weak:
            return None
        self._refuse_cut_file()
        return self._rows[rows, math.prod(self.manifest.shape) :].astype(np.float32)

    def clip_logits(self, rows: np.ndarray) -> np.ndarray:
        """Reads one logit for each class of a clip: of frames, the largest.

        The weak logits of a teacher of frames are not used, since few are trained on
        weak labels.

        Arguments
        ---------
        rows : np.ndarray
            [B], from 0 to ``len(store) - 1``.

        Returns
        -------
        logits : np.ndarray
            [B, K], float32; where a frame is not finite, NaN.

        Raises
        ------
        OSError
            If the file was cut short since the store was opened.
        """
        if self.manifest.num_frames is None:
            return self.logits(rows)
        largest = np.empty((len(rows), self.manifest.num_classes), np.float32)
        step = max(1, NUMBERS_AT_ONCE // self.manifest.row_numbers)
        for start in range(0, len(rows), step):
            frames = self._read(rows[start : start + step])
            # 0 times a sum of numbers that are not all finite is NaN
            found = frames.amax(dim=2) + 0 * frames.sum(dim=2)
            largest[start : start + step] = found.numpy()
        return largest

    def _refuse_cut_file(self) -> None:
        file, wanted = self.path / LOGITS, self.manifest.logits_bytes
        size = file.stat().st_size if file.exists() else wanted
        if size < wanted:
            raise OSError(
                f"{file} now has only {size} of {wanted} bytes, because something "
                "truncated it while it was open; rebuild the store, or copy it again"
            )

    def clip(self, row: int) -> tuple[str, str]:
        """Returns the clip of a row.

        Arguments
        ---------
        row : int
            From 0 to ``len(store) - 1``.

        Returns
        -------
        clip_id : str
        digest : str
            Digest of the samples that were scored; may be empty.
        """
        if not 0 <= row < len(self):
            raise ValueError(f"row={row} must be from 0 to {len(self) - 1}")
        return self._ids[row].decode(), self._digests[row].decode()

    def digest(self, clip_id: str) -> str:
        """Returns the digest of the samples of a clip that were scored.

        Arguments
        ---------
        clip_id : str
            A clip of the store.

        Returns
        -------
        digest : str
            Empty if none was kept.

        Raises
        ------
        ValueError
            If the clip is not in the store.
        """
        row = int(self.rows([clip_id])[0])
        if row < 0:
            raise ValueError(
                f"clip {clip_id!r} is not in {self.path}; check with `clip_id in store`"
            )
        return self.clip(row)[1]

    def clip_ids(self) -> list[str]:
        """Returns all clip ids, in the order of the rows."""
        return [clip_id.decode() for clip_id in self._ids.tolist()]


def _read_clips(path: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Reads the committed clip ids and digests as arrays of bytes, [count] each."""
    ids, digests = [np.empty(0, "S1")], [np.empty(0, "S1")]
    try:
        with open(path, "rb") as file:
            lines = _lines(file, manifest.clips_bytes)
            # Some lines at a time, to avoid millions of Python strings
            while some := list(itertools.islice(lines, LINES_AT_ONCE)):
                b"".join(some).decode()  # refuses what is not UTF-8
                pairs = [_clip_and_digest(line) for line in some]
                ids.append(np.array([clip_id for clip_id, _ in pairs]))
                digests.append(np.array([digest for _, digest in pairs]))
        if sum(map(len, ids)) != manifest.count:
            raise ValueError("another number of lines")
    except ValueError as error:
        raise ValueError(
            f"{path} is not {manifest.count} lines of a clip id, a tab and a digest "
            f"({error}), so it is corrupt; rebuild the store"
        ) from None
    return np.concatenate(ids), np.concatenate(digests)


def _lines(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """Yields the lines of the first bytes of a file, in pieces if they are too long.

    A sparse file is one line of any length, which would fill the memory.
    """
    while line := file.readline(min(num_bytes, MAX_LINE_BYTES)):
        num_bytes -= len(line)
        yield line


def _clip_and_digest(line: bytes) -> tuple[bytes, bytes]:
    clip_id, tab, digest = line.partition(b"\t")
    if not (clip_id and tab and digest.endswith(b"\n") and b"\t" not in digest):
        raise ValueError(f"such as {line[:80]!r}")
    if len(clip_id) > MAX_ID_BYTES or len(digest) > MAX_ID_BYTES:
        raise ValueError(f"{len(line)} bytes in one of them")
    return clip_id, digest[:-1]
