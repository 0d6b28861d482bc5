"""What travels between the stages: named tuples, no logic.

Axes are named once, here, and mean the same everywhere: **B** batch,
**N** samples, **F** mel bins, **T** mel frames, **C** channels, **K** classes,
**D** embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what reads sound is used without torch, too
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


TARGETS = ("multilabel", "multiclass")  # how many classes a clip has
# What is done with clips that are shorter than a model is used to
SHORT_CLIPS = ("repeat", "zero_pad", "as_is")


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
    """A teacher's logits for a batch of clips, where it has any."""

    logits: Tensor  # [B, K], before any temperature; 0 where not known
    known: Tensor  # [B], bool; False where the teacher never heard the clip
    partner: TeacherTarget | None = None  # of the clips mixed into the waveforms
    is_mixed: bool = False  # whether the teacher was given the batch as it was mixed


class StudentOutput(NamedTuple):
    """What every student returns."""

    logits: Tensor  # [B, K], before sigmoid or softmax
    embedding: Tensor  # [B, D], what the head pools: the average over F and T


class SoftTarget(NamedTuple):
    """What a student should say of each clip, and how much of that is known.

    ``scores`` are times ``weight`` already: a clip of which nothing is known has a
    row of zeros and weight 0, and a mix of clips is the mix of both fields.
    """

    scores: Tensor  # [B, K]
    weight: Tensor  # [B], or [B, K] where classes differ in it; from 0 to 1

    def mixed(self, partner: SoftTarget, share: Tensor) -> SoftTarget:
        """``share`` [B] of this target and the rest of ``partner``."""
        scores = share[:, None] * self.scores + (1 - share)[:, None] * partner.scores
        if self.weight.ndim == 2:
            share = share[:, None]
        return SoftTarget(scores, share * self.weight + (1 - share) * partner.weight)

    def followed(self, mix: Mix | None) -> SoftTarget:
        """The target of a batch that was mixed; None: that was not."""
        if mix is None:
            return self
        # The losses are linear in the target: that of a mix is that of mixed targets.
        partner = SoftTarget(self.scores[mix.partner], self.weight[mix.partner])
        return self.mixed(partner, mix.weight)


class Tag(NamedTuple):
    """A class that a sound may have."""

    name: str
    mid: str  # AudioSet's id of it; of other classes the name again
    probability: float


class ScanWindow(NamedTuple):
    """What a window of a long sound sounds like."""

    start_seconds: float
    end_seconds: float
    probabilities: NDArray[np.float32]  # [K]
