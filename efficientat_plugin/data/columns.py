"""Reads labels from the columns of a table, in whatever form they were written."""

import ast
import json
import logging
import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from efficientat_plugin.data.labels import most_frequent
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

# Of each list, the first name that a table has is used.
AUDIO_NAMES = (
    "audio",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "path",
) + ("fname", "audio_file", "audio_path", "audio_filepath", "wav", "begin_file")
LABEL_NAMES = ("labels", "label", "category", "class", "class_name", "scene_label") + (
    "tags",
    "tag",
    "event_label",
    "event_labels",
    "target",
)
# Columns that may hold several labels; in others, a comma is part of a name.
PLURAL_NAMES = ("labels", "categories", "classes", "tags", "targets", "events") + (
    "event_labels",
)
LISTED = 20  # columns in a message
SEPARATORS = "|;,"  # the least likely within a name first
# How pandas, numpy, R and spreadsheets write a missing value.
MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "n/a")
    + ("#N/A", "<NA>")
)


def plain_name(name: str) -> str:
    """Normalizes a column's name: its case, spacing and unit.

    Example
    -------
    >>> plain_name("File Name"), plain_name("Begin Time (s)")
    ('file_name', 'begin_time')
    """
    name = unicodedata.normalize("NFC", name).strip().casefold()
    return re.sub(r"[\s-]+", "_", re.sub(r"\s*\((s|sec|seconds)\)$", "", name))


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Finds the first of ``names`` in a table, as the table spells it; or None."""
    by_name = {plain_name(column): column for column in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)


def cell_text(value: Any) -> str | None:
    """Converts a cell to text in one Unicode form; None if the value is missing.

    Example
    -------
    >>> cell_text(3.0), cell_text(" a "), cell_text(float("nan")), cell_text("nan")
    ('3', 'a', None, None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns integer columns with gaps into floats
    text = unicodedata.normalize("NFC", str(value)).strip()
    return None if text in MISSING else text


def numbers_in(
    values: Sequence[Any],
    column: str,
    source: str,
    what: str,
    most: float = sys.float_info.max,
    least: float = 0.0,
) -> list[float | None]:
    """Reads numbers from ``least`` to ``most``; None where a value is missing.

    Raises
    ------
    ValueError
        Naming the row and value; ``what`` says what is expected of the column.

    Example
    -------
    >>> numbers_in(["1", 0.5, "", True], "c", "a.csv", "is not a number")
    [1.0, 0.5, None, 1.0]
    """
    numbers: list[float | None] = []
    for row, value in enumerate(values, start=1):
        text = cell_text(value)
        try:
            number = None if text is None else float(text)
        except ValueError:
            number = {"True": 1.0, "False": 0.0}.get(str(text), math.nan)
        if number is not None and not least <= number <= most:
            raise ValueError(
                f"row {row} of {source} has {shown(str(value))[:40]!r} in column "
                f"{column}, which {what}"
            )
        numbers.append(number)
    return numbers


def whole_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """Restores whole numbers that pandas wrote as floats because of gaps in the column.

    Nothing changes if any cell is something else.

    Example
    -------
    >>> whole_numbers(["0.0", "10.0", ""]), whole_numbers(["0.5", "1.0"])
    (['0', '10', ''], ['0.5', '1.0'])
    """
    texts = [value for value in values if cell_text(value) is not None]
    if not all(
        isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,15}(\.0*)?", text.strip())
        for text in texts
    ):
        return values
    return [v.split(".")[0] if isinstance(v, str) else v for v in values]


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts names; as numbers if all of them are, so that 10 comes after 2.

    Example
    -------
    >>> in_order(["10", "2", "1"]), in_order(["b", "10", "2"])
    (['1', '2', '10'], ['10', '2', 'b'])
    """
    found = sorted(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in found):
        found.sort(key=int)
    return found


def class_names(classes: Sequence[Any] | str | None) -> list[str] | None:
    """Converts class names, in a list or separated by commas, to a list of text.

    Example
    -------
    >>> class_names("dog, cat"), class_names(["dog", 7])
    (['dog', 'cat'], ['dog', '7'])
    """
    if classes is None:
        return None
    names = classes.split(",") if isinstance(classes, str) else classes
    return [unicodedata.normalize("NFC", str(name)).strip() for name in names]


def choose_column(
    columns: Iterable[str],
    given: str | None,
    names: Sequence[str],
    argument: str,
    source: str,
) -> str:
    """Returns the column that ``argument`` names, or the first usual name found.

    Names match in any case. If no column has that name, as in a table without a header,
    a number is the position of a column, from 0. If there is none, a ``ValueError``
    lists the columns there are.

    Example
    -------
    >>> choose_column(["fname", "Label"], None, LABEL_NAMES, "label_column", "a.csv")
    'Label'
    """
    found = list(columns)
    if given is not None:
        given = str(given)
        alike = [name for name in found if plain_name(name) == plain_name(given)]
        if given in found or len(alike) == 1:
            return given if given in found else alike[0]
        if given.isdecimal() and int(given) < len(found):
            return found[int(given)]
        raise ValueError(
            f"{source} has no column {given!r} ({argument}); its columns are "
            f"{some_of(found, LISTED)}"
        )
    by_name = {plain_name(name): name for name in reversed(found)}
    present = [by_name[name] for name in names if name in by_name]
    if not present:
        more = ""
        if argument == "label_column":
            more = "; or if each class has a column of 0 and 1, pass classes=dog,cat"
        raise ValueError(
            f"{source} has no column of a usual name ({', '.join(names)}); its columns "
            f"are {some_of(found, LISTED)}: name one with {argument}{more}"
        )
    if len(present) > 1 and argument:  # without a name, the caller only tries
        logger.info("%s=%s, not %s", argument, present[0], ", ".join(present[1:]))
    return present[0]


def read_labels(
    values: Sequence[Any],
    column: str,
    separator: str | None = None,
    classes: Sequence[str] | None = None,
    min_probability: float = 0.5,
) -> list[list[str]]:
    """Reads the class names of each clip.

    Arguments
    ---------
    values : Sequence
        For each clip a name or number, several joined by a separator, a list, or a
        number for each of ``classes``: a probability, or 0 or 1.
    column : str
        Name of the column, which decides whether names may be joined.
    separator : str | None
        Separator of names; "": none; None: a bar, semicolon or comma, if the column's
        name is a plural.
    classes : Sequence[str] | None
        All classes in their order, where they are fixed.
    min_probability : float
        A class is present above this value.

    Raises
    ------
    ValueError
        If a label is not among ``classes``, or numbers do not fit them.

    Example
    -------
    >>> read_labels(["dog,cat", "dog", ""], "labels")
    [['dog', 'cat'], ['dog'], []]
    >>> read_labels([[0.9, 0.2]], "true", classes=["dog", "cat"])
    [['dog']]
    """
    values = [_list_in(value) if isinstance(value, str) else value for value in values]
    present = [value for value in values if value is not None]
    if any(isinstance(v, list) and v and isinstance(v[0], float) for v in present):
        labels = _above(values, column, classes, min_probability)
    elif _are_multi_hot(present):
        labels = _above(values, column, classes, min_probability)
    else:
        if separator is None:
            separator = _guess_separator(present, column)
        missing: Counter[str] = Counter()
        known = frozenset(classes or ())
        if not known.intersection(v for v in values if isinstance(v, str)):
            values = whole_numbers(values)
        labels = [_names(value, separator, known, missing) for value in values]
        if missing:
            logger.warning(
                "%d labels in column %s are treated as missing: %s",
                sum(missing.values()),
                column,
                most_frequent(missing),
            )
    if classes is not None:
        _refuse_unknown(labels, classes, column)
    else:
        _warn_of_odd(labels, column)
    return labels


def _are_multi_hot(values: Sequence[Any]) -> bool:
    """Whether all values are lists of the same length that hold only 0 and 1.

    Read as class indices, they would give a clip both classes, one of them repeatedly.
    """
    lists = [value for value in values if isinstance(value, list)]
    sizes = {len(value) for value in lists}
    return (
        len(lists) == len(values)
        and len(sizes) == 1
        and min(sizes) > 1
        and all(isinstance(n, int) and n in (0, 1) for value in lists for n in value)
    )


def _above(
    values: Sequence[Any],
    column: str,
    classes: Sequence[str] | None,
    min_probability: float,
) -> list[list[str]]:
    if classes is None:
        raise ValueError(
            f"column {column} holds a number for each class, but not their names; pass "
            "the names as classes, in the order of the numbers, or write a clip's "
            "labels as names"
        )
    labels = []
    for row, value in enumerate(values, start=1):
        numbers = value if value is not None else [0.0] * len(classes)
        if len(numbers) != len(classes):
            raise ValueError(
                f"column {column} has {len(numbers)} numbers for {len(classes)} "
                "classes; give one name for each"
            )
        if odd := [number for number in numbers if not 0 <= number <= 1]:
            raise ValueError(
                f"row {row} of column {column} has {odd[0]:g}, but a class is 0 or 1, "
                "or a probability"
            )
        paired = zip(classes, numbers, strict=True)
        labels.append([name for name, number in paired if number > min_probability])
    return labels


def _guess_separator(values: Sequence[Any], column: str) -> str:
    if plain_name(column) not in PLURAL_NAMES:
        return ""
    texts = [value for value in values if isinstance(value, str)]
    separator = next((s for s in SEPARATORS if any(s in text for text in texts)), "")
    if separator:
        logger.info("labels in column %s are split at %r", column, separator)
    return separator


def _list_in(text: str) -> Any:
    """Parses a list that Python, JSON or numpy wrote in a cell; returns other text."""
    text = text.strip()
    if not re.fullmatch(r"\[.*\]|\(.*,.*\)|\{.*\}", text, re.DOTALL):
        return text
    try:
        if re.fullmatch(r"\[[\s\d.,eE+-]*\]", text):  # numpy writes no commas
            parts = re.split(r"[\s,]+", text[1:-1].strip(" ,\n"))
            return [float(n) if "." in n else int(n) for n in parts if n]
        if "'" in text or '"' in text:
            # numpy writes no commas between names, and Python would join these.
            text_ = re.sub(r"""(['"])\s+(?=['"])""", r"\1, ", text)
            value = _literal(text_)
            return list(value) if isinstance(value, list | tuple | set) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # a name in brackets, or too deeply nested
    inner = text[1:-1]
    if inner.strip() in MISSING:
        return []
    if text[0] == "[" and "," in inner and not set("[]{}") & set(inner):
        return inner.split(",")
    return text


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _names(
    value: Any, separator: str, classes: frozenset[str], missing: Counter[str]
) -> list[str]:
    """Returns the names in a cell, and counts missing values in ``missing``."""
    if isinstance(value, str) and separator:
        value = value.split(separator)
    names: dict[str, None] = {}
    for part in value if isinstance(value, list) else [value]:
        text = cell_text(part)
        if text is None and isinstance(part, str) and part.strip():
            if part.strip() in classes:
                text = part.strip()
            else:
                missing[part.strip()] += 1
        if text is not None:
            names[text] = None
    return list(names)


def _warn_of_odd(labels: Iterable[Iterable[str]], column: str) -> None:
    """Warns of classes that are probably mistakes."""
    classes = sorted({name for names in labels for name in names})
    in_any_case = defaultdict(list)
    for name in classes:
        in_any_case[name.casefold()].append(name)
    if alike := [names for names in in_any_case.values() if len(names) > 1]:
        logger.warning(
            "column %s has classes that differ only in case and count as several: %s; "
            "use one spelling if they are the same",
            column,
            some_of(name for names in alike for name in names),
        )
    if joined := [name for name in classes if "|" in name or name.startswith("{")]:
        logger.warning(
            "column %s has classes that look like several, or like objects: %s; if a "
            "bar separates labels, pass separator='|', or pass another label_column",
            column,
            some_of(joined, 2),
        )


def _refuse_unknown(
    labels: Sequence[Sequence[str]], classes: Sequence[str], column: str
) -> None:
    known = set(classes)
    unknown = Counter(name for names in labels for name in names if name not in known)
    if unknown:
        some = most_frequent(unknown)
        raise ValueError(
            f"column {column} has {len(unknown)} labels that are not among the "
            f"{len(classes)} classes: {some}; the classes begin with "
            f"{', '.join(classes[:5])}: use the column of names, or correct classes"
        )
