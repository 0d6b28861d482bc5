"""What the sequence models share: their options, normalisation, projection, stacks."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EXPANSION = 4  # units of a feed-forward's hidden layer per channel


class SequenceOptions(NamedTuple):
    """The options that sequence models are built from; not all use all of them."""

    dim: int = 256  # channels; of "gru", for each direction
    layers: int = 2
    dropout: float = 0.2  # of "tf" and "tcn"


class RMSNorm(nn.Module):
    """Scales each frame to a root mean square of 1, and each channel by a gain.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019;
    differs from it in having no epsilon, so that silence stays silence.

    Arguments
    ---------
    channels : int

    Shape
    -----
    frames : [..., channels]
    result : [..., channels]

    Example
    -------
    >>> normed = RMSNorm(2)(torch.tensor([[6.0, 8.0]]))
    >>> round(normed.square().mean().item(), 3)
    1.0
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, frames: Tensor) -> Tensor:
        scale = self.gamma.numel() ** 0.5
        return functional.normalize(frames, dim=-1) * scale * self.gamma


class ResidualStack(nn.Module):
    """Adds the result of each layer to its input: [B, T', D] -> [B, T', D]."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, frames: Tensor) -> Tensor:
        for layer in self.layers:
            frames = frames + layer(frames)
        return frames


def projection(in_channels: int, dim: int) -> nn.Module:
    """Returns a linear layer; nothing where the numbers of channels agree."""
    return nn.Identity() if in_channels == dim else nn.Linear(in_channels, dim)


def heads_dim(name: str, dim: int, heads: int) -> int:
    """Returns the channels of a head of attention.

    Raises
    ------
    ValueError
        If the channels cannot be split into the heads.
    """
    if dim % heads:
        raise ValueError(
            f"sequence_dim={dim} cannot be split into the {heads} heads of "
            f"sequence_model={name!r}; give a multiple of {heads}"
        )
    return dim // heads


def split_heads(frames: Tensor, heads: int) -> Tensor:
    """[B, T', heads * d] -> [B, heads, T', d]"""
    return frames.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(frames: Tensor) -> Tensor:
    """[B, heads, T', d] -> [B, T', heads * d]"""
    return frames.transpose(1, 2).flatten(2)
