"""Reads the command line of a recipe: the keys of its YAML are its options.

An option is a key of the YAML, or a plain value in a group or in the arguments of an
object: ``--separator`` and ``--table.separator`` both set

    table:
      separator: null
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

from hyperpyyaml import resolve_references
from hyperpyyaml.core import recursive_resolve
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from efficientat_plugin.support.files import read_text
from efficientat_plugin.support.limits import MAX_SETTINGS_BYTES
from efficientat_plugin.support.plain_text import shown

__all__ = [
    "in_a_line",
    "nested",
    "option_places",
    "read_options",
    "read_yaml",
    "resolved",
    "unknown_option",
    "unset_placeholders",
]

# Values that a YAML leaves open with null or auto are text, except for these keys.
WHOLE = {"clips_per_epoch", "num_clips", "number_of_epochs", "sample_rate"}
WHOLE |= {"strong_clips", "teacher_sample_rate", "warmup_steps"}
REAL = {"clip_seconds", "max_seconds", "probe_ridge", "quality", "valid_share"}
REAL |= {"head_lr", "lr", "prior", "weak_mixup_alpha"}
NEVER_NULL = {"lr"}  # but a YAML may have auto
OBJECTS = {"temperature_schedule", "waveform_augment", "waveform_mix"}
OBJECTS |= {"frame_shift", "mixup"}
TEXT_TOO = {"dataset", "facts", "teacher"}  # where a YAML may have an object

# Legal ranges of numbers that would otherwise fail late, or inside another library
LEAST = {"batch_size": 1, "eval_batch_size": 1, "num_proc": 1, "clips_per_epoch": 1}
LEAST |= {"num_seeds": 1}
LEAST |= {"num_workers": 0, "number_of_epochs": 0, "patience": 0, "lr": 0}
POSITIVE = {"clip_seconds", "sample_rate"}
SHARES = {"valid_share", "test_share"}  # below 1, to leave clips for training

# Names that other tools give to these options
OTHER_NAMES = {
    "batch": "batch_size",
    "data": "dataset",
    "epochs": "number_of_epochs",
    "learning_rate": "lr",
    "model": "pretrained",
    "output": "output_folder",
    "output_dir": "output_folder",
    "workers": "num_workers",
}

SWITCH = {"yes": True, "true": True, "on": True, "1": True}
SWITCH |= {"no": False, "false": False, "off": False, "0": False}

_KEY = re.compile(r"^ *[A-Za-z_]\w*:(?:\s+(.*?))??(?:\s+#\s*(.*))?$")
_REPEATED = re.compile(r"^<[^<>]+>$")
_TITLE = re.compile(r"^# --- (.*?)\s*-*$")


def read_options(argv: list[str]) -> tuple[str, RunOptions, dict[str, Any]]:
    """Reads the path of a YAML, SpeechBrain's options and overrides of the YAML.

    Text is taken literally, except ``null``, which is None. A switch takes yes, no,
    true and false. If an option is given twice, the last one counts.

    Arguments
    ---------
    argv : list of str
        Without the program's name.

    Returns
    -------
    str, RunOptions, dict

    Raises
    ------
    SystemExit
        With a sentence, for an unknown option or an illegal value; after ``--help``.

    Example
    -------
    >>> line = "hparams/finetune.yaml --separator | --fold 3 --final no --lr 0.01"
    >>> path, run_opts, overrides = read_options(line.split())
    >>> overrides
    {'separator': '|', 'fold': '3', 'final': False, 'lr': 0.01}
    """
    path, rest = _find_yaml(argv)
    document = read_yaml(path)
    places = option_places(document)
    parser = _Parser(
        usage=f"{Path(sys.argv[0]).name} {path} [--name value ...]",
        description=_head_of(path),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_keys(parser, path, document)
    own = _add_speechbrain(parser, set(places))
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        sys.exit(
            unknown_option(unknown[0], [*places, *own])
            if unknown[0].startswith("--")
            else f"{shown(repr(unknown[0]))} is not an option; give --name value"
        )
    overrides = {key: value for key, value in vars(given).items() if key in places}
    _refuse_references(path, overrides, places)
    run_opts = RunOptions.from_dictionary(
        {key: value for key, value in vars(given).items() if key not in places}
    )
    minutes = "ckpt_interval_minutes"
    if run_opts.ckpt_interval_steps > 0 and minutes in document:
        overrides.setdefault(minutes, 0)  # SpeechBrain accepts only one of the two
    if run_opts.debug and "output_folder" in document:
        folder = resolved(path, overrides)["output_folder"]
        overrides["output_folder"] = str(Path(folder) / "debug")
    return path, run_opts, overrides


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads the keys and values of the YAML of a run; builds no objects.

    What it returns is not to be changed: a file that is read again is not parsed again.

    Raises
    ------
    SystemExit
        With a sentence, if the file is not such a YAML.

    Example
    -------
    >>> read_yaml("hparams/finetune.yaml")["train_loader"]["batch_size"]
    32
    """
    try:
        document = _parsed(read_text(path, MAX_SETTINGS_BYTES))
        if not isinstance(document, dict):
            raise ValueError("it has no named options")
    except (OSError, ValueError, YAMLError) as error:
        sys.exit(
            f"{path} is not the YAML of a run ({in_a_line(error)}); the first "
            "argument must be one, such as hparams/distil.yaml"
        )
    return document


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    return YAML().load(text)


def option_places(document: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns where each option of a YAML is: (key,) or (group, key).

    A value that only repeats another one (``!ref <key>``) is no option. If two values
    have one name, the second one's option is ``--group.key``.

    Arguments
    ---------
    document : Mapping
        From ``read_yaml``.

    Returns
    -------
    dict of str to tuple of str

    Example
    -------
    >>> places = option_places(read_yaml("hparams/finetune.yaml"))
    >>> places["dataset"], places["separator"], places["lr"]
    (('dataset',), ('table', 'separator'), ('opt_class', 'lr'))
    """
    places: dict[str, tuple[str, ...]] = {}
    for group, node in document.items():
        places[group] = (group,)
        for key, value in node.items() if isinstance(node, dict) else ():
            repeats = _tag_of(value) == "!ref" and _REPEATED.match(value.value)
            if not repeats and not (isinstance(value, dict) and value):
                is_taken = key in places or key in document
                places[f"{group}.{key}" if is_taken else key] = (group, key)
    return places


def nested(overrides: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns overrides by option as HyperPyYAML takes them: by their place.

    Arguments
    ---------
    overrides : Mapping
        Values by option, such as ``separator``, or by key, such as ``table``.
    document : Mapping
        From ``read_yaml``.

    Returns
    -------
    dict

    Raises
    ------
    SystemExit
        With a sentence, for a part of an object that is replaced.

    Example
    -------
    >>> nested({"separator": "|"}, read_yaml("hparams/finetune.yaml"))
    {'table': {'separator': '|'}}
    """
    places, values = option_places(document), dict[str, Any]()
    for name in sorted(overrides, key=lambda name: len(places.get(name, ()))):
        *groups, key = places.get(name, (name,))
        inside = values
        for group in groups:
            inside = values.setdefault(group, {})
            if not isinstance(inside, dict):
                sys.exit(f"--{name} is a part of {group}, which --{group} replaces")
        value = overrides[name]
        inside[key] = dict(value) if isinstance(value, dict) else value
    return values


def unset_placeholders(
    overrides: Mapping[str, Any], document: Mapping[str, Any]
) -> list[str]:
    """Lists the options that a YAML leaves to the command line and that are not given.

    Example
    -------
    >>> unset_placeholders({}, read_yaml("hparams/distil.yaml"))
    ['dataset', 'teacher']
    """
    return [
        key
        for key, value in document.items()
        if _tag_of(value) == "!PLACEHOLDER" and overrides.get(key) is None
    ]


def resolved(path: str | Path, overrides: Mapping[str, Any]) -> Any:
    """Reads a YAML with overrides and references resolved; builds no objects.

    Placeholders that are not given are None.

    Example
    -------
    >>> resolved("hparams/distil.yaml", {"seed": 7})["output_folder"]
    'results/distil/7'
    """
    document = read_yaml(path)
    unset = dict.fromkeys(unset_placeholders(overrides, document))
    given = nested(dict(overrides) | unset, document)
    with open(path, encoding="utf-8") as file:
        return YAML().load(resolve_references(file, given))


def unknown_option(option: str, known: list[str]) -> str:
    """Returns a message about an unknown option, with the closest known one.

    Example
    -------
    >>> unknown_option("--devcie", ["device"])
    'unknown option --devcie; did you mean --device?'
    """
    name = option.removeprefix("--").split("=")[0]
    guesses = difflib.get_close_matches(name, known, n=1)
    if OTHER_NAMES.get(name) in known:
        guesses = [OTHER_NAMES[name]]
    return f"unknown option --{name}; " + (
        f"did you mean --{guesses[0]}?" if guesses else "see --help"
    )


def in_a_line(error: Exception) -> str:
    """Returns the message of an error on one line, without excerpts of the YAML.

    Example
    -------
    >>> in_a_line(KeyError("no such name"))
    'no such name'
    """
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    if isinstance(error, KeyError | TypeError):
        return ": ".join(str(part) for part in error.args)
    return str(error)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with a sentence, without the usage of a hundred options."""
        message = message.removeprefix("argument ")
        if message.endswith("expected one argument"):
            message += "; if it begins with -, give --name=VALUE"
        sys.exit(shown(message))


def _find_yaml(argv: list[str]) -> tuple[str, list[str]]:
    """Splits a command line into the path of the YAML and the other arguments."""
    names = [i for i, part in enumerate(argv) if not part.startswith("-")]
    yamls = [i for i in names if argv[i].endswith((".yaml", ".yml"))]
    place = 0 if names[:1] == [0] else next(iter([*yamls, *names]), None)
    if place is not None and argv[place] != "-":
        return argv[place], [*argv[:place], *argv[place + 1 :]]
    main = sys.modules["__main__"]
    named = re.search(r"hparams/\w+\.yaml", main.__doc__ or "")
    if named and {"--help", "-h"} & set(argv):
        beside = Path(str(main.__file__)).resolve().parents[1] / named.group()
        return str(beside), argv
    sys.exit(
        "the first argument must be the YAML of a run, such as "
        + (named.group() if named else "hparams/distil.yaml")
    )


def _refuse_references(
    path: str, overrides: Mapping[str, Any], places: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuses text with ``<name>`` where the YAML refers to it.

    HyperPyYAML would take it for a reference in turn.
    """
    text = read_text(path, MAX_SETTINGS_BYTES)
    for name, value in overrides.items():
        is_reference = isinstance(value, str) and re.search("<[^>]*>", value)
        if is_reference and re.search(rf"<{places[name][0]}\b", text):
            sys.exit(
                f"--{name}: {shown(repr(value))} has angle brackets, which would be "
                "taken for a reference to another value; give a name without them"
            )


# --- Values of options -------------------------------------------------------------


def _add_keys(parser: _Parser, path: str, document: Mapping[str, Any]) -> None:
    """Adds the options of a YAML, under the headings of the YAML."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    groups: dict[str, Any] = {}
    for name, place in option_places(document).items():
        *above, key = place
        if key.startswith("__"):
            continue
        node: Any = document[above[0]] if above else document
        number, _ = node.lc.key(key)
        heading = _heading_above(lines, number)
        if heading not in groups:
            groups[heading] = parser.add_argument_group(_escaped(heading))
        read, takes = _reader_of(key, node[key], document)
        arguments: dict[str, Any] = {"type": read, "metavar": takes, "dest": name}
        if read is _switch:
            arguments |= {"nargs": "?", "const": True}
        described = _escaped(_described(lines, number, name, node[key]))
        groups[heading].add_argument(f"--{name}", help=described, **arguments)
        if above and name == key:
            also = f"--{'.'.join(place)}"
            parser.add_argument(also, help=argparse.SUPPRESS, **arguments)


def _heading_above(lines: list[str], number: int) -> str:
    """Returns the last heading (``# --- Data ---``) above a line of a YAML."""
    found = (_TITLE.match(line) for line in reversed(lines[:number]))
    return next((title.group(1) for title in found if title), "options")


def _described(lines: list[str], number: int, name: str, node: Any) -> str:
    """Returns the default and the comments of a key, from its line and those above."""
    words: list[str] = []
    for line in reversed(lines[:number]):
        if not line.strip().startswith("# ") or _TITLE.match(line):
            break
        words.insert(0, line.strip()[2:])
    found = _KEY.match(lines[number])
    value, comment = found.groups() if found else ("", "")
    default = f"default {value}" if value else ""
    if value == "!PLACEHOLDER":
        default = "needed"
    elif isinstance(node, dict) and not value:
        default = f"its options follow; --{name}.NAME is --NAME"
    return "; ".join(filter(None, [default, " ".join([*words, comment or ""]).strip()]))


def _add_speechbrain(parser: _Parser, taken: set[str]) -> list[str]:
    """Adds the options of every SpeechBrain recipe; returns their names."""
    group = parser.add_argument_group("SpeechBrain's own")
    defaults = RunOptions().as_dict()
    names = sorted(HELP_TEXTS.keys() & defaults.keys() - taken)
    for name in names:
        default, more = defaults[name], dict[str, Any]()
        read, takes = _reader_of(name, default, {})
        if read is _switch:
            more = {"nargs": "?", "const": True}
        if name == "optimizer_step_limit":
            read, takes = _whole, "NUMBER"
        if "precision" in name:
            more = {"choices": ["fp32", "fp16", "bf16"]}
        text = (f"default {default}; " if default else "") + HELP_TEXTS[name]
        group.add_argument(
            f"--{name}", type=read, metavar=takes, help=_escaped(text), **more
        )
    for name in ("jit_module_keys", "compile_module_keys"):
        group.add_argument(f"--{name}", nargs="*", help="keys in 'modules'")
    return names


def _reader_of(
    key: str, default: Any, document: Mapping[str, Any]
) -> tuple[Callable[[str], Any], str]:
    """Returns the function that parses an option, and a name for its values."""
    if _tag_of(default) == "!ref":
        default = recursive_resolve(default.value, [], document)
    tag = _tag_of(default)
    open_ended = default is None or default == "auto"
    if isinstance(default, bool):
        return _switch, "yes|no"
    if key in WHOLE or (isinstance(default, int) and key not in REAL):
        read = partial(_or_open, _whole, key in WHOLE, default)
        return partial(_in_bounds, key, read), "NUMBER"
    if key in REAL or isinstance(default, float):
        read = partial(_or_open, _real, key in REAL - NEVER_NULL, default)
        return partial(_in_bounds, key, read), "NUMBER"
    if open_ended and key in OBJECTS:
        return _nothing, "null"
    if key in TEXT_TOO:
        return _text_or_mapping, "TEXT"
    if tag not in (None, "!PLACEHOLDER"):
        return _arguments, "{name: value}"
    if isinstance(default, dict):
        return _mapping, "{name: value}"
    if isinstance(default, list):
        return _sequence, "[value, ...]"
    return _text, "TEXT"


def _tag_of(node: Any) -> str | None:
    return getattr(getattr(node, "tag", None), "value", None)


def _text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not UTF-8; rename it, or link to it by another name"
        ) from None
    return None if text == "null" else text


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return SWITCH[text.lower()]


def _or_open(
    read: Callable[[str], Any], may_be_null: bool, default: Any, text: str
) -> Any:
    """Parses a number, or null or auto if the YAML allows that."""
    if text == "null" and may_be_null:
        return None
    if text == "auto" and default == "auto":
        return text
    return read(text)


def _in_bounds(key: str, read: Callable[[str], Any], text: str) -> Any:
    """As ``read``, and refuses numbers out of range."""
    value = read(text)
    if not isinstance(value, int | float):
        return value
    legal = ""
    if key in LEAST and value < LEAST[key]:
        legal = f"{LEAST[key]} or more"
    elif key in POSITIVE and value <= 0:
        legal = "a number above 0"
    elif key in SHARES and not 0 <= value < 1:
        legal = "a share, from 0 to less than 1"
    if legal:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give {legal}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _of_yaml(text: str, kind: type, expected: str) -> Any:
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be read: {in_a_line(error)}; give {expected}"
        ) from None
    if not isinstance(value, kind | None):
        raise argparse.ArgumentTypeError(f"{text!r} has another form; give {expected}")
    return value


def _mapping(text: str) -> Any:
    return _of_yaml(text, dict, '"{name: value, ...}"')


def _sequence(text: str) -> Any:
    return _of_yaml(text, list, '"[value, ...]"')


def _text_or_mapping(text: str) -> Any:
    return _mapping(text) if text.startswith("{") else _text(text)


def _arguments(text: str) -> Any:
    """Parses arguments of an object that the YAML builds; null switches it off."""
    return _of_yaml(text, dict, 'its arguments as "{name: value, ...}"')


def _nothing(text: str) -> None:
    if text != "null":
        raise argparse.ArgumentTypeError(
            "it is an object, which only a YAML can build; define it there"
        )


# --- Help --------------------------------------------------------------------------


def _head_of(path: str) -> str:
    """Returns the comment at the top of a YAML."""
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(line for line in lines if set(line) - set("#")) or str(path)


def _escaped(text: str) -> str:
    """Escapes percent signs, which argparse would take for placeholders."""
    return text.replace("%", "%%")
