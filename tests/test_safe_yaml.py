"""A model folder from a stranger becomes a tagger or is refused, and runs no code."""

import os
import re
import shutil
import sys
import time

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import resolver
from speechbrain.inference.interfaces import Pretrained

from efficientat_plugin import load_encoder, load_student, load_teacher
from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import (
    TrainedModel,
    hyperparams,
    read_model_folder,
)
from efficientat_plugin.pretrained.safe_yaml import read_settings
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
    """HyperPyYAML's first load in a process changes ruamel's tuples for good."""
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


def _replace(folder, old, new):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


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
    "through a module of ours": (
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
    "included": "x: !include:more.yaml",
    "included from elsewhere": "x: !include:../elsewhere.yaml",
}
# Kinds that SpeechBrain would run, but not as the value of an `x`
OTHER_ATTACKS = {
    "a key": "? !apply:os.mkdir [MARK]\n: 1",
    "a tag of a key": "!apply:os.mkdir : 1",
    "a placeholder": "x: !PLACEHOLDER",
    "a control character": "x: !new:%1b[2Jos.mkdir",
    "a line break": "x: !new:os%0a.mkdir",
    "another folder's name": "x: !new:efficientat_plugin_.MN {width: 0.1}",
    "a long name": f"x: !new:efficientat_plugin.MN{'9' * 3000}",
}


@pytest.fixture
def attack(folder, tmp_path, monkeypatch):
    """Fills a text in; says whether it has run."""
    mark = tmp_path / "mark"
    code = f"import os\nos.mkdir({str(mark)!r})\ndef run(*_): pass\n"
    for name in ("module_of_a_stranger", "hubconf", "custom"):
        (folder / f"{name}.py").write_text(code)
    for path in (folder / "more.yaml", folder.parent / "elsewhere.yaml"):
        path.write_text(f"y: !applyref:os.mkdir [{mark}]")
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


def _hyperpyyaml_runs(attack, folder):
    """Whether it is an attack at all: what every YAML of SpeechBrain's may do."""
    before = os.getcwd()
    try:
        with open(folder / "hyperparams.yaml") as file:
            load_hyperpyyaml(file)
    except Exception as error:  # an attack may end so, when it has run
        print(error)
    os.chdir(before)
    ran = attack.has_run()
    attack.forget()
    return ran


@pytest.mark.filterwarnings("ignore")  # of what the attacks leave open
@pytest.mark.parametrize("kind", [*ATTACKS, *OTHER_ATTACKS])
def test_a_tag_of_no_part_is_refused_unexecuted(folder, attack, kind):
    num_lines = len((folder / "hyperparams.yaml").read_text().splitlines())
    _add(folder, attack.filled((ATTACKS | OTHER_ATTACKS)[kind]))
    if kind in ATTACKS:
        assert _hyperpyyaml_runs(attack, folder)
    place = re.search(r"hyperparams.yaml, line (\d+): ", _refuses(folder, "trust=True"))
    assert int(place[1]) > num_lines
    assert not attack.has_run()
    assert "module_of_a_stranger" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "x: (!!python/object/apply:os.mkdir [MARK])",
        'x: "(!!python/object/apply:os.mkdir [MARK])"',
    ],
)
def test_text_in_brackets_is_text(folder, attack, which_load, text):
    _add(folder, attack.filled(text))
    assert _load(folder).labels.names == NAMES
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


def test_overrides_need_trust(folder):
    overrides = {"clip_seconds": 2.5, "short_clips": "as_is"}
    _refuses(folder, "overrides change .*trust=True", overrides=overrides)
    tagger = _load(folder, overrides=overrides, trust=True)
    assert tagger.clip_seconds == 2.5 and tagger.short_clips == "as_is"


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
    # These take values and build nothing of it.
    if entry in ("training", "export", "student", "encoder", "teachers"):
        ENTRIES[entry](folder)
    else:
        with pytest.raises((OSError, ValueError)):
            ENTRIES[entry](folder)
    assert not attack.has_run()


def test_python_beside_the_yaml_is_not_looked_at(folder, attack):
    assert len(_load(folder).labels) == 3  # custom.py is there
    assert not attack.has_run() and "custom" not in sys.modules


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
        "<clip_seconds>",
        "<nothing>",
    ],
)
def test_a_reference_is_a_key_and_computes_nothing(folder, reference):
    _replace(folder, "clip_seconds: 1.0", f'clip_seconds: !ref "{reference}"')
    _refuses(folder, "does not name a setting")


def test_references_are_followed(folder):
    _replace(folder, "clip_seconds: 1.0", "classes: 3\nclip_seconds: !ref <classes>")
    _replace(folder, "  num_classes: 3", "  num_classes: !ref <classes>")
    _replace(folder, "  sample_rate: 32000\n", "  sample_rate: !ref <sample_rate>\n")
    _replace(folder, "labels: !new", "table: !new")
    _add(folder, "labels: !ref <table>")
    tagger = _load(folder)
    assert tagger.clip_seconds == 3.0 and tagger.labels.names == NAMES
    assert tagger.sample_rate == 32000
    assert read_model_folder(folder).student.num_classes == 3


# --- Bombs ---------------------------------------------------------------------------

LAUGHS = "l0: &l0 [ha, ha]\n\n" + "\n\n".join(
    f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10)}]" for k in range(1, 12)
)
LONG = "x" * 10**6
BOMBS = {
    "aliases of aliases": (LAUGHS, "aliases expand to more than"),
    "an alias of itself": ("x: &x [*x]", "aliases expand to more than"),
    "brackets": ("x: " + "[" * 500, "is not YAML"),
    "two documents": ("---\nx: 1", "is not YAML"),
    "a key twice": ("target: multilabel", "is not YAML"),
    "a control character": ("x: \x1b[2J", "is not YAML"),
    "an unknown anchor": ("x: *nobody", "is not YAML"),
    "megabytes": ("# " + "x" * 2 * 10**6, "is longer than 2000000 bytes"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_a_sentence(folder, kind):
    text, match = BOMBS[kind]
    _add(folder, text)
    started = time.monotonic()
    _refuses(folder, match)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "text",
    [
        f"l0: '{LONG}'\n\nl1: [{', '.join(['!ref <l0>'] * 40)}]",
        f"x: '{'<' * 3 * 10**5}'",
        "again: !new:efficientat_plugin.MN {width: 40}",
    ],
)
def test_what_no_setting_needs_costs_nothing(folder, text):
    _add(folder, text)
    started = time.monotonic()
    assert _load(folder).labels.names == NAMES
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "place", ['mids: ["/m/0", "/m/1", "/m/2"]', "target: multiclass", "width: 0.1"]
)
def test_a_bomb_is_no_start_for_training(folder, place):
    _replace(folder, place, f"{place.partition(':')[0]}: *l7")
    path = folder / "hyperparams.yaml"
    path.write_text(LAUGHS + "\n\n" + path.read_text())
    with pytest.raises(ValueError, match="aliases expand to more than 200000 entries"):
        read_model_folder(folder)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "words", "!new:os.mkdir [x]", "\0", "3"]
)
def test_what_is_no_settings_is_refused(folder, text):
    (folder / "hyperparams.yaml").write_text(text)
    _refuses(folder, "has no settings|is not YAML|trust=True")
    (folder / "hyperparams.yaml").write_bytes(b"\xff\xfe\x00")
    _refuses(folder, "is not YAML")


# --- Settings ------------------------------------------------------------------------

STUDENT = "student: !new:efficientat_plugin.MN\n  num_classes: 3\n  width: 0.1"
NOT_ITS_OWN = "has no pretrainer that loads student, and nothing else, from its own"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        # Weights come from the folder.
        (("  loadables:\n    student:", "  loadables:\n    ../up:"), NOT_ITS_OWN),
        (("  custom_hooks:", "  paths: {student: /etc/passwd}\n  custom_hooks:"),
         NOT_ITS_OWN),
        (("  loadables:\n", "  loadables:\n    other: !ref <log_mel>\n"), NOT_ITS_OWN),
        (("pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer",
          "pretrainer: 3\n\nx:"), NOT_ITS_OWN),
        (("    student: !name:efficientat_plugin.load_published_state",
          "    student: !name:torch.save"), r"'!name:torch\.save'"),
        # Labels are a table.
        (("labels: !new", "labels: [a, b, c]\n\nx: !new"), "in the place of a part"),
        (("labels: !new", "labels: abc\n\nx: !new"), "in the place of a part"),
        (("labels: !new", "label: !new"), "has no 'labels'"),
        (('names: [', 'names: ["more", '), "3 class ids but 4 names"),
        (('  mids: ["/m/0", ', "  mids: ["), "2 class ids but 3 names"),
        # Settings are legal.
        (("clip_seconds: 1.0", "clip_seconds: .inf"), "clip_seconds=inf must be"),
        (("clip_seconds: 1.0", "clip_seconds: .nan"), "clip_seconds=nan must be"),
        (("clip_seconds: 1.0", "clip_seconds: one"), "is not a tagger's"),
        (("target: multiclass", "target: []"), "it has target="),
        (("target: multiclass", 'target: "multilabel\\nevil: !apply:os.mkdir [x]"'),
         "it has target='.*, not one of"),
        # The network and its front end are those of the weights, and of legal size.
        (("width: 0.1", "wide: 0.1"), "wide is not an option of MN or LogMel"),
        (("width: 0.1", "width: 40"), "more than 1000000000 parameters"),
        (("width: 0.1", "width: 1.0e+300"), "is not a tagger's"),
        (("num_classes: 3", "num_classes: 100000000"), "more than 1000000000 param"),
        (("num_classes: 3", "num_classes: 3" + "0" * 1900), "is not a tagger's"),
        (("  n_mels: 128", "  n_mels: 65536\n  n_fft: 65536"), "product is at most"),
        (("  sample_rate: 32000\n", f"  sample_rate: {10**30}\n"), "audio sample rate"),
    ],
)  # fmt: skip
def test_settings_that_are_not_a_taggers_are_refused(folder, change, match):
    _replace(folder, *change)
    assert str(folder) in _refuses(folder, match)


@pytest.mark.parametrize(
    ("family", "options", "match"),
    [
        (DyMN, "dyconv_k: 1000000000", "dyconv_k=1000000000 is illegal; give an int"),
        (DyMN, "dyrelu_k: 1000000000", "dyrelu_k=1000000000 is illegal; give an int"),
    ],
)
def test_networks_without_end_are_refused(folder, family, options, match):
    model = _model(family)
    (folder / "hyperparams.yaml").write_text(hyperparams(model))
    torch.save(model.student.state_dict(), folder / "student.ckpt")
    _replace(folder, "  width: 0.1", f"  width: 0.1\n  {options}")
    assert str(folder) in _refuses(folder, match)


def test_as_many_labels_as_classes(folder):
    state = MN(num_classes=2, width=0.1).state_dict()
    _replace(folder, "num_classes: 3", "num_classes: 2")
    torch.save(state, folder / "student.ckpt")
    _refuses(folder, "2 classes, but there are 3 labels")


# --- Links ---------------------------------------------------------------------------


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
    assert {*tagger.mods} <= {*trusted.mods} == {*plain.mods}
    # HyperPyYAML takes text in brackets for a tuple, the first time.
    assert tagger.labels.names == trusted.labels.names == NAMES
    assert read_model_folder(folder).labels.names == NAMES
    for each in (tagger, trusted):
        assert each.audio_normalizer.sample_rate == 32000


def test_names_of_any_characters_come_back(folder, model):
    names = ("del\x7f csi\x9b nel\x85", "\ufffe \u2028 🎵 \t", "lone \ud800")
    labels = LabelTable(model.labels.mids, names)
    text = hyperparams(model._replace(labels=labels))
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    assert read_model_folder(folder).labels.names == names
    assert _load(folder).labels.names == names


def test_folders_that_are_written_need_no_other_tags(folder):
    read_settings(folder / "hyperparams.yaml", only_known_parts=True)


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
