"""Fits a class layer for new classes in closed form, on the features of a student.

With a few clips per class this takes seconds and beats training by gradient descent.
The probe is copied into the student's own class layer, so the result is an ordinary
student, which can also be fine-tuned.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from efficientat_plugin.students.heads import MLP, Linear
from efficientat_plugin.students.student import Student

SHARPNESS = (5.0, 7.5, 10.0, 15.0, 20.0, 30.0)  # to choose from
NEVER = -20.0  # logit of a class without a clip
SMALLEST_SCALE = 1e-3  # times the average; nearly constant features stay small
NUM_FOLDS = 4  # to choose the sharpness with


def _refuse_other_heads(student: Student) -> None:
    if not isinstance(student.classifier, MLP | Linear):
        raise ValueError(
            "a probe replaces a linear class layer, and a "
            f"{type(student.classifier).__name__} head has none; take head='mlp' or "
            "'linear', or train without a probe"
        )


def probe_features(student: Student, log_mel: Tensor) -> Tensor:
    """Computes the input of a student's class layer: [B, 1, F, T] -> [B, D']."""
    _refuse_other_heads(student)
    student.check_input(log_mel)
    features = student.maps(log_mel)
    for layer in list(student.classifier.children())[:-1]:
        features = layer(features)
    return features


def balanced_ridge(
    features: Tensor, targets: Tensor, ridge: float = 0.4
) -> tuple[Tensor, Tensor]:
    """Fits a ridge regression on the targets, with equal weight for every class.

    The weight of a clip is the average over its classes of 1 / (clips of the class);
    without weights, least squares would penalise rare classes. Features are divided
    only by the square root of their standard deviation, so those with a large one keep
    some of their advantage.

    Source: Rifkin, Yeo, Poggio, "Regularized Least-Squares Classification", 2003; these
    weights are added.

    Arguments
    ---------
    features : Tensor
        [N, D].
    targets : Tensor
        [N, K], 0 or 1.
    ridge : float
        Weight of the penalty, above 0; it is multiplied by D.

    Returns
    -------
    Tensor, Tensor
        Weight [K, D] and bias [K] of a linear layer whose output is about 1 for classes
        that are present and 0 for others.

    Raises
    ------
    ValueError
        For a penalty out of range, and for clips without a class.

    Example
    -------
    >>> weight, bias = balanced_ridge(torch.eye(2), torch.eye(2), ridge=1e-6)
    >>> (torch.eye(2) @ weight.T + bias).round(decimals=3)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if ridge <= 0:
        raise ValueError(f"ridge={ridge} must be above 0")
    features, targets = features.double(), targets.double()
    per_clip = targets.sum(dim=1)
    if not bool((per_clip > 0).all()):
        raise ValueError("some clips have no class; leave them out of the probe")
    rarity = 1 / targets.sum(dim=0).clamp(min=1)
    share = (targets * rarity).sum(dim=1) / per_clip
    share = share / share.mean()
    deviation = features.std(dim=0, correction=0)
    average = deviation.mean().clamp(min=1e-12)
    scale = (deviation.clamp(min=SMALLEST_SCALE * average) * average).sqrt()
    scaled = (features - features.mean(dim=0)) / scale
    center = (share[:, None] * scaled).mean(dim=0)
    prior = (share[:, None] * targets).mean(dim=0)
    root = share.sqrt()[:, None]
    inputs, outputs = root * (scaled - center), root * (targets - prior)
    num_clips, width = features.shape
    penalty = ridge * width
    if num_clips <= width:
        gram = inputs @ inputs.T + penalty * torch.eye(num_clips).to(inputs)
        solution = inputs.T @ torch.linalg.solve(gram, outputs)  # [D, K]
    else:
        gram = inputs.T @ inputs + penalty * torch.eye(width).to(inputs)
        solution = torch.linalg.solve(gram, inputs.T @ outputs)
    weight = (solution / scale[:, None]).T
    bias = prior - center @ solution - weight @ features.mean(dim=0)
    return weight.float(), bias.float()


def logits_of(scores: Tensor, target: str, sharpness: float) -> Tensor:
    """Turns scores near 0 and 1 into logits for softmax or sigmoid."""
    middle = 0.5 if target == "multilabel" else 0.0
    return sharpness * (scores - middle)


class Probe(NamedTuple):
    """The results of fitting a probe.

    Attributes
    ----------
    sharpness : float
        Factor of its logits.
    share_right : float or None
        Share of held-out clips whose highest score is one of their classes; None if no
        held-out clip has a class that the other clips have.
    """

    sharpness: float
    share_right: float | None


def cross_validate(
    features: Tensor,
    targets: Tensor,
    target: str,
    ridge: float,
    groups: Sequence[Hashable],
    seed: int = 0,
) -> Probe:
    """Finds the sharpness with the lowest loss on held-out clips.

    Clips of one group are held out together. Sharpness does not change the order of
    the classes.

    Arguments
    ---------
    features : Tensor
        [N, D].
    targets : Tensor
        [N, K], 0 or 1.
    target : str
        "multilabel" or "multiclass".
    ridge : float
        See ``balanced_ridge``.
    groups : sequence
        [N], the group of each clip.
    seed : int
        Seed for dealing the groups into folds.

    Returns
    -------
    Probe
    """
    names = sorted(set(groups), key=str)
    fold_of = np.random.default_rng(seed).permutation(len(names)) % NUM_FOLDS
    fold_by_name = dict(zip(names, fold_of.tolist(), strict=True))
    folds = torch.tensor([fold_by_name[group] for group in groups])
    losses = dict.fromkeys(SHARPNESS, 0.0)
    num_right = num_judged = 0
    for fold in range(NUM_FOLDS):
        out = folds == fold
        if out.all() or not out.any():
            continue
        weight, bias = balanced_ridge(features[~out], targets[~out], ridge)
        scores = features[out].float() @ weight.T + bias
        for sharpness in SHARPNESS:
            logits = logits_of(scores, target, sharpness)
            if target == "multilabel":
                loss = functional.binary_cross_entropy_with_logits(logits, targets[out])
            else:
                loss = functional.cross_entropy(logits, targets[out])
            losses[sharpness] += float(loss) * int(out.sum())
        learnt = targets[~out].sum(dim=0) > 0
        judged = targets[out][:, learnt].sum(dim=1) > 0
        top = scores.masked_fill(~learnt, -torch.inf).argmax(dim=1, keepdim=True)
        right = targets[out].gather(1, top)[:, 0] > 0
        num_right += int(right[judged].sum())
        num_judged += int(judged.sum())
    share_right = num_right / num_judged if num_judged else None
    return Probe(min(losses, key=lambda one: losses[one]), share_right)


@torch.inference_mode()
def fit_probe(
    student: Student,
    batches: Iterable[tuple[Tensor, Tensor, Sequence[Hashable]]],
    target: str,
    ridge: float = 0.4,
) -> Probe:
    """Fits a probe to clips and copies it into the student's class layer.

    Arguments
    ---------
    student : Student
        In evaluation mode; with an mlp or a linear head of K classes.
    batches : iterable of (Tensor, Tensor, sequence)
        Log-mels [B, 1, F, T], labels [B, K], and the group of each clip: its recording,
        or whatever must not be both held out and learnt from.
    target : str
        "multilabel" or "multiclass".
    ridge : float
        See ``balanced_ridge``.

    Returns
    -------
    Probe

    Raises
    ------
    ValueError
        If there are no labelled clips, or the head does not end in a class layer.
    """
    _refuse_other_heads(student)
    layer = student.class_layer()
    parts, labels, groups = [], [], []
    for log_mel, target_rows, names in batches:
        labelled = target_rows.sum(dim=1) > 0
        parts.append(probe_features(student, log_mel)[labelled].cpu())
        labels.append(target_rows[labelled].cpu())
        kept = zip(names, labelled.tolist(), strict=True)
        groups += [name for name, keep in kept if keep]
    if not groups:
        raise ValueError("none of the clips has a label; a probe needs labelled clips")
    features, targets = torch.cat(parts), torch.cat(labels)
    probe = cross_validate(features, targets, target, ridge, groups)
    weight, bias = balanced_ridge(features, targets, ridge)
    bias = logits_of(bias, target, probe.sharpness)
    bias[targets.sum(dim=0) == 0] = NEVER
    layer.weight.copy_(probe.sharpness * weight)
    layer.bias.copy_(bias)
    return probe
