"""Training of detectors ends, resumes bit for bit, and scores what it says."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from event_runs import event_command, write_events, write_half
from recipe_runs import RecipeProcess, launch, run_to_end, start_both

from efficientat_plugin.data.events.event_tables import read_events
from efficientat_plugin.data.events.frame_events import median_filter
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.evaluation.events import PSDS1, psds
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.event_detector import EventDetector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_events(tmp_path_factory.mktemp("data") / "events")


@pytest.fixture(scope="module")
def left_alone(data, tmp_path_factory) -> Path:
    """A run that nobody disturbed, of which no other has the hash seed."""
    output = tmp_path_factory.mktemp("runs") / "left_alone"
    launch(*event_command(data, output))
    return output


def _outcome(output: Path) -> tuple[dict, list, dict]:
    newest = max((output / "save").glob("CKPT*"), key=lambda path: path.name)
    weights = torch.load(newest / "student.ckpt", weights_only=True)
    history = json.loads((newest / "history.ckpt").read_text())
    return weights, history, json.loads((output / "scores.json").read_text())


def _assert_same(first: tuple, second: tuple) -> None:
    assert first[1:] == second[1:]
    for name, value in first[0].items():
        assert torch.equal(value, second[0][name]), name


def test_a_run_leaves_what_it_promises(left_alone):
    for name in ("scores.json", "per_class.csv", "split.csv", "train_log.txt"):
        assert (left_alone / name).stat().st_size > 0
    assert (left_alone / "curves.png").read_bytes().startswith(b"\x89PNG")
    history = _outcome(left_alone)[1]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert "PSDS1" in history[0] and "event_F" in history[0]
    card = (left_alone / "model" / "README.md").read_text()
    assert "12 clips for training, without a teacher; 4 to choose epoch" in card


@pytest.mark.parametrize("load", ["from_hparams", "from_student"])
def test_the_folder_scores_what_the_run_reported(left_alone, data, load):
    """Computed anew, from the sounds and the table of events."""
    detector = getattr(EventDetector, load)(str(left_alone / "model"))
    rows = read_table(data)
    rows = rows.select([n for n, side in enumerate(rows["split"]) if side == "test"])
    scores, seconds = {}, {}
    for row in rows:
        found = detector.frames(row["audio"])
        assert found.frame_seconds == 0.04
        scores[row["video_id"]] = median_filter(found.scores, 9)
        seconds[row["video_id"]] = 3.0
    table = read_events(data / "events" / "test.tsv", durations=seconds)
    expected = psds(scores, table.events, seconds, detector.labels.names, **PSDS1)
    reported = json.loads((left_alone / "scores.json").read_text())
    assert reported["PSDS1"] == pytest.approx(expected.macro, abs=1e-9)
    assert (reported["num_clips"], len(scores)) == (4, 4)
    assert all(np.isfinite(each).all() for each in scores.values())


def test_a_killed_run_ends_like_one_left_alone(data, left_alone, tmp_path):
    command = event_command(data, tmp_path / "killed", ckpt_interval_steps=1)
    _kill_and_finish(command, tmp_path / "killed")
    _assert_same(_outcome(tmp_path / "killed"), _outcome(left_alone))


def _kill_and_finish(command: list, output: Path) -> None:
    command = [*command, "--ckpt_interval_minutes", "0"]
    kills = 0
    while kills < 3:
        child = RecipeProcess(command)
        before = {*(output / "save").glob("CKPT*")}
        while {*(output / "save").glob("CKPT*")} <= before:
            if child.poll() is not None:
                break
            time.sleep(0.01)
        if child.poll() is not None:
            break
        child.kill()
        kills += 1
    assert kills >= 2, "the run was over before it could be killed twice"
    run_to_end(command)


def test_two_processes_train_one_detector(data, tmp_path):
    options = {"batch_size": 2, "number_of_epochs": 1, "layer_decay": 0.9}
    children = start_both(event_command(data, tmp_path / "two", **options))
    texts = [child.wait() for child in children]
    assert [child.poll() for child in children] == [0, 0], texts
    assert "test, 4 clips: PSDS1" in texts[0]


@pytest.fixture(scope="module")
def halves(data, left_alone, tmp_path_factory) -> tuple[Path, dict]:
    """Data of which half the clips to train on have no events, and options for it."""
    half = tmp_path_factory.mktemp("half") / "events"
    shutil.copytree(data, half)
    options = {"events": write_half(half) / "events" / "half.tsv", "strong_clips": 2}
    options |= {"weak_mixup_alpha": 0.3, "teacher": left_alone / "model"}
    return half, options | {"weak_weight": 0.0, "clips_per_epoch": 24}


def test_a_killed_run_of_halves_ends_like_one_left_alone(halves, tmp_path):
    """Half of a batch learns from the teacher alone, and an epoch is of whole steps."""
    half, options = halves
    text = run_to_end(event_command(half, tmp_path / "alone", **options))
    assert "in 14 clips, 6 clips with weak labels only" in text, text[:800]
    history = _outcome(tmp_path / "alone")[1]
    falls = (6 - 1) / (12 - 1)  # after the first epoch's steps, one of warm-up
    expected = 0.004 * (1 + math.cos(math.pi * falls)) / 2
    assert history[0]["lr"] == pytest.approx(expected, rel=1e-6)
    killed = tmp_path / "killed"
    options = options | {"ckpt_interval_steps": 1}
    _kill_and_finish(event_command(half, killed, **options), killed)
    _assert_same(_outcome(killed), _outcome(tmp_path / "alone"))


def test_two_processes_share_the_batches_of_halves(halves, tmp_path):
    half, options = halves
    options = options | {"number_of_epochs": 1}
    children = start_both(event_command(half, tmp_path / "two", **options))
    texts = [child.wait() for child in children]
    assert [child.poll() for child in children] == [0, 0], texts
    assert "test, 4 clips: PSDS1" in texts[0]


def test_a_detector_teaches_another(data, left_alone, tmp_path):
    teacher = {"teacher": left_alone / "model", "grad_accumulation_factor": 2}
    output = tmp_path / "student"
    text = run_to_end(
        event_command(data, output, number_of_epochs=1, warmup_steps=0, **teacher)
    )
    assert "Teacher: it takes the student's log-mel, for 12 clips" in text
    card = (output / "model" / "README.md").read_text()
    assert r"taught by left\_alone/model" in card


TAGGER = {"teacher": "mn.pt", "n_mels": 64, "hop_length": 160}
TAGGER["teacher_options"] = "{n_mels: 64, hop_length: 160, labels: labels.csv}"
# Options, and what is said of them
REFUSED = [
    ({"events": None, "dataset": "s", "form": "sounds"}, "neither events nor weak lab"),
    (TAGGER, "does not score frames, so it cannot teach when a class is active"),
    ({"teacher": "model", "hop_length": 320}, "frames of 0.04 s and the student of 0."),
    ({"warmup_steps": 100}, "must be 0 or more, and fewer than the 6 steps"),
    ({"events": "nowhere.tsv"}, "nowhere.tsv"),
    ({"grad_accumulation_factor": 8, "warmup_steps": 0}, "need 32 clips a step"),
    ({"classes": "lion,bear"}, "but none of the 2 classes"),
    ({"strong_clips": 2}, "2 clips with strong labels and 2 without, but there are 12"),
    ({"weak_mixup_alpha": 0.3}, "mixes the weak half of a batch; pass strong_clips"),
]


@pytest.fixture(scope="module")
def place(left_alone, tmp_path_factory) -> Path:
    """Silent sounds, a tagger and a detector."""
    place = tmp_path_factory.mktemp("place")
    (place / "model").symlink_to(left_alone / "model")
    (place / "labels.csv").symlink_to(left_alone / "model" / "labels.csv")
    torch.save(MN(9, width=0.1).state_dict(), place / "mn.pt")
    (place / "s").mkdir()
    for number in range(20):
        soundfile.write(place / "s" / f"{number}.wav", np.zeros(16000), 16000)
    return place


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_what_cannot_be_trained_on_is_refused(data, place, tmp_path, options, sentence):
    command = event_command(data, tmp_path / "out", **options)
    text = run_to_end(command, expect=1, folder=place)
    assert sentence in text, text[-800:]
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "save").exists()


def _listing(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _halve_the_starts(table: Path) -> None:
    head, *lines = table.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    for row in rows:
        row[1] = str(float(row[1]) / 2)
    table.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")


def test_another_run_is_refused_and_touches_nothing(data, left_alone, tmp_path):
    """Of other settings or events; the same events may be elsewhere."""
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    shutil.copytree(left_alone, tmp_path / "run")
    command = event_command(moved, tmp_path / "run")
    assert "test, 4 clips: PSDS1" in run_to_end(command)
    before = _listing(tmp_path / "run")
    text = run_to_end([*command, "--lr", "0.5"], expect=1)
    assert "--output_folder" in text and "lr" in text
    _halve_the_starts(moved / "events" / "train.tsv")
    assert "--output_folder" in run_to_end(command, expect=1)
    assert _listing(tmp_path / "run") == before
