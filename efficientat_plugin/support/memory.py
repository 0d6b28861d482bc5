"""Keeps freed memory in the process: a training step otherwise pays for it again.

glibc hands large blocks back to the system as soon as they are freed, so that every
step has each page of its tensors mapped and cleared anew, which can take as long as
the arithmetic.
"""

import ctypes

import torch

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
TOP_PAD_BYTES = 2**28
KEPT_BLOCK_BYTES = 2**25 - 2**16  # just below the largest that glibc learns to keep


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; returns whether it could be told.

    Takes effect for what is allocated from then on. The process keeps the most memory
    it ever needed. Other C libraries are left alone.

    Example
    -------
    >>> keep_freed_memory() in (True, False)
    True
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, LARGEST),
        (M_TOP_PAD, TOP_PAD_BYTES),
    )
    return all(mallopt(parameter, value) for parameter, value in settings)


def keep_blocks_of_a_few_clips() -> None:
    """Has glibc keep freed blocks of up to 32 MiB, and twice that in all.

    It does so by itself once such a block has been freed; this frees one, of which no
    page was ever touched. The rest goes back to the system as before, so that a
    library may call it. Other C libraries are none the wiser.

    Source: mallopt(3), "dynamic mmap threshold".

    Example
    -------
    >>> keep_blocks_of_a_few_clips()
    """
    torch.empty(KEPT_BLOCK_BYTES, dtype=torch.uint8)
