"""Several processes write one store: each a part of it, put together afterwards.

The parts of a store ``s`` are the stores ``s.parts/0``, ``s.parts/1`` and so on. Rows
are committed to the whole before their part goes, and a clip that the whole knows is
passed over, so that a merge killed at any point loses nothing and doubles nothing.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

ROWS_AT_ONCE = 8192
MERGED = ".merged"  # ends the name of a part that is in the whole, half removed


def parts_folder(path: str | os.PathLike) -> Path:
    """Where the parts of a store are while it is written by several processes."""
    path = Path(os.path.abspath(path))
    return path.with_name(f"{path.name}.parts")


def part_path(path: str | os.PathLike, rank: int) -> Path:
    """The part that a process writes."""
    return parts_folder(path) / str(rank)


def merge_parts(path: str | os.PathLike, **about: Any) -> int:
    """Puts the parts of a store together, whoever left them; makes it if need be.

    Arguments
    ---------
    path : str or Path
        Folder of the store.
    **about
        Of ``StoreWriter``: whose logits they are.

    Returns
    -------
    int
        Clips that came to the store.

    Raises
    ------
    ValueError
        When the store or a part is another teacher's, or is being written.

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
                    # A store with half of its files gone would be refused as damaged.
                    part = part.rename(part.with_suffix(MERGED))
                shutil.rmtree(part)
            folder.rmdir()
        return len(whole) - before


def _take_up(whole: StoreWriter, part: Path, about: dict[str, Any]) -> None:
    with StoreWriter(part, **about):  # refuses another teacher's, keeps writers out
        store = LogitsStore(part)
        for start in range(0, len(store), ROWS_AT_ONCE):
            whole.absorb(*store.stretch(start, start + ROWS_AT_ONCE))
