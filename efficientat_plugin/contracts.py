"""The named tuples that stages pass to each other.

The names of axes are defined here and mean the same everywhere: **B** batch,
**N** samples, **F** mel bins, **T** mel frames, **T'** student frames, **C** channels,
**K** classes, **D** embedding.
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


class Framing(NamedTuple):
    """Where the frames of a log-mel lie in a sound; every front end follows it.

    Frame t is centred on sample ``t * hop_length`` of the pre-emphasised sound, which
    is one sample shorter than the sound. Both ends are reflected.

    Example
    -------
    >>> framing = Framing(n_fft=1024, win_length=800, hop_length=320)
    >>> framing.min_samples, framing.num_frames(32000), framing.inner_frames(32000)
    (514, 100, (2, 99))
    """

    n_fft: int  # samples
    win_length: int  # samples
    hop_length: int  # samples

    @property
    def min_samples(self) -> int:
        """The shortest sound, in samples, whose ends can be reflected."""
        return self.n_fft // 2 + 2

    @property
    def before(self) -> int:
        """Samples of a frame before its centre."""
        return self.n_fft // 2 - (self.n_fft - self.win_length) // 2

    @property
    def behind(self) -> int:
        """Samples of a frame from its centre on."""
        return self.win_length - self.before

    def num_frames(self, num_samples: int) -> int:
        """Returns T, the number of frames of a sound of ``num_samples``."""
        return 1 + (num_samples - 1) // self.hop_length

    def inner_frames(self, num_samples: int) -> tuple[int, int]:
        """Returns the range of frames that contain no reflected samples."""
        first = -(-self.before // self.hop_length)
        end = (num_samples - 1 - self.behind) // self.hop_length + 1
        return first, max(first, min(end, self.num_frames(num_samples)))


class Skipped(NamedTuple):
    """A clip that could not be read."""

    clip_id: str
    reason: str


class Clip(NamedTuple):
    """One clip, as a data set returns it."""

    clip_id: str  # stable, since stored logits are looked up by it
    waveform: Tensor  # [N]
    labels: Tensor  # [K], or [K, T'] of frames, from 0 to 1; zeros if unlabelled
    labelled: Tensor  # share of the labels that is known, from 0 to 1: [] or [K]
    partner_id: str = ""  # the clip mixed into the waveform, if any
    partner_share: float = 0.0  # its weight, at most 0.5
    skipped: tuple[Skipped, ...] = ()  # unreadable clips that this one replaces
    # For sound event detection; None for tagging, which knows no times
    strong: Tensor | None = None  # [K, T'], labels of frames, 0 to 1; zeros if unknown
    strong_known: float = 0.0  # share of the strong labels that is known, 0 to 1
    # How far the waveform was moved, circularly, as strong labels were; above 0: later
    moved_samples: int = 0
    partner_moved_samples: int = 0


class ClipBatch(NamedTuple):
    """A batch of clips; B is 0 if none of them could be read."""

    clip_id: list[str]
    waveform: Tensor  # [B, N]
    labels: Tensor  # [B, K], or [B, K, T']
    labelled: Tensor  # [B], or [B, K] if each class was annotated separately
    partner_id: list[str]
    partner_share: Tensor  # [B]
    skipped: list[Skipped]
    strong: Tensor | None = None  # [B, K, T'], of event detection, as in `Clip`
    strong_known: Tensor | None = None  # [B]
    moved_samples: Tensor | None = None  # [B], int64, as in `Clip`; None: not at all
    partner_moved_samples: Tensor | None = None


class Mix(NamedTuple):
    """How a batch was mixed: ``y = weight * x + (1 - weight) * x[partner]``."""

    weight: Tensor  # [B], in [0.5, 1]; from 0 on where ``Mixup`` was asked to
    partner: Tensor  # [B], int64, an index into the batch


class Shift(NamedTuple):
    """How far each log-mel of a batch was moved in time, circularly."""

    mel_frames: Tensor  # [B], int64; above 0: later


class TeacherInput(NamedTuple):
    """A batch and the log-mels that a student computes its output from."""

    batch: ClipBatch
    log_mel: Tensor  # [B, F, T], masked and mixed in training
    mix: Mix | None  # how log-mels were mixed
    shift: Shift | None = None  # how log-mels were moved before, as were strong labels


class TeacherTarget(NamedTuple):
    """A teacher's logits for a batch of clips, as far as it has any."""

    # [B, K], or [B, K, T'] of frames, before any temperature; 0 where not known
    logits: Tensor
    known: Tensor  # [B], bool; False where the teacher has no logits of the clip
    partner: TeacherTarget | None = None  # of the clips mixed into the waveforms
    is_mixed: bool = False  # whether the logits were computed on the mixed batch


class StudentOutput(NamedTuple):
    """The output of every student."""

    logits: Tensor  # [B, K], before sigmoid or softmax
    embedding: Tensor  # [B, D], the average of the last maps over F and T


class FrameOutput(NamedTuple):
    """The output of students that score every frame, for sound event detection.

    T' counts the student's frames; all scores are before the sigmoid.
    """

    strong: Tensor  # [B, K, T'], logits of the frames
    weak: Tensor  # [B, K'], logits of the whole clip
    embedding: Tensor  # [B, T', D], what both are computed from

    @property
    def logits(self) -> Tensor:
        """The logits of the clip, under the name that they have in `StudentOutput`."""
        return self.weak


class SoftTarget(NamedTuple):
    """The target of each clip, or of its frames, and how much of it is known.

    ``scores`` are already multiplied by ``weight``: a clip without a target has a
    row of zeros and weight 0, and clips are mixed by mixing both fields.
    """

    scores: Tensor  # [B, K], or [B, K, T']
    weight: Tensor  # [B], or as ``scores`` where it differs within a clip; from 0 to 1

    @property
    def full_weight(self) -> Tensor:
        """The weight with as many axes as the scores have."""
        missing = self.scores.ndim - self.weight.ndim
        return self.weight.reshape(*self.weight.shape, *[1] * missing)

    def mixed(self, partner: SoftTarget, share: Tensor) -> SoftTarget:
        """Mixes a ``share`` [B] of this target with the rest of ``partner``."""
        return SoftTarget(
            _blended(self.scores, partner.scores, share),
            _blended(self.weight, partner.weight, share),
        )

    def followed(self, mix: Mix | None) -> SoftTarget:
        """Returns the target of a mixed batch; with None, of the batch as it is."""
        if mix is None:
            return self
        # The losses are linear in the target, so mixing targets mixes the losses.
        partner = SoftTarget(self.scores[mix.partner], self.weight[mix.partner])
        return self.mixed(partner, mix.weight)


def _blended(own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    share = share.view(-1, *[1] * (own.ndim - 1))  # [B], then [B, 1, ...]
    return share * own + (1 - share) * partner


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


class Event(NamedTuple):
    """A class from a start to an end in a sound: a strong label, or a detection."""

    label: str
    start_seconds: float  # from the start of the sound
    end_seconds: float
    score: float | None = None  # None: somebody annotated it
