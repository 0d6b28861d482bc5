"""Reads tables of text: columns of CSV, TSV, JSON and JSONL files."""

import csv
import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from efficientat_plugin.data.clip_ids import is_audio
from efficientat_plugin.data.columns import AUDIO_NAMES, LABEL_NAMES, find_column
from efficientat_plugin.support.files import CHUNK_BYTES, open_file
from efficientat_plugin.support.limits import (
    MAX_CELLS,
    MAX_COLUMNS,
    MAX_ROWS,
    MAX_TABLE_BYTES,
)
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


def read_text_table(path: Path, numbered: bool = False) -> dict[str, list[Any]]:
    """Reads the columns of a CSV, TSV, JSON or JSONL file.

    Arguments
    ---------
    path : Path
        ``.jsonl``: one object per line. ``.json``: see ``_read_json``. Others: text
        with a header, and fields separated by tabs, semicolons or commas, whichever the
        header has most of. A first line that names a sound file is not a header.
    numbered : bool
        Columns are given by number, so a first line without any usual name is not a
        header, either.

    Raises
    ------
    ValueError
        If it is not UTF-8, not a table, or empty.
    """
    if path.suffix.lower() in SHEETS:
        raise ValueError(f"{path} is a spreadsheet; export it as CSV")
    if is_audio(path.name):
        raise ValueError(
            f"{path} is a sound; pass a folder, or a table with a column of files and "
            "one of labels"
        )
    text = text_of(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        columns = _read_json_lines(path, text)
    elif path.suffix.lower() == ".json":
        columns = _read_json(path, text)
    else:
        columns = _read_fields(path, text, numbered)
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} has no rows; it needs a header and a row per clip")
    return columns


def text_of(path: Path) -> str:
    """Reads a table as one text, without a byte order mark.

    A ``ValueError`` is raised if it is larger than any table, or not UTF-8.
    """
    content = bytearray()
    with open_file(path, MAX_TABLE_BYTES) as file:
        while chunk := file.read(CHUNK_BYTES):
            content += chunk
            if b"\0" in chunk:  # a sparse file may have a billion of them
                break
    try:
        if b"\0" in content:
            place = content.index(b"\0")
            raise UnicodeDecodeError("utf-8", b"\0", place, place + 1, "a NUL")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it "
            "as UTF-8"
        ) from error


def refuse_too_large(path: Path, num_rows: int, num_columns: int = 1) -> None:
    """Refuses a table that would take far more memory than disk space."""
    if (
        num_rows > MAX_ROWS
        or num_columns > MAX_COLUMNS
        or num_rows * num_columns > MAX_CELLS
    ):
        raise ValueError(
            f"{path} has {num_rows} rows and {num_columns} columns; a table has at "
            f"most {MAX_ROWS} rows, {MAX_COLUMNS} columns and {MAX_CELLS} cells; leave "
            "out columns, or split it"
        )


def _read_fields(path: Path, text: str, numbered: bool) -> dict[str, list[Any]]:
    header = text.partition("\n")[0]
    delimiter = max("\t;,", key=header.count)
    refuse_too_large(path, text.count("\n"), 1 + header.count(delimiter))
    # Quoted fields may contain line ends, so the reader must split the lines.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {path} is not a row of a table ({error}); is a "
            "quote left open?"
        ) from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    first = 1
    is_unusual = not find_column(names, (*AUDIO_NAMES, *LABEL_NAMES))
    has_numbers = {str(place) for place in range(len(names))} & {*names}
    second = lines[1][1] if len(lines) > 1 else []
    is_header = len(names) == len(second) > 1 and not second[0].startswith("#")
    if names and names[0].startswith("#") and is_unusual and not is_header:
        raise ValueError(
            f"{path} begins with a comment ({shown(lines[0][1][0])[:80]}); delete the "
            "lines before the header"
        )
    if any(map(is_audio, names)) or (numbered and is_unusual and not has_numbers):
        names, first = _invented_names(names), 0
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the header of {path} has {twice[0]!r} twice; rename one")
    rows, repeated = [], []
    for number, fields in lines[first:]:
        if not any(map(str.strip, fields)):  # as spreadsheets write them
            continue
        if first and [name.strip() for name in fields] == names:
            repeated.append(number)  # as in tables that were joined
            continue
        if len(fields) != len(names):
            raise ValueError(
                f"line {number} of {path} has {len(fields)} fields, but its "
                f"header has {len(names)}: {shown(', '.join(names))[:200]}; quote "
                f"fields that contain {delimiter!r}"
            )
        rows.append(fields)
    if repeated:
        logger.warning(
            "%s: skipped lines that repeat the header: %s", path, some_of(repeated)
        )
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _invented_names(fields: list[str]) -> list[str]:
    """Names columns without a header: by number, or by what the first line shows."""
    names = [str(place) for place in range(len(fields))]
    files = [place for place, field in enumerate(fields) if is_audio(field)]
    if len(files) == 1:
        if len(fields) == 2:
            names = ["label", "label"]
        names[files[0]] = "filename"
    return names


def _read_json(path: Path, text: str) -> dict[str, list[Any]]:
    """Reads the columns of a JSON file.

    It is a list of objects; an object with one such list, as ``{"data": [...]}``; an
    object with a list for each column; an object that maps file names to labels or to
    columns; or, as in SpeechBrain, one that maps clip names to columns. A file of JSON
    lines is read as such.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return _read_json_lines(path, text)
    values = [*content.values()] if isinstance(content, dict) else []
    of_rows = [each for each in (content, *values) if _is_list_of(each, dict)]
    if len(of_rows) == 1:
        return _columns_of_rows(path, of_rows[0])
    if any(map(is_audio, content if values else ())):
        rows = [
            {"filename": name}
            | (value if isinstance(value, dict) else {"label": value})
            for name, value in content.items()
        ]
        return _columns_of_rows(path, rows)
    if _is_list_of(values, dict) and any(find_column(v, AUDIO_NAMES) for v in values):
        rows = [{"clip_id": name} | value for name, value in content.items()]
        return _columns_of_rows(path, rows)
    if _is_list_of(values, dict):  # pandas' to_json
        values = [[*each.values()] for each in values]
    if _is_list_of(values, list) and len({len(each) for each in values}) == 1:
        return dict(zip(content, values, strict=True))
    raise ValueError(
        f"{path} is JSON, but not a table; write a list of objects, such as "
        '[{"file": "a.wav", "label": "dog"}]'
    )


def _is_list_of(value: Any, kind: type) -> bool:
    is_list = isinstance(value, list) and len(value) > 0
    return is_list and all(isinstance(each, kind) for each in value)


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
                f"line {number} of {path} is not JSON ({error}); JSONL holds one "
                "object per line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"line {number} of {path} is a {type(row).__name__}; JSONL holds one "
                'object per line, such as {"file": "a.wav", "labels": ["dog"]}'
            )
        rows.append(row)
        names |= dict.fromkeys(row)
        refuse_too_large(path, len(rows), len(names))
    return _columns_of_rows(path, rows)


def _columns_of_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    refuse_too_large(path, len(rows), len(names))
    return {name: [row.get(name) for row in rows] for name in names}
