"""``efficientat detect``: finds what sounds when, and writes it as events."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model,
    add_output,
    add_sounds,
)
from efficientat_plugin.cli.event_formats import (
    EVENT_FORMATS,
    EVENT_TABLES,
    EVENT_TRACKS,
    SUFFIXES,
    files_of_sounds,
    write_events,
)
from efficientat_plugin.cli.event_options import add_event_options, event_options_of
from efficientat_plugin.cli.inputs import Failures, find_sounds
from efficientat_plugin.cli.outputs import check_target, hides_progress
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from efficientat_plugin.contracts import Event
    from efficientat_plugin.data.labels import LabelTable
    from efficientat_plugin.tagging.base import SoundTagger

    Found = dict[Path, list[Event]]

logger = logging.getLogger(__name__)

KEPT = "events"  # with .parts: what a run into a folder resumes from
EXACT = "<f8"  # float32 tells times in an hour of sound to a quarter of a ms
BAR_DELAY = 1.0  # s; short sounds have no bar of their own


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "detect",
        parents=[common],
        help="find events: what sounds from when to when",
        description="Detects sound events: the classes that sound, each with its start "
        "and end in seconds from the start of the sound, in sound of any length. To "
        "resume an interrupted run that writes files, rerun the same command.",
        epilog="Example: efficientat detect street.wav --model fmn10_tf_256_strong "
        "--classes Dog,Car --threshold 0.3 --format audacity --output labels.txt. "
        "Times are in seconds (S), probabilities from 0 to 1 (P).",
    )
    add_sounds(parser)
    add_model(parser)
    add_event_options(parser)
    add_output(
        parser,
        EVENT_FORMATS,
        f"{', '.join(EVENT_TABLES)} are tables of any number of sounds; "
        f"{', '.join(EVENT_TRACKS)} (labels, subtitles) hold one sound",
        default="csv",
    )
    parser.add_argument(
        "--output-folder",
        type=Path,
        metavar="DIR",
        help="folder in which a file is written for each sound, named after it, at the "
        "end of the run; made if there is none",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="PNG",
        help="plot the log-mel over frequency and time, and the events below it, a "
        "lane for each class; takes one sound",
    )
    parser.set_defaults(
        run=run,
        after_interrupt="with --output FILE, what was computed is kept in FILE.parts, "
        f"with --output-folder DIR in DIR/{KEPT}.parts; rerun the same command to "
        "resume from there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Detects events in the sounds that can be read and reports the others."""
    _check_outputs(arguments)
    failures = Failures()
    paths = find_sounds(arguments.sounds, failures)
    if not paths:
        return failures.conclude(0)
    files = _files_of(paths, arguments)

    from efficientat_plugin.cli.load_model import tagger_of

    tagger = tagger_of(arguments)
    options = event_options_of(arguments, tagger)
    tagger.event_stream(**options)  # refuses what is illegal before anything is written
    if tagger.frame_samples is None:
        from efficientat_plugin.tagging.detection import SCORES_CLIPS

        logger.warning(SCORES_CLIPS, shown(arguments.model))
    if files:
        found = _write(tagger, files, failures, options, arguments)
    else:
        found = _print(tagger, paths, failures, options, arguments)
    if arguments.figure is not None and found:
        from efficientat_plugin.cli.figure import EventFigure

        for path, events in found.items():
            EventFigure(path, tagger, events).save(arguments.figure)
    return failures.conclude(sum(path not in failures for path in found))


# --- Where results go ---------------------------------------------------------------


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises a ``ValueError`` for outputs that cannot be written."""
    output, folder = arguments.output, arguments.output_folder
    if output is not None and folder is not None:
        raise ValueError("give --output or --output-folder, not both")
    if output is not None:
        check_target(output)
    if folder is not None:
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"--output-folder {shown(folder)} is not a folder")
        check_target(folder / KEPT if folder.is_dir() else folder)
    if arguments.figure is not None:
        check_target(arguments.figure, [".png"])


def _files_of(
    paths: Sequence[Path], arguments: argparse.Namespace
) -> dict[Path, list[Path]]:
    """Returns the sounds of each file to write; refuses files that cannot hold them."""
    for option, is_given, advice in (
        ("--figure", arguments.figure is not None, "give one"),
        (
            f"--format {arguments.format}",
            arguments.format in EVENT_TRACKS and arguments.output_folder is None,
            f"give --output-folder DIR, or --format {' or '.join(EVENT_TABLES)}",
        ),
    ):
        if is_given and len(paths) > 1:
            raise ValueError(
                f"{option} takes one sound, {len(paths)} were given; {advice}"
            )
    if arguments.output is not None:
        files = {arguments.output: list(paths)}
    elif arguments.output_folder is not None:
        folder, suffix = arguments.output_folder, SUFFIXES[arguments.format]
        names = _names_below(paths)
        by_name = files_of_sounds(names, folder, suffix)
        files = {by_name[name]: [path] for name, path in names.items()}
    else:
        return {}
    given = {os.path.realpath(path) for path in paths}
    if taken := [file for file in files if os.path.realpath(file) in given]:
        raise ValueError(
            f"the sound {shown(taken[0])} would be replaced by its events; give "
            "another output"
        )
    return files


def _names_below(paths: Sequence[Path]) -> dict[str, Path]:
    """Names sounds by their paths below the folder that holds all of them."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    top = os.path.commonpath([path.parent for path in absolute])
    names = [path.relative_to(top).as_posix() for path in absolute]
    return dict(zip(names, paths, strict=True))


def _print(
    tagger: "SoundTagger",
    paths: Sequence[Path],
    failures: Failures,
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> "Found":
    """Prints the events of each sound once it is read; returns those for a figure."""
    writer, found = EVENT_FORMATS[arguments.format](sys.stdout), {}
    for path, events in _detected(tagger, paths, failures, options, arguments):
        writer.write(path, events)
        sys.stdout.flush()
        found[path] = events
    writer.finish()
    return found


def _write(
    tagger: "SoundTagger",
    files: dict[Path, list[Path]],
    failures: Failures,
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> "Found":
    """Writes files at the end, and keeps results until then; as ``_print``."""
    from efficientat_plugin.cli.resumed_output import (
        kept_beside,
        settings_of,
        sound_files,
    )

    output = arguments.output
    if output is None:
        arguments.output_folder.mkdir(exist_ok=True)
        output = arguments.output_folder / KEPT
    settings = settings_of(tagger, target=tagger.target, **options)
    with kept_beside(output, settings, EXACT) as kept:
        paths = [path for together in files.values() for path in together]
        sounds, found = sound_files(paths, failures), {}
        done = {path: sound for path, sound in sounds.items() if sound in kept.done}
        for path, row in zip(done, kept.rows(done.values()), strict=True):
            found[path] = _from_row(row, tagger.labels)
        left = [path for path in sounds if path not in done]
        each = _detected(tagger, left, failures, options, arguments, len(done))
        for path, events in each:
            found[path] = events
            if path not in failures:
                kept.add([sounds[path]], [_row_of(events, tagger.labels)])
        for file, together in files.items():
            read = {str(path): found[path] for path in together if path in found}
            if read:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_events(read, file, arguments.format)
    return found


# --- Events of sounds ---------------------------------------------------------------


def _row_of(events: "Iterable[Event]", labels: "LabelTable") -> "NDArray":
    """Returns events as numbers: class, start, end and score of each."""
    import numpy as np

    place = {name: index for index, name in enumerate(labels.names)}
    rows = [(place[event.label], *event[1:]) for event in events]
    return np.array(rows, EXACT).reshape(-1)


def _from_row(row: "NDArray", labels: "LabelTable") -> "list[Event]":
    """Undoes ``_row_of``."""
    from efficientat_plugin.contracts import Event

    return [
        Event(labels.names[int(place)], *numbers)
        for place, *numbers in row.reshape(-1, 4).tolist()
    ]


def _detected(
    tagger: "SoundTagger",
    paths: Sequence[Path],
    failures: Failures,
    options: dict[str, Any],
    arguments: argparse.Namespace,
    num_done: int = 0,
) -> "Iterator[tuple[Path, list[Event]]]":
    """Yields the events of each sound, up to where it cannot be read."""
    from tqdm import tqdm

    is_hidden = hides_progress(arguments.output or arguments.output_folder)
    with tqdm(
        paths,
        initial=num_done,
        total=num_done + len(paths),
        unit=" sounds",
        disable=is_hidden or num_done + len(paths) == 1,
    ) as progress:
        for path in progress:
            events = _events_of(tagger, path, failures, options, is_hidden)
            if events is not None:
                yield path, events


def _events_of(
    tagger: "SoundTagger",
    path: Path,
    failures: Failures,
    options: dict[str, Any],
    hides_bar: bool,
) -> "list[Event] | None":
    """Returns the events of a sound, sorted by start; None if nothing can be read."""
    from tqdm import tqdm

    from efficientat_plugin.data.decoding import UnreadableClip, decode_blocks

    stream, rate = tagger.event_stream(**options), tagger.sample_rate
    events: list[Event] = []
    num_samples = 0
    with tqdm(
        desc=shown(path.name),
        unit=" s",
        disable=hides_bar,
        delay=BAR_DELAY,
        leave=False,
    ) as bar:
        try:
            for block in decode_blocks(path, rate):
                num_samples += len(block)
                events += stream.feed(block)
                bar.n = round(num_samples / rate, 1)
                bar.update(0)
            if not num_samples:
                raise UnreadableClip(f"it is shorter than a sample at {rate} Hz")
        except UnreadableClip as fault:
            is_partly_read = num_samples > 0
            until = f"read until {num_samples / rate:.2f} s, then: "
            reason = (until if is_partly_read else "") + fault.reason
            failures.add(path, reason, is_partly_read)
            if not is_partly_read:
                return None
    events += stream.finish()
    return sorted(events, key=lambda event: (event.start_seconds, event.label))
