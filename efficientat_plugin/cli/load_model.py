"""Loads the models named on the command line."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientat_plugin.cli.arguments import stated_of
from efficientat_plugin.support.files import EXPORTED

if TYPE_CHECKING:
    from efficientat_plugin.data.labels import LabelTable
    from efficientat_plugin.tagging.base import SoundTagger


def tagger_of(arguments: argparse.Namespace) -> "SoundTagger":
    """Loads the model that a command's options name; see `load_tagger`."""
    return load_tagger(
        arguments.model,
        arguments.labels,
        arguments.device,
        arguments.trust,
        stated_of(arguments),
    )


def load_tagger(
    model: str,
    labels_file: Path | None = None,
    device: str | None = None,
    trust: bool = False,
    stated: Mapping[str, Any] | None = None,
) -> "SoundTagger":
    """Loads a tagger from a name, file or folder, or several joined by commas.

    An ONNX file from ``efficientat export`` runs without torch, which need not be
    installed.

    Arguments
    ---------
    model : str
        A folder is a model folder or the run folder that holds one.
    labels_file : Path or None
        Classes of a weights file that lacks them; "audioset": those of AudioSet.
    device : str or None
        A device name of torch; None: a GPU if available.
    trust : bool
        Whether the YAML of a model folder may execute any code it names.
    stated : Mapping or None
        Other settings that a weights file lacks, as for ``AudioTagger.from_student``.

    Returns
    -------
    SoundTagger

    Raises
    ------
    OSError, ValueError
        If the model, the table of labels or the device does not exist or is invalid.
    """
    if is_exported(model):
        return load_exported(model, labels_file, device, trust, stated)

    from efficientat_plugin.pretrained.description import describe
    from efficientat_plugin.tagging.torch_tagger import AudioTagger

    run_opts = None if device is None else {"device": _usable(device)}
    labels = None if labels_file is None else read_labels(labels_file)
    if os.path.isdir(model):  # unlike Path.is_dir, accepts names too long for a file
        refuse_stated(model, labels, stated)
        return AudioTagger.from_hparams(
            str(model_folder(model).resolve()), trust=trust, run_opts=run_opts
        )
    names = [name.strip() for name in model.split(",")]
    # A file name may contain a comma.
    sources = [model] if os.path.isfile(model) or len(names) == 1 else names
    for source in sources:
        known = describe(source) if os.path.exists(source) else None
        is_bare = known is not None and known.front_end is None
        if not is_bare:
            # The classes of published weights may be given other names.
            has_yaml = known is not None and known.yaml is not None
            refuse_stated(source, labels if has_yaml else None, stated)
    with asked_for_options():
        return AudioTagger.from_student(
            sources, labels, run_opts=run_opts, **(stated or {})
        )


def model_folder(folder: str) -> Path:
    """Returns the folder itself if it is a model folder, or the one it contains."""
    from efficientat_plugin.pretrained.description import find_model_folder

    found = find_model_folder(folder)
    if found is None:
        raise ValueError(
            f"the folder {folder} has no hyperparams.yaml; give a folder that training "
            "wrote, a weights file or a name from `efficientat list`"
        )
    return found


def refuse_stated(
    model: str, labels: object, stated: Mapping[str, Any] | None = None
) -> None:
    """Raises a ``ValueError`` for settings that the model already contains."""
    if labels is not None:
        raise ValueError(f"{model} has its labels; leave out --labels")
    if stated:
        raise ValueError(
            f"{model} has its own front end, clip length and target; leave out "
            "--front-end, --clip-seconds and --target"
        )


@contextmanager
def asked_for_options() -> Iterator[None]:
    """Names missing settings in errors as command-line options."""
    from efficientat_plugin.pretrained.description import ON_COMMAND_LINE, Unstated

    try:
        yield
    except Unstated as error:
        raise ValueError(error.sentence(ON_COMMAND_LINE)) from error


def is_exported(model: str) -> bool:
    """Whether a model, or one of several joined by commas, is an exported file.

    Example
    -------
    >>> is_exported("mn04_as,mine.onnx"), is_exported("student.pt")
    (True, False)
    """
    if os.path.isdir(model):
        return False
    return any(each.strip().lower().endswith(EXPORTED) for each in model.split(","))


def load_exported(
    model: str,
    labels_file: Path | None,
    device: str | None,
    trust: bool,
    stated: Mapping[str, Any] | None = None,
) -> "SoundTagger":
    """Loads a tagger from an exported file; refuses options that do not apply to it."""
    if "," in model and not os.path.isfile(model):
        raise ValueError(
            f"{model} names several models, and an exported file cannot be part of an "
            "ensemble; give it alone, or give the models it was exported from"
        )
    if not model.lower().endswith(".onnx"):
        raise ValueError(
            f"{model} is a LiteRT file, which this command cannot run; export the "
            "model with --format onnx"
        )
    refuse_stated(model, None, stated)
    for option, is_given, why in (
        ("--labels", labels_file is not None, "contains its own labels"),
        ("--trust", trust, "contains no code to trust"),
        (f"--device {device}", device not in (None, "cpu"), "runs on the CPU"),
    ):
        if is_given:
            raise ValueError(f"the exported file {model} {why}; leave out {option}")

    from efficientat_plugin.runtime import Tagger

    try:
        return Tagger(model)
    except ImportError as error:  # no runtime is installed
        raise ValueError(str(error)) from error


def read_labels(path: Path) -> "LabelTable":
    """Reads a table of classes from a CSV, or AudioSet's; may raise ``ValueError``."""
    from efficientat_plugin.data.labels import LabelTable, audioset_labels

    if str(path) == "audioset" and not path.is_file():
        return audioset_labels()
    return LabelTable.from_csv(path)


def _usable(device: str) -> str:
    """Checks that a device exists; returns the name that SpeechBrain expects."""
    from efficientat_plugin.support.devices import check_device

    check_device(device)
    # SpeechBrain warns about a missing index.
    return "cuda:0" if device == "cuda" else device
