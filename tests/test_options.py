"""Options of recipes: text stays text, numbers are numbers, and help tells them."""

import ast
import functools
import re
import runpy
import sys
from pathlib import Path

import pytest
from recipe_runs import launch
from speechbrain.utils.run_opts import RunOptions

from efficientat_plugin.support import options
from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.support.options import (
    NEVER_NULL,
    OBJECTS,
    REAL,
    SWITCH,
    TEXT_TOO,
    WHOLE,
    nested,
    option_places,
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


@functools.cache
def _values(path):
    """The default of every option of a YAML, by its name."""
    document, values = read_yaml(path), {}
    for name, place in option_places(document).items():
        values[name] = functools.reduce(lambda node, key: node[key], place, document)
    return {name: v for name, v in values.items() if not name.startswith("__")}


def _keys(path, kind):
    """Options of a YAML whose value is of a kind."""
    return [key for key, value in _values(path).items() if type(value) in kind]


def _text_keys(path):
    typed = WHOLE | REAL | OBJECTS
    keys = [key for key in _keys(path, {str, type(None)}) if key not in typed]
    # Paths that refer to others: !ref results/finetune/<seed>
    return [*keys, *(k for k, v in _values(path).items() if "/<" in _written(v))]


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


def test_text_that_would_be_a_reference_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: null\nfree: null\nplace: !ref results/<name>\n")
    for text in ("<free>", "run <1>", "!ref <name>", "<>"):
        assert "has angle brackets" in _refusal(path, "--name", text)
        overrides = read_options([str(path), "--free", text])[2]
        assert load_hparams(path, overrides)["free"] == text
    for text in ("a < b", "a > b", "> <"):
        overrides = read_options([str(path), "--name", text])[2]
        assert load_hparams(path, overrides)["place"] == f"results/{text}"


FIRST = """
import sys
from efficientat_plugin.support.launch import load_hparams
print(load_hparams(sys.argv[1], {"a": "(1, 2)"}))
"""


@pytest.mark.slow
def test_text_in_brackets_is_text_in_the_first_yaml_too(tmp_path):
    """HyperPyYAML writes and reads it as it should from the second load on."""
    path = tmp_path / "a.yaml"
    path.write_text("a: null\nb: !ref <a>\n")
    assert launch("-c", FIRST, path) == "{'a': '(1, 2)', 'b': '(1, 2)'}\n"


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
    real += [key for key, v in _values(path).items() if "ScalarFloat" in str(type(v))]
    whole = {*whole, *(WHOLE & set(_values(path)))} - REAL
    real = {*real, *(REAL & set(_values(path)))}
    assert real
    for keys, value, printed, bad in [
        (whole, 7, "is not a whole number", ["abc", "2.5", "", "1, 2"]),
        (real, 1e-5, "is not a number", ["abc", "nan", "", "1, 2"]),
    ]:
        argv = [f"--{key}={value}" for key in keys]
        assert read_options([str(path), *argv])[2] == dict.fromkeys(keys, value)
        for key, text in zip(sorted(keys), bad * len(keys), strict=False):
            assert f"--{key}: {text!r} {printed}" in _refusal(path, f"--{key}={text}")
    may_be_null = set(_values(path)) & (WHOLE | REAL) - NEVER_NULL
    argv = [f"--{key}=null" for key in may_be_null]
    assert read_options([str(path), *argv])[2] == dict.fromkeys(may_be_null)


@every_yaml
def test_an_object_takes_its_arguments_or_is_refused(path):
    document = _values(path)
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


@every_yaml
def test_a_yaml_has_few_keys_and_each_value_has_a_short_name(path):
    document = read_yaml(path)
    assert len(document) <= 40
    places = option_places(document)
    assert not [name for name in places if "." in name]
    parts = {n: p for n, p in places.items() if p[1:] and not p[0].startswith("__")}
    argv = {"yes|no": "no", "TEXT": "null", "{name: value}": "{}"}
    given = {
        name: argv.get(options._reader_of(name, _values(path)[name], document)[1])
        or ("3" if _written(_values(path)[name]) else str(_values(path)[name]))
        for name in parts
    }
    given = {n: v if v != "None" else "null" for n, v in given.items()}
    short = [f"--{name}={given[name]}" for name in parts]
    long = [f"--{'.'.join(place)}={given[name]}" for name, place in parts.items()]
    overrides = read_options([str(path), *short])[2]
    assert overrides == read_options([str(path), *long])[2] and len(overrides) == len(
        parts
    )
    inside = nested(overrides, document)
    assert all(inside[g][key] == overrides[n] for n, (g, key) in parts.items())


def test_a_part_of_what_is_replaced_is_refused():
    with pytest.raises(SystemExit, match="--alpha is a part of mixup, which --mixup "):
        nested({"alpha": 0.2, "mixup": None}, read_yaml("hparams/distil.yaml"))
    both = nested(
        {"width": 0.2, "student": {"dropout": 0.0}}, read_yaml("hparams/mn10.yaml")
    )
    assert both == {"student": {"dropout": 0.0, "width": 0.2}}


def test_of_two_values_of_one_name_the_second_has_the_longer_option(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a:\n  x: 1\nb:\n  x: 2\n  y: !ref <a[x]>\nseed: 0\n")
    assert [*option_places(read_yaml(path))] == ["a", "x", "b", "b.x", "seed"]
    _, _, overrides = read_options([str(path), "--x", "5", "--b.x=6"])
    hparams = load_hparams(path, overrides)
    assert hparams == {"a": {"x": 5}, "b": {"x": 6, "y": 5}, "seed": 0}


def test_what_only_a_user_knows_is_asked_for(tmp_path):
    for yaml, given, name in [
        ("finetune", {}, "dataset"),
        ("distil", {"dataset": "clips", "teacher": None}, "teacher"),
    ]:
        with pytest.raises(SystemExit) as stop:
            load_hparams(f"hparams/{yaml}.yaml", given)
        printed = f"--{name} is needed; see the head of hparams/{yaml}.yaml"
        assert stop.value.code == printed


def test_a_key_is_of_one_kind_in_all_yamls():
    kinds = {}
    for path in YAMLS:
        for key, value in _values(path).items():
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
        ("--learning_rate 1", "unknown option --learning_rate; did you mean --lr?"),
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
    monkeypatch.setenv("COLUMNS", "300")  # no long name is broken in two
    with pytest.raises(SystemExit) as stop:
        read_options(argv[1:])
    assert not stop.value.code
    printed = " ".join(capsys.readouterr().out.split())
    written = path.read_text().splitlines()
    for key in _values(path):
        assert f"--{key} " in printed
        line = next(line for line in written if line.strip().startswith(f"{key}:"))
        value, _, comment = line.partition(":")[2].partition(" # ")
        default = (
            f"default {value.strip()}" if "!PLACEHOLDER" not in value else "needed"
        )
        assert default in printed or not value.strip()
        assert " ".join(comment.split()) in printed
    assert "--device TEXT" in printed and "SpeechBrain's own" in printed


# Numbers with a unit that their names do not tell, and the unit
UNITS = {"sample_rate": "Hz", "hop_length": "samples", "f_min_jitter": "Hz"}
UNITS |= {"f_max_jitter": "Hz", "clip_seconds": "s", "batch_size": "clips"}
UNITS |= {"eval_batch_size": "clips", "gain_db": "dB", "roll_samples": "samples"}
UNITS |= {"max_bins": "mel bins", "max_frames": "frames", "patience": "epochs"}


@every_yaml
def test_help_gives_units(path):
    document, lines = read_yaml(path), path.read_text().splitlines()
    places = option_places(document)
    known = UNITS.keys() & _values(path).keys()
    assert known
    for name in known:
        *groups, key = places[name]
        node = functools.reduce(lambda node, key: node[key], groups, document)
        number, _ = node.lc.key(key)
        described = options._described(lines, number, name, node[key])
        assert re.search(rf"\b{UNITS[name]}\b", described), (name, described)


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
        known |= set(option_places(read_yaml(path)))
    known |= set(re.findall(r'"--([\w-]+)"', _text_of("efficientat_plugin/cli")))
    known |= {"help", "nproc_per_node", "shm-size"}  # of others
    known |= {"name", "devcie", "group"}  # examples
    known |= {"data", "features", "students", "teachers"}  # a drawing
    unknown = [found for found in _options_in_messages() if found[0] not in known]
    assert not unknown


def _text_of(folder):
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    return "\n".join(path.read_text() for path in files)
