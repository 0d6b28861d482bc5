"""A trained student as a folder that runs anywhere: weights, YAML, labels, a card.

``AudioTagger.from_hparams(folder)`` and SpeechBrain's own interfaces load it offline;
uploaded as it is, it is a model of the Hugging Face hub, without code of its own.
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ruamel.yaml import YAML

from efficientat_plugin.complexity import measure
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.metrics import Scores
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.student import Student
from efficientat_plugin.students.weights import FRONT_END, load_student

HYPERPARAMS = "hyperparams.yaml"
WEIGHTS = "student.ckpt"
LABELS = "labels.csv"
METRICS = "metrics.json"
CARD = "README.md"


class TrainedModel(NamedTuple):
    """A student and all that is needed to use it."""

    student: Student  # with its ``options`` and ``front_end``
    labels: LabelTable
    target: str  # "multilabel" or "multiclass"
    clip_seconds: float  # of the clips it was trained on
    short_clips: str = "repeat"  # what is done with shorter sound


class Provenance(NamedTuple):
    """Where a model comes from, for its card."""

    name: str
    started_from: str | None  # weights that training began with
    data: str  # what it was trained on, with N
    data_licence: str
    scores: Mapping[str, Scores]  # by what they were computed on


def write_model_folder(
    folder: str | Path, model: TrainedModel, provenance: Provenance
) -> Path:
    """Writes a model folder, aside first; one that is there already is replaced.

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
        If something else than a model folder is there.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / HYPERPARAMS).is_file():
        raise ValueError(
            f"{folder} is there and is no model folder; name another, or remove it"
        )
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        state = {k: v.cpu() for k, v in model.student.state_dict().items()}
        torch.save(state, partial / WEIGHTS)
        (partial / HYPERPARAMS).write_text(hyperparams(model), encoding="utf-8")
        _write_labels(partial / LABELS, model.labels)
        numbers = {
            name: scores.averages() | {"num_clips": scores.num_clips}
            for name, scores in provenance.scores.items()
        }
        (partial / METRICS).write_text(json.dumps(numbers, indent=1))
        (partial / CARD).write_text(model_card(model, provenance), encoding="utf-8")
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex[:8]}")
            os.replace(folder, replaced)
            os.replace(partial, folder)
            shutil.rmtree(replaced)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_model_folder(folder: str | Path) -> TrainedModel:
    """What ``write_model_folder`` wrote, to go on training with; runs nothing of it.

    Arguments
    ---------
    folder : str or Path

    Returns
    -------
    TrainedModel
        Its student in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If that is no model folder.
    ValueError
        If its files do not fit each other.
    """
    path = Path(folder) / HYPERPARAMS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no {HYPERPARAMS}")
    settings = YAML(typ="rt").load(path)  # tags stay names: no object is built
    try:
        labels = LabelTable(settings["labels"]["mids"], settings["labels"]["names"])
        student = load_student(
            Path(folder) / WEIGHTS,
            **_plain_values(settings["log_mel"], only=FRONT_END),
            **_plain_values(settings["student"], except_for=FRONT_END),
        )
        return TrainedModel(
            student,
            labels,
            str(settings["target"]),
            float(settings["clip_seconds"]),
            str(settings["short_clips"]),
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; is it a tagger's?") from error


def hyperparams(model: TrainedModel) -> str:
    """The YAML that builds the model again.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> student = MN(2, width=0.1)
    >>> student.options, student.front_end = {"num_classes": 2, "width": 0.1}, {}
    >>> labels = LabelTable(["dog", "cat"], ["dog", "cat"])
    >>> text = hyperparams(TrainedModel(student, labels, "multiclass", 5.0))
    >>> [line for line in text.splitlines() if line.startswith("student")]
    ['student: !new:efficientat_plugin.students.mn.MN']
    """
    student, labels, options = model.student, model.labels, model.student.options
    if isinstance(student, DyMN):  # which training moves
        options = options | {"temperature": float(student.temperature)}
    kind = f"{type(student).__module__}.{type(student).__qualname__}"
    sample_rate = student.front_end.get("sample_rate", 32000)
    return f"""\
# A student of efficientat_plugin, for AudioTagger.from_hparams and for SpeechBrain.
sample_rate: {sample_rate}  # Hz
clip_seconds: {model.clip_seconds}  # s, of the clips that it was trained on
target: {model.target}
short_clips: {model.short_clips}  # what is done with shorter sound
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>

labels: !new:efficientat_plugin.data.targets.LabelTable
  mids: {json.dumps(labels.mids, ensure_ascii=False)}
  names: {json.dumps(labels.names, ensure_ascii=False)}

log_mel: !new:efficientat_plugin.features.LogMel
{_arguments(student.front_end | {"sample_rate": sample_rate})}
student: !new:{kind}
{_arguments(options)}
modules:
  log_mel: !ref <log_mel>
  student: !ref <student>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    student: !ref <student>
  custom_hooks:  # all of the weights or none: SpeechBrain's own takes what fits
    student: !name:efficientat_plugin.students.weights.load_published_state
"""


def model_card(model: TrainedModel, provenance: Provenance) -> str:
    """The folder's README: what the model costs, knows, and comes from."""
    log_mel = LogMel(**model.student.front_end)
    num_frames = log_mel.num_frames(round(model.clip_seconds * log_mel.sample_rate))
    cost = measure(model.student, log_mel.n_mels, num_frames)
    scores = "\n".join(f"- {name}: {s}" for name, s in provenance.scores.items())
    names = ", ".join(_plain(name) for name in model.labels.names)
    return f"""\
---
library_name: speechbrain
pipeline_tag: audio-classification
tags: [audio-classification, speechbrain, efficientat_plugin]
license: other
---

# {_plain(provenance.name)}

An audio tagger of efficientat_plugin: {type(model.student).__name__}, \
{len(model.labels)} classes, {model.target}.

```python
from efficientat_plugin import AudioTagger

tagger = AudioTagger.from_hparams("this folder, or its name on the hub")
print(tagger.tag("sound.wav"))
```

## Scores

{scores}

## Cost of a clip of {model.clip_seconds:g} s

```
{cost.describe(log_mel)}
```

Measured on the machine that wrote this card, {torch.get_num_threads()} threads.

## Data and licences

- Trained on: {_plain(provenance.data)}
- Licence of the data: {_plain(provenance.data_licence) or "not stated"}
- Started from: {_plain(provenance.started_from or "nothing, from scratch")} \
(published weights of EfficientAT: MIT)
- Code: Apache-2.0

## Classes

{names}
"""


def _plain_values(
    options: Mapping[str, Any],
    only: tuple[str, ...] = (),
    except_for: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in options.items()
        if (not only or name in only) and name not in except_for
    }


def _arguments(options: Mapping[str, Any]) -> str:
    """Arguments of a ``!new:``, one a line; JSON is YAML."""
    lines = (f"  {name}: {json.dumps(value)}\n" for name, value in options.items())
    return "".join(lines)


def _plain(text: str) -> str:
    """Text that is no markup, whatever stands in it."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter in "\\`*_[]<>#|":
        text = text.replace(letter, f"\\{letter}")
    return text


def _write_labels(path: Path, labels: LabelTable) -> None:
    """For other programs; what the model means stands in its YAML."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "mid", "display_name"])
        pairs = zip(labels.mids, labels.names, strict=True)
        table.writerows([index, *pair] for index, pair in enumerate(pairs))
