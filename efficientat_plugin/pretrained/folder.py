"""Writes and reads model folders: weights, YAML, labels and card of one model.

``AudioTagger.from_hparams(folder)`` and SpeechBrain's `EncoderClassifier` load one
offline. It can be uploaded to the Hugging Face hub as it is, and contains no code.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import main_process_only

import efficientat_plugin
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.evaluation.metrics import finite
from efficientat_plugin.pretrained.card import Provenance, TrainedModel, model_card
from efficientat_plugin.pretrained.description import (
    DESCRIPTION,
    HYPERPARAMS,
    WEIGHTS,
    Described,
    Unstated,
    describe,
    model_folder_of,
    states_front_end,
)
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import network_of
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.heads import classifies_embeddings
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.support.files import atomic_folder
from efficientat_plugin.support.plain_text import cell

LABELS = "labels.csv"
METRICS = "metrics.json"
CARD = "README.md"
# Parts of one student. The embedding is always available; classes only if the head
# takes embeddings, else SpeechBrain reports that there is no classifier.
EMBEDDING_SLOTS = """\
  # For SpeechBrain's EncoderClassifier: parts of the student, on the same weights
  compute_features: !new:efficientat_plugin.LogMelFeatures
    log_mel: !ref <log_mel>
  mean_var_norm: !new:efficientat_plugin.KeepFeatures
  embedding_model: !new:efficientat_plugin.StudentEncoder
    student: !ref <student>
"""
EVENT_OPTIONS = """\
event_options:  # of `EventOptions`; thresholds are in the order of labels
"""
CLASSIFIER_SLOT = """\
  classifier: !new:efficientat_plugin.StudentClassifier
    student: !ref <student>
    target: !ref <target>
"""


def write_model_folder(
    folder: str | Path, model: TrainedModel, provenance: Provenance
) -> Path:
    """Writes a model folder; replaces an existing one only when complete.

    Arguments
    ---------
    folder : str or Path
    model : TrainedModel
    provenance : Provenance

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    ValueError
        If ``folder`` exists and is not a model folder.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / HYPERPARAMS).is_file():
        raise ValueError(
            f"{folder} exists and is not a model folder; name another, or remove it"
        )
    with atomic_folder(folder, replace=True) as partial:
        state = {k: v.cpu() for k, v in model.student.state_dict().items()}
        torch.save(state, partial / WEIGHTS)
        (partial / HYPERPARAMS).write_text(hyperparams(model), encoding="utf-8")
        _write_labels(partial / LABELS, model.labels)
        numbers = {
            name: finite(scores.averages()) | {"num_clips": scores.num_clips}
            for name, scores in provenance.scores.items()
        }
        (partial / METRICS).write_text(json.dumps(numbers, indent=1))
        (partial / CARD).write_text(model_card(model, provenance), encoding="utf-8")
    return folder


def read_model_folder(folder: str | Path) -> TrainedModel:
    """Reads a model folder, e.g. to train it further, without executing its YAML.

    Arguments
    ---------
    folder : str or Path
        The model folder or its run folder.

    Returns
    -------
    TrainedModel
        Its student in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If it is not a model folder.
    ValueError
        If its files do not match each other, or the YAML is truncated.
    """
    return load_trained_model(model_folder_of(folder))


def load_trained_model(
    source: str | Path,
    labels: LabelTable | None = None,
    savedir: str | Path | None = None,
    clip_seconds: float | None = None,
    target: str | None = None,
    short_clips: str | None = None,
    **overrides: Any,
) -> TrainedModel:
    """Loads a model and everything needed to use it, from any source.

    What the source does not state (see `described`) must be given; nothing is guessed.

    Arguments
    ---------
    source : str or Path
        A published name, a model folder or its run folder, or a file of weights.
    labels : LabelTable or None
        The classes; None: from the source.
    savedir : str, Path or None
        Folder of downloads.
    clip_seconds : float or None
        Length of its training clips, s; None: from the source.
    target : str or None
        "multilabel" or "multiclass"; None: from the source, else "multilabel".
    short_clips : str or None
        "repeat", "zero_pad" or "as_is"; None: from the source, else "repeat".
    **overrides
        Overrides of `load_network`, e.g. ``n_mels=64, hop_length=640``.

    Returns
    -------
    TrainedModel
        Its student in evaluation mode.

    Raises
    ------
    OSError, ValueError
        As in `load_network`; also if something is neither stated nor given, or the
        numbers of labels and classes differ.
    """
    known = describe(source, savedir)
    return trained_model(known, labels, clip_seconds, target, short_clips, **overrides)


def trained_model(
    known: Described,
    labels: LabelTable | None = None,
    clip_seconds: float | None = None,
    target: str | None = None,
    short_clips: str | None = None,
    **overrides: Any,
) -> TrainedModel:
    """Does the rest of `load_trained_model` once weights are found and described."""
    state = read_state(known.path)
    is_known = {
        "front end": known.front_end is not None or states_front_end(overrides),
        "length of clips": not (clip_seconds is None and known.clip_seconds is None),
        "classes": not (labels is None and known.labels is None),
    }
    if unknown := [name for name, is_given in is_known.items() if not is_given]:
        raise Unstated(known.source, unknown)
    labels = labels or known.labels or audioset_labels()
    student = network_of(known, state, overrides)
    if student.num_classes != len(labels):
        raise ValueError(
            f"{known.source} has {student.num_classes} classes, but there are "
            f"{len(labels)} labels; give its own label table"
        )
    if isinstance(student, FrameStudent) and student.num_weak_classes != len(labels):
        raise ValueError(
            f"{known.source} scores clips by {student.num_weak_classes} classes, and "
            f"frames by the {len(labels)} of the labels; load it with load_student, or "
            f"pass num_weak_classes={len(labels)} to start with a new head for clips"
        )
    return TrainedModel(
        student,
        labels,
        target or known.target or "multilabel",
        float(clip_seconds or known.clip_seconds or 0),
        short_clips or known.short_clips or "repeat",
        known.event_options,
    )


@register_checkpoint_hooks
class ModelDescription:
    """Saves a description of the weights in each checkpoint, next to them.

    It has the text of a model folder's YAML. `describe` finds it, so a checkpoint loads
    with its front end, even if its folder was copied elsewhere.

    Arguments
    ---------
    model : TrainedModel
        The model in training.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> student = MN(1, width=0.1)
    >>> student.front_end = {"sample_rate": 32000}
    >>> model = TrainedModel(student, LabelTable(["a"], ["a"]), "multilabel", 5.0)
    >>> "clip_seconds: 5.0" in str(ModelDescription(model))
    True
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def __str__(self) -> str:
        return hyperparams(self.model)

    @mark_as_saver
    @main_process_only
    def save(self, path: str | Path) -> None:
        """Writes the YAML."""
        Path(path).write_text(str(self), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool) -> None:
        """Does nothing, since the settings of a run determine its model."""


def describe_checkpoints(
    checkpointer: Checkpointer, models: Mapping[str, TrainedModel]
) -> None:
    """Adds a description of each model to every checkpoint.

    Arguments
    ---------
    checkpointer : Checkpointer
        Checkpointer of the run.
    models : Mapping
        Models by the names of their students in the checkpointer, e.g. "student".
    """
    for name, model in models.items():
        checkpointer.add_recoverable(
            f"{name}{DESCRIPTION}",
            ModelDescription(model),
            optional_load=True,  # older runs have none
        )


def hyperparams(model: TrainedModel) -> str:
    """Writes the YAML that rebuilds the model.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> student = MN(2, width=0.1)
    >>> student.options, student.front_end = {"num_classes": 2, "width": 0.1}, {}
    >>> labels = LabelTable(["dog", "cat"], ["dog", "cat"])
    >>> text = hyperparams(TrainedModel(student, labels, "multiclass", 5.0))
    >>> [line for line in text.splitlines() if line.startswith("student")]
    ['student: !new:efficientat_plugin.MN']
    """
    student, labels, options = model.student, model.labels, model.student.options
    if isinstance(student, DyMN):  # training changes it
        options = options | {"temperature": float(student.temperature)}
    sample_rate = student.front_end.get("sample_rate", 32000)
    slots = "" if isinstance(student, PaSST | FrameStudent) else EMBEDDING_SLOTS
    if slots and classifies_embeddings(student):
        slots += CLASSIFIER_SLOT
    events = ""
    if model.event_options:
        events = EVENT_OPTIONS + _arguments(model.event_options)
    return f"""\
# A student of efficientat_plugin, for AudioTagger.from_hparams and for SpeechBrain.
sample_rate: {sample_rate}  # Hz
clip_seconds: {model.clip_seconds}  # s, length of the training clips
target: {model.target}
short_clips: {model.short_clips}  # how shorter sound is lengthened
{events}audio_normalizer: !new:efficientat_plugin.SoxrNormalizer
  sample_rate: !ref <sample_rate>

labels: !new:efficientat_plugin.LabelTable
  mids: {_texts(labels.mids)}
  names: {_texts(labels.names)}
label_encoder: !apply:efficientat_plugin.label_encoder
  labels: !ref <labels>

log_mel: !new:efficientat_plugin.LogMel
{_arguments(student.front_end | {"sample_rate": sample_rate})}
student: !new:{public_name(type(student))}
{_arguments(options)}
modules:
  log_mel: !ref <log_mel>
  student: !ref <student>
{slots}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    student: !ref <student>
  custom_hooks:  # loads all weights or none; SpeechBrain's own loads what fits
    student: !name:efficientat_plugin.load_published_state
"""


def public_name(kind: type) -> str:
    """Returns the dotted name of a class for YAMLs, which is stable if files move.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> public_name(MN), public_name(dict)
    ('efficientat_plugin.MN', 'builtins.dict')
    """
    if getattr(efficientat_plugin, kind.__name__, None) is kind:
        return f"efficientat_plugin.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _texts(texts: Iterable[str]) -> str:
    """Writes a list of texts; tags those in brackets, which would become tuples."""
    entries = (_quoted(text) for text in texts)
    tagged = (f"!!str {one}" if one.startswith('"(') else one for one in entries)
    return f"[{', '.join(tagged)}]"


def _quoted(text: str) -> str:
    """Quotes text for JSON and YAML; YAML allows no raw control characters."""
    return "".join(
        each
        if each.isprintable()
        else f"\\u{ord(each):04x}"
        if ord(each) < 1 << 16
        else f"\\U{ord(each):08x}"
        for each in json.dumps(text, ensure_ascii=False)
    )


def _arguments(options: Mapping[str, Any]) -> str:
    """Writes the arguments of a ``!new:``, one per line, as JSON, which is YAML."""
    lines = (f"  {name}: {json.dumps(value)}\n" for name, value in options.items())
    return "".join(lines)


def _write_labels(path: Path, labels: LabelTable) -> None:
    """Writes the labels for other programs; the model reads them from its YAML."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "mid", "display_name"])
        pairs = zip(map(cell, labels.mids), map(cell, labels.names), strict=True)
        table.writerows([index, *pair] for index, pair in enumerate(pairs))
