"""One process at a time: locks that end with the process, however it ends."""

import errno
from typing import IO

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
