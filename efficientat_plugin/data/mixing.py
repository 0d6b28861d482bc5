"""Augments sound at random in training: gain, roll, mixing of waveforms, mixup.

``WaveformAugment`` and ``WaveformMix`` run in the loader, clip by clip, with the
clip's own generator. ``Mixup`` runs on the device, batch by batch, with torch's global
generator, which the Brain seeds at every step.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientat_plugin.contracts import Mix

Waveform = NDArray[np.float32]


class WaveformAugment:
    """Applies a random gain and a random circular shift to a clip.

    Arguments
    ---------
    gain_db : int
        The gain is a whole number of decibels from ``-gain_db`` to ``gain_db``.
    roll_samples : int
        The shift is from ``-roll_samples`` to ``roll_samples`` samples.

    Example
    -------
    >>> augment = WaveformAugment(gain_db=12, roll_samples=4000)
    >>> augment(np.ones(8, np.float32), np.random.default_rng(0)).shape
    (8,)
    """

    def __init__(self, gain_db: int = 0, roll_samples: int = 0) -> None:
        if gain_db < 0 or roll_samples < 0:
            raise ValueError(
                f"gain_db={gain_db} and roll_samples={roll_samples} must be 0 or more"
            )
        self.gain_db = gain_db
        self.roll_samples = roll_samples

    def __call__(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        """[N] -> [N]"""
        if self.gain_db:
            decibels = rng.integers(-self.gain_db, self.gain_db, endpoint=True)
            waveform = waveform * np.float32(10 ** (decibels / 20))
        if self.roll_samples:
            shift = rng.integers(-self.roll_samples, self.roll_samples, endpoint=True)
            waveform = np.roll(waveform, shift)
        return waveform


class MixDraw(NamedTuple):
    """The row to mix into a clip, and the weight of the clip itself."""

    partner: int  # row of the data set
    weight: float  # in [0.5, 1]


class WaveformMix:
    """Mixes the waveforms of two clips, and their labels with the same weights.

    Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout",
    Interspeech 2022, where the stored teacher knew only the first clip of such a mix;
    here the partner's id travels with the clip, and the teacher has targets for both.

    Arguments
    ---------
    probability : float
        Probability that a clip is mixed.
    alpha : float
        Weights are drawn from Beta(alpha, alpha).

    Example
    -------
    >>> mix = WaveformMix(probability=1.0)
    >>> draw = mix.draw(10, np.random.default_rng(0))
    >>> 0 <= draw.partner < 10 and 0.5 <= draw.weight <= 1
    True
    """

    def __init__(self, probability: float = 0.5, alpha: float = 2.0) -> None:
        if not 0 <= probability <= 1 or alpha <= 0:
            raise ValueError(
                f"probability={probability} must be from 0 to 1 and alpha={alpha} "
                "above 0"
            )
        self.probability = probability
        self.alpha = alpha

    def draw(self, num_rows: int, rng: np.random.Generator) -> MixDraw | None:
        """Draws the row to mix with and the weight; None: the clip is not mixed."""
        if rng.random() >= self.probability:
            return None
        weight = float(rng.beta(self.alpha, self.alpha))
        return MixDraw(int(rng.integers(num_rows)), max(weight, 1 - weight))

    def mix(self, waveform: Waveform, partner: Waveform, weight: float) -> Waveform:
        """[N], [N] -> [N]; removes the mean of each waveform and of the mix."""
        mixed = weight * (waveform - waveform.mean())
        mixed += (1 - weight) * (partner - partner.mean())
        return (mixed - mixed.mean()).astype(np.float32)


class Mixup:
    """Mixes each log-mel of a batch with another; ``Mix`` makes the targets follow.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with
    one weight per clip, never below 0.5 for the clip itself.

    Arguments
    ---------
    alpha : float
        Weights are drawn from Beta(alpha, alpha).

    Example
    -------
    >>> mixed, mix = Mixup(alpha=0.3)(torch.randn(4, 128, 100))
    >>> mixed.shape, mix.partner.shape
    (torch.Size([4, 128, 100]), torch.Size([4]))
    """

    def __init__(self, alpha: float = 0.3) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} must be above 0; null switches mixup off")
        self.alpha = alpha

    def __call__(self, log_mel: Tensor) -> tuple[Tensor, Mix]:
        """[B, F, T] -> [B, F, T], and how the clips were mixed."""
        # Drawn on the CPU, so that a run draws the same mixes on every device.
        size = (len(log_mel),)
        weight = torch.distributions.Beta(self.alpha, self.alpha).sample(size)
        weight = torch.maximum(weight, 1 - weight).to(log_mel.device)
        partner = torch.randperm(len(log_mel)).to(log_mel.device)
        share = weight[:, None, None]
        mixed = share * log_mel + (1 - share) * log_mel[partner]
        return mixed, Mix(weight, partner)
