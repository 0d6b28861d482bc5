"""The named tuples that stages pass to each other.

The names of axes are defined here and mean the same everywhere: **B** batch,
**N** samples, **F** mel bins, **T** mel frames, **C** channels, **K** classes,
**D** embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the modules that read sounds also work without torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


TARGETS = ("multilabel", "multiclass")  # several classes per clip, or exactly one
# How clips that are shorter than the training clips of a model are handled
SHORT_CLIPS = ("repeat", "zero_pad", "as_is")


class Skipped(NamedTuple):
    """A clip that could not be read."""

    clip_id: str
    reason: str


class Clip(NamedTuple):
    """One clip, as a data set returns it."""

    clip_id: str  # stable, since stored logits are looked up by it
    waveform: Tensor  # [N]
    labels: Tensor  # [K], from 0 to 1; zeros if unlabelled
    labelled: Tensor  # share of the labels that is known, from 0 to 1: [] or [K]
    partner_id: str = ""  # the clip mixed into the waveform, if any
    partner_share: float = 0.0  # its weight, at most 0.5
    skipped: tuple[Skipped, ...] = ()  # unreadable clips that this one replaces


class ClipBatch(NamedTuple):
    """A batch of clips; B is 0 if none of them could be read."""

    clip_id: list[str]
    waveform: Tensor  # [B, N]
    labels: Tensor  # [B, K]
    labelled: Tensor  # [B], or [B, K] if each class was annotated separately
    partner_id: list[str]
    partner_share: Tensor  # [B]
    skipped: list[Skipped]


class Mix(NamedTuple):
    """How a batch was mixed: ``y = weight * x + (1 - weight) * x[partner]``."""

    weight: Tensor  # [B], in [0.5, 1]
    partner: Tensor  # [B], int64, an index into the batch


class TeacherInput(NamedTuple):
    """A batch and the log-mels that a student computes its output from."""

    batch: ClipBatch
    log_mel: Tensor  # [B, F, T], masked and mixed in training
    mix: Mix | None  # how log-mels were mixed


class TeacherTarget(NamedTuple):
    """A teacher's logits for a batch of clips, as far as it has any."""

    logits: Tensor  # [B, K], before any temperature; 0 where not known
    known: Tensor  # [B], bool; False where the teacher has no logits of the clip
    partner: TeacherTarget | None = None  # of the clips mixed into the waveforms
    is_mixed: bool = False  # whether the logits were computed on the mixed batch


class StudentOutput(NamedTuple):
    """The output of every student."""

    logits: Tensor  # [B, K], before sigmoid or softmax
    embedding: Tensor  # [B, D], the average of the last maps over F and T


class SoftTarget(NamedTuple):
    """The target of each clip, and how much of it is known.

    ``scores`` are already multiplied by ``weight``: a clip without a target has a
    row of zeros and weight 0, and clips are mixed by mixing both fields.
    """

    scores: Tensor  # [B, K]
    weight: Tensor  # [B], or [B, K] if it differs between classes; from 0 to 1

    def mixed(self, partner: SoftTarget, share: Tensor) -> SoftTarget:
        """Mixes a ``share`` [B] of this target with the rest of ``partner``."""
        scores = share[:, None] * self.scores + (1 - share)[:, None] * partner.scores
        if self.weight.ndim == 2:
            share = share[:, None]
        return SoftTarget(scores, share * self.weight + (1 - share) * partner.weight)

    def followed(self, mix: Mix | None) -> SoftTarget:
        """Returns the target of a mixed batch; with None, of the batch as it is."""
        if mix is None:
            return self
        # The losses are linear in the target, so mixing targets mixes the losses.
        partner = SoftTarget(self.scores[mix.partner], self.weight[mix.partner])
        return self.mixed(partner, mix.weight)


class Tag(NamedTuple):
    """A class and its probability in a sound."""

    name: str
    mid: str  # AudioSet's id of the class; the name for other classes
    probability: float


class ScanWindow(NamedTuple):
    """The probabilities of one window of a long sound."""

    start_seconds: float
    end_seconds: float
    probabilities: NDArray[np.float32]  # [K]
