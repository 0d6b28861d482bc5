"""Recurrent models: a GRU ("gru"), and minGRU beside attention ("hybrid").

minGRU's gates depend on the current frame alone, so that all frames can be computed at
once, by a scan over sums of logarithms.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.sequence.layers import (
    EXPANSION,
    RMSNorm,
    SequenceOptions,
    heads_dim,
    merge_heads,
    projection,
    split_heads,
)

HEADS = 8
# Frames that are scanned at once. The sums of logarithms grow with it, and with them
# the rounding of single precision, which would spoil clips of minutes.
SCANNED = 64


class BidirectionalGRU(nn.Module):
    """GRUs in both directions: [B, T', C] -> [B, T', 2 * dim]."""

    def __init__(self, in_channels: int, options: SequenceOptions) -> None:
        super().__init__()
        self.gru = nn.GRU(
            in_channels,
            options.dim,
            num_layers=options.layers,
            batch_first=True,
            bidirectional=True,
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.gru(frames)[0]


def gru(in_channels: int, options: SequenceOptions) -> list[nn.Module]:
    """Returns the layer of "gru", which reads the backbone's frames directly."""
    return [BidirectionalGRU(in_channels, options)]


def scan(candidates: Tensor, gates: Tensor) -> Tensor:
    """Runs a minGRU over frames, from a state of zeros; at least in float32.

    The state is ``h[t] = (1 - z[t]) * h[t-1] + z[t] * g(candidates[t])`` with
    ``z = sigmoid(gates)``, and g(x) is x + 0.5 where x is positive, else sigmoid(x).

    Source: Feng et al., "Were RNNs All We Needed?", 2024, appendix B.

    Arguments
    ---------
    candidates : torch.Tensor
    gates : torch.Tensor

    Shape
    -----
    candidates, gates : [B, T', D]
    result : [B, T', D]

    Example
    -------
    >>> scan(torch.tensor([[[0.5], [1.5]]]), torch.zeros(1, 2, 1)).flatten()
    tensor([0.5000, 1.2500])
    """
    if candidates.element_size() < 4:  # under autocast
        candidates, gates = candidates.float(), gates.float()
    log_kept = -functional.softplus(gates)
    positive = (functional.relu(candidates) + 0.5).log()
    log_values = torch.where(
        candidates >= 0, positive, functional.logsigmoid(candidates)
    )
    log_new = functional.logsigmoid(gates) + log_values
    state = torch.zeros_like(candidates[:, :1])
    states = []
    for kept, new in zip(
        log_kept.split(SCANNED, dim=1), log_new.split(SCANNED, dim=1), strict=True
    ):
        decay = kept.cumsum(1)  # log of what is left of the state before these frames
        added = torch.exp(decay + torch.logcumsumexp(new - decay, 1))
        states.append(added + decay.exp() * state)
        state = states[-1][:, -1:]
    return torch.cat(states, 1)


class MinGRU(nn.Module):
    """A GRU of one gate that looks at the current frame alone.

    Arguments
    ---------
    dim : int
        D

    Shape
    -----
    frames : [B, T', D]
    states : [B, T', D]

    Example
    -------
    >>> MinGRU(4)(torch.zeros(1, 7, 4)).shape
    torch.Size([1, 7, 4])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        candidates, gates = self.to_hidden_and_gate(frames).chunk(2, 2)
        return scan(candidates, gates)


class BidirectionalMinGRU(nn.Module):
    """minGRUs in both directions, mixed by a linear layer: [B, T', D] -> [B, T', D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forward_minGRU = MinGRU(dim)
        self.backward_minGRU = MinGRU(dim)
        self.to_out = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        onward = self.forward_minGRU(frames)
        backward = self.backward_minGRU(frames.flip(1)).flip(1)
        return self.to_out(torch.cat([onward, backward], 2))


class HybridAttention(nn.Module):
    """The mean of a bidirectional minGRU and of attention without positions.

    Each head of either is normalised before.

    Arguments
    ---------
    dim : int
        D, a multiple of 8.

    Shape
    -----
    frames : [B, T', D]
    result : [B, T', D]

    Raises
    ------
    ValueError
        If eight heads cannot share D.

    Example
    -------
    >>> HybridAttention(16)(torch.zeros(2, 7, 16)).shape
    torch.Size([2, 7, 16])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        of_head = heads_dim("hybrid", dim, HEADS)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.rnn = BidirectionalMinGRU(dim)
        self.rnn_out_norm = RMSNorm(of_head)
        self.attn_out_norm = RMSNorm(of_head)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        query, key, value = (
            split_heads(part, HEADS) for part in self.to_qkv(frames).chunk(3, 2)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        states = split_heads(self.rnn(frames), HEADS)  # [B, heads, T', D / heads]
        both = self.rnn_out_norm(states) + self.attn_out_norm(attended)
        return self.to_out(merge_heads(0.5 * both))


class Hybrid(nn.Module):
    """Hybrid attention and feed-forward in turn, with norms and residuals.

    Arguments
    ---------
    options : SequenceOptions

    Shape
    -----
    frames : [B, T', D]
    result : [B, T', D]

    Example
    -------
    >>> Hybrid(SequenceOptions(dim=16))(torch.zeros(2, 7, 16)).shape
    torch.Size([2, 7, 16])
    """

    def __init__(self, options: SequenceOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    RMSNorm(options.dim),
                    HybridAttention(options.dim),
                    RMSNorm(options.dim),
                    feed_forward(options.dim),
                ]
            )
            for _ in range(options.layers)
        )
        self.norm = RMSNorm(options.dim)

    def forward(self, frames: Tensor) -> Tensor:
        layer: Any
        for layer in self.layers:
            first_norm, mix, second_norm, feed = layer
            frames = frames + mix(first_norm(frames))
            frames = frames + feed(second_norm(frames))
        return self.norm(frames)


def feed_forward(dim: int) -> nn.Sequential:
    """Returns two layers that are applied to each frame."""
    return nn.Sequential(
        nn.Linear(dim, EXPANSION * dim), nn.GELU(), nn.Linear(EXPANSION * dim, dim)
    )


def hybrid(in_channels: int, options: SequenceOptions) -> list[nn.Module]:
    """Returns the layers of "hybrid"."""
    return [projection(in_channels, options.dim), Hybrid(options)]
