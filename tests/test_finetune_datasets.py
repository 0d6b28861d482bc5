"""The YAML of each data set, from a small copy of its schema to a model folder."""

import csv
import json

import pytest
import torch
from known_data import COPIES, classes_of
from recipe_runs import arguments_of, run_recipe

from efficientat_plugin.pretrained.folder import read_model_folder
from efficientat_plugin.students.mn import MN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the run of each copy is."""
    parent = tmp_path_factory.mktemp("runs")
    weights = parent / "weights.pt"
    torch.manual_seed(0)
    torch.save(MN(7, width=0.1).state_dict(), weights)
    calls = []
    for name, (yaml, make) in COPIES.items():
        (parent / "data" / name).mkdir(parents=True)
        options = make(parent / "data" / name) | {
            "pretrained": weights,
            "log_mel": "{n_mels: 128, hop_length: 320}",
            "output_folder": parent / name,
            "dataset_cache": parent / "cache",
            "clip_seconds": 0.5,
            "number_of_epochs": 1,
            "batch_size": 4,
            "num_workers": 0,
            "device": "cpu",
        }
        calls.append(arguments_of(yaml, **options))
    run_recipe("finetune", calls)
    return parent


def _metrics(folder):
    return json.loads((folder / "model" / "metrics.json").read_text())


CUT = "test, the first 0.5 s of each clip alone"


def test_esc50_tests_its_fold(runs):
    metrics = _metrics(runs / "esc50" / "fold2")
    assert set(metrics) == {"test, 4 clips", CUT}
    model = read_model_folder(runs / "esc50" / "fold2" / "model")
    assert list(model.labels.names) == classes_of("esc50")  # all, in the official order


@pytest.mark.parametrize(("name", "clips"), [("fsd50k", 6), ("fsd50k_folder", 4)])
def test_fsd50k_is_tested_cut_and_whole(runs, name, clips):
    metrics = _metrics(runs / name)
    whole, cut = metrics[f"test, {clips} clips"], metrics[CUT]
    assert whole["num_clips"] == clips == cut["num_clips"]
    assert whole != cut  # what is beyond the cut counts
    history = (runs / name / "train_log.txt").read_text()
    assert history.splitlines()[0].startswith("epoch loaded: 0 - valid loss: ")
    assert "valid num_clips: 2" in history  # the official ones choose the epoch
    assert len(read_model_folder(runs / name / "model").labels) == 200


def test_openmic_scores_what_was_judged(runs):
    with open(runs / "openmic" / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows]
    assert names == classes_of("openmic")[:3]  # nobody judged the others
    assert _metrics(runs / "openmic")["test, 6 clips"]["num_clips"] == 6


def test_tau2020_is_scored_by_device(runs):
    metrics = _metrics(runs / "tau2020")
    devices = {name: found["num_clips"] for name, found in metrics.items()}
    assert devices == {
        "test, 6 clips": 6,
        CUT: 6,
        "device a": 2,
        "device s1": 2,
        "device s4": 2,
    }
