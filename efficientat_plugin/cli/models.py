"""Models as the command line names them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from efficientat_plugin.files import EXPORTED

if TYPE_CHECKING:
    from efficientat_plugin.data.targets import LabelTable
    from efficientat_plugin.tagging import SoundTagger


def load_tagger(
    model: str,
    labels_file: Path | None = None,
    device: str | None = None,
    trust: bool = False,
) -> "SoundTagger":
    """A tagger of a name, a file, several of these joined by commas, or a folder.

    An ONNX file that ``efficientat export`` wrote is computed without torch, which need
    not be installed for it.

    Arguments
    ---------
    model : str
        A folder must have a ``hyperparams.yaml``.
    labels_file : Path or None
        Classes of a file of weights; None: those of AudioSet.
    device : str or None
        As torch names it; None: a GPU where there is one.
    trust : bool
        Whether that of a folder may run whatever it names.

    Returns
    -------
    SoundTagger

    Raises
    ------
    OSError, ValueError
        For what is no model, no table of labels, or no device that is there.
    """
    if is_exported(model):
        return load_exported(model, labels_file, device, trust)

    from efficientat_plugin.inference import AudioTagger
    from efficientat_plugin.model_folder import refuse_run_folder

    run_opts = None if device is None else {"device": _usable(device)}
    path = Path(model)
    if os.path.isdir(path):  # unlike Path's, takes names that are too long for a file
        if not (path / "hyperparams.yaml").is_file():
            raise ValueError(
                f"the folder {model} has no hyperparams.yaml; give a folder that "
                "fine-tuning left, a file of weights or a name of `efficientat list`"
            )
        refuse_run_folder(path)
        if labels_file is not None:
            raise ValueError(f"the folder {model} has its labels; leave out --labels")
        return AudioTagger.from_hparams(
            str(path.resolve()), trust=trust, run_opts=run_opts
        )
    labels = None if labels_file is None else read_labels(labels_file)
    if os.path.isfile(path):  # whose name may have a comma
        return AudioTagger.from_student(path, labels, run_opts=run_opts)
    names = [name.strip() for name in model.split(",")]
    sources = names[0] if len(names) == 1 else names
    return AudioTagger.from_student(sources, labels, run_opts=run_opts)


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
    model: str, labels_file: Path | None, device: str | None, trust: bool
) -> "SoundTagger":
    """A tagger of an exported file; refuses what such a file leaves no choice of."""
    if "," in model and not os.path.isfile(model):
        raise ValueError(
            f"{model} names several models, and an exported file cannot be part of an "
            "ensemble; give it alone, or give the models it was exported from"
        )
    if not model.lower().endswith(".onnx"):
        raise ValueError(
            f"{model} is a file for LiteRT, which this command does not run; export "
            "the model with --format onnx"
        )
    for option, is_given, why in (
        ("--labels", labels_file is not None, "contains its own labels"),
        ("--trust", trust, "contains no code to be trusted with"),
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
    """A table of classes from a CSV; ``ValueError`` where it is none."""
    from efficientat_plugin.data.targets import LabelTable

    return LabelTable.from_csv(path)


def _usable(device: str) -> str:
    """A device that is there, by the name that SpeechBrain understands."""
    import torch

    device = "cuda:0" if device == "cuda" else device  # else it warns of no number
    try:
        torch.zeros(1, device=device)
    # torch says it in its own ways: one without CUDA asserts
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"the device {device} is not there; give cpu, or cuda:0 where there is "
            "a GPU"
        ) from error
    if torch.device(device).type == "meta":
        raise ValueError("nothing is computed on the device meta; give cpu or cuda:0")
    return device
