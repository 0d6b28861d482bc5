"""What fine-tuning decides from the data before it trains."""

import dataclasses
import importlib.util
from pathlib import Path

import datasets
import pytest

from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.labelled import LabelledClips
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.splits import Split
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.launch import load_hparams, settings_of
from efficientat_plugin.support.options import option_places, read_yaml

REPOSITORY = Path(__file__).resolve().parents[1]


RECIPE = REPOSITORY / "recipes" / "finetune.py"


def _recipe():
    spec = importlib.util.spec_from_file_location("finetune", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "--dataset is needed; see the head of "),
        (lambda folder: folder / "nowhere", "there is no file or folder"),
        (lambda folder: folder, "holds neither one table"),
    ],
    ids=["none", "absent", "empty"],
)
def test_what_is_no_data_is_refused_in_a_sentence(make, message, tmp_path):
    dataset = make(tmp_path)
    overrides = {"dataset": None if dataset is None else str(dataset)}
    yaml = str(REPOSITORY / "hparams" / "finetune.yaml")
    command = [yaml, "--output_folder", str(tmp_path / "out")]
    if dataset is not None:
        command += ["--dataset", overrides["dataset"]]
    with pytest.raises((SystemExit, OSError, ValueError), match=message) as refusal:
        _recipe().main(command)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_epoch_to_keep_that_does_not_exist_is_refused(tmp_path):
    yaml = str(REPOSITORY / "hparams" / "finetune.yaml")
    with pytest.raises(ValueError, match="keep_epoch='lats' must be one of"):
        _recipe().main([yaml, "--dataset", str(tmp_path), "--keep_epoch", "lats"])


def _clips(labels, **columns):
    ids = [f"clip{number:03d}" for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"video_id": ids, "labels": labels} | columns)
    return LabelledClips(rows, LabelTable("ab", "ab"), "multiclass")


def _tuning(tmp_path, **overrides):
    overrides = {"output_folder": str(tmp_path / "run")} | overrides
    overrides.setdefault("dataset", "sounds")
    return load_hparams(REPOSITORY / "hparams" / "finetune.yaml", overrides)


def test_a_class_that_is_only_tested_on_is_named(tmp_path, caplog):
    clips = _clips([["a"], ["a"], ["a"], ["b"]])
    run = _recipe().Run(clips, Split([0, 1], [], [2, 3]), {}, "cpu")
    _recipe().warn_of_classes_without_clips(run)
    assert "1 of 2 classes have clips to test on and none to train" in caplog.text
    assert caplog.text.rstrip().endswith("cannot learn them: b")


def test_what_decides_the_split_is_printed_once(tmp_path, capsys):
    clips = _clips([["a"], ["b"]] * 50, split=["train"] * 60 + ["val", "test"] * 20)
    _recipe().split_clips(clips, _tuning(tmp_path), "cpu")
    sizes = "60 clips to train, 20 to validate and 20 to test on"
    printed = capsys.readouterr().out
    assert printed.splitlines().count(f"split: given by column split: {sizes}") == 1
    _recipe().split_clips(clips, _tuning(tmp_path, split="random", seed=5), "cpu")
    assert "split: drawn at random (seed 5): " in capsys.readouterr().out


def test_test_clips_do_not_depend_on_how_many_choose(tmp_path):
    clips = _clips([["a"], ["b"]] * 50)
    splits = [
        _recipe().split_clips(clips, hparams, "cpu")[0]["random"]
        for hparams in (_tuning(tmp_path, number_of_epochs=n) for n in (0, 40))
    ]
    assert splits[0].test == splits[1].test and not splits[0].valid
    assert set(splits[1].train) | set(splits[1].valid) == set(splits[0].train)
    assert len(splits[1].valid) > 5


def test_epochs_follow_from_clips_and_teachers(tmp_path):
    few, many = (_clips([["a"], ["b"]] * n) for n in (4, 40))
    for clips, teacher in ((few, "mn04_as"), (many, None)):
        hparams = _tuning(tmp_path, teacher=teacher)
        splits, epochs = _recipe().split_clips(clips, hparams, "cpu")
        assert epochs == 80  # a probe alone would not ask the teacher
        assert splits["random"].valid


def test_a_student_of_another_rate_is_refused(tmp_path):
    student = MN(2, width=0.1)
    student.front_end = {"sample_rate": 32000}
    with pytest.raises(ValueError, match="needs 32000 Hz; pass --sample_rate 32000"):
        _recipe().build_modules(_tuning(tmp_path, sample_rate=16000), student)


def test_a_run_that_came_to_nothing_binds_nobody(tmp_path):
    recipe = _recipe()

    def claim(**overrides):
        hparams = _tuning(tmp_path, **overrides)
        clips = _clips([["a"], ["b"]])
        run = recipe.Run(clips, Split([0], [], [1]), hparams, "cpu")
        yaml = REPOSITORY / "hparams" / "finetune.yaml"
        recipe.refuse_another_run(run, settings_of(yaml, overrides))

    claim(pretrained="misspelt")
    claim()
    (tmp_path / "run" / "model").mkdir()
    claim()
    with pytest.raises(ValueError, match="pretrained mn10_as there, mn20_as here"):
        claim(pretrained="mn20_as")
    with pytest.raises(ValueError, match="batch_size 32 there, 8 here; head mlp "):
        claim(batch_size=8, head="fully_convolutional")
    claim(num_workers=0, eval_batch_size=8, score_cut_clips=True)


TUNING = ("finetune", "esc50", "fsd50k", "openmic", "tau2020")


@pytest.mark.parametrize("name", TUNING)
def test_facts_of_a_yaml_are_what_tables_are_read_by(name, tmp_path):
    path = REPOSITORY / "hparams" / f"{name}.yaml"
    hparams = load_hparams(path, {"output_folder": str(tmp_path), "dataset": "x"})
    assert set(hparams["facts"]) <= {field.name for field in dataclasses.fields(Facts)}


@pytest.mark.parametrize("name", TUNING)
def test_yamls_of_fine_tuning_share_their_options(name):
    def options(stem):
        return {*option_places(read_yaml(REPOSITORY / "hparams" / f"{stem}.yaml"))}

    of_parts = {"warmup_epochs", "ramp_down_start", "ramp_down_epochs", "last_factor"}
    of_parts |= {"warmup_share", "probability"}
    assert options(name) - of_parts == options("finetune") - of_parts
