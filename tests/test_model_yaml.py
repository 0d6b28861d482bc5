"""A model folder of a stranger builds a tagger or is refused, and runs nothing."""

import os
import re
import shutil
import sys
import time

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, resolver
from speechbrain.inference.interfaces import Pretrained

from efficientat_plugin import load_encoder, load_student, load_teacher
from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained import safe_yaml as model_yaml
from efficientat_plugin.pretrained.folder import (
    TrainedModel,
    hyperparams,
    read_model_folder,
)
from efficientat_plugin.pretrained.safe_yaml import load_model_yaml
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.load import open_teachers

ON_CPU = {"device": "cpu"}
NAMES = ("(other)", "<b>bold</b>", "=1+1")


def _model(family=MN, **options):
    options = {"num_classes": 3, "width": 0.1} | options
    student = family(**options).eval()
    student.options = options
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    labels = LabelTable([f"/m/{k}" for k in range(3)], NAMES)
    return TrainedModel(student, labels, "multiclass", 1.0)


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(params=["first", "later"])
def which_load(request, monkeypatch):
    """HyperPyYAML's first load in a process teaches ruamel its tuples for good."""
    before = [each for each in resolver.implicit_resolvers if each[1] != "!tuple"]
    monkeypatch.setattr(resolver, "implicit_resolvers", before)
    if request.param == "later":
        load_hyperpyyaml("x: 1")
    return request.param


@pytest.fixture
def folder(tmp_path, model):
    """As fine-tuning leaves it, as far as it is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(hyperparams(model))
    torch.save(model.student.state_dict(), folder / "student.ckpt")
    return folder


def _load(folder, **options):
    return AudioTagger.from_hparams(str(folder), run_opts=ON_CPU, **options)


def _add(folder, text, first=""):
    """Appends to the YAML; what must come first goes before it."""
    path = folder / "hyperparams.yaml"
    path.write_text(f"{first}{path.read_text()}\n{text}\n")


def _refuses(folder, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        _load(folder, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


# --- Tags ----------------------------------------------------------------------------

STORE = "{teacher: t, labels_sha256: s, num_classes: 1, sample_rate: 1, clip_seconds: 1"
ATTACKS = {
    "by name": "x: !apply:os.system ['touch MARK']",
    "through torch": "x: !apply:torch.os.system ['touch MARK']",
    "a shell of SpeechBrain's": (
        "x: !apply:speechbrain.utils.superpowers.run_shell ['touch MARK']"
    ),
    "torch hub": (
        "x: !apply:torch.hub.load {repo_or_dir: FOLDER, model: run, source: local}"
    ),
    "through a listed module": (
        "x: !apply:efficientat_plugin.pretrained.weights.Path.mkdir "
        "[!new:efficientat_plugin.pretrained.weights.Path [MARK]]"
    ),
    "a class of our own": (
        "x: !new:efficientat_plugin.teachers.store.writer.StoreWriter "
        f"{STORE}, path: MARK}}"
    ),
    "a class that opens": "x: !new:zipfile.ZipFile [MARK, w]",
    "a module": "x: !module:module_of_a_stranger",
    "a name is imported": "x: !name:module_of_a_stranger.run",
    "a function by reference": "x: !applyref:os.mkdir [MARK]",
    "Python's tags": "x: !!python/object/apply:os.mkdir [MARK]",
    "Python's names": "x: !!python/name:module_of_a_stranger.run",
    "a verbatim tag": "x: !<!apply:os.mkdir> [MARK]",
    "an escaped tag": "x: !apply:%6fs.mk%64ir [MARK]",
    "a tuple by its tag": "x: !tuple (!!python/object/apply:os.mkdir [MARK])",
    "behind an anchor": "x: {y: &run !apply:os.mkdir [MARK]}\n\nz: *run",
    "a merged mapping": "x:\n  <<: {y: !apply:os.mkdir [MARK]}",
    "in an argument": (
        "x: !new:efficientat_plugin.LabelTable\n"
        "  mids: []\n  names: !apply:os.listdir [!apply:os.mkdir [MARK]]"
    ),
    "in a list": "x: [[1, {y: [!apply:os.mkdir [MARK]]}]]",
    "under a name that is dropped": "__x: !apply:os.mkdir [MARK]",
    "copied": "x: {y: !apply:os.mkdir [MARK]}\n\nz: !copy <x>",
}


@pytest.fixture
def attack(folder, tmp_path, monkeypatch):
    """Fills a text in; says whether it has run."""
    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\ndef run(*_): pass\n"
    for name in ("module_of_a_stranger", "hubconf", "custom"):
        (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)

    class Attack:
        @staticmethod
        def filled(text):
            return text.replace("MARK", str(mark)).replace("FOLDER", str(folder))

        has_run = mark.exists

        @staticmethod
        def forget():
            if mark.is_dir():
                shutil.rmtree(mark)
            mark.unlink(missing_ok=True)
            sys.modules.pop("module_of_a_stranger", None)
            sys.modules.pop("hubconf", None)

    return Attack


def _hyperpyyaml_runs(attack, folder, overrides=None):
    """Whether it is an attack at all: what every YAML of SpeechBrain's may do."""
    before = os.getcwd()
    try:
        with open(folder / "hyperparams.yaml") as file:
            load_hyperpyyaml(file, overrides)
    except Exception as error:  # an attack may end so, when it has run
        print(error)
    os.chdir(before)
    ran = attack.has_run()
    attack.forget()
    return ran


@pytest.mark.filterwarnings("ignore")  # of what the attacks leave open
@pytest.mark.parametrize("kind", ATTACKS)
def test_a_tag_that_is_not_listed_is_refused_unexecuted(folder, attack, kind):
    num_lines = len((folder / "hyperparams.yaml").read_text().splitlines())
    _add(folder, attack.filled(ATTACKS[kind]))
    assert _hyperpyyaml_runs(attack, folder)
    place = re.search(r"hyperparams.yaml, line (\d+): ", _refuses(folder, "trust=True"))
    assert int(place[1]) > num_lines
    assert not attack.has_run()
    assert "module_of_a_stranger" not in sys.modules


@pytest.mark.parametrize(
    "key", ["? !apply:os.mkdir [MARK]\n: 1", "!apply:os.mkdir : 1"]
)
def test_tags_of_keys_are_refused_unexecuted(folder, attack, key):
    _add(folder, attack.filled(key))
    _refuses(folder, r"'!apply:os\.mkdir'")
    assert not attack.has_run()


TUPLES = {
    "plain": "x: (!!python/object/apply:os.mkdir [MARK])",
    "quoted": 'x: "(!!python/object/apply:os.mkdir [MARK])"',
}


@pytest.mark.parametrize("kind", TUPLES)
def test_text_in_brackets_is_text(folder, attack, which_load, kind):
    _add(folder, attack.filled(TUPLES[kind]))
    runs = which_load == "first" or kind == "plain"
    assert _hyperpyyaml_runs(attack, folder) is runs
    assert "(!!python/object/apply:os.mkdir [" in str(_load(folder).hparams.x)
    assert not attack.has_run()


def test_brackets_from_pieces_are_refused(folder, attack, which_load):
    text = "a: '(!!python/object/ap'\n\nx: !ref <a>ply:os.mkdir [MARK])"
    _add(folder, attack.filled(text))
    assert _hyperpyyaml_runs(attack, folder) is (which_load == "first")
    _refuses(folder, "is not a plain key")
    assert not attack.has_run()


def test_a_directive_that_renames_tags_is_refused(folder, attack):
    _add(folder, attack.filled("x: !e!mkdir [MARK]"), "%TAG !e! !apply:os.\n---\n")
    assert _hyperpyyaml_runs(attack, folder)
    _refuses(folder, r"'!apply:os\.mkdir'")
    assert not attack.has_run()


def test_who_trusts_runs_everything(folder, attack):
    _add(folder, attack.filled(ATTACKS["by name"]))
    _refuses(folder, "os.system")
    assert _load(folder, trust=True).labels.mids == ("/m/0", "/m/1", "/m/2")
    assert attack.has_run()


ENTRIES = {
    "teachers": lambda folder: open_teachers(str(folder)),
    "command": lambda folder: load_tagger(str(folder)),
    "training": lambda folder: read_model_folder(folder),
    "export": lambda folder: find_source(folder),
    "student": lambda folder: load_student(folder),
    "encoder": lambda folder: load_encoder(str(folder)),
    "start": lambda folder: load_teacher(str(folder / "hyperparams.yaml")),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("tag", ["!apply:", "!applyref:", "!!python/object/apply:"])
def test_no_entry_runs_it(folder, attack, entry, tag):
    _add(folder, attack.filled(f"x: {tag}os.mkdir [MARK]"))
    # Which take values and build nothing of it
    if entry in ("training", "export", "student", "encoder", "teachers"):
        ENTRIES[entry](folder)
    else:
        with pytest.raises((OSError, ValueError)):
            ENTRIES[entry](folder)
    assert not attack.has_run()


def test_python_beside_the_yaml_is_not_looked_at(folder, attack):
    assert len(_load(folder).labels) == 3  # custom.py is there
    assert not attack.has_run() and "custom" not in sys.modules


@pytest.mark.parametrize(
    "overrides",
    [
        "sample_rate: !apply:os.mkdir [MARK]",
        "sample_rate: !applyref:os.mkdir [MARK]",
        "{student: {width: !apply:os.mkdir [MARK]}}",
        "sample_rate: !include:../elsewhere.yaml",
    ],
)
@pytest.mark.parametrize("form", ["text", "mapping"])
def test_overrides_are_checked_too(folder, attack, overrides, form):
    outside = folder.parent / "elsewhere.yaml"
    outside.write_text(attack.filled("x: !applyref:os.mkdir [MARK]"))
    overrides = attack.filled(overrides)
    if form == "mapping":
        overrides = YAML().load(overrides)
    assert _hyperpyyaml_runs(attack, folder, overrides)
    _refuses(folder, "overrides, line 1", overrides=overrides)
    assert not attack.has_run()


def test_overrides_of_values_count(folder):
    tagger = _load(folder, overrides={"clip_seconds": 2.5, "short_clips": "as_is"})
    assert tagger.clip_seconds == 2.5 and tagger.short_clips == "as_is"
    assert _load(folder, overrides="clip_seconds: 3").clip_seconds == 3
    _refuses(folder, "'clip_second' not found", overrides={"clip_second": 2.5})
    _refuses(folder, "an override is not a", overrides={"target": object()})


# --- Includes ------------------------------------------------------------------------

INCLUDES = ["../elsewhere.yaml", "in/../../elsewhere.yaml", "FOLDER/../elsewhere.yaml"]
INCLUDES += ["FOLDER/inside.yaml", "link.yaml", "in/link.yaml", "%2e%2e/elsewhere.yaml"]


@pytest.mark.parametrize("name", INCLUDES)
@pytest.mark.parametrize("depth", [1, 2])
def test_an_include_out_of_the_folder_is_refused(folder, attack, name, depth):
    outside = folder.parent / "elsewhere.yaml"
    (folder / "in").mkdir()
    for inside in ("link.yaml", "in/link.yaml"):
        (folder / inside).symlink_to(outside)
    for path in (outside, folder / "inside.yaml"):
        path.write_text(attack.filled("x: !applyref:os.mkdir [MARK]"))
    text = attack.filled(f"x: !include:{name}")
    if depth == 2:
        (folder / "more.yaml").write_text(text)
        text = "x: !include:more.yaml"
    _add(folder, text)
    assert _hyperpyyaml_runs(attack, folder)
    _refuses(folder, "trust=True")
    assert not attack.has_run()


@pytest.mark.parametrize("tag", ["!apply:", "!applyref:", "!!python/object/apply:"])
def test_what_is_included_is_checked(folder, attack, tag):
    (folder / "in").mkdir()
    (folder / "in/side.yaml").write_text(attack.filled(f"\ny: {tag}os.mkdir [MARK]"))
    _add(folder, "x: !include:in/side.yaml")
    assert _hyperpyyaml_runs(attack, folder)
    assert "in/side.yaml, line 2" in _refuses(folder, "trust=True")
    assert not attack.has_run()


def test_a_file_of_the_folder_is_included(folder, model):
    text = hyperparams(model)
    labels = text[text.index("labels:") : text.index("label_encoder")]
    (folder / "in").mkdir()
    (folder / "in/more.yaml").write_text("seconds: 7")
    (folder / "in/labels.yaml").write_text(f"{labels}\nx: !include:more.yaml")
    text = text.replace(labels, "given: !include:in/labels.yaml\n\n")
    text = text.replace("!ref <labels>", "!ref <given[labels]>")
    (folder / "hyperparams.yaml").write_text(f"{text}\nlabels: !ref <given[labels]>")
    tagger = _load(folder)
    assert tagger.labels.names == NAMES and tagger.hparams.given["x"]["seconds"] == 7


def test_includes_end(folder):
    (folder / "again.yaml").write_text("x: !include:again.yaml")
    _add(folder, "x: !include:again.yaml")
    _refuses(folder, "or itself")


# --- What is checked is what is built ------------------------------------------------


def test_a_file_that_changes_meanwhile_is_read_once(folder, attack, monkeypatch):
    (folder / "more.yaml").write_text("y: 1")
    _add(folder, "x: !include:more.yaml")
    resolve = model_yaml.resolve_references

    def swapped(*arguments):
        for name in ("more.yaml", "hyperparams.yaml"):
            text = attack.filled("y: !applyref:os.mkdir [MARK]")
            (folder / name).write_text(text)
        return resolve(*arguments)

    monkeypatch.setattr(model_yaml, "resolve_references", swapped)
    hparams = load_model_yaml(folder / "hyperparams.yaml")
    assert hparams["x"] == {"y": 1} and hparams["labels"].names == NAMES
    assert not attack.has_run()


def test_the_tree_that_is_built_is_checked_itself(folder, attack, monkeypatch):
    tag = attack.filled("y: !apply:os.mkdir [MARK]")
    text = type("Text", (), {"getvalue": lambda self: tag})
    monkeypatch.setattr(model_yaml, "resolve_references", lambda *_: text())
    _refuses(folder, r"references followed, line 1: the tag '!apply:os\.mkdir'")
    assert not attack.has_run()


# --- References ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "<student.__class__>",
        "<student.forward.__globals__>",
        "<sample_rate> ** 9 ** 9 ** 9",
        "<sample_rate> * 'x' * 99999999999",
        "<short_clips><short_clips>",
        "<student[0].x>",
    ],
)
def test_a_reference_is_a_key_and_computes_nothing(folder, reference):
    _add(folder, f'x: !ref "{reference}"')
    _refuses(folder, "is not a plain key")


def test_text_that_a_reference_would_compute_is_refused(folder):
    _add(folder, 'x: "<sample_rate> ** 9 ** 9 ** 9"\n\ny: !ref <x>')
    _refuses(folder, r"contains <\.\.\.>")


def test_references_share_what_they_name(folder):
    _add(folder, "again: {deep: !ref <student>}\n\nfar: !ref <again[deep]>")
    tagger = _load(folder)
    student = tagger.mods.student
    assert tagger.hparams.far is student and tagger.hparams.again["deep"] is student
    assert tagger.mods.embedding_model.student.features is student.features


# --- Bombs ---------------------------------------------------------------------------

LAUGHS = "l0: &l0 [ha, ha]\n\n" + "\n\n".join(
    f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10)}]" for k in range(1, 12)
)
BOMBS = {
    "aliases of aliases": (LAUGHS, "aliases expand to more than"),
    "an alias of itself": ("x: &x [*x]", "aliases expand to more than"),
    "brackets": ("x: " + "[" * 500, "makes no tagger"),
    "two documents": ("---\nx: 1", "makes no tagger"),
    "a key twice": ("target: multilabel", "makes no tagger"),
    "a control character": ("x: \x1b[2J", "makes no tagger"),
    "an unknown anchor": ("x: *nobody", "makes no tagger"),
    "a placeholder": ("x: !PLACEHOLDER", "must be replaced"),
    "a control character in a tag": ("x: !new:%1b[2Jos.mkdir", "trust=True"),
    "a line break in a tag": ("x: !new:os%0a.mkdir", "trust=True"),
    "a control character in a file": ("x: !include:%1b[2J.yaml", "is not a file"),
    "copies of copies": (
        LAUGHS.replace("*", "!copy <").replace(",", ">,").replace("]", ">]"),
        "the tag '!copy' is not one that a tagger needs",
    ),
    "long text again and again": (
        f"l0: '{'x' * 10**6}'\n\nl1: [{', '.join(['!ref <l0>'] * 40)}]",
        "a text of more than 2000 characters",
    ),
    "text again and again": (
        f"l0: '{'x' * 1999}'\n\nl1: [{', '.join(['!ref <l0>'] * 20000)}]",
        "more than 200 references",
    ),
    # In a pattern that looks for its end from each of them, minutes
    "angles without end": (f"x: '{'<' * 3 * 10**5}'", "more than 2000 characters"),
    "megabytes": ("# " + "x" * 2 * 10**6, "is longer than 2000000 bytes"),
    "a rate beyond all sound": (
        f"again: !new:efficientat_plugin.LogMel {{sample_rate: {10**30}}}",
        "is not an audio sample rate",
    ),
    "a mel bank that fills the memory": (
        "again: !new:efficientat_plugin.LogMel {n_mels: 65536, n_fft: 65536}",
        "their product is at most",
    ),
    "a width that fills the memory": (
        "again: !new:efficientat_plugin.MN {width: 40}",
        "more than 1000000000 parameters",
    ),
    "a table of classes that fills the memory": (
        "again: !new:efficientat_plugin.DyMN {num_classes: 100000000}",
        "more than 1000000000 parameters",
    ),
    "a width beyond all numbers": (
        "again: !new:efficientat_plugin.MN {width: 1.0e+300}",
        "makes no tagger",
    ),
    "wide blocks": (
        "again: !new:efficientat_plugin.PaSST {embed_dim: 12000}",
        "more than 1000000000 parameters",
    ),
    "kernels without end": (
        f"again: !new:efficientat_plugin.DyMN {{dyconv_k: {10**9}}}",
        "dyconv_k=1000000000 is illegal; give an integer from 1 to 64",
    ),
    "lines without end": (
        f"again: !new:efficientat_plugin.DyMN {{dyrelu_k: {10**9}}}",
        "dyrelu_k=1000000000 is illegal; give an integer from 1 to 64",
    ),
    "blocks without end": (
        f"again: !new:efficientat_plugin.PaSST {{depth: {10**9}}}",
        "depth=1000000000 is illegal; give an integer from 1 to 100",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_a_sentence(folder, kind):
    text, match = BOMBS[kind]
    _add(folder, text)
    started = time.monotonic()
    if "is not a file" in match:
        with pytest.raises(FileNotFoundError, match=match) as caught:
            _load(folder)
        assert str(caught.value).isprintable()
    else:
        _refuses(folder, match)
    assert time.monotonic() - started < 60


def test_students_have_a_limit_together(folder, monkeypatch):
    monkeypatch.setattr(model_yaml, "MAX_PARAMETERS", 10**6)
    again = [f"again{k}: !new:efficientat_plugin.MN {{width: 0.1}}" for k in range(9)]
    _add(folder, again[0])
    _load(folder)
    _add(folder, "\n\n".join(again[1:]))
    _refuses(folder, "this MN brings it to more than 1000000 parameters")


@pytest.mark.parametrize(
    "place", ['mids: ["/m/0", "/m/1", "/m/2"]', "target: multiclass", "width: 0.1"]
)
def test_a_bomb_is_no_start_for_training(folder, place):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert place in text
    key = place.partition(":")[0]
    path.write_text(LAUGHS + "\n\n" + text.replace(place, f"{key}: *l7"))
    with pytest.raises(ValueError, match="aliases expand to more than 200000 entries"):
        read_model_folder(folder)


@pytest.mark.parametrize("labels", ["[a, b, c]", "abc", "!ref <label_encoder>"])
def test_labels_that_are_no_table_are_refused(folder, labels):
    path = folder / "hyperparams.yaml"
    table = "labels: !new:efficientat_plugin.LabelTable"
    text = path.read_text()
    assert table in text
    text = text.replace(f"\n{table}", f"\ntable: {table[8:]}")
    text = text.replace("labels: !ref <labels>", "labels: !ref <table>")
    path.write_text(f"{text}\nlabels: {labels}\n")
    _refuses(folder, "labels are a .*; give a LabelTable")


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "words", "!new:os.mkdir [x]", "\0", "3"]
)
def test_what_is_no_settings_is_refused(folder, text):
    (folder / "hyperparams.yaml").write_text(text)
    _refuses(folder, "has no settings|makes no tagger|trust=True")
    (folder / "hyperparams.yaml").write_bytes(b"\xff\xfe\x00")
    _refuses(folder, "codec|makes no tagger")


# --- The pretrainer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("  loadables:\n    student:", "  loadables:\n    ../up:"),
         r"a loadable '\.\./up'"),
        (("  custom_hooks:", "  paths: {student: /etc/passwd}\n  custom_hooks:"),
         "has paths or conditions"),
        (("  custom_hooks:", "  paths: {student: 'http://x/y'}\n  custom_hooks:"),
         "has paths or conditions"),
        (("load_published_state\n", "load_published_state {base_url: 'http://x'}\n"),
         "has arguments"),
        (("    student: !name:efficientat_plugin.load_published_state",
          "    student: !name:torch.save"), r"'!name:torch\.save'"),
        (("  loadables:\n", "  loadables:\n    other: !ref <log_mel>\n"),
         "fills other, a LogMel, not a student"),
        (("pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer",
          "pretrainer: !new:efficientat_plugin.KeepFeatures {}\n\nx:"),
         "has no pretrainer"),
        (("clip_seconds:", "compile: True\n\nclip_seconds:"), "sets compile, and only"),
        (("width: 0.1", "wide: 0.1"), "makes no tagger .TypeError"),
        (('names: [', 'names: ["more", '), "3 class ids but 4 names"),
        (("num_classes: 3", "num_classes: 3" + "0" * 1900), "makes no tagger"),
        (("plugin.MN", "plugin.MN" + "9" * 3000), r"9\.\.\.' is not one"),
        (("num_classes: 3", "num_classes: 3" + "0" * 3000), "a text of more than 2000"),
    ],
)  # fmt: skip
def test_weights_come_from_the_folder_by_our_own_reader(folder, change, match):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    weights = (folder / "student.ckpt").read_bytes()
    saved = folder.parent / "saved"
    _refuses(folder, match, savedir=saved / "links")
    assert {p.name for p in saved.rglob("*")} <= {"links", "hyperparams.yaml"}
    assert (folder / "student.ckpt").read_bytes() == weights


def _of_two_classes(model):
    state = MN(num_classes=2, width=0.1).state_dict()
    return hyperparams(model).replace("num_classes: 3", "num_classes: 2"), state


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("sample_rate: 32000  #", "sample_rate: 16000  #"), "log_mel has 32000 Hz"),
        (("sample_rate: 32000  #", "sample_rate: 0  #"), "log_mel has 32000 Hz"),
        (("clip_seconds: 1.0", "clip_seconds: .inf"), "clip_seconds=inf must be"),
        (("clip_seconds: 1.0", "clip_seconds: .nan"), "clip_seconds=nan must be"),
        (("clip_seconds: 1.0", "clip_seconds: one"), "makes no tagger"),
        (("target: multiclass", "target: []"), "choose one of"),
        (("  log_mel: !ref <log_mel>\n  s", "  s"), "has no module log_mel"),
        (("modules:", "module:"), "makes no tagger"),
        (("labels: !new", "label: !new"), "makes no tagger"),
        (("    student: !name", "    nobody: !name"), None),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(folder, change, match):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    if match is None:
        assert len(_load(folder).labels) == 3
    else:
        assert str(path) in _refuses(folder, match)


def test_as_many_labels_as_classes(folder, model):
    text, state = _of_two_classes(model)
    (folder / "hyperparams.yaml").write_text(text)
    torch.save(state, folder / "student.ckpt")
    _refuses(folder, "2 classes, but there are 3 labels")


# --- Links ---------------------------------------------------------------------------


def test_a_snapshot_of_the_hub_is_a_folder_of_links(folder, tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in list(folder.iterdir()):
        blob = tmp_path / "blobs" / path.name
        blob.parent.mkdir(exist_ok=True)
        (snapshot / path.name).symlink_to(path.rename(blob))
    assert _load(snapshot).labels.names == NAMES


@pytest.mark.parametrize("name", ["hyperparams.yaml", "student.ckpt"])
@pytest.mark.parametrize("target", ["secret", "nowhere", ".", "name"])
def test_links_out_of_the_folder_do_no_harm(folder, tmp_path, name, target):
    (tmp_path / "secret").write_text("password: 1234")
    (folder / name).unlink()
    (folder / name).symlink_to(name if target == "name" else tmp_path / target)
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises((OSError, ValueError)) as caught:
        _load(folder, savedir=tmp_path / "saved" if target == "secret" else None)
    assert "1234" not in str(caught.value) and str(caught.value).isprintable()
    after = {str(p) for p in tmp_path.rglob("*") if "saved" not in p.parts}
    assert sorted(after) == before
    assert (tmp_path / "secret").read_text() == "password: 1234"


# --- Our own folders -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"family": DyMN, "width": 0.4}, {"head": "multihead_attention_pooling"}],
)
def test_what_we_write_is_loaded_as_speechbrain_loads_it(folder, which_load, options):
    model = _model(**options)
    (folder / "hyperparams.yaml").write_text(hyperparams(model))
    torch.save(model.student.state_dict(), folder / "student.ckpt")
    tagger, trusted = _load(folder), _load(folder, trust=True)
    waveform = 0.1 * torch.randn(1, 32000)
    assert torch.equal(tagger(waveform), trusted(waveform))
    plain = Pretrained.from_hparams(str(folder), run_opts=ON_CPU)
    assert [*tagger.mods] == [*trusted.mods] == [*plain.mods]
    ours, theirs = vars(tagger.hparams), vars(trusted.hparams)
    assert ours.keys() == theirs.keys()
    # HyperPyYAML takes text in brackets for a tuple, the first time.
    assert tagger.labels.names == trusted.labels.names == NAMES
    assert read_model_folder(folder).labels.names == NAMES


def test_names_of_any_characters_come_back(folder, model):
    names = ("del\x7f csi\x9b nel\x85", "\ufffe \u2028 🎵 \t", "lone \ud800")
    labels = LabelTable(model.labels.mids, names)
    text = hyperparams(model._replace(labels=labels))
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    assert read_model_folder(folder).labels.names == names
    assert _load(folder).labels.names == names


@pytest.mark.parametrize("name", ["target", "short_clips"])
def test_settings_are_no_lines_of_another_yaml(folder, name):
    path = folder / "hyperparams.yaml"
    lines = path.read_text().splitlines()
    hostile = f'{name}: "repeat\\nevil: !apply:os.mkdir [x]"'
    lines = [hostile if line.startswith(f"{name}:") else line for line in lines]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"it has {name}='.*, not one of"):
        read_model_folder(folder)


def test_every_legal_tag_names_what_its_kind_says():
    for tag in model_yaml.LEGAL_TAGS:
        kind, _, name = tag.partition(":")
        part = model_yaml.pydoc.locate(name)
        assert isinstance(part, type) is (kind == "!new"), tag


def test_folders_that_are_written_need_no_other_tags(folder):
    node = model_yaml._node((folder / "hyperparams.yaml").read_text())
    assert model_yaml._check(node, "ours") == []


def test_nothing_is_fetched_but_two_files(folder, tmp_path):
    saved = tmp_path / "saved"
    _load(folder, savedir=saved)
    assert {p.name for p in saved.iterdir()} == {"hyperparams.yaml", "student.ckpt"}
    assert _load(folder, download_only=True) is None
    (folder / "student.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.ckpt is not a file"):
        _load(folder)
    (folder / "hyperparams.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"hyperparams\.yaml"):
        _load(folder)
