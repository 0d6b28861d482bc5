"""Looks up a teacher's logits, computed beforehand and kept on disk, by clip id.

A store is a folder of three files. ``manifest.json`` describes the logits and says how
much of the other two files is committed. ``logits.f16`` is raw little-endian
``[count, K]``. ``clips.tsv`` has the clip id of each row and, after a tab, the digest
of the samples that were scored (may be empty). Bytes beyond the lengths in the manifest
were never committed, so a job killed at any byte loses its last append and nothing
else.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from efficientat_plugin.contracts import TeacherTarget
from efficientat_plugin.teachers.store.clip_index import ClipIndex
from efficientat_plugin.teachers.store.manifest import LOGITS, map_rows, read_manifest


class LogitsStore:
    """The logits of a teacher, read-only and memory-mapped.

    Opening reads the clip ids into a sorted array of bytes and leaves the logits on
    disk. It pickles as its path, so a worker process opens the files again.

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
    >>> heard = {"sample_rate": 32000, "clip_seconds": 10.0}
    >>> with TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/passt", **about, **heard) as writer:
    ...         writer.append(["a", "b"], torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    ...     store = LogitsStore(f"{folder}/passt")
    ...     store.lookup(["b", "unheard"])
    TeacherTarget(logits=tensor([[ 3., -4.],
            [ 0.,  0.]]), known=tensor([ True, False]), ...)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        # A worker may run in another folder.
        self.path = Path(os.path.abspath(path))
        self.manifest = read_manifest(self.path)
        self._index = ClipIndex(self.path, self.manifest)
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
        return self._index.rows(clip_ids)

    def lookup(self, clip_ids: Sequence[str]) -> TeacherTarget:
        """Returns the teacher's logits of a batch of clips.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B ids, in the store or not.

        Returns
        -------
        target : TeacherTarget
            On the CPU, in float32.
        """
        rows = self.rows(clip_ids)
        known = rows >= 0
        logits = np.zeros((len(rows), self.manifest.num_classes), np.float32)
        logits[known] = self.logits(rows[known])
        return TeacherTarget(torch.from_numpy(logits), torch.from_numpy(known))

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Reads the logits of some rows.

        Arguments
        ---------
        rows : np.ndarray
            [B], from 0 to ``len(store) - 1``.

        Returns
        -------
        logits : np.ndarray
            [B, K], float32.

        Raises
        ------
        OSError
            If the file was cut short since the store was opened.
        """
        self._refuse_cut_file()  # reading missing rows would crash the process
        return self._rows[rows].astype(np.float32)

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
        return self._index.clips(row, row + 1)[0]

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

    def stretch(self, start: int, stop: int) -> tuple[list[str], list[str], np.ndarray]:
        """Returns rows as they are stored, to be copied to another store.

        Arguments
        ---------
        start : int
        stop : int
            Exclusive.

        Returns
        -------
        clip_ids : list[str]
        digests : list[str]
        rows : np.ndarray
            [stop - start, K], float16.
        """
        clips = self._index.clips(start, min(stop, len(self)))
        rows = np.asarray(self._rows[start:stop])
        return [clip for clip, _ in clips], [digest for _, digest in clips], rows
