"""What travels between the stages: named tuples, no logic.

Axes are named once, here, and mean the same everywhere: **B** batch,
**N** samples, **F** mel bins, **T** mel frames, **C** channels, **K** classes,
**D** embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what reads sound is used without torch, too
    from torch import Tensor


class Skipped(NamedTuple):
    """A clip that could not be read."""

    clip_id: str
    reason: str


class Clip(NamedTuple):
    """One clip, as a data set gives it."""

    clip_id: str  # stable: teachers are keyed by it
    waveform: Tensor  # [N]
    labels: Tensor  # [K], from 0 to 1; zeros where unlabelled
    labelled: Tensor  # how much of the labels is known, from 0 to 1: [] or [K]
    partner_id: str = ""  # the clip mixed into the waveform, if any
    partner_share: float = 0.0  # its weight, at most 0.5
    skipped: tuple[Skipped, ...] = ()  # clips tried before this one


class ClipBatch(NamedTuple):
    """Clips of a batch, one field each; B may be 0 where none could be read."""

    clip_id: list[str]
    waveform: Tensor  # [B, N]
    labels: Tensor  # [B, K]
    labelled: Tensor  # [B], or [B, K] where classes were judged one by one
    partner_id: list[str]
    partner_share: Tensor  # [B]
    skipped: list[Skipped]


class Mix(NamedTuple):
    """How a batch was mixed: ``y = weight * x + (1 - weight) * x[partner]``."""

    weight: Tensor  # [B], in [0.5, 1]
    partner: Tensor  # [B], int64, an index into the batch


class Heard(NamedTuple):
    """A batch as the student hears it."""

    batch: ClipBatch
    log_mel: Tensor  # [B, F, T], masked and mixed in training
    mix: Mix | None  # how log-mels were mixed


class TeacherTarget(NamedTuple):
    """What a teacher says of a batch of clips, where it says anything."""

    logits: Tensor  # [B, K], before any temperature; 0 where not known
    known: Tensor  # [B], bool; False where the teacher never heard the clip


class StudentOutput(NamedTuple):
    """What every student returns."""

    logits: Tensor  # [B, K], before sigmoid or softmax
    embedding: Tensor  # [B, D], what the head pools: the average over F and T
