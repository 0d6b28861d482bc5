"""Loads students with their weights: published ones by name, and users' own files.

An import is complete or refused: names and shapes are compared entry by entry. Only the
class layer may keep its initialisation, if the number of classes differs, or the head,
if another one is requested.
"""

import difflib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.architecture import head_options, infer_options
from efficientat_plugin.pretrained.described import (
    FRONT_END,
    Described,
    describe,
    locate,
)
from efficientat_plugin.pretrained.published import PublishedStudent, list_students
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.plain_text import shown

__all__ = ["list_students", "load_published_state", "load_student"]

logger = logging.getLogger(__name__)

FAMILIES: dict[str, type[MN | DyMN]] = {"mn": MN, "dymn": DyMN}
CLASS_TOKEN = "cls_token"  # marks the state dict of a PaSST


def front_end_arguments(log_mel: LogMel) -> dict[str, Any]:
    """Returns the arguments of `LogMel` that rebuild this one."""
    return {name: getattr(log_mel, name) for name in FRONT_END}


def front_end_of(log_mel: LogMel) -> dict[str, Any]:
    """Returns the arguments that equal front ends share, i.e. all but the jitter."""
    return {name: getattr(log_mel, name) for name in FRONT_END if "jitter" not in name}


def _described(state: Mapping[str, Tensor]) -> str:
    """Describes a state dict in a few words, for messages."""
    try:
        family, options = infer_options(state, {})
    except ValueError:
        return "not of a known student"
    return f"of {FAMILIES[family].__name__} of width {options['width']:g}"


def differences_of(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
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
) -> list[str]:
    """Loads a whole state dict into a student; returns the entries it left alone."""
    own = student.state_dict()
    given = head_options(state)
    classes = given.get("num_classes")
    kept: list[str] = []
    merged = dict(state)
    wanted = head_options(own).get("head")
    other_head = may_change_head and bool(given) and given["head"] != wanted
    if other_head:
        kept = [name for name in own if name.startswith("classifier.")]
        merged = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    elif classes is not None and classes != student.num_classes:
        layers = getattr(student.classifier, "class_layers", ())
        prefixes = tuple(f"classifier.{layer}." for layer in layers)
        kept = [name for name in own if name.startswith(prefixes) and name in state]
    merged |= {name: own[name] for name in kept}
    theirs, ours = _described(state), student.describe()
    families = [theirs.removeprefix("of ").split()[0], ours.split()[0]]
    if sorted(families) == ["DyMN", "MN"]:  # no entry would fit
        raise ValueError(
            f"{origin} is {theirs}, and the student {ours}; give {families[1]} "
            f"weights, or build that {families[0]}"
        )
    if differences := differences_of(own, merged):
        raise ValueError(
            f"{origin} does not fit the student: it is {theirs}, the student a {ours} "
            f"({'; '.join(differences)}); build the student with the same options"
        )
    student.load_state_dict(merged, strict=True)
    if kept:
        logger.warning(
            "%s has %d classes and the student %d%s: %s stay at their initialisation",
            origin,
            classes,
            student.num_classes,
            f", with a {wanted} head instead of {given['head']}" if other_head else "",
            ", ".join(kept),
        )
    return kept


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
        A name of `list_students`, a file, or a model folder.
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
    known = locate(source, savedir, base_url)
    state = read_state(known.path)
    kept = _fill(student, state, str(source))
    if isinstance(student, DyMN) and "temperature" not in state:
        if isinstance(known.entry, PublishedStudent):
            student.set_temperature(known.entry.temperature)
    return kept


def _check_overrides(family: str, overrides: Mapping[str, Any]) -> None:
    """Refuses overrides that are options of neither the student nor its front end."""
    legal = [*inspect.signature(FAMILIES[family]).parameters, *FRONT_END]
    for name in overrides:
        if name not in legal:
            near = difflib.get_close_matches(name, legal, n=1)
            hint = f"did you mean {near[0]}?" if near else "see its documentation"
            raise ValueError(
                f"{name} is not an option of {FAMILIES[family].__name__} or LogMel; "
                f"{hint}"
            )


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
        K; None: as many as the weights have, 527 for the published ones. With another
        number the class layer keeps its initialisation, which is logged as a warning.
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
        An `MN` or `DyMN` in evaluation mode. Its ``front_end`` holds the arguments of
        its `LogMel`, its ``options`` those it was built with.

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
    if CLASS_TOKEN in state:
        raise ValueError(
            f"{known.source} is a PaSST, and an MN or a DyMN is needed here; load it "
            "with load_teacher"
        )
    with known.told():
        return _student_of(known, state, overrides, num_classes, needs_front_end)


def _student_of(
    known: Described,
    state: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    num_classes: int | None,
    needs_front_end: bool,
) -> Student:
    entry, source = known.entry, known.source
    stated = {**known.options, **overrides}
    if isinstance(entry, PublishedStudent):
        family, options = entry.family, entry.options()
    else:
        family, options = infer_options(state, {**(known.front_end or {}), **stated})
    _check_overrides(family, stated)
    front_end: dict[str, Any] = {}
    if needs_front_end or known.front_end is not None:
        front_end = known.front_end_with(overrides)
    of_student = inspect.signature(FAMILIES[family]).parameters
    options |= {k: v for k, v in (front_end | stated).items() if k in of_student}
    if num_classes is not None:
        options["num_classes"] = num_classes
    student = FAMILIES[family](**options)
    kept = _fill(student, state, source, may_change_head="head" in overrides)
    if isinstance(student, DyMN) and "temperature" in stated:
        student.set_temperature(stated["temperature"])
    if entry is not None and entry.trained_on == "ImageNet" and not kept:
        logger.warning(
            "%s was trained on ImageNet: its class layer is untrained", source
        )
    student.options = options
    if front_end:
        student.front_end = front_end
    return student.eval()
