"""Makes rows from a table: gives each clip an id and finds its sound."""

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
# Starts of absolute paths, and SpeechBrain's placeholders for the data's folder
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
    """Returns the path of a file, or None if it does not exist.

    A name may lack its suffix, as in FSD50K's tables; have another format's suffix, if
    the files were converted; or come from another system, such as ``audio\\a.wav`` or
    the absolute path of a folder that was copied.

    Arguments
    ---------
    name : str
        Relative to one of the folders, or absolute.
    folders : Sequence[Path]
        Tried in this order.
    """
    suffix = os.path.splitext(name)[1] if is_audio(name) else ""
    as_given = ("",) if suffix else ("", *AUDIO_SUFFIXES)
    for cut, endings in (("", as_given), (suffix, AUDIO_SUFFIXES)):
        for spelling, folder in itertools.product(_spellings(name), folders):
            stem = str(folder / spelling.removesuffix(cut))
            for ending in endings:
                if os.path.isfile(stem + ending):
                    return stem + ending
    return None


def _spellings(name: str) -> Iterator[str]:
    """Yields a name as it was written, and as this system would write it."""
    yield name
    plain = name.strip().replace("\\", "/")
    found = {unicodedata.normalize(form, plain): None for form in ("NFC", "NFD")}
    if re.match(ROOT + "|/", plain):
        # If a folder was copied, the end of the path is still right.
        parts = re.sub(f"^({ROOT})", "", plain).strip("/").split("/")
        found |= {"/".join(parts[place:]): None for place in range(len(parts))}
    yield from (spelling for spelling in found if spelling != name)


def embedded_sound(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns a column of sound as ``{bytes, path}``, undecoded and still on disk.

    Arguments
    ---------
    rows : datasets.Dataset
        Hold the sound as bytes, as lists of bytes, or as an ``Audio`` feature.
    column : str
        Name of the column.
    """
    rows = rows.select_columns([column])
    kind = rows.data.schema.field(column).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Once, into the cache: turning lists of numbers into Python objects is slow.
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
    # Parquet keeps the Audio feature, which would decode with torchcodec.
    return rows.cast_column("audio", datasets.Audio(decode=False))


def _pack(table: pa.Table) -> pa.Table:
    """Packs lists of uint8 into bytes."""
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
    """Makes ids of the kept rows; ``files`` are relative to the data's folder."""
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
                "%s: column %s is not used for ids, because its names repeat or are "
                "missing: %s; ids are the names of files",
                source.name,
                column,
                some_of(f"{name} ({n})" for name, n in twice.items()),
            )
    return ids


def _times(start: float | None, end: float | None) -> str:
    """Formats a segment as a part of its clip's id."""
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


def _where_to_look(
    source: str,
    column: str,
    absent: Sequence[str],
    folders: Sequence[Path],
    base: Path,
) -> str:
    looked = " and ".join(dict.fromkeys(str(folder) for folder in folders))
    text = (
        f"none of the {len(absent)} files of {source} exists in {looked} (the first is "
        f"{shown(absent[0])[:200]!r}); "
    )
    wanted = without_suffix(absent[0].replace("\\", "/"))
    stems = {name: without_suffix(name) for name in walk_sounds(base)}
    if found := [n for n, stem in stems.items() if stem.endswith("/" + wanted)]:
        folder = shown(stems[found[0]].removesuffix("/" + wanted))
        text += f"set audio_folder={folder}, because {shown(found[0])} exists"
        return text + (f" (and {some_of(found[1:])})" if found[1:] else "")
    wanted = Path(wanted).name
    if found := [n for n, stem in stems.items() if Path(stem).name == wanted]:
        return text + f"{shown(found[0])} exists: write such names in column {column}"
    return text + "pass audio_folder, or another audio_column"


def embedded_column(source: Source, audio_column: str | None) -> str | None:
    """Returns the column of a source that holds sound; None if it names files."""
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
    """Makes the rows of a source, with their sound undecoded.

    Arguments
    ---------
    source : Source
        Table that holds or names the sound.
    table : dict[str, list]
        Columns of the rows except ids and sound, with a value for each source row.
    kept : Sequence[int]
        Rows to use.
    audio_column, id_column, audio_folder : str | None
        See ``read_table``.

    Returns
    -------
    datasets.Dataset
        A row for each clip; several rows of one clip are merged: see ``merge_rows``. A
        clip whose file does not exist is included, and is unreadable.

    Raises
    ------
    FileNotFoundError
        If none of the files exists.
    ValueError
        If a column is missing, or two clips have one name.
    """
    embedded = embedded_column(source, audio_column)
    if embedded is not None and source.rows is not None:
        every = range(len(table["labels"]))
        table = {**table, "video_id": _ids(source, table, every, id_column, None)}
        # Joined side by side, so that the sound stays where it is on disk.
        parts = [_dataset(table), embedded_sound(source.rows, embedded)]
        rows = datasets.concatenate_datasets(parts, axis=1)
        return rows if len(kept) == len(rows) else rows.select(kept)
    column = choose_column(
        source.columns, audio_column, AUDIO_NAMES, "audio_column", source.name
    )
    if any(isinstance(value, list | dict) for value in source.columns[column]):
        raise ValueError(
            f"column {column} of {source.name} holds lists or objects, not file "
            "names; write each sound with soundfile.write, and a column of their paths"
        )
    # Not in the Unicode form of `cell_text`: the disk may have another one.
    names = [cell_text(n) and str(n) for n in source.columns[column]]
    files = _files(source, column, names, kept, audio_folder)
    if "start" in table and are_cut_already(files, table, kept):
        logger.warning(
            "%s: most files end before their segments begin or end, so the files "
            "are assumed to be segments already and are read whole",
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
    """Returns the path where the file of each row is, or would be."""
    base = source.folder or Path()
    folders = [base, source.table_folder or base]
    roots = dict.fromkeys(folders) if folders[0] != folders[1] else ()
    if audio_folder is not None:
        roots = ()  # it is clear where files are
        folders.insert(0, base / Path(audio_folder).expanduser())
        if not folders[0].is_dir():
            raise FileNotFoundError(
                f"there is no folder {shown(audio_folder)} in {base} (audio_folder); "
                "pass its path from there, or its absolute path"
            )
    files: list[str | None] = [None] * len(names)
    absent, others, twice = [], [], []
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
        places = [place for f in roots if (place := f / name).is_file()]
        if len({os.path.realpath(place) for place in places}) > 1:
            twice.append(name)
        files[row] = found or str(folders[0] / name)
    if len(absent) == len(kept):
        raise FileNotFoundError(
            _where_to_look(source.name, column, absent, folders, base)
        )
    if absent:
        logger.warning(
            "%d of %d files of %s do not exist and count as unreadable clips: %s",
            len(absent),
            len(kept),
            source.name,
            some_of(absent),
        )
    if twice:
        logger.warning(
            "%d files of %s are in %s; those in the first of these are used: %s",
            len(twice),
            source.name,
            " and in ".join(map(shown, roots)),
            some_of(twice),
        )
    if others:
        logger.warning(
            "%d files of %s exist in another format than listed: %s",
            len(others),
            source.name,
            some_of(others),
        )
    return files


def _from_folder(file: str | None, base: Path) -> str | None:
    """Returns a file's name relative to the data's folder, if it is inside."""
    if file is None:
        return None
    inside = os.path.relpath(file, base)
    return (file if inside.startswith("..") else inside).replace(os.sep, "/")
