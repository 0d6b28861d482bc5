"""Infers the arguments of a PaSST from the names and shapes of its state dict."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published_passt import PublishedTeacher
from efficientat_plugin.students.passt import PATCH, num_patches, num_positions

STRIDES = (10, 12, 14, 16, 20)  # candidates when inferring strides
CLASS_TOKEN = "cls_token"  # marks the state dict of a PaSST


class Undetermined(ValueError):
    """Raised if an option cannot be inferred from a state dict and must be passed."""


def infer_passt_options(
    state: Mapping[str, Tensor], known: Mapping[str, Any], front_end: Mapping[str, Any]
) -> dict[str, Any]:
    """Infers the arguments of the PaSST that a state dict was saved from.

    Arguments
    ---------
    state : mapping of str to Tensor
    known : mapping
        Known arguments, or ``clip_seconds`` of the clips it was trained on, since a
        state dict does not determine the stride in time.
    front_end : mapping
        Arguments of `LogMel`.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For the state dict of another network, or an option that is neither inferable
        nor known.

    Example
    -------
    >>> from efficientat_plugin.students.passt import PaSST
    >>> state = PaSST(3, embed_dim=64, depth=2, num_heads=4).state_dict()
    >>> options = infer_passt_options(state, {"clip_seconds": 10, "num_heads": 4}, {})
    >>> options["depth"], options["time_stride"], options["num_frames"]
    (2, 10, 990)
    """
    needed = (
        CLASS_TOKEN,
        "freq_new_pos_embed",
        "time_new_pos_embed",
        "blocks.0.mlp.fc1.bias",
        "head.1.bias",
    )
    if missing := [name for name in needed if name not in state]:
        raise ValueError(
            f"the state dict is not a PaSST's: it begins with {list(state)[:3]} and "
            f"has no {missing[0]}"
        )
    wide = (CLASS_TOKEN, "freq_new_pos_embed", "time_new_pos_embed")
    for name, least in zip(wide, (1, 2, 1), strict=True):
        shape = tuple(state[name].shape)
        if len(shape) < least or 0 in shape:
            raise ValueError(
                f"the state dict is not a PaSST's: {name} has shape {shape}; pass a "
                "file saved from a PaSST"
            )
    embed_dim = state[CLASS_TOKEN].shape[-1]
    rows = state["freq_new_pos_embed"].shape[-2]
    columns = state["time_new_pos_embed"].shape[-1]
    n_mels = front_end.get("n_mels", 128)
    time_stride = known.get("time_stride") or _time_stride(
        columns, known.get("clip_seconds"), front_end
    )
    block = re.compile(r"blocks\.\d+\.norm1\.weight")
    return {
        "num_classes": state["head.1.bias"].numel(),
        "n_mels": n_mels,
        "num_frames": columns * time_stride - max(0, time_stride - PATCH),
        "frequency_stride": known.get("frequency_stride")
        or _frequency_stride(rows, n_mels),
        "time_stride": time_stride,
        "embed_dim": embed_dim,
        "depth": sum(1 for name in state if block.fullmatch(name)),
        "num_heads": known.get("num_heads") or num_heads_of(embed_dim),
        "mlp_ratio": state["blocks.0.mlp.fc1.bias"].numel() / embed_dim,
    }


def num_heads_of(embed_dim: int) -> int:
    published = PublishedTeacher._field_defaults
    if embed_dim != published["embed_dim"]:
        raise Undetermined(
            f"the state dict has embed_dim={embed_dim}, unlike the published ones, and "
            "does not determine the number of attention heads; pass num_heads"
        )
    return published["num_heads"]


def _frequency_stride(rows: int, n_mels: int) -> int:
    fitting = [each for each in STRIDES if num_positions(n_mels, each) == rows]
    if len(fitting) != 1:
        raise Undetermined(
            f"n_mels={n_mels} and {rows} frequency positions match the strides "
            f"{fitting} of {STRIDES}; pass frequency_stride, or n_mels"
        )
    return fitting[0]


def _time_stride(
    columns: int, clip_seconds: float | None, front_end: Mapping[str, Any]
) -> int:
    if clip_seconds is None:
        raise Undetermined(
            f"the state dict has {columns} time positions, which do not determine the "
            "stride; pass time_stride (mel frames), or clip_seconds of the clips that "
            "it was trained on"
        )
    log_mel = LogMel(**front_end)
    frames = log_mel.num_frames(round(clip_seconds * log_mel.sample_rate))
    # Published models may have one position more than the clip has patches.
    fitting = [
        each for each in STRIDES if columns - num_patches(frames, each) in (0, 1)
    ]
    if len(fitting) != 1:
        raise Undetermined(
            f"clip_seconds={clip_seconds} gives {frames} frames, whose patches match "
            f"{columns} time positions at the strides {fitting} of {STRIDES}; pass "
            "time_stride, or another clip_seconds"
        )
    return fitting[0]


def strides_of_name(path: Path) -> dict[str, int]:
    """Parses the strides from a published file name: -p16-s10- has 10 in both."""
    hint = re.search(r"-p16-s(\d+)(?=[-.])", path.name)
    return (
        dict.fromkeys(("frequency_stride", "time_stride"), int(hint[1])) if hint else {}
    )
