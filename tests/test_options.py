"""Options of recipes: text stays text, numbers are numbers, and help tells them."""

import ast
import functools
import re
import runpy
import sys
from pathlib import Path

import pytest
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.support import options
from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.support.options import (
    OBJECTS,
    REAL,
    SWITCH,
    TEXT_TOO,
    WHOLE,
    read_options,
)

REPOSITORY = Path(__file__).resolve().parents[1]
YAMLS = sorted((REPOSITORY / "hparams").glob("*.yaml"))
# What a shell hands over as it is, and what YAML makes something else of
TEXTS = ["|", "#", "2024", "no", "run #2", "~", "1e3", "2024-06-07", "[a", "(1, 2)"]
TEXTS += ["a: b", "!x", "&a", "*a", "yes", "0x1F", "12:30:00", " ", "", "@a", "%", "é"]

read_yaml = functools.cache(options.read_yaml)
every_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _yamls_are_read_once(monkeypatch):
    monkeypatch.setattr(options, "read_yaml", read_yaml)


def _keys(path, kind):
    """Keys of a YAML whose value is of a kind."""
    return [
        key
        for key, value in read_yaml(path).items()
        if type(value) in kind and not key.startswith("__")
    ]


def _text_keys(path):
    typed = WHOLE | REAL | OBJECTS
    keys = [key for key in _keys(path, {str, type(None)}) if key not in typed]
    # Paths that refer to others: !ref results/finetune/<seed>
    return [*keys, *(k for k, v in read_yaml(path).items() if "/<" in _written(v))]


def _written(value):
    return str(getattr(value, "value", "")).replace(">/", "/<")


def _refusal(*argv):
    with pytest.raises(SystemExit) as stop:
        read_options([str(part) for part in argv])
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


@every_yaml
def test_text_of_the_command_line_stays_text(path, tmp_path):
    keys = _text_keys(path)
    assert {"dataset_config", "dataset_cache"} & set(keys)
    copied = tmp_path / "as_hyperpyyaml_reads.yaml"
    copied.write_text(
        "".join(f"{key}: null\nref_{key}: !ref <{key}>\n" for key in keys)
    )
    for text in TEXTS:
        argv = [part for key in keys for part in (f"--{key}", text)]
        _, _, overrides = read_options([str(path), *argv])
        assert overrides == dict.fromkeys(keys, text)
        assert {type(value) for value in overrides.values()} == {str}
        hparams = load_hparams(copied, overrides)
        assert set(hparams.values()) == {text}
    argv = [f"--{key}=null" for key in keys]
    assert read_options([str(path), *argv])[2] == dict.fromkeys(keys)


@every_yaml
def test_a_switch_takes_yes_and_no(path):
    for key in _keys(path, {bool}):
        for text in ("yes", "No", "TRUE", "false"):
            _, _, overrides = read_options([str(path), f"--{key}", text])
            assert overrides == {key: SWITCH[text.lower()]}
        assert read_options([str(path), f"--{key}"])[2] == {key: True}
        assert "is neither yes nor no" in _refusal(path, f"--{key}", "maybe")


@every_yaml
def test_a_number_is_one_or_is_refused(path):
    whole = _keys(path, {int})
    real = [key for key in _keys(path, {float}) if key not in WHOLE]
    real += [key for key, v in read_yaml(path).items() if "ScalarFloat" in str(type(v))]
    whole = {*whole, *(WHOLE & set(read_yaml(path)))} - REAL
    real = {*real, *(REAL & set(read_yaml(path)))}
    assert real
    for keys, value, said, bad in [
        (whole, 7, "is not a whole number", ["abc", "2.5", "", "1, 2"]),
        (real, 1e-5, "is not a number", ["abc", "nan", "", "1, 2"]),
    ]:
        argv = [f"--{key}={value}" for key in keys]
        assert read_options([str(path), *argv])[2] == dict.fromkeys(keys, value)
        for key, text in zip(sorted(keys), bad * len(keys), strict=False):
            assert f"--{key}: {text!r} {said}" in _refusal(path, f"--{key}={text}")
    may_be_null = set(read_yaml(path)) & (WHOLE | REAL)
    argv = [f"--{key}=null" for key in may_be_null]
    assert read_options([str(path), *argv])[2] == dict.fromkeys(may_be_null)


@every_yaml
def test_an_object_takes_its_arguments_or_is_refused(path):
    document = read_yaml(path)
    objects = [key for key, v in document.items() if isinstance(v, dict)]
    for key in {*objects} - TEXT_TOO - {"eval_loader"}:
        if "!apply" in str(getattr(document[key], "tag", "")):
            continue
        given = read_options([str(path), f"--{key}", "{a: 1}"])[2]
        assert given == {key: {"a": 1}}
        assert "give " in _refusal(path, f"--{key}", "abc")
        assert "give " in _refusal(path, f"--{key}", "{a: [")
    for key in OBJECTS & {key for key, v in document.items() if v is None}:
        assert "define it there" in _refusal(path, f"--{key}", "{a: 1}")
        assert read_options([str(path), f"--{key}=null"])[2] == {key: None}


def test_a_key_is_of_one_kind_in_all_yamls():
    kinds = {}
    for path in YAMLS:
        for key, value in read_yaml(path).items():
            kinds.setdefault(key, set()).add(type(value).__name__)
    for key, found in kinds.items():
        is_open = "NoneType" in found or "str" in found
        if is_open and found & {"int", "float", "ScalarFloat"}:
            assert key in WHOLE | REAL
        if is_open and "CommentedMap" in found:
            assert key in OBJECTS | TEXT_TOO


def test_of_an_option_given_twice_the_last_counts():
    argv = "hparams/distil.yaml --width 0.1 --device cpu --width=0.2 --teacher a"
    path, run_opts, overrides = read_options([*argv.split(), "--teacher", "b"])
    assert overrides == {"width": 0.2, "teacher": "b"} and run_opts.device == "cpu"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--separator", "--separator: expected one argument; if it begins with -"),
        ("--separator --x", "--separator: expected one argument"),
        ("--precision fp8", "--precision: invalid choice: 'fp8'"),
        ("--debug maybe", "'maybe' is neither yes nor no"),
        ("--debug_batches few", "'few' is not a whole number"),
        (
            "--label_colum x",
            "unknown option --label_colum; did you mean --label_column?",
        ),
        ("--label_column caf\udce9", "is not UTF-8; rename it"),
        ("--dev cpu", "unknown option --dev;"),  # nothing is abbreviated
        ("--batch_size 0", "--batch_size: '0' is given; give 1 or more"),
        ("--num_workers=-1", "--num_workers: '-1' is given; give 0 or more"),
        ("--number_of_epochs=-1", "'-1' is given; give 0 or more"),
        ("--lr=-1", "--lr: '-1' is given; give 0 or more"),
        ("--clip_seconds 0", "'0' is given; give a number above 0"),
        ("--valid_share 2", "'2' is given; give a share, from 0 to less than 1"),
    ],
)
def test_what_is_no_value_is_refused_in_a_sentence(argv, message):
    assert message in _refusal("hparams/finetune.yaml", *argv.split(" "))


def test_speechbrains_own_options_are_typed():
    argv = "--debug no --noprogressbar --precision bf16 --optimizer_step_limit 3"
    _, run_opts, overrides = read_options(["hparams/distil.yaml", *argv.split()])
    assert overrides == {}
    assert run_opts.overridden_args == {
        "debug",
        "noprogressbar",
        "precision",
        "optimizer_step_limit",
    }
    assert run_opts.debug is False and run_opts.noprogressbar is True
    assert (run_opts.precision, run_opts.optimizer_step_limit) == ("bf16", 3)


def test_steps_between_checkpoints_take_the_place_of_minutes():
    _, run_opts, overrides = read_options(
        ["hparams/distil.yaml", "--ckpt_interval_steps", "5"]
    )
    assert run_opts.ckpt_interval_steps == 5
    assert overrides == {"ckpt_interval_minutes": 0}


def test_a_run_to_debug_writes_where_no_other_run_does():
    def folder(*argv):
        return read_options(["hparams/distil.yaml", *argv])[2].get("output_folder")

    assert folder() is None
    assert folder("--debug", "--seed", "7") == "results/distil/7/debug"
    assert folder("--debug", "--output_folder", "a b") == "a b/debug"


RECIPES = [
    path
    for path in sorted((REPOSITORY / "recipes").glob("*.py"))
    if "read_options" in path.read_text() or "parse_and_join" in path.read_text()
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("gives_yaml", [True, False])
def test_help_lists_the_keys_of_the_yaml(recipe, gives_yaml, monkeypatch, capsys):
    document = runpy.run_path(str(recipe))["__doc__"]
    named = [path for path in YAMLS if f"hparams/{path.name}" in document]
    path = min(named, key=lambda path: document.index(path.name))
    argv = [str(recipe), *([str(path)] if gives_yaml else []), "--help"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", document)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(recipe), raising=False)
    with pytest.raises(SystemExit) as stop:
        read_options(argv[1:])
    assert not stop.value.code
    said = " ".join(capsys.readouterr().out.split())
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in read_yaml(path) and not key.startswith("__"):
            assert f"--{key} " in said
            value, _, comment = rest.partition(" # ")
            assert f"default {value.strip()}" in said or not value.strip()
            assert " ".join(comment.split()) in said
    assert "--device TEXT" in said and "SpeechBrain's own" in said


def _options_in_messages():
    """Options that sentences of the package and its recipes name, and where."""
    for folder in ("efficientat_plugin", "recipes"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for name in re.findall(r"(?<![\w-])--([a-z][\w-]*\w)", node.value):
                        yield name, path.name


def test_messages_name_options_that_exist():
    known = set(RunOptions().as_dict())
    for path in YAMLS:
        known |= set(read_yaml(path))
    known |= set(re.findall(r'"--([\w-]+)"', _text_of("efficientat_plugin/cli")))
    known |= {"help", "nproc_per_node", "shm-size"}  # of others
    known |= {"name", "devcie"}  # examples
    known |= {"data", "features", "students", "teachers"}  # a drawing
    unknown = [found for found in _options_in_messages() if found[0] not in known]
    assert not unknown


def _text_of(folder):
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    return "\n".join(path.read_text() for path in files)
