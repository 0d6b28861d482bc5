"""Labelled sounds joined with a table of events, and the clips made of both."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from efficientat_plugin.contracts import Clip, Event
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.events.event_sorting import EventTable
from efficientat_plugin.data.events.event_tables import read_events
from efficientat_plugin.data.events.event_targets import frame_targets
from efficientat_plugin.data.labelled import without_labels
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.summary import seconds_of_clips
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.support.plain_text import some_of

logger = logging.getLogger(__name__)

LABELS = datasets.List(datasets.Value("string"))


class EventClips(NamedTuple):
    """Rows, and what is known of the events in them."""

    rows: datasets.Dataset  # their ``labels`` are those of the whole clip
    labels: LabelTable  # K
    events: dict[str, list[Event]]  # by clip id; of a clip without times, nothing
    judged: set[str]  # clips whose weak labels are known, even if they have none
    seconds: dict[str, float]  # length of each clip that can be opened

    def __str__(self) -> str:
        events = sum(map(len, self.events.values()))
        weak = len(self.judged - self.events.keys())
        return (
            f"{len(self.rows)} clips of {len(self.labels)} classes: {events} events in "
            f"{len(self.events)} clips, {weak} clips with weak labels only, "
            f"{len(self.rows) - len(self.judged)} without labels"
        )

    def rows_to_split(self) -> datasets.Dataset:
        """Returns the rows, without labels if all have one class.

        Clips of two classes or more are split so that each side has its share of all.
        """
        return self.rows if len(self.labels) > 1 else without_labels(self.rows)

    def digest(self) -> str:
        """Computes a digest of all that is known of the clips but their sound.

        Example
        -------
        >>> rows = datasets.Dataset.from_dict({"video_id": ["a"]})
        >>> known = {"a": [Event("dog", 0.0, 1.0)]}
        >>> EventClips(rows, LabelTable("d", "d"), known, {"a"}, {}).digest()
        '1 events in 1 clips (digest b701a925)'
        """
        known = hashlib.sha256()
        for clip_id in sorted(self.judged | self.events.keys()):
            known.update(repr((clip_id, self.events.get(clip_id))).encode())
        return (
            f"{sum(map(len, self.events.values()))} events in {len(self.events)} clips "
            f"(digest {known.hexdigest()[:8]})"
        )


def open_event_clips(
    dataset: str | Path,
    events: str | Path | Sequence[str | Path] | None,
    labels: LabelTable | None = None,
    event_options: Mapping[str, Any] | None = None,
    **table: Any,
) -> EventClips:
    """Reads sounds of any form, and joins them with their events by clip id.

    What is known of a clip is, in this order: its events, and with them its weak labels
    (a clip without events is known to hold none of the classes); weak labels in the
    table of events; labels of the sounds' own table or folders; nothing.

    Arguments
    ---------
    dataset : str or Path
        Folder, file or hub id, as in `read_table`.
    events : str, Path, sequence of them, or None
        Tables of events, as in `read_events`; None: no clip has any.
    labels : LabelTable or None
        The classes; other events are left out and reported. None: those of the events
        and weak labels.
    event_options : mapping or None
        Further arguments of `read_events`, such as ``{"unit": "ms"}``.
    **table
        Arguments of `read_table`. Where a table of events is in the folder of the
        sounds, or that folder has neither a table nor class folders, the form is
        "sounds" unless another is given.

    Returns
    -------
    EventClips

    Raises
    ------
    OSError, ValueError
        As in `read_table` and `read_events`, such as for events of sounds that are not
        there; and if two tables have events of one clip.

    Example
    -------
    >>> import soundfile, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> soundfile.write(folder / "a.wav", [0.0] * 16000, 16000)
    >>> _ = (folder / "events.csv").write_text(
    ...     "file,start,end,label\\na.wav,0,0.5,x\\n"
    ... )
    >>> clips = open_event_clips(folder, folder / "events.csv")
    >>> print(clips)
    1 clips of 1 classes: 1 events in 1 clips, 0 clips with weak labels only, 0 ...
    """
    paths = [events] if isinstance(events, str | Path) else [*(events or [])]
    rows = _read_rows(dataset, paths, table)
    seconds = seconds_of_clips(rows)
    names = [str(each) for each in rows["video_id"][:]]
    known = EventTable({}, {}, [])
    for path in paths:
        found = read_events(
            path,
            classes=labels,
            durations={name: seconds.get(name, float("inf")) for name in names},
            **(event_options or {}),
        )
        twice = [*(known.events.keys() & found.events.keys())]
        if twice:
            raise ValueError(
                f"{path} and another table have events of the same clips: "
                f"{some_of(sorted(twice))}; name one table for each clip"
            )
        known.events.update(found.events)
        known.weak.update(found.weak)
    of_rows = dict(zip(names, rows["labels"][:], strict=True))
    if labels is None:
        found_names = set(known.classes)
        if not found_names:
            found_names = {name for each in of_rows.values() for name in each or ()}
        ordered = sorted(found_names)
        labels = LabelTable(ordered, ordered)
    labels = labels.with_names()
    return _joined(rows, labels, known, of_rows, seconds)


def _read_rows(
    dataset: str | Path, events: Sequence[str | Path], table: dict[str, Any]
) -> datasets.Dataset:
    """Reads the sounds; those of a folder need no labels where there are events."""
    if "form" in table or not events:
        return read_table(dataset, **table)
    if any(_lies_in(each, dataset) for each in events):  # or they were taken for labels
        return read_table(dataset, form="sounds", **table)
    try:
        return read_table(dataset, **table)
    except FileNotFoundError:
        if not Path(dataset).is_dir():
            raise
        return read_table(dataset, form="sounds", **table)


def _lies_in(path: str | Path, folder: str | Path) -> bool:
    return Path(path).resolve().parent == Path(folder).resolve()


def _joined(
    rows: datasets.Dataset,
    labels: LabelTable,
    known: EventTable,
    of_rows: Mapping[str, Sequence[str] | None],
    seconds: dict[str, float],
) -> EventClips:
    """Decides the weak labels of each clip, and puts them into the rows."""
    weak, judged = [], set()
    for name, own in of_rows.items():
        indices, _ = labels.indices(own)
        given = [labels.names[index] for index in indices]
        if name in known.events:
            given = [event.label for event in known.events[name]]
            given += known.weak.get(name, [])
        elif name in known.weak:
            given = known.weak[name]
        if given or name in known.events or name in known.weak:
            judged.add(name)
        weak.append(sorted(set(given)))
    column = datasets.Dataset.from_dict(
        {"labels": weak}, features=datasets.Features(labels=LABELS)
    )
    if "judged" in rows.column_names:
        rows = rows.remove_columns(["judged"])
    rows = datasets.concatenate_datasets(
        [rows.remove_columns(["labels"]), column], axis=1
    )
    return EventClips(rows, labels, known.events, judged, seconds)


class EventClipReader(ClipReader):
    """A `ClipReader` whose clips have labels of frames.

    Arguments
    ---------
    clips : EventClips
    num_frames : int
        T', the frames that the student scores in a clip.
    frame_seconds : float
        Distance of the frames.
    random_crop : bool
        Whether training takes a part of a longer sound that is drawn anew each time, in
        whole frames; evaluation, and otherwise both, take its beginning.
    **options
        Arguments of `ClipReader`.

    Raises
    ------
    ValueError
        For illegal options.

    Example
    -------
    >>> rows = datasets.Dataset.from_dict({"video_id": [], "labels": []})
    >>> clips = EventClips(rows, LabelTable(["x"], ["x"]), {}, set(), {})
    >>> EventClipReader(clips, num_frames=25, clip_seconds=1.0).num_samples
    32000
    """

    def __init__(
        self,
        clips: EventClips,
        num_frames: int,
        frame_seconds: float = 0.04,
        random_crop: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(clips.labels, **options)
        if self.short_clips != "zero_pad":
            raise ValueError(
                f"short_clips={self.short_clips!r} would repeat events whose labels are"
                " not repeated; use zero_pad"
            )
        self.events, self.judged = clips.events, clips.judged
        self.num_frames, self.frame_seconds = num_frames, frame_seconds
        self.seconds, self.random_crop = clips.seconds, random_crop

    def read(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> Clip:
        """Decodes a row; raises ``UnreadableClip`` if that fails."""
        begin = 0.0
        if self.random_crop and rng is not None:
            row, begin = self._cropped(row, rng)
        clip = super().read(row)
        events = self.events.get(clip.clip_id)
        if begin and events is not None:
            events = [
                each._replace(
                    start_seconds=max(0.0, each.start_seconds - begin),
                    end_seconds=each.end_seconds - begin,
                )
                for each in events
                if each.end_seconds > begin
            ]
        targets = frame_targets(
            events or (), self.labels, self.num_frames, self.frame_seconds
        )
        labels, is_judged = clip.labels, clip.clip_id in self.judged
        if events is not None:  # those before the end of the cut clip
            labels = torch.from_numpy(targets.max(axis=1))
        return clip._replace(
            labels=labels,
            labelled=torch.tensor(float(is_judged)),
            strong=torch.from_numpy(targets),
            strong_known=float(events is not None),
        )

    def _cropped(
        self, row: dict[str, Any], rng: np.random.Generator
    ) -> tuple[dict[str, Any], float]:
        """Draws the part of a sound to read; returns where it begins, s."""
        wanted = self.num_samples / self.sample_rate
        longer = self.seconds.get(str(row["video_id"]), 0.0) - wanted
        if longer < self.frame_seconds:
            return row, 0.0
        begin = float(rng.integers(int(longer / self.frame_seconds) + 1))
        begin *= self.frame_seconds
        start = (row.get("start") or 0.0) + begin
        return row | {"start": start, "end": start + wanted}, begin
