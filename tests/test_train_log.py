"""Every training recipe's numbers: to SpeechBrain's loggers, and in history.csv."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import REPOSITORY, arguments_of, run_to_end
from small_rows import EVAL_IDS, TRAIN_IDS, rows_of, write_parquet
from test_brain import Tones, _brain, _fit
from test_cmkd import PATCHOUT
from test_cmkd import SMALL as SMALL_TRANSFORMER
from test_distil import SMALL, TEACHER

from efficientat_plugin.evaluation import report
from efficientat_plugin.evaluation.metrics import TaggingStats, tagging_scores
from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.brain import History

LOGGERS = {
    "tensorboard": "!new:strict_loggers.TensorboardLogger\n"
    "  save_dir: !ref <output_folder>/tensorboard\n",
    "wandb": "!new:strict_loggers.WandBLogger\n"
    "  initializer: !name:strict_loggers.start_run\n"
    "  dir: !ref <output_folder>/wandb\n",
}
TRAINING = {
    "finetune": "finetune",
    "distil": "distil",
    "quickstart": "audioset_kd",
    "cmkd_mutual": "audioset_kd",
}
MAIN = {"finetune": "accuracy", "distil": "explained"}  # others: mAP
EPOCHS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data for every recipe, and copies of them from which the loggers are found."""
    place = tmp_path_factory.mktemp("recipes")
    tests = Path(__file__).parent
    shutil.copy(tests / "strict_loggers.py", place)
    for recipe in set(TRAINING.values()):
        shutil.copy(REPOSITORY / "recipes" / f"{recipe}.py", place)
    (place / "ear.py").write_text(TEACHER)
    torch.manual_seed(0)
    torch.save(MN(7, width=0.1).state_dict(), place / "small.pt")
    rng = np.random.default_rng(0)
    for number in range(24):
        frequency = (300.0, 3000.0)[number % 2]
        tone = np.sin(2 * np.pi * frequency * np.arange(8000) / 16000)
        folder = place / "sounds" / ("low", "high")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        sound = 0.3 * tone + 0.01 * rng.standard_normal(len(tone))
        soundfile.write(folder / f"{number}.wav", sound, 16000)
    for split, ids in {"bal_train": TRAIN_IDS, "eval": EVAL_IDS}.items():
        rows = [row | {"labels": ["/m/09x0r"]} for row in rows_of(ids)]
        write_parquet(place / "data" / "data" / split / "0.parquet", rows)
    return place


def _options(name, place):
    common = {
        "clip_seconds": 0.5,
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_workers": 0,
        "number_of_epochs": EPOCHS,
        "device": "cpu",
    }
    if name == "finetune":
        front_end = {"log_mel": "{n_mels: 128, hop_length: 320}"}
        weights = {"dataset": place / "sounds", "pretrained": place / "small.pt"}
        return common | front_end | weights
    if name == "distil":
        return SMALL | common | {"dataset": place / "sounds", "teacher": "ear:make"}
    common |= {
        "dataset": place / "data",
        "dataset_cache": place / "cache",
        "train_split": "bal_train",
        "clips_per_epoch": 4,
        "pretrained": None,
        "width": 0.1,
    }
    if name == "cmkd_mutual":
        return common | SMALL_TRANSFORMER | PATCHOUT | {"class_balanced": False}
    sample = dict.fromkeys(
        ("num_labelled", "num_unlabelled", "num_eval", "num_seeds"), 1
    )
    sample |= {"sample_folder": place / "sample", "teacher": None}
    return common | sample


def _run(name, place, output, logger=None):
    """A run of a recipe with a logger of ``LOGGERS``, or its own."""
    arguments = arguments_of(name, **_options(name, place), output_folder=output)
    if logger is not None:
        text = Path(arguments[0]).read_text()
        text, found = re.subn(
            r"^train_logger: .*\n(  .*\n)*",
            f"train_logger: {LOGGERS[logger]}",
            text,
            flags=re.MULTILINE,
        )
        assert found == 1
        arguments[0] = str(place / f"{name}_{logger}.yaml")
        Path(arguments[0]).write_text(text)
    return run_to_end([place / f"{TRAINING[name]}.py", *arguments], folder=place)


def _history(output):
    with open(output / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_tensorboard_is_given_the_numbers_of_every_epoch(name, place, tmp_path):
    output, main = tmp_path / "run", MAIN.get(name, "mAP")
    _run(name, place, output, "tensorboard")
    lines = (output / "tensorboard" / "scalars.jsonl").read_text().splitlines()
    scalars = {}
    for tag, value, _ in map(json.loads, lines):
        scalars.setdefault(tag, []).append(value)
    history = _history(output)
    assert [float(row["train_loss"]) for row in history] == scalars["loss/train"]
    valid = scalars[f"{main}/valid"][-EPOCHS:]  # finetune scores the start, too
    assert [float(row[main]) for row in history] == valid
    tested = json.loads((output / "scores.json").read_text())
    assert scalars[f"{main}/test"][-1] == pytest.approx(tested[main])
    if name == "cmkd_mutual":
        assert len(scalars["peer_mAP/valid"]) == EPOCHS
    assert not (output / "train_log.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_wandb_is_given_the_numbers_of_every_epoch(name, place, tmp_path):
    output = tmp_path / "run"
    _run(name, place, output, "wandb")
    lines = (output / "wandb" / "logged.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    epochs = [line for line in logged if "train" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all("loss" in line["train"] for line in epochs)
    assert all(MAIN.get(name, "mAP") in line["valid"] for line in epochs)
    assert "test" in logged[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_history_and_train_log_tell_the_same(name, place, tmp_path):
    output, main = tmp_path / "run", MAIN.get(name, "mAP")
    _run(name, place, output)
    history = _history(output)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert {"lr", "train_loss", main, "num_clips", "num_classes"} <= set(history[0])
    log = (output / "train_log.txt").read_text()
    for row in history:
        assert f"epoch: {row['epoch']}, lr: " in log
        assert f"valid {main}: {float(row[main]):.4g}" in log
        assert f"train loss: {float(row['train_loss']):.4g}" in log
    if name == "finetune":
        assert log.startswith("epoch loaded: 0 - valid loss: ")  # not of test clips
    if name != "distil":
        assert log.count(" - test ") == 1
    for file in ("README.md", "metrics.json", "hyperparams.yaml"):
        if (output / "model").is_dir():
            text = (output / "model" / file).read_text()
            assert not [p for p in (place, output, REPOSITORY) if str(p) in text], file


def test_a_history_of_epochs_that_lack_a_number_is_a_table(tmp_path):
    history = History()
    history.epochs = [{"epoch": 1, "mAP": 0.5}, {"epoch": 2, "valid_loss": 1e-7}]
    history.write_csv(tmp_path / "history.csv")
    text = (tmp_path / "history.csv").read_text()
    assert text == "epoch,mAP,valid_loss\n1,0.5,\n2,,1e-07\n"
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_curves_show_every_epoch_and_name_what_they_are_of(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "_save", lambda figure, path: drawn.append(figure))
    scores = tagging_scores(np.eye(4), np.eye(4))
    row = {"train_loss": 1.0, "valid_loss": 2.0, "mAP": 0.5, "num_clips": 7}
    epochs = [{"epoch": number} | row for number in range(1, 4)]
    report.plot_curves(
        tmp_path / "curves.png",
        [
            report.RunResult("each epoch", scores, None, epochs, "validation"),
            report.RunResult("the one kept", scores, clips="test"),
        ],
    )
    (figure,) = drawn
    figure.canvas.draw()
    score, loss = figure.axes
    line, kept = score.get_lines()
    assert list(line.get_xdata()) == [1, 2, 3]
    assert line.get_label() == "each epoch, 7 validation clips"
    assert kept.get_label() == "the one kept, 4 test clips"
    assert [line.get_label() for line in loss.get_lines()] == [
        "each epoch, training clips",
        "each epoch, validation clips",
    ]
    for axes in figure.axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_where_no_epoch_was_run_there_are_no_curves(tmp_path):
    scores = tagging_scores(np.eye(4), np.eye(4))
    report.plot_curves(tmp_path / "curves.png", [report.RunResult("probe", scores)])
    assert not list(tmp_path.iterdir())


class GivenScores(TaggingStats):
    """Finds given scores, one in each evaluation."""

    given: list = []

    def summarize(self):
        return super().summarize()._replace(mAP=self.given.pop(0))


def test_every_epoch_is_kept_where_an_early_one_is_tested(tmp_path):
    brain, epochs = _brain(tmp_path, epochs=3, make_stats=GivenScores)
    GivenScores.given = [0.3, 0.9, 0.5, 0.9]
    _fit(brain, epochs, Tones(8))
    brain.evaluate(Tones(8), max_key="mAP", test_loader_kwargs={"batch_size": 8})
    assert brain.loaded_epoch == 2
    scores = [(epoch["epoch"], epoch["mAP"]) for epoch in brain.hparams.history.epochs]
    assert scores == [(1, 0.3), (2, 0.9), (3, 0.5)]
    assert [row["mAP"] for row in _history(tmp_path)] == ["0.3", "0.9", "0.5"]


@pytest.mark.parametrize("killed", ["before the checkpoint", "before the table"])
def test_a_history_is_right_again_once_a_killed_run_resumes(tmp_path, killed):
    class Killed(Exception):
        pass

    def die(*_args, **_options):
        raise Killed

    def run(folder, then_die):
        brain, epochs = _brain(folder, epochs=2)
        if then_die and killed == "before the checkpoint":
            brain.checkpointer.save_and_keep_only = die
        elif then_die:
            brain._write_history = die
        _fit(brain, epochs, Tones(8))

    with pytest.raises(Killed):
        run(tmp_path / "killed", then_die=True)
    run(tmp_path / "killed", then_die=False)
    run(tmp_path / "alone", then_die=False)
    assert len(_history(tmp_path / "alone")) == 2
    assert _history(tmp_path / "killed") == _history(tmp_path / "alone")
