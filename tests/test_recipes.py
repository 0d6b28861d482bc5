"""The recipes run end to end, resume bit for bit, and share the work of processes."""

import importlib.util
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from exported_models import random_weights
from recipe_runs import (
    TORCHRUN,
    RecipeProcess,
    arguments_of,
    launch,
    run_recipe,
    run_to_end,
    start_both,
)
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.cli import main
from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels, audioset_vocabulary
from efficientat_plugin.data.parquet import audioset_row, waveform_digest, write_rows
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.sample.sample_set import sample_clip, sample_teacher
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.export.source import find_source
from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.locks import lock_folder
from efficientat_plugin.teachers.load import load_teacher
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "recipes" / "audioset_kd.py"
HPARAMS = sorted((REPOSITORY / "hparams").glob("*.yaml"))
TRAINING = ["mn10", "dymn10", "quickstart"]
SAMPLE_KEYS = {"sample", "sample_folder", "sample_teacher"}
SAMPLE_KEYS |= {"num_labelled", "num_unlabelled", "num_eval"}
TONES = {"/m/01v_m0": 440.0, "/m/0chx_": 0.0, "/m/03kmc9": 1500.0}  # noise is 0 Hz


def _tone(frequency: float, rng: np.random.Generator) -> np.ndarray:
    time_seconds = np.arange(16000) / 32000
    noise = rng.standard_normal(16000)
    if frequency == 0:
        return 0.2 * noise
    return 0.5 * np.sin(2 * np.pi * frequency * time_seconds) + 0.01 * noise


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """48 labelled half-second clips of 3 classes, 24 to evaluate; a teacher's store."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    labels = audioset_labels()
    ids, logits = [], []
    for split, count in (("bal_train", 48), ("eval", 24)):
        rows = []
        for number in range(count):
            mid = list(TONES)[number % 3]
            clip_id = f"{split}-{number}"
            rows.append(audioset_row(clip_id, _tone(TONES[mid], rng), 32000, [mid]))
            ids.append(clip_id)
            logits.append(8 * labels.multi_hot([labels.index[mid]]) - 6)
        write_rows(folder / "data" / split / "00.parquet", rows)
    with StoreWriter(
        folder / "teacher",
        teacher="an oracle",
        labels_sha256=labels.sha256,
        num_classes=len(labels),
        sample_rate=32000,
        clip_seconds=0.5,
    ) as store:
        store.append(ids, torch.stack(logits))
    return folder


def _command(data: Path, output: Path, recipe: str = "quickstart", **more) -> list[str]:
    """The recipe on the small data; ``more`` are options, True for a flag."""
    options = {
        "dataset": data,
        "dataset_cache": data / "cache",
        "train_split": "bal_train",
        "teacher": data / "teacher",
        "clip_seconds": 0.5,
        "clips_per_epoch": 48,
        "number_of_epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 8,
        "num_workers": 0,
        "output_folder": output,
        "compare_without_teacher": False,
        "width": 0.1,
        "device": "cpu",
        "noprogressbar": True,
    }
    if recipe == "quickstart":
        # The sample is made even where another data set is used: a small one.
        options |= {"sample_folder": data / "sample"}
        options |= dict.fromkeys(("num_labelled", "num_unlabelled", "num_eval"), 1)
    else:
        options["pretrained"] = "null"
    command = [str(RECIPE), str(REPOSITORY / "hparams" / f"{recipe}.yaml")]
    for name, value in (options | more).items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return command


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
    launch(*_command(data, output))
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


def _scored(tagger, data: Path) -> float:
    """mAP on the evaluation clips, by a tagger of them as they are in the data."""
    rows, labels = load_rows(str(data), "eval"), audioset_labels()
    clips = Clips(rows, ClipReader(labels, 0.5, 32000))
    clips = [clips[number] for number in range(len(clips))]
    probabilities = tagger.probabilities([clip.waveform for clip in clips], 32000)
    known = np.stack([np.asarray(clip.labels) for clip in clips])
    return tagging_scores(probabilities, known).mAP


@pytest.mark.slow
def test_the_card_says_whose_clips_and_whose_logits_it_learnt_from(left_alone):
    card = (left_alone / "model" / "README.md").read_text()
    assert ": 48 clips of bal\\_train, taught by an oracle\n" in card


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [[], ["--split", "all"]])
def test_evaluate_knows_the_clips_that_a_run_evaluated_on(
    left_alone, data, tmp_path, capsys, chosen
):
    command = ["evaluate", str(left_alone), str(data / "data")]
    command += ["--output", str(tmp_path / "e")]
    assert main([*command, *chosen]) == 0
    said = capsys.readouterr().err
    if chosen:
        assert "may include some that" in said and "scoring all 72 clips" in said
        return
    assert "scoring the 24 of 72 clips that the run of this model was tested" in said
    assert "trained on" not in said
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
    text = run_to_end(_command(data, output), expect=1)
    assert f"another process is writing {output}; wait for it or end it, or" in text
    assert "Traceback" not in text and not (output / "log.txt").exists()
    held.release()
    run_to_end(_command(data, output, number_of_epochs=1))


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
    rows = pq.read_table(data / "data" / "bal_train" / "00.parquet").to_pylist()
    eval_rows = pq.read_table(data / "data" / "eval" / "00.parquet").to_pylist()
    changed = {
        "clips": (rows[:40], eval_rows),
        "labels": ([rows[0] | {"labels": rows[1]["labels"]}, *rows[1:]], eval_rows),
        "sound": ([rows[0] | {"audio": rows[1]["audio"]}, *rows[1:]], eval_rows),
        "eval": (rows, eval_rows[:20]),
        "same": (rows, eval_rows),
    }
    for name, (train, evaluation) in changed.items():
        write_rows(folder / name / "bal_train" / "00.parquet", train)
        write_rows(folder / name / "eval" / "00.parquet", evaluation)
    store = LogitsStore(data / "teacher")
    with StoreWriter(folder / "taught", **store.manifest.kind) as writer:
        ids = [f"bal_train-{n}" for n in range(48)]
        writer.append(ids, store.lookup(ids).logits / 2)
    shutil.copytree(data / "teacher", folder / "same_teacher")
    return {path.name: path for path in folder.iterdir()}


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
    for said, options in OTHER_RUNS.items():
        options = {k: other_data.get(v, v) for k, v in options.items()}
        if "dataset" in options:
            options["dataset_cache"] = other_data["same"] / "cache"
        text = run_to_end(_command(data, left_alone, **options), expect=1)
        sentence = text.strip().splitlines()[-1]
        assert f"{left_alone} holds another run (" in sentence, text
        for part in said.split(", "):
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
    run_to_end(_command(data, output, eval_batch_size=5, **moved))
    _assert_same(_outcome(output), _outcome(left_alone))
    run_to_end(_command(data, output, number_of_epochs=3))
    assert [epoch["epoch"] for epoch in _outcome(output)[1]] == [1, 2, 3]
    text = run_to_end(_command(data, output), expect=1)
    assert "number_of_epochs 3 there, 2 here" in text


@pytest.mark.slow
def test_an_evaluation_is_of_the_students_front_end_and_keeps_its_scores(
    data, left_alone, other_data, tmp_path
):
    output = tmp_path / "run"
    shutil.copytree(left_alone, output)
    before = _listing(output)
    for option in ({"n_mels": 32}, {"clip_seconds": 0.25}):
        command = _command(data, output, test_only=True, **option)
        text = run_to_end(command, expect=1)
        assert "holds another run (" in text and "Traceback" not in text
        assert _listing(output) == before
    others = {"dataset": other_data["eval"], "dataset_cache": tmp_path / "cache"}
    text = run_to_end(_command(data, output, test_only=True, kd_weight=0.5, **others))
    assert "N = 20 clips" in text
    after = _listing(output)
    assert all(after[name] == before[name] for name in {*before} - {"train_log.txt"})
    assert "evaluated/eval-eval/scores.json" in after


@pytest.mark.slow
def test_workers_do_not_change_a_run(data, left_alone, tmp_path):
    output = tmp_path / "two_workers"
    run_to_end(_command(data, output, num_workers=2))
    _assert_same(_outcome(output), _outcome(left_alone))


@pytest.mark.slow
def test_a_killed_run_ends_like_one_left_alone(data, left_alone, tmp_path):
    output = tmp_path / "killed"
    command = _command(data, output, ckpt_interval_minutes=0, ckpt_interval_steps=1)
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
    said = run_recipe("prepare_data", [arguments_of("prepare_data", **options)])
    assert "72 clips now" in said
    output = tmp_path / "run"
    more = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    more |= {"dataset": tmp_path / "prepared", "dataset_cache": tmp_path / "cache"}
    child = RecipeProcess(_command(data, output, **more))
    _wait_for_a_new_checkpoint(output / "save", child)
    child.kill()
    assert not (output / "scores.json").exists(), "it was over before it was killed"
    text = run_to_end(_command(data, output, **more))
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
    command = _command(data, killed, **options)
    children = start_both(command)
    _wait_for_a_new_checkpoint(killed / "save", children[0])
    for child in children:
        child.kill()
    text = launch(*TORCHRUN, *command)
    assert text.count("Loading a checkpoint from") == 2  # both processes
    assert text.count("student with teacher: mAP") == 1  # one writer

    output = tmp_path / "two"
    children = start_both(_command(data, output, **options))
    texts = [child.wait() for child in children]
    assert [child.poll() for child in children] == [0, 0], texts
    weights, history, scores = _outcome(output)
    assert scores["num_clips"] == 24 and len(history) == 2
    _assert_same(_outcome(killed), (weights, history, scores))
    # Sharded evaluation scores what one process scores with the same weights.
    alone = run_to_end(_command(data, output, test_only=True))
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
    command = _command(data, tmp_path / "run", number_of_epochs=1, **options)
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
    said = "clips of the interrupted epoch are done, and it resumes with the others"
    assert said in texts[0] and said not in "".join(texts[1:])
    found = [path.read_text().split("\n") for path in tmp_path.glob("notes*")]
    trained = sorted(line for lines in found for line in lines if line)
    assert trained == sorted(f"1 bal_train-{number}" for number in range(48))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "option"),
    [("mn10", {"precision": "bf16"}), ("dymn10", {"grad_accumulation_factor": 2})],
)
def test_the_papers_recipes_run_on_small_data(data, tmp_path, recipe, option):
    text = run_to_end(_command(data, tmp_path, recipe=recipe, **option))
    assert "student with teacher: mAP" in text


@pytest.mark.slow
def test_the_comparison_is_with_the_labelled_clips_alone(data, tmp_path):
    """Its second run ends exactly like one that never heard of the other clips."""
    mixes = REPOSITORY / "recipes" / "make_transfer_set.py"
    command = [str(mixes), str(REPOSITORY / "hparams" / "make_transfer_set.yaml")]
    command += ["--dataset", str(data), "--dataset_cache", str(data / "cache")]
    command += ["--num_clips", "2", "--clip_seconds", "0.5"]
    run_to_end([*command, "--folder", str(tmp_path / "mixes")])
    options = {"transfer_set": tmp_path / "mixes", "compare_without_teacher": "True"}
    options |= {"min_teacher_coverage": 0.5}  # nobody asked it about the mixes
    text = run_to_end(_command(data, tmp_path / "compared", **options))
    table = (tmp_path / "compared" / "comparison.md").read_text()
    for run in ("student with teacher", "teacher", "student without teacher"):
        assert f"| {run} |" in table
    assert "Training clips: 50 clips, 48 labelled" in text
    run_to_end(_command(data, tmp_path / "labels", teacher="null"))
    _assert_same(
        _outcome(tmp_path / "compared" / "without_teacher"),
        _outcome(tmp_path / "labels"),
    )


@pytest.mark.slow
def test_streamed_training_says_that_it_resumes_by_epoch(data, tmp_path):
    text = run_to_end(_command(data, tmp_path, streaming="True"))
    assert "resumes at the start of the interrupted epoch" in text


@pytest.mark.slow
def test_bad_clips_are_named_and_too_many_fail_the_run(data, tmp_path):
    table = pq.read_table(data / "data" / "bal_train" / "00.parquet").to_pylist()
    table[5]["audio"]["bytes"] = b"no sound"
    write_rows(tmp_path / "bal_train" / "00.parquet", table)
    eval_rows = pq.read_table(data / "data" / "eval" / "00.parquet").to_pylist()
    write_rows(tmp_path / "eval" / "00.parquet", eval_rows)
    run = {"dataset": tmp_path, "number_of_epochs": 1}
    text = run_to_end(_command(data, tmp_path / "a", max_unreadable_share=0.05, **run))
    assert text.count("Skipping clip bal_train-5: not decodable") == 1
    text = run_to_end(_command(data, tmp_path / "b", **run), expect=1)
    assert "1 of 48 clips could not be read, more than the allowed share" in text


@pytest.mark.slow
def test_a_dump_is_verified_and_goes_on_where_it_stopped(shared, data, tmp_path):
    command = [
        str(REPOSITORY / "recipes" / "dump_teacher_logits.py"),
        str(REPOSITORY / "hparams" / "dump_teacher_logits.yaml"),
        *("--dataset", str(data), "--dataset_cache", str(data / "cache")),
        *("--clip_seconds", "0.5", "--num_workers", "0", "--batch_size", "8"),
        *("--teachers", str(shared / "checkpoints" / "mn04_as_mAP_432.pt")),
        *("--store", str(tmp_path / "store"), "--device", "cpu", "--split"),
    ]
    text = run_to_end([*command, "bal_train+bal_train"])
    assert "48 rows repeat the video_id of another" in text
    assert "0 of 48 clips are stored already" in text and "\nok: 100.0% of 96" in text
    assert "48 of 72 clips are stored already" in run_to_end(
        [*command, "bal_train+eval"]
    )
    store = LogitsStore(tmp_path / "store")
    assert len(store) == 72 and store.digest("eval-0")


@pytest.mark.slow
def test_the_shipped_logits_are_of_the_sample_as_it_is_made_here():
    store = LogitsStore(sample_teacher())
    counts = {"bal_train": 60, "unlabelled": 500, "eval": 150}
    assert len(store) == sum(counts.values())
    for split, count in counts.items():
        for number in range(count):
            clip = sample_clip(split, number)
            assert store.digest(clip.clip_id) == waveform_digest(clip.waveform)


def test_missing_inputs_are_named_in_one_message(tmp_path):
    command = [str(RECIPE), str(REPOSITORY / "hparams" / "mn10.yaml")]
    command += ["--output_folder", str(tmp_path / "run"), "--device", "cpu"]
    text = run_to_end(command, expect=1)
    message = text[text.index("Missing inputs") :]
    for part in (
        "--dataset PATH",
        "--teacher STORE",
        "--pretrained NAME",
        "quickstart",
    ):
        assert part in message
    assert not (tmp_path / "run" / "save").exists() or not any(
        (tmp_path / "run" / "save").iterdir()
    )


@pytest.mark.parametrize("options", [[], ["--test_only", "--pretrained", "mn04_as"]])
def test_damaged_inputs_are_named_in_one_message(tmp_path, options):
    (tmp_path / "rows").mkdir()
    for split in ("bal_train", "unbal_train", "eval"):
        (tmp_path / "rows" / f"{split}.parquet").write_bytes(b"PAR1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    command = [str(RECIPE), str(REPOSITORY / "hparams" / "mn10.yaml"), *options]
    command += ["--output_folder", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--dataset", str(tmp_path / "rows")]
    command += ["--teacher", str(tmp_path / "store")]
    text = run_to_end(command, expect=1)
    assert "Traceback" not in text
    assert re.search(r"--dataset PATH: .*\.parquet is damaged \(.*\); download", text)
    if options:  # whose weights are not in the tests' own home
        assert "--pretrained NAME or PATH: " in text and "HF_HUB_OFFLINE" in text
    else:
        assert f"--teacher STORE: {tmp_path / 'store'}" in text


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without a process."""
    spec = importlib.util.spec_from_file_location("audioset_kd", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prepared(recipe, data, tmp_path, **overrides):
    path = REPOSITORY / "hparams" / "mn10.yaml"
    overrides = {
        "dataset": str(data),
        "dataset_cache": str(data / "cache"),
        "train_split": "bal_train",
        "teacher": str(data / "teacher"),
        "pretrained": None,
        "output_folder": str(tmp_path),
        "clips_per_epoch": None,
        "batch_size": 8,
        "width": 0.1,
        **overrides,
    }
    return recipe.prepare(str(path), overrides, recipe.load_hparams(path, overrides))


STREAM = {"streaming": True, "clips_per_epoch": 48}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_classes": 50}, "num_classes=50: AudioSet has 527 classes"),
        ({"clips_per_epoch": 49}, "49 cannot be drawn with class balance from 48"),
        ({"batch_size": 49}, "batch_size=49 is more than an epoch's 48 clips"),
        (STREAM, "class_balanced need.*pass --class_balanced False"),
        (
            STREAM | {"class_balanced": False, "compare_without_teacher": True},
            "pass --compare_without_teacher False",
        ),
        (
            STREAM | {"class_balanced": False, "teacher": "other"},
            "the store has 0.0% of 48 clips",
        ),
        ({"teacher": "other"}, "the store has 0.0% of 48 clips"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    recipe, data, tmp_path, overrides, message
):
    if overrides.get("teacher") == "other":
        overrides = overrides | {"teacher": sample_teacher()}
    with pytest.raises(SystemExit) as refusal:
        _prepared(recipe, data, tmp_path / "run", **overrides)
    assert re.search(message, str(refusal.value))
    assert not (tmp_path / "run" / "train_log.txt").exists()


# --- Labels in another vocabulary -----------------------------------------------

NAME_OF = dict(zip(audioset_labels().mids, audioset_labels().names, strict=True))
PLACE_OF = audioset_labels().index
UNDERSTOOD = {
    "ids": lambda mids: mids,
    "names": lambda mids: [NAME_OF[mid].upper() for mid in mids],
    "digits": lambda mids: [str(PLACE_OF[mid]) for mid in mids],
    "numbers": lambda mids: [PLACE_OF[mid] for mid in mids],
    "text": lambda mids: NAME_OF[mids[0]],
    "number": lambda mids: PLACE_OF[mids[0]],
    "parted": lambda mids: [*"Child speech, kid speaking".split(","), NAME_OF[mids[0]]],
    "some": lambda mids: [*mids, "a class of somebody else"],
}
NOT_UNDERSTOOD = {
    "others": lambda mids: ["a tone", "no class"],
    "beyond": lambda mids: [527 + PLACE_OF[mid] for mid in mids],
    "other": lambda mids: "a tone",
}


@pytest.fixture(scope="module")
def relabelled(data, tmp_path_factory):
    """The same clips with other labels in some of the splits, once for each choice."""
    made = {}

    def relabelled(write, splits):
        key = (write, *splits)
        if key not in made:
            made[key] = folder = tmp_path_factory.mktemp("relabelled")
            for split in ("bal_train", "eval"):
                rows = pq.read_table(data / "data" / split / "00.parquet").to_pylist()
                if split in splits:
                    rows = [row | {"labels": write(row["labels"])} for row in rows]
                (folder / split).mkdir()
                pq.write_table(pa.Table.from_pylist(rows), folder / split / "0.parquet")
        return made[key]

    return relabelled


SPLITS = ("bal_train", "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("how", UNDERSTOOD)
def test_labels_are_understood_however_they_are_written(
    recipe, data, relabelled, tmp_path, capsys, how, streaming
):
    folder = relabelled(UNDERSTOOD[how], SPLITS)
    options = STREAM | {"class_balanced": False} if streaming else {}
    options |= {"dataset_cache": str(tmp_path / "cache"), "waveform_mix": None}
    options |= {"num_workers": 0, "shuffle_buffer": 0}
    run = _prepared(recipe, folder, tmp_path, **options, teacher=None)
    printed = capsys.readouterr().out
    assert "48 clips, 48 labelled" in printed and "24 clips, 24 labelled" in printed
    clips = (
        iter(run.train_set) if streaming else map(run.train_set.__getitem__, range(3))
    )
    for clip, mid in zip(clips, TONES, strict=False):
        found = clip.labels.nonzero()[:, 0].tolist()
        assert PLACE_OF[mid] in found and clip.labelled
        assert len(found) == (2 if how == "parted" else 1)
    expected = "a class of somebody else (48)" if how == "some" else "indices: 0 is "
    has_more = how in ("some", "digits", "numbers", "number")
    assert ("left out" in printed or "class indices" in printed) == has_more
    assert not has_more or expected in printed


@pytest.mark.parametrize("splits", [("bal_train",), ("eval",)], ids="".join)
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("how", NOT_UNDERSTOOD)
def test_labels_of_other_classes_are_refused_before_training(
    recipe, data, relabelled, tmp_path, how, splits, streaming
):
    """With a teacher, too: it would be the only one to be heard."""
    folder = relabelled(NOT_UNDERSTOOD[how], splits)
    options = STREAM | {"class_balanced": False} if streaming else {}
    options |= {"waveform_mix": None, "dataset_cache": str(tmp_path / "cache")}
    for teacher in (None, str(data / "teacher")):
        with pytest.raises(SystemExit, match="but none is an id or a name"):
            _prepared(recipe, folder, tmp_path / "run", **options, teacher=teacher)
    assert not (tmp_path / "run" / "train_log.txt").exists()


@pytest.mark.parametrize("how", [*UNDERSTOOD, *NOT_UNDERSTOOD])
def test_labels_are_looked_at_before_a_checkpoint_is_scored(
    recipe, data, relabelled, tmp_path, monkeypatch, how
):
    class Scoring(Exception):
        pass

    def make_brain(*_arguments):
        raise Scoring

    monkeypatch.setattr(recipe, "make_brain", make_brain)
    path = REPOSITORY / "hparams" / "mn10.yaml"
    folder = relabelled((UNDERSTOOD | NOT_UNDERSTOOD)[how], SPLITS)
    overrides = {"dataset": str(folder), "dataset_cache": str(tmp_path / "cache")}
    overrides |= {"output_folder": str(tmp_path / "run"), "pretrained": None}
    hparams = recipe.load_hparams(path, overrides)
    hparams["checkpointer"].save_checkpoint()
    expected = Scoring if how in UNDERSTOOD else SystemExit
    with pytest.raises(expected):
        recipe.evaluate_only(hparams, {"device": "cpu"}, named=False, settings={})


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "there is no teacher, so there is nothing to learn from"),
        ({"kd_weight": 0.0}, "kd_weight=0 ignores the teacher"),
    ],
)
def test_a_run_with_nothing_to_learn_from_does_not_start(
    recipe, data, relabelled, tmp_path, streaming, options, message
):
    folder = relabelled(_nothing, ("bal_train",))
    if streaming:
        options = options | STREAM | {"class_balanced": False}
    options = options | {"waveform_mix": None, "class_balanced": False}
    options |= {"dataset_cache": str(tmp_path / "cache")}
    options = {"teacher": str(data / "teacher")} | options
    with pytest.raises(SystemExit, match=message):
        _prepared(recipe, folder, tmp_path / "run", **options)
    with pytest.raises(SystemExit, match="Evaluation clips have no labels"):
        _prepared(recipe, relabelled(_nothing, SPLITS), tmp_path / "run", **options)
    assert not (tmp_path / "run" / "train_log.txt").exists()


def _nothing(mids):
    return []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["names", "digits", "numbers", "number", "others"])
def test_recipes_that_learn_nothing_from_labels_take_any(relabelled, tmp_path, how):
    """What is prepared keeps them; a dump says what it cannot verify logits by."""
    write = (UNDERSTOOD | NOT_UNDERSTOOD)[how]
    dataset = relabelled(write, SPLITS)
    options = {"dataset": dataset, "dataset_cache": tmp_path / "cache"}
    options |= {"split": "eval", "folder": tmp_path / "prepared", "num_proc": 1}
    run_recipe("prepare_data", [arguments_of("prepare_data", **options)])
    tables = audioset_vocabulary(), audioset_vocabulary()
    before, after = (
        summarize_rows(load_rows(str(folder), "eval"), table)
        for folder, table in zip((dataset, tmp_path / "prepared"), tables, strict=True)
    )
    assert before.indices == after.indices and before.unknown == after.unknown
    options |= {"folder": tmp_path / "mixes", "num_clips": 2, "clip_seconds": 0.5}
    del options["num_proc"]
    run_recipe("make_transfer_set", [arguments_of("make_transfer_set", **options)])
    student = random_weights(MN(527, width=0.1))
    student.options = {"num_classes": 527, "width": 0.1}
    student.front_end = {"sample_rate": 32000}
    model = TrainedModel(student, audioset_labels(), "multilabel", 0.5)
    scores = {"test": tagging_scores(np.eye(527), np.eye(527))}
    origin = Provenance("teacher", None, "", "", scores)
    write_model_folder(tmp_path / "teacher", model, origin)
    options |= {"teachers": tmp_path / "teacher", "store": tmp_path / "store"}
    options |= {"num_workers": 0, "device": "cpu"}
    del options["folder"], options["num_clips"]
    arguments = arguments_of("dump_teacher_logits", **options)
    recipe = REPOSITORY / "recipes" / "dump_teacher_logits.py"
    printed = RecipeProcess([recipe, *arguments]).wait()  # random, it may look wrong
    if how == "others":
        assert "24 clips, 0 labelled" in printed and "a tone (24)" in printed
    else:
        assert "on the labels of 24 clips" in printed and "left out" not in printed


def test_a_stream_is_looked_at_before_training(recipe, data, tmp_path, capsys):
    _prepared(recipe, data, tmp_path, class_balanced=False, **STREAM)
    text = capsys.readouterr().out
    assert "The stream's first 48 clips: 48 clips, 48 labelled" in text
    assert "Teacher: ok: 100.0% of 48 clips stored" in text


def test_a_comparison_that_cannot_be_made_ends_before_training(data, tmp_path):
    few = pq.read_table(data / "data" / "bal_train" / "00.parquet").to_pylist()
    few = few[:3] + [row | {"labels": []} for row in few[3:]]
    write_rows(tmp_path / "bal_train" / "00.parquet", few)
    eval_rows = pq.read_table(data / "data" / "eval" / "00.parquet").to_pylist()
    write_rows(tmp_path / "eval" / "00.parquet", eval_rows)
    options = {"dataset": tmp_path, "compare_without_teacher": "True"}
    options |= {"clips_per_epoch": "null"}
    text = run_to_end(_command(data, tmp_path / "run", **options), expect=1)
    assert "batch_size=8 is more than an epoch's 3 clips" in text
    assert not (tmp_path / "run" / "train_log.txt").exists()


def test_weights_of_another_front_end_are_pointed_out(recipe, tmp_path, capsys):
    for name in ("mn10_as_hop_20_mAP_456.pt", "mn10_im.pt"):  # which tell enough
        (tmp_path / name).touch()
    hparams = {"pretrained": "mn10_as_hop_20", "log_mel": LogMel()}
    hparams["pretrained_folder"] = str(tmp_path)
    recipe.warn_of_another_front_end(hparams)
    assert "pass --hop_length 640\n" in capsys.readouterr().out
    recipe.warn_of_another_front_end(hparams | {"log_mel": LogMel(hop_length=640)})
    recipe.warn_of_another_front_end(hparams | {"pretrained": "mn10_im"})
    assert not capsys.readouterr().out


@pytest.mark.parametrize("path", HPARAMS, ids=lambda path: path.stem)
def test_no_key_is_taken_for_a_flag_of_speechbrain(path):
    keys = re.findall(r"^([a-z]\w*):", path.read_text(), flags=re.MULTILINE)
    flags = set(RunOptions().as_dict()) - {"overridden_args"}
    for key in keys:
        taken = [flag for flag in flags if flag.startswith(key) and flag != key]
        assert not taken, f"--{key} would be read as --{taken[0]}"


@pytest.mark.parametrize("path", HPARAMS, ids=lambda path: path.stem)
def test_every_key_has_a_reader(path):
    text = path.read_text()
    sources = [*(REPOSITORY / "recipes").glob("*.py")]
    sources += (REPOSITORY / "efficientat_plugin").rglob("*.py")
    code = "\n".join(source.read_text() for source in sources)
    flags = set(RunOptions().as_dict())
    for key in re.findall(r"^([a-z]\w*):", text, flags=re.MULTILINE):
        read = f"<{key}>" in text or f'"{key}"' in code or f"hparams.{key}" in code
        assert read or key in flags, f"nobody reads {key}"


@pytest.mark.parametrize("name", TRAINING)
def test_training_yamls_share_their_keys(name):
    """Options are found under the same name in every run's YAML."""

    def keys(path: Path) -> set[str]:
        found = set(re.findall(r"^([a-z]\w*):", path.read_text(), flags=re.MULTILINE))
        return found - SAMPLE_KEYS

    reference = keys(REPOSITORY / "hparams" / "mn10.yaml")
    found = keys(REPOSITORY / "hparams" / f"{name}.yaml")
    assert found == reference


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
