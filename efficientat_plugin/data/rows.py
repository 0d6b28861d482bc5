"""Loads the rows of a split of a data set.

Rows are in the ``agkphysics/AudioSet`` schema (``video_id``, ``audio``, ``labels``),
and `datasets` never decodes their sound.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES, ids_of_files, youtube_id
from efficientat_plugin.data.folders import is_hidden, walk_sounds
from efficientat_plugin.data.labels import LabelSummary, LabelTable, summarize_labels
from efficientat_plugin.data.packed import (
    Packed,
    refuse_odd_arrow,
    refuse_packed,
)
from efficientat_plugin.data.text_tables import text_of
from efficientat_plugin.support.files import read_text
from efficientat_plugin.support.hub import name_on_hub
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

COLUMNS = ("video_id", "audio", "labels")
# Names of the splits in AudioSet's own segment files
AUDIOSET_SPLITS = {"bal_train": "balanced_train", "unbal_train": "unbalanced_train"}
ARCHIVES = (".tar", ".tgz", ".gz", ".zip")
HUB_TIMEOUT_SECONDS = 10


def load_rows(
    dataset: str,
    split: str | None,
    streaming: bool = False,
    config: str | None = None,
    cache_dir: str | None = None,
    more_columns: Sequence[str] = (),
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads a split in the AudioSet schema, undecoded, with its three columns only.

    Arguments
    ---------
    dataset : str
        Hub id; or a folder of Parquet files (``data/<split>/*.parquet``,
        ``<split>/*.parquet`` or ``<split>*.parquet``), of ``save_to_disk``, or of
        audio files with AudioSet's ``<split>_segments.csv``; or a Parquet file; or a
        folder of unlabelled audio files, whose ids are their paths below it, or their
        YouTube ids if a ``*_segments.csv`` shows that they are AudioSet's.
    split : str | None
        Its name; several, joined by "+", are concatenated. None: all audio files of
        a folder, unlabelled.
    streaming : bool
        Whether to stream rows that do not fit on disk, as an ``IterableDataset``.
    config : str | None
        Configuration of a hub data set.
    cache_dir : str | None
        Where `datasets` caches what it prepares; None: its default.
    more_columns : Sequence[str]
        Further columns to keep, if present.

    Raises
    ------
    FileNotFoundError
        If no such data is found.
    PermissionError
        If a folder of sounds cannot be read.
    ValueError
        If a column is missing, or a Parquet file is damaged.
    """
    path = Path(dataset).expanduser()
    refuse_archives(path)
    if split is None:
        rows = _read_audio_folder(path)
        return rows.to_iterable_dataset() if streaming else rows
    names = split.split("+")
    if len(names) > 1 and (path.is_file() or (path / "state.json").is_file()):
        raise ValueError(
            f"{dataset} is one split, but split={split!r} names {len(names)}; name one"
        )
    parts = []
    for name in names:
        rows = _load_split(dataset, name, streaming, config, cache_dir)
        if streaming and isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        found = rows.column_names or list(next(iter(rows)))
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise ValueError(
                f"{dataset} ({name}) has no column {', '.join(missing)}; the AudioSet "
                f"schema is {', '.join(COLUMNS)}, and found were {some_of(found, 20)}"
            )
        refuse_decoded(rows, f"{dataset} ({name})")
        kept = [column for column in more_columns if column in found]
        rows = rows.select_columns([*COLUMNS, *kept])
        # Parquet files record an Audio column, which would decode with torchcodec.
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
        parts.append(_with_named_labels(rows))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def refuse_archives(path: Path) -> None:
    """Refuses an archive, or a folder of nothing else, such as WebDataset shards.

    Raises
    ------
    ValueError
        With the command that unpacks it, which is never done here.

    Example
    -------
    >>> refuse_archives(Path("shard-000.tar"))  # it is not there
    """
    entries = list(path.iterdir()) if path.is_dir() else [path]
    entries = [entry for entry in entries if not is_hidden(entry.name)]
    if entries and all(
        entry.suffix.lower() in ARCHIVES and entry.is_file() for entry in entries
    ):
        name = entries[0].name.lower()
        command = "unzip" if name.endswith(".zip") else "tar xf"
        if name.endswith(".gz") and not name.endswith(".tar.gz"):
            command = "gunzip"
        raise ValueError(
            f"{shown(path)} is compressed or holds archives, such as WebDataset "
            f"shards, which are not supported; unpack them ({command} "
            f"{shown(entries[0].name)}), write the labels into a CSV with the columns "
            "filename and label next to the sounds, and pass that folder"
        )


def refuse_decoded(
    rows: datasets.Dataset | datasets.IterableDataset, source: str
) -> None:
    """Refuses rows with sound that `datasets` has decoded; ``source`` is their name.

    Raises
    ------
    ValueError
        If a column has "array" and "sampling_rate", instead of bytes or a path.
    """
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, dict) and {"array", "sampling_rate"} <= set(feature):
            raise ValueError(
                f"{source} holds decoded sound (its column {name} has array and "
                "sampling_rate), but only files are read; write each sound with "
                "soundfile.write, and replace the column by one of their paths"
            )


def _with_named_labels(
    rows: datasets.Dataset | datasets.IterableDataset,
) -> datasets.Dataset | datasets.IterableDataset:
    """Replaces class numbers by the names that the data set keeps for them."""
    feature = (rows.features or {}).get("labels")
    kinds = feature, getattr(feature, "feature", None)
    if not any(isinstance(kind, datasets.ClassLabel) for kind in kinds):
        return rows
    names = datasets.List(datasets.Value("string"))

    def named(values: list[Any]) -> list[list[str]]:
        found = names_of_classes(values, feature)
        lists = [each if isinstance(each, list) else [each] for each in found]
        return [[name for name in each if name is not None] for each in lists]

    if isinstance(rows, datasets.Dataset):
        # Only labels are rewritten; the sound stays where it is on disk.
        column = {"labels": named(rows["labels"][:])}
        labels = datasets.Dataset.from_dict(column, datasets.Features(labels=names))
        others = rows.remove_columns(["labels"])
        return datasets.concatenate_datasets([others, labels], axis=1)
    features = datasets.Features({**rows.features, "labels": names})
    return rows.map(
        lambda batch: {"labels": named(batch["labels"])},
        batched=True,
        features=features,
    )


def names_of_classes(values: list[Any], feature: Any) -> list[Any]:
    """Returns the names that `datasets` keeps for class numbers."""
    if isinstance(feature, datasets.ClassLabel):
        # A negative number marks an unlabelled clip.
        known = [value is not None and value >= 0 for value in values]
        return [
            feature.int2str(value) if is_known else None
            for value, is_known in zip(values, known, strict=True)
        ]
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return [names_of_classes(value or [], inner) for value in values]
    return values


def _load_split(
    dataset: str, split: str, streaming: bool, config: str | None, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    path = Path(dataset).expanduser()
    if not path.exists():
        return load_hub(dataset, split, streaming, config, cache_dir)
    for folder in (path, path / split):
        if (folder / "state.json").is_file():
            return load_saved(folder)
    for name in (split, AUDIOSET_SPLITS.get(split, split)):
        if (segments := path / f"{name}_segments.csv").is_file():
            return read_segments(segments)
    files = parquet_files(path, split)
    if not files:
        raise FileNotFoundError(
            f"{path} holds no split {split!r}: expected {split}/*.parquet, "
            f"data/{split}/*.parquet, {split}*.parquet, {split}_segments.csv with "
            "audio files, or a save_to_disk folder; pass the right folder or split, or "
            "no split to read all audio files as unlabelled"
        )
    return load_parquet({"train": files}, cache_dir, streaming)["train"]


def load_saved(folder: Path) -> Any:
    """Loads a ``save_to_disk`` folder that refers to nothing outside itself.

    Raises
    ------
    ValueError
        If it is damaged, or names a file or folder elsewhere, which `datasets` would
        read.
    """
    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        folders += [folder / name for name in _names_in(folder / "dataset_dict.json")]
    for each in folders:
        if (each / "state.json").is_file():
            for name in _names_in(each / "state.json"):
                refuse_odd_arrow(each / name)
    return datasets.load_from_disk(str(folder.absolute()))


def _names_in(file: Path) -> list[str]:
    """Returns the names of files or folders that a ``save_to_disk`` file lists."""
    try:
        content = json.loads(read_text(file, MAX_SETTINGS_BYTES))
        if file.name == "state.json":
            names = [str(each["filename"]) for each in content["_data_files"]]
        else:
            names = [str(each) for each in content["splits"]]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{file} is damaged; write the folder again") from error
    for name in names:
        if set(name) & set("/\\:\0") or name in ("", ".", ".."):
            raise ValueError(
                f"{file} names {shown(name)}, which does not lie beside it; write the "
                "folder again, or name a file"
            )
    return names


def load_hub(
    dataset: str, split: str, streaming: bool, config: str | None, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    name_on_hub(dataset)
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            # Fails at once where `datasets` would fail after minutes of retries.
            huggingface_hub.HfApi().dataset_info(dataset, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(
            dataset, config, split=split, streaming=streaming, cache_dir=cache_dir
        )
    except Exception as error:  # the hub raises errors of many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FileNotFoundError(
            f"{dataset!r} is neither a local file or folder nor a data set on the hub "
            f"({reason}); pass a local path or check the network"
        ) from error


def load_parquet(
    files: Mapping[str, Sequence[Path]], cache_dir: str | None, streaming: bool = False
) -> Any:
    """Loads splits of Parquet files; raises ``ValueError`` if one is damaged."""
    named = {
        split: [str(file.absolute()) for file in part] for split, part in files.items()
    }
    try:
        refuse_packed([file for part in files.values() for file in part])
        return datasets.load_dataset(
            "parquet", data_files=named, streaming=streaming, cache_dir=cache_dir
        )
    except (FileNotFoundError, Packed):
        raise
    except Exception as error:  # `datasets` raises errors of many kinds
        for part in files.values():
            _refuse_damaged(part, error)
        reason = shown(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
        some = some_of(file for part in files.values() for file in part)
        raise ValueError(
            f"{some} are not the Parquet files of one data set ({reason}); name one"
        ) from error


def _refuse_damaged(files: Sequence[Path], error: Exception) -> None:
    for file in files:
        try:
            with pq.ParquetFile(file) as content:
                for _ in content.iter_batches():
                    pass
        except (OSError, ValueError) as reason:
            raise ValueError(
                f"{file} is damaged ({reason}); download or write it again, or move it "
                "away"
            ) from error


def parquet_files(path: Path, split: str) -> list[Path]:
    if path.suffix == ".parquet":
        return [path]
    for folder in (path / "data", path):
        for pattern in (f"{split}/*.parquet", f"{split}*.parquet"):
            files = sorted(folder.glob(pattern))
            if files:
                return files
    return []


def has_parquet_split(path: str | Path, split: str) -> bool:
    """Whether a folder has Parquet files of a split, named as AudioSet's are.

    Example
    -------
    >>> has_parquet_split("nowhere", "eval")
    False
    """
    folder = Path(path).expanduser()
    return folder.is_dir() and bool(parquet_files(folder, split))


def _read_audio_folder(folder: Path) -> datasets.Dataset:
    """Reads the audio files below a folder as unlabelled rows."""
    names = walk_sounds(folder) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(
            f"{folder} is not a folder with audio files ({', '.join(AUDIO_SUFFIXES)}); "
            "pass one, or the split of a data set"
        )
    ids: Sequence[str] = []
    if any(folder.glob("*_segments.csv")):  # AudioSet's, whose files are named by id
        parts = (name.rpartition("/") for name in names)
        ids = [below + slash + youtube_id(file) for below, slash, file in parts]
    if len(set(ids)) < len(names):
        ids = ids_of_files(names)
    # Built in Arrow: a dictionary for each of millions of files takes much memory.
    paths = pa.array([os.path.join(folder, name) for name in names])
    nothing = pa.nulls(len(names), pa.binary())
    audio = pa.StructArray.from_arrays([nothing, paths], ["bytes", "path"])
    labels = pa.array([[]] * len(names), pa.list_(pa.string()))
    table = pa.table({"video_id": pa.array(ids), "audio": audio, "labels": labels})
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def read_segments(segments: Path) -> datasets.Dataset:
    """Reads the rows of AudioSet's segments CSV whose clips have an audio file."""
    names = walk_sounds(segments.parent)
    files: dict[str, str] = {}
    others = []
    for name in names:
        path = str(segments.parent / name)
        if files.setdefault(youtube_id(Path(name).name), path) != path:
            others.append(name)
    if others:
        logger.warning(
            "%s: files of a clip that has another, and which are not used: %s",
            segments.parent,
            some_of(others),
        )
    ids, labels, absent = [], [], 0
    text = io.StringIO(text_of(segments), newline="")
    lines = (line for line in text if not line.startswith("#"))
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) < 4:
            continue
        if row[0] not in files:
            absent += 1
            continue
        ids.append(row[0])
        labels.append(row[3].split(","))
    if not ids:
        raise FileNotFoundError(
            f"none of the {absent} clips in {segments} has an audio file below "
            f"{segments.parent}; name the files by YouTube id, {AUDIO_SUFFIXES}"
        )
    logger.info("%s: %d clips, %d without a file", segments.name, len(ids), absent)
    audio = [{"bytes": None, "path": files[clip_id]} for clip_id in ids]
    # A plain struct: an Audio feature cannot be built without torchcodec.
    return datasets.Dataset.from_dict(
        {"video_id": ids, "audio": audio, "labels": labels}
    )


def summarize_rows(rows: datasets.Dataset, table: LabelTable) -> LabelSummary:
    """Summarises the ids and labels of map-style rows; reads no audio."""
    # Streamed: the labels of AudioSet's two million clips are as many lists of text.
    return summarize_labels(_column(rows, "video_id"), _column(rows, "labels"), table)


def _column(rows: datasets.Dataset, name: str) -> Iterator[Any]:
    for batch in rows.select_columns([name]).iter(batch_size=10_000):
        yield from batch[name]
