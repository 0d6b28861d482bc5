"""``efficientat scan``: which classes are where in long sounds."""

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
    """What the command takes."""
    parser = commands.add_parser(
        "scan", parents=[common], help="which classes are where in long sounds"
    )
    add_sounds(parser)
    add_model(parser)
    parser.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="length of a window (that of the clips the model was trained on)",
    )
    parser.add_argument(
        "--hop",
        type=seconds,
        metavar="SECONDS",
        help="from one window to the next, at most a window (half of it)",
    )
    parser.add_argument(
        "--top",
        type=whole_number,
        default=5,
        metavar="N",
        help="classes of a window, at most (%(default)s); audacity names all",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.3,
        metavar="P",
        help="only classes at least as probable (%(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        metavar="N",
        help="windows to hear at once (16, or fewer of long ones)",
    )
    parser.add_argument(
        "--format",
        choices=[*FORMATS, "audacity"],
        default="table",
        help="audacity is a label track: windows of a class that follow each other or "
        "overlap become one label (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="written when all is done (stdout)"
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="PNG",
        help="log-mel of the one sound, and its likeliest classes over time",
    )
    parser.set_defaults(
        run=run,
        after_interrupt="a file of results was not written; run the same command again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Scans what can be read, names what cannot."""
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
                f"{option} is of one sound, {len(paths)} were given; scan each by "
                "itself"
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
    """The windows of a sound, as far as it can be read, under a bar."""
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
                bar.n = round(end_seconds, 1)  # rounded steps would not add up to it
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
    """Windows in a format that tagging has too.

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
        """One more."""
        from efficientat_plugin.data.labels import likeliest

        tags = likeliest(self._labels, window.probabilities, top, threshold)
        where = (window.start_seconds, window.end_seconds)
        self._writer.write(Finding(path, tags, where))

    def finish(self) -> None:
        """The sound has ended."""


def scan_writer(
    file: TextIO, form: str, labels: "LabelTable"
) -> WindowWriter | AudacityWriter:
    """What writes windows in a format."""
    if form == "audacity":
        return AudacityWriter(file, labels)
    return WindowWriter(file, form, labels)
