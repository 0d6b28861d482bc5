"""Infers a student's architecture from the names and shapes of its state dict."""

import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from typing import Any

from torch import Tensor

from efficientat_plugin.students.blocks import (
    BLOCK_TABLE,
    SE_DIMS,
    BlockSpec,
    block_specs,
    hidden_channels,
    nominal_sizes,
    round_channels,
)
from efficientat_plugin.students.dynamic import DynamicOptions
from efficientat_plugin.students.mn import gate_sizes

STRIDES = (2, 2, 2, 2)  # default; a state dict does not determine them
SE_RATIOS = (4, *(ratio for ratio in range(1, 65) if ratio != 4))  # most common first


def head_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns head and number of classes; empty for an unknown head."""
    if "classifier.5.bias" in state:
        return {"head": "mlp", "num_classes": state["classifier.5.bias"].numel()}
    if "classifier.2.bias" in state:
        classes = state["classifier.2.bias"].numel()
        return {"head": "linear", "num_classes": classes}
    if "classifier.1.bias" in state:
        classes = state["classifier.1.bias"].numel()
        return {"head": "fully_convolutional", "num_classes": classes}
    if {"classifier.head_weight", "classifier.subspace_proj.bias"} <= set(state):
        heads = state["classifier.head_weight"].numel()
        outputs = state["classifier.subspace_proj.bias"].numel()
        return {
            "head": "multihead_attention_pooling",
            "attention_heads": heads,
            "num_classes": outputs // (2 * heads),
        }
    return {}


def _block_channels(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int]:
    """Returns expanded and output channels of a block, from its last two norms."""
    norm = re.compile(re.escape(prefix) + r"(block\.\d+\.1|\w+_norm)\.weight")
    sizes = [tensor.numel() for name, tensor in state.items() if norm.fullmatch(name)]
    if len(sizes) < 2:
        raise ValueError(
            f"the state dict has no block {prefix!r}; is it that of a student?"
        )
    return sizes[-2], sizes[-1]


def _widths_near(estimate: float) -> Iterator[float]:
    """Yields the widths to try, rounder ones first."""
    yield round(estimate, 1)
    yield round(estimate, 2)
    for thousandths in sorted(range(-10, 11), key=abs):
        yield round(estimate + thousandths / 1000, 3)


def width_options(
    state: Mapping[str, Tensor], blocks: list[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Finds the roundest width, and the tail, that match all channels and contexts."""
    channels = [_block_channels(state, block) for block in blocks]
    mlp = "classifier.5.bias" in state
    hidden = state["classifier.2.bias"] if mlp else None
    norms = [state.get(f"{block}context_gen.joint_norm.weight") for block in blocks]
    contexts = [None if norm is None else norm.numel() for norm in norms]
    dynamic = DynamicOptions(
        **{k: v for k, v in overrides.items() if k in DynamicOptions._fields}
    )
    channels_fit = False
    for reduced_tail in (False, True):
        widest = BLOCK_TABLE[-1].expanded // (2 if reduced_tail else 1)
        for width in _widths_near(channels[-1][0] / widest):
            specs = block_specs(width, STRIDES, False, reduced_tail)
            if channels != [(spec.expanded, spec.out_channels) for spec in specs] or (
                hidden is not None
                and hidden.numel() != hidden_channels(width, reduced_tail)
            ):
                continue
            channels_fit = True
            if all(
                seen in (None, dynamic.context_size(spec.expanded, width))
                for seen, spec in zip(contexts, specs, strict=True)
            ):
                return {"width": width, "reduced_tail": reduced_tail}
    if channels_fit:
        raise ValueError(
            f"the state dict has contexts of {contexts} channels, which do not match "
            f"context_ratio={dynamic.context_ratio}, min_context_size="
            f"{dynamic.min_context_size} and max_context_size="
            f"{dynamic.max_context_size}; pass the values it was trained with"
        )
    raise ValueError(
        f"no width gives the channels of the state dict, {channels}; is it that of a "
        "student?"
    )


def _squeeze_excite_options(
    state: Mapping[str, Tensor], specs: list[BlockSpec], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Finds which dimensions squeeze-excite gates, and its reduction ratio."""
    n_mels, n_frames = overrides.get("n_mels", 128), overrides.get("n_frames", 1000)
    gates, sizes = [], []
    bands_frames = nominal_sizes(specs, n_mels, n_frames)
    for number, (spec, size) in enumerate(zip(specs, bands_frames, strict=True), 1):
        if spec.squeeze_excite:
            place = 1 + spec.is_expanding
            gates.append(f"features.{number}.block.{place}.conc_se_layers")
            sizes.append(gate_sizes(spec, size, "".join(SE_DIMS)))
    seen = []  # for each layer, its shapes in all blocks
    for layer in range(len(SE_DIMS)):
        names = [f"{gate}.{layer}.fc1.weight" for gate in gates]
        if all(name in state for name in names):
            seen.append([tuple(state[name].shape) for name in names])
    if not seen:
        return {"se_dims": "none"}
    for ratio, letters in product(SE_RATIOS, permutations(SE_DIMS, len(seen))):
        if seen == [
            [(round_channels(size[letter] // ratio), size[letter]) for size in sizes]
            for letter in letters
        ]:
            return {"se_dims": "".join(letters), "se_r": ratio}
    raise ValueError(
        f"n_mels={n_mels} and n_frames={n_frames} do not give the squeeze-excite sizes "
        "of the state dict; pass these and the strides as in its training"
    )


def _dynamic_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Finds which blocks are dynamic, and which of their parts."""
    # Block 3 is dynamic in every DyMN, block 0 only if all blocks are.
    first_is_static = "layers.0.block.0.0.weight" in state
    options: dict[str, Any] = {
        "dynamic_blocks": "replace_se" if first_is_static else "all"
    }
    kernels = state.get("layers.3.depth_conv.residuals.0.bias")
    options["use_dyconv"] = kernels is not None
    if kernels is not None:
        options["dyconv_k"] = kernels.numel()
    lines = state.get("layers.3.depth_act.lambdas")
    options["use_dyrelu"] = lines is not None
    if lines is not None:
        options["dyrelu_k"] = lines.numel() // 2
    return options


def infer_options(
    state: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Infers family and arguments of the student that a state dict was saved from.

    A state dict does not determine strides, dilation, how squeeze-excites are fused and
    whether coordinate attention was used: these come from ``overrides`` or are at
    their defaults.

    Arguments
    ---------
    state : mapping of str to Tensor
    overrides : mapping
        Known arguments.

    Returns
    -------
    family : str
        "mn" or "dymn".
    options : dict

    Raises
    ------
    ValueError
        For the state dict of another network.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> family, options = infer_options(MN(width=0.1, se_r=2).state_dict(), {})
    >>> family, options["width"], options["se_dims"], options["se_r"]
    ('mn', 0.1, 'c', 2)
    """
    if "features.0.0.weight" in state:
        blocks = [f"features.{number}." for number in range(1, 16)]
        options = head_options(state) | width_options(state, blocks, overrides)
        strides = overrides.get("strides", STRIDES)
        specs = block_specs(options["width"], strides, False, options["reduced_tail"])
        return "mn", options | _squeeze_excite_options(state, specs, overrides)
    if "in_c.0.weight" in state:
        blocks = [f"layers.{index}." for index in range(15)]
        options = head_options(state) | width_options(state, blocks, overrides)
        return "dymn", options | _dynamic_options(state)
    raise ValueError(
        f"the state dict is not a student's: it begins with {list(state)[:3]}, whereas "
        "MN has features.0.0.weight and DyMN in_c.0.weight"
    )
