"""Loads teachers: published ones by name, users' own files and functions, ensembles.

This is the only place that parses names of teachers, for every recipe that takes one.
As with students, either all weights are loaded or the import is refused.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.description import (
    AST_CONFIG,
    WEIGHT_FILES,
    Unstated,
    describe,
    find_model_folder,
    not_found,
)
from efficientat_plugin.pretrained.passt_architecture import Undetermined
from efficientat_plugin.pretrained.published import PUBLISHED, find_published
from efficientat_plugin.pretrained.published_passt import TEACHERS
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import check_overrides, network_of
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.support.hub import NAME
from efficientat_plugin.teachers.ast_hub import ASTTeacher, load_ast
from efficientat_plugin.teachers.bring_your_own import is_dotted, load_own, resampled

OPTION = "--teacher_options '{n_mels: ..., hop_length: ...}'"
OPTIONS_OF_A_FUNCTION = ("labels", "sample_rate")


class OpenedTeachers(NamedTuple):
    """An ensemble of teachers and its classes."""

    ensemble: Ensemble  # in evaluation mode
    labels: LabelTable  # its classes
    target: str | None  # "multilabel" or "multiclass"; None: unknown


def names_ast(source: str | Path) -> bool:
    """Whether a source is an AST: a folder with its config, or a name on the hub.

    Example
    -------
    >>> names_ast("MIT/ast-finetuned-audioset-10-10-0.4593"), names_ast("mn10_as")
    (True, False)
    """
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, AST_CONFIG))
    named = NAME.fullmatch(str(source))
    is_file = Path(source).suffix in WEIGHT_FILES or os.path.isfile(source)
    return named is not None and not is_file


def load_teacher(
    source: str | Path,
    savedir: str | Path | None = None,
    base_url: str | None = None,
    **overrides: Any,
) -> WaveformStudent | ASTTeacher:
    """Loads a teacher with its weights and its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    source : str or Path
        A name of `list_teachers` or `list_students`, downloaded once; a model folder
        or its run folder; a file with the state dict of a PaSST or a student; or an
        AST, by its name on the hub or as a folder that ``save_pretrained`` wrote (see
        `load_ast`). The options of a file are known if it has a published name or is
        in a model folder or a run's checkpoints. Otherwise they are inferred from
        names and shapes, and the front end must be stated.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder, and the
        hub's own.
    base_url : str or None
        URL of a folder with all the files; None: the environment variable
        EFFICIENTAT_BASE_URL, else the published releases.
    **overrides
        Arguments of the network, of `LogMel` or of `load_ast` that the source does not
        determine or that should differ, e.g. ``patchout_time``. A file that nothing
        describes needs ``n_mels`` and ``hop_length``; a PaSST also ``time_stride``, or
        ``clip_seconds`` of the clips that it was trained on.

    Returns
    -------
    WaveformStudent or ASTTeacher
        In evaluation mode; takes waveforms at its ``sample_rate``.

    Raises
    ------
    ImportError
        For an AST without transformers.
    OSError
        If a download fails or the file does not exist.
    ValueError
        For an unknown name or option, a file that is not a state dict, or one that
        does not fit.

    Example
    -------
    >>> teacher = load_teacher("passt_s_swa_p16_128_ap476")  # doctest: +SKIP
    >>> teacher(torch.zeros(2, 320000)).logits.shape  # doctest: +SKIP
    torch.Size([2, 527])
    """
    path, found = Path(source), find_model_folder(source)
    if found is None and names_ast(source) and str(source) not in TEACHERS:
        check_overrides(
            overrides, list(inspect.signature(load_ast).parameters)[2:], "an AST"
        )
        return load_ast(source, savedir, **overrides)
    is_published = str(source) in (*TEACHERS, *PUBLISHED)
    if not (is_published or found or path.is_file()):
        raise not_found(source, [*TEACHERS, *PUBLISHED])
    entry = find_published(source)
    if entry is not None and entry.trained_on == "ImageNet":
        raise ValueError(
            f"{source} was trained on ImageNet, so its class layer is untrained and "
            "has nothing to teach; use a model whose name ends with _as"
        )
    known = describe(found or source, savedir, base_url)
    student = network_of(known, read_state(known.path), overrides)
    teacher = WaveformStudent(LogMel(**student.front_end), student).eval()
    if known.yaml is not None or isinstance(student, FrameStudent):
        teacher.labels, teacher.target = known.labels, known.target
    return teacher


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
    """Loads a teacher, or several whose logits are averaged, with their classes.

    Arguments
    ---------
    sources : str or Path
        One or more, separated by commas: a name of ``list_teachers`` or
        ``list_students``, a file of weights, a model folder or its run folder, an AST
        on the hub or in a folder, or ``package.module:function`` (see
        ``bring_your_own``).
    labels : LabelTable, str, Path or None
        A table, or a CSV with the columns index, mid, display_name, for teachers that
        do not name their classes; None: AudioSet's.
    sample_rate : int or None
        Sample rate of the input, Hz; a teacher of another rate resamples. None: the
        rate that all teachers share.
    own_rate : int or None
        Sample rate, Hz, of a user's own module that has no such attribute.
    weights : Sequence[float] or None
        Weights of the members' logits; None: equal.
    savedir : str, Path or None
        Folder of downloads.
    options : Mapping or None
        Options that the names do not imply: those of ``load_teacher``, such as
        ``{"time_stride": 16}``, and ``labels`` and ``sample_rate`` (Hz) of a user's
        own module. They apply to all teachers; options of one member go under its
        name, e.g. ``{"passt.pt": {"time_stride": 16}}``.
    wanted : LabelTable or None
        The student's classes; the classes of an AST are put in this order.

    Returns
    -------
    OpenedTeachers

    Raises
    ------
    OSError, ValueError
        If a teacher cannot be loaded, or the teachers do not match each other.
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
    members = [member for member, _ in opened]
    first = opened[0][1]
    targets = {getattr(member, "target", None) for member in members} - {None}
    if len(targets) > 1:
        raise ValueError(
            f"some of the teachers {sources} are multilabel and others multiclass; "
            "all members of an ensemble must be of one kind"
        )
    for _, theirs in opened:
        if theirs.mids != first.mids:
            raise ValueError(
                f"the teachers {sources} have different classes ({len(first)} and "
                f"{len(theirs)}); members of an ensemble share their classes"
            )
    rates = [member.sample_rate for member in members]
    if sample_rate is not None:
        members = [resampled(member, sample_rate) for member in members]
    elif len(set(rates)) > 1:
        raise ValueError(
            f"the teachers {sources} need different sample rates, {rates} Hz; pass "
            "--sample_rate to choose the rate of the clips, which the others resample"
        )
    ensemble = Ensemble(members, weights).eval()
    return OpenedTeachers(ensemble, first, next(iter(targets), None))


def names_of(sources: str | Path) -> list[str]:
    """Splits a comma-separated list of teachers.

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
            f"{text!r} has a comma with no teacher before or after it; give names, "
            "files, folders or package.module:function, separated by commas"
        )
    return names


def refuse_others(
    theirs: LabelTable, kind: str | None, ours: LabelTable, target: str
) -> None:
    """Refuses a teacher whose classes or kind differ from the student's.

    Arguments
    ---------
    theirs : LabelTable
        The teacher's classes.
    kind : str or None
        The teacher's: "multilabel" or "multiclass"; None: unknown.
    ours : LabelTable
        The student's classes.
    target : str
        The student's: "multilabel" or "multiclass".

    Raises
    ------
    ValueError
        If the classes or their order differ, or one is multilabel and the other
        multiclass.

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
            f"others ({len(theirs)} of the teacher, {len(ours)} of the student); use a "
            "teacher with the student's classes, in the same order"
        )
    if kind not in (None, target):
        raise ValueError(
            f"the teacher is {kind} and the student {target}; both must be of one "
            "kind, so use another teacher, or pass --target if the recipe has it"
        )


def _options_by_name(
    names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the options of each teacher: the shared ones and its own."""
    if not isinstance(options, Mapping):
        raise ValueError(
            f"teacher_options={options!r} must be a mapping of options, such as "
            "{time_stride: 16}"
        )
    of_one = {k: dict(v) for k, v in options.items() if isinstance(v, Mapping)}
    for name in of_one:
        if name not in names:
            raise ValueError(
                f"teacher_options has options for {name}, which is not among the "
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
) -> tuple[Any, LabelTable]:
    """Loads one teacher, [B, N] -> StudentOutput, and finds out its classes."""
    given = as_table(options.get("labels", defaults["labels"]))
    if is_dotted(source):
        if others := [name for name in options if name not in OPTIONS_OF_A_FUNCTION]:
            raise ValueError(
                f"{others[0]} is not an option of {source}, which takes "
                f"{' and '.join(OPTIONS_OF_A_FUNCTION)}; set it in the function"
            )
        rate = options.get("sample_rate", defaults["sample_rate"])
        made = load_own(source, rate, given)
        return made, made.labels
    options = {name: value for name, value in options.items() if name != "labels"}
    in_order = given or wanted
    if in_order is not None and names_ast(source):
        options["labels"] = in_order
    try:
        module: Any = load_teacher(source, savedir, **options)
    except Unstated as error:
        raise ValueError(error.sentence({"front end": OPTION})) from error
    except Undetermined as error:
        raise ValueError(
            f"{source}: {error}, with --teacher_options '{{name: value}}'"
        ) from error
    table = getattr(module, "labels", None) or given or audioset_labels()
    if module.num_classes != len(table):
        raise ValueError(
            f"{source} has {module.num_classes} classes and the label table "
            f"{len(table)}; pass --teacher_options '{{labels: CSV}}' with the "
            "teacher's classes (index, mid, display_name)"
        )
    return module, table


def as_table(labels: LabelTable | str | Path | None) -> LabelTable | None:
    """Reads a CSV of labels; returns anything else unchanged."""
    return LabelTable.from_csv(labels) if isinstance(labels, str | Path) else labels
