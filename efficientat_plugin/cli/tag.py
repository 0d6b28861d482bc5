"""``efficientat tag``: the likeliest classes of sounds."""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from efficientat_plugin.cli.arguments import (
    Commands,
    add_batch_size,
    add_model,
    add_sounds,
    probability,
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
    from efficientat_plugin.inference import AudioTagger

DECODERS = 2  # threads; enough to keep up with a student on a CPU


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser = commands.add_parser(
        "tag", parents=[common], help="the likeliest classes of sounds"
    )
    add_sounds(parser)
    add_model(parser)
    parser.add_argument(
        "--top",
        type=whole_number,
        default=10,
        metavar="N",
        help="classes to name, at most (%(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.0,
        metavar="P",
        help="only classes at least as probable (%(default)s)",
    )
    add_batch_size(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="(%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="written when all is done (stdout)"
    )
    parser.set_defaults(
        run=run,
        after_interrupt="a file of results was not written; run the same command "
        "again, or on the sounds that are missing",
    )


def run(arguments: argparse.Namespace) -> int:
    """Tags what can be read, names what cannot."""
    if arguments.output is not None:
        check_target(arguments.output)
    failures = Failures()
    paths = find_sounds(arguments.sounds, failures)
    if not paths:
        return failures.conclude(0)

    from tqdm import tqdm

    from efficientat_plugin.cli.models import load_tagger

    tagger = load_tagger(
        arguments.model, arguments.labels, arguments.device, arguments.trust
    )
    num_read = 0
    with (
        text_output(arguments.output) as file,
        tqdm(
            decoded_ahead(paths, tagger.sample_rate, DECODERS),
            total=len(paths),
            unit=" sounds",
            disable=hides_progress(arguments.output),
        ) as sounds,
    ):
        writer = FORMATS[arguments.format](file, has_windows=False)
        for finding in findings(tagger, sounds, failures, arguments):
            writer.write(finding)
            file.flush()
            num_read += 1
        return failures.conclude(num_read)


def findings(
    tagger: "AudioTagger",
    sounds: Iterable[Decoded],
    failures: Failures,
    arguments: argparse.Namespace,
) -> Iterator[Finding]:
    """Classes of the sounds that can be read, in their order.

    Short sounds are heard together, long ones by themselves, as they are read.
    """
    from efficientat_plugin.data.decoding import UnreadableClip

    options = {
        "sample_rate": tagger.sample_rate,
        "top_k": arguments.top,
        "threshold": arguments.threshold,
        "batch_size": arguments.batch_size,
    }
    iterator = iter(sounds)
    while group := list(islice(iterator, arguments.batch_size)):
        short = [decoded for decoded in group if decoded.samples is not None]
        tags = tagger.tag_batch([decoded.sound for decoded in short], **options)
        found = {decoded.path: tags[row] for row, decoded in enumerate(short)}
        for decoded in group:
            try:
                if decoded.fault is not None:
                    raise UnreadableClip(decoded.fault)
                if decoded.samples is None:
                    found[decoded.path] = tagger.tag_batch([decoded.path], **options)[0]
                yield Finding(decoded.path, found[decoded.path])
            except UnreadableClip as fault:
                failures.add(decoded.path, fault.reason)
