"""The probe is a weighted ridge regression, folded into a student."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.probe import (
    NEVER,
    balanced_ridge,
    cross_validate,
    fit_probe,
    probe_features,
)


def _clusters(num_clips, width, num_classes=3, seed=0):
    """Clips around the middle of their class; the first class is the most common."""
    generator = torch.Generator().manual_seed(seed)
    middles = 3 * torch.randn(num_classes, width, generator=generator)
    classes = (torch.rand(num_clips, generator=generator) ** 2 * num_classes).long()
    features = middles[classes] + torch.randn(num_clips, width, generator=generator)
    return features, torch.eye(num_classes)[classes]


@pytest.mark.parametrize("num_clips", [12, 200])  # fewer and more than features
def test_it_is_ridge_regression_with_rare_clips_weighing_more(num_clips):
    features, targets = _clusters(num_clips, width=40)
    weight, bias = balanced_ridge(features, targets, ridge=0.4)
    rarity = (targets / targets.sum(dim=0)).sum(dim=1)
    deviation = features.std(dim=0, correction=0)
    scale = (deviation * deviation.mean()).sqrt()
    ours = Ridge(alpha=0.4 * 40).fit(
        ((features - features.mean(dim=0)) / scale).numpy(),
        targets.numpy(),
        sample_weight=(rarity / rarity.mean()).numpy(),
    )
    expected = torch.from_numpy(ours.coef_) / scale
    torch.testing.assert_close(weight, expected.float(), atol=1e-5, rtol=1e-4)
    scores = features @ weight.T + bias
    expected = ours.predict(((features - features.mean(dim=0)) / scale).numpy())
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


def test_copies_of_a_class_do_not_move_the_probe():
    features, targets = _clusters(30, width=8)
    common = targets[:, 0] > 0
    twice = torch.cat([features, features[common]])
    labels = torch.cat([targets, targets[common]])
    # Standardised alike, weighed alike: what is left differs by the scale alone.
    weight, bias = balanced_ridge(features, targets, ridge=1e-3)
    again, moved = balanced_ridge(twice, labels, ridge=1e-3)
    one, other = features @ weight.T + bias, features @ again.T + moved
    assert (one.argmax(1) == other.argmax(1)).all()
    torch.testing.assert_close(one, other, atol=0.03, rtol=0.05)


@pytest.mark.parametrize("target", ["multiclass", "multilabel"])
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_student_loads_settings_given_once(head, target):
    torch.manual_seed(0)
    student = MN(4, width=0.1, head=head).eval()
    log_mel = torch.randn(24, 1, 32, 40)
    for clip in range(24):  # three kinds of sound
        log_mel[clip, :, 10 * (clip % 3) : 10 * (clip % 3) + 8] += 4
    labels = torch.eye(4)[torch.arange(24) % 3]
    groups = [f"recording {clip // 2}" for clip in range(24)]
    for norm in student.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    student.train()(log_mel)
    student.eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    batches = [(log_mel[:16], labels[:16], groups[:16])]
    batches += [(log_mel[16:], labels[16:], groups[16:])]
    fit_probe(student, batches, target)
    logits = student(log_mel).logits
    hits = (logits.argmax(1) == labels.argmax(1)).float().mean()
    assert hits > 0.85  # of a network that has learnt nothing
    assert (logits[:, 3] == NEVER).all()  # a class that no clip has
    if target == "multilabel":
        assert ((logits > 0) == (labels > 0)).float().mean() > 0.85
    layer = "classifier.5" if head == "mlp" else "classifier.2"
    for name, value in student.state_dict().items():
        assert name.startswith(layer) or torch.equal(value, before[name]), name
    features = probe_features(student, log_mel)
    torch.testing.assert_close(student.classifier[-1](features), logits)


def test_sharper_is_not_better_where_the_probe_errs():
    features, targets = _clusters(120, width=6)
    groups = list(range(120))
    sure = cross_validate(features, targets, "multiclass", 0.01, groups)
    assert sure.share_right > 0.9
    noisy = torch.eye(3)[torch.randint(3, (120,))]
    unsure = cross_validate(features, noisy, "multiclass", 0.01, groups)
    assert unsure.sharpness < sure.sharpness
    assert unsure.share_right < 0.6


def test_what_no_probe_can_be_made_of_is_refused():
    features, targets = _clusters(9, width=4)
    with pytest.raises(ValueError, match="ridge=0 must be above 0"):
        balanced_ridge(features, targets, ridge=0)
    with pytest.raises(ValueError, match="some clips have no class"):
        balanced_ridge(features, 0 * targets)
    student = MN(3, width=0.1).eval()
    silent = [(torch.zeros(2, 1, 32, 40), torch.zeros(2, 3), ["a", "b"])]
    with pytest.raises(ValueError, match="none of the clips has a label"):
        fit_probe(student, silent, "multiclass")
    for head in ("fully_convolutional", "multihead_attention_pooling"):
        student = MN(3, width=0.1, head=head).eval()
        with pytest.raises(ValueError, match="head has none; take head='mlp'"):
            fit_probe(student, silent, "multiclass")
