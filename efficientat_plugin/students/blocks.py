"""The building blocks of MN and DyMN: the table of blocks, convolutions and gates.

Both networks share the table; `mn.py` builds its rows as inverted residuals with
squeeze-excite, `dymn.py` as dynamic ones (`dynamic.py`). The submodules have the names
that they have in the published checkpoints.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from efficientat_plugin.students.cpu.batch_norm import BatchNorm
from efficientat_plugin.students.cpu.depthwise import DepthwiseConv2d

DIVISOR = 8  # every number of channels is a multiple of it


def round_channels(channels: float) -> int:
    """Rounds to the nearest multiple of 8 that is at least 8 and 0.9 ``channels``.

    Source: MobileNetV1-V3 ("make_divisible").

    Example
    -------
    >>> round_channels(24 * 0.4), round_channels(40 * 0.4), round_channels(9)
    (16, 16, 16)
    """
    rounded = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return rounded + DIVISOR if rounded < 0.9 * channels else rounded


class BlockRow(NamedTuple):
    """One row of the published table, with numbers of channels at width 1."""

    in_channels: int
    kernel: int
    expanded: int
    out_channels: int
    squeeze_excite: bool
    activation: type[nn.Module]
    strides_index: int | None = None  # which of the four `strides`; None: stride 1
    is_tail: bool = False  # may be dilated


RE, HS = nn.ReLU, nn.Hardswish
# Source: MobileNetV3-Large, Howard et al. 2019, table 1. For ten seconds, the maps
# after the stem are 64 x 500; the comments give the size after a row.
BLOCK_TABLE = (
    BlockRow(16, 3, 16, 16, False, RE),  # 64 x 500
    BlockRow(16, 3, 64, 24, False, RE, 0),  # 32 x 250
    BlockRow(24, 3, 72, 24, False, RE),
    BlockRow(24, 5, 72, 40, True, RE, 1),  # 16 x 125
    BlockRow(40, 5, 120, 40, True, RE),
    BlockRow(40, 5, 120, 40, True, RE),
    BlockRow(40, 3, 240, 80, False, HS, 2),  # 8 x 63
    BlockRow(80, 3, 200, 80, False, HS),
    BlockRow(80, 3, 184, 80, False, HS),
    BlockRow(80, 3, 184, 80, False, HS),
    BlockRow(80, 3, 480, 112, True, HS),
    BlockRow(112, 3, 672, 112, True, HS),
    BlockRow(112, 5, 672, 160, True, HS, 3, is_tail=True),  # 4 x 32
    BlockRow(160, 5, 960, 160, True, HS, is_tail=True),
    BlockRow(160, 5, 960, 160, True, HS, is_tail=True),
)
REDUCED = {160: 80, 960: 480}  # channels of the table that `reduced_tail` halves
HIDDEN, REDUCED_HIDDEN = 1280, 640  # units of the mlp head's hidden layer
LAST_EXPANSION = 6  # channels of the last convolution per channel of the last block


class BlockSpec(NamedTuple):
    """One block as it is built, with rounded channels, stride and dilation."""

    in_channels: int
    kernel: int
    expanded: int
    out_channels: int
    squeeze_excite: bool
    activation: type[nn.Module]
    nominal_stride: int
    dilation: int
    frame_stride: int | None = None  # stride over frames; None: that over bands

    @property
    def stride(self) -> int:
        """Stride of the depthwise convolution; dilation replaces striding."""
        return 1 if self.dilation > 1 else self.nominal_stride

    @property
    def strides(self) -> tuple[int, int]:
        """Strides of the depthwise convolution over bands and over frames."""
        over_frames = self.stride if self.frame_stride is None else self.frame_stride
        return self.stride, over_frames

    @property
    def is_expanding(self) -> bool:
        """Whether the block starts with an expanding convolution."""
        return self.expanded != self.in_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added; as published, not in a dilated block 13."""
        is_strided = self.nominal_stride > 1 or self.frame_stride not in (None, 1)
        return not is_strided and self.in_channels == self.out_channels


def block_specs(
    width: float, strides: Sequence[int], dilated: bool, reduced_tail: bool
) -> list[BlockSpec]:
    """Returns the fifteen blocks of a student.

    Arguments
    ---------
    width : float
        Multiplies every number of channels.
    strides : sequence of int
        Strides of the four blocks that may have one.
    dilated : bool
        Whether the last three blocks use dilation 2 instead of striding.
    reduced_tail : bool
        Whether the last three blocks have half the channels.

    Returns
    -------
    list of BlockSpec

    Example
    -------
    >>> block_specs(0.4, (2, 2, 2, 2), False, False)[3][:4]
    (16, 5, 32, 16)
    """

    def scaled(channels: int) -> int:
        if reduced_tail:
            channels = REDUCED.get(channels, channels)
        return round_channels(channels * width)

    return [
        BlockSpec(
            scaled(row.in_channels),
            row.kernel,
            scaled(row.expanded),
            scaled(row.out_channels),
            row.squeeze_excite,
            row.activation,
            1 if row.strides_index is None else strides[row.strides_index],
            2 if dilated and row.is_tail else 1,
        )
        for row in BLOCK_TABLE
    ]


def hidden_channels(width: float, reduced_tail: bool) -> int:
    """Returns the number of units of the mlp head's hidden layer."""
    return round_channels((REDUCED_HIDDEN if reduced_tail else HIDDEN) * width)


def strided(size: int, stride: int) -> int:
    """Returns a dimension's length after a "same"-padded convolution of odd kernel."""
    return (size - 1) // stride + 1


def nominal_sizes(
    specs: Sequence[BlockSpec], n_mels: int, n_frames: int
) -> list[tuple[int, int]]:
    """Returns bands and frames after every block, by the nominal strides."""
    bands, frames = strided(n_mels, 2), strided(n_frames, 2)
    sizes = []
    for spec in specs:
        bands = strided(bands, spec.nominal_stride)
        frames = strided(frames, spec.nominal_stride)
        sizes.append((bands, frames))
    return sizes


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch norm and an optional activation.

    Arguments
    ---------
    in_channels : int
    out_channels : int
    kernel : int
        Odd; the padding keeps the size, apart from the stride.
    stride : int or tuple of int
        Over bands and frames; one number is for both.
    dilation : int
    is_depthwise : bool
        Whether each channel is filtered separately; ``in_channels`` is not used.
    activation : type or None

    Shape
    -----
    maps : [B, in_channels, F, T]
    result : [B, out_channels, 1 + (F - 1) // stride, 1 + (T - 1) // stride]

    Example
    -------
    >>> ConvNormActivation(1, 8, 3, stride=2)(torch.zeros(2, 1, 5, 6)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        is_depthwise: bool = False,
        activation: type[nn.Module] | None = None,
    ) -> None:
        convolution: nn.Module
        if is_depthwise:
            convolution = DepthwiseConv2d(out_channels, kernel, stride, dilation)
        else:
            convolution = nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=(kernel - 1) // 2 * dilation,
                dilation=dilation,
                bias=False,
            )
        layers: list[nn.Module] = [convolution, BatchNorm(out_channels)]
        if activation is not None:
            layers.append(activation(inplace=True))
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """Computes a gate in (0, 1) for every entry of one dimension from its mean.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; differs from
    MobileNetV3's in using a plain sigmoid.

    Arguments
    ---------
    size : int
        Entries of the dimension.
    squeezed : int
        Units of the bottleneck.
    dim : int
        Dimension of the maps to gate: 1 channels, 2 bands, 3 frames.

    Shape
    -----
    maps : [B, C, F, T]
    gate : like ``maps``, but 1 in all dimensions except the batch and ``dim``

    Example
    -------
    >>> SqueezeExcite(8, 8, dim=2)(torch.zeros(2, 3, 8, 5)).shape
    torch.Size([2, 1, 8, 1])
    """

    def __init__(self, size: int, squeezed: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, squeezed)
        self.fc2 = nn.Linear(squeezed, size)
        self.other_dims = [other for other in (1, 2, 3) if other != dim]
        self.gate_shape = [-1 if other == dim else 1 for other in (1, 2, 3)]

    def forward(self, maps: Tensor) -> Tensor:
        squeezed = torch.relu(self.fc1(maps.mean(self.other_dims)))  # [B, size]
        gate = torch.sigmoid(self.fc2(squeezed))
        return gate.unflatten(1, self.gate_shape)


SE_DIMS = {"c": 1, "f": 2, "t": 3}
FUSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max": torch.maximum,
    "avg": torch.add,  # followed by a division
    "add": torch.add,
    "min": torch.minimum,
}


class ConcurrentSqueezeExcite(nn.Module):
    """Squeeze-excite over several dimensions at once, with the gated maps fused.

    Arguments
    ---------
    sizes : dict
        Maps letters ("c", "f" or "t") to the sizes of their dimensions, in the order
        of the layers.
    se_agg : str
        How the gated maps are combined: "max", "avg", "add" or "min".
    se_r : int
        Divides a size to give its bottleneck.

    Shape
    -----
    maps : [B, C, F, T]
    result : [B, C, F, T]

    Example
    -------
    >>> gated = ConcurrentSqueezeExcite({"c": 3, "f": 8}, se_agg="avg", se_r=4)
    >>> gated(torch.ones(2, 3, 8, 5)).shape
    torch.Size([2, 3, 8, 5])
    """

    def __init__(self, sizes: dict[str, int], se_agg: str, se_r: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList(
            SqueezeExcite(size, round_channels(size // se_r), SE_DIMS[letter])
            for letter, size in sizes.items()
        )
        self.se_agg = se_agg

    def forward(self, maps: Tensor) -> Tensor:
        gated = (maps * squeeze_excite(maps) for squeeze_excite in self.conc_se_layers)
        fused = reduce(FUSIONS[self.se_agg], gated)
        return fused / len(self.conc_se_layers) if self.se_agg == "avg" else fused


class InvertedResidual(nn.Module):
    """Expands, filters depthwise, gates, projects, and adds the input if it fits.

    Source: MobileNetV3, section 5.3; the gate follows the activation.

    Arguments
    ---------
    spec : BlockSpec
    squeeze_excite : torch.nn.Module or None

    Shape
    -----
    maps : [B, in_channels, F, T]
    result : [B, out_channels, F', T']

    Example
    -------
    >>> spec = block_specs(0.1, (2, 2, 2, 2), False, False)[1]
    >>> InvertedResidual(spec)(torch.zeros(1, 8, 64, 10)).shape
    torch.Size([1, 8, 32, 5])
    """

    def __init__(
        self, spec: BlockSpec, squeeze_excite: nn.Module | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if spec.is_expanding:
            layers.append(
                ConvNormActivation(
                    spec.in_channels, spec.expanded, activation=spec.activation
                )
            )
        layers.append(
            ConvNormActivation(
                spec.expanded,
                spec.expanded,
                spec.kernel,
                stride=spec.strides,
                dilation=spec.dilation,
                is_depthwise=True,
                activation=spec.activation,
            )
        )
        if squeeze_excite is not None:
            layers.append(squeeze_excite)
        layers.append(ConvNormActivation(spec.expanded, spec.out_channels))
        self.block = nn.Sequential(*layers)
        self.has_residual = spec.has_residual

    def forward(self, maps: Tensor) -> Tensor:
        projected = self.block(maps)
        return projected + maps if self.has_residual else projected


def initialise_(module: nn.Module) -> None:
    """Initialises convolutions, batch norms and linear layers as published.

    Other parameters are left alone.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
