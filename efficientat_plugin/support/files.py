"""Opens untrusted files, computes digests, writes files whole, explains full disks."""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
EXPORTED = (".onnx", ".tflite")  # suffixes of files that `efficientat export` writes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP}  # folders of some file systems
UNFINISHED = re.compile(r"\..*-[0-9a-f]{8}\.part")  # names of `_beside`
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


@contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[Any]:
    """Opens a file for writing, which becomes ``path`` if the block succeeds.

    No reader sees half a file. After a kill, and after the machine lost its power, the
    earlier file is still there.

    Arguments
    ---------
    path : str or Path
    mode : str
        "w", text in UTF-8 whose line ends are not converted, or "wb", bytes.

    Yields
    ------
    file object
        A file next to ``path``; deleted if the block raises.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
    >>> with atomic_file(path) as file:
    ...     _ = file.write("hello")
    >>> path.read_text()
    'hello'
    """
    is_text = "b" not in mode
    options: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if is_text else {}
    unfinished = _beside(Path(path))
    file = open(unfinished, mode.replace("w", "x"), **options)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        to_disk(unfinished.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Makes an empty folder, which becomes ``folder`` if the block succeeds.

    Arguments
    ---------
    folder : str or Path
    replace : bool
        Whether to replace an existing folder.

    Yields
    ------
    Path
        A folder next to ``folder``; deleted if the block raises.

    Raises
    ------
    OSError
        If ``folder`` exists, is not empty, and is not to be replaced.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "greetings"
    >>> with atomic_folder(folder) as unfinished:
    ...     _ = (unfinished / "first.txt").write_text("hello")
    >>> os.listdir(folder)
    ['first.txt']
    """
    folder = Path(folder)
    unfinished = _beside(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in [*unfinished.rglob("*"), unfinished]:
            to_disk(path)
        if replace and folder.exists():  # no system call replaces a folder with files
            replaced = _beside(folder)
            os.rename(folder, replaced)
            os.rename(unfinished, folder)
            shutil.rmtree(replaced)
        else:
            os.rename(unfinished, folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def delete_unfinished(folder: str | Path) -> None:
    """Deletes what `atomic_file` and `atomic_folder` left when they were killed.

    To be called by the only process that writes in the folder.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".notes.txt-0123abcd.part").touch()
    >>> delete_unfinished(folder)
    >>> os.listdir(folder)
    []
    """
    for path in Path(folder).glob(".*.part"):
        if not UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # A unique name: another process may write the same, or have put a link there.
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.part")


def to_disk(path: Path) -> None:
    """Flushes a file or folder to the disk, without which a rename may be lost."""
    if os.name == "nt":  # which flushes only what is open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
    finally:
        os.close(handle)


@contextmanager
def explain_write_errors(folder: str | Path) -> Iterator[None]:
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
