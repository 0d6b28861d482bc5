"""Reads the YAML of a model folder as plain values; nothing that it names is imported.

HyperPyYAML imports and calls whatever the tags of a YAML name, so an untrusted YAML is
an untrusted program. Here a tag is only a name, and the settings of front end, network
and labels are passed to our own classes. This is how every part of the package reads a
model folder, except with ``trust=True``; SpeechBrain's own interfaces, and recipes with
the YAML passed to them, execute all of it.

Of HyperPyYAML's features, references to a key (``!ref <sample_rate>``) are supported.
`AudioTagger` refuses a YAML with others, or with parts that are not those of a tagger,
since it would not be what its author meant.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from efficientat_plugin.support.yaml_text import (
    Refused,
    entries_of,
    read_text,
    refuse_too_many,
)

# Public names in `write_model_folder`'s YAML, and of similar parts
PARTS = frozenset(
    {
        "DyMN",
        "FrameMN",
        "FramePaSST",
        "KeepFeatures",
        "LabelTable",
        "LogMel",
        "LogMelFbank",
        "LogMelFeatures",
        "LogMelSTFT",
        "MN",
        "PaSST",
        "SoxrNormalizer",
        "StudentClassifier",
        "StudentEncoder",
        "StudentWaveformEncoder",
        "audioset_labels",
        "label_encoder",
        "load_published_state",
    }
)
PARTS_OF_SPEECHBRAIN = frozenset(
    {
        "speechbrain.dataio.preprocess.AudioNormalizer",
        "speechbrain.utils.parameter_transfer.Pretrainer",
    }
)
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)
REFERENCE_TAG = "!ref"
REFERENCE = re.compile(r"<([^<>.\[\]]+)>")
IF_TRUSTED = (
    "if you trust its source to execute code on this machine, pass trust=True, or "
    "--trust to efficientat"
)


def read_settings(path: Path, only_known_parts: bool = False) -> dict[str, Any]:
    """Reads the settings of a model folder, without building anything.

    Arguments
    ---------
    path : Path
    only_known_parts : bool
        Whether to refuse tags that do not name a part of a tagger, and weights that
        come from elsewhere.

    Returns
    -------
    dict
        Mappings and lists keep their tags as an attribute.

    Raises
    ------
    OSError
        If the file cannot be read.
    Refused
        For a file that is not YAML, is too long, or has such a tag (with its line).
    ValueError
        For a reference to what is not there.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "hyperparams.yaml"
    ...     _ = path.write_text("labels: !apply:os.system [reboot]")
    ...     read_settings(path, only_known_parts=True)
    Traceback (most recent call last):
    efficientat_plugin.support.yaml_text.Refused: ... the tag '!apply:os.system' ...
    """
    try:
        text = read_text(path)
        root = YAML().compose(text)
        refuse_too_many(root, str(path))
        if only_known_parts:
            _refuse_unknown_tags(root, path)
        settings = YAML(typ="rt").load(text)  # tags stay names
    except Refused:
        raise
    except (YAMLError, ValueError, RecursionError) as error:
        raise Refused(
            f"{path} is not YAML; copy the folder again, the file may be truncated"
        ) from error
    if not isinstance(settings, Mapping):
        raise Refused(f"{path} has no settings; copy the folder again")
    if only_known_parts:
        _check_pretrainer(settings.get("pretrainer"), path)
    return {name: _followed(value, settings) for name, value in settings.items()}


def plain_values(part: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a part, e.g. of the front end, as Python's own types."""
    if tag_of(part).startswith("!new:") and not getattr(part, "value", True):
        return {}  # of a part without arguments
    if not isinstance(part, Mapping):
        raise ValueError(f"{part!r:.80} stands in the place of a part with arguments")
    found = {name: _followed(value, settings) for name, value in part.items()}
    return {
        # An explicitly tagged text is an object with the text as its value.
        name: [getattr(each, "value", each) for each in value]
        if isinstance(value, list)
        else value
        for name, value in found.items()
    }


def tag_of(value: Any) -> str:
    """Returns the tag of a value that was read, e.g. "!ref"; "" if it has none.

    Example
    -------
    >>> tag_of(YAML().load("!new:efficientat_plugin.MN {width: 0.1}")), tag_of(3)
    ('!new:efficientat_plugin.MN', '')
    """
    return getattr(getattr(value, "tag", None), "value", None) or ""


def _followed(value: Any, settings: Mapping[str, Any]) -> Any:
    """Follows a reference to another setting."""
    if tag_of(value) != REFERENCE_TAG:
        return value
    key = REFERENCE.fullmatch(str(value.value))
    found = settings.get(key[1]) if key else None
    if found is None or tag_of(found) == REFERENCE_TAG:
        raise ValueError(
            f"the reference {_short(value.value)} does not name a setting such as "
            "<sample_rate>; copy the folder again, or write the value in its place"
        )
    return found


def _refuse_unknown_tags(root: Node | None, path: Path) -> None:
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        tag = str(node.tag)
        # HyperPyYAML makes ruamel mark text in brackets as a tuple.
        is_text = tag == "!tuple" and node.ctag.handle is None
        if not (tag in PLAIN_TAGS or tag == REFERENCE_TAG or is_text or _is_part(tag)):
            raise Refused(
                f"{path}, line {node.start_mark.line + 1}: the tag {_short(tag)} is "
                f"not one that a tagger needs, and may execute any code; {IF_TRUSTED}"
            )
        waiting += reversed(entries_of(node))


def _is_part(tag: str) -> bool:
    """Whether a tag names a part of a tagger, perhaps as older folders do."""
    kind, _, name = tag.partition(":")
    package, _, rest = name.partition(".")
    is_ours = package == "efficientat_plugin" and rest.rpartition(".")[2] in PARTS
    return kind in ("!new", "!apply", "!name") and (
        is_ours or name in PARTS_OF_SPEECHBRAIN
    )


def _check_pretrainer(pretrainer: Any, path: Path) -> None:
    """Refuses a YAML whose weights are not those of the student, beside it."""
    legal = {"loadables", "custom_hooks"}
    if (
        not isinstance(pretrainer, Mapping)
        or not pretrainer.keys() <= legal
        or list(pretrainer.get("loadables") or ()) != ["student"]
    ):
        raise Refused(
            f"{path} has no pretrainer that loads student, and nothing else, from its "
            f"own folder; is it the YAML of a model? {IF_TRUSTED.capitalize()}"
        )


def _short(text: object) -> str:
    """Returns the beginning of a text, in quotes, for messages."""
    whole = str(text)
    return repr(whole if len(whole) <= 80 else f"{whole[:80]}...")
