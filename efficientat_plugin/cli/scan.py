"""``efficientat scan``: finds which classes occur when in long sounds."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model,
    add_output,
    add_sounds,
    add_tags,
    places_of_classes,
    seconds,
    whole_number,
)
from efficientat_plugin.cli.inputs import Failures, find_sounds
from efficientat_plugin.cli.label_track import AudacityWriter
from efficientat_plugin.cli.outputs import (
    FORMATS,
    Finding,
    check_target,
    hides_progress,
    text_output,
)
from efficientat_plugin.support.plain_text import shown

if TYPE_CHECKING:
    from efficientat_plugin.cli.figure import ScanFigure
    from efficientat_plugin.contracts import ScanWindow
    from efficientat_plugin.tagging.base import SoundTagger

WINDOW_FORMATS = FORMATS | {"audacity": AudacityWriter}


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "scan", parents=[common], help="find which classes occur when in long sounds"
    )
    add_sounds(parser)
    add_model(parser)
    parser.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="window length (default: length of the clips the model was trained on)",
    )
    parser.add_argument(
        "--hop",
        type=seconds,
        metavar="SECONDS",
        help="time between window starts, at most a window (default: half a window)",
    )
    add_tags(parser, top=5, threshold=0.3, top_help=" per window, but for audacity")
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        metavar="N",
        help="windows per batch (default: 16, fewer if they are long)",
    )
    add_output(
        parser,
        WINDOW_FORMATS,
        "audacity is a label track in which consecutive or overlapping windows of a "
        "class become one label",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="PNG",
        help="plot the log-mel and the most likely classes over time; takes one sound",
    )
    parser.set_defaults(
        run=run,
        after_interrupt="no output file was written; run the same command again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Scans the sounds that can be read and reports the others."""
    if arguments.output is not None:
        check_target(arguments.output)
    if arguments.figure is not None:
        check_target(arguments.figure, [".png"])
    failures = Failures()
    paths = find_sounds(arguments.sounds, failures)
    if not paths:
        return failures.conclude(0)
    for option, is_given in (
        ("--figure", arguments.figure is not None),
        ("--format audacity", arguments.format == "audacity"),
    ):
        if is_given and len(paths) > 1:
            raise ValueError(
                f"{option} takes one sound, {len(paths)} were given; scan each "
                "separately"
            )

    from efficientat_plugin.cli.load_model import tagger_of
    from efficientat_plugin.data.labels import likeliest

    tagger = tagger_of(arguments)
    places = places_of_classes(arguments, tagger.labels)
    num_read = 0
    with text_output(arguments.output) as file:
        writer = WINDOW_FORMATS[arguments.format](file, has_windows=True)
        # Else classes that are more probable would split the labels of a track.
        top = None if isinstance(writer, AudacityWriter) else arguments.top
        for path in paths:
            figure = _new_figure(path, tagger, places) if arguments.figure else None
            num_windows = 0
            for window in _windows(tagger, path, failures, arguments):
                num_windows += 1
                tags = likeliest(
                    tagger.labels,
                    window.probabilities,
                    top,
                    arguments.threshold,
                    places,
                )
                where = (window.start_seconds, window.end_seconds)
                writer.write(Finding(path, tags, where))
                file.flush()
                if figure is not None:
                    figure.add(window)
            if isinstance(writer, AudacityWriter):
                writer.finish()
            num_read += path not in failures
            if figure is not None and num_windows:
                figure.save(arguments.figure)
        return failures.conclude(num_read)


def _new_figure(
    path: Path, tagger: "SoundTagger", places: list[int] | None
) -> "ScanFigure":
    from efficientat_plugin.cli.figure import ScanFigure

    return ScanFigure(path, tagger, places)


def _windows(
    tagger: "SoundTagger",
    path: Path,
    failures: Failures,
    arguments: argparse.Namespace,
) -> "Iterator[ScanWindow]":
    """Yields the windows of a sound as far as it can be read, with a progress bar."""
    from tqdm import tqdm

    from efficientat_plugin.data.decoding import UnreadableClip

    end_seconds = 0.0
    with tqdm(
        desc=shown(path.name),
        unit=" s",
        disable=hides_progress(arguments.output),
        leave=False,
    ) as bar:
        try:
            for window in tagger.scan(
                path,
                window_seconds=arguments.window,
                hop_seconds=arguments.hop,
                batch_size=arguments.batch_size,
            ):
                end_seconds = window.end_seconds
                bar.n = round(end_seconds, 1)  # sums of rounded steps would drift
                bar.update(0)
                yield window
        except UnreadableClip as fault:
            until = f"read until {end_seconds:.2f} s, then: " if end_seconds else ""
            failures.add(path, until + fault.reason, is_partly_read=end_seconds > 0)
            return
    if not end_seconds:
        failures.add(path, f"it is shorter than a sample at {tagger.sample_rate} Hz")
