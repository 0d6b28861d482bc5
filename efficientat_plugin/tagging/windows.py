"""Cuts sound into windows; long files and streams share this."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Window(NamedTuple):
    """A piece of a sound."""

    start: int  # sample
    samples: NDArray[np.float32]  # [N]


class WindowCutter:
    """Cuts sound into windows as it arrives, and holds no more than needed.

    Windows begin every ``hop`` samples. If none of them reaches the end of the sound,
    one more ends with it; a sound shorter than a window is one short window.

    Arguments
    ---------
    window : int
        Window length in samples, at least 1.
    hop : int
        Samples from one window to the next, from 1 to ``window``.

    Raises
    ------
    ValueError
        For a hop that would skip sound.

    Example
    -------
    >>> cutter = WindowCutter(window=4, hop=3)
    >>> sound = np.arange(9, dtype=np.float32)
    >>> [piece.start for piece in [*cutter.feed(sound), *cutter.finish()]]
    [0, 3, 5]
    """

    def __init__(self, window: int, hop: int) -> None:
        if not 1 <= hop <= window:
            raise ValueError(
                f"a hop of {hop} samples with windows of {window} was given; the hop "
                "must be from 1 to the window, or sound between windows is skipped"
            )
        self.window, self.hop = window, hop
        # The sound from ``_held_from`` on, a view of the buffer ``_memory``
        self._held = np.zeros(0, np.float32)
        self._memory, self._used = self._held, 0
        self._held_from = 0
        self._next_start = 0

    @property
    def num_samples(self) -> int:
        """Number of samples that have arrived."""
        return self._held_from + len(self._held)

    def feed(self, samples: NDArray[np.float32]) -> Iterator[Window]:
        """Adds samples; yields the windows that they complete, cut lazily."""
        self._append(samples)
        return self._complete()

    def finish(self) -> list[Window]:
        """Returns the last window, if the end of the sound is not covered yet."""
        if self._next_start == 0:
            return [Window(0, self._held)] if self.num_samples else []
        covered = self._next_start - self.hop + self.window
        return [self._cut(self._last_start())] if covered < self.num_samples else []

    def _last_start(self) -> int:
        """Returns where the window that ends with the sound starts."""
        return self.num_samples - self.window

    def _append(self, samples: NDArray[np.float32]) -> None:
        used = self._used + len(samples)
        if used > len(self._memory):
            # Room for as much again, else each of many short pieces would copy it all.
            self._memory = np.empty(2 * len(self._held) + len(samples), np.float32)
            self._memory[: len(self._held)] = self._held
            self._used, used = len(self._held), len(self._held) + len(samples)
        begin = self._used - len(self._held)
        self._memory[self._used : used] = samples
        self._held, self._used = self._memory[begin:used], used

    def _complete(self) -> Iterator[Window]:
        while self._next_start + self.window <= self.num_samples:
            window = self._cut(self._next_start)
            self._next_start += self.hop
            yield window
        # Keeps what the next window needs, and the last window's length of sound in
        # case the sound ends here.
        keep_from = min(self._next_start, self.num_samples - self.window)
        drop = max(0, keep_from - self._held_from)
        self._held = self._held[drop:]
        self._held_from += drop

    def _cut(self, start: int) -> Window:
        offset = start - self._held_from
        return Window(start, self._held[offset : offset + self.window].copy())


def runs_of(windows: Iterable[Window]) -> list[list[Window]]:
    """Groups consecutive windows of equal length and hop, without gaps between them.

    Example
    -------
    >>> sound = np.zeros(11, np.float32)
    >>> windows = [Window(start, sound[start : start + 4]) for start in (0, 3, 5, 7)]
    >>> [[window.start for window in run] for run in runs_of(windows)]
    [[0, 3], [5, 7]]
    """
    runs: list[list[Window]] = []
    for window in windows:
        if runs and _continues(runs[-1], window):
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


def _continues(run: Sequence[Window], window: Window) -> bool:
    hop = window.start - run[-1].start
    if len(run) > 1 and hop != run[1].start - run[0].start:
        return False
    return 0 < hop <= len(window.samples) == len(run[-1].samples)
