"""Plots a sound, with the most likely classes over time or the events below it."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.decoding import UnreadableClip, decode_blocks
from efficientat_plugin.runtime.front_end import mel_of
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from efficientat_plugin.contracts import Event, ScanWindow
    from efficientat_plugin.tagging.base import SoundTagger

MAX_COLUMNS = 2000  # twice the width of the axes in pixels; even
NUM_CLASSES = 10
CHUNK_SECONDS = 10.0  # per log-mel computation
TICKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
MOST_LANES = 200  # of 22 pixels; more exceed what can be drawn
LANE_INCHES = 0.2


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


class SoundFigure:
    """Draws the log-mel of a sound above a panel that a subclass draws.

    Arguments
    ---------
    path : Path
        The sound.
    tagger : SoundTagger
        Of an ensemble, the first member's log-mel is drawn.
    """

    def __init__(self, path: Path, tagger: "SoundTagger") -> None:
        self._path, self._tagger = path, tagger

    def _save(self, path: Path, lower_inches: float) -> None:
        """Draws the figure and writes it as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        heights = [3.0, lower_inches]
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        seconds = self._draw_log_mel(upper)
        # A dollar sign in a name must not start a formula.
        upper.set_title(shown(self._path.name), parse_math=False)
        colours, label = self._draw_lower(lower, seconds)
        lower.invert_yaxis()
        lower.set(xlabel="time (s)", xlim=(0, seconds))
        figure.colorbar(colours, ax=lower, label=label)
        with atomic_file(path, "wb") as file, warnings.catch_warnings():
            # Characters that the font lacks are drawn as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(file, format="png", dpi=110)

    def _draw_lower(self, axes: "Axes", seconds: float) -> tuple[Any, str]:
        """Draws the lower panel; returns what has its colours, and what they mean."""
        raise NotImplementedError

    def _draw_log_mel(self, axes: "Axes") -> float:
        """Reads the file again, as far as possible; returns its length in seconds."""
        columns, num_samples = PairedColumns(), 0
        for samples in self._chunks():
            num_samples += len(samples)
            for frame in self._tagger.log_mel_of(samples).T:
                columns.add(frame)
        log_mel = columns.columns()  # [columns, F]
        seconds, num_bands = num_samples / self._tagger.sample_rate, log_mel.shape[1]
        axes.imshow(
            log_mel.T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, num_bands),
        )
        settings = self._tagger.fingerprint()["front_ends"][0]
        ends = settings["f_min"], settings["f_max"]
        ticks = [hertz for hertz in TICKS_HZ if ends[0] <= hertz <= ends[1]]
        axes.set_yticks(bands_of(ticks, *ends, num_bands), map(str, ticks))
        axes.set(ylabel="frequency (Hz)", ylim=(0, num_bands))
        return seconds

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
        except UnreadableClip:  # the figure ends where the results end
            pass
        if len(held):
            yield held


def bands_of(
    hertz: Sequence[float], f_min: float, f_max: float, num_bands: int
) -> NDArray[np.float64]:
    """Converts frequencies to places on an axis whose mel band k is from k to k + 1.

    Example
    -------
    >>> bands_of([0.0, 15000.0], 0.0, 15000.0, num_bands=128)
    array([ -0.5, 128.5])
    """
    low, high = mel_of(f_min), mel_of(f_max)
    return (mel_of(np.array(hertz)) - low) / (high - low) * (num_bands + 1) - 0.5


class ScanFigure(SoundFigure):
    """Collects the windows of a scan and draws them, in constant memory.

    Arguments
    ---------
    path : Path
    tagger : SoundTagger
        The tagger of the scan.
    places : sequence of int or None
        Classes to draw; None: all. The most likely of them are drawn.
    """

    def __init__(
        self,
        path: Path,
        tagger: "SoundTagger",
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(path, tagger)
        self._windows = PairedColumns()  # of start, end, probabilities
        self._end_seconds = 0.0
        self._places = np.arange(len(tagger.labels)) if places is None else places

    def add(self, window: "ScanWindow") -> None:
        """Adds a window."""
        where = [window.start_seconds, window.end_seconds]
        self._windows.add(np.concatenate([where, window.probabilities[self._places]]))
        self._end_seconds = window.end_seconds

    def save(self, path: Path) -> None:
        """Draws the figure and writes it as PNG."""
        self._save(path, lower_inches=3.0)

    def _draw_lower(self, axes: "Axes", seconds: float) -> tuple[Any, str]:
        edges, names, probabilities = self._classes()
        rows = np.arange(len(names) + 1)
        mesh = axes.pcolormesh(edges, rows, probabilities.T, vmin=0, vmax=1)
        axes.set_yticks(rows[:-1] + 0.5, names, parse_math=False)
        return mesh, "probability"

    def _classes(self) -> tuple[NDArray, list[str], NDArray]:
        """Returns cell edges of the windows [n + 1], classes [k], values [n, k]."""
        columns = self._windows.columns()
        middles = columns[:, :2].mean(axis=1)
        between = (middles[1:] + middles[:-1]) / 2
        edges = np.concatenate([[0.0], between, [self._end_seconds]])
        probabilities = columns[:, 2:]
        order = np.argsort(-probabilities.max(axis=0), kind="stable")[:NUM_CLASSES]
        every = self._tagger.labels.names
        names = [shown(every[self._places[k]]) for k in order]
        return edges, names, probabilities[:, order]


class EventFigure(SoundFigure):
    """Draws events below their sound: a lane per class, and a bar with its score each.

    Arguments
    ---------
    path : Path
    tagger : SoundTagger
        The tagger that found the events.
    events : sequence of Event
    """

    def __init__(
        self, path: Path, tagger: "SoundTagger", events: "Sequence[Event]"
    ) -> None:
        super().__init__(path, tagger)
        lanes = defaultdict(list)
        for event in events:
            lanes[event.label].append(event)
        # The classes with the highest scores on top
        ordered = sorted(lanes, key=lambda name: -max(map(_score, lanes[name])))
        self._lanes = {name: lanes[name] for name in ordered[:MOST_LANES]}
        self._num_left_out = len(ordered) - len(self._lanes)

    def save(self, path: Path) -> None:
        """Draws the figure and writes it as PNG."""
        self._save(path, lower_inches=max(1.0, 0.8 + LANE_INCHES * len(self._lanes)))

    def _draw_lower(self, axes: "Axes", seconds: float) -> tuple[Any, str]:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patheffects import withStroke

        outline = [withStroke(linewidth=2, foreground="white")]
        colours = ScalarMappable(Normalize(0, 1))
        for lane, events in enumerate(self._lanes.values()):
            spans = [(start, end - start) for _, start, end, _ in events]
            scores = np.array([_score(event) for event in events])
            axes.broken_barh(
                spans, (lane + 0.1, 0.8), color=colours.to_rgba(scores), clip_on=True
            )
            for event, score in zip(events, scores, strict=True):
                axes.text(
                    event.start_seconds,
                    lane + 0.5,
                    f" {score:.2f}",
                    va="center",
                    fontsize="xx-small",
                    path_effects=outline,  # it may be wider than its bar
                    clip_on=True,
                )
        axes.set_yticks(
            np.arange(len(self._lanes)) + 0.5, map(shown, self._lanes), parse_math=False
        )
        axes.set_ylim(0, max(1, len(self._lanes)))
        if self._num_left_out:
            axes.set_title(f"{self._num_left_out} classes of lower scores are left out")
        if not self._lanes:
            axes.text(seconds / 2, 0.5, "no events", ha="center", va="center")
        return colours, "score"


def _score(event: "Event") -> float:
    return 1.0 if event.score is None else event.score
