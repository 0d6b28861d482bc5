"""Plots a scan: the log-mel, and the most likely classes over time."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.decoding import UnreadableClip, decode_blocks
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.contracts import ScanWindow
    from efficientat_plugin.tagging.base import SoundTagger

MAX_COLUMNS = 2000  # twice the width of the axes in pixels; even
NUM_CLASSES = 10
CHUNK_SECONDS = 10.0  # per log-mel computation


class PairedColumns:
    """Collects columns over time and averages them in pairs when they exceed a limit.

    Arguments
    ---------
    limit : int
        Maximum number of columns, even.

    Example
    -------
    >>> columns = PairedColumns(limit=4)
    >>> for value in range(9):
    ...     columns.add(np.array([value]))
    >>> columns.columns().tolist()
    [[1.5], [5.5], [8.0]]
    """

    def __init__(self, limit: int = MAX_COLUMNS) -> None:
        self._limit = limit
        self._per_column = 1
        self._whole: list[NDArray] = []
        self._sum: NDArray | None = None  # of the incomplete column
        self._count = 0

    def add(self, column: NDArray) -> None:
        """Adds a column."""
        if len(self._whole) == self._limit and not self._count:
            pairs = zip(self._whole[::2], self._whole[1::2], strict=True)
            self._whole = [(left + right) / 2 for left, right in pairs]
            self._per_column *= 2
        self._sum = column.astype(np.float64) + (0 if self._sum is None else self._sum)
        self._count += 1
        if self._count == self._per_column:
            self._whole.append(self._sum / self._count)
            self._sum, self._count = None, 0

    def columns(self) -> NDArray[np.float64]:
        """Returns [columns, size]."""
        rest = [] if self._sum is None else [self._sum / self._count]
        return np.stack([*self._whole, *rest])


class ScanFigure:
    """Collects the windows of a scan and draws them, in constant memory.

    Arguments
    ---------
    path : Path
        The sound.
    tagger : SoundTagger
        The tagger of the scan; for an ensemble, the first member's log-mel is drawn.
    """

    def __init__(self, path: Path, tagger: "SoundTagger") -> None:
        self._path, self._tagger = path, tagger
        self._windows = PairedColumns()  # of start, end, probabilities
        self._seconds = 0.0

    def add(self, window: "ScanWindow") -> None:
        """Adds a window."""
        where = [window.start_seconds, window.end_seconds]
        self._windows.add(np.concatenate([where, window.probabilities]))
        self._seconds = window.end_seconds

    def save(self, path: Path) -> None:
        """Draws the figure and writes it as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 6), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True)
        log_mel = self._log_mel()
        upper.imshow(
            log_mel.T,
            origin="lower",
            aspect="auto",
            extent=(0, self._seconds, 0, log_mel.shape[1]),
        )
        # A dollar sign in a name must not start a formula.
        upper.set_title(shown(self._path.name), parse_math=False)
        upper.set_ylabel("mel band")
        edges, names, probabilities = self._classes()
        rows = np.arange(len(names) + 1)
        mesh = lower.pcolormesh(edges, rows, probabilities.T, vmin=0, vmax=1)
        lower.set_yticks(rows[:-1] + 0.5, names, parse_math=False)
        lower.invert_yaxis()  # the most likely on top
        lower.set(xlabel="time (s)", xlim=(0, self._seconds))
        figure.colorbar(mesh, ax=lower, label="probability")
        with atomic_file(path, "wb") as file, warnings.catch_warnings():
            # Characters that the font lacks are drawn as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(file, format="png", dpi=110)

    def _classes(self) -> tuple[NDArray, list[str], NDArray]:
        """Returns cell edges of the windows [n + 1], classes [k], values [n, k]."""
        columns = self._windows.columns()
        middles = columns[:, :2].mean(axis=1)
        between = (middles[1:] + middles[:-1]) / 2
        edges = np.concatenate([[0.0], between, [self._seconds]])
        probabilities = columns[:, 2:]
        order = np.argsort(-probabilities.max(axis=0), kind="stable")[:NUM_CLASSES]
        names = [shown(self._tagger.labels.names[k]) for k in order]
        return edges, names, probabilities[:, order]

    def _log_mel(self) -> NDArray[np.float64]:
        """Reads the file again, as far as possible; returns [columns, F]."""
        columns = PairedColumns()
        for samples in self._chunks():
            for frame in self._tagger.log_mel_of(samples).T:
                columns.add(frame)
        return columns.columns()

    def _chunks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the sound in pieces of equal length, then the remainder."""
        rate = self._tagger.sample_rate
        size = round(CHUNK_SECONDS * rate)
        held = np.zeros(0, np.float32)
        try:
            for block in decode_blocks(self._path, rate):
                held = np.concatenate([held, block])
                while len(held) >= size:
                    yield held[:size]
                    held = held[size:]
        except UnreadableClip:  # the figure ends where the scan ended
            pass
        if len(held):
            yield held
