"""Makes soundscapes: events at known times on backgrounds, for event detection.

Strong labels are rare and dear. A soundscape has them by its making: recordings of
single events, or synthetic ones, are mixed at drawn times, levels and overlaps. The
library ``scaper`` (last release in 2021) does alike, but needs ffmpeg, a program that
pip does not install, and bindings of SoX, and does not split by recording.
"""

import csv
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import soundfile
from tqdm import tqdm

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_rows import DcaseWriter, decimal
from efficientat_plugin.data.labelled import runs_of, without_labels
from efficientat_plugin.data.parquet import to_pcm
from efficientat_plugin.data.soundscape_mixing import (
    Sounds,
    Soundscape,
    SoundscapeOptions,
    mix_soundscape,
)
from efficientat_plugin.data.soundscape_sources import (
    RecordedBackgrounds,
    RecordedEvents,
    SyntheticBackgrounds,
    SyntheticEvents,
)
from efficientat_plugin.data.splits import Split, split_digest, split_rows
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.files import (
    atomic_file,
    atomic_folder,
    explain_write_errors,
    read_text,
)
from efficientat_plugin.support.interruptions import uninterrupted
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES
from efficientat_plugin.support.plain_text import cell, shown, some_of

logger = logging.getLogger(__name__)

SOUNDSCAPE_VERSION = 1  # raise it whenever soundscapes of the same settings change
FORMATS = ("flac", "wav")
MADE = "made_of.json"  # settings and sounds, which tell folders of soundscapes apart
PLACED = ("filename", "onset", "offset", "event_label", "snr_db", "sound", "background")


class Soundscapes(NamedTuple):
    """What ``make_soundscapes`` has made."""

    folder: Path
    num_clips: dict[str, int]  # by side
    num_events: dict[str, int]  # by class
    left_out: list[str]  # what was left out, in words


def make_soundscapes(
    folder: str | Path,
    number: int = 200,
    sounds: datasets.Dataset | str | Path | None = None,
    backgrounds: datasets.Dataset | str | Path | None = None,
    *,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    file_format: str = "flac",
    seed: int = 0,
    **options: Any,
) -> Soundscapes:
    """Writes soundscapes to train, validate and test on, with all of their labels.

    Recordings of one group (``group_column``), or segments of one file, are on one
    side; a column ``split`` gives the sides, if there is one. A soundscape is a
    function of (seed, its side, its number) and the recordings. The folder gets its
    name once all of it is written; one that holds these very soundscapes is not made
    again::

        train/soundscape-0-000000.flac, ...   likewise valid/, test/
        metadata.jsonl     file_name, labels (of whole clips), split: `read_table` reads
                           the folder
        events/train.tsv   filename, onset, offset, event_label: `read_events` reads it
        events/placed.csv  the same with levels, and the recordings that were mixed

    Arguments
    ---------
    folder : str or Path
        Folder to make.
    number : int
        Number of soundscapes on all sides.
    sounds : datasets.Dataset, str, Path or None
        Recordings of single events with one class each, from ``read_table``, or what
        it reads. None: synthetic events of 9 of AudioSet's classes.
    backgrounds : datasets.Dataset, str, Path or None
        Recordings without events of these classes; a path is read without labels. None:
        noise of various slopes.
    valid_share, test_share : float
        Shares of the soundscapes, and of the recordings; 0: none.
    file_format : str
        "flac" or "wav", of 16 bits.
    seed : int
        0 or more; another seed makes others.
    **options
        Arguments of ``SoundscapeOptions``, such as ``clip_seconds`` or ``snr_db``.

    Returns
    -------
    Soundscapes

    Raises
    ------
    FileExistsError
        If the folder holds something else.
    ValueError
        If an argument is not legal, or a side has no recordings, or a given split
        divides a group.
    UnreadableClip
        If the recordings of a class hold no sound.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "scapes"
    >>> made = make_soundscapes(folder, 4, clip_seconds=2.0, event_seconds=(0.25, 1.0))
    >>> made.num_clips
    {'train': 2, 'valid': 1, 'test': 1}
    >>> from efficientat_plugin import read_events, read_table
    >>> table = read_events(folder / "events" / "train.tsv")
    >>> set(table.events) <= {*read_table(folder)["video_id"]}
    True
    """
    settings = SoundscapeOptions(**options)
    if file_format not in FORMATS or seed < 0:
        raise ValueError(
            f"file_format={file_format!r} must be one of {', '.join(FORMATS)}, and "
            f"seed={seed} 0 or more"
        )
    counts = _counts(number, valid_share, test_share)
    splitting = (valid_share, test_share, seed)
    made: dict[str, Any] = {"version": SOUNDSCAPE_VERSION, "number": number}
    made |= {"valid_share": valid_share, "test_share": test_share, "seed": seed}
    made |= {"file_format": file_format} | asdict(settings)
    events, made["sounds"] = _opened(sounds, settings, *splitting)
    behind, made["backgrounds"] = _opened(backgrounds, settings, *splitting, True)
    _refuse_empty_sides(counts, events, behind)
    made = json.loads(json.dumps(made))  # as it is read again
    if (found := _made_before(Path(folder), made)) is not None:
        return found
    try:
        with explain_write_errors(folder), atomic_folder(folder) as partial:
            writer = _Writer(partial, file_format, settings.sample_rate)
            for side, place in _places(counts):
                rng = _generator(seed, side, place)
                scape = mix_soundscape(side, events, behind, settings, rng)
                writer.write(side, f"soundscape-{seed}-{place:06d}", scape)
            result = writer.finish(Path(folder), {**events.unusable, **behind.unusable})
            content = {"made_of": made} | result._asdict()
            del content["folder"]
            (partial / MADE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError:
        # Another process of the run may have made the same ones first.
        if (found := _made_before(Path(folder), made)) is None:
            raise
        return found
    for each in result.left_out:
        logger.warning("%s: left out %s", folder, each)
    return result


def _counts(number: int, valid_share: float, test_share: float) -> dict[str, int]:
    """Returns how many soundscapes each side gets; at least one, if it has a share."""
    if min(valid_share, test_share) < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share={valid_share} and test_share={test_share} must be 0 or more "
            "and leave something to train on"
        )
    shares = {"valid": valid_share, "test": test_share}
    counts = {s: max(1, round(number * share)) for s, share in shares.items() if share}
    counts = {"train": number - sum(counts.values())} | counts
    if counts["train"] < 1:
        raise ValueError(
            f"number={number} is too few soundscapes for {', '.join(counts)}; each "
            "needs at least one"
        )
    return counts


def _refuse_empty_sides(
    counts: Mapping[str, int], events: Sounds, backgrounds: Sounds
) -> None:
    for sounds, what in ((events, "sounds"), (backgrounds, "backgrounds")):
        if empty := [side for side in counts if not sounds.classes(side)]:
            raise ValueError(
                f"the {what} have no usable recordings for {' and '.join(empty)}; give "
                "more of them, or set valid_share or test_share to 0"
            )


def _opened(
    given: datasets.Dataset | str | Path | None,
    settings: SoundscapeOptions,
    valid_share: float,
    test_share: float,
    seed: int,
    is_background: bool = False,
) -> tuple[Sounds, dict[str, str] | None]:
    """Returns what draws sounds, and a digest of the recordings of each side."""
    if given is None:
        if is_background:
            return SyntheticBackgrounds(settings), None
        return SyntheticEvents(settings), None
    rows = given
    if isinstance(rows, str | Path):
        rows = read_table(rows, form="sounds" if is_background else "auto")
    if is_background:
        rows = without_labels(rows)
    try:
        split = _split(rows, valid_share, test_share, seed)
    except ValueError as error:
        what = "backgrounds" if is_background else "sounds"
        raise ValueError(f"the {what} cannot be split: {error}") from error
    digest = split_digest(rows, split)
    if is_background:
        return RecordedBackgrounds(rows, split, settings), digest
    return RecordedEvents(rows, split, settings), digest


def _split(
    rows: datasets.Dataset, valid_share: float, test_share: float, seed: int
) -> Split:
    """Splits recordings by their column of splits or at random, by group."""
    if "split" in rows.column_names:
        split = runs_of(rows, "given", None, valid_share, test_share, seed)["given"]
        _refuse_divided(rows, split)
        return split
    if len({name for names in rows["labels"] for name in names or ()}) < 2:
        # There are no classes to keep in proportion.
        rows = without_labels(rows)
    groups = rows["group"][:] if "group" in rows.column_names else [None] * len(rows)
    num_units = groups.count(None) + len({*groups} - {None})
    if num_units >= len(Split._fields):  # a few long backgrounds give each side one
        valid_share = max(valid_share, 1 / num_units) if valid_share else 0.0
        test_share = max(test_share, 1 / num_units) if test_share else 0.0
    return split_rows(rows, valid_share, test_share, seed)


def _refuse_divided(rows: datasets.Dataset, split: Split) -> None:
    if "group" not in rows.column_names:
        return
    groups, sides = rows["group"][:], defaultdict(set)
    for side, places in split._asdict().items():
        for place in places:
            sides[groups[place]].add(side)
    divided = [str(g) for g, on in sides.items() if g is not None and len(on) > 1]
    if divided:
        raise ValueError(
            f"the column of splits puts recordings of one group on several sides: "
            f"{some_of(divided)}; leave it out to have them split by group"
        )


def _made_before(folder: Path, made: dict[str, Any]) -> Soundscapes | None:
    """Returns what a folder holds; None: nothing. Refuses it if that is other."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        content = json.loads(read_text(folder / MADE, MAX_SETTINGS_BYTES))
        other = differences_of(content.pop("made_of"), made)
        if not other:
            return Soundscapes(folder, **content)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        other = []  # not soundscapes
    listed = f" ({'; '.join(map(str, other[:5]))})" if other else ""
    raise FileExistsError(
        f"{folder} already exists and holds other things{listed}; delete it, or name "
        "another folder"
    )


def _places(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    with tqdm(total=sum(counts.values()), desc="soundscapes", unit="clip") as bar:
        for side, count in counts.items():
            for number in range(count):
                yield side, number
                bar.update()


def _generator(seed: int, side: str, number: int) -> np.random.Generator:
    # PCG64 by name, because the generator behind `default_rng` may change.
    entropy = [seed, Split._fields.index(side), number]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class _Writer:
    """Writes soundscapes and their labels into a folder."""

    def __init__(self, folder: Path, file_format: str, sample_rate: int) -> None:
        self._folder, self._format, self._rate = folder, file_format, sample_rate
        self._events: dict[str, dict[str, list[Event]]] = {}  # by side and file
        self._placed: list[list[str]] = []
        self._weak: list[str] = []
        self._no_place = 0

    def write(self, side: str, name: str, scape: Soundscape) -> None:
        """Writes the sound of a soundscape, and keeps its labels."""
        path = f"{side}/{name}.{self._format}"
        (self._folder / side).mkdir(exist_ok=True)
        with uninterrupted():
            soundfile.write(
                self._folder / path, to_pcm(scape.waveform), self._rate, "PCM_16"
            )
        labels = sorted({event.label for event in scape.events})
        self._events.setdefault(side, {})[path] = scape.events
        self._weak.append(
            json.dumps({"file_name": path, "labels": labels, "split": side}) + "\n"
        )
        for (label, start, end, _), snr_db, source in scape.placed:
            times = (decimal(start), decimal(end))
            names = (cell(source), cell(scape.background))
            self._placed.append([path, *times, cell(label), f"{snr_db:.3f}", *names])
        self._no_place += scape.num_left_out

    def finish(self, final: Path, unusable: Mapping[str, str]) -> Soundscapes:
        """Writes the tables; ``final`` is the name that the folder gets."""
        with atomic_file(self._folder / "metadata.jsonl") as file:
            file.writelines(self._weak)
        (self._folder / "events").mkdir()
        for side, events in self._events.items():
            with atomic_file(self._folder / "events" / f"{side}.tsv") as file:
                writer = DcaseWriter(file)
                for path, each in events.items():
                    writer.write(path, each)
        with atomic_file(self._folder / "events" / "placed.csv") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows([PLACED, *self._placed])
        counts = Counter(
            event.label
            for events in self._events.values()
            for each in events.values()
            for event in each
        )
        return Soundscapes(
            final,
            {side: len(events) for side, events in self._events.items()},
            dict(sorted(counts.items())),
            self._left_out(unusable),
        )

    def _left_out(self, unusable: Mapping[str, str]) -> list[str]:
        texts = []
        if self._no_place:
            count = f"{self._no_place} event{'s' if self._no_place > 1 else ''}"
            texts.append(f"{count}, for which there was no place")
        by_reason: defaultdict[str, list[str]] = defaultdict(list)
        for name, reason in unusable.items():
            by_reason[reason].append(name)
        for reason, names in by_reason.items():
            count = f"{len(names)} recording{'s' if len(names) > 1 else ''}"
            texts.append(f"{count} because {shown(reason)}: {some_of(names)}")
        return texts
