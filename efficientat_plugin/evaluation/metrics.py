"""How well clips are tagged: average precision, area under the curve, d-prime.

Equal to scikit-learn's, ties included, without depending on it. Where a clip has one
class: accuracy and the confusion matrix.
"""

import copy
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEW_CLIPS = 5  # of a class: with fewer, its scores say little
FEW_CLASSES = 0.25  # of the classes: with as many of those, the average says little
ALIKE = 1e-3  # of a score: float16, int8 and other runtimes may rank what differs less


class TaggingScores(NamedTuple):
    """Scores over ``num_clips`` clips and the classes present among them."""

    mAP: float  # macro average precision
    AUC: float  # macro area under the ROC curve
    d_prime: float  # sqrt(2) * normal quantile of AUC
    num_clips: int
    num_classes: int  # with a positive clip: those the averages are over
    average_precision: FloatArray  # [K], NaN where the class has no positive
    area_under_curve: FloatArray  # [K], NaN without a positive or a negative
    hits: IntArray  # [K], clips of the class that score at least the threshold
    predicted: IntArray  # [K], clips that score at least the threshold
    positives: IntArray  # [K], clips of the class
    alike: bool = False  # whether each class scores the same on every clip

    @property
    def main(self) -> str:
        """The average that a checkpoint is chosen by."""
        return "mAP"

    def line(self) -> str:
        """The averages and what they rest on."""
        return (
            f"mAP {self.mAP:.4f}, AUC {self.AUC:.4f}, d' {self.d_prime:.3f} "
            f"(N = {self.num_clips} clips, {self.num_classes} classes)"
        )

    def __str__(self) -> str:
        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """What one number says, by name."""
        return {"mAP": self.mAP, "AUC": self.AUC, "d_prime": self.d_prime}

    def per_class(self) -> dict[str, FloatArray]:
        """[K] each, by name; NaN where nothing can be said of a class."""
        ranked = {
            "average_precision": self.average_precision,
            "AUC": self.area_under_curve,
        }
        return ranked | _decided(self.hits, self.predicted, self.positives)


class ClassificationScores(NamedTuple):
    """Scores where every clip has one class, and the likeliest counts."""

    accuracy: float
    macro_recall: float  # accuracy with every class alike, however many its clips
    num_clips: int
    num_classes: int  # with a clip
    confusion: IntArray  # [K, K], clips of the row's class told as column's
    average_precision: FloatArray  # [K], each class against the rest
    area_under_curve: FloatArray  # [K]
    alike: bool = False  # whether each class scores the same on every clip

    @property
    def main(self) -> str:
        """The average that a checkpoint is chosen by."""
        return "accuracy"

    @property
    def positives(self) -> IntArray:
        """[K], clips of the class."""
        return self.confusion.sum(axis=1)

    def line(self) -> str:
        """The averages and what they rest on."""
        return (
            f"accuracy {self.accuracy:.4f}, macro recall {self.macro_recall:.4f} "
            f"(N = {self.num_clips} clips, {self.num_classes} classes)"
        )

    def __str__(self) -> str:
        return with_caution(self)

    def averages(self) -> dict[str, float]:
        """What one number says, by name."""
        return {"accuracy": self.accuracy, "macro_recall": self.macro_recall}

    def per_class(self) -> dict[str, FloatArray]:
        """[K] each, by name; NaN where nothing can be said of a class."""
        ranked = {
            "average_precision": self.average_precision,
            "AUC": self.area_under_curve,
        }
        hits, predicted = np.diag(self.confusion), self.confusion.sum(axis=0)
        return ranked | _decided(hits, predicted, self.positives)


Scores = TaggingScores | ClassificationScores


def _decided(
    hits: IntArray, predicted: IntArray, positives: IntArray
) -> dict[str, FloatArray]:
    """[K] each: what deciding for or against each class comes to."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": hits / predicted,
            "recall": hits / positives,
            "F1": 2 * hits / (predicted + positives),
        }


def caution(scores: Any) -> str | None:
    """A sentence where scores are not to be relied on; None where they are.

    A quarter of the classes with fewer than 5 clips is too few: one clip more or less
    then moves the average. A model that has collapsed gives every clip the same score,
    and the average then depends on rounding.

    Arguments
    ---------
    scores : TaggingScores, ClassificationScores or AgreementScores
        Those of agreement, which need no labels, are judged by all clips together.

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
    """The line of scores, and the sentence of ``caution`` where there is one."""
    sentence = caution(scores)
    return scores.line() + (f"; caution: {sentence}" if sentence else "")


class TaggingStats:
    """Collects scores clip by clip and sums them up.

    Follows SpeechBrain's metric statistics: ``append`` for each batch, ``summarize``
    at the end. Clips are kept by id, so one that two processes scored counts once.

    Arguments
    ---------
    logits : bool
        Whether scores are logits. If not they are probabilities, which decide for a
        class from 0.5 on.

    Example
    -------
    >>> stats = TaggingStats()
    >>> scores = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
    >>> stats.append(["a", "b"], scores, torch.eye(2))
    >>> stats.summarize().mAP
    1.0
    """

    def __init__(self, logits: bool = False) -> None:
        self.logits = logits
        self.clips: dict[str, tuple[NDArray, NDArray, NDArray]] = {}

    def append(
        self,
        ids: Sequence[str],
        scores: Tensor,
        labels: Tensor,
        judged: Tensor | None = None,
    ) -> None:
        """Adds a batch: scores (or logits) and 0/1 labels, both [B, K].

        ``judged`` [B] or [B, K] tells of which classes the labels say anything; None:
        of all. Clips of which they say nothing are left out.
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

    def gather(self) -> None:
        """Brings the clips of all processes together, on every one of them."""
        if not torch.distributed.is_initialized():
            return
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.clips)
        self.clips = {clip: row for part in parts for clip, row in part.items()}

    def summarize(self) -> Scores:
        """Scores over all clips appended so far.

        Raises
        ------
        ValueError
            If there are none, or none has a label.
        """
        threshold = 0.0 if self.logits else 0.5  # the same, as sigmoids are
        scores, labels, judged = self._stacked()
        return tagging_scores(scores, labels, judged, threshold)

    def by_group(self, group_of: Mapping[str, str]) -> dict[str, Scores]:
        """Scores of the clips of each group (a recording device), by its name.

        Groups without a label, of which nothing can be said, are left out.

        Example
        -------
        >>> stats = TaggingStats()
        >>> stats.append(["a", "b"], torch.eye(2), torch.eye(2))
        >>> found = stats.by_group({"a": "phone", "b": "studio"})
        >>> {name: scores.num_clips for name, scores in found.items()}
        {'phone': 1, 'studio': 1}
        """
        parts: dict[str, TaggingStats] = {}
        for clip_id, row in self.clips.items():
            name = group_of[clip_id]
            if name not in parts:
                parts[name] = copy.copy(self)
                parts[name].clips = {}
            parts[name].clips[clip_id] = row
        return {
            name: part.summarize()
            for name, part in sorted(parts.items())
            if any(self._says_something(row) for row in part.clips.values())
        }

    @staticmethod
    def _says_something(row: tuple[NDArray, NDArray, NDArray]) -> bool:
        _, labels, judged = row
        return bool((labels & judged).any())

    def _stacked(self) -> list[NDArray]:
        """Scores, labels and what was judged, [N, K] each."""
        if not self.clips:
            raise ValueError("no clip was scored; evaluate at least one labelled clip")
        # In order of the ids, so that the sums do not depend on who scored what.
        rows = [self.clips[clip_id] for clip_id in sorted(self.clips)]
        return [np.stack(parts) for parts in zip(*rows, strict=True)]


class ClassificationStats(TaggingStats):
    """Collects scores of clips that have one class each; see ``TaggingStats``.

    Example
    -------
    >>> stats = ClassificationStats()
    >>> stats.append(["a", "b"], torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.eye(2))
    >>> stats.summarize().accuracy
    0.5
    """

    def summarize(self) -> ClassificationScores:
        """Scores over all clips appended so far.

        Raises
        ------
        ValueError
            If there are none, or one has no class or several.
        """
        scores, labels, _ = self._stacked()
        if self.logits:  # by which the clips of one class cannot be ranked
            scores = torch.from_numpy(scores).double().log_softmax(dim=1).numpy()
        return classification_scores(scores, labels)


def classification_scores(scores: NDArray, labels: NDArray) -> ClassificationScores:
    """Scores of probabilities [N, K], or their logarithms, against 0/1 ``labels``.

    Of the labels [N, K] there is one in each row.
    """
    labels = np.asarray(labels).astype(bool)
    odd = int((labels.sum(axis=1) != 1).sum())
    if odd:
        raise ValueError(
            f"{odd} of {len(labels)} clips have no class or several; each needs one, "
            "or else target: multilabel"
        )
    _refuse_infinite(scores)
    num_classes = labels.shape[1]
    cells = labels.argmax(axis=1) * num_classes + scores.argmax(axis=1)
    confusion = np.bincount(cells, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    pairs = zip(scores.T, labels.T, strict=True)
    ranked = [(average_precision(*one), area_under_curve(*one)) for one in pairs]
    precision, area = np.array(ranked, dtype=np.float64).T
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
    """Whether scores [N, K] hardly differ between clips."""
    spread = scores.max(axis=0) - scores.min(axis=0)
    return len(scores) > 1 and bool((spread <= ALIKE * abs(scores).max(axis=0)).all())


def _refuse_infinite(scores: NDArray) -> None:
    if not np.isfinite(scores).all():
        raise ValueError(
            "some scores are not finite, so clips cannot be ranked; the model that "
            "gave them has diverged"
        )


def tagging_scores(
    scores: NDArray,
    labels: NDArray,
    judged: NDArray | None = None,
    threshold: float = 0.5,
) -> TaggingScores:
    """Scores of ``scores`` [N, K] against 0/1 ``labels`` [N, K].

    A class is scored over the clips where it was ``judged`` [N, K]; None: over all.
    A score of at least the threshold decides for a class.
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
    classes = [
        (score[on], label[on])
        for score, label, on in zip(scores.T, labels.T, judged.T, strict=True)
    ]
    per_class = [(average_precision(*one), area_under_curve(*one)) for one in classes]
    precision, area = np.array(per_class, dtype=np.float64).T
    decided = (np.asarray(scores) >= threshold) & judged
    # A class that every clip has leaves no curve to measure.
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


def average_precision(scores: NDArray, labels: NDArray) -> float:
    """Area under the precision-recall steps of one class; NaN without a positive.

    Clips of equal score share one step.

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
    """Area under the ROC curve of one class; NaN if all labels are alike.

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


def d_prime(area: float) -> float:
    """Separation of two unit normals whose ROC curve encloses ``area``.

    Example
    -------
    >>> round(d_prime(0.975), 3)
    2.772
    """
    if np.isnan(area):
        return float("nan")
    # At exactly 0 or 1 the separation is infinite, and NormalDist refuses.
    if area in (0.0, 1.0):
        return float("inf") if area else float("-inf")
    return 2**0.5 * NormalDist().inv_cdf(area)


def _cumulated(scores: NDArray, labels: NDArray) -> tuple[FloatArray, FloatArray]:
    """Positives and clips at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    hits = np.cumsum(positive, dtype=np.float64)[last_of_tie]
    return hits, (last_of_tie + 1).astype(np.float64)
