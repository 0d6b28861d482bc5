"""One process at a time: locks that end with the process, however it ends."""

import errno
import os
from pathlib import Path
from typing import IO
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows: there, two processes at once go unnoticed
    fcntl = None  # type: ignore[assignment]

HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock(file: int | IO, wait: bool = False) -> bool:
    """Makes an open file or folder one's own until it is closed.

    Arguments
    ---------
    file : int or file object
        Open.
    wait : bool
        Until nobody else has it; or else that is refused.

    Returns
    -------
    bool
        Whether it was locked: some file systems have no locks.

    Raises
    ------
    BlockingIOError
        If another process has it.

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
    """A folder that this process alone writes, until it lets go or ends.

    Processes that it forks do not hold on to it. On Windows nobody is
    kept out.

    Arguments
    ---------
    folder : Path

    Raises
    ------
    BlockingIOError
        If another process has it.

    Example
    -------
    >>> import tempfile
    >>> FolderLock(Path(tempfile.mkdtemp())).release()
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        if fcntl is None:  # nor can a folder be opened there
            return
        self._handle = os.open(folder, os.O_RDONLY)
        try:
            lock(self._handle)
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Lets others have it; what is released already stays so."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


_held: WeakSet[FolderLock] = WeakSet()


def _release_all() -> None:
    for each in list(_held):
        each.release()


if hasattr(os, "register_at_fork"):  # which Windows has not
    os.register_at_fork(after_in_child=_release_all)
