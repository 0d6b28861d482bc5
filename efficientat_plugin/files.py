"""What files are told apart by, and what is said where one cannot be written."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

CHUNK_BYTES = 1 << 20
EXPORTED = (".onnx", ".tflite")  # suffixes of what `efficientat export` writes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Example
    -------
    >>> sha256_of(os.devnull)[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_aside(path: str | Path, write: Callable[[TextIO], object]) -> None:
    """Writes a text file under another name and renames it.

    No reader meets half a file, and a kill leaves the file of before.

    Arguments
    ---------
    path : str or Path
    write : Callable
        Takes the open file, in UTF-8, whose line ends are left as they are.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
    >>> write_aside(path, lambda file: file.write("hello"))
    >>> path.read_text()
    'hello'
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    with open(unfinished, "w", encoding="utf-8", newline="") as file:
        write(file)
    os.replace(unfinished, path)


@contextmanager
def told_if_not_writable(folder: str | Path) -> Iterator[None]:
    """A full disk and the like in a sentence.

    Raises
    ------
    OSError
        That names ``folder``, for what went wrong in writing to it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _not_writable(error, Path(folder))
        if reason is None:
            raise
        raise OSError(
            f"{folder} cannot be written ({reason}); make room for it, or make it "
            "writable, and give the same command again"
        ) from error


def _not_writable(error: OSError | RuntimeError, folder: Path) -> str | None:
    """Why; None: that is not what the error says."""
    if isinstance(error, RuntimeError):  # torch.save's, which keeps the system's back
        wrote = "inline_container" in str(error) or "Parent directory" in str(error)
        if not wrote:
            return None
        return "the disk is full" if folder.exists() else "it is gone"
    file = error.filename
    if isinstance(file, str):
        if not str(Path(file).absolute()).startswith(str(folder.absolute())):
            return None  # something that is read
    if error.errno == errno.ENOENT and not folder.exists():
        return "it is gone"
    return os.strerror(error.errno) if error.errno in NOT_WRITABLE else None
