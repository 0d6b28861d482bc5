"""What files are told apart by, and what is said where one cannot be written."""

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

CHUNK_BYTES = 1 << 20
EXPORTED = (".onnx", ".tflite")  # suffixes of what `efficientat export` writes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def open_file(path: str | Path, max_bytes: int | None = None) -> BinaryIO:
    """Opens a file that anybody may have put there, to be read.

    Arguments
    ---------
    path : str or Path
    max_bytes : int or None
        A larger file is refused before any of it is read; None: any size.

    Raises
    ------
    FileNotFoundError
        Where there is none, or where it is a pipe, a device or a folder: to open a
        pipe would wait for whoever writes to it.
    ValueError
        For a larger file.

    Example
    -------
    >>> open_file(os.devnull)
    Traceback (most recent call last):
    FileNotFoundError: /dev/null is a pipe or a device; give a file
    """
    refuse_special(path)
    waits_for_nobody = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, os.O_RDONLY | waits_for_nobody), "rb")
    try:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(
                f"{path} has {size} bytes, and such a file has at most {max_bytes}; "
                "check the path, or copy or write it again"
            )
        return file
    except BaseException:
        file.close()
        raise


def read_text(path: str | Path, max_bytes: int, encoding: str = "utf-8") -> str:
    """All of a text file; errors as ``open_file``, and ``UnicodeDecodeError``."""
    with open_file(path, max_bytes) as file:
        # Python makes room for all that it is asked for.
        size = min(max_bytes, os.fstat(file.fileno()).st_size)
        return file.read(size).decode(encoding)


def refuse_special(path: str | Path) -> None:
    """Refuses a pipe, a device or a folder in the place of a file.

    Raises
    ------
    FileNotFoundError
    """
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a pipe or a device"
        raise FileNotFoundError(f"{path} is {what}; give a file")


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
    """``written_aside`` of a text file.

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
    with (
        written_aside(Path(path)) as unfinished,
        open(unfinished, "w", encoding="utf-8", newline="") as file,
    ):
        write(file)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file to write instead, which becomes ``path`` if nothing goes wrong.

    No reader meets half a file, and a kill leaves the file of before.

    Arguments
    ---------
    path : Path

    Yields
    ------
    Path
        Beside ``path``, empty; gone where the block raises.
    """
    # Of this process alone: another may write the same file, or have put a link there.
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")
    with open(unfinished, "xb"):
        pass
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
