"""A few of many items, chosen in passing."""

from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class EvenSample(Generic[Item]):
    """Items of a sequence, evenly spread, where nobody knows how many will come.

    Arguments
    ---------
    size : int
        Items of the sample, at most; twice as many are held.

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
        self._step = 1  # of these are held, one in so many
        self._held: list[Item] = []

    def add(self, item: Item) -> None:
        """Offers the next item."""
        if self.count % self._step == 0:
            self._held.append(item)
        self.count += 1
        if len(self._held) == 2 * self.size:
            self._held, self._step = self._held[::2], 2 * self._step

    def sample(self) -> list[Item]:
        """What was chosen, in its order; all of it where it is not too much."""
        if len(self._held) <= self.size:
            return list(self._held)
        chosen = np.linspace(0, len(self._held) - 1, self.size).astype(np.int64)
        return [self._held[place] for place in chosen]
