"""Layers for inference, with what follows them computed in the same pass.

oneDNN can apply an activation, or add other maps, while it writes the result of a
convolution or a product. torch offers that as operations of its own, which its compiler
uses. Weights are packed for the processor once, not at every call.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Private names of torch, which another version may lack
OPERATIONS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)
HAS_OPERATIONS = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in OPERATIONS
)
ACTIVATIONS = {nn.Identity: "none", nn.ReLU: "relu", nn.Hardswish: "hardswish"}


def is_fused(activation: nn.Module) -> bool:
    """Whether `FusedConv2d` has this activation.

    Example
    -------
    >>> is_fused(nn.ReLU()), is_fused(nn.Tanh())
    (True, False)
    """
    return type(activation) in ACTIVATIONS


class Packing(nn.Module):
    """Base class of layers that pack their weights when they are first used.

    The packed weights are in no state dict, copy or pickle, and are packed again after
    the layer's own have changed.

    Arguments
    ---------
    layer : torch.nn.Conv2d or torch.nn.Linear
        What is computed; it is kept, and serves wherever oneDNN does not.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer: Any = layer
        self._packed: Tensor | None = None

    def is_packable(self, maps: Tensor) -> bool:
        """Whether oneDNN can compute the layer for these maps."""
        weight = self.layer.weight
        return (
            maps.device.type == "cpu"
            and maps.dtype == weight.dtype == torch.float32
            and HAS_OPERATIONS
            and not (
                torch.is_grad_enabled() and (maps.requires_grad or weight.requires_grad)
            )
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def packed(self, maps: Tensor) -> Tensor:
        """Returns the packed weights, for maps of about this size."""
        if self._packed is None:
            self._packed = self._pack(maps)
        return self._packed

    def _pack(self, maps: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, *given: Any, **options: Any) -> "Packing":
        self._packed = None
        return super()._apply(*given, **options)

    def _load_from_state_dict(self, *given: Any, **options: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*given, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


class FusedConv2d(Packing):
    """A convolution with its activation, for inference: one pass on a CPU.

    Elsewhere, in other precisions and for gradients it is computed step by step.

    Arguments
    ---------
    layer : torch.nn.Conv2d
        With zero padding.
    activation : torch.nn.Module
        For which `is_fused`.

    Shape
    -----
    maps : [B, C, F, T]
    result : [B, C', F', T']

    Example
    -------
    >>> fused = FusedConv2d(nn.Conv2d(8, 16, 1), nn.ReLU())
    >>> with torch.inference_mode():
    ...     fused(torch.randn(1, 8, 4, 5)).min() >= 0
    tensor(True)
    """

    def __init__(self, layer: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__(layer)
        self.activation = activation

    def forward(self, maps: Tensor) -> Tensor:
        """Filters maps and applies the activation."""
        if not self.is_packable(maps):
            return self.activation(self.layer(maps))
        return torch.ops.mkldnn._convolution_pointwise(
            maps, *self._given(maps), ACTIVATIONS[type(self.activation)], [], ""
        )

    def add_to(self, added: Tensor, maps: Tensor) -> Tensor:
        """Filters maps and adds the result to ``added`` in place; no activation."""
        if not self.is_packable(maps):
            return added.add_(self.layer(maps))
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            added, maps, *self._given(maps), "add", 1.0, None, [], None
        )

    def _given(self, maps: Tensor) -> tuple[Any, ...]:
        return self.packed(maps), self.layer.bias, *self._geometry()

    def _geometry(self) -> tuple[Any, ...]:
        layer = self.layer
        return layer.padding, layer.stride, layer.dilation, layer.groups

    def _pack(self, maps: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(
            self.layer.weight, *self._geometry(), maps.shape
        )


class PackedLinear(Packing):
    """A linear layer for many rows, for inference; faster on a CPU.

    Arguments
    ---------
    layer : torch.nn.Linear

    Shape
    -----
    frames : [B, T, C]
    result : [B, T, C']

    Example
    -------
    >>> with torch.inference_mode():
    ...     PackedLinear(nn.Linear(4, 6))(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 6])
    """

    def forward(self, frames: Tensor) -> Tensor:
        """Multiplies by the weights, and adds the bias."""
        if not self.is_packable(frames):
            return self.layer(frames)
        return torch.ops.mkldnn._linear_pointwise(
            frames, self.packed(frames), self.layer.bias, "none", [], ""
        )

    def _pack(self, maps: Tensor) -> Tensor:
        rows = maps.numel() // maps.shape[-1]
        return torch.ops.mkldnn._reorder_linear_weight(self.layer.weight, rows)
