"""How a recipe starts, and how it ends where a user got something wrong."""

import argparse
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_runs import free_port, launch, run_to_end

from efficientat_plugin.support.launch import (
    claim_folder,
    load_hparams,
    parse_and_join,
    settings_of,
    start,
)
from efficientat_plugin.support.options import read_yaml, unset_placeholders

REPOSITORY = Path(__file__).resolve().parents[1]
DISTIL = REPOSITORY / "hparams" / "distil.yaml"


def _refusal(*argv):
    """What is printed of a command line; it must be a sentence."""
    with pytest.raises(SystemExit) as stop:
        hparams_file, _, overrides = parse_and_join([str(part) for part in argv])
        load_hparams(hparams_file, overrides)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--clip_secnds 5",
            "unknown option --clip_secnds; did you mean --clip_seconds?",
        ),
        ("--devcie cpu", "unknown option --devcie; did you mean --device?"),
        ("--zzz 5", "unknown option --zzz; see --help"),
        ("--kd_weight 1.5", "kd_weight=1.5 must be from 0 (labels) to 1 (teacher)"),
        ("--kd_weight much", "--kd_weight: 'much' is not a number"),
        ("clips", "'clips' is not an option; give --name value"),
        ("--device gpu", "--device: the device gpu is not available; give cpu"),
        ("--device cuda:99", "--device: the device cuda:99 is not available; give cpu"),
        ("--device meta", "--device: the device meta computes nothing"),
    ],
)
def test_an_option_that_is_none_is_refused_in_a_sentence(options, message):
    given = ("--dataset", "clips", "--teacher", "mn04_as")
    assert message in _refusal(DISTIL, *given, *options.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("a: [1", "line 1"),
        ("just text", "it has no named options"),
        (b"RIFF\xff\xfe\x00", "can't decode"),
    ],
)
def test_what_is_no_yaml_is_refused_in_a_sentence(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    printed = _refusal(path, "--dataset", "clips")
    assert f"{path} is not the YAML of a run (" in printed and message in printed
    printed = _refusal("--dataset", tmp_path)  # which is taken for the YAML's path
    expected = "is a folder; give a file); the first argument must be one, such as"
    assert expected in printed


@pytest.mark.parametrize(
    ("recipe", "yaml"),
    [
        ("finetune", "quickstart"),
        ("distil", "finetune"),
        ("audioset_kd", "finetune"),
        ("prepare_data", "finetune"),
        ("dump_teacher_logits", "finetune"),
        ("make_transfer_set", "finetune"),
        ("make_soundscapes", "finetune"),
        ("finetune", "flat"),
    ],
)
def test_a_yaml_for_another_recipe_is_refused_in_a_sentence(recipe, yaml, tmp_path):
    path = REPOSITORY / "hparams" / f"{yaml}.yaml"
    if yaml == "flat":  # as those of earlier versions, without groups
        path = tmp_path / "flat.yaml"
        folder = tmp_path / "run"
        path.write_text(f"output_folder: {folder}\ndataset: x\nclip_seconds: 5.0\n")
    command = [str(path)]
    if yaml == "finetune":
        command += ["--dataset", str(tmp_path / "nowhere")]
    if yaml == "quickstart":
        command += ["--sample_folder", str(tmp_path)]
        command += ["--num_labelled", "1", "--num_unlabelled", "1", "--num_eval", "1"]
    main = runpy.run_path(str(REPOSITORY / "recipes" / f"{recipe}.py"))["main"]
    with pytest.raises((SystemExit, OSError, ValueError)) as refusal:
        main(command)
    assert len(str(refusal.value).splitlines()) == 1
    assert re.search(
        "which this recipe needs|number_of_epochs=auto", str(refusal.value)
    )


# Quickstarts make their own sound, and are run as they are.
YAMLS = [p for p in (REPOSITORY / "hparams").glob("*.yaml") if "quick" not in p.stem]


@pytest.mark.parametrize("path", sorted(YAMLS), ids=lambda path: path.stem)
def test_every_yaml_is_built_with_its_defaults(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document, given = read_yaml(path), {}
    while unset := unset_placeholders(given, document):
        given[unset[0]] = "given"
    assert load_hparams(path, given)


@pytest.mark.parametrize(
    "name", [p.stem for p in (REPOSITORY / "recipes").glob("*.py")]
)
def test_an_interrupted_recipe_says_what_to_do(name, monkeypatch, capsys):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", interrupted)
    monkeypatch.setattr(sys, "argv", [name, str(DISTIL)])
    monkeypatch.setattr("atexit.register", lambda *_: None)  # of this process
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "recipes" / f"{name}.py"), run_name="__main__")
    again = {"make_soundscapes", "make_transfer_set", "import_teacher_logits"}
    outcome = "start over" if name in again else "resume"
    assert stop.value.code == 130
    printed = capsys.readouterr().err
    assert printed == f"\nInterrupted; rerun the same command to {outcome}.\n"


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no run\.json .* another recipe, or was only partly deleted",
    ):
        claim_folder(tmp_path, {"dataset": "dogs"}, started=True)
    assert not list(tmp_path.iterdir())


def test_a_sentence_commands_no_terminal():
    def refuse(_arguments):
        sys.exit("no column \x1b[2J\rlabel; found were:\n  a\u202eb, é")

    with pytest.raises(SystemExit) as stop:
        start(refuse)
    assert stop.value.code == (
        "no column \\x1b[2J\\rlabel; found were:\n  a\\u202eb, é"
    )


INTERRUPTED = """
import os, signal, sys, time
from efficientat_plugin.support.launch import start

class Losing:
    def __del__(self):  # as of a loader whose workers were interrupted, too
        raise RuntimeError

def main(arguments):
    losing = Losing()
    worker = os.fork()
    if not worker:
        signal.raise_signal(signal.SIGINT)  # which a terminal sends to all
        signal.raise_signal(signal.SIGTERM)
    os.waitpid(worker, 0)
    try:
        signal.raise_signal(getattr(signal, arguments[0]))
    except KeyboardInterrupt:
        if arguments[1] == "fails":  # as where a worker was interrupted, too
            raise RuntimeError
        raise

start(main)
"""


@pytest.mark.parametrize("then", ["ends", "fails"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_is_reported_once(name, then, tmp_path):
    what = {"SIGINT": "Interrupted", "SIGTERM": "Terminated"}[name]
    path = tmp_path / "script.py"
    path.write_text(INTERRUPTED)
    printed = run_to_end([path, name, then], 128 + getattr(signal, name))
    assert printed == f"\n{what}; rerun the same command to resume.\n"


CLAIMING = ("distil", "finetune", "esc50", "fsd50k", "openmic", "tau2020")


@pytest.mark.parametrize("name", CLAIMING)
def test_a_run_may_go_on_elsewhere_and_with_other_workers(name, tmp_path):
    path = REPOSITORY / "hparams" / f"{name}.yaml"
    claim_folder(tmp_path, settings_of(path, {}), started=False)
    moved = {"output_folder": str(tmp_path), "num_workers": 0, "eval_batch_size": 1}
    claim_folder(tmp_path, settings_of(path, moved), started=True)


def test_every_value_counts_and_references_are_followed(tmp_path):
    def claim(**overrides):
        claim_folder(tmp_path, settings_of(DISTIL, overrides), started=True)

    claim_folder(tmp_path, settings_of(DISTIL, {}), started=False)
    claim(lr=3e-3)  # as it is
    for overrides, name in [
        ({"n_mels": 64}, "n_mels 128 there, 64 here"),
        (
            {"batch_size": 8, "hop_length": 160},
            "batch_size 16 there, 8 here; hop_length 320 there, 160 here",
        ),
        ({"student": {"dropout": 0.5}}, "dropout 0.2 there, 0.5 here"),
    ]:
        with pytest.raises(ValueError, match=rf"holds another run \({name}\); name"):
            claim(**overrides)


def test_a_name_that_stdout_lacks_is_escaped(tmp_path):
    script = "from efficientat_plugin.support.launch import start\n"
    script += "start(lambda _: print('caf\\u00e9'))\n"
    path = tmp_path / "script.py"
    path.write_text(script)
    printed = launch(path, PYTHONIOENCODING="ascii")
    assert printed == "caf\\xe9\n"


@pytest.mark.parametrize(
    "text",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback:\n"
        "unable to allocate shared memory(shm) for file </torch_1_0>: (11)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
        "that dataloader's workers are out of shared memory.",
    ],
)
def test_too_little_shared_memory_is_reported_in_a_sentence(text):
    def main(_arguments):
        raise RuntimeError(text)

    with pytest.raises(SystemExit, match=r"--num_workers 0, .* larger --shm-size"):
        start(main)


SLURM = """
scontrol() { echo 127.0.0.1; }
srun() {
    for number in 0 1; do SLURM_PROCID=$number SLURM_LOCALID=$number "$@" & done; wait
}
export SLURM_JOB_NODELIST=node SLURM_NTASKS=2
"""
JOINING = """
import sys
import torch
from efficientat_plugin.support.launch import parse_and_join

parse_and_join(sys.argv[1:])
total = torch.ones(1)
torch.distributed.all_reduce(total)
print(f"{torch.distributed.get_rank()} of {int(total)}\\n", end="", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_lines_for_slurm_join_its_tasks(tmp_path):
    text = (REPOSITORY / "docs" / "distil.md").read_text()
    lines = [line for line in text.splitlines() if "SLURM" in line and "#" not in line]
    assert len(lines) == 2
    (tmp_path / "join.py").write_text(JOINING)
    command = f"{sys.executable} {tmp_path}/join.py {DISTIL} --device cpu"
    script = "\n".join(lines).replace("python recipes/audioset_kd.py ...", command)
    assert command in script and "29500" in script
    script = SLURM + script.replace("29500", str(free_port()))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert sorted(done.stdout.split("\n")) == ["", "0 of 2", "1 of 2"], done.stderr
