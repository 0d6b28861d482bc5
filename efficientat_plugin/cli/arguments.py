"""What may stand on the command line: legal values, and options that commands share."""

import argparse
import math
from pathlib import Path
from typing import Any

Commands = argparse._SubParsersAction  # which has no public name

MODEL_HELP = (
    "a name of `efficientat list`; a model folder, or that of the run that left one; a "
    "file of weights; several of these joined by commas, an ensemble; or an ONNX file "
    "of `efficientat export`, which needs no torch"
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
    add_what_weights_do_not_tell(parser)
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the hyperparams.yaml of a model folder execute code; only for "
        "sources that you trust",
    )
    parser.add_argument("--device", help="cpu or cuda:0 (default: a GPU if any)")


def add_what_weights_do_not_tell(parser: argparse.ArgumentParser) -> None:
    """What must be stated of a file of weights that nothing describes."""
    group = parser.add_argument_group(
        "of a file of weights without published name, model folder or checkpoint folder"
    )
    group.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="its classes: columns index, mid, display_name; or audioset",
    )
    group.add_argument(
        "--front-end",
        type=front_end,
        metavar="N=V,...",
        help="the log-mel that it was trained on, as n_mels=128,hop_length=320, or a "
        "YAML of that; what is left out is as in LogMel",
    )
    group.add_argument(
        "--clip-seconds",
        type=seconds,
        metavar="S",
        help="the length of the clips that it was trained on",
    )
    group.add_argument(
        "--target",
        choices=["multilabel", "multiclass"],
        help="whether a sound has several classes or one (multilabel)",
    )


def stated_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was stated of a file of weights, as ``AudioTagger.from_student`` takes it.

    Example
    -------
    >>> given = argparse.Namespace(front_end={"n_mels": 64}, clip_seconds=5.0)
    >>> given.target = None
    >>> stated_of(given)
    {'clip_seconds': 5.0, 'n_mels': 64}
    """
    named = {name: getattr(arguments, name) for name in ("clip_seconds", "target")}
    given = {name: value for name, value in named.items() if value is not None}
    return given | (arguments.front_end or {})


def front_end(text: str) -> dict[str, Any]:
    """Settings of a log-mel, written out or in a YAML.

    Example
    -------
    >>> front_end("n_mels=64,hop_length=640")
    {'n_mels': 64, 'hop_length': 640}
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lines = text.replace(",", "\n").replace("=", ": ")
    try:
        if Path(text).is_file():
            lines = Path(text).read_text(encoding="utf-8")
        settings = YAML(typ="safe").load(lines)
    except (OSError, ValueError, YAMLError) as error:
        settings = str(error)
    if not isinstance(settings, dict) or not all(
        isinstance(value, int | float | str) for value in settings.values()
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is given; give NAME=VALUE, joined by commas, as "
            "n_mels=128,hop_length=320, or a YAML of such lines"
        )
    return settings


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
