"""From columns as their maker wrote them to labels."""

import ast
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from efficientat_plugin.data.targets import most_frequent

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
) + ("fname", "audio_file", "audio_path", "audio_filepath", "wav")
LABEL_NAMES = ("labels", "label", "category", "class", "class_name", "scene_label") + (
    "tags",
    "tag",
    "target",
)
# Names that promise several labels; under another one a comma belongs to a name.
PLURAL_NAMES = ("labels", "categories", "classes", "tags", "targets", "events")
SEPARATORS = "|;,"  # from the one least likely within a name


def choose_column(
    columns: Iterable[str],
    given: str | None,
    names: Sequence[str],
    argument: str,
    source: str,
) -> str:
    """The column that ``argument`` names, or else the first common name found.

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
        if given not in found:
            raise ValueError(
                f"{source} has no column {given!r} ({argument}); found were "
                f"{', '.join(found)}"
            )
        return given
    by_name = {name.lower(): name for name in reversed(found)}
    present = [by_name[name] for name in names if name in by_name]
    if not present:
        raise ValueError(
            f"{source} has no column of a usual name ({', '.join(names)}); found were "
            f"{', '.join(found)}: name one with {argument}"
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
    present = [value for value in values if value is not None]
    if any(isinstance(v, list) and v and isinstance(v[0], float) for v in present):
        labels = _above(values, column, classes, min_probability)
    elif classes and present and all(_is_multi_hot(v, len(classes)) for v in present):
        labels = _above(values, column, classes, min_probability)
    else:
        if separator is None:
            separator = _guess_separator(present, column)
        labels = [_names(value, separator) for value in values]
    if classes is not None:
        _refuse_unknown(labels, classes, column)
    return labels


def _is_multi_hot(value: Any, num_classes: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == num_classes
        and all(isinstance(number, int) and number in (0, 1) for number in value)
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
            "classes, in the order of the numbers"
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
    if column.lower() not in PLURAL_NAMES:
        return ""
    texts = [v for v in values if isinstance(v, str) and not v.startswith("[")]
    separator = next((s for s in SEPARATORS if any(s in text for text in texts)), "")
    if separator:
        logger.info("labels in column %s are parted at %r", column, separator)
    return separator


def _names(value: Any, separator: str) -> list[str]:
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:  # a list as Python or JSON writes it, within a CSV
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # a name in brackets, or a list too deep to be one
    if isinstance(value, str) and separator:
        value = value.split(separator)
    parts = value if isinstance(value, list) else [value]
    texts = (str(part).strip() for part in parts if part is not None)
    return [text for text in dict.fromkeys(texts) if text]


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
