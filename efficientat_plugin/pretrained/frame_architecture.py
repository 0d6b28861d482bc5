"""Reads state dicts of frame-wise students: names of entries, and arguments."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from efficientat_plugin.pretrained.architecture import infer_options, width_options
from efficientat_plugin.pretrained.passt_architecture import num_heads_of
from efficientat_plugin.students.frame_passt import SHRUNK

BACKBONE = "model.fmn."
TRANSFORMER = "model.fpasst."
CONVOLUTION = "conv_in_1.weight"  # of a FramePaSST alone
HEADS = ("strong_head.", "weak_head.")
# The wrappers in which the published checkpoints were saved: `net.model.features.` and
# `model.frame_mn.features.`, of EfficientSED and of PretrainedSED
OF_BACKBONE = re.compile(r"(net\.)?(model\.)?((fmn|frame_mn)\.)?(?=features\.)")
OF_TRANSFORMER = re.compile(
    r"(net\.)?(model\.)?(fpasst\.)?(?!(net\.)?(strong_head|weak_head)\.)"
)
OF_OTHERS = re.compile(r"net\.(?=seq_model\.|strong_head\.|weak_head\.)")
LAYERS = re.compile(r"seq_model\.1\.layers\.(\d+)\.")
GRU_LAYERS = re.compile(r"seq_model\.0\.gru\.weight_hh_l(\d+)")
# An entry that only one sequence model has, and the axis of its shape that is the dim
MARKS = {
    "gru": ("seq_model.0.gru.weight_hh_l0", 1),
    "tf": ("seq_model.1.layers.0.0.to_qkv.weight", 1),
    "attn": ("seq_model.1.layers.0.to_qkv.weight", 1),
    "hybrid": ("seq_model.1.layers.0.1.to_qkv.weight", 1),
    "tcn": ("seq_model.1.layers.0.network.0.conv1.bias", 0),
}


def frame_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries of a published checkpoint to those of the student.

    Arguments
    ---------
    state : mapping of str to Tensor

    Returns
    -------
    dict of str to Tensor

    Example
    -------
    >>> raw = dict.fromkeys(["net.model.features.0.0.weight", "net.weak_head.bias"])
    >>> list(frame_names(raw))
    ['model.fmn.features.0.0.weight', 'weak_head.bias']
    """
    renamed = {}
    wrapper, prefix = OF_BACKBONE, BACKBONE
    if is_transformer_state(state):
        wrapper, prefix = OF_TRANSFORMER, TRANSFORMER
    for name, value in state.items():
        if wrapper.match(name):
            name = wrapper.sub(prefix, name, count=1)
        renamed[OF_OTHERS.sub("", name)] = value
    return renamed


def is_frame_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a student that scores every frame.

    Example
    -------
    >>> is_frame_state({"features.0.0.weight": None, "classifier.5.bias": None})
    False
    """
    wrapped = ("net.model.", "model.fmn.", "model.frame_mn.", "model.features.")
    heads = tuple(f"{before}{head}" for before in ("", "net.") for head in HEADS)
    has_names = any(name.startswith(wrapped + heads) for name in state)
    return has_names or is_transformer_state(state)


def is_transformer_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a FramePaSST's."""
    return any(name.endswith(CONVOLUTION) for name in state)


def class_counts(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the numbers of classes of the heads that a state dict has."""
    biases = {
        "num_classes": state.get("strong_head.bias"),
        "num_weak_classes": state.get("weak_head.bias"),
    }
    return {name: len(bias) for name, bias in biases.items() if bias is not None}


def infer_frame_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infers the arguments of the FrameMN that a state dict was saved from.

    A state dict does not determine how clips are scored: ``head`` is at its default.

    Arguments
    ---------
    state : mapping of str to Tensor
        With the names that `frame_names` gives.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For the state dict of another network.

    Example
    -------
    >>> from efficientat_plugin import FrameMN
    >>> student = FrameMN(3, width=0.1, sequence_model="gru", sequence_dim=24)
    >>> options = infer_frame_options(student.state_dict())
    >>> options["width"], options["sequence_model"], options["sequence_dim"]
    (0.1, 'gru', 24)
    """
    blocks = [f"{BACKBONE}features.{number}." for number in range(1, 16)]
    options = class_counts(state) | width_options(state, blocks, {})
    if options.pop("reduced_tail"):
        raise ValueError(
            "the state dict has a reduced tail, which no FrameMN has; load it as an MN"
        )
    return options | _sequence_options(state)


def _sequence_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Finds the sequence model, its channels and its layers."""
    for kind, (mark, axis) in MARKS.items():
        if mark in state:
            numbering = GRU_LAYERS if kind == "gru" else LAYERS
            found = (numbering.match(name) for name in state)
            layers = {match[1] for match in found if match}
            return {
                "sequence_model": kind,
                "sequence_dim": state[mark].shape[axis],
                "sequence_layers": len(layers),
            }
    if unknown := [name for name in state if name.startswith("seq_model.")]:
        raise ValueError(
            f"the state dict has a sequence model with {unknown[0][:80]}, which is "
            f"none of {', '.join(MARKS)}"
        )
    return {"sequence_model": "none"}


def _transformer_options(
    state: Mapping[str, Tensor], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Infers the arguments of a FramePaSST, except for how clips are scored."""
    embed_dim = state[f"{TRANSFORMER}cls_token"].shape[-1]
    block = re.compile(re.escape(TRANSFORMER) + r"blocks\.\d+\.norm1\.weight")
    return class_counts(state) | {
        "n_mels": state[f"{TRANSFORMER}patch_embed.proj.weight"].shape[2],
        "num_frames": SHRUNK * state[f"{TRANSFORMER}time_new_pos_embed"].shape[3],
        "embed_dim": embed_dim,
        "depth": sum(1 for name in state if block.fullmatch(name)),
        "num_heads": known.get("num_heads") or num_heads_of(embed_dim),
    }


def infer_student(
    state: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Infers family and arguments, as `infer_options` does, also of frame students."""
    if is_transformer_state(state):
        return "fpasst", _transformer_options(frame_names(state), overrides)
    if is_frame_state(state):
        return "fmn", infer_frame_options(frame_names(state))
    return infer_options(state, overrides)
