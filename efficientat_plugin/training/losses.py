"""The distillation loss: what a student owes to the labels and to the teacher."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from efficientat_plugin.contracts import TARGETS, Heard, SoftTarget, TeacherTarget


def balanced_class_weights(
    indices: Iterable[Sequence[int]], num_classes: int
) -> Tensor:
    """Weights by which the clips of every class count alike in sum.

    A class weighs the average number of clips of a class over its own number; one
    without clips weighs 1, and is never looked up.

    Arguments
    ---------
    indices : Iterable[Sequence[int]]
        Classes of each clip to train on.
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
    """The mean over clips of a loss that comes batch by batch.

    A small last batch counts for its few clips and no more, so the mean is the same
    for any batch size and however the clips are shared among processes.

    Arguments
    ---------
    total : float
        Sum over the clips so far.
    num_clips : int
        How many they are.

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
        """Adds a batch by its mean; one that is not finite is left out."""
        if num_clips and math.isfinite(mean):
            self.total += mean * num_clips
            self.num_clips += num_clips

    @property
    def mean(self) -> float:
        """0 before the first clip."""
        return self.total / self.num_clips if self.num_clips else 0.0


class DistillationLoss(torch.nn.Module):
    """``(1 - kd_weight) * label loss + kd_weight * teacher loss``.

    A clip without teacher logits adds nothing to the teacher's term and one without
    labels nothing to the label term, each clip of a mix by its own. Both terms are
    divided by the whole batch and keep their weights, whoever is missing. Without a
    teacher the loss is the plain label loss.

    Source: Schmid et al., ICASSP 2023, eq. 1, with their lambda = 1 - ``kd_weight``.
    Differs from their code where a clip known to the teacher is mixed with one it
    never heard: there the partner was given another clip's logits.

    Arguments
    ---------
    kd_weight : float
        The teacher's share, from 0 (labels alone) to 1 (teacher alone).
    kd_temperature : float
        Divides the teacher's logits, and only these (tau of eq. 1).
    target : str
        "multilabel": sigmoid and binary cross-entropy, averaged over classes;
        "multiclass": softmax and cross-entropy.
    class_weights : Tensor | None
        [K], what a class counts in the label term where a clip has it, above 0; see
        ``balanced_class_weights``. None: 1 each. The teacher's term is left alone.

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
            raise ValueError(f"target={target!r}; it is one of {TARGETS}")
        if class_weights is not None and not bool((class_weights > 0).all()):
            raise ValueError(
                f"class_weights={class_weights.tolist()} must all be above 0; a class "
                "that should not count is left out of the data"
            )
        self.class_weights = class_weights
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.target = target

    def forward(
        self, logits: Tensor, labels: SoftTarget, teacher: SoftTarget | None = None
    ) -> Tensor:
        """Loss of a batch: the student's logits [B, K] against labels and teacher."""
        label_loss = self._term(logits, self._weighted(labels))
        if teacher is None:
            return label_loss
        teacher_loss = self._term(logits, teacher)
        return (1 - self.kd_weight) * label_loss + self.kd_weight * teacher_loss

    def teacher_target(self, teacher: TeacherTarget, heard: Heard) -> SoftTarget:
        """What a teacher asks of the student for a batch, mixed as the batch was."""
        target = self.soft_target(teacher)
        if teacher.partner is not None:
            share = 1 - heard.batch.partner_share.to(target.scores.device)
            target = target.mixed(self.soft_target(teacher.partner), share)
        return target if teacher.is_mixed else target.followed(heard.mix)

    def soft_target(self, teacher: TeacherTarget) -> SoftTarget:
        """What the teacher's logits ask of the student, clip by clip."""
        logits = teacher.logits.float() / self.kd_temperature
        multilabel = self.target == "multilabel"
        scores = logits.sigmoid() if multilabel else logits.softmax(dim=-1)
        weight = teacher.known.to(scores.dtype)
        return SoftTarget(scores * weight[:, None], weight)

    def _weighted(self, labels: SoftTarget) -> SoftTarget:
        """Labels whose presence counts as much as the weight of their class."""
        if self.class_weights is None:
            return labels
        class_weights = self.class_weights.to(labels.scores)
        more = labels.scores * (class_weights - 1)
        weight = labels.weight if labels.weight.ndim == 2 else labels.weight[:, None]
        return SoftTarget(labels.scores + more, weight + more)

    def _term(self, logits: Tensor, target: SoftTarget) -> Tensor:
        # A missing target is one whose weight is 0.
        logits = logits.float()
        if self.target == "multiclass":
            return -(target.scores * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        weight = target.weight if target.weight.ndim == 2 else target.weight[:, None]
        return (weight * functional.softplus(logits) - target.scores * logits).mean()
