"""From a folder of sounds to a tagger of one's own."""

import csv
import importlib.util
import inspect
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import RecipeProcess, arguments_of, launch, run_to_end
from speechbrain.inference.interfaces import Pretrained

from efficientat_plugin.cli import main
from efficientat_plugin.data.labelled import LabelledClips
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.splits import Split
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.evaluation.metrics import classification_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.described import describe
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.launch import load_hparams, settings_of
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.training.finetuning import (
    batch_norms,
    layerwise_groups,
)
from efficientat_plugin.training.probe import Probe

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "recipes" / "finetune.py"
RATE = 16000
TONES = {"high": 3000.0, "low": 300.0, "noise": 0.0}  # Hz


def _sound(frequency, seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(RATE // 2)
    if not frequency:
        return 0.2 * noise
    tone = np.sin(2 * np.pi * frequency * np.arange(RATE // 2) / RATE)
    return 0.3 * tone + 0.01 * noise


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of class folders, and two files in it that are no sound."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, frequency in TONES.items():
        (folder / name).mkdir()
        for number in range(16):
            path = folder / name / f"{name}{number}.wav"
            soundfile.write(path, _sound(frequency, number), RATE)
    (folder / "low" / "notes.txt").write_text("recorded on Monday")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small student of other classes, which has heard such sounds."""
    torch.manual_seed(0)
    student, log_mel = MN(7, width=0.1), LogMel().eval()
    for norm in batch_norms(student):
        norm.momentum = None  # statistics are averages
    heard = [_sound(tone, 99 + n) for n in range(8) for tone in TONES.values()]
    heard = torch.from_numpy(np.repeat(np.stack(heard), 2, axis=1)).float()
    with torch.no_grad():
        student(log_mel(heard).unsqueeze(1))
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(student.state_dict(), path)
    return path


def _command(sounds, weights, output, yaml="finetune", **more):
    options = {
        # Which no file of weights tells
        "log_mel": "{n_mels: 128, hop_length: 320}",
        "dataset": sounds,
        "pretrained": weights,
        "output_folder": output,
        "clip_seconds": 0.5,
        "num_workers": 0,
        "batch_size": 8,
        "number_of_epochs": 24,
        "lr": 0.003,
        "freeze_batch_norm": True,  # few steps to learn statistics in
        "mixup": "null",
        "waveform_mix": "null",
        "device": "cpu",
    } | more
    return [RECIPE, *arguments_of(yaml, **options)]


def _run(sounds, weights, output, expect=0, yaml="finetune", **more):
    return run_to_end(_command(sounds, weights, output, yaml, **more), expect)


@pytest.fixture(scope="module")
def tuned(sounds, weights, tmp_path_factory):
    """A run from a folder of class folders, and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "tuned"
    return output, launch(*_command(sounds, weights, output))


@pytest.mark.slow
def test_a_folder_of_classes_becomes_a_tagger(tuned, sounds):
    output, text = tuned
    assert "48 clips of 3 classes" in text
    scores = json.loads((output / "scores.json").read_text())
    assert scores["accuracy"] > 0.6 and scores["num_clips"] >= 6
    with open(output / "per_class.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == sorted(TONES)
    for figure in ("curves.png", "confusion.png"):
        assert (output / figure).read_bytes().startswith(b"\x89PNG")
    tagger = AudioTagger.from_hparams(str(output / "model"), run_opts={"device": "cpu"})
    hits = [
        tagger.tag(path, top_k=1)[0].name == path.parent.name
        for path in sorted(sounds.glob("*/*.wav"))
    ]
    assert np.mean(hits) > 0.8


@pytest.mark.slow
def test_a_runs_score_is_what_its_model_gets_on_its_test_clips(
    tuned, sounds, tmp_path, capsys
):
    """Found again in the data, whoever asks; of other data that is said."""
    output, _ = tuned
    whole, scores = tmp_path / "whole", json.loads((output / "scores.json").read_text())
    options = [str(sounds), "--device", "cpu", "--output", str(whole)]
    for kept in (output, output / "model"):
        assert main(["evaluate", str(kept), *options]) == 0
        assert "that the run of this model was tested on" in capsys.readouterr().err
        found = json.loads((whole / "scores.json").read_text())
        assert found and found.items() <= scores.items()
    assert main(["evaluate", str(output / "model"), *options, "--split", "all"]) == 0
    assert json.loads((whole / "scores.json").read_text())["num_clips"] == 48
    assert "may include some that" in capsys.readouterr().err
    shutil.copytree(sounds / "low", tmp_path / "others" / "low")
    options[0] = str(tmp_path / "others")
    assert main(["evaluate", str(output / "model"), *options]) == 0
    assert "It is not known whether" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(tuned, sounds, weights, tmp_path):
    output = tmp_path / "killed"
    child = RecipeProcess(_command(sounds, weights, output))
    while child.poll() is None and len([*(output / "save").glob("CKPT*")]) < 2:
        time.sleep(0.02)
    child.kill()
    assert not (output / "model").exists(), "the run was over before it could be killed"
    assert "Loading a checkpoint from" in _run(sounds, weights, output)
    for name in ("scores.json", "model/student.ckpt"):
        assert (output / name).read_bytes() == (tuned[0] / name).read_bytes(), name


@pytest.mark.slow
def test_a_tuned_model_goes_on_training(tuned, sounds, tmp_path):
    output, _ = tuned
    options = {"number_of_epochs": 1, "lr": 0.0, "valid_share": 0.0}
    _run(sounds, output / "model", tmp_path / "again", **options)
    scores = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert scores["accuracy"] > 0.6
    (tmp_path / "other").mkdir()
    for name in ("high", "low"):
        (tmp_path / "other" / name).symlink_to(sounds / name)
    text = _run(tmp_path / "other", output / "model", tmp_path / "no", expect=1)
    assert "has 3 classes, and the data has 2 other ones" in text


@pytest.mark.slow
def test_a_folder_is_of_one_run(tuned, sounds, weights):
    output, _ = tuned
    text = _run(sounds, weights, output, expect=1, seed=7, split="random")
    assert "holds another run (seed 1234 there, 7 here; " in text
    again = _run(sounds, weights, output)  # the very same ends as it had
    assert "test, 7 clips: accuracy" in again


@pytest.mark.slow
def test_weights_that_nothing_describes_are_not_guessed(sounds, weights, tmp_path):
    text = _run(sounds, weights, tmp_path / "run", expect=1, log_mel="{}")
    assert "small.pt does not state its front end; pass --log_mel" in text
    assert "Traceback" not in text and not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_a_checkpoint_says_what_its_weights_are(tuned):
    output, _ = tuned
    for saved in (output / "save").glob("CKPT*/student.ckpt"):
        known, model = describe(saved), describe(output)
        assert known.labels.mids == model.labels.mids
        for field in ("front_end", "target", "clip_seconds", "short_clips"):
            assert getattr(known, field) == getattr(model, field)


@pytest.mark.slow
def test_folds_are_tested_in_turn(sounds, weights, tmp_path):
    table = tmp_path / "clips.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "fold"])
        for path in sorted(sounds.glob("*/*.wav")):
            number = int(path.stem.removeprefix(path.parent.name))
            writer.writerow([path, path.parent.name, 1 + number % 2])
    options = {"number_of_epochs": 1, "trainable": "head", "valid_share": 0.0}
    text = _run(table, weights, tmp_path / "runs", **options)
    assert "of 2 folds" in text and text.count("(N = 24 clips, 3 classes)") >= 2
    for fold in ("fold1", "fold2"):
        assert (tmp_path / "runs" / fold / "model" / "student.ckpt").is_file()
    # The head alone was trained.
    start = torch.load(weights, weights_only=True)
    end = load_student(tmp_path / "runs" / "fold1" / "model" / "student.ckpt")
    for name, value in end.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(value, start[name]), name


@pytest.mark.slow
def test_the_default_is_no_worse_than_a_linear_probe_on_real_clips(shared, tmp_path):
    """Fold 2 of ``shared``: a plain linear probe gets 0.906 there."""
    options = {
        "label_column": "category",
        "group_column": "src_file",
        "audio_folder": "audio",
        "fold": 2,
        "clip_seconds": "auto",
        "number_of_epochs": "auto",
        "batch_size": 32,
    }
    weights = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    _run(shared / "data" / "esc50", weights, tmp_path, **options)
    scores = json.loads((tmp_path / "fold2" / "scores.json").read_text())
    assert scores["num_clips"] == 106 and scores["accuracy"] >= 0.915


@pytest.mark.slow
def test_a_model_folder_teaches(tuned, sounds, weights, tmp_path):
    """By its logits of the training clips, stored beside the run."""
    output, _ = tuned
    options = {"teacher": output / "model", "kd_weight": 1.0, "number_of_epochs": 2}
    _run(sounds, weights, tmp_path / "taught", **options)
    store = LogitsStore(tmp_path / "taught" / "teacher_logits")
    assert len(store) > 24
    target = store.lookup([f"low/low{number}" for number in range(16)])
    number = int(target.known.nonzero()[0])
    run_opts = {"device": "cpu"}
    teacher = AudioTagger.from_hparams(str(output / "model"), run_opts=run_opts)
    told = teacher.probabilities([sounds / "low" / f"low{number}.wav"])[0]
    stored = target.logits[number].softmax(-1)
    np.testing.assert_allclose(stored.numpy(), told, atol=0.01)


@pytest.mark.slow
def test_devices_and_whole_clips_are_scored(sounds, weights, tmp_path):
    """TAU's and FSD50K's ways, on one small table."""
    rows = []
    for path in sorted(sounds.glob("*/*.wav")):
        number = int(path.stem.removeprefix(path.parent.name))
        split = ("train", "train", "valid", "test")[number % 4]
        rows.append([path, path.parent.name, split, f"phone {number % 3}"])
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "device"])
        table.writerows(rows)
    options = {"number_of_epochs": 1, "score_cut_clips": True, "clip_seconds": 0.25}
    text = _run(tmp_path / "clips.csv", weights, tmp_path / "run", **options)
    metrics = json.loads((tmp_path / "run" / "model" / "metrics.json").read_text())
    devices = {name for name in metrics if name.startswith("device")}
    assert devices == {"device phone 0", "device phone 1", "device phone 2"}
    clips = sum(metrics[name]["num_clips"] for name in devices)
    cut = "test, the first 0.25 s of each clip alone"
    assert clips == metrics["test, 12 clips"]["num_clips"] == 12
    assert metrics[cut]["num_clips"] == 12 and f"{cut}: accuracy" in text


def _score(tagger, paths):
    """The accuracy that a user computes, one file after the other."""
    hits = [tagger.tag(path, top_k=1)[0].name == path.parent.name for path in paths]
    return np.mean(hits)


@pytest.mark.slow
@pytest.mark.parametrize("short_clips", ["repeat", "zero_pad"])
def test_the_score_is_what_the_folder_gives(sounds, weights, tmp_path, short_clips):
    """Short and long sounds alike, with the clips of training between them."""
    table = tmp_path / "clips.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for path in sorted(sounds.glob("*/*.wav")):
            number = int(path.stem.removeprefix(path.parent.name))
            split = "test" if number % 2 else "train"
            writer.writerow([path, path.parent.name, split])
    options = {"number_of_epochs": 2, "valid_share": 0.0, "short_clips": short_clips}
    for seconds in (0.75, 0.25):
        output = tmp_path / str(seconds)
        text = _run(table, weights, output, clip_seconds=seconds, **options)
        tagger = AudioTagger.from_hparams(str(output / "model"))
        assert tagger.short_clips == short_clips and tagger.clip_seconds == seconds
        tested = [path for path in sounds.glob("*/*.wav") if int(path.stem[-1]) % 2]
        accuracy = _score(tagger, tested)
        scores = json.loads((output / "scores.json").read_text())
        assert scores["accuracy"] == pytest.approx(accuracy)
        assert f"test, 24 clips: accuracy {accuracy:.4f}" in text
        card = (output / "model" / "README.md").read_text()
        assert f"accuracy {accuracy:.4f}" in card


@pytest.mark.slow
def test_all_clips_can_be_trained_on(sounds, weights, tmp_path, capsys):
    options = {"test_share": 0.0, "valid_share": 0.0, "number_of_epochs": 1}
    text = _run(sounds, weights, tmp_path / "all", **options)
    assert "this model itself has no score" in text and "\ntest, " not in text
    assert not (tmp_path / "all" / "scores.json").exists()
    card = (tmp_path / "all" / "model" / "README.md").read_text()
    assert "48 for training, 0 to choose the epoch" in card
    command = ["evaluate", str(tmp_path / "all"), str(sounds), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr().err
    assert "was trained on all of these clips, so this score says nothing about" in said
    AudioTagger.from_hparams(str(tmp_path / "all" / "model"))


@pytest.mark.slow
def test_a_final_model_has_the_scores_of_the_folds(sounds, weights, tmp_path):
    table = tmp_path / "clips.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "fold"])
        for path in sorted(sounds.glob("*/*.wav")):
            number = int(path.stem.removeprefix(path.parent.name))
            writer.writerow([path, path.parent.name, 1 + number % 2])
    options = {"number_of_epochs": 0, "valid_share": 0.0, "final": True}
    text = _run(table, weights, tmp_path / "runs", **options)
    final = tmp_path / "runs" / "final" / "model"
    metrics = json.loads((final / "metrics.json").read_text())
    for fold in ("fold1", "fold2"):
        found = json.loads((tmp_path / "runs" / fold / "scores.json").read_text())
        told = metrics[f"{fold}, by a model trained on the others"]
        assert told["accuracy"] == found["accuracy"] and told["num_clips"] == 24
    assert "fitted in closed form to 48 of them" in (final / "README.md").read_text()
    assert "of 2 folds" in text


def test_a_class_that_is_only_tested_on_is_named(tmp_path, caplog):
    clips = _clips([["a"], ["a"], ["a"], ["b"]])
    run = _recipe().Run(clips, Split([0, 1], [], [2, 3]), {}, "cpu")
    _recipe().warn_of_classes_without_clips(run)
    assert "1 of 2 classes have clips to test on and none to train" in caplog.text
    assert caplog.text.rstrip().endswith("cannot learn them: b")


def _recipe():
    spec = importlib.util.spec_from_file_location("finetune", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "--dataset PATH is needed"),
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
    with pytest.raises(SystemExit, match=message) as refusal:
        _recipe().main(command)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def _clips(labels, **columns):
    ids = [f"clip{number:03d}" for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"video_id": ids, "labels": labels} | columns)
    return LabelledClips(rows, LabelTable("ab", "ab"), "multiclass")


def _tuning(tmp_path, **overrides):
    overrides = {"output_folder": str(tmp_path / "run")} | overrides
    return load_hparams(REPOSITORY / "hparams" / "finetune.yaml", overrides)


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


@pytest.mark.parametrize(
    ("clips_per_class", "share_right", "epochs", "has_valid"),
    [
        (4, 0.9, 0, False),
        (4, 0.5, 0, False),
        (4, 0.49, 80, False),  # each clip is needed to learn from
        (4, None, 0, False),
        (12, 0.9, 80, True),
        (12, 0.49, 80, False),
        (12, None, 80, True),
        (40, 0.1, 80, True),
    ],
)
def test_with_few_clips_the_network_learns_what_no_probe_knows(
    clips_per_class, share_right, epochs, has_valid, tmp_path, monkeypatch
):
    recipe = _recipe()
    for name in ("make_student", "build_modules"):
        monkeypatch.setattr(recipe, name, lambda *_: None)
    known = Probe(10.0, share_right)
    monkeypatch.setattr(recipe, "start_from_probe", lambda *_: known)
    clips = _clips([["a"], ["b"]] * clips_per_class)
    splits, found = recipe.split_clips(clips, _tuning(tmp_path), "cpu")
    assert found == epochs
    assert bool(splits["random"].valid) == has_valid


@pytest.mark.parametrize(("num_groups", "has_valid"), [(4, False), (20, True)])
def test_of_few_groups_none_is_kept_back(num_groups, has_valid, tmp_path, monkeypatch):
    recipe = _recipe()
    for name in ("make_student", "build_modules"):
        monkeypatch.setattr(recipe, name, lambda *_: None)
    monkeypatch.setattr(recipe, "start_from_probe", lambda *_: Probe(10.0, 0.2))
    groups = [f"speaker {number % num_groups}" for number in range(200)]
    clips = _clips([["a"], ["a"], ["b"], ["b"]] * 50, group=groups)
    splits, epochs = recipe.split_clips(clips, _tuning(tmp_path), "cpu")
    assert epochs == 80 and splits["random"].test
    assert bool(splits["random"].valid) == has_valid


def test_epochs_follow_from_clips_and_teachers(tmp_path):
    few, many = (_clips([["a"], ["b"]] * n) for n in (4, 40))
    for clips, teacher in ((few, "mn04_as"), (many, None)):
        hparams = _tuning(tmp_path, teacher=teacher)
        splits, epochs = _recipe().split_clips(clips, hparams, "cpu")
        assert epochs == 80  # a probe alone would not ask the teacher
        assert splits["random"].valid


@pytest.mark.slow
def test_few_clips_that_no_probe_tells_apart_train_the_network(weights, tmp_path):
    """Two kinds of noise, whose names are dealt out by chance."""
    for number in range(8):
        folder = tmp_path / "noise" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", _sound(0.0, number), RATE)
    options = {"number_of_epochs": "auto", "output_folder": tmp_path / "run"}
    text = _run(tmp_path / "noise", weights, tmp_path / "run", **options)
    assert re.search(r"number_of_epochs: 80, .* a probe .* \d+% of held-out", text)
    history = (tmp_path / "run" / "history.csv").read_text()
    assert len(history.splitlines()) == 81
    # No clips were kept back, and no score of training clips is called one of others.
    assert history.splitlines()[0] == "epoch,lr,train_loss"
    assert "alidation" not in text
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0
    assert json.loads((tmp_path / "run" / "kept_epoch.json").read_text()) == 80


def test_a_student_of_another_rate_is_refused(tmp_path):
    clips, model = _clips([["a"], ["b"]] * 9), _model()
    hparams = _tuning(tmp_path, sample_rate=16000)
    run = _recipe().Run(clips, Split([0], [], [1]), hparams, "cpu")
    with pytest.raises(ValueError, match="needs 32000 Hz; pass --sample_rate 32000"):
        _recipe().build_modules(run.hparams, model.student)


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


class _Checkpoints:
    """As much of a checkpointer as is asked for."""

    def __init__(self, best, newest):
        self.best, self.newest = best, newest

    def find_checkpoint(self, max_key=None):
        score = self.best if max_key else self.newest
        return SimpleNamespace(meta={"accuracy": score})


@pytest.mark.parametrize(
    ("start", "best", "newest", "keep_epoch", "kept"),
    [
        (0.5, 1.0, 1.0, "last", "newest"),  # as good as the best, and trained longest
        (0.5, 1.0, 0.995, "last", "newest"),  # within a standard error
        (0.5, 1.0, 0.9, "last", "best"),
        (0.5, 1.0, 1.0, "best", "best"),
        (0.95, 0.95, 0.94, "last", "start"),
        (0.95, 0.955, 0.955, "last", "start"),  # better by chance
        (0.95, 0.99, 0.99, "last", "newest"),
    ],
)
def test_what_is_kept_is_better_beyond_chance(
    tmp_path, start, best, newest, keep_epoch, kept
):
    hparams = {"keep_epoch": keep_epoch, "output_folder": str(tmp_path)}
    (tmp_path / "start.json").write_text(json.dumps({"accuracy": start}))
    run = _recipe().Run(None, Split([], list(range(200)), []), hparams, "cpu")
    parts = SimpleNamespace(checkpointer=_Checkpoints(best, newest))
    run = run._replace(parts=parts)
    assert _recipe().choose(run, "accuracy") == kept


@pytest.mark.slow
def test_a_run_that_only_gets_worse_keeps_its_start(sounds, weights, tmp_path):
    """Which is a probe fitted to all clips but those to test on."""
    options = {"number_of_epochs": 1, "lr": 1e-9, "valid_share": 0.3}
    text = _run(sounds, weights, tmp_path / "worse", **options)
    assert "No epoch did better on the 12 validation clips than the start" in text
    _run(sounds, weights, tmp_path / "probe", **options | {"number_of_epochs": 0})
    found = [
        load_student(tmp_path / name / "model").state_dict()
        for name in ("worse", "probe")
    ]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4)


TUNING = ("finetune", "esc50", "fsd50k", "openmic", "tau2020")


@pytest.mark.parametrize("name", TUNING)
def test_facts_of_a_yaml_are_what_tables_are_read_by(name, tmp_path):
    path = REPOSITORY / "hparams" / f"{name}.yaml"
    hparams = load_hparams(path, {"output_folder": str(tmp_path)})
    assert set(hparams["facts"]) <= set(inspect.signature(read_table).parameters)


@pytest.mark.parametrize("name", TUNING)
def test_yamls_of_fine_tuning_share_their_keys(name):
    def keys(stem):
        text = (REPOSITORY / "hparams" / f"{stem}.yaml").read_text()
        return set(re.findall(r"^([a-z]\w*):", text, flags=re.MULTILINE))

    of_a_schedule = {"warmup_epochs", "ramp_down_epochs"}  # as published
    assert keys(name) - of_a_schedule == keys("finetune")


# --- Which parameters learn, and how fast -----------------------------------------


@pytest.mark.parametrize("family", [MN, DyMN])
def test_groups_hold_every_parameter_once(family):
    student = family(3, width=0.1)
    groups = layerwise_groups(student, layer_decay=0.9)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in student.parameters())
    scales = [group["lr_scale"] for group in groups]
    assert scales == sorted(scales) and scales[-1] == 1.0 and len(scales) == 18
    head = layerwise_groups(student, trainable="head")
    assert (
        len(head) == 1
        and not student.state_dict()[
            "in_c.0.weight" if family is DyMN else "features.0.0.weight"
        ].requires_grad
    )


def test_options_out_of_range_are_refused():
    student = MN(3, width=0.1)
    with pytest.raises(ValueError, match="trainable='tail'"):
        layerwise_groups(student, trainable="tail")
    with pytest.raises(ValueError, match="layer_decay=0 must be above 0"):
        layerwise_groups(student, layer_decay=0)


# --- Model folders -----------------------------------------------------------------


def _model(names=("dog", "cat"), **options):
    path_free = {"num_classes": len(names), "width": 0.1} | options
    student = MN(**path_free).eval()
    student.options = path_free
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    return TrainedModel(student, LabelTable(names, names), "multiclass", 1.0)


def _provenance(**changes):
    scores = classification_scores(np.eye(2), np.eye(2))
    given = Provenance("pets", "mn10_as", "2 clips", "CC0", {"test": scores})
    return given._replace(**changes)


@pytest.mark.parametrize(
    "options", [{}, {"head": "linear"}, {"strides": [2, 2, 2, 1]}, {"se_dims": "none"}]
)
def test_a_model_folder_is_the_model(tmp_path, options):
    model = _model(**options)
    folder = write_model_folder(tmp_path / "model", model, _provenance())
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "hyperparams.yaml",
        "labels.csv",
        "metrics.json",
        "student.ckpt",
    }
    sound = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    log_mel = tagger_input = torch.from_numpy(sound)[None]
    again = read_model_folder(folder)
    assert again[1].names == ("dog", "cat") and again[2:] == model[2:]
    assert again.student.front_end == model.student.front_end
    tagger = AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    log_mel = tagger.mods.log_mel(tagger_input).unsqueeze(1)
    assert log_mel.shape[-1] == 50  # its own hop
    expected = model.student(log_mel).logits
    torch.testing.assert_close(again.student(log_mel).logits, expected)
    torch.testing.assert_close(tagger(tagger_input), expected.softmax(-1))
    plain = Pretrained.from_hparams(str(folder), run_opts={"device": "cpu"})
    torch.testing.assert_close(plain.mods.student(log_mel).logits, expected)
    assert plain.audio_normalizer.sample_rate == 32000
    assert list(tmp_path.iterdir()) == [folder]


def test_a_dymn_keeps_the_temperature_it_ended_with(tmp_path):
    options = {"num_classes": 2, "width": 0.1, "temperature": 30.0}
    student = DyMN(**options).eval()
    student.options, student.front_end = options, {"sample_rate": 32000}
    student.set_temperature(1.0)
    model = _model()._replace(student=student)
    folder = write_model_folder(tmp_path / "model", model, _provenance())
    tagger = AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    for found in (read_model_folder(folder).student, tagger.mods.student):
        assert float(found.temperature) == 1.0


def test_a_card_says_what_a_model_is_and_no_markup_gets_in(tmp_path):
    names = ("<script>alert(1)</script>", "a\nb # `c`")
    provenance = _provenance(name="[x](http://evil)")
    folder = write_model_folder(tmp_path / "model", _model(names), provenance)
    card = (folder / "README.md").read_text()
    for part in ("library_name: speechbrain", "multiply-accumulates", "CC0", "mn10"):
        assert part in card
    assert "<script>" not in card and "a\nb" not in card and "[x](" not in card
    assert read_model_folder(folder).labels.names == names
    with open(folder / "labels.csv", newline="") as file:
        found = [row["display_name"] for row in csv.DictReader(file)]
    assert found == [names[0], r"a\nb # `c`"]  # on a line of its own


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = write_model_folder(tmp_path / "model", _model(), _provenance())
    before = (folder / "student.ckpt").read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(torch, "save", full_disk)
        write_model_folder(folder, _model(("bird", "cow")), _provenance())
    assert (folder / "student.ckpt").read_bytes() == before
    write_model_folder(folder, _model(("bird", "cow")), _provenance())
    assert read_model_folder(folder).labels.names == ("bird", "cow")
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is not a model folder"):
        write_model_folder(tmp_path / "mine", _model(), _provenance())


def test_weights_of_another_width_are_refused(tmp_path):
    folder = write_model_folder(tmp_path / "model", _model(), _provenance())
    torch.save(MN(2, width=0.2).state_dict(), folder / "student.ckpt")
    with pytest.raises(ValueError, match="it is of MN of width 0.2"):
        AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        read_model_folder(tmp_path / "empty")
