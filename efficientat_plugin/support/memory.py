"""Keeps freed memory in the process, so that training steps can reuse it.

glibc returns large blocks to the system as soon as they are freed. Every step then has
each page of its tensors mapped and cleared again, which can take as long as the
arithmetic.
"""

import ctypes

import torch

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
TOP_PAD_BYTES = 2**28
KEPT_BLOCK_BYTES = 2**25 - 2**16  # just below the largest that glibc will keep


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory; returns whether that was possible.

    It applies to memory that is allocated from then on. The process keeps the most
    memory that it ever needed. Other C libraries are not changed.

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
    """Makes glibc keep freed blocks of up to 32 MiB, and twice that in total.

    glibc does so once such a block has been freed; this frees one without touching its
    pages. Larger blocks are returned to the system as before, so a library may call
    this. Other C libraries are not changed.

    Source: mallopt(3), "dynamic mmap threshold".

    Example
    -------
    >>> keep_blocks_of_a_few_clips()
    """
    torch.empty(KEPT_BLOCK_BYTES, dtype=torch.uint8)
