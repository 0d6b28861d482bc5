"""Splits clips to train, validate and test on, by seed, class and recording source.

Clips of one ``group`` (a recording, a place) are never on two sides: a network would be
tested on recordings that it was trained on.
"""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from efficientat_plugin.data.digests import digest_of_clips, sounds_of
from efficientat_plugin.data.stratify import Unit, stratify, total_counts
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import cell, some_of

logger = logging.getLogger(__name__)

# Names that data sets give to the sides.
SIDES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SIDES |= {"valid": "valid", "validation": "valid", "val": "valid"}
# Used beside "train", if no other name stands for that side.
BESIDE_TRAIN = {"dev": "valid", "eval": "test", "evaluation": "test"}

# Words for a split in the names of files and folders.
SPLIT_WORDS = (*SIDES, *BESIDE_TRAIN)


class Split(NamedTuple):
    """Holds the rows of each side, in order; a side may be empty."""

    train: list[int]
    valid: list[int]
    test: list[int]


def write_split(path: Path, split: Split, clip_ids: Sequence[str]) -> None:
    """Writes a CSV of clip ids and the side of each: train, valid or test.

    Example
    -------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp(), "split.csv")
    >>> write_split(path, Split([0], [], [1]), ["a.wav", "b.wav"])
    >>> path.read_text().split()
    ['clip_id,split', 'a.wav,train', 'b.wav,test']
    """
    with atomic_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["clip_id", "split"])
        for side, rows in split._asdict().items():
            table.writerows([cell(clip_ids[row]), side] for row in rows)


def split_word(name: str) -> str | None:
    """Returns the split word in a name, or None unless there is exactly one.

    Example
    -------
    >>> split_word("nsynth-train"), split_word("Training"), split_word("trains")
    ('train', 'training', None)
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS]
    return words[0] if len(words) == 1 else None


def split_of_file(file: Path, folder: Path) -> str | None:
    """Returns the split that a file's name, or the name of its folder, stands for.

    Example
    -------
    >>> split_of_file(Path("set/test/metadata.csv"), Path("set"))
    'test'
    """
    by_name = split_word(file.stem)
    if by_name or file.parent == folder:
        return by_name
    return split_word(file.parent.name)


def split_rows(
    rows: datasets.Dataset,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    report: bool = True,
) -> Split:
    """Splits rows at random, with groups kept whole and each class in proportion.

    If clips have one label and no group, each side gets its share of each class to
    within one clip; otherwise, as nearly as groups and labels allow. Clips without a
    label are only split by number. The result depends on the seed, ids and groups, not
    on the order of rows.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``; no audio is read.
    valid_share, test_share : float
        Shares of the clips, from 0 (none) to less than 1 in sum.
    seed : int
        Another seed gives another split.
    report : bool
        Whether to warn of classes that are too small to be on every side.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If the shares are not legal, or there are too few clips, groups or classes.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict(
    ...     {"video_id": list("abcdefgh"), "labels": [["x"], ["y"]] * 4}
    ... )
    >>> split = split_rows(rows, valid_share=0.25, test_share=0.25)
    >>> [len(side) for side in split]
    [4, 2, 2]
    """
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be 0 or more "
            "and leave something to train on"
        )
    shares = {"train": 1 - valid_share - test_share}
    shares.update(valid=valid_share, test=test_share)
    shares = {side: share for side, share in shares.items() if share > 0}
    sides = _deal_out(rows, list(shares), list(shares.values()), seed)
    split = Split(*(sides.get(name, []) for name in Split._fields))
    if report and (text := absent_classes(rows, [split])):
        logger.warning("%s", text)
    return split


def absent_classes(
    rows: datasets.Dataset,
    splits: Iterable[Split],
    sides: Sequence[str] = Split._fields,
) -> str:
    """Lists the classes without clips on some side of some split, in a sentence.

    Returns "" if there are none. Only ``sides`` that are not empty count.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"labels": [["x"], ["y"], ["x"]]})
    >>> absent_classes(rows, [Split([0, 1], [], [2])])
    '1 class is too small, or in too few groups, to have clips in test: y (1)'
    """
    labels = [
        set(names or ()) for names in rows.select_columns(["labels"])["labels"][:]
    ]
    counts = Counter(name for names in labels for name in names)
    absent: set[str] = set()
    where: dict[str, None] = {}
    for split in splits:
        for side in sides:
            held = set().union(*(labels[row] for row in getattr(split, side)))
            if getattr(split, side) and (lacking := counts.keys() - held):
                absent |= lacking
                where[side] = None
    if not absent:
        return ""
    kind = "class is" if len(absent) == 1 else "classes are"
    some = some_of((f"{name} ({counts[name]})" for name in sorted(absent)), number=10)
    return (
        f"{len(absent)} {kind} too small, or in too few groups, to have clips in "
        f"{' and '.join(where)}: {some}"
    )


def split_by_fold(
    rows: datasets.Dataset, test_fold: int | str, valid_fold: int | str | None = None
) -> Split:
    """Tests on one fold of the ``fold`` column and trains on the others.

    Arguments
    ---------
    rows : datasets.Dataset
        With a column ``fold``.
    test_fold : int | str
        Name of the fold to test on.
    valid_fold : int | str | None
        Fold to validate on; None: none.

    Raises
    ------
    ValueError
        If there is no such fold.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"fold": ["1", "2", "3"]})
    >>> split_by_fold(rows, test_fold=3, valid_fold=1)
    Split(train=[1], valid=[0], test=[2])
    """
    folds = _column(rows, "fold")
    asked = [test_fold] if valid_fold is None else [test_fold, valid_fold]
    missing = [str(fold) for fold in asked if str(fold) not in folds]
    if missing or len({str(fold) for fold in asked}) < len(asked):
        found = some_of(sorted({str(fold) for fold in folds}), 20)
        raise ValueError(
            f"test_fold={test_fold} and valid_fold={valid_fold} must be two of the "
            f"folds {found}"
        )
    sides = {str(test_fold): "test"}
    if valid_fold is not None:  # else clips without a fold would be its clips
        sides[str(valid_fold)] = "valid"
    return _by_name(rows, [sides.get(str(fold), "train") for fold in folds])


def given_split(rows: datasets.Dataset) -> Split:
    """Returns the split that the ``split`` column gives.

    Its names are "train", "valid" and "test", or "training", "validation", "val" and
    "testing", in any case. Beside "train", "dev" is the validation side and "eval" the
    test side, if no other name is; elsewhere, their meaning differs between data sets.

    Raises
    ------
    ValueError
        If it has other names.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"split": ["train", "test", "train"]})
    >>> given_split(rows)
    Split(train=[0, 2], valid=[], test=[1])
    """
    names = [str(name) for name in _column(rows, "split")]
    found = sorted(set(names))
    sides_of = dict(SIDES)
    known = {SIDES[name.lower()] for name in found if name.lower() in SIDES}
    if "train" in known:
        sides_of |= {k: v for k, v in BESIDE_TRAIN.items() if v not in known}
    other = [name for name in found if name.lower() not in sides_of]
    if other:
        sides = some_of(f"{n}: {SIDES.get(n.lower(), '...')}" for n in found)
        raise ValueError(
            f"column split holds {some_of(other)}, which may be any side; pass the "
            f"side (train, valid, test) of each, as splits={{{sides}}}"
        )
    return _by_name(rows, [sides_of[name.lower()] for name in names])


def with_validation(
    rows: datasets.Dataset, split: Split, valid_share: float, seed: int = 0
) -> Split:
    """Sets aside a share of the training clips for validation; see ``split_rows``.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict(
    ...     {"video_id": list("abcdef"), "labels": [["x"], ["y"]] * 3}
    ... )
    >>> split = with_validation(rows, Split([0, 1, 2, 3], [], [4, 5]), valid_share=0.5)
    >>> len(split.train), len(split.valid), split.test
    (2, 2, [4, 5])
    """
    if valid_share == 0:
        return split
    inner = split_rows(rows.select(split.train), valid_share, 0.0, seed, False)
    train = [split.train[row] for row in inner.train]
    return split._replace(train=train, valid=[split.train[row] for row in inner.valid])


def split_digest(rows: datasets.Dataset, split: Split) -> dict[str, str]:
    """Computes a digest of each side's clips, which tells splits apart.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"video_id": ["a", "b"]})
    >>> split_digest(rows, Split([0], [], [1]))["train"]
    '1 clips (ids 87428fc5, labels 01ba4719, sound e3b0c442)'
    """
    ids = rows.select_columns(["video_id"])["video_id"][:]
    labels: Sequence = [None] * len(ids)
    if "labels" in rows.column_names:
        labels = rows.select_columns(["labels"])["labels"][:]
    digests = {}
    for side, places in split._asdict().items():
        chosen = rows.select(places)
        sounds = sounds_of(chosen) if "audio" in rows.column_names else []
        digests[side] = digest_of_clips(
            [ids[place] for place in places],
            [labels[place] for place in places],
            sounds,
        )
    return digests


def _column(rows: datasets.Dataset, name: str) -> list:
    if name not in rows.column_names:
        raise ValueError(
            f"the rows have no column {name}, only {', '.join(rows.column_names)}; "
            f"name it with {name}_column when reading them, or use split_rows"
        )
    return rows[name][:]


def _by_name(rows: datasets.Dataset, names: Sequence[str]) -> Split:
    split = Split([], [], [])
    for row, name in enumerate(names):
        getattr(split, name).append(row)
    if "group" in rows.column_names:
        placed = set(zip(rows["group"][:], names, strict=True))
        count = Counter(group for group, _ in placed if group is not None)
        torn = sorted(group for group, n in count.items() if n > 1)
        if torn:  # the makers of the data set chose it: no reason to refuse
            logger.warning(
                "%d groups are on several sides of the given split: %s",
                len(torn),
                some_of(torn),
            )
    return split


def _deal_out(
    rows: datasets.Dataset, names: Sequence[str], shares: Sequence[float], seed: int
) -> dict[str, list[int]]:
    units = _units(rows)
    num_rows = len(rows)
    counts = total_counts(units)
    _refuse_too_few(units, num_rows, counts, names, shares)
    rng = np.random.default_rng(seed)
    units = [units[place] for place in rng.permutation(len(units))]
    side_of = stratify(units, shares, rng)
    sides: dict[str, list[int]] = {name: [] for name in names}
    for unit, side in zip(units, side_of, strict=True):
        sides[names[side]] += unit.rows
    empty = [name for name in names if not sides[name]]
    if empty:
        raise ValueError(
            f"no clips are left for {' and '.join(empty)}: {num_rows} clips in "
            f"{len(units)} groups cannot be split like that; give more clips, or "
            "larger or fewer shares"
        )
    return {name: sorted(side) for name, side in sides.items()}


def _units(rows: datasets.Dataset) -> list[Unit]:
    """Returns groups, and clips without a group, sorted by name."""
    wanted = [n for n in ("video_id", "labels", "group") if n in rows.column_names]
    by_name: dict[tuple[str, str], Unit] = {}
    place = 0
    for batch in rows.select_columns(wanted).iter(batch_size=10_000):
        groups = batch.get("group") or [None] * len(batch["labels"])
        for clip_id, labels, group in zip(
            batch["video_id"], batch["labels"], groups, strict=True
        ):
            name = ("clip", str(clip_id)) if group is None else ("group", str(group))
            unit = by_name.setdefault(name, Unit(name, [], Counter()))
            unit.rows.append(place)
            unit.counts.update(set(labels or ()))
            place += 1
    return [by_name[name] for name in sorted(by_name)]


def _refuse_too_few(
    units: Sequence[Unit],
    num_rows: int,
    counts: Counter,
    names: Sequence[str],
    shares: Sequence[float],
) -> None:
    if len(counts) == 1:  # with no class, there is nothing to keep in proportion
        raise ValueError(
            f"the {num_rows} clips have 1 class ({', '.join(counts)}); splitting by "
            "class needs clips of two or more"
        )
    if len(units) < len(names):
        kind, why = "clips", ""
        if len(units) < num_rows:
            kind = f"groups (of {num_rows} clips)"
            why = (
                "; clips of one group, and segments of one file, stay together unless "
                "a column split says where each clip belongs"
            )
        raise ValueError(
            f"{len(units)} {kind} cannot be split into {len(names)} "
            f"({', '.join(names)}); each needs at least one{why}"
        )
    share, name = min(zip(shares, names, strict=True))
    if share * num_rows < 0.5:
        raise ValueError(
            f"{share:g} of {num_rows} clips, for {name}, is less than half a clip; "
            f"give more clips, or a share of {1 / num_rows:.2g} or more"
        )
