"""Which clips an epoch draws, and in what order.

A draw carries its epoch and its place within it, so that what happens to the clip
at random is a function of (seed, epoch, position): the same for any number of
workers, and after a resume.
"""

from collections.abc import Iterator, Sequence
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

    Under DDP SpeechBrain deals the draws out to the processes, positions included.

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

    def set_epoch(self, epoch: int) -> None:
        """Called by the Brain before each epoch."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self.clips_per_epoch

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.sampler.epoch
        for position, index in enumerate(self.sampler):
            yield Draw(index, epoch, position)


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
