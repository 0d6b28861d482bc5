"""Blocks whose weights depend on the clip: dynamic convolution, ReLU, attention.

Source: Schmid et al., "Dynamic Convolutional Neural Networks as Efficient
Pre-trained Audio Models", TASLP 2024, section III. The submodules have the names that
they have in the published checkpoints.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientat_plugin.students.blocks import BlockSpec, round_channels
from efficientat_plugin.students.cpu.batch_norm import BatchNorm
from efficientat_plugin.students.cpu.depthwise import (
    DepthwiseConv2d,
    DepthwiseConvolution,
    learns_faster,
)


class DynamicOptions(NamedTuple):
    """The options that all dynamic blocks of a network share."""

    context_ratio: int = 4
    min_context_size: int = 32  # at width 1
    max_context_size: int = 128  # at width 1
    dyrelu_k: int = 2
    dyconv_k: int = 4
    use_dyrelu: bool = True
    use_dyconv: bool = True
    use_coordinate_attention: bool = True

    def context_size(self, expanded: int, width: float) -> int:
        """Returns H of a block; the upper bound takes precedence over the lower one."""
        size = round_channels(expanded // self.context_ratio)
        lower = round_channels(self.min_context_size * width)
        upper = round_channels(self.max_context_size * width)
        return min(max(size, lower), upper)


class Context(NamedTuple):
    """The context that a block computes from its input."""

    vector: Tensor  # [B, H]
    band_gate: Tensor | None  # [B, e, F', 1]; None without coordinate attention
    frame_gate: Tensor | None  # [B, e, 1, T']


class DynamicConv(nn.Module):
    """A convolution that mixes its kernel from k kernels, separately for each clip.

    Arguments
    ---------
    in_channels : int
    out_channels : int
    context_size : int
        H.
    kernel : int
        1 for a pointwise convolution; otherwise the convolution is depthwise, with
        equal ``in_channels`` and ``out_channels``.
    stride : int
        Stride of the depthwise convolution.
    dilation : int
        Dilation of the depthwise convolution.
    dyconv_k : int
        Number of kernels that are mixed.

    Shape
    -----
    maps : [B, in_channels, F, T]
    context : [B, H]
    temperature : []
    result : [B, out_channels, F', T']

    Source: section III-C, equations 5 and 6.

    Example
    -------
    >>> conv = DynamicConv(8, 16, context_size=4)
    >>> conv(torch.zeros(2, 8, 6, 5), torch.zeros(2, 4), torch.tensor(1.0)).shape
    torch.Size([2, 16, 6, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        context_size: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        dyconv_k: int = 4,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        per_group = in_channels if kernel == 1 else 1
        kernels = torch.empty(dyconv_k, out_channels, per_group, kernel, kernel)
        for each in kernels:
            nn.init.kaiming_normal_(each, mode="fan_out")
        self.weight = nn.Parameter(kernels.view(1, 1, dyconv_k, -1))
        self.residuals = nn.Sequential(nn.Linear(context_size, dyconv_k))
        self.bias: nn.Parameter | None = None  # [out], set in the inference form

    def forward(self, maps: Tensor, context: Tensor, temperature: Tensor) -> Tensor:
        attention = torch.softmax(self.residuals(context) / temperature, dim=1)
        weight = attention @ self.weight[0, 0]  # [B, out * in / groups * k * k]
        if self.bias is not None and len(maps) == 1:
            return self.of_one_clip(maps, weight)
        if self.kernel == 1:
            return self.pointwise(maps, weight)
        return self.depthwise(maps, weight)

    def of_one_clip(self, maps: Tensor, weight: Tensor) -> Tensor:
        """Computes a plain convolution for a single clip, in the layout of the maps."""
        is_pointwise = self.kernel == 1
        groups = 1 if is_pointwise else maps.shape[1]
        weight = weight.view(self.out_channels, -1, self.kernel, self.kernel)
        return functional.conv2d(
            maps,
            weight.contiguous(memory_format=torch.channels_last),
            self.bias,
            stride=self.stride,
            padding=(self.kernel - 1) // 2 * self.dilation,
            dilation=self.dilation,
            groups=groups,
        )

    def pointwise(self, maps: Tensor, weight: Tensor) -> Tensor:
        """Computes one matrix product for each clip."""
        weight = weight.unflatten(1, (self.out_channels, -1))  # [B, out, in]
        if self.bias is None:
            mixed = weight @ maps.flatten(2)
        else:
            mixed = torch.baddbmm(self.bias[:, None], weight, maps.flatten(2))
        return mixed.unflatten(2, maps.shape[2:])

    def depthwise(self, maps: Tensor, weight: Tensor) -> Tensor:
        """Computes one grouped convolution, with a group for each channel of a clip."""
        batch, channels = maps.shape[:2]
        groups = batch * channels
        grouped = maps.reshape(1, groups, *maps.shape[2:])
        weight = weight.reshape(groups, 1, self.kernel, self.kernel)
        stride = self.stride, self.stride
        if self.training and learns_faster(grouped, weight, stride, self.dilation):
            filtered = DepthwiseConvolution.apply(grouped, weight, stride)
        else:
            filtered = functional.conv2d(
                grouped,
                weight,
                None if self.bias is None else self.bias.repeat(batch),
                stride=self.stride,
                padding=(self.kernel - 1) // 2 * self.dilation,
                dilation=self.dilation,
                groups=groups,
            )
        return filtered.reshape(batch, channels, *filtered.shape[2:])


class StaticConv(nn.Module):
    """A plain convolution with the call signature of `DynamicConv`.

    Arguments
    ---------
    in_channels : int
    out_channels : int
    kernel : int
        1 for a pointwise convolution; otherwise the convolution is depthwise.
    stride : int
    dilation : int

    Shape
    -----
    maps : [B, in_channels, F, T]
    result : [B, out_channels, F', T']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if kernel == 1:
            self.module = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        else:
            self.module = DepthwiseConv2d(in_channels, kernel, stride, dilation)

    def forward(self, maps: Tensor, context: Tensor, temperature: Tensor) -> Tensor:
        return self.module(maps)


def maximum_(first: Tensor, second: Tensor) -> Tensor:
    """Computes the element-wise maximum of two tensors, and may overwrite both.

    It is ``second + relu(first - second)``, up to rounding. Its gradient takes a fifth
    of the time of that of ``torch.maximum``, which is split between equal elements.

    Example
    -------
    >>> maximum_(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
    tensor([3., 2.])
    """
    if not torch.is_grad_enabled():
        return torch.maximum(first, second)
    return second.add_(first.sub_(second).relu_())


class DynamicReLU(nn.Module):
    """The maximum of k lines whose slopes and offsets depend on the clip.

    Source: section III-B, equation 4; Chen et al., "Dynamic ReLU", ECCV 2020, B.

    Arguments
    ---------
    channels : int
    context_size : int
        H.
    dyrelu_k : int
        Number of lines.

    Shape
    -----
    maps : [B, channels, F, T]
    context : [B, H]
    result : [B, channels, F, T]

    Example
    -------
    >>> relu = DynamicReLU(8, context_size=4)
    >>> relu(torch.zeros(2, 8, 6, 5), torch.zeros(2, 4)).shape
    torch.Size([2, 8, 6, 5])
    """

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context_size: int, dyrelu_k: int = 2) -> None:
        super().__init__()
        self.channels, self.dyrelu_k = channels, dyrelu_k
        self.coef_net = nn.Sequential(
            nn.Linear(context_size, 2 * dyrelu_k * channels),
        )
        # Ranges and centres: slopes 1 +- 1, 0 +- 1, ..., offsets 0 +- 0.5
        self.register_buffer(
            "lambdas", torch.tensor([1.0] * dyrelu_k + [0.5] * dyrelu_k)
        )
        self.register_buffer("init_v", torch.tensor([1.0] + [0.0] * (2 * dyrelu_k - 1)))

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        theta = 2 * torch.sigmoid(self.coef_net(context)) - 1
        theta = theta.view(-1, self.channels, 2 * self.dyrelu_k)
        theta = (theta * self.lambdas + self.init_v).to(maps.dtype)
        # [2 k, B, C, 1, 1]: channels last, which matches maps in this layout
        coefficients = theta.permute(2, 0, 1).contiguous()[..., None, None]
        slopes, offsets = coefficients.tensor_split(2)
        lines = (
            (maps * slope).add_(offset)  # faster than addcmul
            for slope, offset in zip(slopes, offsets, strict=True)
        )
        return reduce(maximum_, lines)


class CoordinateAttention(nn.Module):
    """Applies the gates of bands and frames to the maps.

    Source: section III-D; Hou et al., "Coordinate Attention", CVPR 2021.

    Shape
    -----
    maps : [B, e, F', T']
    result : [B, e, F', T']
    """

    def forward(self, maps: Tensor, context: Context) -> Tensor:
        if context.band_gate is None or context.frame_gate is None:
            return maps
        if torch.is_grad_enabled():
            return maps * context.band_gate * context.frame_gate
        return maps.mul_(context.band_gate).mul_(context.frame_gate)


def linear(conv: nn.Conv2d, sequence: Tensor) -> Tensor:
    """Applies a 1 x 1 convolution as a matrix product: [B, L, C] -> [B, L, H].

    Example
    -------
    >>> linear(nn.Conv2d(8, 3, 1), torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 3])
    """
    return functional.linear(sequence, conv.weight.flatten(1), conv.bias)


class ContextGenerator(nn.Module):
    """Computes the context of a block from the means over frames and over bands.

    Source: section III-A.

    Arguments
    ---------
    in_channels : int
    expanded : int
        e, channels of the gates.
    context_size : int
        H.
    stride : int
        Stride of the depthwise convolution between the input and the gates.
    use_coordinate_attention : bool
        False computes no gates; their weights stay, as published.

    Shape
    -----
    maps : [B, in_channels, F, T]

    Example
    -------
    >>> context = ContextGenerator(8, 16, 4, stride=2)(torch.zeros(2, 8, 6, 5))
    >>> context.vector.shape, context.band_gate.shape, context.frame_gate.shape
    (torch.Size([2, 4]), torch.Size([2, 16, 3, 1]), torch.Size([2, 16, 1, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        context_size: int,
        stride: int = 1,
        use_coordinate_attention: bool = True,
    ) -> None:
        super().__init__()
        self.joint_conv = nn.Conv2d(in_channels, context_size, 1, bias=False)
        self.joint_norm = BatchNorm(context_size)
        self.conv_f = nn.Conv2d(context_size, expanded, 1)
        self.conv_t = nn.Conv2d(context_size, expanded, 1)
        self.stride = stride
        self.use_coordinate_attention = use_coordinate_attention

    def forward(self, maps: Tensor) -> Context:
        bands, frames = maps.shape[2:]
        # [B, F + T, C]: one sequence, first the bands, then the frames
        sequence = torch.cat([maps.mean(3), maps.mean(2)], dim=2).transpose(1, 2)
        # All strides must be channels last: with others, such as `unsqueeze(3)` would
        # leave, torch's batch norm computes wrong gradients.
        sequence = linear(self.joint_conv, sequence).unsqueeze(2).permute(0, 3, 1, 2)
        sequence = functional.hardswish(self.joint_norm(sequence))  # [B, H, F + T, 1]
        vector = sequence.mean((2, 3))
        if not self.use_coordinate_attention:
            return Context(vector, None, None)
        of_bands, of_frames = sequence.split([bands, frames], dim=2)
        band_gate = self.gate(self.conv_f, of_bands)
        frame_gate = self.gate(self.conv_t, of_frames)
        if maps.is_contiguous():  # contiguous gates are then faster to apply
            band_gate, frame_gate = band_gate.contiguous(), frame_gate.contiguous()
        return Context(vector, band_gate.unsqueeze(3), frame_gate.unsqueeze(2))

    def gate(self, conv: nn.Conv2d, sequence: Tensor) -> Tensor:
        """Computes gates in (0, 1) of the strided maps: [B, H, L, 1] -> [B, e, L']."""
        pooled = self.pooled(sequence).squeeze(3).transpose(1, 2)  # [B, L', H]
        return torch.sigmoid(linear(conv, pooled)).transpose(1, 2)

    def pooled(self, sequence: Tensor) -> Tensor:
        """Pools the sequence to the strided maps: [B, H, L, 1] -> [B, H, L', 1]."""
        if self.stride == 1:
            return sequence
        return functional.avg_pool2d(sequence, (3, 1), (self.stride, 1), (1, 0))


class DynamicInvertedResidual(nn.Module):
    """An inverted residual whose convolutions and activation depend on the clip.

    Arguments
    ---------
    spec : BlockSpec
    width : float
        Width of the network, which scales the bounds of the context size.
    options : DynamicOptions

    Shape
    -----
    maps : [B, in_channels, F, T]
    temperature : []
    result : [B, out_channels, F', T']

    Source: figure 2.

    Example
    -------
    >>> from efficientat_plugin.students.blocks import block_specs
    >>> spec = block_specs(0.1, (2, 2, 2, 2), False, False)[1]
    >>> block = DynamicInvertedResidual(spec, 0.1, DynamicOptions())
    >>> block(torch.zeros(1, 8, 64, 10), torch.tensor(1.0)).shape
    torch.Size([1, 8, 32, 5])
    """

    def __init__(self, spec: BlockSpec, width: float, options: DynamicOptions) -> None:
        super().__init__()
        context_size = options.context_size(spec.expanded, width)

        def convolution(
            in_channels: int, out_channels: int, **depthwise: int
        ) -> DynamicConv | StaticConv:
            if not options.use_dyconv:
                return StaticConv(in_channels, out_channels, **depthwise)
            return DynamicConv(
                in_channels,
                out_channels,
                context_size,
                dyconv_k=options.dyconv_k,
                **depthwise,
            )

        self.is_expanding = spec.is_expanding
        if self.is_expanding:
            self.exp_conv = convolution(spec.in_channels, spec.expanded)
            self.exp_norm = BatchNorm(spec.expanded)
            self.exp_act = spec.activation(inplace=True)
        self.depth_conv = convolution(
            spec.expanded,
            spec.expanded,
            kernel=spec.kernel,
            stride=spec.stride,
            dilation=spec.dilation,
        )
        self.depth_norm = BatchNorm(spec.expanded)
        self.depth_act = (
            DynamicReLU(spec.expanded, context_size, options.dyrelu_k)
            if options.use_dyrelu
            else spec.activation(inplace=True)
        )
        self.ca = CoordinateAttention()
        self.proj_conv = convolution(spec.expanded, spec.out_channels)
        self.proj_norm = BatchNorm(spec.out_channels)
        self.context_gen = ContextGenerator(
            spec.in_channels,
            spec.expanded,
            context_size,
            spec.stride,
            options.use_coordinate_attention,
        )
        self.has_residual = spec.has_residual

    def forward(self, maps: Tensor, temperature: Tensor) -> Tensor:
        context = self.context_gen(maps)
        inner = maps
        if self.is_expanding:
            inner = self.exp_conv(inner, context.vector, temperature)
            inner = self.exp_act(self.exp_norm(inner))
        inner = self.depth_conv(inner, context.vector, temperature)
        inner = self.depth_norm(inner)
        if isinstance(self.depth_act, DynamicReLU):
            inner = self.depth_act(inner, context.vector)
        else:
            inner = self.depth_act(inner)
        inner = self.ca(inner, context)
        inner = self.proj_conv(inner, context.vector, temperature)
        inner = self.proj_norm(inner)
        return inner + maps if self.has_residual else inner
