"""Locks for one process at a time, released when it ends, however it ends."""

import errno
import os
from pathlib import Path
from typing import IO
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows, where two processes at once are not detected
    fcntl = None  # type: ignore[assignment]

HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock(file: int | IO, wait: bool = False) -> bool:
    """Locks an open file or folder until it is closed.

    Arguments
    ---------
    file : int or file object
        Open.
    wait : bool
        Whether to wait until no other process holds the lock, instead of raising.

    Returns
    -------
    bool
        Whether it was locked: some file systems have no locks.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     lock(file) in (True, False)
    True
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HAS_NO_LOCKS:
            return False
        raise
    return True


class FolderLock:
    """Locks a folder for this process, until it is released or the process ends.

    Forked processes do not hold the lock. On Windows nothing is locked.

    Arguments
    ---------
    folder : Path

    Raises
    ------
    BlockingIOError
        If another process holds the lock.

    Example
    -------
    >>> import tempfile
    >>> FolderLock(Path(tempfile.mkdtemp())).release()
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        if fcntl is None:  # Windows cannot open a folder either
            return
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            lock(self._handle)
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Releases the lock; does nothing if it is released already."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


_held: WeakSet[FolderLock] = WeakSet()


def _release_all() -> None:
    for each in list(_held):
        each.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_all)
