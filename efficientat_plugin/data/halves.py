"""Batches of two halves: clips with strong labels, and clips without."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.mixing import Mixup
from efficientat_plugin.data.sampling import Draw, Draws

SEED_OF_WEAK = (
    1_000_003  # added, or halves of one size would always form the same pairs
)


class Halves(NamedTuple):
    """How the halves of a batch are mixed: each with clips of its own only."""

    strong: Mixup | None  # None: not at all
    weak: Mixup | None


class HalvedDraws(Draws):
    """Draws of which every batch has as many clips with strong labels.

    Source: Morocutti et al., "Exploring Performance-Complexity Trade-Offs in Sound
    Event Detection", 2025, section IV.D, and its code: 64 clips of each kind, of which
    the weak ones are drawn with class balance.

    Processes are dealt whole batches, so an epoch does not depend on their number. In
    each half, no clip is drawn twice in an epoch before all were drawn once.

    Arguments
    ---------
    is_strong : sequence of bool
        [rows], whether a clip has strong labels.
    strong_clips : int
        Clips with strong labels per batch, which are its first ones.
    batch_size : int
        Clips per batch; the loader must have the same.
    clips_per_epoch : int or None
        Draws per epoch, of both halves together, rounded down to whole batches; None:
        every clip with strong labels once, up to an incomplete batch.
    weights : array or None
        Relative probability of each row without strong labels, in order; None: all are
        equal.
    seed : int
        Seeds the draws; the epoch is added to it.

    Raises
    ------
    ValueError
        For a batch without one of the halves, if there are fewer clips than a batch
        needs, or fewer weak clips than a weighted epoch needs.

    Example
    -------
    >>> draws = HalvedDraws([True, False, True, False, False], 1, batch_size=2)
    >>> len(draws), [draw.row in (0, 2) for draw in draws]
    (4, [True, False, True, False])
    """

    def __init__(
        self,
        is_strong: Sequence[bool] | NDArray[np.bool_],
        strong_clips: int,
        batch_size: int,
        clips_per_epoch: int | None = None,
        weights: NDArray | None = None,
        seed: int = 0,
    ) -> None:
        strong = np.asarray(is_strong, bool)
        rows = np.flatnonzero(strong), np.flatnonzero(~strong)
        if not 0 < strong_clips < batch_size:
            raise ValueError(
                f"strong_clips={strong_clips} must be 1 or more and less than "
                f"batch_size={batch_size}, which counts both halves"
            )
        per_batch = strong_clips, batch_size - strong_clips
        if any(len(own) < count for own, count in zip(rows, per_batch, strict=True)):
            raise ValueError(
                f"a batch needs {per_batch[0]} clips with strong labels and "
                f"{per_batch[1]} without, but there are {len(rows[0])} and "
                f"{len(rows[1])} to train on; add clips, or lower batch_size and "
                "strong_clips, or set strong_clips to null"
            )
        if clips_per_epoch is None:
            num_batches = len(rows[0]) // strong_clips
        else:
            num_batches = clips_per_epoch // batch_size
        if num_batches < 1:
            raise ValueError(
                f"clips_per_epoch={clips_per_epoch} is less than a batch of "
                f"{batch_size} clips, both halves together; raise it"
            )
        super().__init__(len(strong), num_batches * batch_size, seed=seed)
        self.batch_size, self.num_batches, self.rows = batch_size, num_batches, rows
        self.strong_clips = strong_clips
        self.halves = (
            Draws(len(rows[0]), num_batches * per_batch[0], seed=seed),
            Draws(
                len(rows[1]),
                num_batches * per_batch[1],
                weights,
                seed + SEED_OF_WEAK,
            ),
        )

    def __repr__(self) -> str:
        return (
            f"{self.clips_per_epoch} clips of an epoch, in batches of "
            f"{self.strong_clips} with strong labels and "
            f"{self.batch_size - self.strong_clips} without"
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; the Brain calls this before each one."""
        super().set_epoch(epoch)
        for half in self.halves:
            half.set_epoch(epoch)

    def __len__(self) -> int:
        """Returns the number of draws of this process in a whole epoch."""
        return self._share_of(self.num_batches) * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        strong, weak = (
            own[[draw.row for draw in half]].reshape(self.num_batches, -1)
            for own, half in zip(self.rows, self.halves, strict=True)
        )
        batches = np.concatenate([strong, weak], axis=1)
        first = -(-self.start // self.batch_size)  # after another batch_size, too
        dealt = self._share_of(self.num_batches - first) * self.world_size
        for place in range(first + self.rank, first + dealt, self.world_size):
            number = place % self.num_batches
            for offset, row in enumerate(batches[number].tolist()):
                position = number * self.batch_size + offset
                yield Draw(row, self.sampler.epoch, position)
