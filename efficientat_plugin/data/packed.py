"""Refuses files that take far more memory than disk space, before decoding them.

A few bytes of Parquet may stand for one text four thousand times, or for a hundred
million zeros. The metadata of a file gives the decoded size, except for text that is
stored once and repeated: for that, the indices of the values are read, not the text.

Source: https://parquet.apache.org/docs/file-format
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from efficientat_plugin.support.files import open_file, refuse_special
from efficientat_plugin.support.limits import (
    MAX_COLUMNS,
    MAX_PACKED,
    MAX_ROWS,
    MAX_TABLE_BYTES,
)
from efficientat_plugin.support.plain_text import shown

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
# Encodings that store each value; in others, one stored value may stand for many.
AS_THEY_ARE = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}
MAX_BATCH_ROWS, MAX_BATCH_BYTES = 1 << 14, 1 << 26
MAX_COUNTED = 1 << 28  # bytes on disk; longer columns are not read to be counted
REPEATING = (
    *("dictionary", "run_end_encoded", "string_view", "binary_view"),
    *("list_view", "large_list_view"),
)
# A page header begins with its kind and its unpacked length, as Thrift integers.
DICTIONARY_PAGE, NUMBER = 2, 0x15


class Packed(ValueError):
    """Raised for a file that would take far more memory than disk space."""


def refuse_packed(files: Sequence[Path]) -> None:
    """Refuses Parquet files that would take too much memory.

    Arguments
    ---------
    files : sequence of Path

    Raises
    ------
    Packed
        For too many rows or columns, and for values that take more than 20 times the
        size of the files and more than 1 GB.
    OSError, ValueError
        For a file that cannot be read.
    """
    most = max(MAX_TABLE_BYTES, MAX_PACKED * sum(file.stat().st_size for file in files))
    num_rows, known = 0, 0
    doubtful: list[tuple[int, Path, int]] = []  # bytes at most, file, column
    for path in files:
        with open_file(path) as file, pq.ParquetFile(file) as content:
            metadata = content.metadata
            num_rows += metadata.num_rows
            if metadata.num_columns > MAX_COLUMNS or num_rows > MAX_ROWS:
                raise Packed(
                    f"{path} has {metadata.num_rows} rows and {metadata.num_columns} "
                    f"columns; a table has at most {MAX_ROWS} rows and {MAX_COLUMNS} "
                    "columns, so leave out columns, or split it"
                )
            for column in range(metadata.num_columns):
                groups = map(metadata.row_group, range(metadata.num_row_groups))
                chunks = [group.column(column) for group in groups]
                if all(map(_is_plain, chunks)):
                    known += sum(map(_plain_bytes, chunks))
                else:
                    at_most = sum(_most_bytes(chunk, file) for chunk in chunks)
                    doubtful.append((at_most, path, column))
    for at_most, path, column in sorted(doubtful):
        if known + at_most > most:
            at_most = _counted_bytes(path, column, most - known)
        known += at_most
        if known > most:
            break
    if known > most:
        raise Packed(
            f"{path} takes more than {most} bytes of memory, but {path.stat().st_size} "
            "on disk, because a few values are repeated in it; write it again without "
            "the column that is so long"
        )


def refuse_odd_arrow(path: Path) -> None:
    """Refuses what ``save_to_disk`` never writes and would be trusted when mapped.

    That is compressed batches, repeated values, and offsets beyond the end of a text,
    where other memory of the process begins.

    Arguments
    ---------
    path : Path
        An Arrow stream.

    Raises
    ------
    Packed
    FileNotFoundError
        If there is no such file.
    """
    refuse_special(path)
    try:
        with pa.memory_map(str(path)) as stream:
            for message in pa.ipc.MessageReader.open_stream(stream):
                is_batch = message.type == "record batch"
                if is_batch and _is_compressed(message.metadata.to_pybytes()):
                    raise ValueError("it is compressed")
                if not is_batch and message.type != "schema":
                    raise ValueError(f"it has a {message.type}")
        num_rows = 0
        with pa.memory_map(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            for kind in reader.schema.types:
                _refuse_repeating(kind)
            for batch in reader:
                num_rows += batch.num_rows
                batch.validate(full=True)
                if num_rows > MAX_ROWS:
                    raise ValueError(f"it has more than {MAX_ROWS} rows")
    except (OSError, ValueError, struct.error, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        what = shown(" ".join(str(error).split()))[:200]
        raise Packed(
            f"{path} is damaged, or not as save_to_disk writes it ({what}); write the "
            "folder again"
        ) from error


def _refuse_repeating(kind: pa.DataType) -> None:
    """Refuses types in which a few bytes may stand for any number of values."""
    if any(getattr(pa.types, f"is_{name}")(kind) for name in REPEATING):
        raise ValueError(f"it has a column of {kind}")
    for place in range(kind.num_fields):
        _refuse_repeating(kind.field(place).type)


def _is_compressed(message: bytes) -> bool:
    """Whether the batch in a message has the field that names a compression.

    Source: Message.fbs of Apache Arrow; https://flatbuffers.dev/internals
    """

    def field(table: int, number: int) -> int:
        """Returns the offset of a field; 0: it is absent."""
        (back,) = struct.unpack_from("<i", message, table)
        (length,) = struct.unpack_from("<H", message, table - back)
        place = 4 + 2 * number
        if place >= length:
            return 0
        (offset,) = struct.unpack_from("<H", message, table - back + place)
        return table + offset if offset else 0

    (root,) = struct.unpack_from("<I", message, 0)
    header = field(root, 2)
    (offset,) = struct.unpack_from("<I", message, header)
    return field(header + offset, 3) != 0


def _is_plain(chunk: Any) -> bool:
    """Whether each value of a column chunk is stored in full."""
    is_plain = {*chunk.encodings} <= AS_THEY_ARE and not chunk.has_dictionary_page
    return is_plain or chunk.physical_type in WIDTHS


def _plain_bytes(chunk: Any) -> int:
    width = WIDTHS.get(chunk.physical_type, 0)
    return chunk.num_values * width or _unpacked_bytes(chunk)


def _unpacked_bytes(chunk: Any) -> int:
    """Returns the unpacked size of the pages, which may hold a repeated value once."""
    return max(chunk.total_uncompressed_size, 0)


def _most_bytes(chunk: Any, file: BinaryIO) -> int:
    """Returns an upper bound: no value is longer than all stored ones together."""
    longest = packed = _unpacked_bytes(chunk)
    if chunk.has_dictionary_page:
        longest = _dictionary_bytes(file, chunk.dictionary_page_offset) or packed
    return packed + longest * chunk.num_values


def _dictionary_bytes(file: BinaryIO, start: int) -> int:
    """Returns the unpacked length of a dictionary page; 0: it is another page."""
    file.seek(start)
    header, numbers, place = file.read(32), [], 0
    for _ in range(2):
        if header[place : place + 1] != bytes([NUMBER]):
            return 0
        number, shift, byte = 0, 0, 0x80
        while byte >= 0x80:
            place += 1
            byte = header[place] if place < len(header) else 0
            number |= (byte & 0x7F) << shift
            shift += 7
        place += 1
        numbers.append(number >> 1)  # zigzag: positive numbers are even
    return numbers[1] if numbers[0] == DICTIONARY_PAGE else 0


def _counted_bytes(path: Path, column: int, most: int) -> int:
    """Counts the bytes of memory that a column takes, until they exceed ``most``.

    A column of more than ``MAX_COUNTED`` on disk is not read: that would take long,
    and a file of that size does not go unnoticed.
    """
    with open_file(path) as file, pq.ParquetFile(file) as content:
        metadata = content.metadata
        name = metadata.schema.column(column).path
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        rows, chunks = zip(
            *((group.num_rows, group.column(column)) for group in groups), strict=True
        )
    if sum(chunk.total_compressed_size for chunk in chunks) > MAX_COUNTED:
        return sum(map(_unpacked_bytes, chunks))
    num_bytes = 0
    for group, chunk in enumerate(chunks):
        packed = _unpacked_bytes(chunk)
        batch_rows = max(MAX_BATCH_BYTES * rows[group] // (packed + 1), 1)
        if num_bytes + packed > most:
            return num_bytes + packed
        # One row group at a time: each has its own dictionary, and pyarrow cannot join
        # two within a struct, such as the audio column.
        with (
            open_file(path) as file,
            pq.ParquetFile(file, read_dictionary=[name]) as content,
        ):
            for batch in content.iter_batches(
                min(batch_rows, MAX_BATCH_ROWS), row_groups=[group], columns=[name]
            ):
                num_bytes += _decoded_bytes(batch.column(0))
                if num_bytes > most:
                    return num_bytes
    return num_bytes


def _decoded_bytes(values: pa.Array) -> int:
    """Returns the decoded size of values, in bytes, without decoding dictionaries."""
    while pa.types.is_nested(values.type):
        if pa.types.is_struct(values.type):
            values = values.field(0)
        else:
            values = values.flatten()
    if not pa.types.is_dictionary(values.type):
        return values.nbytes
    lengths = pc.binary_length(values.dictionary)
    return pc.sum(lengths.take(values.indices)).as_py() or 0
