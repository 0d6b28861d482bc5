"""Reads a path or a hub id as a table, in whatever form its maker wrote it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from efficientat_plugin.data.columns import (
    LABEL_NAMES,
    find_column,
    numbers_in,
    plain_name,
)
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.folders import is_hidden
from efficientat_plugin.data.rows import (
    load_hub,
    load_parquet,
    load_saved,
    names_of_classes,
    parquet_files,
    read_segments,
    refuse_decoded,
)
from efficientat_plugin.data.splits import split_of_file
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.plain_text import some_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
SAVED = ("state.json", "dataset_dict.json")  # files that save_to_disk writes
AUDIOSET_START = b"# Segments csv created"


class Source(NamedTuple):
    """Holds a table as it was found; its columns are read on access."""

    name: str  # for messages
    columns: Mapping[str, Sequence[Any]]  # except those that hold sound
    folder: Path | None = None  # that file names are relative to
    table_folder: Path | None = None  # or relative to this one
    rows: datasets.Dataset | None = None  # if the table holds the sound
    embedded: tuple[str, ...] = ()  # columns of sound in ``rows``
    origins: Mapping[str, str] = {}  # where a column comes from, in words


class LazyColumns(Mapping[str, Sequence[Any]]):
    """Reads each column on access, and never to learn which ones there are."""

    def __init__(self, readers: Mapping[str, Callable[[], Sequence[Any]]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_table_file(path: Path, folder: Path, facts: Facts) -> Source:
    """Reads a CSV, TSV, JSON or Parquet file with file names relative to ``folder``."""
    if path.suffix.lower() == ".csv" and _is_of_audioset(path):
        parts = {"train": read_segments(path.absolute())}
        source = _of_splits(parts, path.name, path.parent, path.parent)
    elif path.suffix.lower() == ".parquet":
        splits = load_parquet({"train": [path]}, facts.cache_dir)
        source = _of_splits(splits, path.name, folder, path.parent)
    else:
        columns = read_text_table(path, facts.are_numbered)
        source = Source(path.name, columns, folder, path.parent)
    return source if facts.label_column else _with_one_hot(source, facts.class_names)


def _is_of_audioset(path: Path) -> bool:
    """Whether a file is one of the published tables of AudioSet."""
    with open_file(path) as file:
        return file.read(len(AUDIOSET_START)) == AUDIOSET_START


def _with_one_hot(source: Source, classes: Sequence[str] | None) -> Source:
    """Adds a column of lists to a table with a column of 0 and 1 for each class."""
    if classes is None or find_column(source.columns, LABEL_NAMES):
        return source
    found = [find_column(source.columns, [plain_name(name)]) for name in classes]
    if None in found:
        return source
    what = "is a class and must hold 0 or 1, or a probability"
    columns = [
        numbers_in(source.columns[name], name, source.name, what, most=1)
        for name in found
        if name
    ]
    labels = [[n or 0.0 for n in numbers] for numbers in zip(*columns, strict=True)]
    return source._replace(columns={**source.columns, "label": labels})


def find_tables(folder: Path) -> list[Path]:
    """Finds tables in a folder, else one level deeper, else Parquet two levels deeper.

    JSON files count only if there are no other tables: next to a table, or above one,
    they describe something else.
    """
    of_json: list[Path] = []
    for pattern in ("*", "*/*", "*/*/*.parquet"):
        found = [
            path
            for path in sorted(folder.glob(pattern))
            if path.suffix.lower() in TABLE_SUFFIXES
            and not any(is_hidden(part) for part in path.relative_to(folder).parts)
        ]
        if others := [path for path in found if path.suffix.lower() != ".json"]:
            return others
        of_json = of_json or found
    return of_json


def read_rows(dataset: str, facts: Facts) -> Source:
    """Reads all splits of a hub data set, ``save_to_disk`` folder or Parquet files."""
    path = Path(dataset).expanduser()
    loaded: Any
    every_split: Any = None
    if not path.exists():
        loaded = load_hub(dataset, every_split, False, facts.config, facts.cache_dir)
    elif any((path / name).is_file() for name in SAVED):
        loaded = load_saved(path)
    else:
        loaded = _load_parquet_folder(path, facts)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    local = path if path.exists() else None
    return _of_splits(dict(loaded), dataset, local, local)


def _load_parquet_folder(path: Path, facts: Facts) -> Any:
    files = {name: parquet_files(path, name) for name in facts.splits or ()}
    if files and all(files.values()):
        return load_parquet(files, facts.cache_dir)
    by_split = defaultdict(list)
    found = find_tables(path)
    # As in AudioSet's schema: data/bal_train, data/eval
    is_split = {file.parent.parent for file in found} == {path / "data"} and (
        len({file.parent for file in found}) > 1
    )
    for file in found:
        of_hub = re.fullmatch(r"(\w+)-\d+-of-\d+", file.stem)
        split = of_hub[1] if of_hub else split_of_file(file, path)
        if is_split:
            split = file.parent.name
        by_split[split].append(file)
    folders = [{file.parent for file in part} for part in by_split.values()]
    if (None in by_split and len(by_split) > 1) or max(map(len, folders)) > 1:
        names = some_of(
            file.relative_to(path) for part in by_split.values() for file in part
        )
        raise ValueError(
            f"the Parquet files of {path} ({names}) are not those of one data set, "
            "whose names tell the split (train, valid, test), or in one folder; name "
            "one file, or one folder"
        )
    named = {split or "train": part for split, part in by_split.items()}
    in_order = sorted(named, key=lambda name: ("train" not in name, name))
    return load_parquet({name: named[name] for name in in_order}, facts.cache_dir)


def _of_splits(
    parts: Mapping[str, datasets.Dataset],
    name: str,
    folder: Path | None,
    table_folder: Path | None,
) -> Source:
    rows = datasets.concatenate_datasets(list(parts.values()))
    refuse_decoded(rows, name)
    by_kind = defaultdict(list)
    for field in rows.data.schema:
        by_kind[_kind_of_audio(rows, field)].append(field.name)
    readers: dict[str, Callable[[], Sequence[Any]]] = {
        column: partial(_cells, rows, column)
        for column in rows.column_names
        if column not in by_kind["bytes"]
    }
    for column in by_kind["path"]:
        readers[column] = partial(_paths, rows, column)
    origins = {}
    if len(parts) > 1:
        repeated = ([split] * len(part) for split, part in parts.items())
        splits = [split for names in repeated for split in names]
        readers["split"] = lambda: splits
        origins["split"] = "the splits of the data set"
    columns, embedded = LazyColumns(readers), tuple(by_kind["bytes"])
    return Source(name, columns, folder, table_folder, rows, embedded, origins)


def _cells(rows: datasets.Dataset, column: str) -> list[Any]:
    values = rows.data.column(column).to_pylist()
    return names_of_classes(values, rows.features[column])


def _paths(rows: datasets.Dataset, column: str) -> list[str | None]:
    chunks = rows.data.column(column).chunks
    paths = [chunk.field("path") for chunk in chunks]
    return pa.chunked_array(paths, pa.string()).to_pylist()


def _kind_of_audio(rows: datasets.Dataset, field: pa.Field) -> str:
    """Returns how a column holds audio: as "bytes", as a "path", or ""."""
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        if kind.get_field_index("bytes") < 0:
            return "path"
        chunks = rows.data.column(field.name).chunks
        parts = [chunk.field("bytes") for chunk in chunks]
        # Counting nulls reads none of the sound itself.
        absent = all(part.null_count == len(part) for part in parts)
        return "path" if absent else "bytes"
    if pa.types.is_struct(kind):
        return "bytes" if kind.get_field_index("bytes") >= 0 else ""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "bytes" if pa.types.is_uint8(kind.value_type) else ""
    return "bytes" if kind in (pa.binary(), pa.large_binary()) else ""
