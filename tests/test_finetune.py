"""From a folder of sounds to a tagger of one's own."""

import csv
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import RecipeProcess, arguments_of, launch, run_to_end

from efficientat_plugin.cli import main
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.description import describe
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.training.finetuning import (
    batch_norms,
)

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
    """A small student of other classes, trained on such sounds."""
    torch.manual_seed(0)
    student, log_mel = MN(7, width=0.1), LogMel().eval()
    for norm in batch_norms(student):
        norm.momentum = None  # statistics are averages
    waveforms = [_sound(tone, 99 + n) for n in range(8) for tone in TONES.values()]
    waveforms = torch.from_numpy(np.repeat(np.stack(waveforms), 2, axis=1)).float()
    with torch.no_grad():
        student(log_mel(waveforms).unsqueeze(1))
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(student.state_dict(), path)
    return path


def _table(path, sounds, header, *columns):
    """A CSV of the sounds: file, label, and columns that are functions of a number."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", *header])
        for sound in sorted(sounds.glob("*/*.wav")):
            number = int(sound.stem.removeprefix(sound.parent.name))
            more = [column(number) for column in columns]
            writer.writerow([sound, sound.parent.name, *more])
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
        "number_of_epochs": 10,
        "lr": 0.01,
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
    with open(output / "split.csv", newline="") as file:
        side = {row["clip_id"]: row["split"] for row in csv.DictReader(file)}
    of_test = [name for name, part in side.items() if part == "test"]
    tested = [next(sounds.glob(f"{name}.*")) for name in of_test]
    hits = [tagger.tag(path, top_k=1)[0].name == path.parent.name for path in tested]
    assert len(side) == 48 and np.mean(hits) == scores["accuracy"]


@pytest.mark.slow
def test_a_runs_score_is_what_its_model_gets_on_its_test_clips(
    tuned, sounds, tmp_path, capsys
):
    """They are found again in the data; other data is reported."""
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
def test_a_tuned_model_can_be_trained_further(tuned, sounds, tmp_path):
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
    table = _table(tmp_path / "clips.csv", sounds, ["fold"], lambda n: 1 + n % 2)
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
    predicted = teacher.probabilities([sounds / "low" / f"low{number}.wav"])[0]
    stored = target.logits[number].softmax(-1)
    np.testing.assert_allclose(stored.numpy(), predicted, atol=0.01)


@pytest.mark.slow
def test_devices_and_whole_clips_are_scored(sounds, weights, tmp_path):
    """TAU's and FSD50K's ways, on one small table."""
    table = _table(
        tmp_path / "clips.csv",
        sounds,
        ["split", "device"],
        lambda n: ("train", "train", "valid", "test")[n % 4],
        lambda n: f"phone {n % 3}",
    )
    options = {"number_of_epochs": 1, "score_cut_clips": True, "clip_seconds": 0.25}
    text = _run(table, weights, tmp_path / "run", **options)
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
    table = _table(
        tmp_path / "clips.csv", sounds, ["split"], lambda n: ("train", "test")[n % 2]
    )
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
@pytest.mark.parametrize(
    ("valid_share", "warning"),
    [
        (0.0, "was trained on all of these clips, so this score says nothing about"),
        (0.25, "was trained without setting clips aside to test on"),
    ],
)
def test_all_clips_can_be_trained_on(
    valid_share, warning, sounds, weights, tmp_path, capsys
):
    options = {"test_share": 0.0, "valid_share": valid_share, "number_of_epochs": 1}
    text = _run(sounds, weights, tmp_path / "all", **options)
    assert "this model itself has no score" in text and "\ntest, " not in text
    assert not (tmp_path / "all" / "scores.json").exists()
    card = (tmp_path / "all" / "model" / "README.md").read_text()
    if not valid_share:
        assert "48 for training, 0 to choose the epoch" in card
    command = ["evaluate", str(tmp_path / "all"), str(sounds), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "scores")]) == 0
    assert warning in capsys.readouterr().err
    AudioTagger.from_hparams(str(tmp_path / "all" / "model"))


@pytest.mark.slow
def test_a_final_model_has_the_scores_of_the_folds(sounds, weights, tmp_path):
    table = _table(tmp_path / "clips.csv", sounds, ["fold"], lambda n: 1 + n % 2)
    options = {"number_of_epochs": 0, "valid_share": 0.0, "final": True}
    text = _run(table, weights, tmp_path / "runs", **options)
    final = tmp_path / "runs" / "final" / "model"
    metrics = json.loads((final / "metrics.json").read_text())
    for fold in ("fold1", "fold2"):
        found = json.loads((tmp_path / "runs" / fold / "scores.json").read_text())
        predicted = metrics[f"{fold}, by a model trained on the others"]
        assert (
            predicted["accuracy"] == found["accuracy"] and predicted["num_clips"] == 24
        )
    assert "fitted in closed form to 48 of them" in (final / "README.md").read_text()
    assert "of 2 folds" in text


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
