"""``efficientat tag``: prints the most likely classes of sounds."""

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from efficientat_plugin.cli.arguments import (
    Commands,
    add_model,
    add_output,
    add_sounds,
    add_tags,
    places_of_classes,
    whole_number,
)
from efficientat_plugin.cli.inputs import (
    Decoded,
    Failures,
    decoded_ahead,
    find_sounds,
)
from efficientat_plugin.cli.outputs import (
    FORMATS,
    Finding,
    check_target,
    hides_progress,
    text_output,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from efficientat_plugin.tagging.base import SoundTagger

    Scored = tuple[Path, NDArray[np.float32]]  # [K], probabilities

DECODERS = 2  # threads; enough to keep up with a student on a CPU


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "tag",
        parents=[common],
        help="print the most likely classes of sounds",
        description="Predicts the most likely classes of sounds. To resume an "
        "interrupted run that writes a file, rerun the same command.",
    )
    add_sounds(parser)
    add_model(parser)
    add_tags(parser, top=10, threshold=0.0, top_help="")
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        default=16,
        metavar="N",
        help="sounds per batch (default: %(default)s)",
    )
    add_output(parser, FORMATS, "output format")
    parser.set_defaults(
        run=run,
        after_interrupt="with --output FILE, what was computed is kept in FILE.parts; "
        "rerun the same command to resume from there",
    )


def run(arguments: argparse.Namespace) -> int:
    """Tags the sounds that can be read and reports the others."""
    if arguments.output is not None:
        check_target(arguments.output)
    failures = Failures()
    paths = find_sounds(arguments.sounds, failures)
    if not paths:
        return failures.conclude(0)

    from efficientat_plugin.cli.load_model import tagger_of

    tagger = tagger_of(arguments)
    arguments.places = places_of_classes(arguments, tagger.labels)
    write = _print if arguments.output is None else _write
    return failures.conclude(write(tagger, paths, failures, arguments))


def _print(
    tagger: "SoundTagger",
    paths: Sequence[Path],
    failures: Failures,
    arguments: argparse.Namespace,
) -> int:
    """Prints the tags of each sound once computed; returns how many were read."""
    writer, num_read = FORMATS[arguments.format](sys.stdout, has_windows=False), 0
    for group in decoded_groups(tagger, paths, (), arguments):
        for path, probabilities in _scored(tagger, group, failures, arguments):
            writer.write(_finding(tagger, path, probabilities, arguments))
            sys.stdout.flush()
            num_read += 1
    return num_read


def _write(
    tagger: "SoundTagger",
    paths: Sequence[Path],
    failures: Failures,
    arguments: argparse.Namespace,
) -> int:
    """Writes one file at the end, and keeps results until then; as ``_print``."""
    import numpy as np

    from efficientat_plugin.cli.resumed_output import (
        kept_beside,
        settings_of,
        sound_files,
    )

    settings = settings_of(tagger, target=tagger.target)
    with kept_beside(arguments.output, settings) as kept:
        files = sound_files(paths, failures)
        done = {path for path, file in files.items() if file in kept.done}
        for group in decoded_groups(tagger, list(files), done, arguments):
            short = [decoded for decoded in group if decoded.samples is not None]
            long = [[decoded] for decoded in group if decoded.samples is None]
            for together in (short, *long):
                if rows := dict(_scored(tagger, together, failures, arguments)):
                    sounds = [files[path] for path in rows]
                    kept.add(sounds, np.stack(list(rows.values())))
        read = {path: file for path, file in files.items() if file in kept.done}
        if read:
            with text_output(arguments.output) as output:
                writer = FORMATS[arguments.format](output, has_windows=False)
                for path, row in zip(read, kept.rows(read.values()), strict=True):
                    writer.write(_finding(tagger, path, row, arguments))
    return len(read)


def _finding(
    tagger: "SoundTagger",
    path: Path,
    probabilities: "NDArray[np.float32]",
    arguments: argparse.Namespace,
) -> Finding:
    from efficientat_plugin.data.labels import likeliest

    chosen = (arguments.top, arguments.threshold, arguments.places)
    return Finding(path, likeliest(tagger.labels, probabilities, *chosen))


def decoded_groups(
    tagger: "SoundTagger",
    paths: Sequence[Path],
    done: Collection[Path],
    arguments: argparse.Namespace,
) -> Iterator[list[Decoded]]:
    """Yields the sounds not yet done, in order, in groups that form one batch.

    The grouping does not depend on what is already done: the other sounds of a batch
    change a sound's probabilities, if only by rounding.
    """
    from tqdm import tqdm

    size = arguments.batch_size
    groups = [paths[start : start + size] for start in range(0, len(paths), size)]
    groups = [[path for path in group if path not in done] for group in groups]
    missing = [path for group in groups for path in group]
    with tqdm(
        decoded_ahead(missing, tagger.sample_rate, DECODERS),
        initial=len(done),
        total=len(paths),
        unit=" sounds",
        disable=hides_progress(arguments.output),
    ) as progress:
        sounds = iter(progress)
        for group in filter(None, groups):
            yield list(islice(sounds, len(group)))


def _scored(
    tagger: "SoundTagger",
    group: list[Decoded],
    failures: Failures,
    arguments: argparse.Namespace,
) -> "Iterator[Scored]":
    """Scores short sounds in one batch, and each long one by itself as it is read."""
    from efficientat_plugin.data.decoding import UnreadableClip

    rate, size = tagger.sample_rate, arguments.batch_size
    short = [decoded.sound for decoded in group if decoded.samples is not None]
    rows = iter(tagger.probabilities(short, rate, size) if short else ())
    for decoded in group:
        try:
            if decoded.fault is not None:
                raise UnreadableClip(decoded.fault)
            if decoded.samples is not None:
                yield decoded.path, next(rows)
            else:
                [row] = tagger.probabilities([decoded.path], rate, size)
                yield decoded.path, row
        except UnreadableClip as fault:
            failures.add(decoded.path, fault.reason)
