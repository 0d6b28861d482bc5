"""Small, fast audio-tagging CNNs for SpeechBrain, and the distillation behind them.

A folder is a stage or a slot. This is the path of the signal through the package::

    row --data--> waveform --features--> log-mel --students--> StudentOutput
     |             [B, N]               [B, 1, F, T]             |        \\
     \\--teachers--> TeacherTarget ----> training (loss, Brain) <-/     evaluation
                                              |
                      pretrained (weights and model folders by name)
                     /                |                   \\
              tagging (files,    interfaces (SpeechBrain,  export --> runtime
              streams, scans)    HEAR)                     (no torch)

==================  ================================================================
``contracts``       the named tuples that travel between the others
``support``         locks, files, limits, checkpoints, how a recipe starts: machinery
                    that knows nothing about sound
``features``        `LogMel`, and `SpecMask` for training
``data``            folders, tables and hub data sets become batches; ``data.prepare``
                    writes them as shards, ``data.sample`` is the embedded sample,
                    ``data.events`` reads labels with times, ``data.soundscapes``
                    mixes sounds at known times
``students``        `MN`, `DyMN`, `PaSST`: one contract, tested over all of them;
                    `FrameMN`, `FramePaSST` score every frame; ``sequence`` has
                    models over frames
``cost``            parameters, MACs, memory, receptive field
``evaluation``      metrics, PSDS and F-scores of events, agreement with a teacher,
                    tables and figures
``pretrained``      published names, downloads, strict import, the model folder
``teachers``        any of these networks, an AST or a function; ``teachers.store``
                    keeps logits that were computed beforehand
``tagging``         sound in, tags and events out: files, long recordings and streams
``training``        losses, schedules, the probe and the Brains
``interfaces``      what other people's pipelines plug in
``runtime``         runs exported models without torch
``export``          ONNX and LiteRT
``cli``             the command ``efficientat``
==================  ================================================================

Each imports only from those above it (`make lint` checks this).

Axes: **B** batch, **N** samples, **F** mel bins, **T** mel frames, **T'** student
frames, **C** channels, **K** classes, **D** embedding. SpeechBrain's features are
``[B, T, F]``; a student takes ``[B, 1, F, T]``.

The names below are the public ones. They stay when files move, so YAMLs and model
folders use them, as ``!new:efficientat_plugin.MN``. Each is imported when it is first
used: importing the package loads neither torch nor datasets.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AtomicCheckpointer": "support.checkpoints",
    "AudioTagger": "tagging.torch_tagger",
    "ClipEncoder": "data.prepare.encoding",
    "Clips": "data.clips",
    "BoxOptions": "data.events.score_boxes",
    "DistillationBrain": "training.brain",
    "DistillationLoss": "training.losses",
    "DyMN": "students.dymn",
    "Event": "contracts",
    "EventBrain": "training.event_brain",
    "EventDetector": "tagging.event_detector",
    "EventLoss": "training.event_brain",
    "EventOptions": "tagging.event_finder",
    "Facts": "data.dataset_facts",
    "FineTuningBrain": "training.finetuning",
    "FilterAugment": "data.log_mel_augmentation",
    "FrameMN": "students.frame_mn",
    "FrameOutput": "contracts",
    "FramePaSST": "students.frame_passt",
    "FrameShift": "data.frame_mixing",
    "FrameTeacher": "teachers.online_frames",
    "FreqMixStyle": "data.log_mel_augmentation",
    "FrequencyWarp": "data.log_mel_augmentation",
    "History": "training.brain",
    "KeepFeatures": "interfaces.encoders",
    "LabelTable": "data.labels",
    "LayerEmbedding": "students.embeddings",
    "LogMel": "features",
    "LogMelFbank": "interfaces.encoders",
    "LogMelFeatures": "interfaces.encoders",
    "LogMelSTFT": "interfaces.encoders",
    "LogitsStore": "teachers.store.logits_store",
    "MN": "students.mn",
    "Mixup": "data.mixing",
    "MutualBrain": "training.mutual",
    "OnlineTeacher": "teachers.online",
    "PaSST": "students.passt",
    "PlainTrainLogger": "training.train_log",
    "SoxrNormalizer": "interfaces.classifiers",
    "SoundscapeOptions": "data.soundscape_mixing",
    "SpecMask": "features",
    "StudentClassifier": "interfaces.classifiers",
    "StudentEncoder": "interfaces.encoders",
    "StudentOutput": "contracts",
    "StudentWaveformEncoder": "interfaces.encoders",
    "TaggingStats": "evaluation.metrics",
    "TemperatureRampDown": "training.schedules",
    "WarmupCosine": "training.schedules",
    "WarmupRampDown": "training.schedules",
    "WaveformAugment": "data.mixing",
    "WaveformMix": "data.mixing",
    "audioset_labels": "data.labels",
    "audioset_strong_labels": "data.labels",
    "box_scores": "data.events.score_boxes",
    "event_scores": "evaluation.event_scores",
    "frame_targets": "data.events.event_targets",
    "inference_form": "students.inference_form",
    "label_encoder": "interfaces.classifiers",
    "list_students": "pretrained.published",
    "list_teachers": "pretrained.published_passt",
    "load_backbone": "pretrained.backbone",
    "load_encoder": "interfaces.encoders",
    "load_published_state": "pretrained.weights",
    "load_rows": "data.rows",
    "load_student": "pretrained.weights",
    "load_teacher": "teachers.load",
    "make_soundscapes": "data.soundscapes",
    "prepare_for_short_run": "training.short_runs",
    "psds": "evaluation.events",
    "read_events": "data.events.event_tables",
    "read_table": "data.tables",
    "sample_teacher": "data.sample.sample_set",
    "segment_auroc": "evaluation.segment_scores",
    "segment_scores": "evaluation.segment_scores",
    "write_sample": "data.sample.sample_set",
}

# Modules by the names that older model folders have for them
_MOVED = {
    "classifiers": "interfaces.classifiers",
    "data.targets": "data.labels",
    "encoders": "interfaces.encoders",
    "students.weights": "pretrained.weights",
    "teachers.passt": "students.passt",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return moved_module(__name__, name)


def moved_module(package: str, name: str) -> Any:
    """A module by the name that it had before it moved.

    Arguments
    ---------
    package : str
        The package that it was in.
    name : str
        Its name there.

    Returns
    -------
    module

    Raises
    ------
    AttributeError
        For any other name, as a module's ``__getattr__`` must.

    Example
    -------
    >>> moved_module("efficientat_plugin.data", "targets").__name__
    'efficientat_plugin.data.labels'
    """
    old = f"{package}.{name}".removeprefix(f"{__name__}.")
    if old not in _MOVED:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{_MOVED[old]}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
