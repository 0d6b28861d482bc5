"""A batch norm that is also fast for few channels.

In the memory layout "channels last", torch processes the channels of one position after
the other, in steps of 16, so eight channels take four times as long as necessary. Here
the maps are viewed as one row for each band of each clip, in which the channels of
every frame are separate: a few thousand "channels", whose statistics are then averaged
over frames.
"""

from typing import Any

import torch
from torch import Tensor, nn

STEP = 16  # channels that torch processes at once
FEW = 32  # from this number of channels on, an incomplete step hardly matters
MANY_VALUES = 2**18  # with fewer values, the overhead exceeds the gain


class BatchNormOfFewChannels(torch.autograd.Function):
    """Normalises channels-last maps with the statistics of the batch.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1 and the
    gradients below it.

    Arguments
    ---------
    maps : torch.Tensor
    weight : torch.Tensor
    bias : torch.Tensor
    epsilon : float

    Shape
    -----
    maps : [B, C, F, T], in the layout channels last
    weight, bias : [C]
    result : [B, C, F, T], and mean and (biased) variance: [C] each

    Example
    -------
    >>> maps = torch.randn(2, 8, 4, 9).to(memory_format=torch.channels_last)
    >>> ones, zeros = torch.ones(8), torch.zeros(8)
    >>> found, _, _ = BatchNormOfFewChannels.apply(maps, ones, zeros, 1e-3)
    >>> torch.allclose(found.mean((0, 2, 3)), zeros, atol=1e-6)
    True
    """

    @staticmethod
    def forward(
        maps: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes algorithm 1."""
        rows, frames = as_rows(maps), maps.shape[3]
        means, variances = torch.ops.aten.batch_norm_update_stats(rows, None, None, 0.0)
        means, variances = means.view(frames, -1), variances.view(frames, -1)
        between, mean = torch.var_mean(means, 0, correction=0)
        variance = variances.mean(0) + between
        scale = weight * (variance + epsilon).rsqrt()
        shift = bias - mean * scale
        found = torch.empty_like(maps)  # not a view, since activations overwrite it
        shifts, scales = shift.repeat(frames), scale.repeat(frames)
        torch.addcmul(shifts, rows, scales, out=as_rows(found))
        return found, mean, variance

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        """Saves the tensors that the gradients need."""
        maps, weight, _, ctx.epsilon = inputs
        _, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        ctx.save_for_backward(maps, weight, mean, variance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Computes the gradients below algorithm 1 as two sums and one linear map."""
        maps, weight, mean, variance = ctx.saved_tensors
        frames, count = maps.shape[3], maps.numel() // maps.shape[1]
        rows = as_rows(maps)
        changes = as_rows(gradient.contiguous(memory_format=torch.channels_last))
        inverse = (variance + ctx.epsilon).rsqrt()  # 1 / standard deviation

        # Both sums at once, as gradients of a norm with fixed statistics
        ones = torch.ones_like(changes[0])
        centre = mean.repeat(frames)
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            changes, rows, None, centre, ones, centre, ones, False, 0.0,
            [False, True, True],
        )  # fmt: skip
        of_bias = sums.view(frames, -1).sum(0)
        of_weight = products.view(frames, -1).sum(0) * inverse

        # The gradient of the maps is
        # scale * (change - mean change - normalised * mean product).
        scale = weight * inverse
        slope = -scale * inverse * of_weight / count
        offset = -scale * of_bias / count - slope * mean
        of_maps = torch.empty_like(maps)
        offsets, slopes = offset.repeat(frames), slope.repeat(frames)
        torch.addcmul(offsets, rows, slopes, out=as_rows(of_maps))
        as_rows(of_maps).addcmul_(changes, scale.repeat(frames))
        return of_maps, of_weight, of_bias, None


def as_rows(maps: Tensor) -> Tensor:
    """Views channels-last maps as rows: [B, C, F, T] -> [B * F, T * C]."""
    return maps.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)


class BatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` with the published constants, fast for few channels on a CPU.

    Arguments
    ---------
    channels : int

    Shape
    -----
    maps : [B, channels, F, T]
    result : [B, channels, F, T]

    Example
    -------
    >>> BatchNorm(8)(torch.zeros(2, 8, 4, 9)).shape
    torch.Size([2, 8, 4, 9])
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises maps: [B, C, F, T] -> [B, C, F, T]."""
        momentum = self.momentum
        if momentum is None or not self._is_faster_in_rows(input):
            return super().forward(input)
        maps, mean, variance = BatchNormOfFewChannels.apply(
            input, self.weight, self.bias, self.eps
        )
        count = input.numel() // self.num_features
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return maps

    def _is_faster_in_rows(self, maps: Tensor) -> bool:
        return (
            self.training
            and self.num_features < FEW
            and self.num_features % STEP > 0
            and maps.numel() >= MANY_VALUES
            and maps.device.type == "cpu"
            and maps.dtype == torch.float32
            and maps.is_contiguous(memory_format=torch.channels_last)
            and not torch.compiler.is_compiling()
        )
