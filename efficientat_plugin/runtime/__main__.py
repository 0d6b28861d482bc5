"""``python -m efficientat_plugin.runtime MODEL SOUND ...``: tags, without torch."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientat_plugin.cli.arguments import seconds, whole_number
from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.plain_text import shown
from efficientat_plugin.runtime.sessions import SESSIONS
from efficientat_plugin.runtime.tagger import Tagger
from efficientat_plugin.tags import Tag, likeliest


def main(argv: Sequence[str] | None = None) -> int:
    """Tags sounds, or scans them; 1 where some could not be read, 2 where none."""
    parser = argparse.ArgumentParser(
        prog="python -m efficientat_plugin.runtime",
        description="Tags sounds with an exported model, without torch.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file")
    parser.add_argument("sounds", nargs="+", type=Path, metavar="SOUND")
    parser.add_argument(
        "--top", type=whole_number, default=5, help="classes (%(default)s)"
    )
    parser.add_argument(
        "--scan", type=seconds, metavar="SECONDS", help="windows of this length"
    )
    parser.add_argument("--backend", choices=SESSIONS, help="(what is installed)")
    arguments = parser.parse_args(argv)
    try:
        tagger = Tagger(arguments.model, arguments.backend)
    except (OSError, ImportError, ValueError) as error:
        print(shown(error), file=sys.stderr)
        return 2
    num_bad = 0
    for path in arguments.sounds:
        if not path.is_file():
            print(f"{shown(path)}: there is no such file", file=sys.stderr)
            num_bad += 1
            continue
        try:
            if arguments.scan is None:
                print(f"{shown(path)}\n{_line(tagger.tag(path, top_k=arguments.top))}")
                continue
            print(shown(path))
            for window in tagger.scan(path, window_seconds=arguments.scan):
                tags = likeliest(tagger.labels, window.probabilities, arguments.top, 0)
                start, end = window.start_seconds, window.end_seconds
                print(f"{start:9.2f} {end:9.2f}{_line(tags)}")
        except UnreadableClip as fault:
            print(f"{shown(path)}: {shown(fault.reason)}", file=sys.stderr)
            num_bad += 1
        except ValueError as error:
            print(shown(error), file=sys.stderr)
            return 2
    if num_bad:
        return 2 if num_bad == len(arguments.sounds) else 1
    return 0


def _line(tags: Iterable[Tag]) -> str:
    return "  " + ", ".join(f"{shown(tag.name)} {tag.probability:.3f}" for tag in tags)


if __name__ == "__main__":
    sys.exit(main())
