"""Reads a path or a hub id as a table, in whatever form its maker wrote it."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import pyarrow as pa
from datasets.utils.metadata import MetadataConfigs

from efficientat_plugin.data.columns import (
    LABEL_NAMES,
    cell_text,
    find_column,
    plain_name,
)
from efficientat_plugin.data.folders import is_hidden
from efficientat_plugin.data.packed import Packed, refuse_packed
from efficientat_plugin.data.rows import (
    _class_names,
    _load_hub,
    _load_parquet,
    _parquet_files,
    _read_segments,
    _refuse_damaged,
    load_saved,
    refuse_decoded,
)
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.support.files import open_file, read_text
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
OFFICIAL_START = b"# Segments csv created"
HIDDEN_README = ".huggingface.yaml"
PATHS = ("data_files", "data_dir")  # in a README's configs
ROOTS = ("/", "\\", "~")


class Source(NamedTuple):
    """Holds a table as it was found; its columns are read on access."""

    name: str  # for messages
    columns: Mapping[str, Sequence[Any]]  # except those that hold sound
    folder: Path | None = None  # that file names are relative to
    table_folder: Path | None = None  # or relative to this one
    rows: datasets.Dataset | None = None  # if the table holds the sound
    embedded: tuple[str, ...] = ()  # columns of sound in ``rows``
    told_by: Mapping[str, str] = {}  # where a column comes from, in words


class ArrowColumns(Mapping[str, Sequence[Any]]):
    """Reads the columns of a `datasets.Dataset` from disk, each one on access.

    Arguments
    ---------
    rows : datasets.Dataset
        As loaded, without an indices mapping.
    hidden : Sequence[str]
        Columns of ``rows`` to leave out.
    more : Mapping[str, Sequence]
        Columns to add to those of ``rows``, or to use instead.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        hidden: Sequence[str] = (),
        more: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.rows = rows
        self.more = dict(more or {})
        own = [name for name in rows.column_names if name not in hidden]
        self.names = list(dict.fromkeys([*own, *self.more]))

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name in self.more:
            return self.more[name]
        if name not in self.names:
            raise KeyError(name)
        values = self.rows.data.column(name).to_pylist()
        return _class_names(values, self.rows.features[name])

    def __contains__(self, name: object) -> bool:
        return name in self.names  # the one of Mapping would read the column

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_table_file(
    path: Path, folder: Path, cache_dir: str | None, numbered: bool = False
) -> Source:
    """Reads a CSV, TSV, JSON or Parquet file with file names relative to ``folder``.

    ``numbered``: columns are given by number, so the file may have no header.
    """
    if path.suffix.lower() == ".csv" and is_official(path):
        parts = {"train": _read_segments(path.absolute())}
        return _of_splits(parts, path.name, path.parent, path.parent)
    if path.suffix.lower() != ".parquet":
        return Source(path.name, read_text_table(path, numbered), folder, path.parent)
    splits = _load_parquet({"train": [path]}, cache_dir)
    return _of_splits(splits, path.name, folder, path.parent)


def is_official(path: Path) -> bool:
    """Whether a file is one of the published tables of AudioSet."""
    with open_file(path) as file:
        return file.read(len(OFFICIAL_START)) == OFFICIAL_START


def with_one_hot(source: Source, classes: Sequence[str] | None) -> Source:
    """Adds a column of lists to a table with a column of 0 and 1 for each class."""
    if classes is None or find_column(source.columns, LABEL_NAMES):
        return source
    found = {name: find_column(source.columns, [plain_name(name)]) for name in classes}
    if None in found.values():
        return source
    columns = [_numbers(source, name) for name in found.values() if name]
    labels = [list(numbers) for numbers in zip(*columns, strict=True)]
    return source._replace(columns={**source.columns, "label": labels})


def _numbers(source: Source, column: str) -> list[float]:
    numbers = []
    for row, value in enumerate(source.columns[column], start=1):
        text = cell_text(value) or "0"
        try:
            number = float({"True": "1", "False": "0"}.get(text, text))
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            raise ValueError(
                f"row {row} of {source.name} has {shown(text)[:40]!r} in column "
                f"{column}, which is a class and must hold 0 or 1, or a probability"
            )
        numbers.append(number)
    return numbers


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


def read_rows(
    dataset: str,
    split_names: Sequence[str],
    config: str | None,
    cache_dir: str | None,
) -> Source:
    """Reads all splits of a hub data set, ``save_to_disk`` folder or Parquet files."""
    path = Path(dataset).expanduser()
    loaded: Any
    every_split: Any = None
    if not path.exists():
        loaded = _load_hub(dataset, every_split, False, config, cache_dir)
    elif any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        loaded = load_saved(path)
    else:
        loaded = _load_parquet_folder(path, split_names, config, cache_dir)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    local = path if path.exists() else None
    return _of_splits(dict(loaded), dataset, local, local)


def _load_parquet_folder(
    path: Path, split_names: Sequence[str], config: str | None, cache_dir: str | None
) -> Any:
    files = {name: _parquet_files(path, name) for name in split_names}
    if files and all(files.values()):
        return _load_parquet(files, cache_dir)
    try:  # `datasets` finds the splits by file names or the README
        elsewhere = _named_elsewhere(path)
        if not elsewhere:
            refuse_packed(sorted(path.rglob("*.parquet")))
            # An absolute path: `datasets` would take a folder named "parquet" or "csv"
            # for its loader of that name, which reads the current folder.
            whole = str(path.absolute())
            return datasets.load_dataset(whole, config, cache_dir=cache_dir)
    except Packed:
        raise
    except Exception as error:  # `datasets` raises errors of many kinds
        _refuse_damaged(find_tables(path), error)
        reason = shown(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
        raise ValueError(
            f"the Parquet files of {path} are not a data set that `datasets` reads "
            f"({reason}); name one file"
        ) from error
    raise ValueError(
        f"the settings of {path} (README.md) name {shown(elsewhere[0])[:200]}, which "
        "is not inside it; correct them, or name one file"
    )


def _named_elsewhere(folder: Path) -> list[str]:
    """Lists what a folder's README tells `datasets` to read from elsewhere."""
    if (folder / HIDDEN_README).exists():  # precedes the README; not in use
        return [HIDDEN_README]
    if not (folder / "README.md").is_file():
        return []
    # Read as `datasets` does, so that both find the same.
    text = read_text(folder / "README.md", MAX_SETTINGS_BYTES, "utf-8-sig")
    card = huggingface_hub.DatasetCard(text)
    configs = MetadataConfigs.from_dataset_card_data(card.data).values()
    named = [_texts(config.get(key)) for config in configs for key in PATHS]
    return [text for texts in named for text in texts if not _is_inside(text)]


def _texts(value: Any) -> list[str]:
    """Collects all text in a value from YAML."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    return [] if value is None else [str(value)]


def _is_inside(pattern: str) -> bool:
    """Whether a path is below the folder it is relative to, and on this machine."""
    parts = pattern.replace("\\", "/").split("/")
    return ":" not in pattern and ".." not in parts and not pattern.startswith(ROOTS)


def _of_splits(
    parts: Mapping[str, datasets.Dataset],
    name: str,
    folder: Path | None,
    table_folder: Path | None,
) -> Source:
    more: dict[str, Sequence[Any]] = {}
    if len(parts) > 1:
        repeated = ([split] * len(rows) for split, rows in parts.items())
        more["split"] = [split for splits in repeated for split in splits]
    rows = datasets.concatenate_datasets(list(parts.values()))
    refuse_decoded(rows, name)
    heard = defaultdict(list)
    for field in rows.data.schema:
        heard[_how_audio_stands(rows, field)].append(field.name)
    for column in heard["path"]:
        paths = [chunk.field("path") for chunk in rows.data.column(column).chunks]
        more[column] = pa.chunked_array(paths, pa.string()).to_pylist()
    columns = ArrowColumns(rows, heard["bytes"], more)
    embedded = tuple(heard["bytes"])
    told_by = {"split": "the splits of the data set"} if len(parts) > 1 else {}
    return Source(name, columns, folder, table_folder, rows, embedded, told_by)


def _how_audio_stands(rows: datasets.Dataset, field: pa.Field) -> str:
    """Finds how a column holds audio: as "bytes", as a "path", or "" for not at all."""
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
