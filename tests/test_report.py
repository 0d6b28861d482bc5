"""What is written of scores: tables of classes, cautions, figures."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import (
    ClassificationStats,
    TaggingStats,
    caution,
    classification_scores,
    tagging_scores,
)
from efficientat_plugin.evaluation.report import (
    RunResult,
    comparison_table,
    plot_confusion,
    write_scores,
)

NUMBERS = ("average_precision", "AUC", "precision", "recall", "F1")


@pytest.mark.parametrize("name", ["$x", "$\\frac{$", "a\x1b[2J\nb", "_a", "=1+1"])
def test_any_name_of_a_class_is_drawn_and_tabled(tmp_path, name):
    scores = classification_scores(np.eye(2), np.eye(2))
    labels = LabelTable(["/m/a", "/m/b"], [name, name])
    plot_confusion(tmp_path / "confusion.png", scores, labels)
    write_scores(tmp_path, scores, labels)
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert len(lines) == 3 and "\x1b" not in lines[1] and ",=" not in lines[1]


def _table(folder):
    with open(folder / "per_class.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("stats_class", [TaggingStats, ClassificationStats])
def test_the_table_of_classes_is_scikit_learns(tmp_path, stats_class, logits):
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(0, 2, (50, 4))).float()
    values[:, 1] -= 20  # never predicted
    if stats_class is TaggingStats:
        truth = rng.random(values.shape) < 0.4
        truth[:, 3] = False  # a class without clips
        scores, predicted = values.double().sigmoid(), values >= 0
    else:
        truth = np.eye(4, dtype=bool)[rng.integers(0, 3, 50)]
        scores = values.double().softmax(dim=1)
        predicted = torch.eye(4)[values.argmax(dim=1)] > 0
    stats = stats_class(logits=logits)
    ids = [str(number) for number in range(50)]
    stats.append(ids, values if logits else scores.float(), torch.from_numpy(truth))
    names = ["wolf", "Bee", "fox", "ant"]
    labels = LabelTable(["/a", "/b", "/c", "/d"], names)
    write_scores(tmp_path, stats.summarize(), labels)
    rows = _table(tmp_path)
    assert [row["name"] for row in rows] == ["Bee", "fox", "wolf"]
    for row in rows:
        index = names.index(row["name"])
        true, ranked = truth[:, index], scores[:, index].numpy()
        assert int(row["positives"]) == true.sum()
        expected = [average_precision_score(true, ranked), roc_auc_score(true, ranked)]
        expected += precision_recall_fscore_support(
            true, predicted[:, index].numpy(), average="binary", zero_division=0
        )[:3]
        found = [float(row[name] or 0) for name in NUMBERS]
        assert found == pytest.approx(expected, abs=1e-6)
    assert [row["precision"] == "" for row in rows] == [True, False, False]


def _scores_of(*clips_of_classes):
    labels = np.repeat(np.eye(len(clips_of_classes)), clips_of_classes, axis=0)
    return classification_scores(labels, labels), tagging_scores(labels, labels)


@pytest.mark.parametrize(
    ("clips", "sentence"),
    [
        ((5, 5, 60), None),
        ((4, 30, 30, 30, 30), None),  # one of five
        ((1, 30), "1 of 2 classes have fewer than 5 clips, so other clips may"),
        ((2, 2, 2), "all 3 classes have fewer than 5 clips, so other clips may"),
    ],
)
def test_a_score_of_few_clips_is_accompanied_by_a_sentence(tmp_path, clips, sentence):
    names = [str(number) for number in range(len(clips))]
    for scores in _scores_of(*clips):
        write_scores(tmp_path, scores, LabelTable(names, names))
        written = json.loads((tmp_path / "scores.json").read_text())
        assert written["num_clips"] == sum(clips)
        if sentence is None:
            assert caution(scores) is None and "caution" not in written
            assert str(scores) == scores.line()
        else:
            assert sentence in caution(scores) == written["caution"]
            assert str(scores) == f"{scores.line()}; caution: {caution(scores)}"
    table = comparison_table([RunResult("mine", scores)])
    assert table.endswith(
        "|" if sentence is None else f"\nCaution, mine: {caution(scores)}."
    )


def test_runs_of_several_seeds_are_one_row_with_their_mean_and_range():
    labels = np.eye(2)[np.arange(20) % 2]
    scores = tagging_scores(labels, labels)
    results = [
        RunResult("with", scores._replace(mAP=value, AUC=value + 0.1))
        for value in (0.5, 0.4, 0.6)
    ]
    table = comparison_table([results[0], RunResult("teacher", scores), *results[1:]])
    *_, first, second = table.splitlines()
    assert first == (
        "| with, 3 seeds | 0.500 (0.400 to 0.600) | 0.600 (0.500 to 0.700) "
        "| 20 | 2 | - | - | - |"
    )
    assert second.startswith("| teacher | 1.000 | 1.000 |")


def test_scores_are_json_where_a_number_is_infinite(tmp_path):
    """As d' is, if the AUC is 1."""
    labels = np.eye(2)[np.arange(20) % 2]
    write_scores(tmp_path, tagging_scores(labels, labels), LabelTable("ab", "ab"))
    text = (tmp_path / "scores.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["d_prime"] is None
