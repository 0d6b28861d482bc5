"""The recipes that store logits of frames and learn from them, and their refusals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from event_runs import event_command, write_events
from recipe_runs import REPOSITORY, RecipeProcess, arguments_of, run_to_end
from trained_models import write_model

from efficientat_plugin.data.events.event_reader import open_event_clips
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

pytestmark = pytest.mark.slow

FRONT_END = {"sample_rate": 16000, "n_mels": 64, "win_length": 400, "hop_length": 160}
FRONT_END |= {"n_fft": 512, "f_max": 7000.0, "f_min_jitter": 1, "f_max_jitter": 1}
FRONT_END |= {"log_floor": 1e-7, "log_floor_mode": "clamp"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_events(tmp_path_factory.mktemp("data") / "events")


@pytest.fixture(scope="module")
def labels(data):
    sides = [data / "events" / f"{side}.tsv" for side in ("train", "valid", "test")]
    return open_event_clips(data, sides).labels


@pytest.fixture(scope="module")
def teachers(labels, tmp_path_factory) -> Path:
    """Two model folders of untrained detectors, which the recipes load by path."""
    place = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        torch.manual_seed(seed)
        options = {"num_classes": len(labels), "width": 0.1}
        student = FrameMN(**options).eval()
        torch.nn.init.normal_(student.strong_head.bias)
        student.options, student.front_end = options, FRONT_END
        model = TrainedModel(student, labels, "multilabel", 3.0, "zero_pad")
        write_model(place / f"model{seed}", model, scores={})
    return place


def dump_command(data, teachers, store, **more):
    names = ",".join(str(teachers / f"model{seed}") for seed in (0, 1))
    options = {"dataset": data, "teachers": names, "frames": True, "store": store}
    options |= {"clip_seconds": 3.0, "num_workers": 0, "batch_size": 1, "device": "cpu"}
    recipe = REPOSITORY / "recipes" / "dump_teacher_logits.py"
    return [recipe, *arguments_of("dump_teacher_logits", **(options | more))]


@pytest.fixture(scope="module")
def store(data, teachers, tmp_path_factory) -> Path:
    """Written by a dump that nobody disturbed."""
    store = tmp_path_factory.mktemp("stores") / "store"
    text = run_to_end(dump_command(data, teachers, store))
    assert "20 clips\nunjudged: 100.0% of 20 clips stored, " in text
    assert "classes in 75 frames of 0.04 s and in the whole clip, label" in text
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_dump_of_frames_ends_like_an_undisturbed_one(
    data, teachers, store, tmp_path
):
    command, manifest = (
        dump_command(data, teachers, tmp_path / "s"),
        tmp_path / "s" / "manifest.json",
    )
    child, patience = RecipeProcess(command), time.monotonic() + 60
    while time.monotonic() < patience:
        if manifest.exists() and json.loads(manifest.read_text())["count"] >= 3:
            break
        time.sleep(0.005)
    child.kill()
    done = json.loads(manifest.read_text())["count"]
    assert 3 <= done < 20
    text = run_to_end(command)
    assert f"{done} of 20 clips are stored already" in text
    assert contents(tmp_path / "s") == contents(store)


AUGMENTATION = {
    "waveform_mix: null": "waveform_mix: !new:efficientat_plugin.WaveformMix",
    "frame_shift: null": "frame_shift: !new:efficientat_plugin.FrameShift",
    "mixup: null": "mixup: !new:efficientat_plugin.Mixup",
}


def stored_command(data, output, **more):
    """Augmented in all ways, so that targets depend on where a run resumes."""
    recipe, yaml, *others = event_command(data, output, **more)
    text = Path(yaml).read_text()
    for off, on in AUGMENTATION.items():
        assert text.count(off) == 1
        text = text.replace(off, on)
    augmented = output.parent / "augmented.yaml"
    augmented.write_text(text)
    return [recipe, augmented, *others]


def outcome(output: Path) -> tuple[dict, list, dict]:
    newest = max((output / "save").glob("CKPT*"), key=lambda path: path.name)
    weights = torch.load(newest / "student.ckpt", weights_only=True)
    history = json.loads((newest / "history.ckpt").read_text())
    return weights, history, json.loads((output / "scores.json").read_text())


def assert_same(first: tuple, second: tuple) -> None:
    assert first[1:] == second[1:]
    for name, value in first[0].items():
        assert torch.equal(value, second[0][name]), name


@pytest.fixture(scope="module")
def left_alone(data, store, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "left_alone"
    text = run_to_end(stored_command(data, output, teacher=store))
    assert "Teacher: unjudged: 100.0% of 12 clips stored" in text
    assert "in the whole clip, for all 12 clips" in text
    return output


def test_the_card_names_the_teacher(left_alone):
    card = (left_alone / "model" / "README.md").read_text()
    assert "taught by" in card and "model1" in card


def test_a_killed_run_ends_like_one_left_alone(data, store, left_alone, tmp_path):
    options = {"teacher": store, "ckpt_interval_steps": 1, "ckpt_interval_minutes": 0}
    command = stored_command(data, tmp_path / "killed", **options)
    for _ in range(2):
        child = RecipeProcess(command)
        before = {*(tmp_path / "killed" / "save").glob("CKPT*")}
        while {*(tmp_path / "killed" / "save").glob("CKPT*")} <= before:
            assert child.poll() is None, "the run was over before it could be killed"
            time.sleep(0.01)
        child.kill()
    run_to_end(command)
    assert_same(outcome(tmp_path / "killed"), outcome(left_alone))


def test_a_run_that_stores_its_teacher_ends_like_one_of_a_store(
    data, teachers, store, tmp_path
):
    """And students share what one of them has stored."""
    names = ",".join(str(teachers / f"model{seed}") for seed in (0, 1))
    options = {"teacher": names, "teacher_logits": tmp_path / "own"}
    text = run_to_end(stored_command(data, tmp_path / "out", **options))
    assert "0 of 12 clips are stored already" in text
    run_to_end(stored_command(data, tmp_path / "again", teacher=tmp_path / "own"))
    assert_same(outcome(tmp_path / "out"), outcome(tmp_path / "again"))
    own, dumped = LogitsStore(tmp_path / "own"), LogitsStore(store)
    ids = own.clip_ids()
    assert len(ids) == 12 and all(own.digest(i) == dumped.digest(i) for i in ids)
    difference = own.logits(own.rows(ids)) - dumped.logits(dumped.rows(ids))
    assert np.abs(difference).max() < 1e-2  # another batch size
    command = stored_command(data, tmp_path / "second", **options, seed=2)
    assert "12 of 12 clips are stored already" in run_to_end(command)
    others = options | {"teacher": teachers / "model0"}
    text = run_to_end(stored_command(data, tmp_path / "third", **others), expect=1)
    assert "holds other logits" in text and "--teacher_logits" in text


def test_clips_without_a_row_are_counted(data, store, labels, tmp_path):
    kept, ids = LogitsStore(store), LogitsStore(store).clip_ids()
    few = [i for i in ids if not i.startswith("train")] + [
        i for i in ids if i.startswith("train")
    ][:-1]
    about = {name: v for name, v in kept.manifest.kind.items() if name != "has_weak"}
    with StoreWriter(tmp_path / "s", **about) as writer:
        writer.append(few, kept.logits(kept.rows(few)))
    options = {"teacher": tmp_path / "s", "number_of_epochs": 1, "warmup_steps": 0}
    command = event_command(data, tmp_path / "out", **options)
    strict = [*command, "--min_teacher_coverage", "0.99"]
    assert "the store has 91.7% of 12 clips" in run_to_end(strict, expect=1)
    text = run_to_end(command)
    assert "1 of 12 clips have none and are trained on their labels alone" in text


REFUSED = {
    "rate": ({"frame_seconds": 0.02}, "has frames of 0.02 s and the student of 0.04"),
    "length": ({"clip_seconds": 10.0}, "pass --clip_seconds 10, or store the logits"),
    "classes": ({"labels_sha256": "0" * 64}, "label tables of the store and the data"),
    "clips": (
        {"num_frames": None, "frame_seconds": None},
        "holds logits of clips, and logits of frames are needed",
    ),
}


@pytest.mark.parametrize(("other", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_store_that_does_not_fit_is_refused(data, store, tmp_path, other, sentence):
    kept = LogitsStore(store)
    about = kept.manifest.kind | {"has_weak": False} | other
    rows = np.arange(len(kept))
    logits = kept.logits(rows)
    if about["num_frames"] is None:
        logits = kept.clip_logits(rows)
    with StoreWriter(tmp_path / "s", **about) as writer:
        writer.append(kept.clip_ids(), logits)
    command = event_command(data, tmp_path / "out", teacher=tmp_path / "s")
    text = run_to_end(command, expect=1)
    assert sentence in text, text[-800:]
    assert "Traceback" not in text and not (tmp_path / "out" / "save").exists()


def test_random_parts_of_clips_are_refused(data, store, tmp_path):
    recipe, yaml, *others = event_command(data, tmp_path / "out", teacher=store)
    text = Path(yaml).read_text()
    own, line = tmp_path / "own.yaml", "  short_clips: zero_pad\n"
    own.write_text(text.replace(line, f"{line}  random_crop: True\n"))
    text = run_to_end([recipe, own, *others], expect=1)
    assert "stored logits are of the beginning of each clip" in text, text[-800:]


def test_logits_of_no_teacher_and_a_teacher_of_clips_are_refused(
    data, tmp_path, teachers
):
    command = event_command(data, tmp_path / "out", teacher_logits=tmp_path / "s")
    assert "and there is none; pass --teacher NAME" in run_to_end(command, expect=1)
    command = dump_command(data, teachers, tmp_path / "s", clip_seconds=0.001)
    text = run_to_end(command, expect=1)
    assert "Traceback" not in text and not (tmp_path / "s").exists()
