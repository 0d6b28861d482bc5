"""Reads labelled clips of any common form as rows for ``Clips`` and ``ClipReader``."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from efficientat_plugin.data.audio_column import embedded_column, rows_with_sound
from efficientat_plugin.data.columns import (
    LABEL_NAMES,
    choose_column,
    find_column,
    in_order,
    read_labels,
)
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.folders import walk_sounds
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.layouts import (
    find_layout,
    read_class_folders,
    read_sounds,
)
from efficientat_plugin.data.roles import read_roles
from efficientat_plugin.data.rows import refuse_archives
from efficientat_plugin.data.schemas import (
    read_fsd50k_folder,
    read_tau2020_folder,
    read_urbansound8k_folder,
)
from efficientat_plugin.data.segments import find_times, read_times
from efficientat_plugin.data.table_sources import (
    SAVED,
    Source,
    find_tables,
    read_rows,
    read_table_file,
)
from efficientat_plugin.support.files import refuse_special
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

NAMED_FOLDERS: dict[str, Callable[[Path], Source]] = {
    "class_folders": read_class_folders,
    "sounds": read_sounds,
    "fsd50k_folder": read_fsd50k_folder,
    "tau2020_folder": read_tau2020_folder,
    "urbansound8k_folder": read_urbansound8k_folder,
}
# Folders and tables that only one data set has.
MARKS = {
    "FSD50K.ground_truth": "fsd50k_folder",
    "labels/vocabulary.csv": "fsd50k_folder",
    "evaluation_setup": "tau2020_folder",
    "metadata/UrbanSound8K.csv": "urbansound8k_folder",
    "UrbanSound8K.csv": "urbansound8k_folder",
}


def read_table(dataset: str | Path, **given: Any) -> datasets.Dataset:
    """Reads labelled clips of any common form, without decoding their sound.

    Clips whose files do not exist count as unreadable, and a warning names them; files
    that cannot be decoded are found only when they are decoded. Several rows of one
    file become one clip with all of their labels, as for events, unless columns give
    each row's segment of the file: ``start`` and ``end`` or ``duration``, or ``offset``
    and ``duration``, in seconds. All segments of a file are in one group.

    Arguments
    ---------
    dataset : str | Path
        A folder of class folders, which may be inside folders of splits (``train``) or
        folds (``fold1``), or contain them; a CSV, TSV, JSON, JSONL or Parquet file; a
        folder with audio and one such file, or one for each split; a ``save_to_disk``
        folder or a folder of Parquet files; or a hub id.
    **given
        The arguments of ``Facts``, such as ``label_column="category"``.

    Returns
    -------
    datasets.Dataset
        Columns ``video_id``, ``audio`` (``{bytes, path}``), ``labels`` (class names)
        and, where the source has them, ``group``, ``fold``, ``split``, ``device``
        (strings), ``judged`` (class names), ``start`` and ``end`` (s).

    Raises
    ------
    FileNotFoundError
        If nothing of a known form is found, or none of its files exists.
    ValueError
        If a column is missing, a label is unexpected, or two clips have one name.
    PermissionError
        If a folder cannot be read.

    Example
    -------
    >>> import soundfile, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("dog", "cat"):
    ...     (folder / name).mkdir()
    ...     soundfile.write(folder / name / "1.wav", [0.0, 0.1], 32000)
    >>> rows = read_table(folder)
    >>> rows["video_id"][:], rows["labels"][:]
    (['cat/1', 'dog/1'], [['cat'], ['dog']])
    """
    facts = Facts(**given)
    source = _find_source(str(dataset), facts)
    labels = facts.label_column or find_column(source.columns, LABEL_NAMES)
    table: dict[str, list[Any]] = {}
    if labels is None and facts.form == "sounds":  # needs none
        columns = source.columns.values() if source.rows is None else [source.rows]
        num_rows = len(next(iter(columns)))
        table["labels"] = [[] for _ in range(num_rows)]
    else:
        labels = choose_column(
            source.columns, labels, LABEL_NAMES, "label_column", source.name
        )
        table["labels"] = read_labels(
            source.columns[labels],
            labels,
            facts.separator,
            facts.class_names,
            facts.min_probability,
        )
    if (judged := _read_judged(source, facts)) is not None:
        table["judged"] = judged
    roles, origins = read_roles(source, facts)
    table |= roles
    times = find_times(source.columns) if facts.segments else None
    if times is not None and embedded_column(source, facts.audio_column) is None:
        table |= read_times(source.columns, times, source.name)
    num_rows = len(table["labels"])
    if facts.num_clips not in (None, num_rows):
        logger.warning(
            "%s has %d of %d clips: its scores are not comparable with published ones",
            source.name,
            num_rows,
            facts.num_clips,
        )
    kept = list(range(num_rows))
    if facts.splits is not None:
        kept = _rename_splits(table, facts.splits, source.name)
    rows = rows_with_sound(
        source, table, kept, facts.audio_column, facts.id_column, facts.audio_folder
    )
    if facts.form != "sounds" and not any(table["labels"][row] for row in kept):
        raise ValueError(
            f"no clip of {source.name} has a label in column {labels}; name another "
            "column with label_column"
        )
    rows.info.license = facts.licence or ""
    # `data.labelled` reads this to report which split is used.
    rows.info.description = "\n".join(f"{role}: {by}" for role, by in origins.items())
    unlabelled = sum(not labels for labels in rows["labels"])
    logger.info("%s: %d clips, %d unlabelled", source.name, len(rows), unlabelled)
    return rows


def label_table(
    rows: datasets.Dataset, classes: Sequence[str] | None = None
) -> LabelTable:
    """Makes the label table: fixed classes in order, or those of the rows, sorted.

    Numbers are sorted as numbers, so that labels 0, 1, 2, ... are the class indices.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``; pass all of them, so that every split has the same K.
    classes : Sequence[str] | None
        Classes that the data set fixes; None: those of the rows.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"labels": [["dog", "cat"], [], ["ant"]]})
    >>> label_table(rows).names
    ('ant', 'cat', 'dog')
    """
    if classes is None:
        column = rows.select_columns(["labels"])
        found: set[str] = set()
        for batch in column.iter(batch_size=10_000):
            found.update(name for names in batch["labels"] for name in names or ())
        classes = in_order(found)
    return LabelTable(classes, classes)


def _find_source(dataset: str, facts: Facts) -> Source:
    path, form = Path(dataset).expanduser(), facts.form
    refuse_archives(path)
    if not path.is_dir():
        refuse_special(path)
    if form == "auto":
        form = next((MARKS[name] for name in MARKS if (path / name).exists()), form)
    if form == "sounds" and (path.is_file() or _is_parquet(path)):
        form = "auto"
    if form in NAMED_FOLDERS:
        if not path.is_dir():
            raise FileNotFoundError(f"form={form} needs a folder, but {path} is not")
        return NAMED_FOLDERS[form](path)
    if path.is_file():
        return read_table_file(path, path.parent, facts)
    source = None
    if path.exists() and not any((path / name).is_file() for name in SAVED):
        source = find_layout(path, facts)
    return source or read_rows(dataset, facts)


def _is_parquet(path: Path) -> bool:
    """Whether a folder has Parquet tables only, and no sound files."""
    files = find_tables(path) if path.is_dir() else []
    only_parquet = all(file.suffix.lower() == ".parquet" for file in files)
    return bool(files) and only_parquet and not walk_sounds(path)


def _read_judged(source: Source, facts: Facts) -> list[list[str]] | None:
    """Reads the classes that somebody judged in each clip; None: all of them."""
    column, classes = facts.judged_column, facts.class_names
    if column is None:
        if source.rows is None or "judged" not in source.rows.column_names:
            return None
        kind = source.rows.data.schema.field("judged").type
        if not (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)):
            return None
        return read_labels(source.columns["judged"], "judged", None, classes)
    column = choose_column(source.columns, column, (), "judged_column", source.name)
    if classes is None:
        raise ValueError(
            f"judged_column={column} holds a number for each class; pass classes, in "
            "the order of the numbers"
        )
    numbers = [[float(n) for n in value or ()] for value in source.columns[column]]
    return read_labels(numbers, column, classes=classes)


def _rename_splits(
    table: dict[str, list[Any]], splits: Mapping[str, str], source: str
) -> list[int]:
    """Returns the rows of the named splits, and renames these in ``table``."""
    if "split" not in table and len(splits) == 1:
        table["split"] = list(splits) * len(table["labels"])
    counts = Counter(table.get("split", ()))
    missing = [name for name in splits if name not in counts]
    if missing:
        found = some_of(f"{name} ({n})" for name, n in counts.items())
        raise ValueError(
            f"{source} has no split {', '.join(missing)}; it has "
            f"{found or 'no splits at all'}: name those in splits"
        )
    left_out = {name: n for name, n in counts.items() if name not in splits}
    if left_out:
        logger.info("%s: splits left out: %s", source, left_out)
    kept = [row for row, name in enumerate(table["split"]) if name in splits]
    table["split"] = [splits.get(name) for name in table["split"]]
    return kept
