"""The YAMLs of the published detectors differ in what they should and no more."""

import pytest
from recipe_runs import REPOSITORY

from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.support.options import read_yaml

BASE = "fmn10_tf256"
# By YAML: what is not as in fmn10_tf256.yaml, but its folder
DIFFER = {
    "fmn10": {"student.sequence_model": "none"},
    "fmn10_gru256": {"student.sequence_model": "gru", "rates.head_lr": 0.0008},
    "fmn10_hybrid256": {"student.sequence_model": "hybrid", "rates.head_lr": 0.0008},
    "fmn10_tf256_advanced": {
        "sampling.class_balanced": True,
        "sampling.clips_per_epoch": 2 * 100000,
        "sampling.strong_clips": 64,
        "sampling.weak_mixup_alpha": 0.3,
        "train_loader.batch_size": 2 * 64,
        "mixup.alpha": 0.3,
        "loss.weak_weight": 0.0,
        "number_of_epochs": 2 * 120,
    },
}


def _values(node, name=""):
    """Every scalar of a YAML by its path, and the class of every object."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {name: getattr(node, "value", node)}
    found = {name: str(getattr(node, "tag", ""))}
    for key, each in node.items():
        found |= _values(each, f"{name}.{key}".removeprefix("."))
    return found


def _read(name):
    return _values(read_yaml(REPOSITORY / "hparams" / f"{name}.yaml"))


@pytest.mark.parametrize("name", DIFFER)
def test_yamls_of_published_detectors_differ_in_what_they_should(name):
    base, own = _read(BASE), _read(name)
    assert own.keys() == base.keys()
    assert own.pop("output_folder") == f"results/{name}/<seed>"
    assert base.pop("output_folder") == f"results/{BASE}/<seed>"
    differ = {key: value for key, value in own.items() if value != base[key]}
    assert differ == DIFFER[name]


SIZES = {"fmn10": 3.831, "fmn10_tf256": 5.028}
SIZES |= {"fmn10_gru256": 6.484, "fmn10_hybrid256": 5.811}


@pytest.mark.parametrize("name", SIZES)
def test_a_yaml_builds_the_student_of_the_paper(name):
    """By millions of parameters, as the paper counts them: with both heads."""
    path = str(REPOSITORY / "hparams" / f"{name}.yaml")
    hparams = load_hparams(path, {"dataset": "x", "events": "y"})
    student = hparams["student"](num_classes=447, num_weak_classes=447)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert count / 1e6 == pytest.approx(SIZES[name], abs=0.001)
