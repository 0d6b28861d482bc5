"""Reads events from the TextGrids of Praat, long and short."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from efficientat_plugin.data.events.event_columns import (
    Annotations,
    found_nothing,
    number_in,
)
from efficientat_plugin.data.text_tables import refuse_too_large, text_of
from efficientat_plugin.support.files import open_file
from efficientat_plugin.support.limits import MAX_TABLE_BYTES
from efficientat_plugin.support.plain_text import shown, some_of

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Praat reads strings, numbers and flags that stand alone, and skips all other words.
PARTS = re.compile(r'"(?:[^"]|"")*"|!.*|[^\s"!]+')
INTERVALS, POINTS = "IntervalTier", "TextTier"


class Tier(NamedTuple):
    """A tier: its name, and (start, end, text) in seconds; points have no end."""

    name: str
    rows: list[tuple[float, float | None, str]]


def is_textgrid(head: bytes) -> bool:
    """Tells a TextGrid from its first bytes.

    Example
    -------
    >>> is_textgrid(b'File type = "ooTextFile"\\nObject class = "TextGrid"\\n')
    True
    """
    text = head.decode("utf-16" if head.startswith(UTF_16) else "utf-8", "replace")
    return bool(re.match(r"[^\n]*oo(Text|Binary)File\W.{0,40}TextGrid", text, re.S))


def read_textgrid(path: Path, sound: str, tier: str | None = None) -> Annotations:
    """Reads the intervals of a TextGrid that have a text, which is their class.

    Arguments
    ---------
    path : Path
    sound : str
        The sound that it is about.
    tier : str or None
        Name of the tier to read; None: all of them.

    Returns
    -------
    Annotations
        Points have no end.

    Raises
    ------
    ValueError
        If it is binary, incomplete, or has no such tier.

    Source
    ------
    Praat's manual, "TextGrid file formats".
    """
    tiers = [*_tiers(path)]
    if tier is not None:
        chosen = [each for each in tiers if each.name == tier]
        if not chosen:
            names = [shown(each.name) for each in tiers]
            raise ValueError(
                f"{path} has no tier {shown(tier)}; its tiers are {some_of(names)}"
            )
        tiers = chosen
    rows = [row for each in tiers for row in each.rows if row[2].strip()]
    if not rows:
        return found_nothing(sound)
    starts, ends, texts = map(list, zip(*rows, strict=True))
    labels = [[" ".join(text.split())] for text in texts]
    return Annotations([sound] * len(rows), labels, starts, ends, [None] * len(rows))


def _tiers(path: Path) -> Iterator[Tier]:
    parts = _Parts(path)
    parts.words(2)  # ooTextFile, TextGrid
    parts.numbers(2)  # start and end
    if parts.next() != "<exists>":
        return
    for _ in range(parts.count()):
        kind, name = parts.words(2)
        parts.numbers(2)
        if kind not in (INTERVALS, POINTS):
            raise ValueError(
                f"{path} has a tier of the kind {shown(kind)[:40]}; a TextGrid has "
                f"{INTERVALS} and {POINTS}"
            )
        rows: list[tuple[float, float | None, str]] = []
        for _ in range(parts.count()):
            start, *end = parts.numbers(2 if kind == INTERVALS else 1)
            [text] = parts.words(1)
            rows.append((start, end[0] if end else None, text))
        yield Tier(name, rows)


class _Parts:
    """The strings, numbers and flags of a TextGrid, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = _decoded(path)
        refuse_too_large(path, text.count('"') // 2)
        found = (match[0] for match in PARTS.finditer(text))
        self._parts = (part for part in found if _stands_alone(part))

    def next(self) -> str:
        part = next(self._parts, None)
        if part is None:
            raise ValueError(
                f"{self.path} is no complete TextGrid; save it again in Praat, as a "
                "text file or a short text file"
            )
        return part

    def words(self, number: int) -> list[str]:
        return [self._word() for _ in range(number)]

    def numbers(self, number: int) -> list[float]:
        return [self._number() for _ in range(number)]

    def count(self) -> int:
        return int(self._number())

    def _word(self) -> str:
        part = self.next()
        if not part.startswith('"'):
            raise self._misplaced(part, "a text in quotes")
        return part[1:-1].replace('""', '"')

    def _number(self) -> float:
        part = self.next()
        number = number_in(part)
        if number is None:
            raise self._misplaced(part, "a number")
        return number

    def _misplaced(self, part: str, expected: str) -> ValueError:
        return ValueError(
            f"{self.path} has {shown(part)[:40]} where a TextGrid has {expected}; save "
            "it again in Praat, as a text file or a short text file"
        )


def _stands_alone(part: str) -> bool:
    return part[0] in '"<' or (part[0] != "!" and number_in(part) is not None)


def _decoded(path: Path) -> str:
    """Reads UTF-8, or UTF-16, which Praat writes if a text is not plain English."""
    with open_file(path, MAX_TABLE_BYTES) as file:
        head = file.read(64)
        if b"ooBinaryFile" in head:
            raise ValueError(
                f"{path} is a binary TextGrid; save it in Praat as a text file"
            )
        if not head.startswith(UTF_16):
            return text_of(path)
        content = head + file.read(MAX_TABLE_BYTES)
    try:
        return content.decode("utf-16")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-16 text; save it as UTF-8") from error
