"""Writes shards of prepared clips: Parquet files that hold a summary of themselves.

A shard gets its name once it is complete, so that every file with such a name is whole.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.decoding import UnreadableClip, sound_of
from efficientat_plugin.data.labels import listed
from efficientat_plugin.data.parquet import SCHEMA, row_groups
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.support.files import atomic_file

TEXT, TEXTS = pa.string(), pa.list_(pa.string())
# Columns that rows of `read_table` may have besides those of AudioSet's schema.
MORE_COLUMNS = {"group": TEXT, "fold": TEXT, "split": TEXT, "device": TEXT}
MORE_COLUMNS |= {"judged": TEXTS}
SUMMARY = b"efficientat_preparation"  # key of a file's metadata
LOW_CORRELATION = 0.5  # of a clip with its encoded file


class EncodedRow(NamedTuple):
    """A row as it is stored, or the reason why it is left out."""

    row: dict[str, Any] | None
    skipped: Skipped | None
    seconds: float = 0.0  # of sound
    bytes_in: int = 0  # of the source file
    correlation: float = 1.0  # of the clip with its encoded file


@dataclass
class Summary:
    """The summary of a shard."""

    num_read: int = 0  # rows
    num_clips: int = 0  # of them in the shard
    seconds: float = 0.0  # of sound
    bytes_in: int = 0  # of the source files
    bytes_out: int = 0  # of the encoded files
    correlations: float = 0.0  # sum over all clips
    changed: list[str] = field(default_factory=list)  # ids with a low correlation
    skipped: list[list[str]] = field(default_factory=list)  # ids, and why

    def add(self, encoded: EncodedRow) -> None:
        """Counts a row."""
        self.num_read += 1
        if encoded.skipped is not None:
            self.skipped.append(list(encoded.skipped))
        if encoded.row is not None:
            self.num_clips += 1
            self.seconds += encoded.seconds
            self.bytes_in += encoded.bytes_in
            self.bytes_out += len(encoded.row["audio"]["bytes"])
            self.correlations += encoded.correlation
            if encoded.correlation < LOW_CORRELATION:
                self.changed.append(encoded.row["video_id"])


def schema_of(columns: Iterable[str]) -> pa.Schema:
    """Returns the schema of a shard for rows with these columns; drops unknown ones."""
    found = set(columns)
    kept = [column for column in SCHEMA if column.name in found]
    kept += [(name, MORE_COLUMNS[name]) for name in MORE_COLUMNS if name in found]
    return pa.schema(kept)


def encode_row(
    row: Mapping[str, Any], encoder: ClipEncoder, schema: pa.Schema
) -> EncodedRow:
    """Encodes the sound of a row, from ``load_rows`` or ``read_table``."""
    clip_id = str(row["video_id"] or "")
    try:
        if not clip_id:
            raise UnreadableClip("its video_id is empty")
        clip = encoder.encode(sound_of(row))
    except UnreadableClip as error:
        return EncodedRow(None, Skipped(clip_id, str(error)))
    stored = {column.name: _plain(row[column.name], column.type) for column in schema}
    stored["video_id"] = clip_id
    stored["audio"] = {"bytes": clip.content, "path": f"{clip_id}{encoder.suffix}"}
    seconds = clip.num_samples / encoder.sample_rate
    content = row["audio"].get("bytes")
    if content is None:
        num_bytes = os.stat(row["audio"]["path"]).st_size
    else:
        num_bytes = len(content)
    return EncodedRow(stored, None, seconds, num_bytes, clip.correlation)


def _plain(value: Any, kind: pa.DataType) -> Any:
    if kind == TEXTS:
        return listed(value)
    return None if value is None else str(value) if kind == TEXT else value


def write_shard(path: Path, rows: Iterable[EncodedRow], schema: pa.Schema) -> Summary:
    """Writes a shard completely or not at all.

    Arguments
    ---------
    path : Path
        Path of the Parquet file.
    rows : Iterable of EncodedRow
    schema : pa.Schema
        From ``schema_of``.

    Raises
    ------
    OSError
        If the shard cannot be written.
    """
    summary = Summary()

    def counted() -> Iterator[dict[str, Any]]:
        for encoded in rows:
            summary.add(encoded)
            if encoded.row is not None:
                yield encoded.row

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file:
        # Sound is compressed already: doing so again takes time and saves nothing.
        with pq.ParquetWriter(
            file,
            schema,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        ) as writer:
            for group in row_groups(counted()):
                writer.write_table(pa.Table.from_pylist(group, schema))
            writer.add_key_value_metadata({SUMMARY: json.dumps(asdict(summary))})
    return summary


def read_summary(path: Path, verify: bool = False) -> Summary:
    """Reads the summary of a shard.

    Arguments
    ---------
    path : Path
        Path of the Parquet file.
    verify : bool
        Whether to read all of the file, and check it against its checksums.

    Raises
    ------
    ValueError
        If the file is damaged, or is none that ``write_shard`` wrote.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=verify) as file:
            metadata = file.metadata
            summary = Summary(**json.loads((metadata.metadata or {})[SUMMARY]))
            if metadata.num_rows != summary.num_clips:
                raise ValueError(
                    f"{metadata.num_rows} clips instead of {summary.num_clips}"
                )
            for number in range(metadata.num_row_groups if verify else 0):
                file.read_row_group(number)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a shard as it was written: {reason}") from None
    return summary
