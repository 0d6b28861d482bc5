"""What a process holds in memory, and work done in a process of its own."""

import gc
import multiprocessing
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
MEGABYTE = 2**20

linux = pytest.mark.skipif(
    not STATUS.exists(), reason=f"memory is read from {STATUS}, which is Linux's"
)


def alone(function: Callable, *arguments):
    """What a function of a module returns, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *arguments).result()


def here(function: Callable, *arguments):
    """The same in this process, which is quicker, and has held more before."""
    return function(*arguments)


def megabytes(field: str = "RssAnon") -> float:
    """Of this process: RssAnon without pages of files, VmHWM with them, at the most."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise ValueError(f"{STATUS} has no {field}")


class Section:
    """Time and memory of a part of the work.

    ``more`` is the memory at the most beyond that at its start, MB without pages of
    files; shorter than 5 ms it goes unseen.
    """

    def __init__(self) -> None:
        self.more, self.seconds = 0.0, 0.0

    def __enter__(self) -> "Section":
        self._begun = time.monotonic()
        self._before = megabytes()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._watch.join()
        del self._watch, self._ended  # which cannot be passed to another process
        self.seconds = time.monotonic() - self._begun

    def _look(self) -> None:
        while True:
            is_last = self._ended.wait(0.005)
            self.more = max(self.more, megabytes() - self._before)
            if is_last:
                return

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.more:.0f} MB"


class Course:
    """Memory, MB, and time in the course of something.

    Arguments
    ---------
    total : int
        Of what will be done.
    """

    def __init__(self, total: int) -> None:
        self.marks: list[float] = []
        self._times = [time.monotonic()]
        self._total = total

    def look(self, done: float) -> None:
        """To be called often; looks twenty times in all."""
        while 20 * done >= 0.999 * self._total * (len(self.marks) + 1):
            self.marks.append(megabytes())
            self._times.append(time.monotonic())

    @property
    def growth(self) -> float:
        """From the end of the first quarter on, when all that is kept is there."""
        return max(self.marks[5:]) - max(self.marks[:5])

    @property
    def pace(self) -> str:
        """Things a second in each fifth."""
        ends = [self._times[4 * fifth] for fifth in range(6)]
        paces = [self._total / 5 / (end - start) for start, end in pairwise(ends)]
        return ", ".join(f"{pace:.0f}" for pace in paces) + " a second"


def traced(function: Callable, *arguments):
    """What a function returns, and the bytes that Python and numpy held at the most."""
    gc.collect()
    tracemalloc.start()
    try:
        returned = function(*arguments)
        return returned, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
