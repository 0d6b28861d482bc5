"""The command itself: listing, info, wrong usage, what it may import."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from command_line import write_sound

from efficientat_plugin import __version__, list_students
from efficientat_plugin.cli import main
from efficientat_plugin.students.mn import MN


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
def test_wrong_usage_is_explained_in_a_sentence(arguments, message, capsys):
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


@pytest.mark.parametrize("command", ["tag", "export", "info"])
def test_weights_that_are_not_finite_are_an_error(capsys, model, tmp_path, command):
    state = torch.load(model)
    name = list(state)[0]
    state[name].view(-1)[0] = float("nan")
    path = tmp_path / model.name
    torch.save(state, path)
    sound = write_sound(tmp_path / "a.wav", 0.1)
    argv = {"tag": [sound, "--model", path], "export": [path], "info": [path]}
    assert main([command, *map(str, argv[command])]) == 2
    err = capsys.readouterr().err
    assert f"numbers in {name} that are not finite" in err and err.count("\n") == 1


def test_an_error_does_not_command_a_terminal(capsys, tmp_path):
    (tmp_path / "hyperparams.yaml").write_text("pretrainer: !new:%1b[2Jx.y")
    for model in (tmp_path, "no\x1b[2Jname", tmp_path / "\x1b[2J.pt"):
        assert main(["info", str(model)]) == 2
        error = capsys.readouterr().err
        assert "\x1b" not in error and r"\x1b[2J" in error
        assert error.startswith("efficientat: ") and error.count("\n") == 1
