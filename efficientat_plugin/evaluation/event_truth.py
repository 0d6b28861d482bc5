"""What detected events are compared with: the annotated events of the clips."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_targets import merge_events
from efficientat_plugin.data.events.frame_events import TimedLabel, frame_times
from efficientat_plugin.support.plain_text import shown, some_of

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Scores = Mapping[str, NDArray]  # [T', K] by clip id; asked clip by clip
Events = Mapping[str, Iterable[TimedLabel | Event]]
Durations = Mapping[str, float]  # seconds


class Truth(NamedTuple):
    """The annotated events of N clips, sorted by clip, class and start.

    Those of one clip and one class are a group.
    """

    classes: list[str]  # K names
    clips: list[str]  # N ids
    durations: FloatArray  # [N] seconds
    start: FloatArray  # [E] seconds
    end: FloatArray  # [E] seconds
    group: IntArray  # [E]
    group_key: IntArray  # [G], clip * K + class, increasing
    group_begins: IntArray  # [G + 1], indices of events
    clip_begins: IntArray  # [N + 1], indices of events

    @property
    def label(self) -> IntArray:
        """[E], the class of each event."""
        return self.group_key[self.group] % len(self.classes)

    @property
    def counts(self) -> IntArray:
        """[K], events of each class."""
        return np.bincount(self.label, minlength=len(self.classes))

    @property
    def seconds(self) -> FloatArray:
        """[K], how long the events of each class are together."""
        length = self.end - self.start
        sums = np.bincount(self.label, weights=length, minlength=len(self.classes))
        return sums.astype(np.float64)

    def group_of(self, clip: IntArray, label: IntArray) -> IntArray:
        """Returns the groups of pairs of clip and class, -1 if they have no event."""
        key = clip * len(self.classes) + label
        place = np.searchsorted(self.group_key, key)
        place = np.minimum(place, len(self.group_key) - 1)
        return np.where(self.group_key[place] == key, place, -1)


def read_truth(
    events: Events, durations: Durations, classes: Sequence[str], scores: Scores
) -> Truth:
    """Checks and sorts the annotated events of the clips in ``durations``.

    Events of one class that overlap or touch become one. Times are clipped to the
    clip; events that lie outside it are left out and reported. A clip that is not in
    ``events`` has none.

    Raises
    ------
    ValueError
        If clips differ between the arguments, a class is unknown or named twice, no
        class has an event, or a time or duration makes no sense.
    """
    names = list(classes)
    _check_clips(events, durations, scores)
    _check_classes(names)
    index = {name: k for k, name in enumerate(names)}
    rows: list[tuple[int, int, float, float]] = []  # clip, class, start, end
    for clip, (clip_id, seconds) in enumerate(durations.items()):
        for start, end, label in _within(clip_id, events.get(clip_id, ()), seconds):
            if label not in index:
                raise ValueError(
                    f"clip {shown(clip_id)} has an event of the class {shown(label)}, "
                    f"which is not among the {len(names)} classes "
                    f"({some_of(names, 3)}); add it to them, or leave its events out"
                )
            rows.append((clip, index[label], start, end))
    if not rows:
        raise ValueError(
            f"none of the {len(durations)} clips has an event, so there is nothing to "
            f"detect; evaluate on clips with annotated events"
        )
    return _sorted_truth(names, durations, np.array(sorted(rows), dtype=np.float64))


def _sorted_truth(names: list[str], durations: Durations, rows: FloatArray) -> Truth:
    clip, label = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    keys, begins, group = np.unique(
        clip * len(names) + label, return_index=True, return_inverse=True
    )
    return Truth(
        classes=names,
        clips=list(durations),
        durations=np.array(list(durations.values()), dtype=np.float64),
        start=rows[:, 2],
        end=rows[:, 3],
        group=group,
        group_key=keys,
        group_begins=np.append(begins, len(rows)),
        clip_begins=np.searchsorted(clip, np.arange(len(durations) + 1)),
    )


def _check_clips(events: Events, durations: Durations, scores: Scores) -> None:
    # Sets: asking whether an id is in a mapping may load its scores.
    evaluated, scored = set(durations), set(scores)
    every = evaluated | scored | set(events)
    for what, given, advice in (
        ("duration", evaluated, "give their lengths in seconds, or leave them out"),
        ("scores", scored, "score them, or leave them out of the durations"),
    ):
        missing = sorted(every - given, key=str)
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(every)} clips came without {what} "
                f"({some_of(missing, 3)}); {advice}"
            )
    for clip_id, seconds in durations.items():
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(
                f"clip {shown(clip_id)} has a duration of {seconds}; give seconds, "
                f"more than 0"
            )


def _check_classes(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        problem = f"{some_of(twice)} more than once" if twice else "nothing"
        raise ValueError(
            f"the classes contain {problem}; name each column of the scores once"
        )


def _within(
    clip_id: str, events: Iterable[TimedLabel | Event], seconds: float
) -> list[TimedLabel]:
    """The merged events of a clip, as far as they lie in it."""
    every = [_as_event(event) for event in events]
    for label, start, end, _ in every:
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(
                f"clip {shown(clip_id)} has an event of {shown(label)} from {start} to "
                f"{end} s; an event must end after it starts"
            )
    inside = [
        Event(label, max(start, 0.0), min(end, seconds))
        for label, start, end, _ in every
        if start < seconds and end > 0
    ]
    if len(inside) < len(every):
        logger.warning(
            "%d of the %d events of clip %s lie outside its %g s and are left out",
            len(every) - len(inside),
            len(every),
            shown(clip_id),
            seconds,
        )
    return [(start, end, label) for label, start, end, _ in merge_events(inside)]


def _as_event(event: TimedLabel | Event) -> Event:
    if isinstance(event, Event):
        return event
    start, end, label = event
    return Event(label, float(start), float(end))


class ClipScores(NamedTuple):
    """The scores of one clip."""

    clip: int  # its place in ``Truth.clips``
    scores: NDArray  # [T', K], float32 or float64; no frame is behind the clip's end
    times: FloatArray  # [T' + 1] seconds


def clip_by_clip(
    scores: Scores, truth: Truth, frame_seconds: float
) -> Iterator[ClipScores]:
    """Loads and checks the scores of one clip after the other.

    Raises
    ------
    ValueError
        If scores are not [T', K], or one of them is NaN or infinite. Negative infinity
        is allowed: such a frame is never detected.
    """
    if not (math.isfinite(frame_seconds) and frame_seconds > 0):
        raise ValueError(f"frame_seconds={frame_seconds}; give seconds above 0")
    for clip, clip_id in enumerate(truth.clips):
        found = np.asarray(scores[clip_id])
        if found.ndim != 2 or found.shape[1] != len(truth.classes):
            raise ValueError(
                f"the scores of clip {shown(clip_id)} have the shape {found.shape}; "
                f"give [frames, {len(truth.classes)}], a column for each class"
            )
        found = found.astype(_precision(found.dtype), copy=False)
        if np.isnan(found).any() or (found == np.inf).any():
            raise ValueError(
                f"clip {shown(clip_id)} has scores that are NaN or infinite, which "
                f"cannot be compared with a threshold; the model has diverged, or "
                f"give finite scores"
            )
        times = frame_times(len(found), truth.durations[clip], frame_seconds)
        inside = int((np.diff(times) > 0).sum())
        yield ClipScores(clip, found[:inside], times[: inside + 1])


def _precision(dtype: np.dtype) -> type:
    """Float16 is slow, and exact in float32."""
    is_short = dtype.kind == "f" and dtype.itemsize <= 4
    return np.float32 if is_short else np.float64
