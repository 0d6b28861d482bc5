"""Which clips an epoch draws, and in what order.

A draw carries its epoch and its place within it, so that what happens to the clip
at random is a function of (seed, epoch, position): the same for any number of
workers, and after a resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One clip of an epoch."""

    row: int  # of the data set
    epoch: int
    position: int  # within the epoch's draws, over all processes


class Draws(Sampler):
    """Draws clips anew each epoch, reproducibly.

    Processes share the draws (``deal``), and an epoch may be resumed after any number
    of them (``start``), on another number of processes, too.

    Arguments
    ---------
    num_rows : int
        Rows of the data set.
    clips_per_epoch : int | None
        Draws of an epoch; None: all rows. No row is drawn twice before all were
        drawn once.
    weights : Sequence[float] | None
        [num_rows], how likely each row is drawn; None: all alike.
    seed : int
        Of the draws; the epoch is added to it.

    Raises
    ------
    ValueError
        If a weighted epoch would need more clips than there are.

    Example
    -------
    >>> draws = Draws(num_rows=3)
    >>> draws.set_epoch(1)
    >>> [draw.position for draw in draws]
    [0, 1, 2]
    """

    def __init__(
        self,
        num_rows: int,
        clips_per_epoch: int | None = None,
        weights: Sequence[float] | NDArray | None = None,
        seed: int = 0,
    ) -> None:
        if clips_per_epoch is None:
            clips_per_epoch = num_rows
        if num_rows < 1 or clips_per_epoch < 1:
            raise ValueError(
                f"clips_per_epoch={clips_per_epoch} of {num_rows} clips; both must be "
                "1 or more"
            )
        self.sampler: ReproducibleWeightedRandomSampler | _Permutations
        if weights is None:
            self.sampler = _Permutations(num_rows, clips_per_epoch, seed)
        elif clips_per_epoch > num_rows:
            raise ValueError(
                f"clips_per_epoch={clips_per_epoch} cannot be drawn with class balance "
                f"from {num_rows} clips, each at most once; lower it, set it to null "
                "for all clips once, or switch class balance off"
            )
        else:
            self.sampler = ReproducibleWeightedRandomSampler(
                weights, clips_per_epoch, replacement=False, seed=seed
            )
        self.clips_per_epoch = clips_per_epoch
        self.start = 0  # draws of the epoch, over all processes, to pass over
        self.rank, self.world_size, self.drop_last = 0, 1, False

    def deal(self, rank: int, world_size: int, drop_last: bool) -> None:
        """Leaves this process every ``world_size``-th draw, as DistributedSampler does.

        Arguments
        ---------
        rank : int
            Of this process.
        world_size : int
            Number of processes.
        drop_last : bool
            Leaves out what does not go around; or else the first draws are repeated.

        Example
        -------
        >>> draws = Draws(num_rows=10)
        >>> draws.deal(rank=1, world_size=2, drop_last=True)
        >>> draws.start = 4
        >>> [draw.position for draw in draws]
        [5, 7, 9]
        """
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def set_epoch(self, epoch: int) -> None:
        """Called by the Brain before each epoch."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Draws of this process in a whole epoch."""
        return self._share_of(self.clips_per_epoch)

    def _share_of(self, count: int) -> int:
        rounded = count if self.drop_last else count + self.world_size - 1
        return rounded // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        epoch, rows = self.sampler.epoch, list(self.sampler)
        dealt = self._share_of(len(rows) - self.start) * self.world_size
        for place in range(self.start + self.rank, self.start + dealt, self.world_size):
            position = place % len(rows)
            yield Draw(rows[position], epoch, position)


@dataclass
class PlaceInEpoch:
    """How far an epoch is: in clips, so that other processes can resume it.

    Arguments
    ---------
    draws : Draws or None
        Of the training clips; None: they are drawn otherwise, and no place is known.
    clips_per_step : int
        Of all processes together.

    Example
    -------
    >>> place = PlaceInEpoch(Draws(num_rows=100), clips_per_step=8)
    >>> place.clips_drawn(step=3)
    24
    >>> place.resume(step=3, clips_drawn=48, clips_per_step=16)
    >>> place.clips_drawn(step=4)
    56
    """

    draws: Draws | None = None
    clips_per_step: int = 0
    steps_before: int = 0  # of this epoch, before this process started
    clips_before: int = 0  # that were drawn in them
    per_step_before: int = 0  # clips

    def begin(self) -> None:
        """Another epoch begins with its first clip."""
        self.steps_before = self.clips_before = 0

    def resume(self, step: int, clips_drawn: int, clips_per_step: int) -> None:
        """After ``step`` steps, by whatever processes, which drew ``clips_drawn``."""
        self.steps_before, self.clips_before = step, clips_drawn
        self.per_step_before = clips_per_step

    def clips_drawn(self, step: int) -> int:
        """Of the epoch, by all processes, after ``step`` steps of it."""
        if self.draws is None:
            return 0
        since = (step - self.steps_before) * self.clips_per_step
        return min(self.clips_before + since, self.draws.clips_per_epoch)

    def change(self) -> str | None:
        """What is to be said where steps have other clips than before."""
        if self.per_step_before in (0, self.clips_per_step) or self.draws is None:
            return None
        text = (
            f"This run had {self.per_step_before} clips a step, of all processes, and "
            f"now has {self.clips_per_step}"
        )
        if self.clips_before:
            text += (
                f"; {self.clips_before} of the {self.draws.clips_per_epoch} clips of "
                "the interrupted epoch are done, and it resumes with the others"
            )
        return text


class _Permutations:
    """Rows in random order, again and again in another one, ``num_draws`` in all."""

    def __init__(self, num_rows: int, num_draws: int, seed: int) -> None:
        self.num_rows, self.num_draws, self.seed = num_rows, num_draws, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        remaining = self.num_draws
        while remaining > 0:
            order = torch.randperm(self.num_rows, generator=generator)
            yield from order[:remaining].tolist()
            remaining -= self.num_rows


def class_balanced_weights(
    indices: Sequence[Sequence[int]], num_classes: int
) -> NDArray[np.float64]:
    """How likely each clip is drawn, so that rare classes are heard as well.

    A clip weighs the sum over its classes of ``1000 / (100 + clips of the class)``;
    one without labels weighs the average of those with.

    Source: the published code of Koutini et al., "Efficient Training of Audio
    Transformers with Patchout", Interspeech 2022.

    Arguments
    ---------
    indices : Sequence[Sequence[int]]
        Classes of each clip, each once.
    num_classes : int
        K.

    Returns
    -------
    NDArray
        [clips], above 0.

    Example
    -------
    >>> class_balanced_weights([[0], [0, 1], []], num_classes=2)
    array([ 9.80392157, 19.70491167, 14.75441662])
    """
    num_clips = len(indices)
    sizes = np.fromiter(map(len, indices), np.int64, num_clips)
    # One after the other, and the clip of each
    classes = np.fromiter(chain.from_iterable(indices), np.int64, sizes.sum())
    clips = np.repeat(np.arange(num_clips), sizes)
    counts = np.bincount(classes, minlength=num_classes)
    per_class = 1000.0 / (100.0 + counts)
    weights = np.bincount(clips, per_class[classes], num_clips).astype(np.float64)
    labelled = weights > 0
    if not labelled.any():
        return np.ones(len(weights))
    weights[~labelled] = weights[labelled].mean()
    return weights
