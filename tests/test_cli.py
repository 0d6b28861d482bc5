"""The command line says of sounds what the tagger says, and what it could not read."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import tqdm
from exported_models import content_of, random_weights, source_of
from pyarrow import parquet

from efficientat_plugin import __version__, list_students
from efficientat_plugin.cli import inputs, main
from efficientat_plugin.cli import resumed_output as parts
from efficientat_plugin.cli.figure import PairedColumns
from efficientat_plugin.cli.label_track import LabelMerger
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.plain_text import shown
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.load import load_teacher, open_teachers

RATE = 32000
# What no file of weights tells
STATED = ["--front-end", "n_mels=128,hop_length=320", "--clip-seconds", "10"]


def _sound(seconds, seed=0):
    """Noise whose spectrum wanders, so that its parts differ."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(seconds * RATE))
    time = np.arange(len(sound)) / RATE
    return (0.1 * sound * np.sin(2 * np.pi * 0.7 * time)).astype(np.float32)


def _write(path, seconds=1.0, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _sound(seconds, seed), RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small student in a file of a published name; its numbers are random."""
    student = random_weights(MN(527, width=0.1))
    path = tmp_path_factory.mktemp("model") / "mn01_as_mAP_298.pt"
    torch.save(student.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tagger(model):
    return AudioTagger.from_student(model, run_opts={"device": "cpu"})


@pytest.fixture
def folder(tmp_path):
    """Two good sounds, and a corrupt, an empty and a written one."""
    folder = tmp_path / "sounds"
    good = _write(folder / "good.wav", 1.0)
    _write(folder / "below" / "also.flac.wav", 0.5, seed=1)
    (folder / "corrupt.wav").write_bytes(good.read_bytes()[:20])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("This is no sound.")
    (folder / "notes.txt").write_text("No sound by its name, so not even tried.")
    return folder


@pytest.fixture
def five(tmp_path):
    folder = tmp_path / "five"
    for number in range(5):
        _write(folder / f"{number}.wav", 0.2 * (number + 1), seed=number)
    return folder


@pytest.fixture
def run(model, capsys):
    """Runs a command with the small student: exit code, stdout, stderr."""

    def run(command, *rest):
        options = [] if command in ("list", "info") else ["--model", model]
        options += [] if command == "list" else ["--device", "cpu"]
        code = main([command, *map(str, rest), *map(str, options)])
        return code, *capsys.readouterr()

    return run


# --- list, info, help -----------------------------------------------------------


def test_list_has_every_published_student(run):
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list_students()
    code, out, _ = run("list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert list(entries) == list_students()
    assert entries["mn04_as"]["mAP"] == 43.2 and entries["mn04_as"]["width"] == 0.4
    assert entries["mn10_as_hop_5"]["front_end"]["hop_length"] == 160


def test_list_imports_nothing_heavy():
    program = (
        "import sys; from efficientat_plugin.cli import main; main(['list']);"
        "heavy = {'torch', 'numpy', 'speechbrain', 'matplotlib', 'datasets'};"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "efficientat_plugin.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"efficientat {__version__}\n")


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m efficientat_plugin.cli list | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_info_says_what_a_model_is_and_costs(run, model):
    code, out, _ = run("info", model)
    facts = dict(re.split(r":\s+", line, maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert facts["student"] == "MN of width 0.1"
    assert facts["classes"] == "527, multilabel"
    assert facts["front end"].startswith("32000 Hz, 128 mel bands")
    of_student = sum(p.numel() for p in MN(527, width=0.1).parameters())
    assert facts["trainable parameters"] == f"{of_student:,}"


# --- tag ------------------------------------------------------------------------


def _tags_of(tagger, path, top):
    return [(tag.name, tag.probability) for tag in tagger.tag(path, top_k=top)]


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_every_format_says_what_the_tagger_says(
    run, tagger, five, tmp_path, form, to_file
):
    target = tmp_path / "results"
    output = ["--output", target] if to_file else []
    code, out, _ = run("tag", five, "--top", 3, "--format", form, *output)
    assert code == 0
    if to_file:
        assert out == ""
        out = target.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.part"))
    found, atol = _parsed(out, form)
    assert list(found) == [str(five / f"{number}.wav") for number in range(5)]
    for path, tags in found.items():
        expected = _tags_of(tagger, path, 3)
        assert [name for name, _ in tags] == [name for name, _ in expected]
        for (_, one), (_, other) in zip(tags, expected, strict=True):
            assert one == pytest.approx(other, abs=atol)


def _parsed(text, form):
    found = {}
    if form == "jsonl":
        for line in text.splitlines():
            entry = json.loads(line)
            tags = [(tag["name"], tag["probability"]) for tag in entry["tags"]]
            found[entry["sound"]] = tags
        return found, 1e-5
    if form == "csv":
        for row in csv.DictReader(io.StringIO(text)):
            tag = (row["name"], float(row["probability"]))
            found.setdefault(row["sound"], []).append(tag)
        return found, 1e-5
    for line in text.splitlines():
        if line.startswith("  "):
            probability, name = line.split(maxsplit=1)
            tags.append((name, float(probability)))
        else:
            tags = found.setdefault(line, [])
    return found, 6e-4


def test_a_bad_file_does_not_stop_the_others(run, folder):
    code, out, err = run("tag", folder, "--format", "jsonl", "--batch-size", 2)
    heard = [json.loads(line)["sound"] for line in out.splitlines()]
    assert heard == [str(folder / "below/also.flac.wav"), str(folder / "good.wav")]
    assert code == 1
    for name in ("corrupt.wav", "empty.wav", "text.wav"):
        assert re.search(rf"{name}: not decodable: \S", err)
    assert "3 of 5 inputs could not be read" in err and "Traceback" not in err
    assert "notes.txt" not in err


@pytest.mark.parametrize("command", ["tag", "scan", "embed"])
def test_a_file_of_undivided_integers_does_not_stop_the_others(run, command, tmp_path):
    _write(tmp_path / "sounds" / "good.wav")
    loud = tmp_path / "sounds" / "loud.wav"
    soundfile.write(loud, 32768 * _sound(1.0), RATE, subtype="FLOAT")
    (tmp_path / "sounds" / "none.mp3").touch()
    output = tmp_path / ("found" + (".npz" if command == "embed" else ".csv"))
    code, _, err = run(command, tmp_path / "sounds", "--output", output)
    assert code == 1 and output.exists() and "2 of 3 inputs could not be read" in err
    assert re.search(r"loud.wav: it has samples .* full scale is 1; .* by 32768", err)
    assert "none.mp3: not decodable: the file is empty" in err


def test_nothing_readable_leaves_what_was_there(run, folder, tmp_path):
    target = tmp_path / "results.csv"
    target.write_text("of before")
    code, _, err = run("tag", folder / "empty.wav", "--output", target)
    assert code == 2 and "nothing could be read" in err
    assert target.read_text() == "of before"
    assert not list(tmp_path.glob("*.part"))


def test_what_is_not_there_is_named(run, folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    given = [tmp_path / "absent.wav", bare, pipe]
    code, _, err = run("tag", *given, folder / "good.wav")
    assert code == 1
    assert "absent.wav: there is no such file" in err
    assert "bare: the folder contains no sound" in err
    assert "pipe.wav: it is not a file" in err
    assert run("tag", *given)[0] == 2


def test_names_that_are_not_utf_8_are_told(run, tmp_path):
    content = _write(tmp_path / "odd" / "a.wav", 0.1).read_bytes()
    try:
        with open(os.fsencode(tmp_path / "odd") + b"/\xff.wav", "wb") as file:
            file.write(content)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    code, out, err = run("tag", tmp_path / "odd", "--format", "csv", "--top", 1)
    assert code == 1 and len(out.splitlines()) == 2
    assert r"\udcff.wav: its name is not UTF-8; rename it" in err


def test_a_sound_given_twice_is_heard_once(run, five):
    _, out, _ = run("tag", five / "0.wav", five, "--format", "jsonl")
    assert len(out.splitlines()) == 5


def test_long_sounds_are_heard_as_short_ones(run, five, monkeypatch):
    options = (five, "--format", "jsonl", "--batch-size", 3)
    _, short, _ = run("tag", *options)
    monkeypatch.setattr(inputs, "SHORT_SECONDS", 0.5)
    _, long, _ = run("tag", *options)
    one, other = _parsed(short, "jsonl")[0], _parsed(long, "jsonl")[0]
    assert list(one) == list(other)
    for path, tags in one.items():
        assert dict(tags) == pytest.approx(dict(other[path]), abs=1e-5)


def test_an_ensemble_is_named_with_commas(capsys, model, tagger, five):
    sound = str(five / "0.wav")
    models = f"{model},{model}"
    options = ["--top", "1", "--format", "jsonl", "--device", "cpu"]
    assert main(["tag", sound, "--model", models, *options]) == 0
    tag = json.loads(capsys.readouterr().out)["tags"][0]
    assert tag["name"] == tagger.tag(sound)[0].name  # the mean of two alike
    assert main(["info", models, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("MN of width 0.1") == 2


def test_a_folder_of_hyperparams_is_a_model(capsys, tmp_path, five):
    student = MN(2, width=0.1)
    torch.save(student.state_dict(), tmp_path / "student.ckpt")
    (tmp_path / "hyperparams.yaml").write_text(
        """
student: !new:efficientat_plugin.MN
    num_classes: 2
    width: 0.1
modules:
    student: !ref <student>
    log_mel: !new:efficientat_plugin.LogMel
labels: !new:efficientat_plugin.LabelTable
    mids: [a, b]
    names: [Ay, Bee]
sample_rate: 32000
clip_seconds: 1.0
target: multiclass
short_clips: repeat
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        student: !ref <student>
"""
    )
    options = ["--model", str(tmp_path), "--device", "cpu", "--format", "jsonl"]
    assert main(["tag", str(five / "0.wav"), *options]) == 0
    tags = json.loads(capsys.readouterr().out)["tags"]
    assert {tag["name"] for tag in tags} == {"Ay", "Bee"}
    assert sum(tag["probability"] for tag in tags) == pytest.approx(1.0, abs=1e-5)
    code = main(["tag", str(five / "0.wav"), "--model", str(five)])
    assert code == 2 and "has no hyperparams.yaml" in capsys.readouterr().err


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
    said = []
    for model in (run, run / "model", run / "model" / "student.ckpt"):
        assert main(["tag", str(five / "0.wav"), "--model", str(model)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and "Ay" in said[0]
    assert open_teachers(str(run)).labels.names == ("Ay", "Bee")


def small_model():
    student = MN(2, width=0.1)
    student.front_end = {"sample_rate": 32000, "n_mels": 64, "hop_length": 640}
    return TrainedModel(
        student, LabelTable(["a", "b"], ["Ay", "Bee"]), "multilabel", 1.0
    )


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
    said = capsys.readouterr().out
    assert main([*command, str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == said
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


def test_names_cannot_break_a_line_or_command_a_terminal(run, tmp_path):
    name = "a\tb\nc\x1b[31m\u202e,d.wav"
    _write(tmp_path / "odd" / name, 0.1)
    escaped = r"a\tb\nc\x1b[31m\u202e,d.wav"
    assert shown(name) == escaped
    for form in ("table", "csv"):
        _, out, _ = run("tag", tmp_path / "odd", "--top", 1, "--format", form)
        assert escaped in out and len(out.splitlines()) == 2
    rows = list(csv.DictReader(io.StringIO(out)))
    assert rows[0]["sound"].endswith(escaped)
    _, out, _ = run("tag", tmp_path / "odd", "--format", "jsonl")
    assert json.loads(out)["sound"].endswith(name)


def test_no_class_is_a_formula_or_commands_a_terminal(capsys, tmp_path, five):
    names = ["=HYPERLINK(A1)", "\x1b]0;mine\x07", "+1|x"]
    torch.save(MN(3, width=0.1).state_dict(), tmp_path / "three.pt")
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "mid", "display_name"])
        table.writerows([k, f"@{k}()", name] for k, name in enumerate(names))
    options = ["--model", tmp_path / "three.pt", "--labels", tmp_path / "labels.csv"]
    options += ["--device", "cpu", "--format", "csv", *STATED]
    assert main(["tag", *map(str, [five / "0.wav", *options])]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["name"][0] for row in rows} == {"'", "\\"}
    assert {row["mid"] for row in rows} == {"'@0()", "'@1()", "'@2()"}


@pytest.mark.parametrize("start", ["-", "@", "+", "="])
def test_a_path_in_a_table_leads_to_its_file(
    capsys, model, tmp_path, monkeypatch, start
):
    monkeypatch.chdir(tmp_path)
    name = f"{start}a(b).wav"
    _write(tmp_path / name, 0.1)
    options = ["--model", str(model), "--top", "1", "--format", "csv"]
    assert main(["tag", *options, "--", name]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["sound"] == f"./{name}"
    assert (tmp_path / row["sound"]).is_file()


def test_a_name_that_stdout_lacks_is_escaped(run, tmp_path, monkeypatch):
    for name in ("a", "é", "z"):
        _write(tmp_path / f"{name}.wav", 0.1)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    code, *_ = run("tag", tmp_path, "--top", 1)
    sys.stdout.flush()
    lines = written.getvalue().decode("ascii").split("\n")
    found = [Path(line).name for line in lines if "wav" in line]
    assert code == 0 and found == ["a.wav", "z.wav", "\\xe9.wav"]


@pytest.mark.parametrize("command", ["tag", "export", "info"])
def test_weights_that_are_not_finite_are_an_error(capsys, model, tmp_path, command):
    state = torch.load(model)
    name = list(state)[0]
    state[name].view(-1)[0] = float("nan")
    path = tmp_path / model.name
    torch.save(state, path)
    sound = _write(tmp_path / "a.wav", 0.1)
    argv = {"tag": [sound, "--model", path], "export": [path], "info": [path]}
    assert main([command, *map(str, argv[command])]) == 2
    said = capsys.readouterr().err
    assert f"numbers in {name} that are not finite" in said and said.count("\n") == 1


def test_an_error_does_not_command_a_terminal(capsys, tmp_path):
    (tmp_path / "hyperparams.yaml").write_text("pretrainer: !new:%1b[2Jx.y")
    for model in (tmp_path, "no\x1b[2Jname", tmp_path / "\x1b[2J.pt"):
        assert main(["info", str(model)]) == 2
        error = capsys.readouterr().err
        assert "\x1b" not in error and r"\x1b[2J" in error
        assert error.startswith("efficientat: ") and error.count("\n") == 1


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


def test_the_published_checkpoint_hears_the_metro(shared, capsys):
    checkpoint = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    sound = shared / "audio" / "metro_station-paris.wav"
    options = ["--model", str(checkpoint), "--device", "cpu"]
    assert main(["tag", str(sound), *options]) == 0
    first = capsys.readouterr().out.splitlines()[1]
    probability, name = first.split(maxsplit=1)
    assert name == "Train" and float(probability) == pytest.approx(0.727, abs=0.01)


# --- scan -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_a_scan_says_what_the_tagger_scans(run, tagger, tmp_path, form):
    sound = _write(tmp_path / "long.wav", 3.3)
    windows = ["--window", 1.0, "--hop", 0.5]
    options = [*windows, "--threshold", 0, "--top", 1, "--format", form]
    code, out, err = run("scan", sound, *options)
    assert (code, err) == (0, "")
    expected = list(tagger.scan(sound, window_seconds=1.0, hop_seconds=0.5))
    names = [audioset_labels().names[w.probabilities.argmax()] for w in expected]
    if form == "jsonl":
        entries = [json.loads(line) for line in out.splitlines()]
        found = [
            (e["start_seconds"], e["end_seconds"], e["tags"][0]["name"])
            for e in entries
        ]
    elif form == "csv":
        found = [
            (float(row["start_seconds"]), float(row["end_seconds"]), row["name"])
            for row in csv.DictReader(io.StringIO(out))
        ]
    else:
        cells = [line.split(maxsplit=2) for line in out.splitlines()[1:]]
        found = [(float(a), float(b), text.rsplit(" ", 1)[0]) for a, b, text in cells]
    assert [name for *_, name in found] == names
    for (start, end, _), window in zip(found, expected, strict=True):
        assert start == pytest.approx(window.start_seconds, abs=0.01)
        assert end == pytest.approx(window.end_seconds, abs=0.01)


def test_an_audacity_track_covers_the_windows_above_the_threshold(
    run, tagger, tmp_path
):
    sound = _write(tmp_path / "long.wav", 3.3)
    windows = list(tagger.scan(sound, window_seconds=1.0, hop_seconds=0.5))
    scores = np.stack([window.probabilities for window in windows])
    threshold = float(np.quantile(scores.max(axis=1), 0.5))
    options = ["--window", 1.0, "--threshold", threshold, "--format", "audacity"]
    code, out, _ = run("scan", sound, *options)
    assert code == 0
    labels = [line.split("\t") for line in out.splitlines()]
    for window in windows:
        where = (window.start_seconds, window.end_seconds)
        covering = {
            name
            for start, end, name in labels
            if float(start) <= where[0] + 1e-5 and where[1] - 1e-5 <= float(end)
        }
        above = {
            audioset_labels().names[k]
            for k in np.flatnonzero(window.probabilities >= threshold)
        }
        assert above <= covering
    by_class = {}
    for start, end, name in labels:  # those of a class neither touch nor overlap
        by_class.setdefault(name, []).append((float(start), float(end)))
    assert by_class
    for spans in by_class.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1e-5 for a, b in zip(spans, spans[1:], strict=False))


def test_windows_of_a_class_become_one_label():
    merger = LabelMerger(["x"])
    found = []
    # above, above, below, below, above; then apart
    for start, classes in enumerate([[0], [0], [], [], [0], [], [], []]):
        found += merger.add(start / 2, start / 2 + 1, classes)
    found += merger.finish()
    assert [label[:2] for label in found] == [(0.0, 1.5), (2.0, 3.0)]
    # One window below between two that overlap
    for start, classes in enumerate([[0], [], [0]]):
        assert merger.add(float(start), start + 4.0, classes) == []
    assert [label[:2] for label in merger.finish()] == [(0.0, 6.0)]


def test_a_figure_is_a_png(run, tmp_path):
    sound = _write(tmp_path / "cost $5 _ ^2$ \u6f22.wav", 2.3)
    target = tmp_path / "scan.png"
    options = ["--window", 1.0, "--figure", target]
    code, out, err = run("scan", sound, *options)
    assert (code, err) == (0, "") and out
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    code, _, err = run("scan", sound, sound.parent, "--figure", tmp_path / "x.jpg")
    assert code == 2 and "must end in .png" in err


def test_columns_are_means_however_many_there_are():
    for number in (1, 7, 8, 9, 100, 1000):
        columns = PairedColumns(limit=8)
        for value in range(number):
            columns.add(np.array([value, 1.0]))
        found = columns.columns()
        assert len(found) <= 9 and (found[:, 1] == 1).all()
        assert (np.diff(found[:, 0]) > 0).all()
        assert found[0, 0] < number / 2 or number == 1


def test_a_scan_goes_as_far_as_it_can(run, folder):
    code, out, err = run("scan", folder, "--window", 0.5, "--format", "csv")
    assert code == 1 and "3 of 5 inputs could not be read" in err
    assert out.startswith("sound,start_seconds,end_seconds,name,mid,probability\n")


def test_what_comes_before_a_fault_is_written(run, tmp_path):
    sound, target = tmp_path / "cut.flac", tmp_path / "found.jsonl"
    soundfile.write(sound, _sound(12.0), RATE)
    content = sound.read_bytes()
    sound.write_bytes(content[: len(content) // 2])
    figure = tmp_path / "scan.png"
    options = ["--window", 1, "--batch-size", 2, "--format", "jsonl"]
    files = ["--output", target, "--figure", figure]
    code, _, err = run("scan", sound, *options, *files)
    assert code == 1 and "1 of 1 inputs could not be read" in err
    assert re.search(r"cut.flac: read until \d\.\d\d s, then: not decodable", err)
    windows = [json.loads(line) for line in target.read_text().splitlines()]
    assert windows[0]["start_seconds"] == 0 and windows[-1]["end_seconds"] < 7
    assert figure.exists()
    assert run("tag", sound)[0] == 2  # half a sound is not tagged as a whole


@pytest.mark.parametrize("option", [["--format", "audacity"], ["--figure", "x.png"]])
def test_what_is_of_one_sound_takes_one(run, five, tmp_path, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("scan", five, *option)
    assert code == 2 and "takes one sound, 5 were given" in err


# --- embed ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_embeddings_are_those_of_the_tagger(run, tagger, five, tmp_path, suffix):
    target = tmp_path / f"embeddings.{suffix}"
    assert run("embed", five, "--output", target, "--workers", 3)[0] == 0
    if suffix == "npz":
        with np.load(target) as content:
            names, embeddings = content["names"].tolist(), content["embeddings"]
            settings = json.loads(str(content["settings"]))
    else:
        table = parquet.read_table(target)
        names = table["name"].to_pylist()
        embeddings = np.array(table["embedding"].to_pylist(), np.float32)
        settings = json.loads(table.schema.metadata[b"settings"])
    assert names == [f"{number}.wav" for number in range(5)]
    for name, embedding in zip(names, embeddings, strict=True):
        np.testing.assert_allclose(embedding, tagger.embed(five / name), atol=1e-6)
    assert settings["model_sha256"] == tagger.ensemble.sha256()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"embeddings.{suffix}",
        "five",
    ]


@pytest.mark.parametrize("hop", [0.04, 0.25, 0.5])
def test_the_bar_of_a_scan_ends_with_the_sound(run, tmp_path, monkeypatch, hop):
    reached = []

    class Bar(tqdm.tqdm):
        def close(self):
            reached.append(self.n)
            super().close()

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr("efficientat_plugin.cli.scan.hides_progress", lambda _: False)
    sound = _write(tmp_path / "sound.wav", 3.0)
    assert run("scan", sound, "--window", 1, "--hop", hop)[0] == 0
    assert reached[0] == 3.0


@pytest.fixture
def killed_at(monkeypatch):
    """Lets the next run die when it comes to its n-th sound, counted from 0."""
    embed = AudioTagger.embed

    def die_at(number, error):
        calls = iter(range(-1, 1000))  # the first is the check of the options

        def dying(self, *args, **options):
            if next(calls) == number:
                raise error
            return embed(self, *args, **options)

        monkeypatch.setattr(AudioTagger, "embed", dying)

    return die_at


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    run, five, tmp_path, killed_at, monkeypatch, suffix
):
    alone, target = tmp_path / f"alone.{suffix}", tmp_path / f"killed.{suffix}"
    assert run("embed", five, "--output", alone)[0] == 0
    kept = tmp_path / f"killed.{suffix}.parts"

    # Killed outright: what is in no part yet is lost, and a part is half written.
    monkeypatch.setattr(parts, "PART_SOUNDS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(parts.ResultParts, "flush", _flush_only_full_parts)
        killed_at(3, MemoryError("killed"))
        assert run("embed", five, "--output", target)[0] == 2
    (kept / ".part-000001.npz-0a1b2c3d.part").write_bytes(b"half a part")
    assert [path.name for path in kept.glob("*.npz")] == ["part-000000.npz"]

    killed_at(1, KeyboardInterrupt())  # the second of the three that are left
    code, _, err = run("embed", five, "--output", target)
    assert code == 130 and f"{target}.parts" in err and "resume from there" in err
    assert not target.exists()

    killed_at(99, None)
    assert run("embed", five, "--output", target)[0] == 0
    assert target.read_bytes() == alone.read_bytes()
    assert not kept.exists()


def _tagged(path):
    """Likeliest class and its probability, by sound."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = {Path(line["sound"]).name: line["tags"][0] for line in lines}
    return {name: (tag["name"], tag["probability"]) for name, tag in first.items()}


@pytest.fixture
def interrupted_at(monkeypatch):
    """Interrupts the n-th time that sounds are tagged; how many were, each time."""
    heard, probabilities = [], AudioTagger.probabilities

    def interrupt_at(number):
        def dying(self, sounds, *args):
            heard.append(len(sounds))
            if len(heard) == number:
                raise KeyboardInterrupt
            return probabilities(self, sounds, *args)

        monkeypatch.setattr(AudioTagger, "probabilities", dying)
        return heard

    return interrupt_at


def test_killed_tagging_goes_on_to_the_same_tags(
    run, tagger, five, tmp_path, interrupted_at, monkeypatch
):
    (five / "3b.wav").write_text("no sound")
    words = ("tag", five, "--batch-size", 2, "--format", "jsonl", "--output")
    alone, target = tmp_path / "alone.jsonl", tmp_path / "killed.jsonl"
    assert run(*words, alone)[0] == 1
    expected = {path.name: tagger.tag(path)[0] for path in five.glob("?.wav")}
    found = _tagged(alone)
    assert len(set(found.values())) == len(found) == 5  # they differ
    for name, tag in expected.items():
        assert found[name] == (tag.name, pytest.approx(tag.probability, abs=2e-6))
    heard = interrupted_at(2)
    code, _, err = run(*words, target)
    assert code == 130 and "resume from there" in err
    assert not target.exists() and (tmp_path / "killed.jsonl.parts").is_dir()
    monkeypatch.chdir(five)
    code, _, err = run("tag", ".", *words[2:], target)  # by another name
    assert code == 1 and "3b.wav: " in err and "1 of 6 inputs" in err
    assert heard == [2, 2, 2, 1]  # the first two were heard already
    assert _tagged(target) == found
    assert not (tmp_path / "killed.jsonl.parts").exists()


def test_each_long_sound_that_was_tagged_is_kept(
    run, five, tmp_path, interrupted_at, monkeypatch
):
    monkeypatch.setattr(inputs, "SHORT_SECONDS", 0.5)  # the last three are longer
    heard = interrupted_at(3)
    words = ("tag", five, "--output", tmp_path / "x.csv")
    assert run(*words)[0] == 130
    assert run(*words)[0] == 0
    assert heard == [2, 1, 1, 1, 1]


def test_sounds_of_one_name_in_other_folders_are_others(
    run, five, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    for number in range(5):  # as large as those, and as old
        _write(other / "five" / f"{number}.wav", 0.2 * (number + 1), seed=9 - number)
    for path in tmp_path.rglob("*.wav"):
        os.utime(path, ns=(0, 0))
    for command, suffix in ("tag", "jsonl"), ("embed", "npz"):
        target, alone = tmp_path / f"x.{suffix}", tmp_path / f"alone.{suffix}"
        monkeypatch.chdir(other)
        form = ("--format", "jsonl") if command == "tag" else ()
        assert run(command, "five", *form, "--output", alone)[0] == 0
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(parts, "PART_SOUNDS", 1)
            patch.setattr(parts.ResultParts, "rows", _interrupted)
            assert run(command, "five", *form, "--output", target)[0] == 130
        monkeypatch.chdir(other)
        assert run(command, "five", *form, "--output", target)[0] == 0
        assert target.read_bytes() == alone.read_bytes()


def _interrupted(*_arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["thesis.txt", "movie.mp4.part", None])
def test_what_is_no_part_is_left_alone(run, five, tmp_path, name):
    kept = tmp_path / "x.csv.parts"
    if name is None:
        kept.write_text("mine")
        message = "x.csv.parts is not a folder; give another --output"
    else:
        kept.mkdir()
        (kept / name).write_text("mine")
        message = f"{name}, which no run writes there; give another --output"
    code, _, err = run("tag", five, "--output", tmp_path / "x.csv")
    assert code == 2 and message in err and err.count("\n") == 1
    assert (kept if name is None else kept / name).read_text() == "mine"


def test_parts_that_were_being_removed_are_no_others(run, five, tmp_path, monkeypatch):
    words = ("tag", five, "--output", tmp_path / "x.csv")
    unlink, removed = Path.unlink, []

    def unlink_and_die(self, **options):
        unlink(self, **options)
        if self.parent.name == "x.csv.parts" and not self.name.endswith(".part"):
            removed.append(self.name)
            raise KeyboardInterrupt

    for number in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink_and_die)
            assert run(*words)[0] == 130
        assert len(removed) == number + 1
    assert run(*words)[0] == 0
    assert not (tmp_path / "x.csv.parts").exists()


def test_each_part_is_read_once(tmp_path, monkeypatch):
    sounds = [parts.SoundFile(f"{number:03d}", 1, 1) for number in range(100)]
    reads, load = [], np.load
    with contextlib.closing(parts.ResultParts(tmp_path / "x", {})) as kept:
        for some in (sounds[::2], sounds[1::2]):  # by their names, in turn
            kept.add(some, np.array([[float(sound.name)] for sound in some]))
            kept.flush()
        monkeypatch.setattr(np, "load", lambda path: reads.append(path) or load(path))
        assert [row.item() for row in kept.rows(sounds)] == list(range(100))
    assert len(reads) == 2


def test_a_full_disk_is_said_of_parts(run, five, tmp_path, monkeypatch):
    def full(*_arguments, **_columns):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(np, "savez", full)
    code, _, err = run("tag", five, "--output", tmp_path / "x.csv")
    assert code == 2 and "x.csv.parts cannot be written (No space left" in err


def test_tags_of_other_settings_are_not_mixed(run, five, tmp_path, monkeypatch):
    target = tmp_path / "x.jsonl"
    words = ("tag", five, "--batch-size", 1, "--output", target)
    with monkeypatch.context() as patch:
        flush = parts.ResultParts.flush

        def flush_and_die(self):
            flush(self)
            raise KeyboardInterrupt

        patch.setattr(parts.ResultParts, "flush", flush_and_die)
        assert run(*words)[0] == 130
    settings = tmp_path / "x.jsonl.parts" / "settings.json"
    text = settings.read_text()
    settings.write_text(text.replace("multilabel", "multiclass"))
    code, _, err = run(*words)
    assert code == 2 and "results of a run with other settings (target); delete" in err
    settings.write_text(text)
    assert run(*words, "--format", "jsonl", "--top", 1)[0] == 0  # which may differ
    assert len(target.read_text().splitlines()) == 5


def test_a_second_run_does_not_mix_its_parts_with_the_first(run, five, tmp_path):
    target = tmp_path / "embeddings.npz"
    folder = tmp_path / "embeddings.npz.parts"
    with contextlib.closing(parts.ResultParts(folder, {})):
        code, _, err = run("embed", five, "--output", target)
        assert code == 2 and "another process is writing" in err
    assert run("embed", five, "--output", target)[0] == 0


def test_runs_that_write_one_file_each_write_all_of_it(tmp_path):
    target = tmp_path / "results.csv"
    with atomic_file(target) as first:
        first.write("first " * 1000)
        with atomic_file(target) as other:
            other.write("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first " * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def _flush_only_full_parts(self, flush=parts.ResultParts.flush):
    if len(self._new) >= parts.PART_SOUNDS:
        flush(self)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-000000.npz", "objects"),
        ("part-000000.npz", b"\x80\x04cposix\nmkdir\n."),
        ("part-000000.npz", b"\x93NUMPY\x01\x00\x05\x00((((("),
        ("part-000000.npz", b"PK\x03\x04"),
        ("settings.json", b"[" * 100_000),
        ("settings.json", b"[1]"),
        ("settings.json", b"\xff"),
    ],
)
def test_kept_parts_of_a_stranger_run_nothing(
    run, five, tmp_path, killed_at, name, content
):
    target, marker = tmp_path / "x.npz", tmp_path / "ran"
    killed_at(4, KeyboardInterrupt())
    assert run("embed", five, "--output", target)[0] == 130
    part = tmp_path / "x.npz.parts" / name
    if content == "objects":
        with np.load(part) as columns:
            kept = dict(columns)
        kept["names"] = np.array([Payload(marker)] * len(kept["names"]), dtype=object)
        np.savez(part, **kept)
    else:
        part.write_bytes(content)
    killed_at(99, None)
    code, _, err = run("embed", five, "--output", target)
    if name == "settings.json":
        assert code == 2 and "delete the folder" in err and err.count("\n") == 1
    else:
        assert code == 0
    assert not marker.exists()


class Payload:
    """Makes a marker folder, if unpickled carelessly."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_what_was_heard_is_not_heard_again(run, five, tmp_path, killed_at):
    target = tmp_path / "x.npz"
    killed_at(4, KeyboardInterrupt())
    assert run("embed", five, "--output", target)[0] == 130
    killed_at(1, KeyboardInterrupt())  # one is left: there is no second
    assert run("embed", five, "--output", target)[0] == 0
    with np.load(target) as content:
        assert len(content["names"]) == 5


@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_changed_in_between_is_heard_again(
    run, tagger, five, tmp_path, killed_at, is_damaged
):
    target = tmp_path / "x.npz"
    killed_at(4, KeyboardInterrupt())
    assert run("embed", five, "--output", target)[0] == 130
    _write(five / "0.wav", 0.7, seed=9)
    (five / "1.wav").unlink()
    if is_damaged:
        next((tmp_path / "x.npz.parts").glob("part-*.npz")).write_bytes(b"damaged")
    killed_at(99, None)
    assert run("embed", five, "--output", target)[0] == 0
    with np.load(target) as arrays:
        assert arrays["names"].tolist() == ["0.wav", "2.wav", "3.wav", "4.wav"]
        expected = [tagger.embed(five / name) for name in arrays["names"]]
        np.testing.assert_allclose(arrays["embeddings"], expected, atol=1e-6)


def test_embeddings_of_other_settings_are_not_mixed(run, five, tmp_path, killed_at):
    target = tmp_path / "x.npz"
    killed_at(3, KeyboardInterrupt())
    assert run("embed", five, "--output", target)[0] == 130
    killed_at(99, None)
    code, _, err = run("embed", five, "--output", target, "--pooling", "max")
    assert code == 2 and "other settings (pooling); delete the folder" in err
    settings = tmp_path / "x.npz.parts" / "settings.json"
    text = settings.read_text()
    settings.unlink()
    code, _, err = run("embed", five, "--output", target)
    assert code == 2 and "model_sha256" in err
    settings.write_text(text)
    assert run("embed", five, "--output", target)[0] == 0
    options = ("--pooling", "max", "--sources", "b5, mel")
    assert run("embed", five, "--output", target, *options)[0] == 0
    code, _, err = run("embed", five, "--output", target, "--sources", "b99")
    assert code == 2 and "'b99' is not a source of this student" in err
    assert not (tmp_path / "x.npz.parts").exists()


def test_embed_leaves_out_what_cannot_be_read(run, folder, tmp_path):
    target = tmp_path / "x.npz"
    code, _, err = run("embed", folder, "--output", target)
    assert code == 1 and "3 of 5 inputs could not be read" in err
    with np.load(target) as content:
        assert content["names"].tolist() == ["below/also.flac.wav", "good.wav"]
    for path in folder.rglob("*good*"):
        path.unlink()
    (folder / "below" / "also.flac.wav").unlink()
    other = tmp_path / "y.npz"
    assert run("embed", folder, "--output", other)[0] == 2
    assert not other.exists() and not (tmp_path / "y.npz.parts").exists()


# --- Exported files -------------------------------------------------------------


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
    found = _parsed((tmp_path / "tags.csv").read_text(), "csv")[0]
    assert len(found) == 5
    for sound, tags in found.items():
        assert dict(tags) == pytest.approx(dict(_tags_of(tagger, sound, 7)), abs=1e-4)
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
    found = _parsed(capsys.readouterr().out, "jsonl")[0]
    runtime = Tagger(path)
    for sound, tags in found.items():
        for one in (tagger, runtime):
            assert dict(tags) == pytest.approx(dict(_tags_of(one, sound, 7)), abs=1e-4)
    sound = str(five / "4.wav")
    options += ["--window", "0.25", "--threshold", "0", "--top", "7"]
    assert main(["scan", sound, *options]) == 0
    windows = map(json.loads, capsys.readouterr().out.splitlines())
    for window, expected in zip(windows, tagger.scan(sound, None, 0.25), strict=True):
        assert window["start_seconds"] == expected.start_seconds
        by_name = {tag["name"]: tag["probability"] for tag in window["tags"]}
        expected_by_name = zip(tagger.labels.names, expected.probabilities, strict=True)
        assert by_name == pytest.approx(dict(expected_by_name), abs=1e-4)


def test_tagging_with_an_exported_file_resumes(exported, five, tmp_path, monkeypatch):
    _, path = exported
    command = ["tag", str(five), "--model", str(path), "--batch-size", "1"]
    whole, target = tmp_path / "whole", tmp_path / "resumed"
    assert main([*command, "--output", str(whole)]) == 0
    calls = []
    interrupted = _interrupted_after(2, Tagger.score, calls)
    monkeypatch.setattr(Tagger, "score", interrupted)
    assert main([*command, "--output", str(target)]) == 130
    assert main([*command, "--output", str(target)]) == 0
    assert len(calls) == 6  # the third sound twice, and no other
    assert target.read_bytes() == whole.read_bytes()


def _interrupted_after(number, score, calls):
    def interrupted(self, waveforms):
        calls.append(1)
        if len(calls) == number + 1:
            raise KeyboardInterrupt
        return score(self, waveforms)

    return interrupted


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
        *(
            (c, *each)
            for c in ("tag", "scan", "embed", "info")
            for each in REFUSED_OF_EXPORTED
        ),
        *(("embed", *each) for each in LAYERS),
    ],
)
def test_what_means_nothing_to_an_exported_file_is_refused(
    exported, five, tmp_path, capsys, command, options, message
):
    _, path = exported
    options = [option.replace("{}", str(path)) for option in options]
    arguments = [command, "--model", str(path), str(five), *options]
    if command == "embed":
        arguments += ["--output", str(tmp_path / "x.npz")]
    if command == "info":
        model = options.pop() if options[0] == "--model" else str(path)
        options = [option for option in options if option != "--model"]
        arguments = [command, model, *options]
    assert main(arguments) == 2
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


# --- Refusals -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["tag"], "arguments are required: SOUND"),
        (["tag", "x.wav", "--top", "0"], "'0' is given; give a whole number"),
        (["tag", "x.wav", "--batch-size", "two"], "'two' is given; give a whole"),
        (["tag", "x.wav", "--threshold", "nan"], "'nan' is given; give one from 0"),
        (["tag", "x.wav", "--threshold", "much"], "'much' is not a number"),
        (["tag", "x.wav", "--format", "xml"], "invalid choice: 'xml'"),
        (["scan", "x.wav", "--window", "inf"], "'inf' is given; give seconds above 0"),
        (["scan", "x.wav", "--hop", "0"], "'0' is given; give seconds above 0"),
        (["tag", "x.wav", "--output", "y.wav"], "has the suffix of a sound file"),
        (["tag", "x.wav", "--output", "no/such/y.csv"], "cannot be written"),
        (["tag", "x.wav", "--output", os.devnull], "cannot be written"),
        (["embed", ".", "--output", "x.csv"], "must end in .npz or .parquet"),
        (["embed", "x.wav", "--output", "x.npz"], "is not a folder"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "mn99_as"], "neither a published model nor a file"),
        (["--model", "no/such.pt"], "no/such.pt is not a file"),
        (["--device", "cuda:77"], "the device cuda:77 is not available"),
        (["--device", "abacus"], "the device abacus is not available"),
        (["--device", "meta"], "the device meta computes nothing"),
    ],
)
def test_models_and_devices_that_are_not_there_are_refused(
    five, model, capsys, options, message
):
    command = ["tag", str(five), "--model", str(model), "--device", "cpu", *options]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert main([*command, "--debug"]) == main(["--debug", *command]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_hop_beyond_the_window_is_refused(run, five):
    code, out, err = run("scan", five / "0.wav", "--window", 1, "--hop", 2)
    assert (code, out) == (2, "") and "the hop must be from 1 to the window" in err
