"""From a table to rows: what each clip is called, and where its sound is."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.data.columns import AUDIO_NAMES, choose_column
from efficientat_plugin.data.folders import walk_sounds
from efficientat_plugin.data.sources import Source
from efficientat_plugin.plain_text import shown, some_of

logger = logging.getLogger(__name__)

SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
ID_NAMES = ("video_id", "clip_id")
FEATURES = {
    "video_id": datasets.Value("string"),
    "labels": datasets.List(datasets.Value("string")),
    "group": datasets.Value("string"),
    "fold": datasets.Value("string"),
    "split": datasets.Value("string"),
    "device": datasets.Value("string"),
    "judged": datasets.List(datasets.Value("string")),
}


def find_files(
    names: Sequence[Any], folders: Sequence[Path]
) -> tuple[list[str | None], list[str]]:
    """Where each file is, and the names of those that are nowhere.

    A name may lack its suffix, as in FSD50K's tables.

    Arguments
    ---------
    names : Sequence
        Relative to one of the folders, or absolute.
    folders : Sequence[Path]
        Tried in this order.
    """
    found: list[str | None] = []
    absent = []
    for name in names:
        text = "" if name is None else str(name)
        suffix = os.path.splitext(text)[1].lower()
        endings = ("",) if suffix in AUDIO_SUFFIXES else ("", *AUDIO_SUFFIXES)
        places = [folder / (text + end) for folder in folders for end in endings]
        file = next((str(place) for place in places if place.is_file()), None)
        found.append(file)
        if file is None:
            absent.append(text)
    return found, absent


def without_suffix(name: Any) -> str:
    """A file's name as the id of its clip: alike for copies in another format.

    Example
    -------
    >>> without_suffix("a/1-100032-A-0.wav"), without_suffix(64760)
    ('a/1-100032-A-0', '64760')
    """
    stem, suffix = os.path.splitext(str(name))
    return stem if suffix.lower() in AUDIO_SUFFIXES else str(name)


def unique_ids(choices: Iterable[Sequence[str]], source: str) -> list[str]:
    """The first of several ways to name clips that names no two alike.

    Raises
    ------
    ValueError
        If there is none.
    """
    twice: Mapping[str, int] = {}
    for ids in choices:
        if len(set(ids)) == len(ids) and all(ids):
            return list(ids)
        twice = twice or {name: n for name, n in Counter(ids).items() if n > 1}
    some = some_of(f"{name} ({n})" for name, n in twice.items())
    raise ValueError(
        f"{source} names clips more than once, or not at all: {some}; give a clip one "
        "row, with its labels joined, or name a column of ids with id_column"
    )


def embedded_sound(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """A column of sound as ``{bytes, path}``, undecoded; stays on the disk.

    Arguments
    ---------
    rows : datasets.Dataset
        Has it as bytes, as a list of them, or as an ``Audio`` feature.
    column : str
        Its name.
    """
    rows = rows.select_columns([column])
    kind = rows.data.schema.field(column).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Once, into the cache: a list of numbers takes long to make Python objects of.
        rows = rows.with_format("arrow").map(
            _pack,
            batched=True,
            batch_size=64,
            remove_columns=[column],
            features=datasets.Features({"audio": SOUND}),
            desc="Packing bytes",
        )
        rows = rows.with_format(None)
    elif column != "audio":
        rows = rows.rename_column(column, "audio")
    # Parquet remembers an Audio column, which would decode by torchcodec.
    return rows.cast_column("audio", datasets.Audio(decode=False))


def _pack(table: pa.Table) -> pa.Table:
    """Lists of uint8 as bytes."""
    sound = [
        {"bytes": number_list.values.to_numpy().tobytes(), "path": None}
        if number_list.is_valid
        else None
        for number_list in table.column(0)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"audio": pa.array(sound, kind)})


def _ids(
    source: Source,
    table: Mapping[str, Sequence[Any]],
    id_column: str | None,
    files: Sequence[Any] | None,
) -> list[str]:
    names = source.columns
    column = id_column or next((name for name in ID_NAMES if name in names), None)
    if column is not None:
        column = choose_column(names, column, (), "id_column", source.name)
        texts = [str(name) for name in names[column]]
        return unique_ids([[without_suffix(i) for i in texts], texts], source.name)
    if files is not None:
        texts = [str(name) for name in files]
        return unique_ids([[without_suffix(i) for i in texts], texts], source.name)
    usual = [name for name in AUDIO_NAMES if name in names]
    choices = [[without_suffix(i) for i in names[name]] for name in usual]
    split_of = table.get("split", ["row"] * len(table["labels"]))
    choices.append([f"{split}-{row:06d}" for row, split in enumerate(split_of)])
    return unique_ids(choices, source.name)


def _dataset(
    table: Mapping[str, Sequence[Any]], sound: Sequence[Any] | None = None
) -> datasets.Dataset:
    names = [name for name in FEATURES if name in table]
    columns: dict[str, Any] = {name: table[name] for name in names}
    features: dict[str, Any] = {name: FEATURES[name] for name in names}
    if sound is None:
        return datasets.Dataset.from_dict(columns, datasets.Features(features))
    columns["audio"], features["audio"] = sound, SOUND
    # A plain struct: an Audio feature could not be built without torchcodec.
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features))
    return rows.cast_column("audio", datasets.Audio(decode=False))


def _say_where(
    source: str, absent: Sequence[str], folders: Sequence[Path], base: Path
) -> str:
    looked = " and ".join(dict.fromkeys(str(folder) for folder in folders))
    text = (
        f"none of the {len(absent)} files of {source} exists in {looked}, the first "
        f"one being {absent[0]!r}; "
    )
    wanted = without_suffix(Path(absent[0]).name)
    for name in walk_sounds(base).sounds:
        if without_suffix(Path(name).name) == wanted:
            return text + f"set audio_folder, since {shown(name)} is there"
    return text + "pass audio_folder, or another audio_column"


def rows_with_sound(
    source: Source,
    table: dict[str, list[Any]],
    kept: Sequence[int],
    audio_column: str | None = None,
    id_column: str | None = None,
    audio_folder: str | None = None,
) -> tuple[datasets.Dataset, list[int]]:
    """Rows of a source, with their sound undecoded.

    Arguments
    ---------
    source : Source
        Where the sound is.
    table : dict[str, list]
        Columns of the rows, but for ids and sound; one value a clip of the source.
    kept : Sequence[int]
        Clips whose files matter.
    audio_column, id_column, audio_folder : str | None
        See ``read_table``.

    Returns
    -------
    rows : datasets.Dataset
        Every clip of the source.
    kept : list[int]
        Those of ``kept`` whose file exists.

    Raises
    ------
    FileNotFoundError
        If no file exists.
    ValueError
        If a column is missing, or two clips have one name.
    """
    embedded = audio_column or next(iter(source.embedded), "")
    if source.rows is not None and embedded in source.embedded:
        table = {**table, "video_id": _ids(source, table, id_column, None)}
        # Side by side, so that the sound stays where it is on the disk.
        parts = [_dataset(table), embedded_sound(source.rows, embedded)]
        return datasets.concatenate_datasets(parts, axis=1), list(kept)
    column = choose_column(
        source.columns, audio_column, AUDIO_NAMES, "audio_column", source.name
    )
    names = source.columns[column]
    table = {**table, "video_id": _ids(source, table, id_column, names)}
    files = _existing_files(source, names, kept, audio_folder)
    sound = [{"bytes": None, "path": files.get(row)} for row in range(len(names))]
    return _dataset(table, sound), list(files)


def _existing_files(
    source: Source, names: Sequence[Any], kept: Sequence[int], audio_folder: str | None
) -> dict[int, str]:
    """Path of each kept clip that has a file."""
    base = source.folder or Path()
    folders = [base, source.table_folder or base]
    if audio_folder is not None:
        folders.insert(0, base / Path(audio_folder).expanduser())
    files, absent = find_files([names[row] for row in kept], folders)
    if len(absent) == len(kept):
        raise FileNotFoundError(_say_where(source.name, absent, folders, base))
    if absent:
        logger.warning(
            "%d of %d files of %s do not exist and are left out: %s",
            len(absent),
            len(kept),
            source.name,
            some_of(absent),
        )
    paired = zip(kept, files, strict=True)
    return {row: file for row, file in paired if file is not None}
