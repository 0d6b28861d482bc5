"""Finds the input files, decodes them ahead of use, and reports unreadable ones."""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.data.folders import walk_sounds
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHORT_SECONDS = 60.0  # longer sounds are never held in memory as a whole


class Failures:
    """Collects the inputs that could not be read, with the reasons.

    Example
    -------
    >>> failures = Failures()
    >>> failures.conclude(num_read=3)
    0
    """

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}
        self._has_results = False

    def __contains__(self, path: Path) -> bool:
        return path in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, path: Path, reason: object, is_partly_read: bool = False) -> None:
        """Adds an input; ``reason`` is a text or an error."""
        self._reasons[path] = shown(" ".join(str(reason).split()))
        self._has_results |= is_partly_read

    def conclude(self, num_read: int) -> int:
        """Prints the failures to stderr and returns the exit code.

        Arguments
        ---------
        num_read : int
            Sounds that could be read completely.

        Returns
        -------
        int
            0 without failures, else 1.

        Raises
        ------
        ValueError
            If nothing could be read.
        """
        if not self._reasons and num_read:
            return 0
        for path, reason in self._reasons.items():
            print(f"efficientat: {shown(path)}: {reason}", file=sys.stderr)
        if not (num_read or self._has_results):
            raise ValueError(
                "nothing could be read, so nothing was written; give sound files "
                f"({', '.join(AUDIO_SUFFIXES)}) or folders of them"
            )
        text = f"{len(self._reasons)} of {num_read + len(self._reasons)} inputs"
        print(f"efficientat: {text} could not be read", file=sys.stderr)
        return 1


def find_sounds(given: Iterable[Path], failures: Failures) -> list[Path]:
    """Lists the given files, and all sounds below given folders, sorted by name.

    Arguments
    ---------
    given : iterable of Path
        Files of any suffix, and folders, in which sounds are found by suffix.
    failures : Failures
        Receives missing files and folders without sound.

    Returns
    -------
    list of Path
        Without duplicates.
    """
    found: dict[Path, None] = {}
    for path in given:
        if os.path.isdir(path):  # unlike Path.is_dir, False without permission
            num_failures = len(failures)
            inside = [path / name for name in walk_sounds(path, failures.add)]
            if not inside and len(failures) == num_failures:
                suffixes = ", ".join(AUDIO_SUFFIXES)
                failures.add(path, f"the folder contains no sound ({suffixes})")
            found |= dict.fromkeys(inside)
        else:
            found[path] = None
    sounds = []
    for path in found:
        if reason := _refusal(path):
            failures.add(path, reason)
        else:
            sounds.append(path)
    return sounds


def _refusal(path: Path) -> str | None:
    """Returns why a path cannot be read, as far as known without opening it."""
    if not os.path.lexists(path):
        return "there is no such file"
    if not os.path.isfile(path):  # opening a pipe would block
        return "it is not a file"
    try:
        str(path).encode()
    except UnicodeEncodeError:  # the binding of libsndfile would raise it
        return "its name is not UTF-8; rename it"
    return None


class Decoded(NamedTuple):
    """The sound of a file, or why it cannot be read."""

    path: Path
    samples: "NDArray[np.float32] | None"  # None: too long to hold, or unreadable
    fault: str | None = None

    @property
    def sound(self) -> "Path | NDArray[np.float32]":
        """The input of a tagger: samples of a short sound, the path of a long one."""
        return self.path if self.samples is None else self.samples


def decoded_ahead(
    paths: Iterable[Path], sample_rate: int, workers: int
) -> Iterator[Decoded]:
    """Decodes sounds in threads ahead of use, and yields them in the given order.

    Threads suffice: decoding and resampling release the GIL, nothing has to be passed
    between processes, and it works alike on every system.

    Arguments
    ---------
    paths : iterable of Path
    sample_rate : int
        Of the samples, Hz.
    workers : int
        Threads, at least 1; up to twice as many sounds are held in memory.

    Yields
    ------
    Decoded
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[Decoded]] = deque()
    try:
        for path in paths:
            pending.append(pool.submit(_decode, path, sample_rate))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(path: Path, sample_rate: int) -> Decoded:
    import numpy as np

    from efficientat_plugin.data.decoding import UnreadableClip, decode_blocks

    blocks, num_samples = [], 0
    try:
        for block in decode_blocks(path, sample_rate):
            blocks.append(block)
            num_samples += len(block)
            if num_samples > SHORT_SECONDS * sample_rate:
                return Decoded(path, None)
    except UnreadableClip as fault:
        return Decoded(path, None, fault.reason)
    if not num_samples:
        return Decoded(path, None, f"it is shorter than a sample at {sample_rate} Hz")
    return Decoded(path, np.concatenate(blocks))
