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
from efficientat_plugin.data.log_mel_augmentation import check_probability, happens

Waveform = NDArray[np.float32]


class AugmentDraw(NamedTuple):
    """The gain and the shift of a clip."""

    decibels: int
    shift_samples: int  # above 0: later

    def labels(self, labels: Tensor, num_samples: int) -> Tensor:
        """Shifts labels of frames with the waveform; those of clips stay.

        Arguments
        ---------
        labels : Tensor
            [K], or [K, T'], which is shifted by a whole number of frames, the nearest.
        num_samples : int
            N, length of the waveform.

        Example
        -------
        >>> AugmentDraw(0, 700).labels(torch.tensor([[1, 0, 0, 0]]), num_samples=1600)
        tensor([[0, 0, 1, 0]])
        """
        if labels.ndim < 2 or not self.shift_samples:
            return labels
        num_frames = labels.shape[-1]
        return labels.roll(round(self.shift_samples * num_frames / num_samples), -1)


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

    def draw(self, rng: np.random.Generator) -> AugmentDraw:
        """Draws how to change a clip."""
        decibels = shift = 0
        if self.gain_db:
            decibels = int(rng.integers(-self.gain_db, self.gain_db, endpoint=True))
        if self.roll_samples:
            longest = self.roll_samples
            shift = int(rng.integers(-longest, longest, endpoint=True))
        return AugmentDraw(decibels, shift)

    def changed(self, waveform: Waveform, draw: AugmentDraw) -> Waveform:
        """Changes a waveform as drawn: [N] -> [N]."""
        if self.gain_db:
            waveform = waveform * np.float32(10 ** (draw.decibels / 20))
        if self.roll_samples:
            waveform = np.roll(waveform, draw.shift_samples)
        return waveform

    def __call__(self, waveform: Waveform, rng: np.random.Generator) -> Waveform:
        """[N] -> [N]"""
        return self.changed(waveform, self.draw(rng))


class MixDraw(NamedTuple):
    """The row to mix into a clip, and the weight of the clip itself."""

    partner: int  # row of the data set
    weight: float  # in [0.5, 1]


class WaveformMix:
    """Mixes the waveforms of two clips, and their labels with the same weights.

    Labels of frames are mixed frame by frame, as those of clips are.

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

    def mix_labels(self, labels: Tensor, partner: Tensor, weight: float) -> Tensor:
        """Mixes labels of two clips, or how well they are known: any one shape."""
        return weight * labels + (1 - weight) * partner


class Mixup:
    """Mixes each log-mel of a batch with another; ``Mix`` makes the targets follow.

    Targets of frames follow as those of clips do: a mix moves nothing in time.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with
    one weight per clip. As published for tagging, it is never below 0.5 for the clip
    itself; as published for event detection (EfficientSED), it is whatever was drawn
    (``keep_larger=False``, ``alpha=0.2``), and a batch is mixed as a whole or not
    (``probability=0.3``).

    Arguments
    ---------
    alpha : float
        Weights are drawn from Beta(alpha, alpha).
    probability : float
        Probability that a batch is mixed, from 0 to 1.
    keep_larger : bool
        Whether the clip itself has the larger of both weights.

    Example
    -------
    >>> mixed, mix = Mixup(alpha=0.3)(torch.randn(4, 128, 100))
    >>> mixed.shape, mix.partner.shape
    (torch.Size([4, 128, 100]), torch.Size([4]))
    """

    def __init__(
        self, alpha: float = 0.3, probability: float = 1.0, keep_larger: bool = True
    ) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} must be above 0; null switches mixup off")
        check_probability(probability)
        self.alpha = alpha
        self.probability = probability
        self.keep_larger = keep_larger

    def __call__(self, log_mel: Tensor) -> tuple[Tensor, Mix | None]:
        """[B, F, T] -> [B, F, T], and how the clips were mixed; None: not at all."""
        if not happens(self.probability):
            return log_mel, None
        # Drawn on the CPU, so that a run draws the same mixes on every device.
        size = (len(log_mel),)
        weight = torch.distributions.Beta(self.alpha, self.alpha).sample(size)
        if self.keep_larger:
            weight = torch.maximum(weight, 1 - weight)
        weight = weight.to(log_mel.device)
        partner = torch.randperm(len(log_mel)).to(log_mel.device)
        share = weight[:, None, None]
        mixed = share * log_mel + (1 - share) * log_mel[partner]
        return mixed, Mix(weight, partner)
