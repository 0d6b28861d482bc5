"""DyMN: an MN whose blocks adapt their weights to the clip."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efficientat_plugin.students.blocks import (
    LAST_EXPANSION,
    ConvNormActivation,
    InvertedResidual,
    block_specs,
    hidden_channels,
    initialise_,
)
from efficientat_plugin.students.dynamic import DynamicInvertedResidual, DynamicOptions
from efficientat_plugin.students.heads import HEADS, HeadOptions
from efficientat_plugin.students.student import (
    Student,
    check_choice,
    check_integer,
    check_mobile_options,
    check_positive,
)
from efficientat_plugin.support.limits import MAX_KERNELS

DYNAMIC_BLOCKS = ("all", "replace_se")
DYMN_HEADS = ("mlp", "linear", "fully_convolutional")


class DyMN(Student):
    """The dynamic MobileNet, as published for audio tagging.

    Source: Schmid et al., "Dynamic Convolutional Neural Networks as Efficient
    Pre-trained Audio Models", TASLP 2024; differs from its code in that the
    temperature is part of the state dict.

    Arguments
    ---------
    num_classes : int
        K, at least 1.
    width : float
        Multiplies every number of channels; published: 0.4, 1 and 2.
    strides : sequence of int
        Strides of blocks 2, 4, 7 and 13, each 1 or 2.
    dynamic_blocks : str
        "all", or "replace_se" for only those that have squeeze-excite in MN.
    context_ratio : int
        Divides a block's expanded channels to give its context size H.
    min_context_size : int
        Lower bound of H, at width 1.
    max_context_size : int
        Upper bound of H, at width 1; it takes precedence over the lower one.
    dyrelu_k : int
        Lines of a dynamic ReLU, 1 to 64.
    dyconv_k : int
        Kernels that a dynamic convolution mixes, 1 to 64.
    use_dyrelu : bool
        False uses the static activation of the block.
    use_dyconv : bool
        False uses static convolutions.
    use_coordinate_attention : bool
        False applies no gates; their weights stay, unused.
    head : str
        "mlp" or "fully_convolutional".
    dilated : bool
        Whether the last three blocks use dilation 2 instead of striding.
    reduced_tail : bool
        Whether the last three blocks and the hidden layer have half the channels.
    dropout : float
        Dropout before the class layer of the mlp and the linear head, in [0, 1).
    temperature : float
        Temperature of the attention over kernels, greater than 0; a high one mixes
        them evenly. Published: falls from 30 to 1 in training, 1 afterwards.

    Shape
    -----
    log_mel : [B, 1, F, T]
    logits : [B, num_classes]
    embedding : [B, D], 960 at width 1

    Raises
    ------
    ValueError
        For illegal options, and for inputs that are not log-mels.

    Example
    -------
    >>> student = DyMN(num_classes=50, width=0.1).eval()
    >>> logits, embedding = student(torch.zeros(2, 1, 128, 100))
    >>> logits.shape, embedding.shape
    (torch.Size([2, 50]), torch.Size([2, 96]))
    """

    temperature: Tensor

    def __init__(
        self,
        num_classes: int = 527,
        width: float = 1.0,
        strides: Sequence[int] = (2, 2, 2, 2),
        dynamic_blocks: str = "all",
        context_ratio: int = 4,
        min_context_size: int = 32,
        max_context_size: int = 128,
        dyrelu_k: int = 2,
        dyconv_k: int = 4,
        use_dyrelu: bool = True,
        use_dyconv: bool = True,
        use_coordinate_attention: bool = True,
        head: str = "mlp",
        dilated: bool = False,
        reduced_tail: bool = False,
        dropout: float = 0.2,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(num_classes)
        check_mobile_options(width, strides, dropout)
        check_choice("dynamic_blocks", dynamic_blocks, DYNAMIC_BLOCKS)
        check_choice("head", head, DYMN_HEADS)
        check_integer("context_ratio", context_ratio)
        check_integer("min_context_size", min_context_size)
        check_integer("max_context_size", max_context_size)
        check_integer("dyrelu_k", dyrelu_k, at_most=MAX_KERNELS)
        check_integer("dyconv_k", dyconv_k, at_most=MAX_KERNELS)
        options = DynamicOptions(
            context_ratio,
            min_context_size,
            max_context_size,
            dyrelu_k,
            dyconv_k,
            use_dyrelu,
            use_dyconv,
            use_coordinate_attention,
        )
        self.width = width
        self.register_buffer("temperature", torch.ones((), dtype=torch.float32))
        self.set_temperature(temperature)
        specs = block_specs(width, strides, dilated, reduced_tail)

        # Blocks, 64 x 500 to 4 x 32 for ten seconds
        self.layers = nn.ModuleList(
            DynamicInvertedResidual(spec, width, options)
            if dynamic_blocks == "all" or spec.squeeze_excite
            else InvertedResidual(spec)
            for spec in specs
        )
        # Stem, 64 x 500
        self.in_c = ConvNormActivation(
            1, specs[0].in_channels, 3, stride=2, activation=nn.Hardswish
        )
        # Last convolution, 4 x 32
        embedding = LAST_EXPANSION * specs[-1].out_channels
        self.out_c = ConvNormActivation(
            specs[-1].out_channels, embedding, activation=nn.Hardswish
        )
        hidden = hidden_channels(width, reduced_tail)
        self.classifier = HEADS[head](
            HeadOptions(embedding, num_classes, hidden, dropout)
        )
        initialise_(self)

    def set_temperature(self, value: float) -> None:
        """Sets the temperature of the attention over kernels, in place.

        Arguments
        ---------
        value : float
            Greater than 0.

        Raises
        ------
        ValueError
            For a value of 0 or less.
        """
        check_positive("temperature", value)
        self.temperature.fill_(value)

    def describe(self) -> str:
        """Describes the student in a few words."""
        return f"DyMN of width {self.width:g}"

    def maps(self, log_mel: Tensor) -> Tensor:
        """Computes the input of the head: [B, 1, F, T] -> [B, D, F', T']."""
        maps = self.in_c(log_mel)
        for layer in self.layers:
            if isinstance(layer, DynamicInvertedResidual):
                maps = layer(maps, self.temperature)
            else:
                maps = layer(maps)
        return self.out_c(maps)

    def stages(self) -> list[nn.Module]:
        """Returns stem, blocks and last convolution."""
        return [self.in_c, *self.layers, self.out_c]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        # Published checkpoints have no temperature, so the present one is kept.
        if prefix + "temperature" in missing_keys:
            missing_keys.remove(prefix + "temperature")
