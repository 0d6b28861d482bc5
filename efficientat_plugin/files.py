"""What files are told apart by, and what is said where one cannot be written."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
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


@contextmanager
def told_if_not_writable(folder: Path) -> Iterator[None]:
    """A full disk and the like in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise OSError(
            f"{folder} cannot be written ({os.strerror(error.errno)}); make room for "
            "it, or make it writable, and give the same command again"
        ) from error
