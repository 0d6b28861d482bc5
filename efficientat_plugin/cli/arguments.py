"""What may stand on the command line: legal values, and options that commands share."""

import argparse
import math
from pathlib import Path

Commands = argparse._SubParsersAction  # which has no public name

MODEL_HELP = (
    "a name of `efficientat list`; a file of weights; names or files joined by commas, "
    "an ensemble; a folder with hyperparams.yaml; or an ONNX file of `efficientat "
    "export`, which needs no torch"
)


def whole_number(text: str) -> int:
    """A number of things, at least one.

    Example
    -------
    >>> whole_number("16")
    16
    """
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is given; give a whole number, 1 or more"
        )
    return int(text)


def probability(text: str) -> float:
    """From 0 to 1.

    Example
    -------
    >>> probability("0.3")
    0.3
    """
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give one from 0 to 1")
    return value


def seconds(text: str) -> float:
    """Above 0.

    Example
    -------
    >>> seconds("2.5")
    2.5
    """
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give seconds above 0")
    return value


def add_sounds(parser: argparse.ArgumentParser) -> None:
    """Files and folders, as many as are given."""
    parser.add_argument(
        "sounds",
        nargs="+",
        type=Path,
        metavar="SOUND",
        help="a file, or a folder, whose sounds at any depth are meant",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model hears, and where it runs."""
    parser.add_argument(
        "--model", default="mn10_as", help=f"{MODEL_HELP} (%(default)s)"
    )
    add_model_details(parser)


def add_model_details(parser: argparse.ArgumentParser) -> None:
    """What a model by name or file does not tell."""
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="classes of a file of weights: columns index, mid, display_name "
        "(those of AudioSet)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever the hyperparams.yaml of a folder names: only of whom you "
        "would run a program",
    )
    parser.add_argument("--device", help="as cpu or cuda:0 (a GPU where there is one)")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """How much is heard at once."""
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        default=16,
        metavar="N",
        help="sounds to hear at once (%(default)s)",
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
