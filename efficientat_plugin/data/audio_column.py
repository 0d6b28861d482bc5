"""From a table to rows: what each clip is called, and where its sound is."""

import itertools
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from efficientat_plugin.data.clip_ids import (
    AUDIO_SUFFIXES,
    ids_of_files,
    is_audio,
    unique_ids,
    without_suffix,
)
from efficientat_plugin.data.columns import (
    AUDIO_NAMES,
    cell_text,
    choose_column,
    find_column,
)
from efficientat_plugin.data.folders import walk_sounds
from efficientat_plugin.data.segments import are_cut_already, merge_rows
from efficientat_plugin.data.table_sources import Source
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
# What a path begins with, SpeechBrain's word for the folder of the data among others
ROOT = r"[A-Za-z]:|~|\{data_root\}|\{data_folder\}|\$data_root|\$data_folder"
ID_NAMES = ("video_id", "clip_id")
FEATURES = {
    "video_id": datasets.Value("string"),
    "labels": datasets.List(datasets.Value("string")),
    "group": datasets.Value("string"),
    "fold": datasets.Value("string"),
    "split": datasets.Value("string"),
    "device": datasets.Value("string"),
    "judged": datasets.List(datasets.Value("string")),
    "start": datasets.Value("float64"),  # s; the clip is this segment of its file
    "end": datasets.Value("float64"),
}


def find_file(name: str, folders: Sequence[Path]) -> str | None:
    """Where a file is, or None.

    A name may lack its suffix, as in FSD50K's tables; or be of another format, if the
    files were converted; or come from another system, as ``audio\\a.wav`` or the
    absolute path of a folder that was copied.

    Arguments
    ---------
    name : str
        Relative to one of the folders, or absolute.
    folders : Sequence[Path]
        Tried in this order.
    """
    suffix = os.path.splitext(name)[1] if is_audio(name) else ""
    as_said = ("",) if suffix else ("", *AUDIO_SUFFIXES)
    for cut, endings in (("", as_said), (suffix, AUDIO_SUFFIXES)):
        for spelling, folder in itertools.product(_spellings(name), folders):
            stem = str(folder / spelling.removesuffix(cut))
            for ending in endings:
                if os.path.isfile(stem + ending):
                    return stem + ending
    return None


def _spellings(name: str) -> Iterator[str]:
    """A name as it stands, and as this system would write it."""
    yield name
    plain = name.strip().replace("\\", "/")
    found = {unicodedata.normalize(form, plain): None for form in ("NFC", "NFD")}
    if re.match(ROOT + "|/", plain):
        # Of a copied folder, the end of the path is still right.
        parts = re.sub(f"^({ROOT})", "", plain).strip("/").split("/")
        found |= {"/".join(parts[place:]): None for place in range(len(parts))}
    yield from (spelling for spelling in found if spelling != name)


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
    kept: Sequence[int],
    id_column: str | None,
    files: Sequence[str] | None,
) -> list[str]:
    """Ids of the kept rows; ``files`` are their names from the data's folder on."""
    names = source.columns
    choices: list[list[str]] = []
    column = id_column or find_column(names, ID_NAMES)
    if column is not None:
        column = choose_column(names, column, (), "id_column", source.name)
        values = names[column]
        texts = [cell_text(values[row]) or "" for row in kept]
        choices += [[without_suffix(text) for text in texts], texts]
    if files is not None and id_column is None:
        choices.append(ids_of_files(files))
    if "start" in table and choices:
        times = [_times(table["start"][row], table["end"][row]) for row in kept]
        choices += [
            [name + time for name, time in zip(ids, times, strict=True)]
            for ids in choices
        ]
    if not choices:
        usual = [
            name for name in (find_column(names, [n]) for n in AUDIO_NAMES) if name
        ]
        choices = [[without_suffix(names[name][row]) for row in kept] for name in usual]
        split_of = table.get("split", ["row"] * len(table["labels"]))
        choices.append([f"{split_of[row]}-{row:06d}" for row in kept])
    ids = unique_ids(choices, source.name)
    if column is not None and files is not None and ids == ids_of_files(files):
        twice = {name: n for name, n in Counter(choices[0]).items() if n > 1}
        if twice:
            logger.warning(
                "%s: column %s is not used for ids, since it names clips more than "
                "once, or not at all: %s; ids are the names of files",
                source.name,
                column,
                some_of(f"{name} ({n})" for name, n in twice.items()),
            )
    return ids


def _times(start: float | None, end: float | None) -> str:
    """A segment as a part of its clip's id."""
    if start is None and end is None:
        return ""
    return f":{start or 0:.10g}-" + ("" if end is None else f"{end:.10g}")


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
    source: str,
    column: str,
    absent: Sequence[str],
    folders: Sequence[Path],
    base: Path,
) -> str:
    looked = " and ".join(dict.fromkeys(str(folder) for folder in folders))
    text = (
        f"none of the {len(absent)} files of {source} exists in {looked}, the first "
        f"one being {shown(absent[0])[:200]!r}; "
    )
    wanted = without_suffix(absent[0].replace("\\", "/"))
    alike = ""
    for name in walk_sounds(base).sounds:
        stem = without_suffix(name)
        if stem.endswith("/" + wanted):
            folder = shown(stem.removesuffix("/" + wanted))
            return text + f"set audio_folder={folder}, since {shown(name)} is there"
        if Path(stem).name == Path(wanted).name:
            alike = alike or shown(name)
    if alike:
        return text + f"{alike} is there: write such names in column {column}"
    return text + "pass audio_folder, or another audio_column"


def embedded_column(source: Source, audio_column: str | None) -> str | None:
    """The column of a source that holds its sound; None: it names files."""
    column = audio_column or next(iter(source.embedded), "")
    is_embedded = source.rows is not None and column in source.embedded
    return column if is_embedded else None


def rows_with_sound(
    source: Source,
    table: dict[str, list[Any]],
    kept: Sequence[int],
    audio_column: str | None = None,
    id_column: str | None = None,
    audio_folder: str | None = None,
) -> datasets.Dataset:
    """Rows of a source, with their sound undecoded.

    Arguments
    ---------
    source : Source
        Where the sound is.
    table : dict[str, list]
        Columns of the rows, but for ids and sound; one value a row of the source.
    kept : Sequence[int]
        Rows that matter.
    audio_column, id_column, audio_folder : str | None
        See ``read_table``.

    Returns
    -------
    datasets.Dataset
        A row for each clip; several rows of one become one: see ``merge_rows``. A clip
        whose file does not exist is there, too, and is unreadable.

    Raises
    ------
    FileNotFoundError
        If no file exists.
    ValueError
        If a column is missing, or two clips have one name.
    """
    embedded = embedded_column(source, audio_column)
    if embedded is not None and source.rows is not None:
        every = range(len(table["labels"]))
        table = {**table, "video_id": _ids(source, table, every, id_column, None)}
        # Side by side, so that the sound stays where it is on the disk.
        parts = [_dataset(table), embedded_sound(source.rows, embedded)]
        rows = datasets.concatenate_datasets(parts, axis=1)
        return rows if len(kept) == len(rows) else rows.select(kept)
    column = choose_column(
        source.columns, audio_column, AUDIO_NAMES, "audio_column", source.name
    )
    if any(isinstance(value, list | dict) for value in source.columns[column]):
        raise ValueError(
            f"column {column} of {source.name} holds lists or objects, and files are "
            "read: write each sound with soundfile.write, and a column of their paths"
        )
    # As they stand: a walker of folders tells them in the form of the disk.
    names = [cell_text(n) and str(n) for n in source.columns[column]]
    files = _files(source, column, names, kept, audio_folder)
    if "start" in table and are_cut_already(files, table, kept):
        logger.warning(
            "%s: most files end before their segments begin or end, so that the files "
            "are taken to be segments already, and are read whole",
            source.name,
        )
        del table["start"], table["end"]
    kept = merge_rows(table, files, kept, source.name, source.columns)
    base = source.folder or Path()
    inside = [_from_folder(files[row], base) or f"row-{row:06d}" for row in kept]
    ids = _ids(source, table, kept, id_column, inside)
    table = {name: [values[row] for row in kept] for name, values in table.items()}
    sound = [{"bytes": None, "path": files[row]} for row in kept]
    return _dataset({**table, "video_id": ids}, sound)


def _files(
    source: Source,
    column: str,
    names: Sequence[str | None],
    kept: Sequence[int],
    audio_folder: str | None,
) -> list[str | None]:
    """Where the file of each row is, or would be."""
    base = source.folder or Path()
    folders = [base, source.table_folder or base]
    if audio_folder is not None:
        folders.insert(0, base / Path(audio_folder).expanduser())
        if not folders[0].is_dir():
            raise FileNotFoundError(
                f"there is no folder {shown(audio_folder)} in {base} (audio_folder); "
                "give a folder from there on, or its whole path"
            )
    files: list[str | None] = [None] * len(names)
    absent, others = [], []
    for row in kept:
        name = names[row]
        if name is None:
            absent.append("(no name)")
            continue
        found = find_file(name, folders)
        if found is None:
            absent.append(name)
        elif is_audio(name) and not found.endswith(os.path.splitext(name)[1]):
            others.append(name)
        files[row] = found or str(folders[0] / name)
    if len(absent) == len(kept):
        raise FileNotFoundError(_say_where(source.name, column, absent, folders, base))
    if absent:
        logger.warning(
            "%d of %d files of %s do not exist and count as unreadable clips: %s",
            len(absent),
            len(kept),
            source.name,
            some_of(absent),
        )
    if others:
        logger.warning(
            "%d files of %s are there in another format than it says: %s",
            len(others),
            source.name,
            some_of(others),
        )
    return files


def _from_folder(file: str | None, base: Path) -> str | None:
    """A file's name from the folder of the data on, if it lies there."""
    if file is None:
        return None
    inside = os.path.relpath(file, base)
    return (file if inside.startswith("..") else inside).replace(os.sep, "/")
