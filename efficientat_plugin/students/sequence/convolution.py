"""A temporal convolutional network ("tcn"): dilated convolutions that look back."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.sequence.layers import (
    ResidualStack,
    SequenceOptions,
    projection,
)

KERNEL = 3  # frames
DILATIONS = (1, 2, 4, 8, 16)  # frames, one for each block of a stack


class CausalConvolution(nn.Module):
    """A convolution whose result at a frame depends on this and earlier frames only.

    The weight is kept as a direction ``weight_v`` and a length ``weight_g``.

    Source: Salimans and Kingma, "Weight Normalization", NeurIPS 2016.

    Arguments
    ---------
    channels : int
    dilation : int
        Frames.

    Shape
    -----
    frames : [B, channels, T']
    result : [B, channels, T']

    Example
    -------
    >>> CausalConvolution(4, dilation=2)(torch.zeros(1, 4, 7)).shape
    torch.Size([1, 4, 7])
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        initial = nn.Conv1d(channels, channels, KERNEL)
        self.bias = initial.bias
        direction = initial.weight.detach()
        self.weight_g = nn.Parameter(lengths(direction))
        self.weight_v = nn.Parameter(direction)
        self.dilation = dilation

    def forward(self, frames: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / lengths(self.weight_v))
        earlier = functional.pad(frames, ((KERNEL - 1) * self.dilation, 0))
        return functional.conv1d(earlier, weight, self.bias, dilation=self.dilation)


def lengths(direction: Tensor) -> Tensor:
    """Returns the length of each filter: [C, C, k] -> [C, 1, 1]."""
    return torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)


class TemporalBlock(nn.Module):
    """Two causal convolutions and a residual: [B, D, T'] -> [B, D, T']."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        # Published checkpoints have both convolutions under two names each.
        self.conv1 = CausalConvolution(channels, dilation)
        self.conv2 = CausalConvolution(channels, dilation)
        self.net = nn.Sequential(
            self.conv1,
            nn.Identity(),  # keeps the published numbering of the layers after it
            nn.ReLU(),
            nn.Dropout(dropout),
            self.conv2,
            nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return torch.relu(self.net(frames) + frames)


class TemporalConvNet(nn.Module):
    """Blocks of growing dilation, which see 124 frames back.

    Source: Bai et al., "An Empirical Evaluation of Generic Convolutional and Recurrent
    Networks for Sequence Modeling", 2018, section 3.

    Arguments
    ---------
    channels : int
        D
    dropout : float

    Shape
    -----
    frames : [B, T', D]
    result : [B, T', D]

    Example
    -------
    >>> TemporalConvNet(4, dropout=0.0)(torch.zeros(1, 7, 4)).shape
    torch.Size([1, 7, 4])
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(TemporalBlock(channels, dilation, dropout) for dilation in DILATIONS)
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(frames.transpose(1, 2)).transpose(1, 2)


def temporal_convolutions(
    in_channels: int, options: SequenceOptions
) -> list[nn.Module]:
    """Returns the layers of "tcn"."""
    stack = ResidualStack(
        TemporalConvNet(options.dim, options.dropout) for _ in range(options.layers)
    )
    return [projection(in_channels, options.dim), stack]
