"""Schedules of learning rate and temperature, as pure functions of the epoch.

A schedule holds no state, so none has to be restored when a run is resumed: the Brain
calls it at the start of every epoch. Epochs count from 0 here, as in the papers.
"""

import math


class WarmupRampDown:
    """Learning rate with exponential warm-up, plateau and linear ramp-down.

    Source: the published code of Schmid et al., ICASSP 2023, and Koutini et al.,
    "Efficient Training of Audio Transformers with Patchout", Interspeech 2022.

    Arguments
    ---------
    lr : float
        Learning rate of the plateau.
    warmup_epochs : int
        Epochs before the plateau; 0 starts with the plateau.
    ramp_down_start : int
        Last epoch of the plateau.
    ramp_down_epochs : int
        Epochs from there until ``last_factor`` is reached.
    last_factor : float
        Share of ``lr`` that remains at the end, from 0 to 1.

    Example
    -------
    >>> schedule = WarmupRampDown(lr=1.0)
    >>> [round(schedule(epoch), 4) for epoch in (0, 8, 80, 175, 199)]
    [0.0123, 1.0, 1.0, 0.01, 0.01]
    """

    def __init__(
        self,
        lr: float,
        warmup_epochs: int = 8,
        ramp_down_start: int = 80,
        ramp_down_epochs: int = 95,
        last_factor: float = 0.01,
    ) -> None:
        if warmup_epochs < 0 or ramp_down_start < 0 or ramp_down_epochs < 1:
            raise ValueError(
                f"warmup_epochs={warmup_epochs} and ramp_down_start={ramp_down_start} "
                f"must be 0 or more and ramp_down_epochs={ramp_down_epochs} at least 1"
            )
        if not 0 <= last_factor <= 1:
            raise ValueError(f"last_factor={last_factor} must be from 0 to 1")
        self.lr = lr
        self.warmup_epochs = warmup_epochs
        self.ramp_down_start = ramp_down_start
        self.ramp_down_epochs = ramp_down_epochs
        self.last_factor = last_factor

    def __call__(self, epoch: int) -> float:
        """Returns the learning rate of ``epoch``, counted from 0."""
        return self.lr * self._warmup(epoch) * self._ramp_down(epoch)

    def _warmup(self, epoch: int) -> float:
        if epoch >= self.warmup_epochs:
            return 1.0
        # Epoch 0 counts as 0.5, as in the published schedule.
        remaining = 1.0 - max(epoch, 0.5) / self.warmup_epochs
        return math.exp(-5.0 * remaining**2)

    def _ramp_down(self, epoch: int) -> float:
        done = (epoch - self.ramp_down_start) / self.ramp_down_epochs
        return 1.0 - (1.0 - self.last_factor) * min(max(done, 0.0), 1.0)


class WarmupCosine:
    """Learning rate with linear warm-up, then half a cosine down to nearly 0.

    Unlike ``WarmupRampDown``, it has the same shape for any number of epochs.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", ICLR 2017, eq. 5, without restarts.

    Arguments
    ---------
    lr : float
        Highest learning rate.
    number_of_epochs : int
        1 or more.
    warmup_share : float
        Share of the epochs in which the rate rises, at least 0 and less than 1.

    Example
    -------
    >>> schedule = WarmupCosine(lr=1.0, number_of_epochs=10, warmup_share=0.1)
    >>> [round(schedule(epoch), 3) for epoch in range(10)][:3]
    [0.5, 0.992, 0.933]
    """

    def __init__(
        self, lr: float, number_of_epochs: int, warmup_share: float = 0.1
    ) -> None:
        if number_of_epochs < 1 or not 0 <= warmup_share < 1:
            raise ValueError(
                f"number_of_epochs={number_of_epochs} must be 1 or more, and "
                f"warmup_share={warmup_share} at least 0 and less than 1"
            )
        self.lr = lr
        self.number_of_epochs = number_of_epochs
        self.warmup_share = warmup_share

    def __call__(self, epoch: float) -> float:
        """Returns the learning rate at the middle of ``epoch``, counted from 0."""
        done = (epoch + 0.5) / self.number_of_epochs
        rise = min(1.0, done / self.warmup_share) if self.warmup_share else 1.0
        rest = max(0.0, done - self.warmup_share) / (1 - self.warmup_share)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


class TemperatureRampDown:
    """Temperature of a DyMN's attention over its kernels.

    It starts high, so that all kernels learn, and falls to 1 by ``step`` per epoch.

    Source: Schmid et al., "Dynamic Convolutional Neural Networks as Efficient
    Pre-trained Audio Models", TASLP 2024, section III. Its second, slower slope
    never acts with the published constants and is left out.

    Arguments
    ---------
    start : float
        Temperature of the first epoch, at least 1.
    step : float
        Decrease per epoch, at least 0.

    Example
    -------
    >>> schedule = TemperatureRampDown(start=30.0)
    >>> [schedule(epoch) for epoch in (0, 10, 29, 100)]
    [30.0, 20.0, 1.0, 1.0]
    """

    def __init__(self, start: float = 30.0, step: float = 1.0) -> None:
        if start < 1 or step < 0:
            raise ValueError(
                f"start={start} must be at least 1 and step={step} at least 0"
            )
        self.start = start
        self.step = step

    def __call__(self, epoch: int) -> float:
        """Returns the temperature of ``epoch``, counted from 0."""
        return max(self.start - self.step * epoch, 1.0)
