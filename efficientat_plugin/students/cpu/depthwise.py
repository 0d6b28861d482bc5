"""Depthwise convolutions with faster gradients of the weights on a CPU.

oneDNN computes the gradient of depthwise weights with a direct kernel only if they are
at most three wide and no border is wider than the maps are high; otherwise it takes
many times as long, except in torch's own memory layout with AVX-512. Wider gradients
are computed in strips here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

DIRECT_WIDTH = 3


class DepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution of odd square kernels, with torch's gradients.

    Arguments
    ---------
    maps : torch.Tensor
    weight : torch.Tensor
    stride : tuple of int
        Over bands and frames.

    Shape
    -----
    maps : [B, C, F, T], T at least k
    weight : [C, 1, k, k]
    result : [B, C, 1 + (F - 1) // stride[0], 1 + (T - 1) // stride[1]]

    Example
    -------
    >>> maps, weight = torch.zeros(2, 8, 6, 9), torch.zeros(8, 1, 5, 5)
    >>> DepthwiseConvolution.apply(maps, weight, (2, 2)).shape
    torch.Size([2, 8, 3, 5])
    """

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
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
            of_maps = gradient_of_maps(gradient, maps, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            of_weight = gradient_of_weight(gradient, maps, weight, ctx.stride)
        return of_maps, of_weight, None


def gradient_of_maps(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: tuple[int, int]
) -> Tensor:
    """Computes the gradient of the maps with torch, in the memory layout of the maps.

    ``torch.nn.grad.conv2d_input`` knows only their shape, and would copy the gradient
    into another layout.
    """
    border = weight.shape[-1] // 2
    of_maps, _, _ = torch.ops.aten.convolution_backward(
        gradient,
        maps,
        weight,
        None,
        stride,
        (border, border),
        (1, 1),
        False,
        (0, 0),
        len(weight),
        (True, False, False),
    )
    return of_maps


def gradient_of_weight(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: tuple[int, int]
) -> Tensor:
    """Computes the gradient of depthwise weights in strips of columns.

    Arguments
    ---------
    gradient : torch.Tensor
        Gradient of the result.
    maps : torch.Tensor
    weight : torch.Tensor
        Only its shape is used.
    stride : tuple of int
        Over bands and frames.

    Shape
    -----
    gradient : [B, C, F', T']
    maps : [B, C, F, T], T at least k
    weight : [C, 1, k, k]
    result : [C, 1, k, k]

    Example
    -------
    >>> ones = torch.ones(1, 1, 6, 6)
    >>> gradient_of_weight(ones, ones, torch.empty(1, 1, 5, 5), (1, 1))[0, 0, :, 2]
    tensor([24., 30., 36., 30., 24.])
    """
    kernel, padding = weight.shape[-1], weight.shape[-1] // 2
    # Bands of zeros below change nothing, and make the maps high enough.
    below = max(0, kernel - maps.shape[2])
    rows = (maps.shape[2] + below - 1) // stride[0] + 1
    if rows > gradient.shape[2]:
        gradient = functional.pad(gradient, (0, 0, 0, rows - gradient.shape[2]))
    length, columns = maps.shape[3], gradient.shape[3]
    strips = []
    for first in range(0, kernel, DIRECT_WIDTH):
        width = min(DIRECT_WIDTH, kernel - first)
        # Padding before and behind; negative means cropping
        before = padding - first
        behind = (columns - 1) * stride[1] + width - before - length
        part = functional.pad(maps, (before, behind, 0, below))
        shape = (*weight.shape[:3], width)
        strips.append(
            conv2d_weight(
                part, shape, gradient, stride, (padding, 0), groups=len(weight)
            )
        )
    return torch.cat(strips, dim=3)


def learns_faster(
    maps: Tensor, weight: Tensor, stride: tuple[int, int], dilation: int
) -> bool:
    """Whether the gradient of these weights is faster in strips, as measured.

    Arguments
    ---------
    maps : torch.Tensor
    weight : torch.Tensor
    stride : tuple of int
        Over bands and frames.
    dilation : int

    Returns
    -------
    bool

    Example
    -------
    >>> maps, weight = torch.zeros(1, 8, 6, 9), torch.zeros(8, 1, 3, 3)
    >>> learns_faster(maps, weight, (1, 1), 1)
    False
    """
    in_channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    if in_channels_last:  # two bands need more zeros than they are worth
        fits = stride[1] == 1 and maps.shape[2] > weight.shape[-1] // 2
    else:
        fits = torch.backends.cpu.get_cpu_capability() != "AVX512"
    return (
        fits
        and DIRECT_WIDTH < weight.shape[-1] <= maps.shape[-1]
        and dilation == 1
        and torch.is_grad_enabled()
        and weight.requires_grad
        and maps.device.type == "cpu"
        and maps.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
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
        stride = self.stride[0], self.stride[1]
        if self.training and learns_faster(
            input, self.weight, stride, self.dilation[0]
        ):
            return DepthwiseConvolution.apply(input, self.weight, stride)
        return super().forward(input)
