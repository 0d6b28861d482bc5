"""The distillation loss has the published values, and its laws."""

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN
from torch.nn import functional

from efficientat_plugin.contracts import Mix, SoftTarget, TeacherTarget
from efficientat_plugin.training.losses import DistillationLoss, balanced_class_weights


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    archive = np.load(GOLDEN / "training_math.npz")
    return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture
def batch() -> tuple[torch.Tensor, SoftTarget, TeacherTarget]:
    """Logits, labels and a teacher for 4 clips of 7 classes."""
    labels = SoftTarget((torch.rand(4, 7) > 0.7).float(), torch.ones(4))
    teacher = TeacherTarget(torch.randn(4, 7), torch.ones(4, dtype=torch.bool))
    return torch.randn(4, 7), labels, teacher


@pytest.mark.parametrize(
    ("entry", "temperature", "mixed", "missing"),
    [
        ("kd_plain", 1.0, False, False),
        ("kd_mixup", 1.0, True, False),
        ("kd_mixup_tau2", 2.0, True, False),
        ("kd_plain_missing", 1.0, False, True),
        ("kd_mixup_missing", 1.0, True, True),
    ],
)
def test_loss_has_the_published_value(golden, entry, temperature, mixed, missing):
    known = golden["teacher_known"] if missing else torch.ones(6, dtype=torch.bool)
    mix = Mix(golden["mixup_lam"], golden["mixup_perm"]) if mixed else None
    labels = SoftTarget(golden["labels"], torch.ones(6))
    for kd_weight, expected in zip((0.0, 1.0, 0.9), golden[entry], strict=True):
        loss = DistillationLoss(kd_weight, temperature)
        teacher = loss.soft_target(TeacherTarget(golden["teacher_logits"], known))
        value = loss(
            golden["student_logits"], labels.followed(mix), teacher.followed(mix)
        )
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)


def test_without_teacher_or_weight_it_is_the_label_loss(batch):
    logits, labels, teacher = batch
    expected = functional.binary_cross_entropy_with_logits(logits, labels.scores)
    alone = DistillationLoss(kd_weight=0.9)(logits, labels)
    torch.testing.assert_close(alone, expected)
    loss = DistillationLoss(kd_weight=0.0)
    weightless = loss(logits, labels, loss.soft_target(teacher))
    torch.testing.assert_close(weightless, expected)


def test_cross_entropy_follows_soft_targets(batch):
    logits, _, teacher = batch
    labels = SoftTarget(torch.eye(7)[:4], torch.ones(4))
    loss = DistillationLoss(kd_weight=0.5, target="multiclass")
    expected = 0.5 * functional.cross_entropy(logits, torch.arange(4))
    expected += 0.5 * functional.cross_entropy(logits, teacher.logits.softmax(-1))
    value = loss(logits, labels, loss.soft_target(teacher))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_a_student_that_agrees_owes_the_teacher_nothing(batch, target):
    logits = batch[2].logits.clone().requires_grad_()
    loss = DistillationLoss(kd_weight=1.0, target=target)
    loss(logits, batch[1], loss.soft_target(batch[2])).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_an_unlabelled_clip_adds_nothing_to_the_label_term(batch, target):
    logits = batch[0].clone().requires_grad_()
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    labels = SoftTarget(torch.eye(7)[:4] * weight[:, None], weight)
    DistillationLoss(target=target)(logits, labels).backward()
    assert (logits.grad[[1, 3]] == 0).all() and (logits.grad[[0, 2]] != 0).any(1).all()


def test_an_unknown_partner_adds_nothing_to_the_teacher_term(batch):
    logits = batch[0].clone().requires_grad_()
    known = torch.tensor([True, False, True, True])
    mix = Mix(torch.tensor([1.0, 1.0, 0.6, 1.0]), torch.tensor([0, 1, 1, 3]))
    loss = DistillationLoss(kd_weight=1.0)
    target = loss.soft_target(TeacherTarget(batch[2].logits, known))
    loss(logits, batch[1].followed(mix), target.followed(mix)).backward()
    # Clip 2 keeps 0.6 of its own term, and nothing of clip 1, which has no logits.
    own = 0.6 * (logits.detach().sigmoid() - batch[2].logits.sigmoid())[2] / 28
    torch.testing.assert_close(logits.grad[2], own)
    assert (logits.grad[1] == 0).all()


def test_a_clip_mixed_with_itself_is_itself(batch):
    logits, labels, teacher = batch
    loss = DistillationLoss()
    target = loss.soft_target(teacher)
    mix = Mix(torch.full((4,), 0.7), torch.arange(4))
    mixed = loss(logits, labels.followed(mix), target.followed(mix))
    torch.testing.assert_close(mixed, loss(logits, labels, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kd_weight": 1.1}, "kd_weight=1.1"),
        ({"kd_temperature": 0.0}, "kd_temperature=0.0"),
        ({"target": "binary"}, "target='binary'"),
    ],
)
def test_loss_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(**settings)


def test_classes_that_nobody_judged_cost_nothing():
    """OpenMIC's masked loss: the mean runs over masked cells too, which are 0."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5), (torch.rand(4, 5) > 0.5).float()
    judged = (torch.rand(4, 5) > 0.4).float()
    loss = DistillationLoss(kd_weight=0)(logits, SoftTarget(labels * judged, judged))
    cells = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    )
    torch.testing.assert_close(loss, (cells * judged).mean())
    mix = Mix(torch.full((4,), 0.75), torch.tensor([1, 2, 3, 0]))
    target = SoftTarget(labels * judged, judged).followed(mix)
    mixed = DistillationLoss(0)(logits, target)
    partner = (judged * labels)[mix.partner], judged[mix.partner]
    target = 0.75 * judged * labels + 0.25 * partner[0]
    weight = 0.75 * judged + 0.25 * partner[1]
    expected = weight * torch.nn.functional.softplus(logits) - target * logits
    torch.testing.assert_close(mixed, expected.mean())


# --- Class weights -----------------------------------------------------------------


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_class_weights_are_those_of_torch(target):
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    labels = torch.eye(3)[classes]
    weights = torch.tensor([0.5, 1.0, 2.0])
    loss = DistillationLoss(target=target, class_weights=weights)
    found = loss(logits, SoftTarget(labels, torch.ones(6)))
    if target == "multiclass":
        each = functional.cross_entropy(logits, classes, weights, reduction="none")
        expected = each.mean()
    else:
        expected = functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weights
        )
    torch.testing.assert_close(found, expected)


def test_class_weights_leave_the_teacher_alone():
    logits, weights = torch.randn(4, 3), torch.tensor([0.5, 1.0, 2.0])
    labels = SoftTarget(torch.eye(3)[[0, 1, 2, 0]], torch.ones(4))
    teacher = TeacherTarget(torch.randn(4, 3), torch.ones(4, dtype=torch.bool))
    plain, weighted = (
        DistillationLoss(kd_weight=1.0, class_weights=given)
        for given in (None, weights)
    )
    target = plain.soft_target(teacher)
    assert plain(logits, labels, target) == weighted(logits, labels, target)


def test_balanced_classes_count_alike():
    indices = [[0]] * 6 + [[1]] * 3 + [[2]]
    weights = balanced_class_weights(indices, num_classes=4)
    counts = torch.tensor([6.0, 3.0, 1.0])
    torch.testing.assert_close(weights[:3] * counts, torch.full((3,), 10 / 3))
    assert weights[3] == 1
    with pytest.raises(ValueError, match=r"=\[0.0, 1.0\] must all be above 0"):
        DistillationLoss(class_weights=torch.tensor([0.0, 1.0]))
