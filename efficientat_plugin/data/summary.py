"""Sums up a data set: its labels, and the headers of its sound."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.sound_files import UnreadableClip, open_sound
from efficientat_plugin.support.plain_text import shown

NAMED = 5  # entries that a line lists
# Clip length if the sounds determine it ("auto"): see `fitting_seconds`
SHARE_COVERED = 0.95
STEP_SECONDS = 0.25
SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 10.0


class RowsSummary(NamedTuple):
    """Holds the results of ``describe``."""

    num_clips: int
    num_unlabelled: int
    class_counts: dict[str, int]  # clips of each class, most frequent first
    num_groups: int  # 0 if there are none
    headers_read: int  # number of clips that the fields below describe
    seconds: tuple[float, float, float]  # shortest, median, longest; 0 if none
    hours: float  # of all clips; an estimate if not every header was read
    sample_rates: dict[int, int]  # Hz: clips, most first
    channels: dict[int, int]  # channels: clips, most first
    num_unreadable: int
    unreadable: tuple[Skipped, ...]  # the first of them
    clip_seconds: float | None  # used of each clip, s; None: all of it
    num_longer: int  # clips longer than that
    hours_used: float

    def __str__(self) -> str:
        return "\n".join([*_label_lines(self), *_sound_lines(self)])


def describe(
    rows: datasets.Dataset,
    max_headers: int = 2000,
    clip_seconds: float | str | None = None,
) -> RowsSummary:
    """Sums up rows, reading only the headers of their sound.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table`` or ``load_rows``.
    max_headers : int
        If there are more clips, this many headers are read, evenly spread.
    clip_seconds : float, "auto" or None
        Length used of each clip, s, from its start; "auto": as ``fitting_seconds``
        computes it; None: all of it.

    Raises
    ------
    ValueError
        If there are no rows, ``max_headers`` is below 1, or "auto" finds no length.

    Example
    -------
    >>> import io, soundfile
    >>> sound = io.BytesIO()
    >>> soundfile.write(sound, np.zeros(16000), 32000, format="WAV")
    >>> rows = datasets.Dataset.from_list(
    ...     [
    ...         {
    ...             "video_id": "a",
    ...             "audio": {"bytes": sound.getvalue()},
    ...             "labels": ["dog"],
    ...         },
    ...         {"video_id": "b", "audio": {"bytes": b"?"}, "labels": ["cat"]},
    ...     ]
    ... )
    >>> print(describe(rows))
    2 clips of 2 classes: 1 each
    0.0 hours; clips last 0.5 to 0.5 s, half of them 0.5 s or less
    32000 Hz (1 clips), 1 channel (1 clips)
    1 of 2 clips could not be opened: b (not decodable: Format not recognised.)
    """
    if not len(rows) or max_headers < 1:
        raise ValueError(
            f"{len(rows)} rows and max_headers={max_headers}: both must be 1 or more"
        )
    class_counts: Counter[str] = Counter()
    num_unlabelled = 0
    for batch in rows.select_columns(["labels"]).iter(batch_size=10_000):
        for labels in batch["labels"]:
            class_counts.update(set(labels or ()))
            num_unlabelled += not labels
    groups = set(rows["group"][:]) if "group" in rows.column_names else set()
    seconds, sample_rates, channels, unreadable = _read_headers(rows, max_headers)
    if clip_seconds == "auto":
        clip_seconds = fitting_seconds(seconds)
    elif isinstance(clip_seconds, str):
        raise ValueError(f"clip_seconds={clip_seconds!r} must be a number or 'auto'")
    scale = len(rows) / max_headers if len(rows) > max_headers else 1.0
    limit = np.inf if clip_seconds is None else clip_seconds
    too_long = 1.01 * limit  # allows for what a codec or a cut adds
    spread = np.quantile(seconds or [0.0], [0, 0.5, 1])
    return RowsSummary(
        num_clips=len(rows),
        num_unlabelled=num_unlabelled,
        class_counts=_most_first(class_counts),
        num_groups=len(groups - {None}),
        headers_read=len(seconds) + len(unreadable),
        seconds=(float(spread[0]), float(spread[1]), float(spread[2])),
        hours=scale * sum(seconds) / 3600,
        sample_rates=_most_first(sample_rates),
        channels=_most_first(channels),
        num_unreadable=len(unreadable),
        unreadable=tuple(unreadable[:NAMED]),
        clip_seconds=clip_seconds,
        num_longer=round(scale * sum(each > too_long for each in seconds)),
        hours_used=scale * float(np.minimum(seconds, limit).sum()) / 3600,
    )


def fitting_seconds(seconds: Sequence[float]) -> float:
    """Computes a clip length that holds nearly all sounds whole, and little silence.

    Arguments
    ---------
    seconds : Sequence[float]
        Lengths of the sounds, s.

    Returns
    -------
    float
        Length that 95 % of the sounds do not exceed, as a multiple of 0.25 s, from
        0.5 s to the 10 s that published students were trained on.

    Raises
    ------
    ValueError
        If no length is known.

    Example
    -------
    >>> fitting_seconds([0.3, 0.4, 0.7]), fitting_seconds([5.0] * 3)
    (0.75, 5.0)
    """
    if not len(seconds):
        raise ValueError(
            "the lengths of the sounds cannot be read; pass --clip_seconds"
        )
    covered = float(np.quantile(seconds, SHARE_COVERED))
    steps = np.ceil((covered - 1e-3) / STEP_SECONDS)  # ignores an excess of 1 ms
    return float(np.clip(STEP_SECONDS * steps, SHORTEST_SECONDS, LONGEST_SECONDS))


def _read_headers(
    rows: datasets.Dataset, max_headers: int
) -> tuple[list[float], Counter[int], Counter[int], list[Skipped]]:
    chosen = np.linspace(0, len(rows) - 1, min(max_headers, len(rows))).round()
    wanted = ("video_id", "audio", "start", "end")
    sounding = rows.select_columns([n for n in wanted if n in rows.column_names])
    seconds, unreadable = [], []
    sample_rates, channels = Counter[int](), Counter[int]()
    for place in tqdm(chosen.astype(int), "Reading headers", unit="clip", disable=None):
        row = sounding[int(place)]
        try:
            with open_sound(row["audio"] or {}) as sound:
                channels[sound.channels] += 1
                sample_rates[sound.samplerate] += 1
                length = sound.count_frames() / sound.samplerate
                seconds.append(_seconds_of(row, length))
        except UnreadableClip as fault:
            unreadable.append(Skipped(str(row["video_id"]), fault.reason))
    return seconds, sample_rates, channels, unreadable


def seconds_of_clips(rows: datasets.Dataset) -> dict[str, float]:
    """Reads how long each clip lasts, from the headers of the files.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.

    Returns
    -------
    dict of str to float
        Seconds by clip id, without clips that cannot be opened.

    Example
    -------
    >>> audio = [{"bytes": b"?", "path": None}]
    >>> rows = datasets.Dataset.from_dict({"video_id": ["a"], "audio": audio})
    >>> seconds_of_clips(rows)
    {}
    """
    wanted = ("video_id", "audio", "start", "end")
    sounding = rows.select_columns([n for n in wanted if n in rows.column_names])
    seconds = {}
    for row in tqdm(sounding, "Reading lengths", unit="clip", disable=None):
        try:
            with open_sound(row["audio"] or {}) as sound:
                length = sound.count_frames() / sound.samplerate
            seconds[str(row["video_id"])] = _seconds_of(row, length)
        except UnreadableClip:
            continue  # counted where it is decoded
    return seconds


def _seconds_of(row: Mapping[str, Any], length: float) -> float:
    """Returns the length of a row's clip in a file of ``length``, both in s."""
    start, end = row.get("start") or 0.0, row.get("end")
    if start >= length > 0:
        raise UnreadableClip(
            f"its segment starts at {start:g} s, but the file ends at {length:g} s"
        )
    return (length if end is None else min(end, length)) - start


def _most_first(counts: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _label_lines(summary: RowsSummary) -> list[str]:
    counts = summary.class_counts
    text = f"{summary.num_clips} clips, without labels"
    if counts:
        text = f"{summary.num_clips} clips of {len(counts)} classes"
        rare, common = list(counts)[-1], list(counts)[0]
        fewest, most = (f"{counts[name]} ({shown(name)})" for name in (rare, common))
        each = f"{fewest} to {most} clips"
        if counts[rare] == counts[common]:
            each = str(counts[rare])
        text += f": {each} each"
    if summary.num_unlabelled and counts:
        text += f"; {summary.num_unlabelled} unlabelled"
    if summary.num_groups:
        text += f"; {summary.num_groups} groups"
    return [text]


def _sound_lines(summary: RowsSummary) -> list[str]:
    sampled = summary.headers_read < summary.num_clips
    lines = []
    about = "about " if sampled else ""
    if summary.sample_rates:
        shortest, median, longest = summary.seconds
        lines.append(
            f"{about}{summary.hours:.1f} hours; clips last "
            f"{shortest:.3g} to {longest:.3g} s, half of them {median:.3g} s or less"
        )
        rates = [f"{rate} Hz ({n} clips)" for rate, n in summary.sample_rates.items()]
        kinds = [
            f"{n_channels} channel{'s' * (n_channels > 1)} ({n} clips)"
            for n_channels, n in summary.channels.items()
        ]
        lines.append(", ".join(rates[:NAMED] + kinds[:NAMED]))
    if summary.num_longer:
        lines.append(
            f"{about}{summary.num_longer} clips are longer than "
            f"{summary.clip_seconds:g} s; only their first {summary.clip_seconds:g} s "
            f"are used ({summary.hours_used:.2f} of {summary.hours:.2f} hours)"
        )
    if summary.num_unreadable:
        some = shown(
            ", ".join(f"{name} ({reason})" for name, reason in summary.unreadable)
        )
        lines.append(
            f"{summary.num_unreadable} of {summary.headers_read} clips could not be "
            f"opened: {some}"
        )
    if sampled:
        lines.append(
            f"{summary.headers_read} of {summary.num_clips} sound headers were read, "
            "evenly spread"
        )
    return lines
