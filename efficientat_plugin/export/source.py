"""Finds the model to export: by name, weights file or model folder."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from efficientat_plugin.contracts import SHORT_CLIPS, TARGETS, FrameOutput
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.frame_networks import most_frames
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.pretrained.description import describe
from efficientat_plugin.pretrained.folder import load_trained_model
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    FRAME_LOGITS,
    LOG_MEL,
    LOGITS,
    PROBABILITIES,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.frame_student import FrameStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.event_finder import options_of_model


class Source(NamedTuple):
    """A model to export."""

    name: str
    sha256: str  # of the weights file
    model: TrainedModel
    log_mel: LogMel

    @property
    def num_frames(self) -> int | None:
        """T, if squeeze-excite over frames fixes it."""
        student = self.model.student
        if isinstance(student, MN) and "t" in student.se_dims:
            return student.n_frames
        return None

    @property
    def max_frames(self) -> int | None:
        """T of the longest log-mel that the student takes, if it is limited."""
        return most_frames(self.model.student)

    @property
    def frame_samples(self) -> int | None:
        """Samples from one frame of scores to the next, if the student has them."""
        student = self.model.student
        if not isinstance(student, FrameStudent):
            return None
        return student.frame_stride * self.log_mel.hop_length

    @property
    def min_samples(self) -> int:
        """The shortest sound, in samples, that the front end takes."""
        return self.log_mel.n_fft // 2 + 2

    @property
    def clip_samples(self) -> int:
        """Length of the clips that the model was trained on, in samples."""
        return round(self.model.clip_seconds * self.log_mel.sample_rate)

    def outputs(self, waveforms: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Computes what files compute of [B, N], and the log-mel, in PyTorch."""
        frames = {}
        with torch.inference_mode():
            log_mel = self.log_mel(torch.from_numpy(waveforms))
            found = self.model.student(log_mel.unsqueeze(1))
        logits, embedding = found.logits, found.embedding
        if isinstance(found, FrameOutput):
            frames = {FRAME_LOGITS: found.strong.transpose(1, 2).numpy()}
        is_multilabel = self.model.target == "multilabel"
        probabilities = logits.sigmoid() if is_multilabel else logits.softmax(dim=1)
        return {
            LOG_MEL: log_mel.numpy(),
            LOGITS: logits.numpy(),
            EMBEDDING: embedding.numpy(),
            PROBABILITIES: probabilities.numpy(),
            **frames,
        }


def find_source(
    source: str | Path,
    labels: LabelTable | None = None,
    savedir: str | Path | None = None,
    **stated: Any,
) -> Source:
    """Loads a model with everything needed to use it.

    Arguments
    ---------
    source : str or Path
        As for `load_trained_model`; no code in it is executed.
    labels : LabelTable or None
        Classes of a weights file that does not contain them.
    savedir : str, Path or None
        Folder for downloads.
    **stated
        Arguments of `load_trained_model` for such a file, such as ``clip_seconds``,
        ``n_mels`` and ``hop_length``.

    Returns
    -------
    Source

    Raises
    ------
    OSError, ValueError
        If it is not a model that can be exported, or the labels do not match.
    """
    if "," in str(source) and not Path(source).exists():
        raise ValueError(
            f"{source} is several models, but a file has one; export each separately"
        )
    known = describe(source, savedir)
    if known.yaml is not None and labels is not None:
        raise ValueError(f"{source} has its labels; leave out labels")
    model = load_trained_model(source, labels, savedir, **stated)
    if not isinstance(model.student, MN | DyMN | FrameStudent):
        raise ValueError(
            f"{source} is a {model.student.describe()}, but only an MN or a DyMN can "
            "be exported, and for events a FrameMN or a FramePaSST"
        )
    log_mel = LogMel(**model.student.front_end).eval()
    sha256 = hashlib.sha256(known.path.read_bytes()).hexdigest()
    found = Source(Path(source).name, sha256, model, log_mel)
    _check_settings(found)
    frames = log_mel.num_frames(found.clip_samples)
    if found.num_frames not in (None, frames):
        raise ValueError(
            f"{source} takes {found.num_frames} frames only, but its clips of "
            f"{model.clip_seconds:g} s have {frames}; correct its clip_seconds"
        )
    if found.max_frames is not None and frames > found.max_frames:
        raise ValueError(
            f"{source} takes at most {found.max_frames} frames, but its clips of "
            f"{model.clip_seconds:g} s have {frames}; correct its clip_seconds"
        )
    return found


def _check_settings(source: Source) -> None:
    """Raises a ``ValueError`` for illegal settings and for weights that are NaN."""
    model = source.model
    for name, legal in (("target", TARGETS), ("short_clips", SHORT_CLIPS)):
        if getattr(model, name) not in legal:
            raise ValueError(
                f"{source.name} has {name}={getattr(model, name)!r}; it is one of "
                f"{', '.join(legal)}"
            )
    shortest = source.min_samples / source.log_mel.sample_rate
    if not shortest <= model.clip_seconds < math.inf:
        raise ValueError(
            f"{source.name} has clip_seconds={model.clip_seconds:g}; it must be "
            f"{shortest:.3f} or more, the shortest sound that its front end takes"
        )
    options_of_model(model.event_options, model.labels)
    for name, value in model.student.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(
                f"{source.name} has weights that are not finite, such as {name}; give "
                "those of a successful run"
            )
