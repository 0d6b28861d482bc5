"""Metrics equal scikit-learn's, ties and absent classes included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.metrics import (
    TaggingStats,
    classification_scores,
    d_prime,
    tagging_scores,
)
from efficientat_plugin.report import plot_confusion, write_scores


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


@pytest.mark.parametrize("name", ["$x", "$\\frac{$", "a\x1b[2J\nb", "_a", "=1+1"])
def test_any_name_of_a_class_is_drawn_and_tabled(tmp_path, name):
    scores = classification_scores(np.eye(2), np.eye(2))
    labels = LabelTable(["/m/a", "/m/b"], [name, name])
    plot_confusion(tmp_path / "confusion.png", scores, labels)
    write_scores(tmp_path, scores, labels)
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert len(lines) == 3 and "\x1b" not in lines[1] and ",=" not in lines[1]


def test_groups_are_scored_apart():
    stats = TaggingStats()
    names = ["a", "b", "c", "d", "e"]
    labels = torch.eye(2)[[0, 1, 0, 1, 0]]
    labels[4] = 0
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    stats.append(names, scores, labels)
    devices = dict(zip(names, ["near", "near", "far", "far", "mute"], strict=True))
    found = stats.by_group(devices)
    assert list(found) == ["far", "near"]  # nothing can be said of "mute"
    assert found["near"].mAP == 1.0 and found["far"].mAP == 0.5
