"""Writes the card of a trained model, for people and with the hub's metadata."""

import math
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import EvalResult, ModelCardData

from efficientat_plugin import __version__
from efficientat_plugin.cost.complexity import measure_once
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.evaluation.threshold_choice import ChosenThresholds
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import find_published
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.heads import classifies_embeddings
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.students.student import Student

TASK = "audio-classification"  # the hub's term


class TrainedModel(NamedTuple):
    """A student and everything needed to use it."""

    student: Student  # with its ``options`` and ``front_end``
    labels: LabelTable
    target: str  # "multilabel" or "multiclass"
    clip_seconds: float  # length of its training clips
    short_clips: str = "repeat"  # how shorter sound is lengthened
    # Of `EventOptions`, unless the user gives others; thresholds in order of classes
    event_options: Mapping[str, Any] = {}


class Provenance(NamedTuple):
    """Where a model comes from, for its card."""

    name: str
    started_from: str | None  # initial weights
    data: str  # training data and its size
    data_licence: str
    scores: Mapping[str, Scores]  # keyed by the data they were computed on
    thresholds: ChosenThresholds | None = None  # of a detector, on validation clips


def model_card(model: TrainedModel, provenance: Provenance) -> str:
    """Writes the README of a model folder: use, scores, cost, limits and origin."""
    log_mel = LogMel(**model.student.front_end)
    num_frames = log_mel.num_frames(round(model.clip_seconds * log_mel.sample_rate))
    cost = measure_once(model.student, log_mel.n_mels, num_frames)
    tested = provenance.scores.items()
    scores = "\n".join(f"- {_plain(name)}: {found}" for name, found in tested)
    scores = scores or "None: it was not tested."
    return f"""\
---
{hub_metadata(provenance).to_yaml()}
---

# {_plain(provenance.name)}

{_introduction(model)}

{_use(model.student)}{_thresholds(model, provenance)}

## Scores

{scores}

## Cost of a clip of {model.clip_seconds:g} s

```
{cost.describe(log_mel)}
```

Measured on the machine that wrote this card, threads: {torch.get_num_threads()}.

## Limits

{_bullets(limits(model, provenance))}

## Data and licences

- Trained on: {_plain(provenance.data)}
- Licence of the data: {_plain(provenance.data_licence) or "not stated"}
- Started from: {_started_from(provenance)}
- Code: Apache-2.0
- Licence of the model: to be chosen by its publisher, as `license` above
- Made with: {versions()}

## Classes

{class_table(model, provenance)}
"""


def _introduction(model: TrainedModel) -> str:
    """Says what it is, and how it is loaded."""
    kind, name, variable = "An audio tagger", "AudioTagger", "tagger"
    use = f"{variable}.tag"
    if isinstance(model.student, FrameStudent):
        kind, name, variable = "A sound event detector", "EventDetector", "detector"
        use = f"{variable}.events"
    return f"""\
{kind} of efficientat_plugin: {type(model.student).__name__}, \
{len(model.labels)} classes, {model.target}.

```python
from efficientat_plugin import {name}

{variable} = {name}.from_hparams("this folder, or its name on the hub")
print({use}("sound.wav"))
```"""


def _thresholds(model: TrainedModel, provenance: Provenance) -> str:
    """Says what scores have to exceed to be an event, and how that was chosen."""
    if "threshold" not in model.event_options:
        return ""
    stored = model.event_options["threshold"]
    how = f"is {stored:g}" if isinstance(stored, float) else "is listed below by class"
    text = (
        "\n\nThe probability that an event has to exceed, unless another is given, "
        f"{how}."
    )
    if provenance.thresholds is not None:
        text += f" On validation clips, {_plain(str(provenance.thresholds))}."
    return text


def _use(student: Student) -> str:
    """Says which of SpeechBrain's interfaces load it, and for what."""
    if isinstance(student, PaSST):
        return "It is a transformer, which SpeechBrain's own interfaces do not support."
    if isinstance(student, FrameStudent):
        return (
            "It scores every frame, too, which SpeechBrain's own interfaces do not "
            "support."
        )
    use = "embeds and classifies a sound"
    if not classifies_embeddings(student):
        use = "embeds a sound (it cannot classify, since the head needs frames)"
    return (
        f"SpeechBrain's `EncoderClassifier.from_hparams` loads it too, and {use} as a\n"
        "whole, without windows; efficientat_plugin must be installed."
    )


def hub_metadata(provenance: Provenance) -> ModelCardData:
    """Returns the metadata that the hub reads at the head of a card.

    Source: https://github.com/huggingface/hub-docs, modelcard.md. The licence is
    "unknown" because "other" requires a name and the licence's text, and none has been
    chosen yet.

    Example
    -------
    >>> hub_metadata(Provenance("pets", None, "2 clips", "CC0", {})).license
    'unknown'
    """
    name = re.sub(r"[^\w.-]+", "-", provenance.name, flags=re.ASCII).strip("-.")
    name = name or "unnamed"  # the hub refuses an empty one
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_value=round(value, 4),
            metric_name=f"{metric}, {_plain(data)}",
        )
        for data, scores in provenance.scores.items()
        for metric, value in scores.averages().items()
        if math.isfinite(value)
    ]
    return ModelCardData(
        library_name="speechbrain",
        pipeline_tag=TASK,
        tags=[TASK, "speechbrain", "efficientat_plugin"],
        license="unknown",
        metrics=sorted({scores.main for scores in provenance.scores.values()}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _started_from(provenance: Provenance) -> str:
    if provenance.started_from is None:
        return "nothing, from scratch"
    name = _plain(name_of(provenance.started_from))
    if find_published(provenance.started_from) is None:
        return name
    return f"{name} (published weights of EfficientAT: MIT)"


def name_of(source: str | Path) -> str:
    """Names data, weights or teachers without their location on this machine.

    Arguments
    ---------
    source : str or Path
        A path, a published name, a hub id, or several of these separated by commas.

    Returns
    -------
    str
        The last part of a path; names unchanged. A model folder called ``model`` keeps
        the name of its run folder.

    Example
    -------
    >>> name_of("/home/me/pets.csv"), name_of("ashraq/esc50"), name_of("mn10_as")
    ('pets.csv', 'ashraq/esc50', 'mn10_as')
    """
    text = str(source)
    path = Path(text).expanduser()
    if "," in text and not path.exists():
        return ", ".join(name_of(part.strip()) for part in text.split(","))
    if not (path.is_absolute() or path.exists() or text.startswith(".")):
        return text
    path = path.resolve()
    return f"{path.parent.name}/model" if path.name == "model" else path.name


def versions() -> str:
    """Returns the versions of the packages that a model was trained with.

    Example
    -------
    >>> versions().split(", ")[0]
    'efficientat_plugin 0.1.0'
    """
    others = (
        f"{name} {version(name)}" for name in ("torch", "torchaudio", "speechbrain")
    )
    ours = f"efficientat_plugin {__version__}"
    return ", ".join([ours, *others, f"Python {platform.python_version()}"])


def limits(model: TrainedModel, provenance: Provenance) -> list[str]:
    """Returns the limits of a model, in sentences."""
    rate = LogMel(**model.student.front_end).sample_rate
    short = {
        "repeat": "shorter ones are repeated",
        "zero_pad": "shorter ones are padded with silence",
        "as_is": "shorter ones are used as they are",
    }[model.short_clips]
    sentences = [
        f"It was trained on mono clips of {model.clip_seconds:g} s at {rate} Hz. Sound "
        "at other rates is resampled, channels are averaged, longer sounds are scored "
        f"in windows, and {short}."
    ]
    if provenance.scores:
        sentences.append(
            "It was tested only on the clips under Scores, and not on other data, "
            "recorders, rooms or noise."
        )
    else:
        sentences.append("It was not tested.")
    found = scores_of_classes(provenance)
    if found is not None:
        absent = int((found[1].positives == 0).sum())
        if absent:
            sentences.append(
                f"{absent} of its {len(model.labels)} classes had no test clips."
            )
    if model.target == "multiclass":
        sentences.append(
            "It predicts one of its classes for any sound, even if none is present."
        )
    return sentences


def scores_of_classes(provenance: Provenance) -> tuple[str, Any] | None:
    """Returns the first scores that are per class, and what they were computed on."""
    for name, scores in provenance.scores.items():
        if hasattr(scores, "positives"):
            return name, scores
    return None


def class_table(model: TrainedModel, provenance: Provenance) -> str:
    """Lists the classes in alphabetical order, with the scores of each."""
    names = [_plain(name) for name in model.labels.names]
    order = sorted(range(len(names)), key=lambda k: (names[k].casefold(), k))
    found = scores_of_classes(provenance)
    thresholds = model.event_options.get("threshold")
    if found is None and isinstance(thresholds, list):
        return _bullets([f"{names[k]}, threshold {thresholds[k]:.3f}" for k in order])
    if found is None:
        return _bullets([names[index] for index in order])
    what, scores = found
    numbers = scores.per_class()
    decided = (
        "the likeliest class"
        if model.target == "multiclass"
        else "probabilities of 0.5 or more"
    )
    how = f"Precision, recall and F1 are for {decided}."
    if "threshold" in numbers:
        how = "F-scores are at the thresholds."
    lines = [
        f"On {_plain(what)}. {how}",
        "",
        f"| class | clips | {' | '.join(numbers)} |".replace("average_precision", "AP"),
        "|---|" + "---:|" * (1 + len(numbers)),
    ]
    for index in order:
        values = [column[index] for column in numbers.values()]
        cells = [names[index], str(scores.positives[index])]
        cells += ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _plain(text: str) -> str:
    r"""Escapes all Markdown in a text, including lists and addresses.

    Example
    -------
    >>> print(_plain("1. *www.a.org*"), _plain("- http://a"))
    1\. \*www\.a.org\* \- http:\//a
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    text = re.sub(r"[\\`*_\[\]<>#|~$&]", r"\\\g<0>", text)
    # Starts of lists, and automatic links
    text = re.sub(r"^(\d*)([-+.)])", r"\1\\\2", text)
    return re.sub(r"(www)(\.)|(:)(//)", r"\1\3\\\2\4", text, flags=re.IGNORECASE)
