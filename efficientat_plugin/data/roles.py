"""Finds the split, fold, group and device of each clip: by columns or file names."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from efficientat_plugin.data.columns import (
    AUDIO_NAMES,
    cell_text,
    choose_column,
    find_column,
    in_order,
    whole_numbers,
)
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.layouts import read_marks, warn_of_unused_marks
from efficientat_plugin.data.splits import BESIDE_TRAIN, SIDES
from efficientat_plugin.data.table_sources import Source
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

ROLES = ("group", "fold", "split", "device")
# A column of such a name (see `columns.plain_name`) is the split if it holds only the
# names of sides; otherwise it may be about something else.
OTHER_SPLITS = ("subset", "set", "partition", "usage", "data_split", "dataset_split")
MAX_SIDES = 10  # a column with more values than these is not about splits
# Columns of these names may mean anything: they are never used, but reported.
OTHERS = {
    "fold": ("fold_id", "folds", "kfold", "k_fold"),
    "group": ("group_id", "groups", "speaker", "speaker_id", "subject_id")
    + ("patient_id", "recording_id"),
    "split": ("is_test", "is_train", "is_valid", "test", "train"),
}

Roles = dict[str, list[str | None]]


def read_roles(source: Source, facts: Facts) -> tuple[Roles, dict[str, str]]:
    """Reads the values of each role of ``ROLES`` that a source has.

    A role is read from the column that the facts name, or from one of its own name;
    splits also from other columns of sides, and splits and folds from the folders in
    file names.

    Arguments
    ---------
    source : Source
    facts : Facts

    Returns
    -------
    roles : dict of str to list
        For each role that was found, the value of each row.
    origins : dict of str to str
        Where the values of each role come from, in words.

    Raises
    ------
    ValueError
        If a column that the facts name is missing.
    """
    roles: Roles = {}
    origins: dict[str, str] = {}
    columns = source.columns
    for role in ROLES:
        given = getattr(facts, f"{role}_column")
        if given is not None or find_column(columns, [role]):
            name = choose_column(columns, given, [role], f"{role}_column", source.name)
            roles[role] = _texts(columns[name])
            origins[role] = source.origins.get(name, f"column {name}")
    if "split" not in roles and facts.fold_column is None:
        if column := _column_of_sides(source, roles):
            roles["split"] = _texts(columns[column])
            origins["split"] = f"column {column}"
    by_names = facts.form == "auto" and not source.embedded and not source.origins
    if by_names and not {"split", "fold"} & {*roles}:
        marked = _marked(source, facts.audio_column)
        roles |= marked
        origins |= dict.fromkeys(marked, "the names of folders")
    if "split" not in roles:
        _report_unused(source, roles)
    return roles, origins


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [cell_text(value) for value in whole_numbers(values)]


def _column_of_sides(source: Source, roles: Roles) -> str | None:
    """Finds a column that holds sides only, "train" among them; reports others."""
    for usual in OTHER_SPLITS:
        if (name := find_column(source.columns, [usual])) is None:
            continue
        values = {*_texts(source.columns[name])}
        sides = {str(value).lower() for value in values}
        if "train" in map(SIDES.get, sides) and sides <= {*SIDES, *BESIDE_TRAIN}:
            if len(sides) > 1:
                return name
        found = in_order(value for value in values if value is not None)
        if 1 < len(found) <= MAX_SIDES and "fold" not in roles:
            logger.warning(
                "%s: column %s is not used as the split, because it holds others than "
                "train, valid and test (%s); to use it, pass --split_column=%s and "
                "--splits='{%s}' with the side of each",
                source.name,
                name,
                some_of(found),
                name,
                some_of(f"{each}: {SIDES.get(each.lower(), '...')}" for each in found),
            )
    return None


def _marked(source: Source, audio_column: str | None) -> Roles:
    """Reads splits or folds from the folders in file names."""
    try:
        column = choose_column(source.columns, audio_column, AUDIO_NAMES, "", "")
    except ValueError:  # will be refused when the files are looked up
        return {}
    paths = [re.split(r"[/\\]", str(name)) for name in source.columns[column]]
    marks = read_marks(paths)
    if marks is None:
        warn_of_unused_marks(paths, source.name)
    if marks is None or len(set(marks.values)) < 2:
        return {}
    return {marks.role: list(marks.values)}


def _report_unused(source: Source, roles: Roles) -> None:
    """Warns of columns that are probably folds, groups or test clips."""
    for role, names in OTHERS.items():
        name = find_column(source.columns, names)
        if role in roles or name is None:
            continue
        values = {cell_text(value) for value in source.columns[name]}
        if not 1 < len(values) < len(source.columns[name]):
            continue
        how = f"if clips with one value belong together, as {role}s,"
        if role == "split":
            how = (
                "if it marks the clips to test on, write train, valid and test into it "
                "and"
            )
        logger.warning(
            "%s: column %s is not used; %s pass %s_column=%s",
            source.name,
            name,
            how,
            role,
            name,
        )
