"""The parts that every recipe builds from its settings, labels and student."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from torch import nn

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.pretrained.weights import front_end_arguments
from efficientat_plugin.students.student import Student


def clip_reader(hparams: Mapping[str, Any], labels: LabelTable) -> ClipReader:
    """Builds the reader that turns rows into clips of the length set in the YAML.

    Arguments
    ---------
    hparams : Mapping
        With ``clip_seconds``, ``sample_rate`` (Hz) and ``short_clips``.
    labels : LabelTable
        The classes.

    Returns
    -------
    ClipReader

    Example
    -------
    >>> settings = {"clip_seconds": 1.0, "sample_rate": 32000, "short_clips": "repeat"}
    >>> clip_reader(settings, LabelTable(["a"], ["a"])).num_samples
    32000
    """
    return ClipReader(
        labels,
        hparams["clip_seconds"],
        hparams["sample_rate"],
        hparams["short_clips"],
    )


def plain_clips(
    hparams: Mapping[str, Any],
    labels: LabelTable,
    rows: datasets.Dataset,
    places: Sequence[int],
) -> Clips:
    """Returns some of the rows as clips, without augmentation."""
    return Clips(rows.select(places), clip_reader(hparams, labels))


def augmented_clips(
    hparams: Mapping[str, Any], labels: LabelTable, rows: datasets.Dataset
) -> Clips:
    """Returns the rows as training clips, with the augmentation set in the YAML."""
    return Clips(
        rows,
        clip_reader(hparams, labels),
        hparams["waveform_augment"],
        hparams["waveform_mix"],
        hparams["seed"],
        replace_unreadable=True,
    )


def modules_of(
    hparams: Mapping[str, Any], student: Student, log_mel: LogMel
) -> dict[str, nn.Module]:
    """Returns the modules of a Brain, and sets the student's ``front_end``.

    The model folder then holds the front end that the student was trained with.
    """
    student.front_end = front_end_arguments(log_mel)
    return {
        "log_mel": log_mel,
        "spec_mask": hparams["spec_mask"],
        "student": student,
    }


def trained_model(
    hparams: Mapping[str, Any], student: Student, labels: LabelTable, target: str
) -> TrainedModel:
    """Returns the student with everything that is needed to use it."""
    return TrainedModel(
        student, labels, target, hparams["clip_seconds"], hparams["short_clips"]
    )
