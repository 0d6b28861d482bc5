"""Merges the parts of a store that several processes wrote.

The parts of a store ``s`` are the stores ``s.parts/0``, ``s.parts/1`` and so on. Rows
are committed to the whole before their part is removed, and clips that are already in
the whole are skipped, so a merge killed at any point loses and duplicates nothing.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

ROWS_AT_ONCE = 8192
MERGED = ".merged"  # suffix of a part that is merged and being removed


def parts_folder(path: str | os.PathLike) -> Path:
    """Returns the folder of a store's parts while several processes write it."""
    path = Path(os.path.abspath(path))
    return path.with_name(f"{path.name}.parts")


def part_path(path: str | os.PathLike, rank: int) -> Path:
    """Returns the part that a process writes."""
    return parts_folder(path) / str(rank)


def merge_parts(path: str | os.PathLike, **about: Any) -> int:
    """Merges the parts of a store, from this run or a killed one; creates the store.

    Arguments
    ---------
    path : str or Path
        Folder of the store.
    **about
        Arguments of ``StoreWriter`` that describe the logits.

    Returns
    -------
    int
        Number of clips added to the store.

    Raises
    ------
    ValueError
        If the store or a part is another teacher's, or is being written.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> about = {"teacher": "passt", "labels_sha256": "0" * 64, "num_classes": 1}
    >>> about |= {"sample_rate": 32000, "clip_seconds": 10.0}
    >>> with TemporaryDirectory() as folder:
    ...     for rank, clip in enumerate("ab"):
    ...         with StoreWriter(part_path(f"{folder}/s", rank), **about) as writer:
    ...             writer.append([clip], [[float(rank)]])
    ...     merge_parts(f"{folder}/s", **about)
    2
    """
    folder = parts_folder(path)
    with StoreWriter(path, **about) as whole:
        before = len(whole)
        if folder.is_dir():
            for part in sorted(folder.iterdir(), key=lambda part: part.name.zfill(9)):
                if part.suffix != MERGED:
                    _take_up(whole, part, about)
                    # With half of its files gone it would be refused as corrupt.
                    part = part.rename(part.with_suffix(MERGED))
                shutil.rmtree(part)
            folder.rmdir()
        return len(whole) - before


def _take_up(whole: StoreWriter, part: Path, about: dict[str, Any]) -> None:
    with StoreWriter(part, **about):  # checks the teacher and locks the part
        store = LogitsStore(part)
        for start in range(0, len(store), ROWS_AT_ONCE):
            whole.absorb(*store.stretch(start, start + ROWS_AT_ONCE))
