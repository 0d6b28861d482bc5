"""Metrics of tagging: average precision, area under the ROC curve and d-prime.

They equal those of scikit-learn, ties included, without depending on it. For clips
with one class each there are also accuracy and the confusion matrix.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efficientat_plugin.evaluation.detection_scores import DetectionScores

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEW_CLIPS = 5  # per class: with fewer clips, its scores are unreliable
FEW_CLASSES = 0.25  # with this share of such classes, the average is unreliable
ALIKE = 1e-3  # relative; float16, int8 or other runtimes may reorder closer scores


class TaggingScores(NamedTuple):
    """Scores of tagging, over ``num_clips`` clips and the classes that they have."""

    mAP: float  # macro average precision
    AUC: float  # macro area under the ROC curve
    d_prime: float  # sqrt(2) * normal quantile of AUC
    num_clips: int
    num_classes: int  # classes with a positive clip, which the averages are over
    average_precision: FloatArray  # [K], NaN if the class has no positive
    area_under_curve: FloatArray  # [K], NaN without a positive or a negative
    hits: IntArray  # [K], clips of the class that score at least the threshold
    predicted: IntArray  # [K], clips that score at least the threshold
    positives: IntArray  # [K], clips of the class
    alike: bool = False  # whether every clip has nearly the same scores

    @property
    def main(self) -> str:
        """Name of the average that selects a checkpoint."""
        return "mAP"

    def line(self) -> str:
        """Returns the averages and the number of clips and classes as text."""
        return (
            f"mAP {self.mAP:.4f}, AUC {self.AUC:.4f}, d' {self.d_prime:.3f} "
            f"(N = {self.num_clips} clips, {self.num_classes} classes)"
        )

    def __str__(self) -> str:
        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """Returns the averages by name."""
        return {"mAP": self.mAP, "AUC": self.AUC, "d_prime": self.d_prime}

    def per_class(self) -> dict[str, FloatArray]:
        """Returns scores per class by name, [K] each; NaN if not defined."""
        ranked = {
            "average_precision": self.average_precision,
            "AUC": self.area_under_curve,
        }
        return ranked | _decided(self.hits, self.predicted, self.positives)


class ClassificationScores(NamedTuple):
    """Scores of classification, where each clip has one class."""

    accuracy: float
    macro_recall: float  # mean recall of the classes, whatever their number of clips
    num_clips: int
    num_classes: int  # classes with a clip
    confusion: IntArray  # [K, K], clips by true (row) and predicted (column) class
    average_precision: FloatArray  # [K], each class against the rest
    area_under_curve: FloatArray  # [K]
    alike: bool = False  # whether every clip has nearly the same scores

    @property
    def main(self) -> str:
        """Name of the average that selects a checkpoint."""
        return "accuracy"

    @property
    def positives(self) -> IntArray:
        """[K], clips of the class."""
        return self.confusion.sum(axis=1)

    def line(self) -> str:
        """Returns the averages and the number of clips and classes as text."""
        return (
            f"accuracy {self.accuracy:.4f}, macro recall {self.macro_recall:.4f} "
            f"(N = {self.num_clips} clips, {self.num_classes} classes)"
        )

    def __str__(self) -> str:
        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """Returns the averages by name."""
        return {"accuracy": self.accuracy, "macro_recall": self.macro_recall}

    def per_class(self) -> dict[str, FloatArray]:
        """Returns scores per class by name, [K] each; NaN if not defined."""
        ranked = {
            "average_precision": self.average_precision,
            "AUC": self.area_under_curve,
        }
        hits, predicted = np.diag(self.confusion), self.confusion.sum(axis=0)
        return ranked | _decided(hits, predicted, self.positives)


Scores = TaggingScores | ClassificationScores | DetectionScores


def _decided(
    hits: IntArray, predicted: IntArray, positives: IntArray
) -> dict[str, FloatArray]:
    """Computes precision, recall and F1 of each class, [K] each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": hits / predicted,
            "recall": hits / positives,
            "F1": 2 * hits / (predicted + positives),
        }


def caution(scores: Any) -> str | None:
    """Returns a warning if scores are unreliable, else None.

    They are unreliable if at least a quarter of the classes have fewer than 5 clips,
    since a single clip then changes the average, and if a collapsed model gives every
    clip the same scores, since the average then depends on rounding.

    Arguments
    ---------
    scores : TaggingScores, ClassificationScores or AgreementScores
        For agreement, which needs no labels, the number of all clips counts.

    Example
    -------
    >>> caution(tagging_scores(np.eye(2), np.eye(2)))
    'all 2 classes have fewer than 5 clips, so other clips may score very differently'
    """
    if getattr(scores, "alike", False):
        return (
            "the model gives every clip nearly the same scores, so it has learnt "
            "little that tells clips apart, and rounding may change this number"
        )
    so = "so other clips may score very differently"
    positives = getattr(scores, "positives", None)
    if positives is None:
        few = scores.num_clips < FEW_CLIPS
        return f"these are fewer than {FEW_CLIPS} clips, {so}" if few else None
    counts = positives[positives > 0]
    few = int((counts < FEW_CLIPS).sum())
    if few < len(counts) * FEW_CLASSES:
        return None
    which = f"{few} of {len(counts)} classes have"
    if few == len(counts):
        which = "the only class has" if few == 1 else f"all {few} classes have"
    return f"{which} fewer than {FEW_CLIPS} clips, {so}"


def with_caution(scores: Any) -> str:
    """Returns the line of scores, followed by their ``caution`` if there is one."""
    sentence = caution(scores)
    return scores.line() + (f"; caution: {sentence}" if sentence else "")


class ClipStats:
    """Keeps arrays of each clip by its id, so that one scored twice counts once.

    Works like SpeechBrain's metric statistics: call ``append`` for each batch and
    ``summarize`` at the end. Subclasses define both.
    """

    def __init__(self) -> None:
        self.clips: dict[str, tuple[NDArray, ...]] = {}

    def gather(self) -> None:
        """Gathers the clips of all processes in every process."""
        if not torch.distributed.is_initialized():
            return
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.clips)
        self.clips = {clip: row for part in parts for clip, row in part.items()}

    def summarize(self) -> Any:
        """Computes the scores over all clips appended so far."""
        raise NotImplementedError

    def by_group(self, group_of: Mapping[str, str]) -> dict[str, Any]:
        """Computes the scores of each group, such as a recording device, by its name.

        Groups without a clip that counts are left out.

        Example
        -------
        >>> stats = TaggingStats()
        >>> stats.append(["a", "b"], torch.eye(2), torch.eye(2))
        >>> found = stats.by_group({"a": "phone", "b": "studio"})
        >>> {name: scores.num_clips for name, scores in found.items()}
        {'phone': 1, 'studio': 1}
        """
        parts: dict[str, ClipStats] = {}
        for clip_id, row in self.clips.items():
            name = group_of[clip_id]
            if name not in parts:
                parts[name] = copy.copy(self)
                parts[name].clips = {}
            parts[name].clips[clip_id] = row
        return {
            name: part.summarize()
            for name, part in sorted(parts.items())
            if any(self._counts(row) for row in part.clips.values())
        }

    def _counts(self, row: tuple[NDArray, ...]) -> bool:
        """Whether a clip can be scored on its own."""
        return True

    def _stacked(self) -> list[NDArray]:
        """Returns the arrays of all clips, [N, K] each."""
        if not self.clips:
            raise ValueError("no clip was scored; evaluate at least one labelled clip")
        # Sorted by id, so that sums do not depend on which process scored which clip.
        rows = [self.clips[clip_id] for clip_id in sorted(self.clips)]
        return [np.stack(parts) for parts in zip(*rows, strict=True)]


class TaggingStats(ClipStats):
    """Collects the scores of clips and computes metrics from them.

    Call ``append`` for each batch and ``summarize`` at the end. A clip that two
    processes scored counts once.

    Arguments
    ---------
    logits : bool
        Whether scores are logits; otherwise they are probabilities. A class is
        predicted from a probability of 0.5 on.

    Example
    -------
    >>> stats = TaggingStats()
    >>> scores = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
    >>> stats.append(["a", "b"], scores, torch.eye(2))
    >>> stats.summarize().mAP
    1.0
    """

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.logits = logits

    def append(
        self,
        ids: Sequence[str],
        scores: Tensor,
        labels: Tensor,
        judged: Tensor | None = None,
    ) -> None:
        """Adds a batch: scores (or logits) and 0/1 labels, both [B, K].

        ``judged`` [B] or [B, K] marks the classes that are annotated; None: all of
        them. Clips without an annotated class are left out.
        """
        if judged is None:
            judged = torch.ones(len(ids))
        judged = judged.reshape(len(ids), -1).expand(len(ids), scores.shape[1])
        rows = zip(
            ids,
            scores.detach().float().cpu().numpy(),
            labels.detach().cpu().numpy() > 0.5,
            judged.cpu().numpy() > 0,
            strict=True,
        )
        for clip_id, *row in rows:
            score, label, known = (part.copy() for part in row)
            if known.any():
                self.clips[clip_id] = (score, label, known)

    def summarize(self) -> Scores:
        """Computes the scores over all clips appended so far.

        Raises
        ------
        ValueError
            If there are none, or none has a label.
        """
        threshold = 0.0 if self.logits else 0.5  # the sigmoid of 0 is 0.5
        scores, labels, judged = self._stacked()
        return tagging_scores(scores, labels, judged, threshold)

    def _counts(self, row: tuple[NDArray, ...]) -> bool:
        _, labels, judged = row
        return bool((labels & judged).any())


class ClassificationStats(TaggingStats):
    """Collects the scores of clips that have one class each; see ``TaggingStats``.

    Example
    -------
    >>> stats = ClassificationStats()
    >>> stats.append(["a", "b"], torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.eye(2))
    >>> stats.summarize().accuracy
    0.5
    """

    def summarize(self) -> ClassificationScores:
        """Computes the scores over all clips appended so far.

        Raises
        ------
        ValueError
            If there are none, or one has no class or several.
        """
        scores, labels, _ = self._stacked()
        if self.logits:  # logits of one class are not comparable between clips
            scores = torch.from_numpy(scores).double().log_softmax(dim=1).numpy()
        return classification_scores(scores, labels)


def classification_scores(scores: NDArray, labels: NDArray) -> ClassificationScores:
    """Computes scores from probabilities [N, K], or their logarithms, and labels.

    The 0/1 ``labels`` [N, K] have exactly one 1 in each row.
    """
    labels = np.asarray(labels).astype(bool)
    odd = int((labels.sum(axis=1) != 1).sum())
    if odd:
        raise ValueError(
            f"{odd} of {len(labels)} clips have no class or several; give each exactly "
            "one, or set target: multilabel"
        )
    _refuse_infinite(scores)
    num_classes = labels.shape[1]
    cells = labels.argmax(axis=1) * num_classes + scores.argmax(axis=1)
    confusion = np.bincount(cells, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    precision, area = _ranked(scores, labels, np.ones_like(labels))
    return ClassificationScores(
        accuracy=float(np.trace(confusion) / len(labels)),
        macro_recall=float(recall.mean()),
        num_clips=len(labels),
        num_classes=int(present.sum()),
        confusion=confusion,
        average_precision=precision,
        area_under_curve=area,
        alike=_alike(scores),
    )


def _alike(scores: NDArray) -> bool:
    """Whether the scores [N, K] are nearly the same for all clips."""
    spread = scores.max(axis=0) - scores.min(axis=0)
    return len(scores) > 1 and bool((spread <= ALIKE * abs(scores).max(axis=0)).all())


def _refuse_infinite(scores: NDArray) -> None:
    if not np.isfinite(scores).all():
        raise ValueError(
            "some scores are not finite, so clips cannot be ranked; the model has "
            "diverged"
        )


def tagging_scores(
    scores: NDArray,
    labels: NDArray,
    judged: NDArray | None = None,
    threshold: float = 0.5,
) -> TaggingScores:
    """Computes the metrics of ``scores`` [N, K] with 0/1 ``labels`` [N, K].

    Each class is evaluated on the clips where it is annotated, ``judged`` [N, K]; None:
    on all clips. A class is predicted if its score is at least the threshold.
    """
    labels = np.asarray(labels).astype(bool)
    judged = np.ones_like(labels) if judged is None else np.asarray(judged, bool)
    present = (labels & judged).any(axis=0)
    if not present.any():
        raise ValueError(
            f"none of the {len(labels)} clips has a label among the "
            f"{labels.shape[1]} classes; evaluate on labelled clips"
        )
    _refuse_infinite(scores)
    precision, area = _ranked(scores, labels, judged)
    decided = (np.asarray(scores) >= threshold) & judged
    # There is no ROC curve of a class that every clip has.
    mean_area = float(np.nanmean(area)) if np.isfinite(area).any() else float("nan")
    return TaggingScores(
        mAP=float(np.nanmean(precision)),
        AUC=mean_area,
        d_prime=d_prime(mean_area),
        num_clips=len(labels),
        num_classes=int(present.sum()),
        average_precision=precision,
        area_under_curve=area,
        hits=(decided & labels).sum(axis=0),
        predicted=decided.sum(axis=0),
        positives=(labels & judged).sum(axis=0),
        alike=_alike(np.asarray(scores)),
    )


def _ranked(
    scores: NDArray, labels: NDArray, judged: NDArray
) -> tuple[FloatArray, FloatArray]:
    """Computes average precision and area under the ROC curve, [K] each."""
    classes = [
        (score[on], label[on])
        for score, label, on in zip(scores.T, labels.T, judged.T, strict=True)
    ]
    found = [(average_precision(*one), area_under_curve(*one)) for one in classes]
    precision, area = np.array(found, dtype=np.float64).T
    return precision, area


def average_precision(scores: NDArray, labels: NDArray) -> float:
    """Computes the average precision of one class; NaN without a positive.

    It is the area under the precision-recall steps; clips of equal score share a step.

    Example
    -------
    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]) > 0)
    0.8333333333333333
    """
    if not labels.any():
        return float("nan")
    hits, found = _cumulated(scores, labels)
    precision = hits / found
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((precision * gained).sum())


def area_under_curve(scores: NDArray, labels: NDArray) -> float:
    """Computes the area under the ROC curve of one class; NaN if all labels are equal.

    Example
    -------
    >>> area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]) > 0)
    0.75
    """
    if not labels.any() or labels.all():
        return float("nan")
    hits, found = _cumulated(scores, labels)
    misses = found - hits
    recall = np.concatenate([[0.0], hits / hits[-1]])
    fall_out = np.concatenate([[0.0], misses / misses[-1]])
    return float((np.diff(fall_out) * (recall[1:] + recall[:-1]) / 2).sum())


def finite(averages: Mapping[str, float]) -> dict[str, float | None]:
    """Replaces NaN and infinity, which JSON does not have, by None.

    Example
    -------
    >>> finite({"AUC": 1.0, "d_prime": float("inf")})
    {'AUC': 1.0, 'd_prime': None}
    """
    return {k: v if math.isfinite(v) else None for k, v in averages.items()}


def d_prime(area: float) -> float:
    """Computes the distance of two unit normals whose ROC curve has this ``area``.

    Example
    -------
    >>> round(d_prime(0.975), 3)
    2.772
    """
    if np.isnan(area):
        return float("nan")
    # For exactly 0 or 1 the distance is infinite, which NormalDist refuses.
    if area in (0.0, 1.0):
        return float("inf") if area else float("-inf")
    return 2**0.5 * NormalDist().inv_cdf(area)


def _cumulated(scores: NDArray, labels: NDArray) -> tuple[FloatArray, FloatArray]:
    """Counts positives and clips at or above each distinct score, in falling order."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    hits = np.cumsum(positive, dtype=np.float64)[last_of_tie]
    return hits, (last_of_tie + 1).astype(np.float64)
