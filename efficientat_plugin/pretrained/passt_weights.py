"""Loads PaSST with its weights, and networks of either kind from any source."""

import difflib
import inspect
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.described import (
    FRONT_END,
    Described,
    describe,
    locate,
)
from efficientat_plugin.pretrained.published_passt import (
    TEACHERS,
    PublishedTeacher,
)
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import (
    CLASS_TOKEN,
    differences_of,
    load_published_state,
    student_of,
)
from efficientat_plugin.students.passt import (
    PATCH,
    PaSST,
    num_patches,
    num_positions,
)
from efficientat_plugin.students.student import Student

logger = logging.getLogger(__name__)

AST_CONFIG = "config.json"
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
STRIDES = (10, 12, 14, 16, 20)  # candidates when inferring strides
UNREAD = "head_dist."  # an unused layer of published checkpoints
CLASS_LAYER = "head.1."


class Untold(ValueError):
    """Raised if an option cannot be inferred from a state dict and must be passed."""


def infer_options(
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
    >>> state = PaSST(3, embed_dim=64, depth=2, num_heads=4).state_dict()
    >>> options = infer_options(state, {"clip_seconds": 10, "num_heads": 4}, {})
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
        "num_heads": known.get("num_heads") or _num_heads(embed_dim),
        "mlp_ratio": state["blocks.0.mlp.fc1.bias"].numel() / embed_dim,
    }


def _num_heads(embed_dim: int) -> int:
    published = PublishedTeacher._field_defaults
    if embed_dim != published["embed_dim"]:
        raise Untold(
            f"the state dict has embed_dim={embed_dim}, unlike the published ones, and "
            "does not determine the number of attention heads; pass num_heads"
        )
    return published["num_heads"]


def _frequency_stride(rows: int, n_mels: int) -> int:
    fitting = [each for each in STRIDES if num_positions(n_mels, each) == rows]
    if len(fitting) != 1:
        raise Untold(
            f"n_mels={n_mels} and {rows} frequency positions match the strides "
            f"{fitting} of {STRIDES}; pass frequency_stride, or n_mels"
        )
    return fitting[0]


def _time_stride(
    columns: int, clip_seconds: float | None, front_end: Mapping[str, Any]
) -> int:
    if clip_seconds is None:
        raise Untold(
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
        raise Untold(
            f"clip_seconds={clip_seconds} gives {frames} frames, whose patches match "
            f"{columns} time positions at the strides {fitting} of {STRIDES}; pass "
            "time_stride, or another clip_seconds"
        )
    return fitting[0]


def _strides_of_name(path: Path) -> dict[str, int]:
    """Parses the strides from a published file name: -p16-s10- has 10 in both."""
    hint = re.search(r"-p16-s(\d+)(?=[-.])", path.name)
    return (
        dict.fromkeys(("frequency_stride", "time_stride"), int(hint[1])) if hint else {}
    )


def check_overrides(
    overrides: Mapping[str, Any], legal: Iterable[str], what: str
) -> None:
    """Refuses overrides that are not legal options."""
    legal = list(legal)
    for name in overrides:
        if name not in legal:
            near = difflib.get_close_matches(name, legal, n=1)
            hint = f"did you mean {near[0]}?" if near else "see its documentation"
            raise ValueError(f"{name} is not an option of {what}; {hint}")


def _filled(
    options: Mapping[str, Any], state: Mapping[str, Tensor], origin: str
) -> PaSST:
    """Builds a PaSST and loads a whole state dict into it."""
    with torch.device("meta"):  # skips an initialisation that would be overwritten
        passt = PaSST(**options)
    own = passt.state_dict()
    given = dict(state) | {
        name: torch.zeros(value.shape)
        for name, value in own.items()
        if name.startswith(UNREAD) and name not in state
    }
    if differences := differences_of(own, given):
        raise ValueError(
            f"{origin} does not fit a PaSST with {options} ({'; '.join(differences)}); "
            "pass the options that it was trained with"
        )
    passt.load_state_dict(
        {name: value.float() for name, value in given.items()}, strict=True, assign=True
    )
    return passt


def _passt_of(
    known: Described, state: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> PaSST:
    """Builds a PaSST from a state dict, in evaluation mode, with its front end."""
    of_passt = inspect.signature(PaSST).parameters
    is_published = known.entry is not None
    legal = [*of_passt, *FRONT_END, *([] if is_published else ["clip_seconds"])]
    check_overrides(overrides, legal, "PaSST or LogMel")
    front_end = known.front_end_with(overrides)
    if isinstance(known.entry, PublishedTeacher):
        options = known.entry.options()
    else:
        told = {"clip_seconds": known.clip_seconds, **known.options}
        told = _strides_of_name(known.path) | told | dict(overrides)
        options = infer_options(state, told, front_end) | dict(known.options)
    options |= {k: v for k, v in overrides.items() if k in of_passt}
    passt = _filled(options, state, known.source)
    passt.front_end, passt.options = front_end, options
    return passt.eval()


def load_network(
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> Student:
    """Loads a network with its weights, CNN or transformer, ready to score.

    Arguments
    ---------
    source : str or Path
        As in `describe`.
    savedir : str or Path or None
        Folder of downloads.
    base_url : str or None
        URL of a folder with all the files; None: as in `load_teacher`.
    **overrides
        Arguments of the network or of `LogMel` that the source does not determine or
        that should differ, as in `load_student` and `load_teacher`.

    Returns
    -------
    Student
        An `MN`, `DyMN` or `PaSST` in evaluation mode, with ``front_end`` and
        ``options``.

    Raises
    ------
    OSError, ValueError
        As `load_student` and `load_teacher`.

    Example
    -------
    >>> load_network("results/cmkd_mutual/1234/peer/model")  # doctest: +SKIP
    PaSST(...)
    """
    known = describe(source, savedir, base_url)
    return network_of(known, read_state(known.path), overrides)


def network_of(
    known: Described, state: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> Student:
    """Does the rest of `load_network` once weights are found, described and read."""
    if CLASS_TOKEN not in state:
        return student_of(known, state, overrides)
    with known.told():
        return _passt_of(known, state, overrides)


def load_start(
    student: Student,
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> list[str]:
    """Loads the initial weights of a student, CNN or transformer, into it.

    For a CNN this is `load_published_state`; for a PaSST the source is a name of
    `list_teachers`, a file, or a model folder.

    Arguments
    ---------
    student : Student
        Built with the options of the weights; the number of classes may differ.
    source : str or Path
        A name of `list_students` or `list_teachers`, a file, or a model folder.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of a folder with all the files; None: as in `load_teacher`.

    Returns
    -------
    list of str
        Entries left at their initialisation because the number of classes differs.

    Raises
    ------
    OSError
        If a download fails or the file does not exist.
    ValueError
        For an unknown name, a file that is not a state dict, or one that does not fit.

    Example
    -------
    >>> load_start(PaSST(), "passt_s_swa_p16_128_ap476")  # doctest: +SKIP
    []
    """
    if not isinstance(student, PaSST):
        return load_published_state(student, source, savedir, base_url)
    if str(source) not in TEACHERS and not os.path.exists(source):
        raise nothing_called(source, [*TEACHERS])
    state = dict(read_state(locate(source, savedir, base_url).path))
    own = student.state_dict()
    given = {k: v for k, v in state.items() if not k.startswith(UNREAD)}
    classes = len(given.get(f"{CLASS_LAYER}bias", ()))
    kept: list[str] = []
    if classes and classes != student.num_classes:
        kept = [name for name in own if name.startswith(CLASS_LAYER)]
    unread = [name for name in own if name.startswith(UNREAD)]
    given |= {name: own[name] for name in [*kept, *unread]}
    if differences := differences_of(own, given):
        raise ValueError(
            f"{source} does not fit a {student.describe()} with "
            f"num_frames={student.num_frames} ({'; '.join(differences)}); build it "
            "with the options of the weights"
        )
    student.load_state_dict(given, strict=True)
    if kept:
        logger.warning(
            "%s has %d classes and the student %d: %s stay at their initialisation",
            source,
            classes,
            student.num_classes,
            ", ".join(kept),
        )
    return kept


def nothing_called(source: str | Path, names: list[str]) -> Exception:
    """Returns the error to raise if a source neither exists nor is published."""
    path = Path(source)
    if os.path.isdir(source):
        return FileNotFoundError(
            f"the folder {source} has no model in it: neither hyperparams.yaml, as a "
            f"model folder has, nor {AST_CONFIG}, as an AST has; give another folder"
        )
    if path.suffix in WEIGHT_FILES or path.parent != Path("."):
        return FileNotFoundError(
            f"{source} is neither file nor folder; give the path of a state dict, a "
            "name of list_teachers() or list_students(), or an AST on the hub"
        )
    near = difflib.get_close_matches(str(source), names)
    hint = f"did you mean {' or '.join(near)}?" if near else "list_teachers() has all"
    return ValueError(
        f"{str(source)!r} is neither a published teacher nor a file; {hint}"
    )
