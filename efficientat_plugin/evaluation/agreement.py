"""Measures how closely a student matches its teacher, without using labels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientat_plugin.contracts import TARGETS, TeacherTarget
from efficientat_plugin.evaluation.metrics import ClipStats, FloatArray, with_caution
from efficientat_plugin.students.student import check_choice

NOTHING_TO_EXPLAIN = 1e-6  # nats per clip: smaller divergences are rounding errors


class AgreementScores(NamedTuple):
    """Scores of a student compared with its teacher, over ``num_clips`` clips."""

    explained: float  # 1 - divergence / (divergence of the teacher's average output);
    # at most 1; 0 if the teacher's output is the same for all clips, the student's not
    agreement: float  # share of clips with the same most likely class
    divergence: float  # nats per clip, from teacher's to student's probabilities
    difference: float  # mean absolute difference of probabilities
    num_clips: int
    num_classes: int
    difference_by_class: FloatArray  # [K]

    @property
    def main(self) -> str:
        """Name of the average that selects a checkpoint."""
        return "explained"

    def line(self) -> str:
        """Returns the averages and the number of clips and classes as text."""
        return (
            f"explained {self.explained:.4f}, agreement {self.agreement:.4f}, "
            f"divergence {self.divergence:.4f}, difference {self.difference:.4f} "
            f"(N = {self.num_clips} clips, {self.num_classes} classes)"
        )

    def __str__(self) -> str:
        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """Returns the averages by name."""
        names = ("explained", "agreement", "divergence", "difference")
        return {name: getattr(self, name) for name in names}

    def per_class(self) -> dict[str, FloatArray]:
        """Returns scores per class by name, [K] each."""
        return {"difference": self.difference_by_class}


class AgreementStats(ClipStats):
    """Collects the logits of a student and of its teacher for the same clips.

    Labels are ignored, and clips without teacher logits are left out.

    Arguments
    ---------
    look_up : Callable
        Returns a ``TeacherTarget`` for clip ids: ``LogitsStore.lookup``.
    target : str
        "multilabel" (sigmoid) or "multiclass" (softmax).

    Example
    -------
    >>> logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    >>> look_up = lambda ids: TeacherTarget(logits, torch.tensor([True, True]))
    >>> stats = AgreementStats(look_up, "multilabel")
    >>> stats.append(["a", "b"], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> stats.summarize().agreement
    0.5
    """

    def __init__(
        self, look_up: Callable[[Sequence[str]], TeacherTarget], target: str
    ) -> None:
        super().__init__()
        check_choice("target", target, TARGETS)
        self.look_up = look_up
        self.target = target

    def append(
        self,
        ids: Sequence[str],
        scores: Tensor,
        labels: Tensor | None = None,
        judged: Tensor | None = None,
    ) -> None:
        """Adds a batch of the student's logits [B, K]."""
        del labels, judged
        target = self.look_up(list(ids))
        ours, theirs = (
            scores.detach().float().cpu().numpy(),
            target.logits.float().numpy(),
        )
        for row in target.known.nonzero()[:, 0].tolist():
            self.clips[ids[row]] = ours[row].copy(), theirs[row].copy()

    def summarize(self) -> AgreementScores:
        """Computes the scores over all clips appended so far.

        Raises
        ------
        ValueError
            If the teacher has logits of none of them, or a student's score is not
            finite.
        """
        ours, theirs = self._stacked()
        if not np.isfinite(ours).all():
            raise ValueError(
                "some scores are not finite, so they cannot be compared; the model "
                "has diverged"
            )
        student = self._log_probabilities(ours)
        teacher = self._log_probabilities(theirs)
        # The output of the best student that does not look at the clip
        average = [np.logaddexp.reduce(each) - np.log(len(each)) for each in teacher]
        at_most = _divergence(teacher, average)
        divergence = _divergence(teacher, student)
        difference = np.abs(np.exp(student[0]) - np.exp(teacher[0]))
        return AgreementScores(
            explained=_explained(divergence, at_most),
            agreement=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
            divergence=divergence,
            difference=float(difference.mean()),
            num_clips=len(ours),
            num_classes=ours.shape[1],
            difference_by_class=difference.mean(axis=0),
        )

    def _log_probabilities(self, logits: NDArray) -> list[NDArray]:
        """Log-probabilities [N, K] of the classes; if multilabel, also of absence."""
        values = torch.from_numpy(logits).double()
        if self.target == "multiclass":
            return [values.log_softmax(dim=1).numpy()]
        return [
            torch.nn.functional.logsigmoid(sign * values).numpy() for sign in (1, -1)
        ]


def _explained(divergence: float, at_most: float) -> float:
    if at_most > NOTHING_TO_EXPLAIN:
        return 1 - divergence / at_most
    return float(divergence <= NOTHING_TO_EXPLAIN)


def _divergence(teacher: list[NDArray], student: list[NDArray]) -> float:
    """Computes the Kullback-Leibler divergence of log-probabilities: nats per clip."""
    each = [
        np.exp(theirs) * (theirs - ours)
        for theirs, ours in zip(teacher, student, strict=True)
    ]
    return float(sum(each).sum(axis=1).mean())
