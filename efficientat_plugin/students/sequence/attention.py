"""Attention with rotary positions, alone ("attn") and in a transformer ("tf")."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.sequence.layers import (
    EXPANSION,
    ResidualStack,
    RMSNorm,
    SequenceOptions,
    heads_dim,
    merge_heads,
    projection,
    split_heads,
)

BASE = 10000.0  # of the rotary frequencies
HEADS, FEW_HEADS, ENOUGH_CHANNELS = 8, 4, 128  # few heads below so many channels
INITIAL_STD = 0.02


class RotaryPositions(nn.Module):
    """Turns each pair of channels by an angle that grows with the frame's number.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    2021, section 3.2; neighbouring channels form a pair.

    Arguments
    ---------
    channels : int
        Channels of a head, even.

    Shape
    -----
    frames : [B, heads, T', channels]
    result : [B, heads, T', channels]

    Example
    -------
    >>> turned = RotaryPositions(2)(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))
    >>> turned[0, 0]
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        powers = torch.arange(0, channels, 2) / channels
        # Read from checkpoints, which may differ, but not trained
        self.freqs = nn.Parameter(BASE**-powers, requires_grad=False)  # [channels / 2]

    def forward(self, frames: Tensor) -> Tensor:
        numbers = torch.arange(
            frames.shape[2], device=frames.device, dtype=self.freqs.dtype
        )
        angles = numbers[:, None] * self.freqs  # [T', channels / 2]
        cosine, sine = angles.cos().to(frames.dtype), angles.sin().to(frames.dtype)
        first, second = frames.unflatten(3, (-1, 2)).unbind(4)
        turned = (first * cosine - second * sine, second * cosine + first * sine)
        return torch.stack(turned, dim=4).flatten(3)


class GatedAttention(nn.Module):
    """Normalises frames and lets them attend to each other; a gate opens each head.

    Arguments
    ---------
    name : str
        The sequence model's, for messages.
    dim : int
        D; eight heads share it, as published, but four in a "tf" of less than 128.
    dropout : float
        Of attention weights and result.

    Shape
    -----
    frames : [B, T', D]
    result : [B, T', D]

    Raises
    ------
    ValueError
        If the heads cannot share D, or not in pairs of channels.

    Example
    -------
    >>> GatedAttention("attn", 16)(torch.zeros(2, 7, 16)).shape
    torch.Size([2, 7, 16])
    """

    def __init__(self, name: str, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        has_few = name == "tf" and dim < ENOUGH_CHANNELS
        self.heads = FEW_HEADS if has_few else HEADS
        if heads_dim(name, dim, self.heads) % 2:
            raise ValueError(
                f"sequence_dim={dim} gives each of the {self.heads} heads of "
                f"sequence_model={name!r} an odd number of channels, but rotary "
                f"positions turn pairs; give a multiple of {2 * self.heads}"
            )
        self.dropout = dropout
        self.pos_encoding = RotaryPositions(dim // self.heads)
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_gates = nn.Linear(dim, self.heads)
        self.to_out = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.Dropout(dropout)
        )

    def forward(self, frames: Tensor) -> Tensor:
        normed = self.norm(frames)
        query, key, value = (
            split_heads(part, self.heads) for part in self.to_qkv(normed).chunk(3, 2)
        )
        attended = functional.scaled_dot_product_attention(
            self.pos_encoding(query),
            self.pos_encoding(key),
            value,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, heads, T', D / heads]
        gates = torch.sigmoid(self.to_gates(normed))  # [B, T', heads]
        return self.to_out(merge_heads(attended * gates.transpose(1, 2)[..., None]))


class FeedForward(nn.Module):
    """Two layers on each normalised frame: [B, T', D] -> [B, T', D]."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            RMSNorm(dim),
            nn.Linear(dim, EXPANSION * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(EXPANSION * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.net(frames)


class Transformer(nn.Module):
    """Attention and feed-forward in turn, with residuals and a norm at the end.

    Arguments
    ---------
    options : SequenceOptions

    Shape
    -----
    frames : [B, T', D]
    result : [B, T', D]

    Example
    -------
    >>> Transformer(SequenceOptions(dim=16))(torch.zeros(2, 7, 16)).shape
    torch.Size([2, 7, 16])
    """

    def __init__(self, options: SequenceOptions) -> None:
        super().__init__()
        dim, dropout = options.dim, options.dropout
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [GatedAttention("tf", dim, dropout), FeedForward(dim, dropout)]
            )
            for _ in range(options.layers)
        )
        self.norm = RMSNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        layer: Any
        for layer in self.layers:
            attend, feed = layer
            frames = frames + attend(frames)
            frames = frames + feed(frames)
        return self.norm(frames)


def initialised(layers: list[nn.Module]) -> list[nn.Module]:
    """Initialises linear layers as published: N(0, 0.02), and biases with 0."""
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=INITIAL_STD)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
    return layers


def transformer(in_channels: int, options: SequenceOptions) -> list[nn.Module]:
    """Returns the layers of "tf"."""
    body = Transformer(options)
    return initialised([projection(in_channels, options.dim), body])


def attention(in_channels: int, options: SequenceOptions) -> list[nn.Module]:
    """Returns the layers of "attn": attention with residuals, without dropout."""
    body = ResidualStack(
        GatedAttention("attn", options.dim) for _ in range(options.layers)
    )
    return initialised([projection(in_channels, options.dim), body])
