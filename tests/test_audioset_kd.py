"""Distillation runs to its end, resumes bit for bit, and shares its work."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kd_runs import RECIPE, REPOSITORY, copy_tones, kd_command, write_tones
from recipe_runs import (
    TORCHRUN,
    RecipeProcess,
    arguments_of,
    launch,
    run_recipe,
    run_to_end,
    start_both,
)

from efficientat_plugin.cli import main
from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.export.source import find_source
from efficientat_plugin.interfaces import hear
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.support.locks import lock_folder
from efficientat_plugin.teachers.load import load_teacher
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


def _outcome(output: Path) -> tuple[dict, list, dict]:
    """Weights, history and scores that a run ended with."""
    newest = max((output / "save").glob("CKPT*"), key=lambda path: path.name)
    weights = torch.load(newest / "student.ckpt", weights_only=True)
    history = json.loads((newest / "history.ckpt").read_text())
    return weights, history, json.loads((output / "scores.json").read_text())


def _assert_same(first: tuple, second: tuple) -> None:
    assert first[1:] == second[1:]
    assert first[0].keys() == second[0].keys()
    for name, value in first[0].items():
        assert torch.equal(value, second[0][name]), name


@pytest.fixture(scope="module")
def left_alone(data, tmp_path_factory) -> Path:
    """A run that nobody disturbed, of which no other has the hash seed."""
    output = tmp_path_factory.mktemp("runs") / "left_alone"
    launch(*kd_command(data, output))
    return output


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(left_alone):
    for name in ("scores.json", "per_class.csv", "comparison.md", "train_log.txt"):
        assert (left_alone / name).stat().st_size > 0
    assert (left_alone / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((left_alone / "per_class.csv").read_text().splitlines()) == 4
    log = (left_alone / "train_log.txt").read_text()
    assert "num_clips: 24, valid num_classes: 3" in log
    history = _outcome(left_alone)[1]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    card = (left_alone / "model" / "README.md").read_text()
    assert ": 48 clips of bal\\_train, taught by an oracle\n" in card


def _scored(tagger, data: Path) -> float:
    """mAP on the evaluation clips, by a tagger of them as they are in the data."""
    rows, labels = load_rows(str(data), "eval"), audioset_labels()
    clips = Clips(rows, ClipReader(labels, 0.5, 32000))
    clips = [clips[number] for number in range(len(clips))]
    probabilities = tagger.probabilities([clip.waveform for clip in clips], 32000)
    known = np.stack([np.asarray(clip.labels) for clip in clips])
    return tagging_scores(probabilities, known).mAP


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [[], ["--split", "all"]])
def test_evaluate_knows_the_clips_that_a_run_evaluated_on(
    left_alone, data, tmp_path, capsys, chosen
):
    command = ["evaluate", str(left_alone), str(data / "data")]
    command += ["--output", str(tmp_path / "e")]
    assert main([*command, *chosen]) == 0
    printed = capsys.readouterr().err
    if chosen:
        assert "may include some that" in printed and "scoring all 72 clips" in printed
        return
    assert "scoring the 24 of 72 clips that the run of this model was tested" in printed
    assert "trained on" not in printed
    reported = json.loads((left_alone / "scores.json").read_text())["mAP"]
    found = json.loads((tmp_path / "e" / "scores.json").read_text())["mAP"]
    assert found == pytest.approx(reported, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "model", "checkpoint", "copied"])
def test_what_a_run_leaves_scores_what_it_reported(left_alone, data, tmp_path, way):
    """Its front end is another than the published one, and goes with the weights."""
    (newest,) = (left_alone / "save").glob("CKPT*")
    place = {"run": left_alone, "model": left_alone / "model"}
    if way == "copied":
        shutil.copytree(newest, tmp_path / "mine")
        newest = tmp_path / "mine"
    path = place.get(way, newest / "student.ckpt")
    reported = json.loads((left_alone / "scores.json").read_text())["mAP"]
    tagger = load_tagger(str(path), None, "cpu")
    assert _scored(tagger, data) == pytest.approx(reported, abs=1e-4)
    source = find_source(path)
    assert (source.log_mel.n_mels, source.log_mel.hop_length) == (64, 640)
    assert source.model.clip_seconds == 0.5
    assert load_student(path).front_end["n_mels"] == 64
    assert load_teacher(path).log_mel.hop_length == 640
    assert hear.load_model(path).log_mel.n_mels == 64


@pytest.mark.slow
def test_weights_alone_are_refused_and_not_guessed(left_alone, data, tmp_path):
    (weights,) = (left_alone / "save").glob("CKPT*/student.ckpt")
    path = shutil.copy(weights, tmp_path / "student.ckpt")
    for load in (load_tagger, find_source, load_student, load_teacher, hear.load_model):
        with pytest.raises(ValueError, match="does not state its front end"):
            load(str(path))
    stated = {"n_mels": 64, "hop_length": 640, "clip_seconds": 0.5}
    with pytest.raises(ValueError, match="state its classes; pass --labels CSV or "):
        load_tagger(str(path), None, "cpu", stated=stated)
    tagger = load_tagger(str(path), Path("audioset"), "cpu", stated=stated)
    reported = json.loads((left_alone / "scores.json").read_text())["mAP"]
    assert _scored(tagger, data) == pytest.approx(reported, abs=1e-4)


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_the_first_is_refused(data, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    held = lock_folder(output, "wait")
    text = run_to_end(kd_command(data, output), expect=1)
    assert f"another process is writing {output}; wait for it or end it, or" in text
    assert "Traceback" not in text and not (output / "log.txt").exists()
    held.release()
    run_to_end(kd_command(data, output, number_of_epochs=1))


def _listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What is in a folder, when each file was written, and what it holds."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def other_data(data, tmp_path_factory) -> dict[str, Path]:
    """As ``data``, but for the labels of a clip, the sound of one, what is taught."""
    folder = tmp_path_factory.mktemp("other")
    changes = {
        "clips": ("bal_train", lambda rows: rows[:40]),
        "labels": ("bal_train", lambda rows: _with_next(rows, "labels")),
        "sound": ("bal_train", lambda rows: _with_next(rows, "audio")),
        "eval": ("eval", lambda rows: rows[:20]),
        "same": ("", None),
    }
    for name, (changed, change) in changes.items():
        copy_tones(
            data,
            folder / name,
            lambda split, rows, changed=changed, change=change: (
                change(rows) if split == changed else rows
            ),
        )
    store = LogitsStore(data / "teacher")
    with StoreWriter(folder / "taught", **store.manifest.kind) as writer:
        ids = [f"bal_train-{n}" for n in range(48)]
        writer.append(ids, store.lookup(ids).logits / 2)
    shutil.copytree(data / "teacher", folder / "same_teacher")
    return {path.name: path for path in folder.iterdir()}


def _with_next(rows, column):
    """The first row has what the second one has."""
    return [rows[0] | {column: rows[1][column]}, *rows[1:]]


OTHER_RUNS = {
    "kd_weight 0.9 there, 0.5 here": {"kd_weight": 0.5},
    "lr 0.006 there, 0.01 here": {"lr": 0.01},
    "seed 1234 there, 7 here": {"seed": 7},
    "batch_size 8 there, 4 here": {"batch_size": 4},
    "clip_seconds 0.5 there, 0.25 here": {"clip_seconds": 0.25},
    "precision not set there, bf16 here": {"precision": "bf16"},
    "number_of_epochs 2 there, 1 here": {"number_of_epochs": 1},
    "teacher an oracle (digest ": {"teacher": "taught"},
    "there, null here": {"teacher": "null"},
    "train 48 clips (ids": {"dataset": "clips", "clips_per_epoch": 40},
    "labels": {"dataset": "labels"},
    "sound": {"dataset": "sound"},
    "eval 24 clips": {"dataset": "eval"},
}


@pytest.mark.slow
def test_another_setting_is_refused_and_touches_nothing(data, left_alone, other_data):
    before = _listing(left_alone)
    for printed, options in OTHER_RUNS.items():
        options = {k: other_data.get(v, v) for k, v in options.items()}
        if "dataset" in options:
            options["dataset_cache"] = other_data["same"] / "cache"
        text = run_to_end(kd_command(data, left_alone, **options), expect=1)
        sentence = text.strip().splitlines()[-1]
        assert f"{left_alone} holds another run (" in sentence, text
        for part in printed.split(", "):
            assert part in sentence, sentence
        assert " there, " in sentence and "name another --output_folder" in sentence
        assert "Traceback" not in text and _listing(left_alone) == before


@pytest.mark.slow
def test_what_changes_no_result_may_change_and_a_run_may_be_longer(
    data, left_alone, other_data, tmp_path
):
    output = tmp_path / "run"
    shutil.copytree(left_alone, output)
    moved = {"dataset": other_data["same"], "teacher": other_data["same_teacher"]}
    moved |= {"dataset_cache": tmp_path / "cache", "num_workers": 1}
    run_to_end(kd_command(data, output, eval_batch_size=5, **moved))
    _assert_same(_outcome(output), _outcome(left_alone))
    run_to_end(kd_command(data, output, number_of_epochs=3))
    assert [epoch["epoch"] for epoch in _outcome(output)[1]] == [1, 2, 3]
    text = run_to_end(kd_command(data, output), expect=1)
    assert "number_of_epochs 3 there, 2 here" in text


@pytest.mark.slow
def test_an_evaluation_is_of_the_students_front_end_and_keeps_its_scores(
    data, left_alone, other_data, tmp_path
):
    output = tmp_path / "run"
    shutil.copytree(left_alone, output)
    before = _listing(output)
    for option in ({"n_mels": 32}, {"clip_seconds": 0.25}):
        command = kd_command(data, output, test_only=True, **option)
        text = run_to_end(command, expect=1)
        assert "holds another run (" in text and "Traceback" not in text
        assert _listing(output) == before
    others = {"dataset": other_data["eval"], "dataset_cache": tmp_path / "cache"}
    text = run_to_end(kd_command(data, output, test_only=True, kd_weight=0.5, **others))
    assert "N = 20 clips" in text
    after = _listing(output)
    assert all(after[name] == before[name] for name in {*before} - {"train_log.txt"})
    assert "evaluated/eval-eval/scores.json" in after


@pytest.mark.slow
def test_workers_do_not_change_a_run(data, left_alone, tmp_path):
    output = tmp_path / "two_workers"
    run_to_end(kd_command(data, output, num_workers=2))
    _assert_same(_outcome(output), _outcome(left_alone))


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(data, left_alone, tmp_path):
    output = tmp_path / "killed"
    command = kd_command(data, output, ckpt_interval_minutes=0, ckpt_interval_steps=1)
    rng = np.random.default_rng(int(os.environ.get("KILL_SEED", "0")))
    kills = 0
    while kills < 4:
        child = RecipeProcess(command)
        _wait_for_a_new_checkpoint(output / "save", child)
        time.sleep(rng.uniform(0, 0.4))
        if child.poll() is not None:
            break
        child.kill()
        kills += 1
    assert kills >= 2, "the run was over before it could be killed twice"
    text = run_to_end(command)
    assert "Loading a checkpoint from" in text
    _assert_same(_outcome(output), _outcome(left_alone))


@pytest.mark.slow
def test_prepared_clips_train_like_their_source(data, left_alone, tmp_path):
    """Sample for sample the same, so that a killed run ends like one of the source."""
    options = {"dataset": data, "dataset_cache": data / "cache"}
    options |= {"split": "bal_train+eval", "folder": tmp_path / "prepared"}
    options |= {"codec": "flac", "clips_per_shard": 10, "num_proc": 1}
    printed = run_recipe("prepare_data", [arguments_of("prepare_data", **options)])
    assert "72 clips now" in printed
    output = tmp_path / "run"
    more = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    more |= {"dataset": tmp_path / "prepared", "dataset_cache": tmp_path / "cache"}
    child = RecipeProcess(kd_command(data, output, **more))
    _wait_for_a_new_checkpoint(output / "save", child)
    child.kill()
    assert not (output / "scores.json").exists(), "it was over before it was killed"
    text = run_to_end(kd_command(data, output, **more))
    assert "Loading a checkpoint from" in text
    _assert_same(_outcome(output), _outcome(left_alone))


def _wait_for_a_new_checkpoint(folder: Path, child: RecipeProcess) -> None:
    """Until the run has saved something this time, or ended."""
    before = {path.name for path in folder.glob("CKPT*")} if folder.is_dir() else set()
    while child.poll() is None:
        if folder.is_dir() and {path.name for path in folder.glob("CKPT*")} - before:
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_share_a_run(data, tmp_path):
    options = {"batch_size": 4, "ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}

    killed = tmp_path / "killed"
    command = kd_command(data, killed, **options)
    children = start_both(command)
    _wait_for_a_new_checkpoint(killed / "save", children[0])
    for child in children:
        child.kill()
    text = launch(*TORCHRUN, *command)
    assert text.count("Loading a checkpoint from") == 2  # both processes
    assert text.count("student with teacher: mAP") == 1  # one writer

    output = tmp_path / "two"
    children = start_both(kd_command(data, output, **options))
    texts = [child.wait() for child in children]
    assert [child.poll() for child in children] == [0, 0], texts
    weights, history, scores = _outcome(output)
    assert scores["num_clips"] == 24 and len(history) == 2
    _assert_same(_outcome(killed), (weights, history, scores))
    # Sharded evaluation scores what one process scores with the same weights.
    alone = run_to_end(kd_command(data, output, test_only=True))
    assert json.loads((output / "scores.json").read_text()) == pytest.approx(scores)
    assert "N = 24 clips" in alone


COUNTED = """
import os, runpy, sys
from efficientat_plugin.training.brain import DistillationBrain

train = DistillationBrain.fit_batch

def fit_batch(brain, batch):
    loss = train(brain, batch)
    brain.trained_on = [*getattr(brain, "trained_on", []), *batch.clip_id]
    return loss

save = DistillationBrain._save_intra_epoch_ckpt

def save_and_note(brain):
    save(brain)
    name = f"{os.environ['NOTES']}-{os.environ.get('RANK', 0)}"
    with open(name, "a") as notes:
        notes.writelines(f"{brain.epoch} {clip}\\n" for clip in brain.trained_on)
    brain.trained_on = []
    if brain.step == int(os.environ["STOP_AFTER"]):
        os._exit(9)

DistillationBrain.fit_batch = fit_batch
DistillationBrain._save_intra_epoch_ckpt = save_and_note
runpy.run_path(sys.argv[0].replace("counted.py", "recipe.py"), run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(1, 2), (2, 1), (2, 1, 2)])
def test_other_processes_resume_an_epoch_with_the_clips_that_are_left(
    data, tmp_path, processes
):
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "recipe.py").symlink_to(RECIPE)
    options = {"batch_size": 4, "ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    command = kd_command(data, tmp_path / "run", number_of_epochs=1, **options)
    command = [str(tmp_path / "counted.py"), *command[1:]]
    for number, count in enumerate(processes):
        is_last = number == len(processes) - 1
        stop = "0" if is_last else str(2 * (number + 1))  # steps of the epoch
        notes = {"NOTES": str(tmp_path / f"notes{number}"), "STOP_AFTER": stop}
        if count == 1:
            texts = [run_to_end(command, expect=0 if is_last else 9, **notes)]
        else:
            children = start_both(command, **notes)
            texts = [child.wait() for child in children]
            assert [child.poll() == 0 for child in children] == [is_last] * 2, texts
    printed = "clips of the interrupted epoch are done, and it resumes with the others"
    assert printed in texts[0] and printed not in "".join(texts[1:])
    found = [path.read_text().split("\n") for path in tmp_path.glob("notes*")]
    trained = sorted(line for lines in found for line in lines if line)
    assert trained == sorted(f"1 bal_train-{number}" for number in range(48))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "option"),
    [("mn10", {"precision": "bf16"}), ("dymn10", {"grad_accumulation_factor": 2})],
)
def test_the_papers_recipes_run_on_small_data(data, tmp_path, recipe, option):
    text = run_to_end(kd_command(data, tmp_path, recipe=recipe, **option))
    assert "student with teacher: mAP" in text


@pytest.mark.slow
def test_the_comparison_is_with_the_labelled_clips_alone(data, tmp_path):
    """Its second run ends exactly like one that never had the other clips."""
    mixes = REPOSITORY / "recipes" / "make_transfer_set.py"
    command = [str(mixes), str(REPOSITORY / "hparams" / "make_transfer_set.yaml")]
    command += ["--dataset", str(data), "--dataset_cache", str(data / "cache")]
    command += ["--num_clips", "2", "--clip_seconds", "0.5"]
    run_to_end([*command, "--folder", str(tmp_path / "mixes")])
    options = {"transfer_set": tmp_path / "mixes", "compare_without_teacher": "True"}
    options |= {"min_teacher_coverage": 0.5}  # nobody asked it about the mixes
    text = run_to_end(kd_command(data, tmp_path / "compared", **options))
    table = (tmp_path / "compared" / "comparison.md").read_text()
    for run in ("student with teacher", "teacher", "student without teacher"):
        assert f"| {run} |" in table
    assert "Training clips: 50 clips, 48 labelled" in text
    run_to_end(kd_command(data, tmp_path / "labels", teacher="null"))
    _assert_same(
        _outcome(tmp_path / "compared" / "without_teacher"),
        _outcome(tmp_path / "labels"),
    )


@pytest.mark.slow
def test_other_seeds_are_trained_as_runs_of_their_own(data, left_alone, tmp_path):
    options = {"num_seeds": 2, "seed": 1233, "compare_without_teacher": "True"}
    text = run_to_end(kd_command(data, tmp_path, **options))
    assert text.count("student without teacher, 2 seeds |") == 1
    _assert_same(_outcome(tmp_path / "seed_1234"), _outcome(left_alone))
    assert (tmp_path / "seed_1234" / "without_teacher" / "model").is_dir()


@pytest.mark.slow
def test_streamed_training_says_that_it_resumes_by_epoch(data, tmp_path):
    text = run_to_end(kd_command(data, tmp_path, streaming="True"))
    assert "resumes at the start of the interrupted epoch" in text


@pytest.mark.slow
def test_a_named_checkpoint_is_evaluated_as_published(shared, tmp_path):
    command = [str(RECIPE), str(REPOSITORY / "hparams" / "mn10.yaml"), "--test_only"]
    command += ["--pretrained", str(shared / "checkpoints" / "mn04_as_mAP_432.pt")]
    command += ["--dataset", str(shared / "data" / "audioset_schema")]
    command += ["--dataset_cache", str(tmp_path / "cache"), "--clip_seconds", "5.0"]
    command += ["--num_workers", "0", "--eval_batch_size", "16", "--device", "cpu"]
    run_to_end([*command, "--output_folder", str(tmp_path), "--noprogressbar"])
    folder = tmp_path / "evaluated" / "mn04_as_mAP_432"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["mAP"] == pytest.approx(0.824, abs=1e-3)
    assert (scores["num_clips"], scores["num_classes"]) == (131, 73)
