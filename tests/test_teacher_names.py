"""A teacher is named in one way, whatever it is and whichever recipe takes it."""

import importlib.util
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import REPOSITORY, arguments_of, run_recipe
from small_ast import write_ast
from small_rows import SAMPLE_RATE, TRAIN_IDS, noise, rows_of, write_parquet

from efficientat_plugin.contracts import TeacherInput
from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labelled import LabelledClips
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.rows import load_rows, summarize_rows
from efficientat_plugin.data.splits import Split
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.pretrained.published import PUBLISHED, PublishedStudent
from efficientat_plugin.pretrained.published_passt import TEACHERS, PublishedTeacher
from efficientat_plugin.students.ensemble import WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.teachers.ast_hub import load_ast
from efficientat_plugin.teachers.bring_your_own import Resampled
from efficientat_plugin.teachers.load import names_of, open_teachers
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.stored import StoredTeacher

CLASSES = 527
# Sizes that tests can afford, and that a state dict does not determine
PASST = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_frames": 100}
PASST |= {"frequency_stride": 16, "time_stride": 16}
FRONT_END = {"sample_rate": SAMPLE_RATE, "n_mels": 128, "hop_length": 320}
OWN = """
import torch

class Own(torch.nn.Module):
    def forward(self, waveform):
        return waveform[:, ::11][:, :527]

def make():
    own = Own()
    own.sample_rate, own.labels = 16000, LABELS
    return own

def make_silent():
    return Own()

LABELS = """


class Kind:
    """A way to name a teacher: how it is written, what else is needed, who it is."""

    def __init__(self, name, network, **options):
        self.name, self.network, self.options = name, network, options


def with_front_end(network, **front_end):
    return WaveformStudent(LogMel(**FRONT_END | front_end), network).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with teachers of all kinds, and their downloads in ``cache``."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("teachers")
    labels = audioset_labels()
    text = ["index,mid,display_name"]
    text += [f'{n},{mid},"{mid}"' for n, mid in enumerate(labels.mids)]
    (place / "classes.csv").write_text("\n".join(text))
    (place / "all_kinds.py").write_text(f"{OWN}{list(labels.mids)!r}\n")
    (place / "cache").mkdir()
    rows = [row | {"labels": [labels.mids[0]]} for row in rows_of(TRAIN_IDS[:3])]
    write_parquet(place / "data" / "data" / "bal_train" / "0.parquet", rows)
    write_parquet(place / "data" / "data" / "eval" / "0.parquet", rows)
    return place


def student(**options):
    network = MN(CLASSES, width=0.1, **options)
    network.options = {"num_classes": CLASSES, "width": 0.1, **options}
    network.front_end = dict(FRONT_END)
    return network.eval()


def transformer():
    network = PaSST(CLASSES, **PASST)
    network.options = {"num_classes": CLASSES, **PASST}
    network.front_end = dict(FRONT_END)
    return network.eval()


def save(network, path):
    torch.save(network.state_dict(), path)
    return path


def write_model(network, folder):
    scores = {"test": tagging_scores(np.eye(3, CLASSES), np.eye(3, CLASSES))}
    model = TrainedModel(network, audioset_labels(), "multilabel", 0.5)
    write_model_folder(folder, model, Provenance("m", None, "", "", scores))
    return folder


@pytest.fixture(scope="module")
def ast(place):
    transformers = pytest.importorskip("transformers")
    # As the hub's own cache has it
    commit = "0" * 40
    in_cache = place / "cache" / "models--someone--ast"
    (in_cache / "refs").mkdir(parents=True)
    (in_cache / "refs" / "main").write_text(commit)
    names = audioset_labels().names[::-1]
    folders = place / "ast", in_cache / "snapshots" / commit
    write_ast(transformers, names, *folders)
    return place / "ast"


def published_student(place, request, patch):
    entry = PublishedStudent("tiny_as", "mn", "tiny_as.pt", 0.1)
    patch.setitem(PUBLISHED, "tiny_as", entry)
    network = student()
    save(network, place / "cache" / "tiny_as.pt")
    return Kind("tiny_as", with_front_end(network))


def published_transformer(place, request, patch):
    sizes = {k: v for k, v in PASST.items() if "stride" not in k}
    entry = PublishedTeacher("tiny_passt", "v1", "tiny-passt.pt", stride=16, **sizes)
    patch.setitem(TEACHERS, "tiny_passt", entry)
    network = PaSST(**entry.options()).eval()
    save(network, place / "cache" / "tiny-passt.pt")
    return Kind("tiny_passt", with_front_end(network))


def ast_folder(place, request, patch):
    return Kind(request.getfixturevalue("ast"), load_ast(place / "ast"))


def ast_of_the_hub(place, request, patch):
    request.getfixturevalue("ast")
    return Kind("someone/ast", load_ast(place / "ast"))


def student_file(place, request, patch):
    network = student()
    path = save(network, place / "student.pt")
    return Kind(path, with_front_end(network), n_mels=128, hop_length=320)


def transformer_file(place, request, patch):
    network = transformer()
    path = save(network, place / "passt.pt")
    given = {"time_stride": 16, "num_heads": 2, "n_mels": 128, "hop_length": 320}
    return Kind(path, with_front_end(network), **given)


def model_folder(place, request, patch):
    network = student()
    return Kind(write_model(network, place / "model_folder"), with_front_end(network))


def run_folder(place, request, patch):
    network = student()
    write_model(network, place / "run" / "model")
    yaml = REPOSITORY / "hparams" / "distil.yaml"
    (place / "run" / "hyperparams.yaml").write_text(yaml.read_text())
    return Kind(place / "run", with_front_end(network))


def transformer_model_folder(place, request, patch):
    network = transformer()
    return Kind(write_model(network, place / "transformer"), with_front_end(network))


def checkpoint_of_a_run(place, request, patch):
    """With what describes it beside it."""
    network = transformer()
    model = write_model(network, place / "described")
    folder = place / "save" / "CKPT"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "student.ckpt", folder / "peer.ckpt")
    shutil.copy(model / "hyperparams.yaml", folder / "peer_hyperparams.ckpt")
    return Kind(folder / "peer.ckpt", with_front_end(network))


def own_function(place, request, patch):
    own = importlib.import_module("all_kinds").make()
    return Kind("all_kinds:make", own)


def own_function_without_attributes(place, request, patch):
    own = importlib.import_module("all_kinds").make()
    options = {"labels": str(place / "classes.csv"), "sample_rate": 16000}
    return Kind("all_kinds:make_silent", own, **options)


def several(place, request, patch):
    one, two = (
        make(place, request, patch) for make in (transformer_file, own_function)
    )
    members = [one.network, Resampled(two.network, SAMPLE_RATE)]
    return Kind(f"{one.name},{two.name}", members, **{str(one.name): one.options})


KINDS = [
    published_student,
    published_transformer,
    ast_folder,
    ast_of_the_hub,
    student_file,
    transformer_file,
    model_folder,
    run_folder,
    transformer_model_folder,
    checkpoint_of_a_run,
    own_function,
    own_function_without_attributes,
    several,
]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def kind(request, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    yield request.param(place, request, monkeypatch)
    sys.modules.pop("all_kinds", None)


def logits_of(network, waveform):
    """Logits of waveforms at 32 kHz, in the order of AudioSet's classes."""
    if isinstance(network, list):
        return torch.stack([logits_of(each, waveform) for each in network]).mean(0)
    if network.sample_rate != SAMPLE_RATE:
        network = Resampled(network, SAMPLE_RATE)
    output = network(waveform)
    return getattr(output, "logits", output)


def recipe_of(name):
    path = REPOSITORY / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hparams_of(yaml, place, kind, teacher_key, **more):
    options = {teacher_key: str(kind.name), "teacher_options": kind.options}
    options |= {"pretrained_folder": str(place / "cache"), "dataset": "x", **more}
    return load_hparams(REPOSITORY / "hparams" / f"{yaml}.yaml", options)


def clip_batch(place):
    rows = load_rows(str(place / "data"), "bal_train")
    clips = Clips(rows, ClipReader(audioset_labels(), 0.5, SAMPLE_RATE))
    return rows, collate([clips[number] for number in range(len(clips))])


@torch.no_grad()
def by_dump(place, kind, tmp_path):
    options = {"dataset": str(place / "data"), "sample_rate": SAMPLE_RATE}
    hparams = hparams_of("dump_teacher_logits", place, kind, "teachers", **options)
    teacher, labels = recipe_of("dump_teacher_logits").open_teacher(hparams)
    assert labels.mids == audioset_labels().mids
    return teacher(clip_batch(place)[1].waveform).logits


@torch.no_grad()
def by_distil(place, kind, tmp_path):
    hparams = hparams_of("distil", place, kind, "teacher")
    teacher, labels, target = recipe_of("distil").open_teacher(hparams)
    assert labels.mids == audioset_labels().mids
    return teacher(clip_batch(place)[1].waveform).logits


def by_cmkd(place, kind, tmp_path):
    options = {"width": 0.1, "pretrained": None}
    yaml = "cmkd_cnn_from_transformer"
    hparams = hparams_of(yaml, place, kind, "teacher_name", **options)
    rows, batch = clip_batch(place)
    labels = audioset_labels()
    teacher = hparams["teacher"]
    assert "for 3 clips" in teacher.check(summarize_rows(rows, labels), labels)
    log_mel = hparams["log_mel"].eval()(batch.waveform)
    return teacher(TeacherInput(batch, log_mel, None)).logits


def by_finetune(place, kind, tmp_path):
    options = {"clip_seconds": 0.5, "num_workers": 0, "max_unreadable_share": 0.0}
    options |= {"output_folder": str(tmp_path / "tuned")}
    hparams = hparams_of("finetune", place, kind, "teacher", **options)
    rows, batch = clip_batch(place)
    clips = LabelledClips(rows, audioset_labels(), "multilabel")
    recipe = recipe_of("finetune")
    run = recipe.Run(clips, Split([0, 1, 2], [], []), hparams, "cpu")
    teacher = recipe.open_teacher(run)
    assert isinstance(teacher, StoredTeacher)
    return teacher.store.lookup(batch.clip_id).logits


RECIPES = [by_dump, by_distil, by_cmkd, by_finetune]


@pytest.mark.parametrize("ask", RECIPES, ids=lambda ask: ask.__name__)
def test_every_recipe_takes_every_kind_of_teacher(ask, kind, place, tmp_path):
    """And computes the logits of the network that is meant."""
    logits = ask(place, kind, tmp_path)
    with torch.no_grad():
        expected = logits_of(kind.network, clip_batch(place)[1].waveform)
    assert expected.std() > 0
    # Stored logits are of half precision
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "sources, options, text",
    [
        ("tiny_as,", {}, "has a comma with no teacher before or after it"),
        ("tiny_as", ["time_stride"], "must be a mapping of options"),
        ("tiny_as", {"other.pt": {"width": 1}}, "for other.pt, which is not among"),
        ("tiny_as", {"gain": 1}, "gain is not an option of MN or LogMel"),
        ("all_kinds:make", {"width": 1}, "width is not an option of all_kinds:make"),
        ("nobody", {}, "'nobody' is neither a published teacher nor"),
    ],
)
def test_what_names_no_teacher_is_refused(
    sources, options, text, place, monkeypatch, request
):
    published_student(place, request, monkeypatch)
    monkeypatch.syspath_prepend(str(place))
    with pytest.raises(ValueError, match=text):
        open_teachers(sources, savedir=place / "cache", options=options)


@pytest.fixture(params=[False, True], ids=["as installed", "without transformers"])
def transformers_or_not(request, monkeypatch):
    if request.param:
        monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.mark.parametrize("make", [model_folder, run_folder])
def test_a_model_folder_is_taken_for_no_ast(
    make, transformers_or_not, place, request, monkeypatch
):
    kind = make(place, request, monkeypatch)
    teacher, labels, target = open_teachers(kind.name)
    assert isinstance(teacher.members[0].student, MN)
    assert (labels.mids, target) == (audioset_labels().mids, "multilabel")


def test_a_folder_without_a_model_is_refused_in_a_sentence(
    transformers_or_not, tmp_path
):
    with pytest.raises(FileNotFoundError, match="has no model in it: neither hyperpar"):
        open_teachers(tmp_path)


@pytest.mark.parametrize(
    "given, text",
    [
        ({}, "front end; pass --teacher_options '{n_mels: ..., hop_length: ...}'"),
        ({"n_mels": 128, "hop_length": 320}, "pass time_stride .* --teacher_options"),
        (
            {"n_mels": 128, "hop_length": 320, "time_stride": 16},
            "pass num_heads, with --teacher_options",
        ),
    ],
)
def test_a_missing_option_of_a_bare_file_is_asked_for(
    given, text, place, request, monkeypatch
):
    kind = transformer_file(place, request, monkeypatch)
    with pytest.raises(ValueError, match=text):
        open_teachers(kind.name, options=given)


def test_a_path_may_have_a_comma(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert names_of(tmp_path / "a,b") == [str(tmp_path / "a,b")]
    assert names_of("a,b") == ["a", "b"]


def test_options_may_be_those_of_one_of_several(place, request, monkeypatch):
    """Two files of one shape, of which each has a log-mel of its own."""
    network = student()
    for name in ("one.pt", "two.pt"):
        save(network, place / name)
    monkeypatch.chdir(place)
    options = {"n_mels": 128, "hop_length": 320, "two.pt": {"hop_length": 640}}
    teacher, _, _ = open_teachers("one.pt,two.pt", options=options)
    assert [member.log_mel.hop_length for member in teacher.members] == [320, 640]


TAKES_A_TEACHER = ["distil", "dump_teacher_logits", "finetune", "esc50", "fsd50k"]
TAKES_A_TEACHER += ["openmic", "tau2020", "cmkd_cnn_from_transformer"]
TAKES_A_TEACHER += ["cmkd_transformer_from_cnn", "fmn10_tf256", "events_quickstart"]
TAKES_A_TEACHER += ["finetune_events", "dcase16_t2", "fmn10", "fmn10_gru256"]
TAKES_A_TEACHER += ["fmn10_hybrid256", "fmn10_tf256_advanced"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "hparams").glob("*.yaml")))
def test_options_are_in_every_yaml_that_takes_a_name(path):
    # At the top, or in a group
    has_options = re.search(r"^(  )?teacher_options: \{\}", path.read_text(), re.M)
    assert bool(has_options) == (path.stem in TAKES_A_TEACHER)


# --- From the command line ---------------------------------------------------------

GIVEN = "{n_mels: 128, hop_length: 320, time_stride: 16, num_heads: 2}"
RUN = {"clip_seconds": 0.5, "num_workers": 0, "batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def own_transformer(place):
    """A file of a transformer that was trained here, and its logits of the clips."""
    network = transformer()
    save(network, place / "own_passt.pt")
    _, batch = clip_batch(place)
    with torch.no_grad():
        return batch.clip_id, with_front_end(network)(batch.waveform).logits


@pytest.mark.slow
def test_a_transformer_teaches_through_a_store(place, own_transformer):
    options = RUN | {"dataset": "data", "split": "bal_train", "store": "stored"}
    options |= {"teachers": "own_passt.pt", "teacher_options": GIVEN}
    options["max_unreadable_share"] = 0.0
    run_recipe(
        "dump_teacher_logits", [arguments_of("dump_teacher_logits", **options)], place
    )
    ids, expected = own_transformer
    logits = LogitsStore(place / "stored").lookup(ids)
    assert logits.known.all()
    torch.testing.assert_close(logits.logits, expected, atol=2e-3, rtol=2e-3)
    sounds = place / "sounds"
    sounds.mkdir(exist_ok=True)
    for number in range(24):
        soundfile.write(sounds / f"{number}.wav", noise(number), SAMPLE_RATE)
    options = RUN | {"dataset": "sounds", "teacher": "own_passt.pt", "width": 0.1}
    options |= {"teacher_options": GIVEN, "number_of_epochs": 1, "output_folder": "own"}
    printed = run_recipe("distil", [arguments_of("distil", **options)], place)
    assert "agreement with the teacher, the first" in printed
    model = read_model_folder(place / "own" / "model")
    assert model.labels.mids == audioset_labels().mids


@pytest.mark.slow
def test_teachers_of_two_kinds_and_rates_teach_online(place, own_transformer):
    options = RUN | {"dataset": "data", "train_split": "bal_train", "width": 0.1}
    options |= {"teacher_name": "own_passt.pt,all_kinds:make", "pretrained": None}
    options |= {"teacher_options": f"{{own_passt.pt: {GIVEN}}}", "number_of_epochs": 1}
    options |= {"class_balanced": False, "clips_per_epoch": 2, "eval_batch_size": 2}
    options |= {"output_folder": "loop", "compare_without_teacher": True}
    call = arguments_of("cmkd_cnn_from_transformer", **options)
    printed = run_recipe("audioset_kd", [call], place)
    assert "Teacher: it takes the student's waveforms, for 3 clips" in printed
    for row in ("student with teacher", "teacher", "student without teacher"):
        assert f"| {row} |" in (place / "loop" / "comparison.md").read_text()
