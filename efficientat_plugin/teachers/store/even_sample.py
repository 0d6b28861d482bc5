"""Chooses a few of many items in one pass."""

from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class EvenSample(Generic[Item]):
    """An evenly spread sample of a sequence of unknown length.

    Arguments
    ---------
    size : int
        Maximum number of items; twice as many are held in memory.

    Example
    -------
    >>> even = EvenSample(4)
    >>> for number in range(40):
    ...     even.add(number)
    >>> even.sample()
    [0, 8, 16, 32]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0  # items offered
        self._step = 1  # one in this many is held
        self._held: list[Item] = []

    def add(self, item: Item) -> None:
        """Offers the next item."""
        if self.count % self._step == 0:
            self._held.append(item)
        self.count += 1
        if len(self._held) == 2 * self.size:
            self._held, self._step = self._held[::2], 2 * self._step

    def sample(self) -> list[Item]:
        """Returns the sample in order; all items if there are at most ``size``."""
        if len(self._held) <= self.size:
            return list(self._held)
        chosen = np.linspace(0, len(self._held) - 1, self.size).astype(np.int64)
        return [self._held[place] for place in chosen]
