"""How the command line loads a model: by name, file, folder, exported file."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import RATE, STATED, parsed, small_model, tags_of
from exported_models import content_of, random_weights, source_of

from efficientat_plugin.cli import main
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import Provenance, write_model_folder
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.load import load_teacher, open_teachers


def test_an_ensemble_is_named_with_commas(capsys, model, tagger, five):
    sound = str(five / "0.wav")
    models = f"{model},{model}"
    options = ["--top", "1", "--format", "jsonl", "--device", "cpu"]
    assert main(["tag", sound, "--model", models, *options]) == 0
    tag = json.loads(capsys.readouterr().out)["tags"][0]
    assert tag["name"] == tagger.tag(sound)[0].name  # the mean of two alike
    assert main(["info", models, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("MN of width 0.1") == 2


def test_a_folder_without_a_model_is_refused(capsys, five):
    assert main(["tag", str(five / "0.wav"), "--model", str(five)]) == 2
    assert "has no hyperparams.yaml" in capsys.readouterr().err


def test_the_folder_of_a_run_leads_to_its_model(capsys, tmp_path, five):
    run = tmp_path / "run"
    run.mkdir()
    (run / "hyperparams.yaml").write_text("output_folder: run\nwidth: 0.1\n")
    for ask in (load_student, load_teacher, AudioTagger.from_hparams, find_source):
        with pytest.raises(FileNotFoundError, match="without a model yet; let"):
            ask(str(run))
    assert main(["info", str(run)]) == 2
    assert "is a run folder without a model" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="is a run folder without a model"):
        open_teachers(str(run))
    write_model_folder(run / "model", small_model(), Provenance("m", None, "", "", {}))
    printed = []
    for model in (run, run / "model", run / "model" / "student.ckpt"):
        assert main(["tag", str(five / "0.wav"), "--model", str(model)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] and "Ay" in printed[0]
    assert open_teachers(str(run)).labels.names == ("Ay", "Bee")


def test_labels_name_the_classes_of_a_file(capsys, tmp_path, five):
    path, table = tmp_path / "student.pt", tmp_path / "labels.csv"
    torch.save(MN(2, width=0.1).state_dict(), path)
    table.write_text('index,mid,display_name\n1,b,Bee\n0,a,"Ay, that"\n')
    command = ["tag", str(five / "0.wav"), "--model", str(path), "--device", "cpu"]
    command += STATED
    form = ["--format", "csv", "--labels"]
    assert main([*command, *form, str(table)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(row["mid"], row["name"]) for row in rows} == {
        ("a", "Ay, that"),
        ("b", "Bee"),
    }
    table.write_text("no,such,columns\n1,2,3\n")
    assert main([*command, *form, str(table)]) == 2
    assert "is not a table of labels" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["options", "yaml"])
def test_the_front_end_of_a_file_is_stated(capsys, tmp_path, five, form):
    model, path = small_model(), tmp_path / "own.pt"
    torch.save(model.student.state_dict(), path)
    write_model_folder(tmp_path / "model", model, Provenance("m", None, "", "", {}))
    front_end = "n_mels=64,hop_length=640"
    if form == "yaml":
        front_end = tmp_path / "front_end.yaml"
        front_end.write_text("n_mels: 64\nhop_length: 640\n")
    command = ["tag", str(five / "0.wav"), "--format", "csv", "--model"]
    stated = ["--front-end", str(front_end), "--clip-seconds", "1"]
    stated += ["--labels", str(tmp_path / "model" / "labels.csv")]
    assert main([*command, str(path), *stated]) == 0
    expected = capsys.readouterr().out
    assert main([*command, str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == expected
    for left_out in range(0, len(stated), 2):
        some = stated[:left_out] + stated[left_out + 2 :]
        assert main([*command, str(path), *some]) == 2
        err = capsys.readouterr().err
        assert f"pass {stated[left_out]} " in err and len(err.splitlines()) == 1
    for known in (str(tmp_path / "model"), "mn04_as"):
        assert main([*command, known, *stated[:2]]) == 2
        assert "leave out --front-end" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "64", "n_mels", "n_mels=[1]", "n_mels: {"])
def test_what_is_no_front_end_is_refused(capsys, text):
    assert main(["tag", "a.wav", "--front-end", text]) == 2
    assert "give NAME=VALUE joined by commas" in capsys.readouterr().err


def test_a_folder_that_names_code_is_run_when_it_is_trusted(capsys, tmp_path, model):
    path = tmp_path / "hyperparams.yaml"
    path.write_text(f"""
x: !apply:os.mkdir [{tmp_path / "made"}]
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
""")
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "'!apply:os.mkdir'" in error and "--trust" in error
    assert not (tmp_path / "made").exists()
    assert main(["info", str(tmp_path), "--trust"]) == 2  # it has no modules
    assert (tmp_path / "made").is_dir()


@pytest.fixture(scope="module", params=["in", "out"])
def exported(request, tmp_path_factory):
    """A small student, and the ONNX file that it was exported to."""
    source = source_of(random_weights(MN(7, width=0.1)), clip_seconds=1.0)
    path = tmp_path_factory.mktemp("exported") / f"{request.param}.ONNX"
    path.write_bytes(content_of(source, front_end=request.param))
    model = source.model
    settings = {name: getattr(model, name) for name in EXPORTED_SETTINGS}
    settings["sample_rate"] = RATE
    parts = {"student": model.student, "log_mel": source.log_mel}
    return AudioTagger(parts, settings, {"device": "cpu"}), path


EXPORTED_SETTINGS = ("labels", "clip_seconds", "target", "short_clips")


WITHOUT_TORCH = """
import sys

for name in ("torch", "torchaudio", "speechbrain", "datasets", "onnx", "scipy"):
    sys.modules[name] = None  # importing it raises
from efficientat_plugin.cli import main

model, sounds, folder = sys.argv[1:]
sound = f"{sounds}/0.wav"
for command in (
    ["tag", sounds],
    ["tag", sounds, "--format", "csv", "--output", f"{folder}/tags.csv"],
    ["tag", sounds, "--device", "cpu"],
    ["scan", sound, "--window", "0.1", "--threshold", "0"],
    ["scan", sound, "--figure", f"{folder}/scan.png"],
    ["embed", sounds, "--output", f"{folder}/embeddings.npz"],
    ["embed", sounds, "--output", f"{folder}/embeddings.parquet"],
):
    assert main([*command, "--model", model]) == 0, command
assert main(["info", model]) == 0
"""


def test_an_exported_file_needs_no_torch(exported, five, tmp_path):
    """Not even where torch is installed: whoever asks for it fails."""
    tagger, path = exported
    command = [sys.executable, "-c", WITHOUT_TORCH, path, five, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = parsed((tmp_path / "tags.csv").read_text(), "csv")[0]
    assert len(found) == 5
    for sound, tags in found.items():
        assert dict(tags) == pytest.approx(dict(tags_of(tagger, sound, 7)), abs=1e-4)
    with np.load(tmp_path / "embeddings.npz") as content:
        assert content["embeddings"].shape == (5, 96)
        assert json.loads(str(content["settings"]))["sources"] == ["embedding"]
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "7, multilabel" in done.stdout and "MN of width 0.1" in done.stdout
    assert not list(tmp_path.glob("*.part*"))


def test_an_exported_file_says_what_its_student_says(exported, five, capsys):
    tagger, path = exported
    options = ["--model", str(path), "--format", "jsonl"]
    assert main(["tag", str(five), *options]) == 0
    found = parsed(capsys.readouterr().out, "jsonl")[0]
    runtime = Tagger(path)
    for sound, tags in found.items():
        for one in (tagger, runtime):
            assert dict(tags) == pytest.approx(dict(tags_of(one, sound, 7)), abs=1e-4)
    sound = str(five / "4.wav")
    options += ["--window", "0.25", "--threshold", "0", "--top", "7"]
    assert main(["scan", sound, *options]) == 0
    windows = map(json.loads, capsys.readouterr().out.splitlines())
    for window, expected in zip(windows, tagger.scan(sound, None, 0.25), strict=True):
        assert window["start_seconds"] == expected.start_seconds
        by_name = {tag["name"]: tag["probability"] for tag in window["tags"]}
        expected_by_name = zip(tagger.labels.names, expected.probabilities, strict=True)
        assert by_name == pytest.approx(dict(expected_by_name), abs=1e-4)


REFUSED_OF_EXPORTED = [
    (["--labels", "x.csv"], "contains its own labels; leave out --labels"),
    (["--device", "cuda:0"], "runs on the CPU; leave out --device cuda:0"),
    (["--trust"], "leave out --trust"),
    (["--clip-seconds", "2"], "leave out --front-end, --clip-seconds and --target"),
    (["--model", "mn04_as,{}"], "cannot be part of an ensemble"),
    (["--model", "{},{}"], "cannot be part of an ensemble"),
    (["--model", "no/such.onnx"], "no/such.onnx is no file"),
    (["--model", "no/such.tflite"], "export the model with --format onnx"),
]


LAYERS = [
    (["--pooling", "max"], "leave out --pooling"),
    (["--sources", "b5"], "leave out --sources"),
]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *(("tag", *each) for each in REFUSED_OF_EXPORTED),
        *(("embed", *each) for each in LAYERS),
    ],
)
def test_options_without_meaning_for_an_exported_file_are_refused(
    exported, five, tmp_path, capsys, command, options, message
):
    _, path = exported
    options = [option.replace("{}", str(path)) for option in options]
    output = ["--output", str(tmp_path / "x.npz")]
    assert main([command, "--model", str(path), str(five), *output, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_an_exported_file_is_not_to_be_deleted(tmp_path, suffix):
    """Whoever wants weights of it learns what it is for."""
    path = tmp_path / f"student{suffix}"
    path.write_bytes(b"a graph")
    for load in (load_student, AudioTagger.from_student, find_source):
        with pytest.raises(ValueError, match="is an exported model.*Tagger") as refused:
            load(path)
        assert "delete" not in str(refused.value)
