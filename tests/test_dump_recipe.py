"""The recipe that dumps logits: kills, streams, ensembles and refusals."""

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import TORCHRUN, RecipeProcess, launch, run_to_end, start_both
from small_rows import LABELS, noise

from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.store.logits_store import LogitsStore

REPOSITORY = Path(__file__).resolve().parents[1]


def write_audio(folder, count):
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}" / f"clip{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(number, 4000), 16000)
    (folder / "notes.txt").write_text("no sound")
    return folder


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_folder_of_audio_needs_neither_labels_nor_split(tmp_path, reader, streaming):
    folder = write_audio(tmp_path / "audio", 3)
    rows = list(load_rows(str(folder), None, streaming))
    assert [row["video_id"] for row in rows] == ["a/clip00", "a/clip02", "b/clip01"]
    assert [row["labels"] for row in rows] == [[], [], []]
    assert reader.read(rows[0]).waveform.abs().max() > 0


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder with audio files"):
        load_rows(str(tmp_path), None)


def command(store, **more):
    options = {
        "dataset": "audio",
        "teachers": "my_teachers:make",
        "clip_seconds": 0.25,
        "num_workers": 0,
        "batch_size": 2,
        "device": "cpu",
        "store": store,
    }
    words = [str(REPOSITORY / "recipes" / "dump_teacher_logits.py")]
    words += [str(REPOSITORY / "hparams" / "dump_teacher_logits.yaml")]
    for name, value in (options | more).items():
        words += [f"--{name}", str(value)]
    return words


def clips_written(store):
    manifest = store / "manifest.json"
    return json.loads(manifest.read_text())["count"] if manifest.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_dump_ends_like_an_undisturbed_one(own_module, tmp_path, processes):
    write_audio(tmp_path / "audio", 16)
    text = launch(*command("whole"))
    assert "whole: 16 clips" in text and "\nunjudged: 100.0% of 16 clips" in text
    killed, slow = tmp_path / "killed", {"SLOW_TEACHER": "0.5"}
    if processes == 1:
        children = [RecipeProcess(command(killed), **slow)]
    else:
        children = start_both(command(killed), **slow)
    patience = time.monotonic() + 120
    while clips_written(killed) < 4 and time.monotonic() < patience:
        time.sleep(0.01)
    for child in children:
        child.kill()
    done = clips_written(killed)
    assert 4 <= done < 16
    again = command(killed)
    text = run_to_end(again) if processes == 1 else launch(*TORCHRUN, *again)
    assert f"{done} of 16 clips are stored already" in text
    for file in Path("whole").iterdir():
        assert file.read_bytes() == Path("killed", file.name).read_bytes()


@pytest.mark.slow
def test_the_recipe_streams_and_weighs(own_module, tmp_path):
    write_audio(tmp_path / "audio", 4)
    options = {
        "teachers": "my_teachers:make,my_teachers:make",
        "teacher_weights": "2,1",
        "sample_rate": 32000,
        "streaming": True,
        "precision": "bf16",
    }
    text = run_to_end(command("s", **options))
    store = LogitsStore("s")
    assert len(store) == 4 and "s: 4 clips\nunjudged" in text
    assert store.manifest.sample_rate == 32000
    assert "Not verified: no clip of the stream" in run_to_end(command("s", **options))
    refused = run_to_end(command("s"), expect=1)
    assert "holds other logits (teacher my_teachers:make," in refused.splitlines()[-1]
    assert "precision bf16 there, fp32 here" in refused.splitlines()[-1]


@pytest.mark.slow
def test_the_recipe_refuses_in_a_sentence(own_module, tmp_path):
    write_audio(tmp_path / "audio", 2)
    for options, text in [
        ({"dataset": "nowhere"}, "--dataset PATH and --split NAME are needed"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"labels": "three.csv"}, "No such file"),
        ({"teachers": "my_teachers:none"}, "cannot be imported"),
    ]:
        found = run_to_end(command("s", **options), expect=1)
        assert text in found.splitlines()[-1]


@pytest.fixture(scope="module")
def recipe():
    """The recipe's functions, without a process."""
    path = REPOSITORY / "recipes" / "dump_teacher_logits.py"
    spec = importlib.util.spec_from_file_location("dump_teacher_logits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def teacher_options(**more):
    names = ("teacher_weights", "teacher_sample_rate", "labels", "sample_rate")
    options = dict.fromkeys((*names, "pretrained_folder")) | {"teacher_options": {}}
    return options | more


@pytest.fixture
def three_classes(tmp_path):
    """A model folder, a file of its weights, and a table of its classes."""
    options = {"num_classes": 3, "width": 0.1}
    student = MN(**options)
    student.options, student.front_end = options, {"sample_rate": 32000}
    model = TrainedModel(student, LABELS, "multilabel", 0.5)
    scores = {"test": tagging_scores(np.eye(3), np.eye(3))}
    write_model_folder(tmp_path / "model", model, Provenance("m", None, "", "", scores))
    torch.save(student.state_dict(), tmp_path / "weights.pt")
    lines = [f"{n},{mid},{mid}" for n, mid in enumerate(LABELS.mids)]
    text = "\n".join(["index,mid,display_name", *lines])
    (tmp_path / "classes.csv").write_text(text)
    return tmp_path


def test_folders_files_and_functions_teach_together(recipe, own_module, three_classes):
    weights = three_classes / "model" / "student.ckpt"
    sources = f"{three_classes / 'model'},{weights}"
    options = teacher_options(teachers=sources, labels="classes.csv")
    teacher, labels = recipe.open_teacher(options | {"teacher_weights": "3,1"})
    assert labels.mids == LABELS.mids and teacher.weights == (0.75, 0.25)
    one, two = (member.state_dict() for member in teacher.members)
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert not teacher.training


@pytest.mark.parametrize(
    "teachers, options, text",
    [
        ("weights.pt", {}, "weights.pt does not state its front end; pass --teacher_"),
        ("my_teachers:make,model", {}, "different classes .2 and 3."),
        ("my_teachers:make", {"teacher_weights": "1,2"}, "must be 1 numbers"),
        (
            "model,my_teachers:make_three",
            {},
            r"\[32000, 16000\] Hz; pass --sample_rate",
        ),
    ],
)
def test_teachers_that_do_not_go_together_are_refused(
    recipe, own_module, three_classes, teachers, options, text
):
    with pytest.raises(ValueError, match=text):
        recipe.open_teacher(teacher_options(teachers=teachers, **options))


def test_another_sample_rate_is_resampled_where_it_is_asked_for(
    recipe, own_module, three_classes
):
    options = teacher_options(teachers="model,my_teachers:make_three")
    teacher, _ = recipe.open_teacher(options | {"sample_rate": 32000})
    assert teacher.sample_rate == 32000
    assert teacher(torch.zeros(2, 16000)).logits.shape == (2, 3)
