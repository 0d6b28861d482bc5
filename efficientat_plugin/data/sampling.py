"""Draws the clips of an epoch, in a reproducible order.

A draw carries its epoch and its position in it, so that the random changes of a clip
are a function of (seed, epoch, position): the same for any number of workers, and
after a resume.
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

    Processes share the draws (``deal``). An epoch can be resumed after any number of
    them (``start``), even with another number of processes.

    Arguments
    ---------
    num_rows : int
        Rows of the data set.
    clips_per_epoch : int | None
        Draws per epoch; None: all rows. No row is drawn twice before all were drawn
        once.
    weights : Sequence[float] | None
        [num_rows], relative probability of each row; None: all are equal.
    seed : int
        Seeds the draws; the epoch is added to it.

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
        self.start = 0  # draws of the epoch to leave out, over all processes
        self.rank, self.world_size, self.drop_last = 0, 1, False

    def deal(self, rank: int, world_size: int, drop_last: bool) -> None:
        """Gives this process every ``world_size``-th draw, as DistributedSampler does.

        Arguments
        ---------
        rank : int
            Rank of this process.
        world_size : int
            Number of processes.
        drop_last : bool
            Whether to drop draws that do not divide evenly; if False, the first draws
            are repeated.

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
        """Sets the epoch; the Brain calls this before each one."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Returns the number of draws of this process in a whole epoch."""
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
    """Counts an epoch's progress in clips, so that other processes can resume it.

    Arguments
    ---------
    draws : Draws or None
        Draws of the training clips; None: another sampler, whose place is unknown.
    clips_per_step : int
        Clips per step of all processes together.

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
    clips_before: int = 0  # drawn in these steps
    per_step_before: int = 0  # clips per step at that time

    def begin(self) -> None:
        """Starts another epoch at its first clip."""
        self.steps_before = self.clips_before = 0

    def resume(self, step: int, clips_drawn: int, clips_per_step: int) -> None:
        """Resumes after ``step`` steps, in which all processes drew ``clips_drawn``."""
        self.steps_before, self.clips_before = step, clips_drawn
        self.per_step_before = clips_per_step

    def clips_drawn(self, step: int) -> int:
        """Returns the clips that all processes drew in ``step`` steps of the epoch."""
        if self.draws is None:
            return 0
        since = (step - self.steps_before) * self.clips_per_step
        return min(self.clips_before + since, self.draws.clips_per_epoch)

    def change(self) -> str | None:
        """Returns a notice if the number of clips per step has changed, else None."""
        if self.per_step_before in (0, self.clips_per_step) or self.draws is None:
            return None
        text = (
            f"This run had {self.per_step_before} clips per step over all processes, "
            f"and now has {self.clips_per_step}"
        )
        if self.clips_before:
            text += (
                f"; {self.clips_before} of the {self.draws.clips_per_epoch} clips of "
                "the interrupted epoch are done, and it resumes with the others"
            )
        return text


class _Permutations:
    """Yields ``num_draws`` rows: one random permutation of all rows after another."""

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
    """Computes sampling weights of clips, so that rare classes are drawn as well.

    The weight of a clip is the sum over its classes of
    ``1000 / (100 + clips of the class)``; a clip without labels gets the mean weight of
    those with labels.

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
    # The classes of all clips in one array, and the clip of each
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
