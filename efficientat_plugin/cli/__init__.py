"""The command line: ``efficientat list|tag|scan|detect|embed|evaluate|info|export``.

Each command has a module that defines its options (``add_parser``) and runs it
(``run``). They share ``arguments`` (legal values), ``inputs`` (finding and decoding
files), ``load_model`` (by name, file or folder), ``outputs`` (formats, atomic writes)
and ``resumed_output`` (what an interrupted run resumes from).

Heavy modules are imported only when a command needs them, so ``--help`` and ``list``
respond at once.

Exit codes: 0 success; 1 some inputs could not be read, and the results of the others
are written; 2 wrong usage, or nothing could be read; 130 interrupted; 141 the reader
of stdout closed the pipe.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from efficientat_plugin import __version__
from efficientat_plugin.cli import (
    detect,
    embed,
    evaluate,
    export,
    info,
    listing,
    scan,
    tag,
)
from efficientat_plugin.support.console import (
    escape_what_stdout_lacks,
    logging_to_console,
)
from efficientat_plugin.support.plain_text import shown

__all__ = ["main"]

FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Arguments
    ---------
    argv : sequence of str or None
        Arguments after the program's name; None: those of this process.

    Returns
    -------
    int
        The exit code.

    Example
    -------
    >>> main(["--version"])
    efficientat 0.1.0
    0
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed why
        return int(stop.code or 0)
    escape_what_stdout_lacks()
    try:
        with logging_to_console("stderr", prefix="efficientat: "):
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        how_to_resume = arguments.after_interrupt.format_map(vars(arguments))
        print(f"efficientat: interrupted; {how_to_resume}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as `| head` does
        # Else Python reports the closed pipe when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"efficientat: {_sentence(error)}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="efficientat",
        description="Tags, scans and embeds sound with small CNNs, detects events "
        "in it, and scores the CNNs.",
        epilog="Exit codes: 0 success; 1 some inputs could not be read; "
        "2 wrong usage, or nothing could be read; 130 interrupted.",
    )
    parser.add_argument(
        "--version", action="version", version=f"efficientat {__version__}"
    )
    parser.set_defaults(debug=False, after_interrupt="run the same command again")
    common = argparse.ArgumentParser(add_help=False)
    for one in (parser, common):  # before or after the command
        one.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where in the code an error comes from",
        )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (listing, tag, scan, detect, embed, evaluate, info, export):
        module.add_parser(commands, common)
    return parser


def _sentence(error: Exception) -> str:
    """Returns an error as one line; an unexpected error includes its type."""
    text = shown(" ".join(str(error).split()))
    if isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text}; --debug shows where"
