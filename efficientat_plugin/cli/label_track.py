"""Writes Audacity label tracks, with consecutive windows of a class merged."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.contracts import ScanWindow
    from efficientat_plugin.data.labels import LabelTable


class TimeLabel(NamedTuple):
    """A class with its start and end."""

    start_seconds: float
    end_seconds: float
    name: str


class LabelMerger:
    """Merges consecutive or overlapping windows of a class into one label.

    Arguments
    ---------
    names : sequence of str
        Names of the classes.

    Example
    -------
    >>> merger = LabelMerger(["dog", "cat"])
    >>> merger.add(0.0, 2.0, [0]), merger.add(2.0, 4.0, [0, 1])
    ([], [])
    >>> merger.add(4.0, 6.0, [1])
    [TimeLabel(start_seconds=0.0, end_seconds=4.0, name='dog')]
    >>> merger.finish()
    [TimeLabel(start_seconds=2.0, end_seconds=6.0, name='cat')]
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._open: dict[int, TimeLabel] = {}
        self._before: set[int] = set()  # classes of the window before

    def add(
        self, start_seconds: float, end_seconds: float, classes: Sequence[int]
    ) -> list[TimeLabel]:
        """Adds a window with its classes; returns the labels that end before it."""
        ended = []
        for k, label in list(self._open.items()):
            follows = k in self._before and k in classes
            if not follows and label.end_seconds <= start_seconds:
                ended.append(self._open.pop(k))
        for k in classes:
            start = self._open[k].start_seconds if k in self._open else start_seconds
            self._open[k] = TimeLabel(start, end_seconds, self._names[k])
        self._before = set(classes)
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
    labels : LabelTable
    """

    def __init__(self, file: TextIO, labels: "LabelTable") -> None:
        self._file = file
        self._merger = LabelMerger(labels.names)

    def write(
        self, path: Path, window: "ScanWindow", top: int, threshold: float
    ) -> None:
        """Adds a window; ``top`` is ignored, else louder classes would split labels."""
        above = (window.probabilities >= threshold).nonzero()[0].tolist()
        self._print(self._merger.add(window.start_seconds, window.end_seconds, above))

    def finish(self) -> None:
        """Writes the labels that end with the sound."""
        self._print(self._merger.finish())

    def _print(self, labels: list[TimeLabel]) -> None:
        for start, end, name in labels:
            print(f"{start:.6f}\t{end:.6f}\t{shown(name)}", file=self._file)
