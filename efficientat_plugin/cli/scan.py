"""``efficientat scan``: finds which classes occur when in long sounds."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model,
    add_sounds,
    probability,
    seconds,
    stated_of,
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
    from efficientat_plugin.data.labels import LabelTable
    from efficientat_plugin.tagging.base import SoundTagger


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
    parser.add_argument(
        "--top",
        type=whole_number,
        default=5,
        metavar="N",
        help="maximum number of classes per window (default: %(default)s); audacity "
        "has no maximum",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.3,
        metavar="P",
        help="minimum probability of a class (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        metavar="N",
        help="windows per batch (default: 16, fewer if they are long)",
    )
    parser.add_argument(
        "--format",
        choices=[*FORMATS, "audacity"],
        default="table",
        help="audacity is a label track in which consecutive or overlapping windows of "
        "a class become one label (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write at the end of the run (default: stdout)",
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

    from efficientat_plugin.cli.load_model import load_tagger

    tagger = load_tagger(
        arguments.model,
        arguments.labels,
        arguments.device,
        arguments.trust,
        stated_of(arguments),
    )
    num_read = 0
    with text_output(arguments.output) as file:
        writer = scan_writer(file, arguments.format, tagger.labels)
        for path in paths:
            figure = _new_figure(path, tagger) if arguments.figure else None
            num_windows = 0
            for window in _windows(tagger, path, failures, arguments):
                num_windows += 1
                writer.write(path, window, arguments.top, arguments.threshold)
                file.flush()
                if figure is not None:
                    figure.add(window)
            writer.finish()
            num_read += path not in failures
            if figure is not None and num_windows:
                figure.save(arguments.figure)
        return failures.conclude(num_read)


def _new_figure(path: Path, tagger: "SoundTagger") -> "ScanFigure":
    from efficientat_plugin.cli.figure import ScanFigure

    return ScanFigure(path, tagger)


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


# --- Formats --------------------------------------------------------------------


class WindowWriter:
    """Writes windows in one of the formats of ``tag``.

    Arguments
    ---------
    file : TextIO
    form : str
        Of ``FORMATS``.
    labels : LabelTable
    """

    def __init__(self, file: TextIO, form: str, labels: "LabelTable") -> None:
        self._writer = FORMATS[form](file, has_windows=True)
        self._labels = labels

    def write(
        self, path: Path, window: "ScanWindow", top: int, threshold: float
    ) -> None:
        """Writes a window."""
        from efficientat_plugin.data.labels import likeliest

        tags = likeliest(self._labels, window.probabilities, top, threshold)
        where = (window.start_seconds, window.end_seconds)
        self._writer.write(Finding(path, tags, where))

    def finish(self) -> None:
        """Does nothing; a label track needs the end of the sound."""


def scan_writer(
    file: TextIO, form: str, labels: "LabelTable"
) -> WindowWriter | AudacityWriter:
    """Returns the writer of a format."""
    if form == "audacity":
        return AudacityWriter(file, labels)
    return WindowWriter(file, form, labels)
