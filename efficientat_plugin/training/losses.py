"""The distillation loss, which compares a student with labels and teacher."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from efficientat_plugin.contracts import (
    TARGETS,
    SoftTarget,
    TeacherInput,
    TeacherTarget,
)


def balanced_class_weights(
    indices: Iterable[Sequence[int]], num_classes: int
) -> Tensor:
    """Computes weights that give the clips of every class the same total weight.

    The weight of a class is the average number of clips per class, divided by its own
    number of clips; a class without clips gets 1, which is never used.

    Arguments
    ---------
    indices : Iterable[Sequence[int]]
        Classes of each training clip.
    num_classes : int
        K.

    Returns
    -------
    Tensor
        [K]

    Example
    -------
    >>> balanced_class_weights([[0], [0], [0], [1]], num_classes=3)
    tensor([0.6667, 2.0000, 1.0000])
    """
    counts = torch.zeros(num_classes)
    for classes in indices:
        counts[list(classes)] += 1
    present = counts > 0
    average = counts.sum() / present.sum()
    return torch.where(present, average / counts.clamp(min=1), 1.0)


class RunningLoss:
    """Averages a loss over clips, batch by batch.

    Each batch is weighted by its number of clips, so the mean depends neither on the
    batch size nor on how the clips are shared among processes.

    Arguments
    ---------
    total : float
        Sum over the clips so far.
    num_clips : int
        Number of clips so far.

    Example
    -------
    >>> loss = RunningLoss()
    >>> loss.add(1.0, num_clips=32)
    >>> loss.add(5.0, num_clips=8)
    >>> loss.mean
    1.8
    """

    def __init__(self, total: float = 0.0, num_clips: int = 0) -> None:
        self.total = total
        self.num_clips = num_clips

    def add(self, mean: float, num_clips: int) -> None:
        """Adds the mean loss of a batch; skips one that is not finite."""
        if num_clips and math.isfinite(mean):
            self.total += mean * num_clips
            self.num_clips += num_clips

    @property
    def mean(self) -> float:
        """The mean over the clips so far; 0 before the first one."""
        return self.total / self.num_clips if self.num_clips else 0.0


class DistillationLoss(torch.nn.Module):
    """``(1 - kd_weight) * label loss + kd_weight * teacher loss``.

    A clip without teacher logits adds nothing to the teacher term, and a clip without
    labels adds nothing to the label term; this applies to each clip of a mix
    separately. Both terms are averaged over the whole batch and keep their weights even
    if a target is missing. Without a teacher the loss is the plain label loss.

    Source: Schmid et al., ICASSP 2023, eq. 1, with their lambda = 1 - ``kd_weight``.
    Differs from their code if a clip with teacher logits is mixed with one without:
    there the partner gets the logits of another clip.

    Arguments
    ---------
    kd_weight : float
        Weight of the teacher, from 0 (labels only) to 1 (teacher only).
    kd_temperature : float
        Divides the teacher's logits, but not the student's (tau of eq. 1).
    target : str
        "multilabel": sigmoid and binary cross-entropy, averaged over classes;
        "multiclass": softmax and cross-entropy.
    class_weights : Tensor | None
        [K], above 0: weight in the label term of each class that a clip has; see
        ``balanced_class_weights``. None: 1 each. The teacher term is not weighted.

    Raises
    ------
    ValueError
        For options out of range.

    Example
    -------
    >>> loss = DistillationLoss(kd_weight=0.9)
    >>> labels = SoftTarget(torch.eye(10)[:2], weight=torch.ones(2))
    >>> teacher = TeacherTarget(torch.randn(2, 10), torch.tensor([True, False]))
    >>> loss(torch.randn(2, 10), labels, loss.soft_target(teacher)).shape
    torch.Size([])
    """

    def __init__(
        self,
        kd_weight: float = 0.9,
        kd_temperature: float = 1.0,
        target: str = "multilabel",
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= kd_weight <= 1:
            raise ValueError(
                f"kd_weight={kd_weight} must be from 0 (labels) to 1 (teacher)"
            )
        if kd_temperature <= 0:
            raise ValueError(f"kd_temperature={kd_temperature} must be above 0")
        if target not in TARGETS:
            raise ValueError(f"target={target!r} must be one of {TARGETS}")
        if class_weights is not None and not bool((class_weights > 0).all()):
            raise ValueError(
                f"class_weights={class_weights.tolist()} must all be above 0; to "
                "ignore a class, leave it out of the data"
            )
        self.class_weights = class_weights
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.target = target

    def forward(
        self, logits: Tensor, labels: SoftTarget, teacher: SoftTarget | None = None
    ) -> Tensor:
        """Computes the loss of the student's logits [B, K] for labels and teacher."""
        target = self._weighted(labels)
        if teacher is not None:
            # Both terms are linear in their targets, so the targets are mixed instead.
            own, taught = torch.broadcast_tensors(
                target.full_weight, teacher.full_weight
            )
            weight = torch.lerp(own, taught, self.kd_weight)
            scores = torch.lerp(target.scores, teacher.scores, self.kd_weight)
            target = SoftTarget(scores, weight)
        return self._term(logits, target)

    def teacher_target(
        self, teacher: TeacherTarget, inputs: TeacherInput
    ) -> SoftTarget:
        """Returns the soft targets of a teacher for a batch, mixed like the batch."""
        target = self.soft_target(teacher)
        if teacher.partner is not None:
            share = 1 - inputs.batch.partner_share.to(target.scores.device)
            target = target.mixed(self.soft_target(teacher.partner), share)
        return target if teacher.is_mixed else target.followed(inputs.mix)

    def soft_target(self, teacher: TeacherTarget) -> SoftTarget:
        """Turns the teacher's logits into soft targets for each clip."""
        logits = teacher.logits.float() / self.kd_temperature
        multilabel = self.target == "multilabel"
        scores = logits.sigmoid() if multilabel else logits.softmax(dim=1)
        weight = teacher.known.to(scores.dtype)
        return SoftTarget(scores * SoftTarget(scores, weight).full_weight, weight)

    def _weighted(self, labels: SoftTarget) -> SoftTarget:
        """Multiplies the labels that are present by the weight of their class."""
        if self.class_weights is None:
            return labels
        class_weights = self.class_weights.to(labels.scores)
        more = labels.scores * (class_weights - 1)
        weight = labels.weight if labels.weight.ndim == 2 else labels.weight[:, None]
        return SoftTarget(labels.scores + more, weight + more)

    def _term(self, logits: Tensor, target: SoftTarget) -> Tensor:
        # A missing target has weight 0.
        logits = logits.float()
        if self.target == "multiclass":
            return -(target.scores * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        on = target.full_weight * functional.softplus(logits)
        return (on - target.scores * logits).mean()
