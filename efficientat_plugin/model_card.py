"""What a trained model is: for people, and for the hub's metadata."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from huggingface_hub import EvalResult, ModelCardData

from efficientat_plugin.classifiers import classifies_embeddings
from efficientat_plugin.complexity import measure
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.metrics import Scores
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
    names = ", ".join(_plain(name) for name in model.labels.names)
    use = "embeds and classifies a sound"
    if not classifies_embeddings(model.student):
        use = "embeds a sound (its head needs frames: no classes there)"
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

SpeechBrain's `EncoderClassifier.from_hparams` loads it too, and {use} in one
piece; efficientat_plugin must be installed.

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
- Started from: {_started_from(provenance)}
- Code: Apache-2.0
- Licence of the model: for whoever publishes it to choose, as `license` above

## Classes

{names}
"""


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
    return f"{_plain(provenance.started_from)} (published weights of EfficientAT: MIT)"


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
