"""Augments log-mels at random without moving anything in time, so targets stay.

Each is a module from log-mels to log-mels, the identity in evaluation. One replaces
``spec_mask`` in a YAML, or several in a row with `torch.nn.Sequential`. All draw from
torch's global generator on the CPU, which the Brain seeds at every step: a run draws
the same on every device, and an interrupted one resumes with the same draws.
"""

import torch
from torch import Tensor

MIX_STYLE_FLOOR = 1e-6  # of the variance, which a constant band has none of


class FilterAugment(torch.nn.Module):
    """Weights mel bins by a random curve of gains, as other microphones would.

    F is cut into bands at random. Each clip has its own gains at the edges of the
    bands, and straight lines in decibels in between. As published, the normalised
    log-mel is multiplied by the gains, not the power.

    Source: Nam et al., "FilterAugment: An Acoustic Environmental Data Augmentation
    Method", ICASSP 2022, of the linear type, as in the published code of PretrainedSED.

    Arguments
    ---------
    probability : float
        Probability that a batch is changed, from 0 to 1.
    max_db : float
        Gains are from ``-max_db`` to ``max_db``, dB.
    min_bands, max_bands : int
        The number of bands is drawn from this range, both ends included; 2 or more.
    min_bins : int
        Width of the narrowest band, mel bins; less where F is too small for it.

    Shape
    -----
    input and output : [B, F, T]

    Raises
    ------
    ValueError
        If an argument has no legal value, or there are fewer bins than bands.

    Example
    -------
    >>> FilterAugment(probability=0.8)(torch.ones(2, 128, 100)).shape
    torch.Size([2, 128, 100])
    """

    def __init__(
        self,
        probability: float = 1.0,
        max_db: float = 6.0,
        min_bands: int = 3,
        max_bands: int = 5,
        min_bins: int = 6,
    ) -> None:
        super().__init__()
        check_probability(probability)
        if max_db < 0 or not 2 <= min_bands <= max_bands or min_bins < 1:
            raise ValueError(
                f"max_db={max_db} must be 0 or more, min_bins={min_bins} 1 or more, "
                f"and 2 <= min_bands={min_bands} <= max_bands={max_bands}"
            )
        self.probability = probability
        self.max_db = max_db
        self.min_bands, self.max_bands = min_bands, max_bands
        self.min_bins = min_bins

    def forward(self, log_mel: Tensor) -> Tensor:
        """Weights the mel bins of a batch: [B, F, T] -> [B, F, T]."""
        if not (self.training and happens(self.probability)):
            return log_mel
        num_clips, num_bins, _ = log_mel.shape
        if num_bins < self.max_bands:
            raise ValueError(
                f"{num_bins} mel bins cannot be cut into max_bands={self.max_bands}; "
                "lower it"
            )
        edges = self._edges(num_bins)
        decibels = (2 * torch.rand(num_clips, len(edges)) - 1) * self.max_db
        curve = torch.ones(num_clips, num_bins)
        for band, (first, behind) in enumerate(zip(edges, edges[1:], strict=False)):
            # A line through both of its edges: the next band repeats the gain.
            place = torch.linspace(0, 1, behind - first)
            left, right = decibels[:, band, None], decibels[:, band + 1, None]
            curve[:, first:behind] = left + place * (right - left)
        gains = (10 ** (curve / 20)).to(log_mel)
        return log_mel * gains[:, :, None]

    def _edges(self, num_bins: int) -> list[int]:
        """Draws where bands begin, and the end of the last one."""
        num_bands = int(torch.randint(self.min_bands, self.max_bands + 1, ()))
        width = min(self.min_bins, num_bins // num_bands)
        free = num_bins - num_bands * width
        places = torch.randint(free + 1, (num_bands - 1,)).sort().values
        inner = places + width * torch.arange(1, num_bands)
        return [0, *inner.tolist(), num_bins]


class FrequencyWarp(torch.nn.Module):
    """Stretches a random range of mel bins to all of them, as if sources were others.

    One range is drawn for a batch, and resized by cubic interpolation.

    Source: the random resize crop of Niizumi et al., "BYOL for Audio", IJCNN 2021,
    along frequency alone, as in the published code of PretrainedSED.

    Arguments
    ---------
    probability : float
        Probability that a batch is changed, from 0 to 1.
    min_share, max_share : float
        Share of the F mel bins in the range, drawn evenly; above 0, at most 1.

    Shape
    -----
    input and output : [B, F, T]

    Raises
    ------
    ValueError
        If an argument has no legal value.

    Example
    -------
    >>> FrequencyWarp(probability=0.8)(torch.randn(2, 128, 100)).shape
    torch.Size([2, 128, 100])
    """

    def __init__(
        self, probability: float = 1.0, min_share: float = 0.6, max_share: float = 1.0
    ) -> None:
        super().__init__()
        check_probability(probability)
        if not 0 < min_share <= max_share <= 1:
            raise ValueError(
                f"min_share={min_share} and max_share={max_share} must be above 0, at "
                "most 1 and in this order"
            )
        self.probability = probability
        self.min_share, self.max_share = min_share, max_share

    def forward(self, log_mel: Tensor) -> Tensor:
        """Stretches the mel bins of a batch: [B, F, T] -> [B, F, T]."""
        if not (self.training and happens(self.probability)):
            return log_mel
        num_bins, num_frames = log_mel.shape[1:]
        share = self.min_share + (self.max_share - self.min_share) * torch.rand(())
        size = min(max(int(share * num_bins), 1), num_bins)
        first = int(torch.randint(num_bins - size + 1, ()))
        if size == num_bins:
            return log_mel
        crop = log_mel[:, None, first : first + size]
        stretched = torch.nn.functional.interpolate(
            crop, (num_bins, num_frames), mode="bicubic", align_corners=True
        )
        return stretched[:, 0]


class FreqMixStyle(torch.nn.Module):
    """Gives the mel bins of each clip some of another clip's mean and deviation.

    It changes how a recording sounds (device, room), not what is in it, and so labels
    and teachers' scores stay.

    Source: Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, for each mel
    bin, as in the published code of DCASE 2023's CP-Mobile. That of PretrainedSED, for
    event detection, differs in ``keep_larger=True`` alone: it takes its statistics over
    time, and a log-mel has no channels that the other could average over, too.

    Arguments
    ---------
    probability : float
        Probability that a batch is changed, from 0 to 1.
    alpha : float
        The share of a clip's own statistics is drawn from Beta(alpha, alpha).
    keep_larger : bool
        Whether that share is at least one half.

    Shape
    -----
    input and output : [B, F, T], T at least 2

    Raises
    ------
    ValueError
        If an argument has no legal value.

    Example
    -------
    >>> FreqMixStyle(probability=0.4, alpha=0.3)(torch.randn(2, 128, 100)).shape
    torch.Size([2, 128, 100])
    """

    def __init__(
        self, probability: float = 0.4, alpha: float = 0.4, keep_larger: bool = False
    ) -> None:
        super().__init__()
        check_probability(probability)
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} must be above 0")
        self.probability = probability
        self.alpha = alpha
        self.keep_larger = keep_larger

    def forward(self, log_mel: Tensor) -> Tensor:
        """Mixes the statistics of a batch: [B, F, T] -> [B, F, T]."""
        if not (self.training and happens(self.probability)):
            return log_mel
        size = (len(log_mel),)
        weight = torch.distributions.Beta(self.alpha, self.alpha).sample(size)
        if self.keep_larger:
            weight = torch.maximum(weight, 1 - weight)
        partner = torch.randperm(len(log_mel))
        return mix_styles(log_mel, weight.to(log_mel), partner.to(log_mel.device))


def mix_styles(log_mel: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    """Mixes the mean and deviation of each mel bin with those of another clip.

    Arguments
    ---------
    log_mel : Tensor
        [B, F, T]
    weight : Tensor
        [B], share of a clip's own statistics, from 0 to 1.
    partner : Tensor
        [B], int64, the clip whose statistics are the rest.

    Returns
    -------
    Tensor
        [B, F, T]

    Example
    -------
    >>> log_mel = torch.randn(2, 4, 50)
    >>> mixed = mix_styles(log_mel, torch.zeros(2), torch.tensor([1, 0]))
    >>> torch.allclose(mixed.mean(2), log_mel.mean(2)[[1, 0]], atol=1e-5)
    True
    """
    with torch.no_grad():
        variance, mean = torch.var_mean(log_mel, dim=2, keepdim=True)
        deviation = (variance + MIX_STYLE_FLOOR).sqrt()
        share = weight[:, None, None]
        other_mean, other_deviation = mean[partner], deviation[partner]
        mixed_mean = share * mean + (1 - share) * other_mean
        mixed_deviation = share * deviation + (1 - share) * other_deviation
    return (log_mel - mean) / deviation * mixed_deviation + mixed_mean


def happens(probability: float) -> bool:
    """Draws whether to change a batch; 0 and 1 need no draw.

    Example
    -------
    >>> happens(0.0), happens(1.0)
    (False, True)
    """
    if probability in (0, 1):
        return bool(probability)
    return bool(torch.rand(()) < probability)


def check_probability(probability: float) -> None:
    """Raises a ``ValueError`` for what is no probability.

    Example
    -------
    >>> check_probability(1.5)
    Traceback (most recent call last):
    ValueError: probability=1.5 must be from 0 to 1
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be from 0 to 1")
