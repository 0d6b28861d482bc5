"""What a trained model is: for people, and for the hub's metadata."""

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
from efficientat_plugin.cost.complexity import measure
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import Scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import find_published
from efficientat_plugin.students.heads import classifies_embeddings
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.students.student import Student

TASK = "audio-classification"  # the hub's name of it


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


def model_card(model: TrainedModel, provenance: Provenance) -> str:
    """The folder's README: what the model costs, knows, and comes from."""
    log_mel = LogMel(**model.student.front_end)
    num_frames = log_mel.num_frames(round(model.clip_seconds * log_mel.sample_rate))
    cost = measure(model.student, log_mel.n_mels, num_frames)
    heard = provenance.scores.items()
    scores = "\n".join(f"- {_plain(name)}: {found}" for name, found in heard)
    scores = scores or "None: it was not tested."
    return f"""\
---
{hub_metadata(provenance).to_yaml()}
---

# {_plain(provenance.name)}

An audio tagger of efficientat_plugin: {type(model.student).__name__}, \
{len(model.labels)} classes, {model.target}.

```python
from efficientat_plugin import AudioTagger

tagger = AudioTagger.from_hparams("this folder, or its name on the hub")
print(tagger.tag("sound.wav"))
```

{_use(model.student)}

## Scores

{scores}

## Cost of a clip of {model.clip_seconds:g} s

```
{cost.describe(log_mel)}
```

Measured on the machine that wrote this card, {torch.get_num_threads()} threads.

## Limits

{_bullets(limits(model, provenance))}

## Data and licences

- Trained on: {_plain(provenance.data)}
- Licence of the data: {_plain(provenance.data_licence) or "not stated"}
- Started from: {_started_from(provenance)}
- Code: Apache-2.0
- Licence of the model: for whoever publishes it to choose, as `license` above
- Made with: {versions()}

## Classes

{class_table(model, provenance)}
"""


def _use(student: Student) -> str:
    """Who else loads it, and for what."""
    if isinstance(student, PaSST):
        return (
            "It is a transformer, for which SpeechBrain's own interfaces have no place."
        )
    use = "embeds and classifies a sound"
    if not classifies_embeddings(student):
        use = "embeds a sound (its head needs frames: no classes there)"
    return (
        f"SpeechBrain's `EncoderClassifier.from_hparams` loads it too, and {use} in "
        "one\npiece; efficientat_plugin must be installed."
    )


def hub_metadata(provenance: Provenance) -> ModelCardData:
    """What the hub reads at the head of a card.

    Source: https://github.com/huggingface/hub-docs, modelcard.md. The licence is
    "unknown" since "other" asks for a name and for the licence's text, and nobody has
    chosen one yet.

    Example
    -------
    >>> hub_metadata(Provenance("pets", None, "2 clips", "CC0", {})).license
    'unknown'
    """
    name = re.sub(r"[^\w.-]+", "-", provenance.name, flags=re.ASCII).strip("-.")
    name = name or "unnamed"  # the hub takes no empty one
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_value=round(value, 4),
            metric_name=f"{metric}, {_plain(heard)}",
        )
        for heard, scores in provenance.scores.items()
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
    """What data, weights or teachers are called, without their place on this machine.

    Arguments
    ---------
    source : str or Path
        A path, a published name, a hub id, or several of these joined by commas.

    Returns
    -------
    str
        The last part of a path, and names as they are. A model folder called ``model``
        keeps the name of its run.

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
    """Of the packages that a model was trained with.

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
    """What a user must not expect, in sentences."""
    rate = LogMel(**model.student.front_end).sample_rate
    short = {
        "repeat": "shorter ones are repeated",
        "zero_pad": "shorter ones are padded with silence",
        "as_is": "shorter ones are taken as they are",
    }[model.short_clips]
    said = [
        f"It was trained on mono clips of {model.clip_seconds:g} s at {rate} Hz. Sound "
        "of other rates is resampled, channels are averaged, longer clips are heard in "
        f"windows, and {short}."
    ]
    if provenance.scores:
        said.append(
            "It was tested on the clips under Scores and on nothing else: not on other "
            "data, recorders, rooms or noise."
        )
    else:
        said.append("It was not tested.")
    found = scores_of_classes(provenance)
    if found is not None:
        absent = int((found[1].positives == 0).sum())
        if absent:
            said.append(
                f"{absent} of its {len(model.labels)} classes had no clip in the test."
            )
    if model.target == "multiclass":
        said.append("It names one of its classes for any sound, also for one of none.")
    return said


def scores_of_classes(provenance: Provenance) -> tuple[str, Any] | None:
    """The first scores that tell classes apart, and what they were computed on."""
    for name, scores in provenance.scores.items():
        if hasattr(scores, "positives"):
            return name, scores
    return None


def class_table(model: TrainedModel, provenance: Provenance) -> str:
    """The classes in the order of their names, and how well each is told."""
    names = [_plain(name) for name in model.labels.names]
    order = sorted(range(len(names)), key=lambda k: (names[k].casefold(), k))
    found = scores_of_classes(provenance)
    if found is None:
        return _bullets([names[index] for index in order])
    what, scores = found
    numbers = scores.per_class()
    decided = "the likeliest class" if model.target == "multiclass" else "0.5 and more"
    lines = [
        f"On {_plain(what)}. Precision, recall and F1 are of {decided}.",
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
    r"""Text that is no markup, whatever stands in it, be it a list or an address.

    Example
    -------
    >>> print(_plain("1. *www.a.org*"), _plain("- http://a"))
    1\. \*www\.a.org\* \- http:\//a
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    text = re.sub(r"[\\`*_\[\]<>#|~$&]", r"\\\g<0>", text)
    # What begins a list, and what becomes a link of itself
    text = re.sub(r"^(\d*)([-+.)])", r"\1\\\2", text)
    return re.sub(r"(www)(\.)|(:)(//)", r"\1\3\\\2\4", text, flags=re.IGNORECASE)
