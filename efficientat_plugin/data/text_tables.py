"""Tables of text: columns of CSV, TSV and JSONL files."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from efficientat_plugin.files import CHUNK_BYTES, open_file
from efficientat_plugin.limits import (
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_ROWS,
    MAX_TABLE_BYTES,
)
from efficientat_plugin.plain_text import shown


def read_text_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV, TSV or JSONL file.

    Arguments
    ---------
    path : Path
        ``.jsonl``: an object a line. Else text with a header, its fields apart by
        tabs, semicolons or commas, whichever the header has most of.

    Raises
    ------
    ValueError
        If it is not UTF-8, not a table, or empty.
    """
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it "
            "as UTF-8"
        ) from error
    if path.suffix.lower() == ".jsonl":
        columns = _read_json_lines(path, text)
    else:
        columns = _read_fields(path, text)
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} has no rows; it needs a header and a row a clip")
    return columns


def _content(path: Path) -> bytes:
    """All of it; a NUL, of which a file that takes no room may have a billion, ends it.

    Text has none, but for UTF-16.
    """
    content = bytearray()
    with open_file(path, MAX_TABLE_BYTES) as file:
        while chunk := file.read(CHUNK_BYTES):
            content += chunk
            if b"\0" in chunk:
                place = content.index(b"\0")
                raise UnicodeDecodeError("utf-8", b"\0", place, place + 1, "a NUL")
    return bytes(content)


def _refuse_too_large(path: Path, num_rows: int, num_columns: int = 1) -> None:
    """Refuses a table that takes far more memory than room on the disk."""
    if (
        num_rows > MAX_ROWS
        or num_columns > MAX_COLUMNS
        or num_rows * num_columns > MAX_CELLS
    ):
        raise ValueError(
            f"{path} has {num_rows} rows and {num_columns} columns; a table has at "
            f"most {MAX_ROWS} rows, {MAX_COLUMNS} columns and {MAX_CELLS} cells, so "
            "leave out columns, or split it"
        )


def _read_fields(path: Path, text: str) -> dict[str, list[Any]]:
    header = text.partition("\n")[0]
    delimiter = max("\t;,", key=header.count)
    _refuse_too_large(path, text.count("\n"), 1 + header.count(delimiter))
    # Quotes may hold line ends, so that lines are the reader's to tell apart.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {path} is no row of a table ({error}); is a "
            "quote left open?"
        ) from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the header of {path} has {twice[0]!r} twice; rename one")
    rows = []
    for number, fields in lines[1:]:
        if fields and len(fields) != len(names):
            raise ValueError(
                f"line {number} of {path} has {len(fields)} fields, but its "
                f"header {len(names)}: {shown(', '.join(names))[:200]}; put what holds "
                f"a {delimiter!r} into quotes"
            )
        if fields:
            rows.append(fields)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _read_json_lines(path: Path, text: str) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of {path} is not JSON ({error}); JSONL holds an object "
                "a line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"line {number} of {path} is a {type(row).__name__}; JSONL holds an "
                'object a line, such as {"file": "a.wav", "labels": ["dog"]}'
            )
        rows.append(row)
        names |= dict.fromkeys(row)
        _refuse_too_large(path, len(rows), len(names))
    return {name: [row.get(name) for row in rows] for name in names}
