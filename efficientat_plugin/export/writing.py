"""Files that are written together, or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_path(path: Path, suffix: str) -> None:
    """Refuses, before any work is done, a file that cannot be meant.

    Arguments
    ---------
    path : Path
        To be written.
    suffix : str
        That it must have.

    Raises
    ------
    ValueError
        For another suffix, and where it cannot be written.
    """
    if path.suffix != suffix:
        raise ValueError(f"{path} is to be written; its name must end in {suffix}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"{path} cannot be written; give a file in a folder that exists and may be "
            "written to"
        )


@contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """A folder aside, whose files move beside ``path`` if nothing goes wrong.

    Arguments
    ---------
    path : Path
        The file that the others go with: it moves last.

    Yields
    ------
    Path
        The folder; gone afterwards.
    """
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        for written in sorted(aside.iterdir(), key=lambda file: file.name == path.name):
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
