"""Locks folders and files for one process at a time, until it ends, however it ends."""

import errno
import os
from pathlib import Path
from typing import IO

from filelock import BaseFileLock, FileLock, Timeout, lock_descriptor

from efficientat_plugin.support.files import delete_unfinished
from efficientat_plugin.support.plain_text import shown

LOCK_FILE = ".lock"  # in the folder that is locked, where it stays
HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock_folder(folder: str | os.PathLike, advice: str) -> BaseFileLock:
    """Locks a folder until ``release()`` is called or the process ends.

    Forked processes do not hold the lock. On file systems without locks, nothing is
    locked. Unfinished files that a killed process has left are deleted.

    Arguments
    ---------
    folder : str or Path
        Created if it does not exist.
    advice : str
        What else the user can do, for the message: "name another --output".

    Returns
    -------
    filelock.BaseFileLock

    Raises
    ------
    ValueError
        If the folder is locked, by another process or by this one.

    Example
    -------
    >>> import tempfile
    >>> lock_folder(tempfile.mkdtemp(), "name another").release()
    """
    lock = FileLock(
        Path(folder, LOCK_FILE),
        blocking=False,
        thread_local=False,
        fallback_to_soft=False,  # a killed process would leave a soft lock
    )
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is writing {shown(folder)}; wait for it or end it, or "
            f"{advice}"
        ) from None
    except OSError as error:
        if error.errno not in HAS_NO_LOCKS:
            raise
    else:
        delete_unfinished(os.fspath(folder))
    return lock


def lock(file: IO, wait: bool = False) -> bool:
    """Locks an open file until it is closed.

    Arguments
    ---------
    file : file object
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
    try:
        if not lock_descriptor(file.fileno(), blocking=wait):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    except OSError as error:
        if error.errno not in HAS_NO_LOCKS:
            raise
        return False
    return True
