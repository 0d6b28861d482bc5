"""Option types that check their values, and options that several commands share."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientat_plugin.data.labels import LabelTable

Commands = argparse._SubParsersAction  # it has no public name

MODEL_HELP = (
    "a name from `efficientat list`; a model folder or the run folder that holds it; a "
    "weights file; several of these joined by commas, for an ensemble; or an ONNX file "
    "from `efficientat export`, which runs without torch"
)


def whole_number(text: str) -> int:
    """Parses a whole number of at least 1.

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
    """Parses a number from 0 to 1.

    Example
    -------
    >>> probability("0.3")
    0.3
    """
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give one from 0 to 1")
    return value


def duration(text: str) -> float:
    """Parses a duration of 0 seconds or more.

    Example
    -------
    >>> duration("0")
    0.0
    """
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give seconds, 0 or more")
    return value


def seconds(text: str) -> float:
    """Parses a duration above 0 seconds.

    Example
    -------
    >>> seconds("2.5")
    2.5
    """
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give seconds above 0")
    return value


def ratio(text: str) -> float:
    """Parses a number of at least 1.

    Example
    -------
    >>> ratio("1.5")
    1.5
    """
    value = _number(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is given; give a number of 1 or more"
        )
    return value


def add_sounds(parser: argparse.ArgumentParser) -> None:
    """Adds the files and folders to process, one or more."""
    parser.add_argument(
        "sounds",
        nargs="+",
        type=Path,
        metavar="SOUND",
        help="a file, or a folder, which is searched recursively",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model and the device it runs on."""
    parser.add_argument(
        "--model", default="mn10_as", help=f"{MODEL_HELP} (default: %(default)s)"
    )
    add_model_details(parser)


def add_model_details(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe how to load a model."""
    add_model_facts(parser)
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the hyperparams.yaml of a model folder execute code; only for "
        "sources that you trust",
    )
    parser.add_argument("--device", help="cpu or cuda:0 (default: GPU if available)")


def add_model_facts(parser: argparse.ArgumentParser) -> None:
    """Adds the settings that must be given for a weights file without a description."""
    group = parser.add_argument_group(
        "for a weights file that has no published name, model folder or checkpoint "
        "folder"
    )
    group.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="the classes: a CSV with columns index, mid, display_name; or audioset",
    )
    group.add_argument(
        "--front-end",
        type=front_end,
        metavar="N=V,...",
        help="log-mel settings it was trained with, such as "
        "n_mels=128,hop_length=320, or a YAML file of them; omitted ones are as in "
        "LogMel",
    )
    group.add_argument(
        "--clip-seconds",
        type=seconds,
        metavar="S",
        help="length of the clips that it was trained on",
    )
    group.add_argument(
        "--target",
        choices=["multilabel", "multiclass"],
        help="whether a sound has several classes or one (default: multilabel)",
    )


def stated_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings given for a weights file, for ``AudioTagger.from_student``.

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
    """Parses log-mel settings, either written out or in a YAML file.

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
            f"{text!r} is given; give NAME=VALUE joined by commas, such as "
            "n_mels=128,hop_length=320, or a YAML file of such lines"
        )
    return settings


def add_tags(
    parser: argparse.ArgumentParser, top: int, threshold: float, top_help: str
) -> None:
    """Adds which classes are written, with default values."""
    parser.add_argument(
        "--top",
        type=whole_number,
        default=top,
        metavar="N",
        help=f"maximum number of classes{top_help} (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=threshold,
        metavar="P",
        help="minimum probability of a class (default: %(default)s)",
    )
    add_classes(parser)


def add_classes(parser: argparse._ActionsContainer) -> None:
    """Adds the classes to which the results are limited."""
    parser.add_argument(
        "--classes",
        action="append",
        metavar="NAME,...",
        help="only these classes, by name or id, joined by commas; may be repeated "
        "(default: all of the model)",
    )


def places_of_classes(
    arguments: argparse.Namespace, labels: "LabelTable"
) -> list[int] | None:
    """Returns the indices of the classes given; None: all.

    Raises
    ------
    ValueError
        If the model lacks some; names similar ones.
    """
    if arguments.classes is None:
        return None

    from efficientat_plugin.data.labels import places_of

    if not (places := places_of(map(parts_of, arguments.classes), labels)):
        raise ValueError("--classes is empty; give names of classes, or leave it out")
    return places


def parts_of(text: str) -> list[str]:
    """Splits names joined by commas; a name with commas is split, too.

    Example
    -------
    >>> parts_of("Dog, Child speech, kid speaking,")
    ['Dog', 'Child speech', 'kid speaking']
    """
    return [part for part in map(str.strip, text.split(",")) if part]


def add_output(
    parser: argparse.ArgumentParser,
    formats: Iterable[str],
    format_help: str,
    default: str = "table",
) -> None:
    """Adds the format and the file of the results."""
    parser.add_argument(
        "--format",
        choices=list(formats),
        default=default,
        help=f"{format_help} (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write at the end of the run (default: stdout)",
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
