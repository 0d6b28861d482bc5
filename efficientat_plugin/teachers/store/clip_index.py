"""Finds the row of a clip by binary search in the sorted ids of a store."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efficientat_plugin.teachers.store.manifest import CLIPS, Manifest

MAX_ID_BYTES = 255  # the index is as wide as the longest id


class ClipIndex:
    """The clip ids of a store, without strings: about 40 bytes for each of AudioSet's.

    Arguments
    ---------
    path : Path
        Folder of the store.
    manifest : Manifest
        Says how much of the store is committed.

    Raises
    ------
    ValueError
        If the list of clips is corrupt, or has a clip twice.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path / CLIPS
        count, length = manifest.count, manifest.clips_bytes
        self.ids = np.empty(0, "S1")  # sorted
        self.order = np.empty(0, np.int64)  # the row of each
        self.line_starts = np.empty(0, np.int64)  # of each row, bytes
        if count:
            widths = self._find_lines(count, length)
            self._sort(self._read_ids(widths, length))

    def __len__(self) -> int:
        return len(self.ids)

    def _find_lines(self, count: int, length: int) -> np.ndarray:
        """Sets the starts of the lines; returns the widths of their ids, bytes."""
        text = np.memmap(self.path, dtype=np.uint8, mode="r", shape=(length,))
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
                f"{self.path} is not {count} lines of a clip id, a tab and a digest, "
                "so it is corrupt; rebuild the store"
            )
        self.line_starts = starts
        return (tabs - starts).astype(np.uint8)

    def _read_ids(self, widths: np.ndarray, length: int) -> np.ndarray:
        # Column by column, to avoid millions of Python strings
        text = np.memmap(self.path, dtype=np.uint8, mode="r", shape=(length,))
        letters = np.zeros((len(widths), int(widths.max())), np.uint8)
        for column in range(letters.shape[1]):
            rows = np.flatnonzero(widths > column)
            letters[rows, column] = text[self.line_starts[rows] + column]
        return letters.view(f"S{letters.shape[1]}")[:, 0]

    def _sort(self, ids: np.ndarray) -> None:
        self.order = np.argsort(ids)
        self.ids = ids[self.order]
        twice = np.flatnonzero(self.ids[1:] == self.ids[:-1])
        if len(twice):
            clip = self.ids[twice[0]].decode(errors="backslashreplace")
            raise ValueError(
                f"{self.path} has clip {clip!r} twice; a clip "
                "has one row, so rebuild the store"
            )

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Returns the row of each clip, [B], int64; -1: not in the store."""
        rows = np.full(len(clip_ids), -1, np.int64)
        if not len(clip_ids) or not len(self):
            return rows
        # numpy would cut ids that are too long or end in NUL, and then find them. They
        # are replaced by the empty id, which no clip has.
        width = self.ids.dtype.itemsize
        queries = [clip_id.encode(errors="surrogatepass") for clip_id in clip_ids]
        queries = [q if len(q) <= width and b"\0" not in q else b"" for q in queries]
        wanted = np.array(queries, dtype=self.ids.dtype)
        places = np.searchsorted(self.ids, wanted)
        places = np.minimum(places, len(self) - 1)
        found = self.ids[places] == wanted
        rows[found] = self.order[places[found]]
        return rows

    def clips(self, start: int, stop: int) -> list[tuple[str, str]]:
        """Returns id and digest of the rows from ``start`` to ``stop``, exclusive."""
        if start >= stop:
            return []
        with open(self.path, "rb") as lines:
            lines.seek(self.line_starts[start], os.SEEK_SET)
            rows = [lines.readline() for _ in range(start, stop)]
        try:
            found = [row.decode().rstrip("\n") for row in rows]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} has a clip that is not UTF-8 ({error.object[:80]!r}), so "
                "it is corrupt; rebuild the store"
            ) from error
        pairs = (line.split("\t") for line in found)
        return [(clip_id, digest) for clip_id, digest in pairs]
