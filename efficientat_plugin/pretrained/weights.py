"""Loads networks with their weights: published ones by name, and users' own files.

An import is complete or refused: names and shapes are compared entry by entry. Only the
class layer may keep its initialisation, if the number of classes differs, or the head,
if another one is requested.
"""

import difflib
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.architecture import head_options
from efficientat_plugin.pretrained.description import (
    FRONT_END,
    Described,
    describe,
    locate,
    not_found,
)
from efficientat_plugin.pretrained.frame_architecture import (
    HEADS,
    class_counts,
    frame_names,
    infer_student,
    is_frame_state,
)
from efficientat_plugin.pretrained.passt_architecture import (
    CLASS_TOKEN,
    infer_passt_options,
    strides_of_name,
)
from efficientat_plugin.pretrained.published import PublishedStudent, list_students
from efficientat_plugin.pretrained.published_passt import TEACHERS, PublishedTeacher
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.frame_passt import FramePaSST
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.limits import MAX_PARAMETERS
from efficientat_plugin.support.plain_text import shown

__all__ = ["list_students", "load_published_state", "load_student"]

logger = logging.getLogger(__name__)

FAMILIES: dict[str, type[MN | DyMN]] = {"mn": MN, "dymn": DyMN}  # of taggers
FRAME_FAMILIES: dict[str, type[FrameMN | FramePaSST]] = {
    "fmn": FrameMN,
    "fpasst": FramePaSST,
}
PASST_CLASSES = "head.1."  # its class layer
PASST_UNREAD = "head_dist."  # an unused layer of published checkpoints


def front_end_arguments(log_mel: LogMel) -> dict[str, Any]:
    """Returns the arguments of `LogMel` that rebuild this one."""
    return {name: getattr(log_mel, name) for name in FRONT_END}


def front_end_of(log_mel: LogMel) -> dict[str, Any]:
    """Returns the arguments that equal front ends share, i.e. all but the jitter."""
    return {name: getattr(log_mel, name) for name in FRONT_END if "jitter" not in name}


def _described(state: Mapping[str, Tensor]) -> str:
    """Describes a state dict in a few words, for messages."""
    if CLASS_TOKEN in state and not is_frame_state(state):
        return "of PaSST"
    try:
        family, options = infer_student(state, {})
    except ValueError:
        return "not of a known student"
    of_width = f" of width {options['width']:g}" if "width" in options else ""
    return f"of {_network_kind(family).__name__}{of_width}"


def _network_kind(family: str) -> type[Student]:
    """Returns the class of a family of students."""
    return FAMILIES[family] if family in FAMILIES else FRAME_FAMILIES[family]


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps ``given`` from filling a student whose state is ``own``."""
    optional = {"temperature"}  # published checkpoints have none
    found = {
        "are missing": [name for name in own if name not in given.keys() | optional],
        "are unexpected": [name for name in given if name not in own],
        "differ in shape": [
            f"{name} is {tuple(given[name].shape)} there and {tuple(value.shape)} here"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    return [
        f"{len(names)} entries {what}, as {shown(names[0])[:160]}"
        for what, names in found.items()
        if names
    ]


def _fill(
    student: Student,
    state: Mapping[str, Tensor],
    origin: str,
    may_change_head: bool = False,
    may_change_classes: bool = True,
) -> list[str]:
    """Loads a whole state dict into a student; returns the entries it left alone."""
    if isinstance(student, FrameStudent):
        return _fill_frame_student(student, state, origin)
    own = student.state_dict()
    given, wanted = head_options(state), head_options(own).get("head")
    if f"{PASST_CLASSES}bias" in state:
        given = {"num_classes": len(state[f"{PASST_CLASSES}bias"])}
    kept: list[str] = []
    merged, here = dict(state), student.num_classes
    other_head = may_change_head and "head" in given and given["head"] != wanted
    if other_head:
        kept = [name for name in own if name.startswith("classifier.")]
        merged = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    elif may_change_classes and given.get("num_classes", here) != here:
        kept = [name for name in own if name.startswith(_class_layers(student))]
        kept = [name for name in kept if name in state]
    unread = [
        name
        for name, value in own.items()
        if name.startswith(PASST_UNREAD)
        and (name not in state or state[name].shape != value.shape)
    ]
    merged |= {name: own[name] for name in [*kept, *unread]}
    _refuse_differences(student, own, merged, state, origin)
    _load(student, merged)
    if kept:
        logger.warning(
            "%s has %d classes and the student %d%s: %s stay at their initialisation",
            origin,
            given["num_classes"],
            here,
            f", with a {wanted} head instead of {given['head']}" if other_head else "",
            ", ".join(kept),
        )
    return kept


def _fill_frame_student(
    student: FrameStudent, state: Mapping[str, Tensor], origin: str
) -> list[str]:
    """Does the same for two heads, each of which may differ or be missing."""
    own, named = student.state_dict(), frame_names(state)
    kept = [
        name
        for name, value in own.items()
        if name.startswith(HEADS)
        and (name not in named or len(named[name]) != len(value))
    ]
    merged = named | {name: own[name] for name in kept}
    _refuse_differences(student, own, merged, state, origin)
    _load(student, merged)
    if kept:
        logger.warning(
            "%s has other classes than the student, %d for frames and %d for clips: %s "
            "stay at their initialisation",
            origin,
            student.num_classes,
            student.num_weak_classes,
            ", ".join(kept),
        )
    return kept


def _load(student: Student, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict that fits, also into a student without memory."""
    if not next(student.parameters()).is_meta:
        student.load_state_dict(state, strict=True)
        return
    filled = {
        name: torch.zeros(value.shape) if value.is_meta else value.float()
        for name, value in state.items()
    }
    student.load_state_dict(filled, strict=True, assign=True)


def _class_layers(student: Student) -> tuple[str, ...]:
    """Returns how the entries begin whose shapes depend on the number of classes."""
    if isinstance(student, PaSST):
        return (PASST_CLASSES,)
    layers = getattr(student.classifier, "class_layers", ())
    return tuple(f"classifier.{layer}." for layer in layers)


def _refuse_differences(
    student: Student,
    own: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    origin: str,
) -> None:
    theirs, ours = _described(state), student.describe()
    families = [theirs.removeprefix("of ").split()[0], ours.split()[0]]
    if sorted(families) == ["DyMN", "MN"]:  # no entry would fit
        raise ValueError(
            f"{origin} is {theirs}, and the student {ours}; give {families[1]} "
            f"weights, or build that {families[0]}"
        )
    if differences := _differences(own, merged):
        if families == ["MN", "FrameMN"]:
            raise ValueError(
                f"{origin} is {theirs}, and the student a {ours}; load_backbone starts "
                "a FrameMN from an MN"
            )
        if isinstance(student, PaSST):
            ours = f"{ours} with num_frames={student.num_frames}"
        raise ValueError(
            f"{origin} does not fit the student: it is {theirs}, the student a {ours} "
            f"({'; '.join(differences)}); build the student with the same options"
        )


def load_published_state(
    student: Student,
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
) -> list[str]:
    """Loads published weights, or those of a file, into a student, in place.

    The temperature of a DyMN is set to that of the weights if it is known.

    Arguments
    ---------
    student : Student
        Built with the options of the weights; the number of classes may differ.
    source : str or Path
        A name of `list_students` or, for a PaSST, of `list_teachers`; a file, or a
        model folder.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of the files; see `fetch`.

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
    """
    if isinstance(student, PaSST):
        if str(source) not in TEACHERS and not os.path.exists(source):
            raise not_found(source, [*TEACHERS])
    known = locate(source, savedir, base_url)
    state = read_state(known.path)
    kept = _fill(student, state, str(source))
    if isinstance(student, DyMN) and "temperature" not in state:
        if isinstance(known.entry, PublishedStudent):
            student.set_temperature(known.entry.temperature)
    return kept


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


def load_student(
    source: str | Path,
    num_classes: int | None = None,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> Student:
    """Loads a student with its weights, ready to score.

    Arguments
    ---------
    source : str or Path
        A name of `list_students`, downloaded once; a model folder or its run folder;
        or a file with a state dict. The front end of a file is known if it has a
        published name or is in a model folder or a run's checkpoints; otherwise state
        ``n_mels`` and ``hop_length``. Family, width, head and the like are inferred
        from names and shapes.
    num_classes : int or None
        K; None: as many as the weights have, 527 for the published taggers and 447 for
        the published `FrameMN`. With another number the class layer keeps its
        initialisation, which is logged as a warning.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of the files; see `fetch`.
    **overrides
        Arguments of the student or of `LogMel` that the source does not determine or
        that should differ, e.g. ``strides``, ``dropout``, ``hop_length``.

    Returns
    -------
    Student
        An `MN`, `DyMN` or frame student in evaluation mode. Its ``front_end`` holds the
        arguments of its `LogMel`, its ``options`` those it was built with.

    Raises
    ------
    OSError
        If a download fails or the file does not exist.
    ValueError
        For an unknown name or option, a file that is not a state dict, one that does
        not fit, or one whose front end is neither known nor stated.

    Example
    -------
    >>> student = load_student("mn04_as")  # doctest: +SKIP
    >>> student.front_end  # doctest: +SKIP
    {'sample_rate': 32000, 'n_mels': 128, 'hop_length': 320}
    """
    known = describe(source, savedir, base_url)
    return student_of(known, read_state(known.path), overrides, num_classes)


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


def student_of(
    known: Described,
    state: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    num_classes: int | None = None,
    needs_front_end: bool = True,
) -> Student:
    """Does the rest of `load_student` once weights are found, described and read.

    Without ``needs_front_end``, a student of unknown front end is returned without one,
    for users who compute their own features.
    """
    if CLASS_TOKEN in state and not is_frame_state(state):
        raise ValueError(
            f"{known.source} is a PaSST, and an MN or a DyMN is needed here; load it "
            "with load_teacher"
        )
    return network_of(known, state, overrides, num_classes, needs_front_end)


def network_of(
    known: Described,
    state: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    num_classes: int | None = None,
    needs_front_end: bool = True,
) -> Student:
    """Does the same for `load_network`, for a CNN or a transformer."""
    with known.naming_errors():
        return _network_of(known, state, overrides, num_classes, needs_front_end)


def _network_of(
    known: Described,
    state: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    num_classes: int | None,
    needs_front_end: bool,
) -> Student:
    entry, options = known.entry, {}
    stated = {**known.options, **overrides}
    kind: type[Student] = PaSST
    if isinstance(entry, PublishedStudent):
        kind, options = _network_kind(entry.family), entry.options()
    elif CLASS_TOKEN not in state or is_frame_state(state):
        family, options = infer_student(state, {**(known.front_end or {}), **stated})
        kind = _network_kind(family)
    is_passt = kind is PaSST
    arguments = inspect.signature(kind).parameters
    legal = [*arguments, *FRONT_END]
    legal += ["clip_seconds"] if is_passt and entry is None else []
    check_overrides(stated, legal, f"{kind.__name__} or LogMel")
    front_end: dict[str, Any] = {}
    if needs_front_end or known.front_end is not None:
        front_end = known.front_end_with(overrides)
    if isinstance(entry, PublishedTeacher):
        options = entry.options()
    elif is_passt:
        hints = {"clip_seconds": known.clip_seconds, **stated}
        hints = strides_of_name(known.path) | hints
        options = infer_passt_options(state, hints, front_end)
    if issubclass(kind, FrameStudent):
        options |= class_counts(frame_names(state))
    options |= {k: v for k, v in (front_end | stated).items() if k in arguments}
    if num_classes is not None:
        options["num_classes"] = num_classes
        if "num_weak_classes" not in stated:
            options.pop("num_weak_classes", None)  # as many
    network = _built(kind, options)
    kept = _fill(
        network,
        state,
        known.source,
        may_change_head="head" in overrides,
        may_change_classes=not is_passt,
    )
    if isinstance(network, DyMN) and "temperature" in stated:
        network.set_temperature(stated["temperature"])
    if entry is not None and entry.trained_on == "ImageNet" and not kept:
        logger.warning(
            "%s was trained on ImageNet: its class layer is untrained", known.source
        )
    network.options = options
    if front_end:
        network.front_end = front_end
    return network.eval()


class _WithoutDrawing(TorchFunctionMode):
    """Without memory there is nothing to draw, and trying imports torch's compiler."""

    STEPS = ("normal_", "erfinv_", "clamp_")

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in self.STEPS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _built(kind: type[Student], options: Mapping[str, Any]) -> Student:
    """Builds a network of bounded size; a PaSST without memory, which takes seconds."""
    with torch.device("meta"), _WithoutDrawing():
        network = kind(**options)
    if sum(each.numel() for each in network.parameters()) > MAX_PARAMETERS:
        raise ValueError(
            f"this {kind.__name__} would have more than {MAX_PARAMETERS} parameters; "
            "check its options"
        )
    return network if kind is PaSST else kind(**options)
