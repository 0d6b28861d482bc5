"""Writes files together or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def check_path(path: Path, suffix: str) -> None:
    """Raises a ``ValueError`` early if an output file is not suitable.

    Arguments
    ---------
    path : Path
        The file to write.
    suffix : str
        The suffix it must have.

    Raises
    ------
    ValueError
        For another suffix, and if the file cannot be written.
    """
    if path.suffix != suffix:
        raise ValueError(f"the name of the output file {path} must end in {suffix}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"{path} cannot be written; give a file in an existing folder with write "
            "permission"
        )


@contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """Creates a temporary folder, whose files move next to ``path`` on success.

    Arguments
    ---------
    path : Path
        The main file, which moves last.

    Yields
    ------
    Path
        The folder; deleted afterwards.
    """
    with TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as name:
        aside = Path(name)
        yield aside
        for written in sorted(aside.iterdir(), key=lambda file: file.name == path.name):
            os.replace(written, path.parent / written.name)
