"""Which columns, or names of files, say the split, fold and group of each clip."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from efficientat_plugin.data.columns import (
    AUDIO_NAMES,
    cell_text,
    choose_column,
    find_column,
    in_order,
    plain_name,
    whole_numbers,
)
from efficientat_plugin.data.layouts import (
    read_marks,
    tell_unused_marks,
)
from efficientat_plugin.data.splits import BESIDE_TRAIN, SIDES
from efficientat_plugin.data.table_sources import Source
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

ROLES = ("group", "fold", "split", "device")
# As `columns.plain_name` has them. A column of such a name is the split if it holds
# nothing else than sides; it may be about something else.
OTHER_SPLITS = ("subset", "set", "partition", "usage", "data_split", "dataset_split")
MAX_SIDES = 10  # a column of more values is about something else
# These may be anything, so that they are only talked of.
OTHERS = {
    "fold": ("fold_id", "folds", "kfold", "k_fold"),
    "group": ("group_id", "groups", "speaker", "speaker_id", "subject_id")
    + ("patient_id", "recording_id"),
    "split": ("is_test", "is_train", "is_valid", "test", "train"),
}


def read_roles(
    source: Source,
    given: Mapping[str, str | None],
    audio_column: str | None = None,
    by_names: bool = True,
) -> tuple[dict[str, list[str | None]], dict[str, str]]:
    """The values of each role that the source tells, and what tells it, in words.

    Arguments
    ---------
    source : Source
    given : Mapping
        The column of each of ``ROLES``; None: one of that name, or what else says it
        beyond doubt.
    audio_column : str or None
        Of file names.
    by_names : bool
        Whether folders in the names of files may be splits or folds.

    Raises
    ------
    ValueError
        If a column that was given is missing.
    """
    table: dict[str, list[str | None]] = {}
    told: dict[str, str] = {}
    columns = source.columns
    for role in ROLES:
        if given[role] is not None or find_column(columns, [role]):
            name = choose_column(
                columns, given[role], [role], f"{role}_column", source.name
            )
            table[role] = _texts(columns[name])
            told[role] = source.told_by.get(name, f"column {name}")
    asked = given["split"] is not None or given["fold"] is not None
    if "split" not in table and not asked:
        name, values = _column_of_sides(source)
        if values:
            table["split"], told["split"] = values, f"column {name}"
    is_known = source.embedded or "split" in source.told_by
    if by_names and not is_known and not {"split", "fold"} & {*table}:
        marked = _marked(source, audio_column)
        table |= marked
        told |= dict.fromkeys(marked, "the names of folders")
    if "split" not in table:
        _tell_others(source, table)
    return table, told


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [cell_text(value) for value in whole_numbers(values)]


def _column_of_sides(source: Source) -> tuple[str, list[str | None]]:
    """Finds a column that holds sides only, "train" among them; warns of others."""
    for usual in OTHER_SPLITS:
        if (name := find_column(source.columns, [usual])) is None:
            continue
        values = _texts(source.columns[name])
        words = {str(value).lower() for value in values}
        if "train" in {SIDES.get(word) for word in words} and len(words) > 1:
            if words <= {*SIDES, *BESIDE_TRAIN}:
                return name, values
        found = in_order({value for value in values if value is not None})
        if not 1 < len(found) <= MAX_SIDES or "fold" in map(plain_name, source.columns):
            continue
        logger.warning(
            "%s: column %s is not used as the split, because it holds others than "
            "train, valid and test (%s); to use it, pass --split_column=%s and "
            "--splits='{%s}' with the side of each",
            source.name,
            name,
            some_of(found),
            name,
            some_of(f"{value}: {SIDES.get(value.lower(), '...')}" for value in found),
        )
    return "", []


def _marked(source: Source, audio_column: str | None) -> dict[str, list[str | None]]:
    """Splits or folds by the folders in the names of files."""
    try:
        column = choose_column(source.columns, audio_column, AUDIO_NAMES, "", "")
    except ValueError:  # is told where the files are looked for
        return {}
    paths = [re.split(r"[/\\]", str(name)) for name in source.columns[column]]
    marks = read_marks(paths)
    if marks is None:
        tell_unused_marks(paths, source.name)
    if marks is None or len(set(marks.values)) < 2:
        return {}
    return {marks.role: list(marks.values)}


def _tell_others(source: Source, table: Mapping[str, Any]) -> None:
    for role, names in OTHERS.items():
        name = find_column(source.columns, names)
        if role in table or name is None:
            continue
        values = {cell_text(value) for value in source.columns[name]}
        if not 1 < len(values) < len(source.columns[name]):
            continue
        what = f"clips of one value belong together, as {role}s,"
        if role == "split":
            what = "it tells the test clips, write train, valid and test in it and"
        logger.warning(
            "%s: column %s is not used; if %s say %s_column=%s",
            source.name,
            name,
            what,
            role,
            name,
        )
