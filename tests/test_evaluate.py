"""A model's score is one number, whatever it is kept in and the data written as."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from exported_models import random_weights
from sklearn.metrics import average_precision_score

from efficientat_plugin.cli import main
from efficientat_plugin.cli.evaluate import write
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.data.splits import (
    given_split,
    split_by_fold,
    split_digest,
    split_rows,
)
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.evaluation.metrics import (
    ClassificationScores,
    classification_scores,
    tagging_scores,
)
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.tagging.whole_clips import choose_clips, whole_clip_stats

RATE = 32000
CLIP_SECONDS = 0.5
CLASSES = ("low, deep", "high", "noise")
IDS = ("/m/low", "/m/high", "/m/noise")
NUM_CLIPS = 7  # of each class


def _sound(place, number):
    """0.3 to 1.6 s, so that clips are repeated, whole, and scored in windows."""
    rng = np.random.default_rng([place, number])
    time = np.arange(round((0.3 + 0.2 * number) * RATE)) / RATE
    sound = 0.02 * rng.standard_normal(len(time))
    if place < 2:
        sound += 0.3 * np.sin(2 * np.pi * (300, 2500)[place] * time)
    return sound


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(NUM_CLIPS):
            path = folder / name / f"{place}-{number}.wav"
            soundfile.write(path, _sound(place, number), RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module", params=["multiclass", "multilabel"])
def models(request, tmp_path_factory):
    """A model folder, and what it is exported to; its weights are random."""
    folder = tmp_path_factory.mktemp("models")
    student = random_weights(MN(3, width=0.1))
    student.options = {"num_classes": 3, "width": 0.1}
    student.front_end = {"sample_rate": RATE}
    labels = LabelTable(IDS, CLASSES)
    model = TrainedModel(student, labels, request.param, CLIP_SECONDS)
    scores = {"test": tagging_scores(np.eye(3), np.eye(3))}
    origin = Provenance("m", None, "", "", scores)
    write_model_folder(folder / "model", model, origin)
    export_onnx(folder / "model", folder / "in.onnx")
    export_onnx(folder / "model", folder / "out.onnx", front_end="out")
    torch.save(student.state_dict(), folder / "student.pt")
    (folder / "run").mkdir()
    shutil.copytree(folder / "model", folder / "run" / "model")
    bare = [folder / "student.pt", "--labels", folder / "model" / "labels.csv"]
    bare += ["--front-end", "n_mels=128,hop_length=320", "--clip-seconds", CLIP_SECONDS]
    return {
        "folder": folder / "model",
        "run": folder / "run",
        "onnx": folder / "in.onnx",
        "onnx_from_log_mel": folder / "out.onnx",
        "weights": [*bare, "--target", request.param],
    }


@pytest.fixture(scope="module")
def tagger(models):
    return AudioTagger.from_hparams(str(models["folder"]), run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def expected(tagger, sounds):
    """Its scores, computed sound by sound and by scikit-learn."""
    rows, truth = [], []
    for path in sorted(sounds.glob("*/*.wav")):
        by_name = {tag.name: tag.probability for tag in tagger.tag(path, top_k=None)}
        rows.append([by_name[name] for name in CLASSES])
        truth.append(CLASSES.index(path.parent.name))
    if tagger.target == "multiclass":
        return {"accuracy": np.mean(np.argmax(rows, axis=1) == truth)}
    return {"mAP": average_precision_score(np.eye(3)[truth], rows, average="macro")}


# --- Forms of the data ----------------------------------------------------------


def _entries(sounds):
    for place, name in enumerate(CLASSES):
        for path in sorted((sounds / name).iterdir()):
            yield place, path


def _csv(write):
    def table(sounds, folder):
        with open(folder / "clips.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "kind"])
            rows.writerows([path, write(place)] for place, path in _entries(sounds))
        return [folder / "clips.csv", "--label-column", "kind"]

    return table


def _jsonl(sounds, folder):
    lines = [
        json.dumps({"recording": str(path), "labels": [CLASSES[place]]})
        for place, path in _entries(sounds)
    ]
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return [folder / "clips.jsonl", "--audio-column", "recording"]


def _parquet(sounds, folder):
    rows = [
        {
            "audio": {"bytes": path.read_bytes(), "path": path.name},
            "labels": ", ".join([CLASSES[place]]),
        }
        for place, path in _entries(sounds)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "clips.parquet")
    return [folder / "clips.parquet", "--separator", ","]


def _audioset(sounds, folder):
    """In AudioSet's schema, of which one split is asked for."""
    rows = [
        {
            "video_id": path.stem,
            "audio": {"bytes": path.read_bytes(), "path": path.name},
            "labels": [IDS[place]],
        }
        for place, path in _entries(sounds)
    ]
    for split, part in (("eval", rows), ("bal_train", rows[:2])):
        (folder / "data" / split).mkdir(parents=True)
        table = pa.Table.from_pylist(part)
        pq.write_table(table, folder / "data" / split / "00.parquet")
    return [folder, "--split", "eval"]


FORMS = {
    "class_folders": lambda sounds, folder: [sounds],
    "names": _csv(lambda place: CLASSES[place]),
    "other_case": _csv(lambda place: CLASSES[place].upper()),
    "ids": _csv(lambda place: IDS[place]),
    "jsonl": _jsonl,
    "parquet": _parquet,
    "audioset": _audioset,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_score_does_not_depend_on_how_the_data_is_written(
    models, expected, sounds, tmp_path, capsys, form
):
    (tmp_path / "data").mkdir()
    data = FORMS[form](sounds, tmp_path / "data")
    options = [*data, "--cache", tmp_path / "cache", "--device", "cpu"]
    assert _evaluate(models["folder"], *options, output=tmp_path / "out") == 0
    _check(tmp_path / "out", expected, capsys.readouterr())


@pytest.mark.parametrize(
    "kind", ["folder", "run", "onnx", "onnx_from_log_mel", "weights"]
)
def test_a_score_does_not_depend_on_what_the_model_is_kept_in(
    models, expected, sounds, tmp_path, capsys, kind
):
    kept = models[kind]
    model, *options = kept if isinstance(kept, list) else [kept]
    assert _evaluate(model, sounds, *options, output=tmp_path / "a" / "b") == 0
    _check(tmp_path / "a" / "b", expected, capsys.readouterr())


def _evaluate(*arguments, output):
    return main(["evaluate", *map(str, arguments), "--output", str(output)])


def _check(folder, expected, printed):
    """What is written and printed is the score that is expected."""
    scores = json.loads((folder / "scores.json").read_text())
    total = NUM_CLIPS * len(CLASSES)
    assert (scores["num_clips"], scores["num_classes"]) == (total, len(CLASSES))
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-6)
        assert f"{name} {value:.4f}" in printed.out
    with open(folder / "per_class.csv", newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} == set(CLASSES)
    figure = folder / "confusion.png"
    assert figure.exists() == ("accuracy" in expected)
    assert f"all {total} clips" in printed.err or "split eval" in printed.err


def test_no_figure_of_an_earlier_command_stays_beside_new_scores(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.eye(3)[np.arange(30) % 3]
    tagger = SimpleNamespace(labels=LabelTable("abc", "abc"))
    for scores in (classification_scores, tagging_scores):
        write(tmp_path, tagger, scores(rng.random((30, 3)), labels))
    assert not (tmp_path / "confusion.png").exists()


def test_every_tagger_is_scored_alike(models, tagger, sounds):
    rows = read_table(sounds)
    found, exported = (
        whole_clip_stats(each, rows, SkippedClips(0.01)).summarize()
        for each in (tagger, Tagger(models["onnx"]))
    )
    for name, value in found.averages().items():
        assert exported.averages()[name] == pytest.approx(value, abs=1e-6)
    assert isinstance(exported, ClassificationScores) == (tagger.target == "multiclass")


# --- What cannot be scored ------------------------------------------------------


def test_labels_that_the_model_lacks_are_counted_and_reported(
    models, sounds, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(sounds, data)
    for name in ("cat", "dog"):
        shutil.copytree(sounds / "high", data / name)
    assert _evaluate(models["folder"], data, output=tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "14 labels of 2 kinds are not in the label table" in printed.err
    assert "cat (7), dog (7), so 14 clips are not scored" in printed.err
    assert "(N = 21 clips, 3 classes)" in printed.out


def test_clips_that_cannot_be_read_are_counted_and_reported(
    models, sounds, tmp_path, capsys, caplog
):
    data = tmp_path / "data"
    shutil.copytree(sounds, data)
    for damaged in ("high/1-3.wav", "high/1-4.wav"):
        (data / damaged).write_bytes(b"no sound")
    output = tmp_path / "out"
    assert _evaluate(models["folder"], data, output=output) == 2
    err = capsys.readouterr().err
    assert "2 of 21 clips could not be read" in err and "Traceback" not in err
    assert "raise --max-unreadable-share" in err and not output.exists()
    options = [data, "--max-unreadable-share", "0.1"]
    assert _evaluate(models["folder"], *options, output=output) == 1
    assert "(N = 19 clips, 3 classes)" in capsys.readouterr().out
    assert "Skipping clip high/1-3" in caplog.text
    assert "2 of 21 clips were skipped as unreadable" in caplog.text


def _model_as(name):
    def make(models, sounds, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("{}")
        return [models["folder"], sounds]

    return make


def _other_classes(models, sounds, tmp_path):
    shutil.copytree(sounds / "high", tmp_path / "data" / "dog")
    return [models["folder"], tmp_path / "data"]


def _file(models, sounds, tmp_path):
    (tmp_path / "out").write_text("a file")
    return [models["folder"], sounds]


REFUSED = {
    "other classes": (_other_classes, "none|\\(dog \\(7\\)\\) is one of the 3 classes"),
    "a run": (_model_as("run.json"), "contains run.json, .* give another --output"),
    "a model": (
        _model_as("hyperparams.yaml"),
        "contains hyperparams.yaml, .* give another",
    ),
    "a file": (_file, "out is not a folder; give another --output"),
    "no data": (
        lambda models, sounds, tmp_path: [models["folder"], tmp_path / "nowhere"],
        "there is no file or folder .*nowhere",
    ),
    "no model": (
        lambda models, sounds, tmp_path: ["no/such.onnx", sounds],
        "no/such.onnx is no file",
    ),
    "no column": (
        lambda models, sounds, tmp_path: [
            *[
                models["folder"],
                _csv(lambda place: CLASSES[place])(sounds, tmp_path)[0],
            ],
            *["--label-column", "sort"],
        ],
        r"has no column 'sort' \(--label-column\); its columns are file, kind",
    ),
    "no split": (
        lambda models, sounds, tmp_path: [models["folder"], sounds, "--split", "test"],
        "split=test was given, but the data has no column of splits",
    ),
    "both": (
        lambda models, sounds, tmp_path: [
            *[models["folder"], sounds, "--split", "test", "--fold", "1"]
        ],
        "split and fold were given, but each chooses the clips",
    ),
    "labels": (
        lambda models, sounds, tmp_path: [models["onnx"], sounds, "--labels", "x.csv"],
        "contains its own labels; leave out --labels",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_scored_is_refused_in_a_sentence(
    models, sounds, tmp_path, capsys, why
):
    make, message = REFUSED[why]
    arguments = make(models, sounds, tmp_path)
    assert _evaluate(*arguments, output=tmp_path / "out") == 2
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert re.search(message, last), last
    assert "Traceback" not in err and not (tmp_path / "out" / "scores.json").exists()


def test_data_that_is_read_once_is_talked_of_once(models, sounds, tmp_path, caplog):
    shutil.copytree(models["run"], tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"test": "others", "segments": true}')
    shutil.copytree(sounds, tmp_path / "sounds")
    (tmp_path / "sounds" / "notes.txt").touch()
    caplog.set_level("INFO")
    output = tmp_path / "scores"
    assert _evaluate(tmp_path / "run", tmp_path / "sounds", output=output) == 0
    assert caplog.text.count("1 file that is no sound") == 1


# --- Which clips ----------------------------------------------------------------


def _rows(**columns):
    columns = {"video_id": list("abcdef"), "labels": [["x"], ["y"]] * 3} | columns
    return datasets.Dataset.from_dict(columns)


def test_the_test_clips_are_scored_where_the_data_names_them():
    split = ["train", "test", "train", "test", "valid", "test"]
    rows = _rows(split=split)
    assert choose_clips(rows).rows["video_id"][:] == ["b", "d", "f"]
    assert choose_clips(rows, split="valid").rows["video_id"][:] == ["e"]
    assert choose_clips(rows, split="all").rows["video_id"][:] == list("abcdef")
    with pytest.raises(ValueError, match=r"split=tests .*test \(3\), train \(2\)"):
        choose_clips(rows, split="tests")
    # What others call "dev" may be any side
    assert len(choose_clips(_rows(split=["dev", "eval"] * 3)).rows) == 6
    folds = _rows(fold=list("112233"))
    assert choose_clips(folds).what == "all 6 clips"
    assert choose_clips(folds, fold="2").rows["video_id"][:] == ["c", "d"]


def _given(rows):
    return given_split(rows)


def _second_fold(rows):
    return split_by_fold(rows, "2", "1")


def _at_random(rows):
    return split_rows(rows, 0.0, 0.3, seed=7)


@pytest.mark.parametrize("split", [_given, _second_fold, _at_random])
def test_the_test_clips_of_the_models_own_run_are_found(split):
    """However it split its data; of other data nothing is assumed."""
    number = list(range(12))
    rows = datasets.Dataset.from_dict(
        {
            "video_id": [f"clip {n}" for n in number],
            "labels": [[str(n % 2)] for n in number],
            "split": [("train", "test", "valid")[n % 3] for n in number],
            "fold": [str(1 + n // 4) for n in number],
        }
    )
    sides = split(rows)
    run = {"seed": 7, "test_share": 0.3} | split_digest(rows, sides)
    found = choose_clips(rows, run=run)
    assert found.rows["video_id"][:] == rows.select(sides.test)["video_id"][:]
    assert "that the run of this model was tested on" in found.what
    assert choose_clips(rows, split="all", run=run).what == "all 12 clips"
    others = {"video_id": [f"other {n}" for n in number]}
    other = datasets.Dataset.from_dict(rows.to_dict() | others)
    assert "was tested on" not in choose_clips(other, run=run).what
    drawn = choose_clips(rows, test_share=0.3, seed=7).rows["video_id"][:]
    assert drawn == rows.select(_at_random(rows).test)["video_id"][:]
