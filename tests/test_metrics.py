"""Metrics equal scikit-learn's, ties and absent classes included."""

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN
from sklearn.metrics import (
    average_precision_score,
    roc_auc_score,
)

from efficientat_plugin.contracts import TeacherTarget
from efficientat_plugin.evaluation.agreement import AgreementStats
from efficientat_plugin.evaluation.metrics import (
    ClassificationStats,
    TaggingStats,
    caution,
    classification_scores,
    d_prime,
    tagging_scores,
)


def test_scores_are_the_published_ones():
    golden = np.load(GOLDEN / "training_math.npz")
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
    whole, in_parts = TaggingStats(), TaggingStats()
    whole.append(ids, scores, labels)
    for part in (slice(15, 20), slice(0, 9), slice(5, 16)):
        in_parts.append(ids[part], scores[part], labels[part])
    first, second = whole.summarize(), in_parts.summarize()
    assert first.mAP == second.mAP and first.num_clips == second.num_clips == 20


def test_stats_refuse_nothing_and_nan():
    with pytest.raises(ValueError, match="no clip was scored"):
        TaggingStats().summarize()
    with pytest.raises(ValueError, match="none of the 3 clips has a label"):
        tagging_scores(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        tagging_scores(np.full((3, 2), np.nan), np.ones((3, 2)))


def test_a_class_is_scored_where_it_was_judged():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 3)), rng.random((40, 3)) > 0.6
    judged = rng.random((40, 3)) > 0.3
    judged[:, 2] = False  # nobody listened for it
    found = tagging_scores(scores, labels, judged)
    for index in range(2):
        on = judged[:, index]
        alone = tagging_scores(scores[on][:, [index]], labels[on][:, [index]])
        assert found.average_precision[index] == alone.mAP
        assert found.area_under_curve[index] == alone.AUC
    assert np.isnan(found.average_precision[2]) and found.num_classes == 2
    stats = TaggingStats()
    ids = [str(number) for number in range(40)]
    stats.append(ids, *map(torch.from_numpy, (scores, labels, judged)))
    assert stats.summarize().mAP == pytest.approx(found.mAP, abs=1e-6)


def test_accuracy_counts_hits():
    scores = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 2], [2, 1, 0]], float)
    labels = np.eye(3)[[0, 1, 1, 0]]
    found = classification_scores(scores, labels)
    assert (found.accuracy, found.macro_recall) == (0.75, 0.75)
    assert found.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert (found.num_clips, found.num_classes, found.main) == (4, 2, "accuracy")
    per_class = found.per_class()
    np.testing.assert_array_equal(per_class["recall"], [1, 0.5, np.nan])
    np.testing.assert_array_equal(per_class["precision"], [1, 1, 0])
    with pytest.raises(ValueError, match="1 of 4 clips have no class or several"):
        classification_scores(scores, np.eye(3)[[0, 1, 1, 0]] * [[1], [1], [1], [0]])
    with pytest.raises(ValueError, match="not finite"):
        classification_scores(scores * np.nan, labels)


@pytest.mark.parametrize("stats", [TaggingStats, ClassificationStats])
@pytest.mark.parametrize("logits", [True, False])
def test_a_model_that_has_collapsed_is_noticed(stats, logits):
    labels = torch.eye(3).repeat(20, 1)
    ids = [str(number) for number in range(60)]
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for size in (1e-7, 1.0):
        collected = stats(logits=logits)
        scores = torch.tensor([-3.0, 1.0, 0.5]) * (1 + size * noise)
        scores = scores if logits else scores.sigmoid()
        collected.append(ids, scores, labels)
        found[size] = caution(collected.summarize())
    assert found[1.0] is None
    assert "nearly the same scores" in found[1e-7]


def test_agreement_on_a_handful_of_clips_is_accompanied_by_a_sentence():
    def agreement(count):
        logits = torch.randn(count, 3)
        stats = AgreementStats(
            lambda ids: TeacherTarget(logits, torch.ones(count, dtype=torch.bool)),
            "multilabel",
        )
        stats.append([str(number) for number in range(count)], logits)
        return stats.summarize()

    assert "these are fewer than 5 clips" in str(agreement(4))
    assert caution(agreement(5)) is None


def test_groups_are_scored_apart():
    stats = TaggingStats()
    names = ["a", "b", "c", "d", "e"]
    labels = torch.eye(2)[[0, 1, 0, 1, 0]]
    labels[4] = 0
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    stats.append(names, scores, labels)
    devices = dict(zip(names, ["near", "near", "far", "far", "mute"], strict=True))
    found = stats.by_group(devices)
    assert list(found) == ["far", "near"]  # "mute" has no label
    assert found["near"].mAP == 1.0 and found["far"].mAP == 0.5
