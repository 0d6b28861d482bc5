"""From columns as their maker wrote them to labels."""

import ast
import json
import logging
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from efficientat_plugin.data.labels import most_frequent
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

# The first of a list that a table has is taken.
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
# Names that promise several labels; under another one a comma belongs to a name.
PLURAL_NAMES = ("labels", "categories", "classes", "tags", "targets", "events") + (
    "event_labels",
)
LISTED = 20  # columns in a message
SEPARATORS = "|;,"  # from the one least likely within a name
# How pandas, numpy, R and spreadsheets write that nothing is there.
MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "None", "null", "NULL", "NA", "N/A", "n/a")
    + ("#N/A", "<NA>")
)


def plain_name(name: str) -> str:
    """A column's name without its case, spelling and unit.

    Example
    -------
    >>> plain_name("File Name"), plain_name("Begin Time (s)")
    ('file_name', 'begin_time')
    """
    name = unicodedata.normalize("NFC", name).strip().casefold()
    return re.sub(r"[\s-]+", "_", re.sub(r"\s*\((s|sec|seconds)\)$", "", name))


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of some usual names that a table has, in its own spelling; or None."""
    by_name = {plain_name(column): column for column in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)


def cell_text(value: Any) -> str | None:
    """A cell as text in one Unicode form; None where nothing is there.

    Example
    -------
    >>> cell_text(3.0), cell_text(" a "), cell_text(float("nan")), cell_text("nan")
    ('3', 'a', None, None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes numbers of a column with gaps floating point
    text = unicodedata.normalize("NFC", str(value)).strip()
    return None if text in MISSING else text


def whole_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """A column as it was before a gap made its whole numbers floating point.

    So pandas writes it as text. Nothing changes where any cell is something else.

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
    """Names sorted: as numbers, where all of them are, so that 10 comes after 2.

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
    """Names of classes as a list of text: given so, or apart by commas.

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
    """The column that ``argument`` names, or else the first common name found.

    Names are found in any case; of a table without a header, and where no column has
    such a name, a number is the place of a column, from 0.

    Raises
    ------
    ValueError
        If there is none; says which columns there are.

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
            f"{source} has no column {given!r} ({argument}); found were "
            f"{some_of(found, LISTED)}"
        )
    by_name = {plain_name(name): name for name in reversed(found)}
    present = [by_name[name] for name in names if name in by_name]
    if not present:
        more = ""
        if argument == "label_column":
            more = "; or where each class has a column of 0 and 1, say classes=dog,cat"
        raise ValueError(
            f"{source} has no column of a usual name ({', '.join(names)}); found were "
            f"{some_of(found, LISTED)}: name one with {argument}{more}"
        )
    if len(present) > 1:
        logger.info("%s=%s, not %s", argument, present[0], ", ".join(present[1:]))
    return present[0]


def read_labels(
    values: Sequence[Any],
    column: str,
    separator: str | None = None,
    classes: Sequence[str] | None = None,
    min_probability: float = 0.5,
) -> list[list[str]]:
    """Class names of each clip.

    Arguments
    ---------
    values : Sequence
        A name or number each, several joined by a separator, a list, or a number for
        each of ``classes``: a probability, or 0 or 1.
    column : str
        Its name, which tells whether names are joined.
    separator : str | None
        Between names; "" where there is none; None: a bar, semicolon or comma, if the
        column's name is a plural.
    classes : Sequence[str] | None
        All classes in their order, where they are fixed.
    min_probability : float
        A class is there above it.

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
                "%d labels in column %s are taken for missing: %s",
                sum(missing.values()),
                column,
                most_frequent(missing),
            )
    if classes is not None:
        _refuse_unknown(labels, classes, column)
    else:
        _tell_odd(labels, column)
    return labels


def _are_multi_hot(values: Sequence[Any]) -> bool:
    """Lists of one length that hold nothing but 0 and 1.

    As numbers of classes they would say that a clip has both, and some twice.
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
            f"column {column} holds a number for each class, but not their names; give "
            "the names as classes, in the order of the numbers, or write a clip's "
            "labels as names"
        )
    labels = []
    for value in values:
        numbers = value if value is not None else [0.0] * len(classes)
        if len(numbers) != len(classes):
            raise ValueError(
                f"column {column} has {len(numbers)} numbers for {len(classes)} "
                "classes; give one name for each"
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
        logger.info("labels in column %s are parted at %r", column, separator)
    return separator


def _list_in(text: str) -> Any:
    """A list as Python, JSON or numpy writes it, within a cell; other text as it is."""
    text = text.strip()
    if not re.fullmatch(r"\[.*\]|\(.*,.*\)|\{.*\}", text, re.DOTALL):
        return text
    try:
        if re.fullmatch(r"\[[\s\d.,eE+-]*\]", text):  # numpy writes no commas
            parts = re.split(r"[\s,]+", text[1:-1].strip(" ,\n"))
            return [float(n) if "." in n else int(n) for n in parts if n]
        if "'" in text or '"' in text:
            # Python would join names that stand side by side, as numpy writes them.
            text_ = re.sub(r"""(['"])\s+(?=['"])""", r"\1, ", text)
            value = _literal(text_)
            return list(value) if isinstance(value, list | tuple | set) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # a name in brackets, or a list too deep to be one
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
    """What a cell names; counts what says that nothing is there."""
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


def _tell_odd(labels: Iterable[Iterable[str]], column: str) -> None:
    """Says which classes are hardly meant to be such."""
    classes = sorted({name for names in labels for name in names})
    in_any_case = defaultdict(list)
    for name in classes:
        in_any_case[name.casefold()].append(name)
    if alike := [names for names in in_any_case.values() if len(names) > 1]:
        logger.warning(
            "column %s has classes that differ only in case, and count as several: %s; "
            "write each in one way if they are one",
            column,
            some_of(name for names in alike for name in names),
        )
    if objects := [name for name in classes if re.fullmatch(r"\{.*\}", name)]:
        logger.warning(
            "column %s has labels that are written as objects, each of which counts as "
            "a class: %s; write their names, or give another label_column",
            column,
            some_of(objects, 2),
        )
    if joined := [name for name in classes if "|" in name]:
        logger.warning(
            "column %s has classes with a bar in their names: %s; if it parts several "
            "labels, say separator='|'",
            column,
            some_of(joined),
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
            f"{', '.join(classes[:5])}: take the column of their names, or mend classes"
        )
