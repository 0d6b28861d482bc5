"""Writes Audacity label tracks, with consecutive windows of a class merged."""

from collections.abc import Sequence
from typing import NamedTuple, TextIO

from efficientat_plugin.cli.outputs import Finding
from efficientat_plugin.support.plain_text import shown


class TimeLabel(NamedTuple):
    """A class with its start and end."""

    start_seconds: float
    end_seconds: float
    name: str


class LabelMerger:
    """Merges consecutive or overlapping windows of a class into one label.

    Example
    -------
    >>> merger = LabelMerger()
    >>> merger.add(0.0, 2.0, ["dog"]), merger.add(2.0, 4.0, ["dog", "cat"])
    ([], [])
    >>> merger.add(4.0, 6.0, ["cat"])
    [TimeLabel(start_seconds=0.0, end_seconds=4.0, name='dog')]
    >>> merger.finish()
    [TimeLabel(start_seconds=2.0, end_seconds=6.0, name='cat')]
    """

    def __init__(self) -> None:
        self._open: dict[str, TimeLabel] = {}
        self._before: set[str] = set()  # classes of the window before

    def add(
        self, start_seconds: float, end_seconds: float, names: Sequence[str]
    ) -> list[TimeLabel]:
        """Adds a window with its classes; returns the labels that end before it."""
        ended = []
        for name, label in list(self._open.items()):
            follows = name in self._before and name in names
            if not follows and label.end_seconds <= start_seconds:
                ended.append(self._open.pop(name))
        for name in names:
            begun = self._open.get(name)
            start = start_seconds if begun is None else begun.start_seconds
            self._open[name] = TimeLabel(start, end_seconds, name)
        self._before = set(names)
        return ended

    def finish(self) -> list[TimeLabel]:
        """Returns the labels that end with the sound."""
        ended = sorted(self._open.values(), key=lambda label: label.end_seconds)
        self._open, self._before = {}, set()
        return ended


class AudacityWriter:
    """Writes a label track: start, end and class, in the order in which labels end.

    Arguments
    ---------
    file : TextIO
    has_windows : bool
        As for the other formats; here there are always windows.
    """

    def __init__(self, file: TextIO, has_windows: bool = True) -> None:
        self._file = file
        self._merger = LabelMerger()

    def write(self, finding: Finding) -> None:
        """Adds a window."""
        assert finding.seconds is not None
        names = [tag.name for tag in finding.tags]
        self._print(self._merger.add(*finding.seconds, names))

    def finish(self) -> None:
        """Writes the labels that end with the sound."""
        self._print(self._merger.finish())

    def _print(self, labels: list[TimeLabel]) -> None:
        for start, end, name in labels:
            print(f"{start:.6f}\t{end:.6f}\t{shown(name)}", file=self._file)
