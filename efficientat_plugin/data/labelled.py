"""Reads labelled clips for fine-tuning: their classes, and their splits."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from ruamel.yaml import YAML

from efficientat_plugin.data.columns import class_names, in_order
from efficientat_plugin.data.labels import LabelTable, refuse_other_labels
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.splits import (
    BESIDE_TRAIN,
    SIDES,
    Split,
    absent_classes,
    given_split,
    split_by_fold,
    split_rows,
    with_validation,
)
from efficientat_plugin.data.tables import label_table, read_table
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

# Arguments of `read_table` that are options of a recipe
TABLE_OPTIONS = (
    "form",
    "audio_column",
    "label_column",
    "id_column",
    "group_column",
    "fold_column",
    "split_column",
    "separator",
    "classes",
    "audio_folder",
    "segments",
    "splits",
)
KINDS = ("auto", "random", "fold", "given")
# Values of these options that count as not given
UNSET: tuple[Any, ...] = (None, "auto", {}, True)
TARGETS = ("auto", "multilabel", "multiclass")


class LabelledClips(NamedTuple):
    """Holds rows and the classes K of all of them."""

    rows: datasets.Dataset
    labels: LabelTable
    target: str  # "multilabel" or "multiclass"


def open_labelled(
    dataset: str | Path,
    facts: Mapping[str, Any] | str | Path,
    target: str = "auto",
    labels: LabelTable | None = None,
    **given: Any,
) -> LabelledClips:
    """Reads a table of clips and determines its classes and target.

    Arguments
    ---------
    dataset : str or Path
        Folder, file or hub id.
    facts : Mapping, str or Path
        Arguments of ``read_table``, or a YAML file with them.
    target : str
        "multiclass", "multilabel", or "auto": the former if every labelled clip has one
        class.
    labels : LabelTable or None
        The classes, whose ids or names the labels of rows are; None: the classes of the
        facts, or those found in the rows.
    **given
        Arguments of ``read_table`` that override the facts, unless they are None,
        "auto", True or empty.

    Returns
    -------
    LabelledClips

    Raises
    ------
    OSError, ValueError
        As in ``read_table``; if a YAML file holds no facts; and if no label of the rows
        is a class of ``labels``.

    Example
    -------
    >>> import soundfile, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("dog", "cat"):
    ...     (folder / name).mkdir()
    ...     soundfile.write(folder / name / "1.wav", [0.0, 0.1], 32000)
    >>> clips = open_labelled(folder, facts={})
    >>> clips.labels.names, clips.target
    (('cat', 'dog'), 'multiclass')
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r}; it is one of {TARGETS}")
    if not isinstance(facts, Mapping):
        facts = _read_facts(Path(facts))
    given = {key: value for key, value in given.items() if value not in UNSET}
    arguments = _without_absent_folder(dataset, facts) | given
    rows = read_table(dataset, **arguments)
    if labels is None:
        labels = label_table(rows, class_names(arguments.get("classes")))
    else:
        labels = labels.with_names()
        summary = summarize_rows(rows, labels)
        refuse_other_labels("the clips", summary, labels)
    if target == "auto":
        one_each = all(len(set(names)) == 1 for names in rows["labels"] if names)
        target = "multiclass" if one_each else "multilabel"
    return LabelledClips(rows, labels, target)


def without_labels(rows: datasets.Dataset) -> datasets.Dataset:
    """Returns the same rows without a label, to split them whatever their classes.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"video_id": ["a"], "labels": [["x"]]})
    >>> without_labels(rows)[0]
    {'video_id': 'a', 'labels': []}
    """
    none = datasets.Dataset.from_dict(
        {"labels": [[]] * len(rows)},
        datasets.Features(labels=datasets.List(datasets.Value("string"))),
    )
    return datasets.concatenate_datasets([rows.remove_columns("labels"), none], axis=1)


def runs_of(
    rows: datasets.Dataset,
    kind: str = "auto",
    fold: int | str | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
) -> dict[str, Split]:
    """Splits clips to train, validate and test on, for each run by its name.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.
    kind : str
        "given" (the ``split`` column), "fold" (the ``fold`` column), "random", or
        "auto": the first of these that the columns allow.
    fold : int, str or None
        Fold to test on, which makes "auto" a split by folds; None: each fold in turn,
        in a run of its own.
    valid_share : float
        Share of the training clips that is set aside to choose the epoch, if the data
        gives no validation clips; 0: none.
    test_share : float
        Share of the clips to test on, if no column gives them; 0: none.
    seed : int
        Seed of random splits. Test clips do not depend on ``valid_share``.

    Returns
    -------
    dict of str to Split

    Raises
    ------
    ValueError
        If the kind is unknown, a column is missing, or a side of labelled clips has no
        labels.

    Example
    -------
    >>> columns = {"video_id": list("abcd"), "labels": [["x"], ["y"]] * 2}
    >>> rows = datasets.Dataset.from_dict(columns | {"fold": list("1122")})
    >>> runs_of(rows, valid_share=0.0)["fold2"]
    Split(train=[0, 1], valid=[], test=[2, 3])
    """
    columns = rows.column_names
    if kind not in KINDS:
        raise ValueError(f"split={kind!r}; it is one of {KINDS}")
    if fold is not None and kind == "auto":
        kind = "fold"
    if fold is not None and kind != "fold":
        raise ValueError(
            f"fold={fold} was given, but split={kind} uses no folds; leave one of them "
            "out"
        )
    if kind == "auto":
        by_column = {"given": "split", "fold": "fold"}
        kinds = [kind for kind, column in by_column.items() if column in columns]
        kind = kinds[0] if kinds else "random"
    if kind == "random":
        tests = {"random": split_rows(rows, 0.0, test_share, seed, False)}
    elif kind == "given":
        tests = {"given": given_split(rows)}
        if len(rows) and not tests["given"].train:
            names = some_of(sorted(set(rows["split"])))
            raise ValueError(
                f"{_origin_of(rows, 'split')} gives {names} for all {len(rows)} clips, "
                "which leaves nothing to train on; pass another split_column, or "
                "split=random"
            )
    elif "fold" not in columns:
        asked = "split=fold" if fold is None else f"fold={fold}"
        raise ValueError(
            f"{asked} needs a column of folds, but the data has none called fold; name "
            "one with fold_column"
        )
    else:
        folds = in_order({str(each) for each in rows["fold"] if each})
        if len({*rows["fold"]}) < 2:
            raise ValueError(
                f"{_origin_of(rows, 'fold')} gives {some_of(folds) or 'nothing'} for "
                f"all {len(rows)} clips, but two folds or more are needed; pass another"
                " fold_column, or split=random"
            )
        folds = folds if fold is None else [str(fold)]
        tests = {f"fold{each}": split_by_fold(rows, each) for each in folds}
    runs, labelled = {}, any(rows["labels"]) if "labels" in columns else False
    for name, split in tests.items():
        if not split.valid:
            split = with_validation(rows, split, valid_share, seed)
        if labelled:
            _refuse_without_labels(rows, split, name)
        runs[name] = split
    return runs


def split_in_words(
    rows: datasets.Dataset, runs: Mapping[str, Split], seed: int = 0
) -> str:
    """Describes how the clips were split, and how many there are on each side.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.
    runs : Mapping
        From ``runs_of``.
    seed : int
        The seed passed to ``runs_of``.

    Example
    -------
    >>> columns = {"video_id": list("abcd"), "labels": [["x"], ["y"]] * 2}
    >>> rows = datasets.Dataset.from_dict(columns | {"split": ["train", "test"] * 2})
    >>> split_in_words(rows, runs_of(rows, valid_share=0.0))
    'given by column split: 2 clips to train, 0 to validate and 2 to test on'
    """
    name, split = next(iter(runs.items()))
    if name == "random":
        how = f"drawn at random (seed {seed})"
    elif name == "given":
        how = f"given by {_origin_of(rows, 'split')}"
    elif len(runs) > 1:
        how = (
            f"{len(runs)} folds, given by {_origin_of(rows, 'fold')}, the first of them"
        )
    else:
        how = f"{name}, given by {_origin_of(rows, 'fold')}"
    sizes = f"{len(split.train)} clips to train, {len(split.valid)} to validate and "
    text = f"{how}: {sizes}{len(split.test)} to test on"
    drawn: Sequence[str] = Split._fields if name == "random" else ("valid",)
    if name == "given":
        sides = {**SIDES, **BESIDE_TRAIN}
        if "valid" in {sides[str(n).lower()] for n in rows["split"]}:
            drawn = ()
    if drawn == ("valid",) and split.valid:
        text += f", those to validate drawn at random (seed {seed})"
    absent = absent_classes(rows, runs.values(), drawn)
    return f"{text}; {absent}" if absent else text


def _origin_of(rows: datasets.Dataset, role: str) -> str:
    """Describes where the values of a role come from."""
    for line in (rows.info.description or "").splitlines():
        if line.startswith(f"{role}: "):
            return line.removeprefix(f"{role}: ")
    return f"column {role}"


def _refuse_without_labels(rows: datasets.Dataset, split: Split, name: str) -> None:
    for side in ("train", "valid", "test"):
        places = getattr(split, side)
        if not places and side != "train":  # no validation or test
            continue
        if not any(rows.select(places)["labels"]):
            raise ValueError(
                f"no clip to {side} on ({name}) has a label; use another split, or "
                "other shares"
            )


def _without_absent_folder(
    dataset: str | Path, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Drops the folder of audio of known data, of which a copy may have none."""
    path = Path(dataset).expanduser()
    base = path if path.is_dir() else path.parent
    folder = facts.get("audio_folder")
    if folder and path.exists() and not (base / Path(folder).expanduser()).is_dir():
        logger.info("%s: no folder %s, so files are looked up elsewhere", path, folder)
        return {key: facts[key] for key in facts if key != "audio_folder"}
    return dict(facts)


def _read_facts(path: Path) -> dict[str, Any]:
    facts = YAML(typ="safe").load(path)
    if not isinstance(facts, dict):
        raise ValueError(
            f"{path} holds no facts about data; see hparams/data for those that do"
        )
    return facts
