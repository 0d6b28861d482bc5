"""Memory that a process keeps: what glibc does with a block of a few clips' maps."""

import ctypes
import subprocess
import sys

import pytest

# Blocks that glibc maps by themselves, and so hands back as soon as they are freed.
PROGRAM = """
import ctypes, sys, torch
from efficientat_plugin.support import memory

class Mallinfo2(ctypes.Structure):
    # hblks, the mapped blocks, is the fourth of ten numbers
    _fields_ = [("first", 3 * ctypes.c_size_t), ("hblks", ctypes.c_size_t),
                ("last", 6 * ctypes.c_size_t)]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
for name in sys.argv[1:]:
    getattr(memory, name)()
before = mallinfo2().hblks
block = torch.ones(7_500_000)  # 30 MB
print(mallinfo2().hblks - before)
"""


def blocks_mapped_apart(*names):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone can be asked"
)
def test_blocks_of_a_few_clips_are_not_handed_back():
    assert blocks_mapped_apart() == 1
    assert blocks_mapped_apart("keep_freed_memory") == 0
    assert blocks_mapped_apart("keep_blocks_of_a_few_clips") == 0
