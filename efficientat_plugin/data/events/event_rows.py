"""Writes events as the rows of a table."""

import csv
from collections.abc import Iterable
from typing import TextIO

from efficientat_plugin.contracts import Event
from efficientat_plugin.support.plain_text import cell, path_cell

DECIMALS = 6  # of seconds and scores


def decimal(number: float | None) -> str:
    """Returns a number as a cell of a table; None is an empty one.

    Example
    -------
    >>> decimal(0.5), decimal(None)
    ('0.500000', '')
    """
    return "" if number is None else f"{number:.{DECIMALS}f}"


class EventRows:
    """Writes a row for each event, none of whose cells becomes a formula.

    Arguments
    ---------
    file : TextIO
    header : sequence of str
    delimiter : str
    """

    def __init__(self, file: TextIO, header: Iterable[str], delimiter: str) -> None:
        self._rows = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self._rows.writerow(header)

    def finish(self) -> None:
        """A table has no end of its own."""


class CsvEventWriter(EventRows):
    """Writes CSV. A sound without events has a row without times.

    Example
    -------
    >>> import sys
    >>> CsvEventWriter(sys.stdout).write("a.wav", [Event("Dog", 0.5, 1.0, 0.9)])
    sound,start_seconds,end_seconds,label,score
    a.wav,0.500000,1.000000,Dog,0.900000
    """

    HEADER = ("sound", "start_seconds", "end_seconds", "label", "score")
    DELIMITER = ","

    def __init__(self, file: TextIO) -> None:
        super().__init__(file, self.HEADER, self.DELIMITER)

    def write(self, sound: object, events: Iterable[Event]) -> None:
        """Writes the events of a sound."""
        name, is_empty = path_cell(sound), True
        for label, start, end, score in events:
            times = (decimal(start), decimal(end))
            self._rows.writerow([name, *times, cell(label), decimal(score)])
            is_empty = False
        if is_empty:
            self._rows.writerow([name, "", "", "", ""])


class DcaseWriter(CsvEventWriter):
    """Writes the tab-separated tables of DCASE, with a confidence."""

    HEADER = ("filename", "onset", "offset", "event_label", "confidence")
    DELIMITER = "\t"
