"""The parts that every recipe builds from its settings, labels and student."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from torch import nn

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.pretrained.folder import describe_checkpoints
from efficientat_plugin.pretrained.weights import front_end_arguments
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.students.student import Student
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.stored import StoredTeacher
from efficientat_plugin.teachers.stored_frames import StoredFrameTeacher


def plain_clips(
    hparams: Mapping[str, Any],
    labels: LabelTable,
    rows: datasets.Dataset,
    places: Sequence[int],
) -> Clips:
    """Returns some of the rows as clips, without augmentation."""
    return Clips(rows.select(places), ClipReader(labels, **hparams["clip"]))


def augmented_clips(
    hparams: Mapping[str, Any], labels: LabelTable, rows: datasets.Dataset
) -> Clips:
    """Returns the rows as training clips, with the augmentation set in the YAML."""
    return Clips(
        rows,
        ClipReader(labels, **hparams["clip"]),
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
    clip = hparams["clip"]
    return TrainedModel(
        student, labels, target, clip["clip_seconds"], clip["short_clips"]
    )


def checkpointer_of(
    hparams: Mapping[str, Any], model: TrainedModel, epoch_counter: Any
) -> AtomicCheckpointer:
    """Builds the YAML's checkpointer, whose checkpoints describe the model."""
    recoverables = {
        "student": model.student,
        "epoch_counter": epoch_counter,
        "history": hparams["history"],
    }
    checkpointer: AtomicCheckpointer = hparams["checkpointer"](
        recoverables=recoverables
    )
    describe_checkpoints(checkpointer, {"student": model})
    return checkpointer


def store_logits(
    hparams: Mapping[str, Any],
    path: str | Path,
    name: str,
    teacher: Ensemble,
    labels: LabelTable,
    rows: datasets.Dataset,
    device: str,
    of_frames: bool = False,
) -> StoredTeacher:
    """Computes a teacher's logits of clips, unless they are stored at ``path``.

    ``name`` is the teacher's, for the store; ``of_frames`` asks for those of frames.
    """
    fill_store(
        path,
        name,
        teacher,
        labels,
        rows,
        hparams["clip"]["clip_seconds"],
        device,
        hparams["max_unreadable_share"],
        short_clips=hparams["clip"]["short_clips"],
        of_frames=of_frames,
        **hparams["eval_loader"],
    )
    return StoredFrameTeacher(path) if of_frames else StoredTeacher(path)
