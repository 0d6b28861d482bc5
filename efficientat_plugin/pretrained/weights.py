"""Students with their weights: published ones by name, and files of one's own.

An import is whole or refused: names and shapes are compared entry by entry; only the
class layer may stay at its initialisation, where the number of classes differs, or
the head, where another one is asked for.
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
from efficientat_plugin.pretrained.download import read_state
from efficientat_plugin.pretrained.published import PublishedStudent, list_students
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.plain_text import shown

__all__ = ["list_students", "load_published_state", "load_student"]

logger = logging.getLogger(__name__)

FAMILIES: dict[str, type[MN | DyMN]] = {"mn": MN, "dymn": DyMN}
CLASS_TOKEN = "cls_token"  # what tells a PaSST's state dict from a student's


def front_end_arguments(log_mel: LogMel) -> dict[str, Any]:
    """Arguments of `LogMel` that make this one again."""
    return {name: getattr(log_mel, name) for name in FRONT_END}


def front_end_of(log_mel: LogMel) -> dict[str, Any]:
    """What makes two front ends the same one, jitter apart."""
    return {name: getattr(log_mel, name) for name in FRONT_END if "jitter" not in name}


def _described(state: Mapping[str, Tensor]) -> str:
    """A state dict in a few words, for messages."""
    try:
        family, options = infer_options(state, {})
    except ValueError:
        return "not of a known student"
    return f"of {FAMILIES[family].__name__} of width {options['width']:g}"


def differences_of(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``given`` from filling a student whose state dict is ``own``."""
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
    """All of a state dict into a student; returns what had to stay as it was."""
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
    if sorted(families) == ["DyMN", "MN"]:  # of which no entry would fit
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
    """Fills a student with published weights, or those of a file, in place.

    The temperature of a DyMN becomes that of the weights, where it is known.

    Arguments
    ---------
    student : Student
        Built with the options of the weights; the number of classes may differ.
    source : str or Path
        A name of `list_students`, a file, or a model folder.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; see `fetch`.

    Returns
    -------
    list of str
        Entries left at their initialisation, because the number of classes differs.

    Raises
    ------
    OSError
        Where a download fails or there is no such file.
    ValueError
        For an unknown name, a file that is no state dict, and one that does not fit.
    """
    known = locate(source, savedir, base_url)
    state = read_state(known.path)
    kept = _fill(student, state, str(source))
    if isinstance(student, DyMN) and "temperature" not in state:
        if isinstance(known.entry, PublishedStudent):
            student.set_temperature(known.entry.temperature)
    return kept


def _check_overrides(family: str, overrides: Mapping[str, Any]) -> None:
    """Refuses what is an argument of neither the student nor its front end."""
    legal = [*inspect.signature(FAMILIES[family]).parameters, *FRONT_END]
    for name in overrides:
        if name not in legal:
            near = difflib.get_close_matches(name, legal, n=1)
            hint = f"did you mean {near[0]}?" if near else "see its documentation"
            raise ValueError(
                f"{name} is no option of {FAMILIES[family].__name__} or LogMel; {hint}"
            )


def load_student(
    source: str | Path,
    num_classes: int | None = None,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> Student:
    """A student with its weights, ready to score.

    Arguments
    ---------
    source : str or Path
        A name of `list_students`, downloaded once; a model folder, or that of the run
        that left it; or a file with a state dict. Its front end is known of a file
        with a published name, in a model folder or in a run's checkpoints, and must
        be stated of others, with ``n_mels`` and ``hop_length``; family, width, head
        and the like follow from names and shapes.
    num_classes : int or None
        K; None: as many as the weights have, 527 of the published ones. Another
        number leaves the class layer at its initialisation, and warns.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; see `fetch`.
    **overrides
        Arguments of the student or of `LogMel` that the source does not tell or
        that shall differ, e.g. ``strides``, ``dropout``, ``hop_length``.

    Returns
    -------
    Student
        An `MN` or `DyMN` in evaluation mode; its ``front_end`` has the arguments of
        the `LogMel` that goes with it, its ``options`` those it was built with.

    Raises
    ------
    OSError
        Where a download fails or there is no such file.
    ValueError
        For an unknown name or option, a file that is no state dict, one that does
        not fit, and one whose front end is neither known nor stated.

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
    """`load_student`, of weights that are found, described and read.

    Without ``needs_front_end`` a student whose front end is not known has none, for
    whoever computes from features of their own.
    """
    if CLASS_TOKEN in state:
        raise ValueError(
            f"{known.source} is a PaSST, and an MN or a DyMN is needed here; "
            "load_teacher takes it"
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
        logger.warning("%s comes from ImageNet: its class layer is untrained", source)
    student.options = options
    if front_end:
        student.front_end = front_end
    return student.eval()
