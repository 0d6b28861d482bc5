"""Writes shards of prepared clips: a Parquet file each, and a record of its content.

The record is written once the file has its name, so that a file without a record is
left from a killed run, and is written again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from efficientat_plugin.data.decoding import UnreadableClip, sound_of
from efficientat_plugin.data.labels import listed
from efficientat_plugin.data.parquet import ROWS_PER_GROUP, SCHEMA
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.support.files import atomic_file

TEXT, TEXTS = pa.string(), pa.list_(pa.string())
# Columns that rows of `read_table` may have besides those of AudioSet's schema.
MORE_COLUMNS = {"group": TEXT, "fold": TEXT, "split": TEXT, "device": TEXT}
MORE_COLUMNS |= {"judged": TEXTS}
GROUP_BYTES = 32 * 2**20  # of sound that end a row group, however few its clips
LOW_CORRELATION = 0.5  # of a clip with its encoded file


@dataclass
class Record:
    """The summary of a finished shard."""

    num_read: int = 0  # rows
    num_clips: int = 0  # of them in the shard
    seconds: float = 0.0  # of sound
    bytes_in: int = 0  # of the source files
    bytes_out: int = 0  # of the encoded files
    correlations: float = 0.0  # sum over all clips
    changed: list[str] = field(default_factory=list)  # ids with a low correlation
    skipped: list[list[str]] = field(default_factory=list)  # ids, and why
    sha256: str = ""  # of the rows


def schema_of(columns: Iterable[str]) -> pa.Schema:
    """Returns the schema of a shard for rows with these columns; drops unknown ones."""
    found = set(columns)
    kept = [column for column in SCHEMA if column.name in found]
    kept += [(name, MORE_COLUMNS[name]) for name in MORE_COLUMNS if name in found]
    return pa.schema(kept)


def write_shard(
    path: Path,
    record_path: Path,
    rows: Iterable[dict[str, Any]],
    encoder: ClipEncoder,
    schema: pa.Schema,
    say_read: Callable[[], None],
) -> Record:
    """Writes a shard, and then its record; a shard without clips has no file.

    Arguments
    ---------
    path : Path
        Path of the Parquet file.
    record_path : Path
        Path of the record; an unfinished shard is written next to it.
    rows : Iterable of dict
        Rows of the source; unreadable ones are left out and listed in the record.
    encoder : ClipEncoder
    schema : pa.Schema
        From ``schema_of``.
    say_read : Callable
        Called after each row.

    Raises
    ------
    OSError
        If the shard cannot be written.
    """
    record, digest = Record(), hashlib.sha256()
    aside = record_path.with_suffix(".parquet")
    encoded = _encoded_rows(rows, encoder, schema, record, say_read)
    path.parent.mkdir(parents=True, exist_ok=True)
    record_path.parent.mkdir(parents=True, exist_ok=True)
    for left in record_path.parent.glob(f".{aside.stem}.*-*.part"):
        left.unlink(missing_ok=True)  # of a killed process
    try:
        with atomic_file(aside, "wb") as file:
            # Sound is compressed already: doing so again takes time and saves nothing.
            with pq.ParquetWriter(
                file, schema, compression="none", use_dictionary=False
            ) as writer:
                for group in _groups(encoded):
                    for row in group:
                        digest.update(_row_bytes(row))
                    writer.write_table(pa.Table.from_pylist(group, schema))
        record.sha256 = digest.hexdigest()
        if record.num_clips:
            os.replace(aside, path)
        write_json(record_path, asdict(record))
    finally:
        aside.unlink(missing_ok=True)
    return record


def _encoded_rows(
    rows: Iterable[dict[str, Any]],
    encoder: ClipEncoder,
    schema: pa.Schema,
    record: Record,
    say_read: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Yields rows as they are stored, and counts them."""
    for row in rows:
        record.num_read += 1
        clip_id = str(row["video_id"] or "")
        try:
            if not clip_id:
                raise UnreadableClip("its video_id is empty")
            clip = encoder.encode(sound_of(row))
        except UnreadableClip as error:
            record.skipped.append([clip_id, str(error)])
        else:
            record.num_clips += 1
            record.seconds += clip.num_samples / encoder.sample_rate
            record.bytes_in += _file_bytes(row["audio"])
            record.bytes_out += len(clip.content)
            record.correlations += clip.correlation
            if clip.correlation < LOW_CORRELATION:
                record.changed.append(clip_id)
            audio = {"bytes": clip.content, "path": f"{clip_id}{encoder.suffix}"}
            yield {
                column.name: _plain(row[column.name], column.type) for column in schema
            } | {"video_id": clip_id, "audio": audio}
        say_read()


def _plain(value: Any, kind: pa.DataType) -> Any:
    if kind == TEXTS:
        return listed(value)
    return None if value is None else str(value) if kind == TEXT else value


def _file_bytes(audio: Any) -> int:
    content = audio.get("bytes")
    return os.stat(audio["path"]).st_size if content is None else len(content)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of each row group, which a reader holds at a time."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row["audio"]["bytes"])
        if len(group) == ROWS_PER_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row_bytes(row: dict[str, Any]) -> bytes:
    audio = row["audio"]
    others = row | {"audio": audio["path"], "num_bytes": len(audio["bytes"])}
    return json.dumps(others, sort_keys=True).encode() + audio["bytes"]


def find_damage(path: Path, record: Record) -> str | None:
    """Returns what is wrong with the file of a shard; None: it is as written."""
    if not record.num_clips:
        return "a file that should not be there" if path.exists() else None
    digest, num_clips = hashlib.sha256(), 0
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                for row in file.read_row_group(number).to_pylist():
                    digest.update(_row_bytes(row))
                    num_clips += 1
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        return f"not readable: {error}".splitlines()[0]
    if num_clips != record.num_clips:
        return f"{num_clips} clips instead of {record.num_clips}"
    if digest.hexdigest() != record.sha256:
        return "its clips are not those that were written"
    return None


def read_record(path: Path) -> Record | None:
    """Reads the record of a finished shard; None: it is not finished."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file completely or not at all."""
    with atomic_file(path) as file:
        json.dump(content, file, indent=1)
