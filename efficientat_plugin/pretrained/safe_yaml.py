"""Loads the YAML of an untrusted model folder: builds only the parts of a tagger.

HyperPyYAML imports and calls whatever the tags of a YAML name, so an untrusted YAML is
an untrusted program. Here every tag must be in ``LEGAL_TAGS``, compared in full, before
anything is imported. Comparing prefixes would not be safe, since modules contain other
modules: ``!apply:torch.os.system`` is ``os.system``.

`AudioTagger` reads its folders this way. SpeechBrain's own interfaces, and recipes with
the YAML passed to them, execute all of it.

Other features of HyperPyYAML are not supported: Python's own tags, ``!applyref:``,
tuples (whose text it passes to an unsafe loader, even for a class named "(other)"),
attributes, arithmetic and text in references.
"""

import pydoc
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML, SafeLoader
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import RepresenterError
from speechbrain.utils.parameter_transfer import Pretrainer
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.pretrained.weights import load_published_state
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.limits import MAX_PARAMETERS
from efficientat_plugin.support.plain_text import shown
from efficientat_plugin.support.yaml_text import (
    Refused,
    entries_of,
    read_text,
    refuse_too_many,
)

# What `write_model_folder` writes, and similar parts. They only compute; they do not
# access files or the network.
LEGAL_TAGS = frozenset(
    {
        "!apply:efficientat_plugin.audioset_labels",
        "!apply:efficientat_plugin.label_encoder",
        "!name:efficientat_plugin.load_published_state",
        "!new:efficientat_plugin.DyMN",
        "!new:efficientat_plugin.KeepFeatures",
        "!new:efficientat_plugin.LabelTable",
        "!new:efficientat_plugin.LogMel",
        "!new:efficientat_plugin.LogMelFbank",
        "!new:efficientat_plugin.LogMelFeatures",
        "!new:efficientat_plugin.LogMelSTFT",
        "!new:efficientat_plugin.MN",
        "!new:efficientat_plugin.PaSST",
        "!new:efficientat_plugin.SoxrNormalizer",
        "!new:efficientat_plugin.StudentClassifier",
        "!new:efficientat_plugin.StudentEncoder",
        "!new:efficientat_plugin.StudentWaveformEncoder",
        "!new:speechbrain.dataio.preprocess.AudioNormalizer",
        "!new:speechbrain.utils.parameter_transfer.Pretrainer",
        # Names in older folders
        "!apply:efficientat_plugin.classifiers.label_encoder",
        "!apply:efficientat_plugin.data.targets.audioset_labels",
        "!name:efficientat_plugin.students.weights.load_published_state",
        "!new:efficientat_plugin.classifiers.SoxrNormalizer",
        "!new:efficientat_plugin.classifiers.StudentClassifier",
        "!new:efficientat_plugin.data.targets.LabelTable",
        "!new:efficientat_plugin.encoders.KeepFeatures",
        "!new:efficientat_plugin.encoders.LogMelFbank",
        "!new:efficientat_plugin.encoders.LogMelFeatures",
        "!new:efficientat_plugin.encoders.LogMelSTFT",
        "!new:efficientat_plugin.encoders.StudentEncoder",
        "!new:efficientat_plugin.encoders.StudentWaveformEncoder",
        "!new:efficientat_plugin.features.LogMel",
        "!new:efficientat_plugin.students.dymn.DyMN",
        "!new:efficientat_plugin.students.mn.MN",
        "!new:efficientat_plugin.teachers.passt.PaSST",
    }
)
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)
REFERENCE_TAG = "!ref"
REFERENCES = {"!ref", "!copy"}  # nested copies could fill the memory in a few lines
PLACEHOLDER = "!PLACEHOLDER"  # HyperPyYAML requires an override
INCLUDE = "!include:"
REFERENCE = re.compile(r"<[^<>.\[\]]+(\[[^<>.\[\]]+\])*>")  # <key>, <key[key]>
INTERPOLATED = re.compile(r"<[^<>]*>")  # HyperPyYAML replaces this in text
FILE_NAME = re.compile(r"\w[\w-]*", re.ASCII)
MAX_INCLUDES = 20
# Text is copied to every reference to it.
MAX_TEXT, MAX_REFERENCES = 2_000, 200  # characters per text; references per YAML
IF_TRUSTED = (
    "if you trust its source to execute code on this machine, pass trust=True, or "
    "--trust to efficientat"
)


class _Loader(SafeLoader):
    """Builds a YAML that passed `_check`."""

    num_parameters = 0  # of all students

    def construct_object(self, node: Node, deep: bool = True) -> Any:
        """Constructs deeply, so that arguments are complete before they are used."""
        return super().construct_object(node, deep)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Keeps text in brackets as text; HyperPyYAML makes ruamel resolve a tuple."""
        tag = super().resolve(kind, value, implicit)
        return self.DEFAULT_SCALAR_TAG if str(tag) == "!tuple" else tag


def _build(loader: _Loader, name: str, node: Node) -> Any:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if isinstance(node, MappingNode):
        kwargs = loader.construct_mapping(node, deep=True)
    elif isinstance(node, SequenceNode):
        args = loader.construct_sequence(node, deep=True)
    part: Any = pydoc.locate(name)
    if isinstance(part, type) and issubclass(part, Student):
        # A large width or number of classes could ask for any amount of memory.
        with torch.device("meta"):  # parameters have shapes but no memory
            parameters = part(*args, **kwargs).parameters()
        loader.num_parameters += sum(parameter.numel() for parameter in parameters)
        if loader.num_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"this {part.__name__} brings it to more than {MAX_PARAMETERS} "
                "parameters"
            )
    return part(*args, **kwargs)


def _name(loader: _Loader, name: str, node: Node) -> Any:
    return pydoc.locate(name)


_Loader.add_multi_constructor("!new:", _build)
_Loader.add_multi_constructor("!apply:", _build)
_Loader.add_multi_constructor("!name:", _name)


def load_model_yaml(
    path: Path,
    overrides: Mapping[str, Any] | str | None = None,
    overrides_must_match: bool = True,
) -> dict[str, Any]:
    """Builds the objects in a model folder's YAML if all are parts of a tagger.

    Every file is read only once, so what is built is what was checked.

    Arguments
    ---------
    path : Path
        ``!include:`` may name files in its folder and subfolders.
    overrides : Mapping, str or None
        As in HyperPyYAML; their tags are checked, too.
    overrides_must_match : bool
        Whether an override of a missing key is refused.

    Returns
    -------
    dict

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        For another tag (with its line), an include from another folder, invalid YAML,
        or parts that cannot be built.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "hyperparams.yaml"
    ...     _ = path.write_text("labels: !apply:os.system [reboot]")
    ...     load_model_yaml(path)
    Traceback (most recent call last):
    efficientat_plugin.support.yaml_text.Refused: ... the tag '!apply:os.system' ...
    """
    with told_of(path):
        resolved = _resolved(path, overrides, overrides_must_match)
        loader = _Loader(resolved)
        root = loader.get_single_node()
        _check(root, f"{path}, references followed", has_references=False)
        hparams = loader.construct_document(root)
        if not all(isinstance(key, str) for key in hparams):
            raise ValueError("its settings must have names")
        _check_pretrainer(hparams.get("pretrainer"), path)
    if options := RunOptions().as_dict().keys() & hparams:
        raise Refused(
            f"{path} sets {', '.join(sorted(options))}, and only the user chooses how "
            f"a model runs: pass run_opts to from_hparams, {IF_TRUSTED}"
        )
    return {k: v for k, v in hparams.items() if not k.startswith("__")}


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Turns the errors of a corrupt YAML into a sentence that names it."""
    try:
        yield
    except (OSError, Refused):
        raise
    except Exception as error:  # parts raise many kinds of errors
        what = shown(" ".join(str(error).split())[:300])
        raise Refused(
            f"{path} makes no tagger ({type(error).__name__}: {what}); copy or "
            "download the folder again if it is corrupt"
        ) from error


def _resolved(
    path: Path, overrides: Mapping[str, Any] | str | None, must_match: bool
) -> str:
    """Resolves overrides, includes and references in checked copies; returns text."""
    includes = _check(_overrides_node(overrides), "overrides") if overrides else []
    with TemporaryDirectory() as copies:
        _copy(path, includes, Path(copies))
        with open(Path(copies) / path.name, encoding="utf-8") as file:
            return resolve_references(file, overrides, must_match).getvalue()


def _copy(path: Path, more: Iterable[str], copies: Path) -> None:
    """Checks and copies a YAML and all the files it includes."""
    folder = path.resolve().parent  # where HyperPyYAML looks for includes
    waiting = [PurePosixPath(path.name), *map(PurePosixPath, more)]
    for number, name in enumerate(waiting):  # the list grows in the loop
        if number > MAX_INCLUDES:
            raise Refused(
                f"{path} includes more than {MAX_INCLUDES} files, or itself; put "
                "everything into one file"
            )
        source = folder / name if number else path
        if number and not source.resolve().is_relative_to(folder):
            raise Refused(
                f"{path} includes {_short(name)}, a link out of its folder; "
                f"{IF_TRUSTED}"
            )
        if not source.is_file():  # reading a pipe would block
            raise FileNotFoundError(
                f"{shown(source)} is not a file; copy the folder again"
            )
        text = read_text(source)
        root = _node(text)
        if not isinstance(root, MappingNode):
            raise Refused(f"{source} has no settings; copy the folder again")
        waiting += [name.parent / each for each in _check(root, str(source))]
        copy = copies / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")


def _node(text: str) -> Node | None:
    """Parses the one document of a text as HyperPyYAML does; builds nothing."""
    return YAML().compose(text)


def _overrides_node(overrides: Mapping[str, Any] | str) -> Node | None:
    if isinstance(overrides, str):
        return _node(overrides)
    text = StringIO()
    try:
        YAML().dump(overrides, text)
    except RepresenterError as error:
        raise Refused(
            "an override is not a number, a text, or a list or mapping of them "
            f"({error}); change the model after loading it"
        ) from error
    return _node(text.getvalue())


def _check(root: Node | None, origin: str, has_references: bool = True) -> list[str]:
    """Refuses what must not be built or passed to HyperPyYAML.

    Returns
    -------
    list of str
        Included files.
    """
    refuse_too_many(root, origin)
    includes, references = [], 0
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        tag, line = str(node.tag), node.start_mark.line + 1
        references += has_references and tag == REFERENCE_TAG
        is_long = isinstance(node, ScalarNode) and len(node.value) > MAX_TEXT
        if is_long or references > MAX_REFERENCES:
            raise Refused(
                f"{origin}, line {line}: a text of more than {MAX_TEXT} characters, or "
                f"more than {MAX_REFERENCES} references; a tagger needs neither"
            )
        if has_references and tag.startswith(INCLUDE):
            includes.append(_include_name(tag, f"{origin}, line {line}"))
        elif has_references and tag == REFERENCE_TAG:
            _check_reference(node, f"{origin}, line {line}")
        elif not (
            tag in PLAIN_TAGS | LEGAL_TAGS
            or (has_references and tag == PLACEHOLDER)
            or (tag == "!tuple" and node.ctag.handle is None)  # text in brackets
        ):
            raise Refused(
                f"{origin}, line {line}: the tag {_short(tag)} is not one that a "
                f"tagger needs, and may execute any code; {IF_TRUSTED}"
            )
        if tag.startswith("!name:") and (
            not isinstance(node, ScalarNode) or node.value
        ):
            raise Refused(
                f"{origin}, line {line}: {_short(tag)} has arguments; {IF_TRUSTED}"
            )
        if has_references and isinstance(node, MappingNode):
            _check_texts(node, f"{origin}, line {line}")
        waiting += reversed(entries_of(node))
    return includes


def _check_texts(node: MappingNode, place: str) -> None:
    """Refuses <...> in texts, which a reference to the text would evaluate."""
    for _, value in node.value:
        is_text = isinstance(value, ScalarNode) and str(value.tag) not in REFERENCES
        if is_text and INTERPOLATED.search(value.value):
            raise Refused(
                f"{place}: the text {_short(value.value)} contains <...>, like a "
                f"reference; {IF_TRUSTED}"
            )


def _check_reference(node: Node, place: str) -> None:
    if not (isinstance(node, ScalarNode) and REFERENCE.fullmatch(node.value)):
        raise Refused(
            f"{place}: the reference {_short(node.value)} is not a plain key such as "
            f"<student>; {IF_TRUSTED}"
        )


def _short(text: object) -> str:
    """Returns the beginning of a text, in quotes, for messages."""
    whole = str(text)
    return repr(whole if len(whole) <= 80 else f"{whole[:80]}...")


def _include_name(tag: str, place: str) -> str:
    name = tag.removeprefix(INCLUDE)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise Refused(
            f"{place}: {_short(name)} is included and is not a file in the folder; "
            f"{IF_TRUSTED}"
        )
    return name


def _check_pretrainer(pretrainer: Any, path: Path) -> None:
    """Checks that weights come from the folder itself, and sets our own reader."""
    if type(pretrainer) is not Pretrainer:
        raise Refused(
            f"{path} has no pretrainer, which says what the weights belong to; is it "
            "the YAML of a model?"
        )
    if pretrainer.paths or pretrainer.conditions:
        raise Refused(
            f"the pretrainer of {path} has paths or conditions, but weights must be "
            f"in the same folder; {IF_TRUSTED}"
        )
    for name, part in pretrainer.loadables.items():
        if not FILE_NAME.fullmatch(name):
            raise Refused(
                f"the pretrainer of {path} has a loadable {_short(name)}, which is not "
                f"a plain file name; {IF_TRUSTED}"
            )
        if name in pretrainer.custom_hooks:
            continue
        if not isinstance(part, Student):
            raise Refused(
                f"the pretrainer of {path} fills {name}, a {type(part).__name__}, not "
                f"a student; {IF_TRUSTED}"
            )
        pretrainer.add_custom_hooks({name: load_published_state})
