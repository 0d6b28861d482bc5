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
    class_names,
    in_order,
    read_labels,
)
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
    Source,
    find_tables,
    read_rows,
    read_table_file,
    with_one_hot,
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
FORMS = ("auto", *NAMED_FOLDERS)
# Folders and tables that only one data set has.
MARKS = {
    "FSD50K.ground_truth": "fsd50k_folder",
    "evaluation_setup": "tau2020_folder",
    "metadata/UrbanSound8K.csv": "urbansound8k_folder",
    "UrbanSound8K.csv": "urbansound8k_folder",
}
SAVED = ("state.json", "dataset_dict.json")  # files that save_to_disk writes


def read_table(
    dataset: str | Path,
    form: str = "auto",
    audio_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    fold_column: str | None = None,
    split_column: str | None = None,
    device_column: str | None = None,
    judged_column: str | None = None,
    separator: str | None = None,
    classes: Sequence[str] | str | None = None,
    min_probability: float = 0.5,
    segments: bool = True,
    splits: Mapping[str, str] | None = None,
    audio_folder: str | None = None,
    config: str | None = None,
    cache_dir: str | None = None,
    num_clips: int | None = None,
    clip_seconds: float | None = None,
    licence: str | None = None,
) -> datasets.Dataset:
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
    form : str
        What the folder is: "auto" to detect it, or "class_folders", "sounds" (without
        labels, as files or in Parquet), "fsd50k_folder", "tau2020_folder" or
        "urbansound8k_folder".
    audio_column : str | None
        Column of file names or of the sound itself; None: the sound if the table holds
        it, otherwise a usual name such as ``filename``. Column names match in any case;
        in a table without a header, a number is the position of a column, from 0.
    label_column : str | None
        Column of class names or numbers, several joined by ``separator`` or as a list;
        or of a probability for each of ``classes``. None: a usual name such as
        ``category``.
    id_column : str | None
        Column of unique clip names, whose audio suffixes are removed; None: a column
        ``video_id`` or ``clip_id``, otherwise the file paths relative to ``dataset``.
    group_column, fold_column, split_column, device_column : str | None
        Columns of the recording's source (kept on one side of a split), fold, split and
        device; None: a column named "group", "fold", "split" or "device", if there is
        one; for splits also one named "subset", "set", "partition" or "usage" that
        holds only "train", "valid" and "test", otherwise folders in all file names.
    judged_column : str | None
        Column with 1 for each class whose presence or absence somebody judged, else 0;
        None: a column "judged" with lists of class names, if there is one.
    separator : str | None
        Separator of labels; "": none; None: see ``columns.read_labels``.
    classes : Sequence[str] | str | None
        All classes in their order, as a list or separated by commas; other labels are
        refused. They may be columns of 0 and 1. None: any.
    min_probability : float
        Where labels are probabilities, a class is present above this value.
    segments : bool
        False: files are read whole, even if there are columns of times.
    splits : Mapping[str, str] | None
        New names of the source's splits, such as ``{"dev": "valid"}``; rows of other
        splits are left out. None: all, under their own names.
    audio_folder : str | None
        Folder that file names are relative to; itself relative to ``dataset``. Files
        are also looked up in ``dataset`` and next to the table.
    config : str | None
        Configuration of a hub data set.
    cache_dir : str | None
        Cache folder of `datasets`; None: its default.
    num_clips : int | None
        Number of clips in the complete data set; a different number causes a warning.
    clip_seconds : float | None
        Usual clip length, s, for the YAML of a run to refer to; not used here.
    licence : str | None
        Licence of the data; stored in ``rows.info.license``.

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
    if not isinstance(segments, bool):
        raise ValueError(f"segments={segments!r} must be True or False")
    classes = class_names(classes)
    source = _find_source(
        str(dataset),
        form,
        list(splits or {}),
        config,
        cache_dir,
        audio_column,
        label_column,
        classes,
    )
    table: dict[str, list[Any]] = {}
    labels = choose_column(
        source.columns, label_column, LABEL_NAMES, "label_column", source.name
    )
    table["labels"] = read_labels(
        source.columns[labels], labels, separator, classes, min_probability
    )
    if judged_column is not None:
        table["judged"] = _read_judged(source, judged_column, classes)
    elif _has_names(source, "judged"):
        table["judged"] = read_labels(source.columns["judged"], "judged", None, classes)
    given = {"group": group_column, "fold": fold_column}
    given |= {"split": split_column, "device": device_column}
    roles, told = read_roles(source, given, audio_column, form == "auto")
    table |= roles
    times = find_times(source.columns) if segments else None
    if times is not None and embedded_column(source, audio_column) is None:
        table |= read_times(source.columns, times, source.name)
    _say_if_incomplete(source.name, len(table["labels"]), num_clips)
    kept = list(range(len(table["labels"])))
    if splits is not None:
        kept = _rename_splits(table, splits, source.name)
    rows = rows_with_sound(source, table, kept, audio_column, id_column, audio_folder)
    if form != "sounds" and not any(table["labels"][row] for row in kept):
        raise ValueError(
            f"no clip of {source.name} has a label in column {labels}; name another "
            "column with label_column"
        )
    rows.info.license = licence or ""
    # `data.labelled` reads this to report which split is used.
    rows.info.description = "\n".join(f"{role}: {by}" for role, by in told.items())
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


def _find_source(
    dataset: str,
    form: str,
    split_names: Sequence[str],
    config: str | None,
    cache_dir: str | None,
    audio_column: str | None,
    label_column: str | None,
    classes: Sequence[str] | None,
) -> Source:
    if form not in FORMS:
        raise ValueError(f"form={form!r} must be one of {', '.join(FORMS)}")
    numbered = any(str(name).isdecimal() for name in (audio_column, label_column))

    def read(path: Path, folder: Path) -> Source:
        table = read_table_file(path, folder, cache_dir, numbered)
        return with_one_hot(table, classes) if label_column is None else table

    path = Path(dataset).expanduser()
    refuse_archives(path)
    if not path.is_dir():
        refuse_special(path)
    if form == "auto":
        form = next((MARKS[name] for name in MARKS if (path / name).exists()), form)
    if form == "sounds" and _is_parquet(path):
        form = "auto"
    if form in NAMED_FOLDERS:
        if not path.is_dir():
            raise FileNotFoundError(f"form={form} needs a folder, but {path} is not")
        return NAMED_FOLDERS[form](path)
    if path.is_file():
        return read(path, path.parent)
    if not path.exists() or any((path / name).is_file() for name in SAVED):
        return read_rows(dataset, split_names, config, cache_dir)
    source = find_layout(path, read, FORMS[1:], audio_column, label_column)
    return source or read_rows(dataset, split_names, config, cache_dir)


def _is_parquet(path: Path) -> bool:
    """Whether a folder has Parquet tables only, and no sound files."""
    files = find_tables(path) if path.is_dir() else []
    only_parquet = all(file.suffix.lower() == ".parquet" for file in files)
    return bool(files) and only_parquet and not walk_sounds(path)


def _read_judged(
    source: Source, column: str, classes: Sequence[str] | None
) -> list[list[str]]:
    column = choose_column(source.columns, column, (), "judged_column", source.name)
    if classes is None:
        raise ValueError(
            f"judged_column={column} holds a number for each class; pass classes, in "
            "the order of the numbers"
        )
    numbers = [[float(n) for n in value or ()] for value in source.columns[column]]
    return read_labels(numbers, column, classes=classes)


def _has_names(source: Source, column: str) -> bool:
    """Whether the source has this column, with lists of text."""
    if source.rows is None or column not in source.rows.column_names:
        return False
    kind = source.rows.data.schema.field(column).type
    return pa.types.is_list(kind) and pa.types.is_string(kind.value_type)


def _say_if_incomplete(name: str, found: int, num_clips: int | None) -> None:
    if num_clips is not None and found != num_clips:
        logger.warning(
            "%s has %d of %d clips: its scores are not comparable with published ones",
            name,
            found,
            num_clips,
        )


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
