"""From what a user calls a teacher to a module that hears waveforms.

The one place where names of teachers are understood, for every recipe that takes one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.pretrained.described import Unstated
from efficientat_plugin.pretrained.passt_weights import Untold
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.bring_your_own import is_dotted, load_own, resampled
from efficientat_plugin.teachers.load import load_teacher, names_ast

IN_OPTIONS = {"front end": "--teacher_options '{n_mels: ..., hop_length: ...}'"}
OF_A_FUNCTION = ("labels", "sample_rate")  # options of a module of one's own


class OpenedTeachers(NamedTuple):
    """Who teaches, and what they say."""

    ensemble: Ensemble  # in evaluation mode
    labels: LabelTable  # what its classes are
    target: str | None  # "multilabel" or "multiclass", where that is known


class Member(NamedTuple):
    """One of several teachers, as it was named."""

    module: Any  # [B, N] -> StudentOutput
    labels: LabelTable
    target: str | None


def open_teachers(
    sources: str | Path,
    labels: LabelTable | str | Path | None = None,
    sample_rate: int | None = None,
    own_rate: int | None = None,
    weights: Sequence[float] | None = None,
    savedir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    wanted: LabelTable | None = None,
) -> OpenedTeachers:
    """A teacher, or several whose logits are averaged, and what their classes are.

    Arguments
    ---------
    sources : str or Path
        Joined by commas, each a name of ``list_teachers`` or ``list_students``, a file
        of weights, a model folder or the run folder that it is in, an AST of the hub
        or its folder, or ``package.module:function`` (see ``bring_your_own``).
    labels : LabelTable, str, Path or None
        A table, or a CSV with the columns index, mid, display_name, for teachers that
        do not name their classes; None: AudioSet's.
    sample_rate : int or None
        Of the clips they are given, Hz; a teacher of another rate resamples. None:
        that of all of them.
    own_rate : int or None
        Of a module of one's own that does not say it, Hz.
    weights : Sequence[float] or None
        Of the members' logits; None: alike.
    savedir : str, Path or None
        Folder of downloads.
    options : Mapping or None
        What the names do not tell: of what ``load_teacher`` takes, such as
        ``{"time_stride": 16}``, and ``labels`` and ``sample_rate`` (Hz) of a module of
        one's own. They are for all; those of one member stand under its name, as
        ``{"passt.pt": {"time_stride": 16}}``.
    wanted : LabelTable or None
        The student's classes, which an AST is put in the order of.

    Returns
    -------
    OpenedTeachers

    Raises
    ------
    OSError, ValueError
        For what cannot be loaded, and for teachers that do not go together.
    ImportError
        For an AST without transformers.

    Example
    -------
    >>> teacher, labels, _ = open_teachers("mn04_as,mn10_as")  # doctest: +SKIP
    >>> len(labels)  # doctest: +SKIP
    527
    """
    names = names_of(sources)
    defaults = {"labels": labels, "sample_rate": own_rate}
    by_name = _options_by_name(names, options or {})
    opened = [_open(name, by_name[name], defaults, savedir, wanted) for name in names]
    members = [member.module for member in opened]
    first = opened[0].labels
    targets = {member.target for member in opened} - {None}
    if len(targets) > 1:
        raise ValueError(
            f"some of the teachers {sources} name one class and others several; an "
            "ensemble is of one kind"
        )
    for member in opened:
        if member.labels.mids != first.mids:
            raise ValueError(
                f"the teachers {sources} have {len(first)} classes and "
                f"{len(member.labels)} others; an ensemble speaks of the same classes"
            )
    rates = [member.sample_rate for member in members]
    if sample_rate is not None:
        members = [resampled(member, sample_rate) for member in members]
    elif len(set(rates)) > 1:
        raise ValueError(
            f"the teachers {sources} hear sound of different sample rates, {rates} Hz; "
            "pass --sample_rate to say at which clips are read, the others resample"
        )
    ensemble = Ensemble(members, weights).eval()
    return OpenedTeachers(ensemble, first, next(iter(targets), None))


def names_of(sources: str | Path) -> list[str]:
    """The teachers that a text names, which commas separate.

    Raises
    ------
    ValueError
        If a name is missing.

    Example
    -------
    >>> names_of("mn04_as, my_module:make")
    ['mn04_as', 'my_module:make']
    """
    text = str(sources)
    if os.path.exists(text):  # whatever its path has in it
        return [text]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(
            f"{text!r} names no teacher before or after a comma; give names, files, "
            "folders or package.module:function, with a comma between two"
        )
    return names


def refuse_others(
    theirs: LabelTable, kind: str | None, ours: LabelTable, target: str
) -> None:
    """Refuses a teacher of other classes than the student's, or of another kind.

    Arguments
    ---------
    theirs : LabelTable
        The teacher's classes.
    kind : str or None
        "multilabel" or "multiclass", where that is known of the teacher.
    ours : LabelTable
        The student's classes.
    target : str
        The student's: "multilabel" or "multiclass".

    Raises
    ------
    ValueError
        If classes differ, their order does, or one names one class of each clip and
        the other several.

    Example
    -------
    >>> dogs, cats = LabelTable("ab", "ab"), LabelTable("ac", "ac")
    >>> refuse_others(dogs, None, cats, "multilabel")
    Traceback (most recent call last):
    ValueError: teacher and student share 1 classes, in another order or beside ...
    """
    if theirs.mids != ours.mids:
        both = len(set(theirs.mids) & set(ours.mids))
        raise ValueError(
            f"teacher and student share {both} classes, in another order or beside "
            f"others ({len(theirs)} of the teacher, {len(ours)} of the student); a "
            "teacher speaks of the student's classes"
        )
    if kind not in (None, target):
        raise ValueError(
            f"the teacher is {kind} and the student {target}; a teacher is of the "
            "student's kind, so take another, or pass --target where the recipe has it"
        )


def _options_by_name(
    names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The options of each teacher: those for all, and its own."""
    if not isinstance(options, Mapping):
        raise ValueError(
            f"teacher_options={options!r} must be options by name, as "
            "{time_stride: 16}"
        )
    of_one = {k: dict(v) for k, v in options.items() if isinstance(v, Mapping)}
    for name in of_one:
        if name not in names:
            raise ValueError(
                f"teacher_options has options for {name}, which is none of the "
                f"teachers {', '.join(names)}; name one of them"
            )
    of_all = {k: v for k, v in options.items() if k not in of_one}
    return {name: of_all | of_one.get(name, {}) for name in names}


def _open(
    source: str,
    options: dict[str, Any],
    defaults: Mapping[str, Any],
    savedir: str | Path | None,
    wanted: LabelTable | None,
) -> Member:
    """A published name, a file of weights, a model folder or a function's module."""
    given = as_table(options.get("labels", defaults["labels"]))
    if is_dotted(source):
        if others := [name for name in options if name not in OF_A_FUNCTION]:
            raise ValueError(
                f"{others[0]} is no option of {source}, which takes "
                f"{' and '.join(OF_A_FUNCTION)}; let the function set it"
            )
        rate = options.get("sample_rate", defaults["sample_rate"])
        made = load_own(source, rate, given)
        return Member(made, made.labels, None)
    options = {name: value for name, value in options.items() if name != "labels"}
    in_order = given or wanted
    if in_order is not None and names_ast(source):
        options["labels"] = in_order
    try:
        module: Any = load_teacher(source, savedir, **options)
    except Unstated as error:
        raise ValueError(error.sentence(IN_OPTIONS)) from error
    except Untold as error:
        raise ValueError(
            f"{source}: {error}, as --teacher_options '{{name: value}}'"
        ) from error
    table = getattr(module, "labels", None) or given or audioset_labels()
    if module.num_classes != len(table):
        raise ValueError(
            f"{source} has {module.num_classes} classes and the label table "
            f"{len(table)}; pass --teacher_options '{{labels: CSV}}' with those of "
            "the teacher (index, mid, display_name)"
        )
    return Member(module, table, getattr(module, "target", None))


def as_table(labels: LabelTable | str | Path | None) -> LabelTable | None:
    """A table of labels, or that of a CSV."""
    return LabelTable.from_csv(labels) if isinstance(labels, str | Path) else labels
