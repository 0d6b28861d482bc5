"""From what a user calls a teacher to a module that hears waveforms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from efficientat_plugin.data.targets import LabelTable, audioset_labels
from efficientat_plugin.inference import AudioTagger
from efficientat_plugin.model_folder import HYPERPARAMS, refuse_run_folder
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.bring_your_own import Resampled, is_dotted, load_own
from efficientat_plugin.teachers.weights import load_teacher, names_ast


class OpenedTeachers(NamedTuple):
    """Who teaches, and what they say."""

    ensemble: Ensemble  # in evaluation mode
    labels: LabelTable  # what its classes are
    target: str | None  # "multilabel" or "multiclass", where that is known


def open_teachers(
    sources: str,
    labels: str | Path | None = None,
    sample_rate: int | None = None,
    own_rate: int | None = None,
    weights: Sequence[float] | None = None,
    savedir: str | Path | None = None,
) -> OpenedTeachers:
    """A teacher, or several whose logits are averaged, and what their classes are.

    Arguments
    ---------
    sources : str
        Joined by commas, each a name of ``list_teachers`` or ``list_students``, a file
        of weights, a folder of a fine-tuned model or of an AST, or
        ``package.module:function`` (see ``bring_your_own``).
    labels : str, Path or None
        A CSV with the columns index, mid, display_name, for teachers that do not say
        what their classes are; None: AudioSet's.
    sample_rate : int or None
        Of the clips they are given, Hz; who hears another one resamples. None: that
        of all of them.
    own_rate : int or None
        Of a module of one's own that does not say it, Hz.
    weights : Sequence[float] or None
        Of the members' logits; None: alike.
    savedir : str, Path or None
        Folder of downloads.

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
    given = None if labels is None else LabelTable.from_csv(labels)
    members: list[Any] = []
    tables: list[LabelTable] = []
    targets: set[str] = set()
    for source in sources.split(","):
        more, table, target = _members_of(source, given, own_rate, savedir)
        members += more
        tables.append(table)
        if target is not None:
            targets.add(target)
    if len(targets) > 1:
        raise ValueError(
            f"some of the teachers {sources} name one class and others several; an "
            "ensemble is of one kind"
        )
    for table in tables:
        if table.mids != tables[0].mids:
            raise ValueError(
                f"the teachers {sources} have {len(tables[0])} classes and "
                f"{len(table)} others; an ensemble speaks of the same classes"
            )
    rates = [member.sample_rate for member in members]
    if sample_rate is not None:
        members = [
            member if rate == sample_rate else Resampled(member, sample_rate)
            for member, rate in zip(members, rates, strict=True)
        ]
    elif len(set(rates)) > 1:
        raise ValueError(
            f"the teachers {sources} hear sound of different sample rates, {rates} Hz; "
            "pass --sample_rate to say at which clips are read, the others resample"
        )
    ensemble = Ensemble(members, weights).eval()
    return OpenedTeachers(ensemble, tables[0], next(iter(targets), None))


def _members_of(
    source: str,
    given: LabelTable | None,
    own_rate: int | None,
    savedir: str | Path | None,
) -> tuple[list[nn.Module], LabelTable, str | None]:
    """A published name, a file of weights, a model folder or a function's module."""
    members: list[Any]
    target = None
    if is_dotted(source):
        own = load_own(source, own_rate, given)
        members, table = [own], own.labels
    elif (Path(source) / HYPERPARAMS).is_file():
        refuse_run_folder(source)
        tagger = AudioTagger.from_hparams(source)
        members, table = list(tagger.ensemble.members), tagger.labels
        target = tagger.hparams.target
    else:
        # An AST of other classes than AudioSet's is put in the order of the table.
        in_order = given is not None and names_ast(source)
        options: dict[str, Any] = {"labels": given} if in_order else {}
        members = [load_teacher(source, savedir, **options)]
        own_labels = getattr(members[0], "labels", None)
        table = own_labels or given or audioset_labels()
    num_classes = members[0].num_classes
    if num_classes != len(table):
        raise ValueError(
            f"{source} has {num_classes} classes and the label table {len(table)}; "
            "pass --labels CSV with the teacher's own (index, mid, display_name)"
        )
    return members, table, target
