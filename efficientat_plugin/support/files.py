"""Opens untrusted files, computes digests, writes files whole, explains full disks."""

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

CHUNK_BYTES = 1 << 20
EXPORTED = (".onnx", ".tflite")  # suffixes of files that `efficientat export` writes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def open_file(path: str | Path, max_bytes: int | None = None) -> BinaryIO:
    """Opens an untrusted file for reading.

    Arguments
    ---------
    path : str or Path
    max_bytes : int or None
        A larger file is refused before any of it is read; None: any size.

    Raises
    ------
    FileNotFoundError
        If there is none, or if it is a pipe, a device or a folder: opening a pipe would
        wait for a writer.
    ValueError
        If the file is larger.

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
                f"{path} has {size} bytes, but at most {max_bytes} are allowed here; "
                "check the path, or copy or write it again"
            )
        return file
    except BaseException:
        file.close()
        raise


def read_text(path: str | Path, max_bytes: int, encoding: str = "utf-8") -> str:
    """Reads a text file; errors as ``open_file``, and ``UnicodeDecodeError``."""
    with open_file(path, max_bytes) as file:
        # Python allocates as many bytes as it is asked for.
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
    """Computes the SHA-256 of a file's bytes, in hexadecimal.

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
    """Writes a text file as ``written_aside`` does.

    Arguments
    ---------
    path : str or Path
    write : Callable
        Takes the open file, in UTF-8; line ends are not converted.

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
    """Yields a temporary file, which becomes ``path`` if the block succeeds.

    No reader sees half a file, and after a kill the earlier file is still there.

    Arguments
    ---------
    path : Path

    Yields
    ------
    Path
        An empty file next to ``path``; deleted if the block raises.
    """
    # A unique name: another process may write the same file, or have put a link there.
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
    """Turns errors in writing to a folder, such as a full disk, into one sentence.

    Raises
    ------
    OSError
        With the name of ``folder`` and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _not_writable(error, Path(folder))
        if reason is None:
            raise
        raise OSError(
            f"{folder} cannot be written ({reason}); make room for it, or make it "
            "writable, and rerun the same command"
        ) from error


def _not_writable(error: OSError | RuntimeError, folder: Path) -> str | None:
    """Returns why ``folder`` cannot be written; None if the error is another one."""
    if isinstance(error, RuntimeError):  # torch.save hides the system's error
        wrote = "inline_container" in str(error) or "Parent directory" in str(error)
        if not wrote:
            return None
        return "the disk is full" if folder.exists() else "it was deleted"
    file = error.filename
    if isinstance(file, str):
        if not str(Path(file).absolute()).startswith(str(folder.absolute())):
            return None  # a file that is read
    if error.errno == errno.ENOENT and not folder.exists():
        return "it was deleted"
    return os.strerror(error.errno) if error.errno in NOT_WRITABLE else None
