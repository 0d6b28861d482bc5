"""Depthwise convolutions with faster gradients of the weights on a CPU.

Without AVX-512, oneDNN computes the gradient of depthwise weights with a direct kernel
only if they are at most three wide and no border is wider than the maps are high;
otherwise it takes many times as long. Wider gradients are computed in strips here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

DIRECT_WIDTH = 3


class DepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution of odd square kernels, with torch's gradients.

    Arguments
    ---------
    maps : torch.Tensor
    weight : torch.Tensor
    stride : int

    Shape
    -----
    maps : [B, C, F, T], T at least k
    weight : [C, 1, k, k]
    result : [B, C, 1 + (F - 1) // stride, 1 + (T - 1) // stride]

    Example
    -------
    >>> maps, weight = torch.zeros(2, 8, 6, 9), torch.zeros(8, 1, 5, 5)
    >>> DepthwiseConvolution.apply(maps, weight, 2).shape
    torch.Size([2, 8, 3, 5])
    """

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Computes the convolution with torch."""
        padding = weight.shape[-1] // 2
        return functional.conv2d(
            maps, weight, None, stride, padding, groups=len(weight)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves the tensors that the gradients need."""
        maps, weight, ctx.stride = inputs
        ctx.save_for_backward(maps, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Computes gradients: of the maps with torch, of the weights in strips."""
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            padding = weight.shape[-1] // 2
            of_maps = conv2d_input(
                maps.shape, weight, gradient, ctx.stride, padding, groups=len(weight)
            )
        if ctx.needs_input_grad[1]:
            of_weight = gradient_of_weight(gradient, maps, weight, ctx.stride)
        return of_maps, of_weight, None


def gradient_of_weight(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int
) -> Tensor:
    """Computes the gradient of depthwise weights in strips of columns.

    Arguments
    ---------
    gradient : torch.Tensor
        Gradient of the result.
    maps : torch.Tensor
    weight : torch.Tensor
        Only its shape is used.
    stride : int

    Shape
    -----
    gradient : [B, C, F', T']
    maps : [B, C, F, T], T at least k
    weight : [C, 1, k, k]
    result : [C, 1, k, k]

    Example
    -------
    >>> ones = torch.ones(1, 1, 6, 6)
    >>> gradient_of_weight(ones, ones, torch.empty(1, 1, 5, 5), 1)[0, 0, :, 2]
    tensor([24., 30., 36., 30., 24.])
    """
    kernel, padding = weight.shape[-1], weight.shape[-1] // 2

    def border(size: int, result: int, first: int, width: int) -> tuple[int, int]:
        """Returns a strip's padding before and after; negative means cropping."""
        last = first - padding + (result - 1) * stride + width
        return padding - first, last - size

    (height, length), (rows, columns) = maps.shape[2:], gradient.shape[2:]
    # Maps with few bands are padded here, others by the convolution.
    is_low = height < kernel
    above_below = border(height, rows, 0, kernel) if is_low else (0, 0)
    strips = []
    for first in range(0, kernel, DIRECT_WIDTH):
        width = min(DIRECT_WIDTH, kernel - first)
        left_right = border(length, columns, first, width)
        part = functional.pad(maps, left_right + above_below)
        vertical = 0 if is_low else padding
        shape = (*weight.shape[:3], width)
        strips.append(
            conv2d_weight(
                part, shape, gradient, stride, (vertical, 0), groups=len(weight)
            )
        )
    return torch.cat(strips, dim=3)


def learns_faster(maps: Tensor, weight: Tensor, stride: int, dilation: int) -> bool:
    """Whether the gradient of these weights is faster in strips, as measured.

    Arguments
    ---------
    maps : torch.Tensor
    weight : torch.Tensor
    stride : int
    dilation : int

    Returns
    -------
    bool

    Example
    -------
    >>> maps, weight = torch.zeros(1, 8, 6, 9), torch.zeros(8, 1, 3, 3)
    >>> learns_faster(maps, weight, 1, 1)
    False
    """
    in_channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    return (
        DIRECT_WIDTH < weight.shape[-1] <= maps.shape[-1]
        and dilation == 1
        and not (in_channels_last and stride > 1)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and maps.device.type == "cpu"
        and maps.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.cpu.get_cpu_capability() != "AVX512"
    )


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``Conv2d`` without bias that trains faster on a CPU.

    Arguments
    ---------
    channels : int
    kernel : int
        Odd; the padding keeps the size, apart from the stride.
    stride : int or tuple of int
        Over bands and frames; one number is for both.
    dilation : int

    Shape
    -----
    maps : [B, channels, F, T]
    result : [B, channels, 1 + (F - 1) // stride, 1 + (T - 1) // stride]

    Example
    -------
    >>> DepthwiseConv2d(8, 5, stride=2)(torch.zeros(2, 8, 6, 9)).shape
    torch.Size([2, 8, 3, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel,
            stride=stride,
            padding=(kernel - 1) // 2 * dilation,
            dilation=dilation,
            groups=channels,
            bias=False,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Filters maps: [B, C, F, T] -> [B, C, F', T']."""
        stride, dilation = self.stride[0], self.dilation[0]
        is_square = self.stride[1] == stride
        if (
            self.training
            and is_square
            and learns_faster(input, self.weight, stride, dilation)
        ):
            return DepthwiseConvolution.apply(input, self.weight, stride)
        return super().forward(input)
