"""Metrics equal scikit-learn's, ties and absent classes included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from efficientat_plugin.metrics import TaggingStats, d_prime, tagging_scores


def test_scores_are_the_published_ones(shared):
    golden = np.load(shared / "golden" / "training_math.npz")
    scores = tagging_scores(golden["map_scores"], golden["map_targets"])
    np.testing.assert_allclose(
        scores.average_precision, golden["map_per_class"], atol=1e-12
    )
    np.testing.assert_allclose(
        scores.area_under_curve, golden["auc_per_class"], atol=1e-12
    )


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_scores_equal_scikit_learn_with_ties(levels):
    rng = np.random.default_rng(levels)
    labels = rng.random((60, 12)) < 0.2
    scores = rng.integers(levels, size=labels.shape) / levels
    found = tagging_scores(scores, labels)
    expected = [
        (average_precision_score(y, s), roc_auc_score(y, s))
        for y, s in zip(labels.T, scores.T, strict=True)
    ]
    precision, area = np.array(expected).T
    np.testing.assert_allclose(found.average_precision, precision)
    np.testing.assert_allclose(found.area_under_curve, area)
    assert found.mAP == pytest.approx(precision.mean())
    assert found.AUC == pytest.approx(area.mean())


def test_absent_classes_are_left_out_and_counted():
    labels = np.array([[1, 0, 1], [0, 0, 1]])
    scores = tagging_scores(np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.2]]), labels)
    assert (scores.num_clips, scores.num_classes) == (2, 2)
    assert scores.mAP == 1.0  # of classes 0 and 2
    assert scores.AUC == 1.0  # of class 0: every clip has class 2
    assert "N = 2 clips, 2 classes" in str(scores)


def test_d_prime_is_that_of_the_literature():
    assert d_prime(0.5) == pytest.approx(0.0, abs=1e-12)
    assert d_prime(0.981) == pytest.approx(2.934, abs=1e-3)
    assert d_prime(1.0) == float("inf") and d_prime(0.0) == float("-inf")


def test_stats_do_not_depend_on_batches_order_or_repetition():
    scores, labels = torch.rand(20, 4), (torch.rand(20, 4) > 0.5).float()
    ids = [f"clip{i}" for i in range(20)]
    at_once, in_parts = TaggingStats(), TaggingStats()
    at_once.append(ids, scores, labels)
    for part in (slice(15, 20), slice(0, 9), slice(5, 16)):
        in_parts.append(ids[part], scores[part], labels[part])
    first, second = at_once.summarize(), in_parts.summarize()
    assert first.mAP == second.mAP and first.num_clips == second.num_clips == 20


def test_stats_refuse_nothing_and_nan():
    with pytest.raises(ValueError, match="no clip was scored"):
        TaggingStats().summarize()
    with pytest.raises(ValueError, match="none of the 3 clips has a label"):
        tagging_scores(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        tagging_scores(np.full((3, 2), np.nan), np.ones((3, 2)))
