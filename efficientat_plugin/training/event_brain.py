"""Training of sound event detectors: loss, learning rates, and the Brain."""

from typing import Any

import speechbrain as sb
import torch
from torch import Tensor

from efficientat_plugin.contracts import (
    ClipBatch,
    FrameOutput,
    Mix,
    Shift,
    SoftTarget,
    TeacherInput,
    TeacherTarget,
)
from efficientat_plugin.data.frame_mixing import shift_frames, shifted
from efficientat_plugin.data.halves import Halves
from efficientat_plugin.students.student import Student
from efficientat_plugin.training.brain import TRAIN, DistillationBrain
from efficientat_plugin.training.losses import DistillationLoss


class EventLoss(torch.nn.Module):
    """``(1 - kd_weight) * strong loss + kd_weight * teacher loss + weak term``.

    All are binary cross-entropies: of frames with strong labels, of frames with a
    teacher's probabilities, and, multiplied by ``weak_weight``, of clips with weak
    labels. Each is averaged over the whole batch; what is not known adds nothing.
    Without a teacher the first two are the plain strong loss.

    Source: Morocutti et al., "Exploring Performance-Complexity Trade-Offs in Sound
    Event Detection", 2025, whose code has no weak term.

    Arguments
    ---------
    kd_weight : float
        Weight of the teacher, from 0 (labels only) to 1 (teacher only).
    kd_temperature : float
        Divides the teacher's logits.
    weak_weight : float
        Weight of the weak labels, 0 or more.

    Raises
    ------
    ValueError
        For options out of range.

    Example
    -------
    >>> output = FrameOutput(
    ...     torch.zeros(2, 3, 5), torch.zeros(2, 3), torch.zeros(2, 5, 1)
    ... )
    >>> strong = SoftTarget(torch.zeros(2, 3, 5), weight=torch.tensor([1.0, 0.0]))
    >>> weak = SoftTarget(torch.zeros(2, 3), weight=torch.ones(2))
    >>> round(float(EventLoss(weak_weight=1.0)(output, strong, weak)), 4)  # 1.5 ln 2
    1.0397
    """

    target = "multilabel"

    def __init__(
        self,
        kd_weight: float = 0.9,
        kd_temperature: float = 1.0,
        weak_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= weak_weight < float("inf"):
            raise ValueError(f"weak_weight={weak_weight} must be 0 or more")
        self.kd_weight, self.weak_weight = kd_weight, weak_weight
        self.of_frames = DistillationLoss(kd_weight, kd_temperature)
        self.of_clips = DistillationLoss(kd_weight=0.0)

    def forward(
        self,
        output: FrameOutput,
        strong: SoftTarget,
        weak: SoftTarget,
        teacher: SoftTarget | None = None,
    ) -> Tensor:
        """Computes the loss of logits [B, K, T'] and [B, K]."""
        of_frames = self.of_frames(output.strong, strong, teacher)
        return of_frames + self.weak_weight * self.of_clips(output.weak, weak)

    def teacher_target(
        self, teacher: TeacherTarget, inputs: TeacherInput
    ) -> SoftTarget:
        """Returns a teacher's probabilities of frames, mixed like the batch."""
        return self.of_frames.teacher_target(teacher, inputs)


def event_groups(
    student: Student, layer_decay: float = 1.0, head_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Groups the parameters of a detector for an optimizer.

    Arguments
    ---------
    student : Student
        If ``layer_decay`` is below 1, one with stages, such as a `FrameMN`.
    layer_decay : float
        Learning rate of a stage as a share of the next one's, above 0 and at most 1.
        The last of the 17 stages of convolutions learns at the full rate.
    head_scale : float
        Learning rate of the sequence model and the heads, as a share of that rate.

    Returns
    -------
    list of dict
        With ``params`` and ``lr_scale``, which ``DistillationBrain`` applies.

    Raises
    ------
    ValueError
        For options out of range, and for a student without stages.

    Source
    ------
    EfficientSED's code: features.16 learns at the rate, features.0 at ``0.9 ** 16`` of
    it. `layerwise_groups` of taggers begins one stage later, at the head.

    Example
    -------
    >>> from efficientat_plugin import FrameMN
    >>> groups = event_groups(FrameMN(2, width=0.1), layer_decay=0.5, head_scale=2.0)
    >>> len(groups), [group["lr_scale"] for group in groups][-3:]
    (18, [0.5, 1.0, 2.0])
    """
    if not 0 < layer_decay <= 1 or not 0 < head_scale < float("inf"):
        raise ValueError(
            f"layer_decay={layer_decay} must be above 0 and at most 1, and the rate of "
            f"the heads above 0, but it is {head_scale:g} of the backbone's"
        )
    stages: list[torch.nn.Module] = []
    if layer_decay < 1 or head_scale != 1:
        stages = student.stages()
    groups: list[dict[str, Any]] = []
    in_stages: set[int] = set()
    for depth, stage in enumerate(reversed(stages)):
        parameters = [*stage.parameters()]
        in_stages.update(map(id, parameters))
        groups.append({"params": parameters, "lr_scale": layer_decay**depth})
    rest = [each for each in student.parameters() if id(each) not in in_stages]
    return [*groups[::-1], {"params": rest, "lr_scale": head_scale}]


class EventBrain(DistillationBrain):
    """A ``DistillationBrain`` that trains a detector of sound events.

    Its student scores frames, and its batches have ``strong`` labels. Its ``hparams``
    differ in these:

    - ``loss``: an `EventLoss`;
    - ``teacher``: a `FrameTeacher` or a `StoredFrameTeacher`, or None;
    - ``make_stats``: returns a new ``DetectionStats``;
    - ``lr_schedule``: a function of the epochs done, which is called for the middle
      of every step, a fraction of epochs, as the published warm-up counts steps;
    - ``frame_shift``: None, or a ``FrameShift``, which is one of the ``modules``, too;
    - ``layer_decay`` and ``head_scale``: see `event_groups`.

    Set ``halves`` if its batches are drawn so. Then each half is mixed by itself, with
    a mixup of its own; only the strong half is moved in time; and strong labels are
    averaged over the clips that have them.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.Brain``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.halves: Halves | None = None
        self._groups = event_groups(
            self.hparams.student, self.hparams.layer_decay, self.hparams.head_scale
        )

    def _moved(
        self, log_mel: Tensor, batch: ClipBatch
    ) -> tuple[Tensor, ClipBatch, Shift | None]:
        """Moves log-mels and strong labels in time, if there is a ``frame_shift``."""
        if self.hparams.frame_shift is None:
            return log_mel, batch, None
        assert batch.strong is not None  # an EventClipReader's
        shift = self.modules.frame_shift.draw(len(log_mel))
        if self.halves is not None and shift is not None:
            shift = Shift(shift.mel_frames * _is_strong(batch))
        strong = shift_frames(batch.strong, shift, self.hparams.student.frame_stride)
        return shifted(log_mel, shift), batch._replace(strong=strong), shift

    def _mixed(self, log_mel: Tensor, batch: ClipBatch) -> tuple[Tensor, Mix | None]:
        """Mixes the log-mels of a batch, or of each of its halves."""
        if self.halves is None:
            return super()._mixed(log_mel, batch)
        is_strong = _is_strong(batch).to(log_mel.device)
        mixed, weight = log_mel.clone(), log_mel.new_ones(len(log_mel))
        partner = torch.arange(len(log_mel), device=log_mel.device)
        any_mix = False
        for half, mixup in zip((is_strong, ~is_strong), self.halves, strict=True):
            places = half.nonzero().squeeze(1)
            if mixup is None or not len(places):
                continue
            mixed[places], mix = mixup(log_mel[places])
            if mix is not None:
                any_mix = True
                weight[places], partner[places] = mix.weight, places[mix.partner]
        return mixed, Mix(weight, partner) if any_mix else None

    def compute_objectives(  # type: ignore[override]
        self,
        predictions: tuple[FrameOutput, TeacherInput],
        batch: ClipBatch,
        stage: sb.Stage,
    ) -> Tensor:
        """Computes the loss of frames and clips; in evaluation, of labels alone."""
        output, inputs = predictions
        strong, weak = self._strong(inputs), self._labels(inputs)
        if stage != TRAIN:
            self.some_labelled |= bool((strong.weight > 0).any())
            self.stats.append(batch.clip_id, output.strong)
            return self.hparams.loss(output, strong, weak)
        teacher = None
        if self.hparams.teacher is not None:
            answer = self.hparams.teacher(inputs)
            teacher = self.hparams.loss.teacher_target(answer, inputs)
        return self.hparams.loss(output, strong, weak, teacher)

    def _strong(self, inputs: TeacherInput) -> SoftTarget:
        strong, known = inputs.batch.strong, inputs.batch.strong_known
        assert strong is not None and known is not None  # an EventClipReader's
        target = SoftTarget(strong.to(self.device), known.to(self.device))
        if self.halves is not None and self.modules.student.training:
            # The loss averages over the batch.
            share = _is_strong(inputs.batch).float().mean().clamp(min=1 / len(known))
            scale = 1 / share.to(self.device)
            target = SoftTarget(target.scores * scale, target.weight * scale)
        return target.followed(inputs.mix)

    def on_fit_batch_start(self, batch: ClipBatch, should_step: bool) -> None:
        """Like ``DistillationBrain``; also sets the learning rate of this step."""
        super().on_fit_batch_start(batch, should_step)
        middle = self.place.clips_drawn(self.step) - self.place.clips_per_step / 2
        self._set_rate_at(middle)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Like ``DistillationBrain``; logs the rate that an epoch ends with."""
        if stage == TRAIN and self.place.draws is not None:
            self._set_rate_at(self.place.draws.clips_per_epoch)
        super().on_stage_end(stage, stage_loss, epoch)

    def _set_rate_at(self, clips: float) -> None:
        """Sets the learning rate for a place in the epoch, counted in clips."""
        draws = self.place.draws
        if self.hparams.lr_schedule is None or draws is None:
            return
        done = clips / draws.clips_per_epoch
        # `WarmupCosine` takes the middle of an epoch.
        self._set_rate(self.hparams.lr_schedule(self.epoch - 1 + done - 0.5))


def _is_strong(batch: ClipBatch) -> Tensor:
    """[B], which clips have strong labels."""
    assert batch.strong_known is not None  # an EventClipReader's
    return batch.strong_known > 0
