"""What is exported says what PyTorch says, in every runtime, or is not written."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of
from golden_vectors import GOLDEN

from efficientat_plugin.cli import export, main
from efficientat_plugin.data.decoding import decode
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.export import litert_file, onnx_file, parity
from efficientat_plugin.export.assembly import build_model
from efficientat_plugin.export.golden import front_end_constants, golden_vectors, header
from efficientat_plugin.export.graph import Graph, Range
from efficientat_plugin.export.litert_file import export_litert
from efficientat_plugin.export.log_mel import factors
from efficientat_plugin.export.networks import add_head, add_maps, add_module
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.export.parity import check_parity
from efficientat_plugin.export.quantize import Recipe, may_be_int8, observe
from efficientat_plugin.export.source import find_source
from efficientat_plugin.export.test_clips import read_clips, synthesised
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.pretrained.published import PUBLISHED
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.model_file import LOGITS, PROBABILITIES
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

BACKENDS = ("onnxruntime", "openvino")
NARROW = {"num_classes": 7, "width": 0.1}
FIXED_SECONDS = 0.64  # 64 frames

# Weights of these are random: see `random_weights`.
STUDENTS = {
    "mlp": lambda: MN(**NARROW),
    "linear": lambda: MN(**NARROW, head="linear"),
    "fully_convolutional": lambda: MN(**NARROW, head="fully_convolutional"),
    "attention_pooling": lambda: MN(**NARROW, head="multihead_attention_pooling"),
    "dilated": lambda: MN(**NARROW, dilated=True, reduced_tail=True),
    "strides": lambda: MN(**NARROW, strides=(2, 2, 1, 1)),
    "no_squeeze_excite": lambda: MN(**NARROW, se_dims="none"),
    "bands_too": lambda: MN(**NARROW, se_dims="cf", se_agg="avg"),
    "frames_too": lambda: MN(**NARROW, se_dims="tc", se_agg="min", n_frames=64),
    "added": lambda: MN(**NARROW, se_dims="fc", se_agg="add"),
    "dymn": lambda: DyMN(**NARROW),
    "dymn_replace_se": lambda: DyMN(
        **NARROW, dynamic_blocks="replace_se", temperature=3.0
    ),
    "dymn_static_convs": lambda: DyMN(**NARROW, use_dyconv=False, dyrelu_k=3),
    "dymn_static_relu": lambda: DyMN(**NARROW, use_dyrelu=False, dyconv_k=2),
    "dymn_no_gates": lambda: DyMN(
        **NARROW, use_coordinate_attention=False, head="fully_convolutional"
    ),
    "dymn_dilated": lambda: DyMN(**NARROW, dilated=True, head="linear", dyrelu_k=1),
}


# What no file of weights tells
STATED = {"n_mels": 128, "hop_length": 320, "clip_seconds": 10.0}


@pytest.fixture(scope="module")
def mn():
    torch.manual_seed(0)
    return source_of(random_weights(MN(**NARROW)))


@pytest.fixture(scope="module")
def dymn():
    torch.manual_seed(0)
    return source_of(random_weights(DyMN(**NARROW)))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Files to calibrate on."""
    folder = tmp_path_factory.mktemp("sounds")
    paths = [folder / f"{number}.wav" for number in range(4)]
    for number, path in enumerate(paths):
        soundfile.write(path, synthesised(16000, 32000, number), 32000)
    return paths


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights, and the labels that go with it."""
    path = tmp_path_factory.mktemp("weights") / "student.pt"
    torch.manual_seed(0)
    torch.save(random_weights(MN(**NARROW)).state_dict(), path)
    names = [f"class {number}" for number in range(NARROW["num_classes"])]
    return path, LabelTable(names, names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, of clips of half a second."""
    torch.manual_seed(0)
    student = random_weights(MN(num_classes=3, width=0.1), 640)
    student.options = {"num_classes": 3, "width": 0.1}
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    labels = LabelTable(["/m/a", "/m/b", "/m/c"], ["chien", "été", "猫"])
    model = TrainedModel(student, labels, "multiclass", 0.5)
    path = tmp_path_factory.mktemp("folder") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}))


@pytest.fixture
def any_int8(monkeypatch):
    """Random weights are worse off in int8 than trained ones."""
    monkeypatch.setitem(parity.LIMITS, "int8", (1.0, 3.0))


# --- Parity ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=STUDENTS)
def any_student(request):
    """Each student in turn, of clips that it can take."""
    seconds = FIXED_SECONDS if request.param == "frames_too" else 0.7
    torch.manual_seed(0)  # a module's fixtures come before the seed of a test
    student = random_weights(STUDENTS[request.param]())
    return source_of(student, clip_seconds=seconds)


def test_every_student_says_the_same_in_every_runtime(any_student):
    """Of one clip, of several, and of another length, where that may be."""
    content = content_of(any_student, front_end="out")
    found = check_parity(content, any_student, "fp32")
    assert found.backends == BACKENDS
    assert found.logits_decibels > 75


def test_every_student_says_nearly_the_same_in_fp16(any_student):
    found = check_parity(content_of(any_student, "fp16"), any_student, "fp16")
    assert found.logits_decibels > 30


def test_every_student_computes_in_int8(any_student, sounds, any_int8):
    """Near its end: further on, random weights make much of every rounding."""
    seen = observe(any_student, sounds[:2])
    last = [site for site in seen.sites if may_be_int8(site)][-6:]
    levels = seen.levels(Recipe(is_int8=lambda site: site in last))
    content = content_of(any_student, "int8", "in", levels)
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds.count("QuantizeLinear") == 2 * len(last)
    found = check_parity(content, any_student, "int8", sounds[:2])
    assert found.backends == BACKENDS


@pytest.mark.parametrize(
    ("kind", "target"),
    [("mn", "multilabel"), ("mn", "multiclass"), ("dymn", "multilabel")],
)
def test_the_front_end_may_be_in_the_graph(kind, target, request):
    source = request.getfixturevalue(kind)
    source = source._replace(model=source.model._replace(target=target))
    found = check_parity(content_of(source), source, "fp32")
    assert found.logits_decibels > 75
    tagger = Tagger(content_of(source))
    total = tagger.score(np.zeros((1, 16000), np.float32)).sum()
    assert (total == pytest.approx(1)) == (target == "multiclass")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hop_length": 160},
        {"hop_length": 800, "n_mels": 40},
        {"sample_rate": 16000, "n_fft": 512, "win_length": 400, "f_max": 7000.0},
        {"win_length": 1024, "periodic_window": True, "n_mels": 64},
        {"n_fft": 600, "win_length": 501, "hop_length": 333, "n_mels": 32},
        {"log_floor_mode": "clamp", "log_floor": 1e-4, "f_min": 50.0},
    ],
    ids=str,
)
def test_a_front_end_of_any_settings_is_the_same_in_the_graph(settings):
    """In numpy, too: the file without front end gets its log-mel from there."""
    student = random_weights(MN(**NARROW))
    source = source_of(student, **settings)
    for front_end in ("in", "out"):
        found = check_parity(content_of(source, front_end=front_end), source, "fp32")
        assert found.probability_error < 5e-5


@pytest.mark.parametrize(
    ("precision", "front_end"),
    [("fp16", "out"), ("int8_weights", "in"), ("int8_weights", "out")],
)
@pytest.mark.parametrize("kind", ["mn", "dymn"])
def test_smaller_files_say_nearly_the_same(kind, precision, front_end, request):
    source = request.getfixturevalue(kind)
    content = content_of(source, precision, front_end)
    check_parity(content, source, precision)  # raises where it does not
    assert len(content) < len(content_of(source, "fp32", front_end))


@pytest.mark.parametrize("kind", ["mn", "dymn"])
def test_int8_computes_in_int8(kind, request, sounds, any_int8):
    source = request.getfixturevalue(kind)
    levels = observe(source, sounds).levels()
    content = content_of(source, "int8", "out", levels)
    assert content.count(b"QuantizeLinear") > 20
    check_parity(content, source, "int8", sounds)  # raises where it is far off


@pytest.mark.parametrize("opset", [19, 21, 23, 26])
def test_every_opset_says_what_the_oldest_says(mn, sounds, opset):
    """In int8, which has the operators that changed the most."""
    levels = observe(mn, sounds[:1]).levels()
    clip = synthesised(20000, 32000)[None]
    _, model = build_model(mn, "int8", "in", opset, levels)
    found = Tagger(model.SerializeToString(), "onnxruntime").outputs(clip)
    expected = Tagger(content_of(mn, "int8", "in", levels)).outputs(clip)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_the_published_student_says_what_was_published(shared, tmp_path):
    """Logits of the published code, of a real recording."""
    weights = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    golden = np.load(GOLDEN / "mn04_as.npz")
    written = export_onnx(weights, tmp_path / "mn04.onnx", front_end="out")
    assert written.parity.probability_error < 1e-5
    tagger = Tagger(written.path)
    assert tagger.facts.sha256 == PUBLISHED["mn04_as"].sha256
    assert tagger.labels.mids == audioset_labels().mids
    files = [str(name) for name in golden["mn04_as/filenames"]][:4]
    audio = shared / "data" / "esc50" / "audio"
    clips = np.stack([decode(audio / name, 32000, 160000) for name in files])
    logits = tagger.outputs(clips)[LOGITS]
    # Clips were resampled in another way then.
    np.testing.assert_allclose(logits, golden["mn04_as/logits"][:4], atol=0.2)


@pytest.mark.slow
def test_int8_of_the_published_student_names_what_it_named(shared, tmp_path):
    weights = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    clips = sorted((shared / "data" / "esc50" / "audio").glob("*.flac"))
    written = export_onnx(
        weights, tmp_path / "a.onnx", "int8", "out", calibration=clips[::8]
    )
    assert written.num_int8 == 40
    plain = export_onnx(weights, tmp_path / "b.onnx", front_end="out")
    assert written.num_bytes < 0.31 * plain.num_bytes
    heard = np.stack([decode(clip, 32000, 160000) for clip in clips[1::8]])
    names = [
        Tagger(path).score(heard).argmax(axis=1) for path in (written.path, plain.path)
    ]
    assert (names[0] == names[1]).mean() > 0.8


def test_what_says_something_else_is_not_written(mn, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_source", lambda *_: mn)
    right = golden_vectors(mn)["logits"]

    def wrong(*arguments):
        with torch.no_grad():
            mn.model.student.classifier[5].bias.add_(1.0)
        graph = onnx_file_build(*arguments)
        with torch.no_grad():
            mn.model.student.classifier[5].bias.sub_(1.0)
        return graph

    onnx_file_build = onnx_file.build_model
    monkeypatch.setattr(onnx_file, "build_model", wrong)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_onnx("any", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    np.testing.assert_allclose(golden_vectors(mn)["logits"], right, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8_weights", "int8"])
def test_what_is_not_finite_is_not_written(precision):
    bad = parity.Parity(np.nan, np.nan, np.nan, 0.0, 1, ("a",))
    with pytest.raises(ValueError, match="nothing was written"):
        parity.judge(bad, precision, "a")


@pytest.mark.parametrize("broken", BACKENDS)
def test_what_is_not_finite_in_one_runtime_is_not_written(mn, monkeypatch, broken):
    class HalfBroken(Tagger):
        def __init__(self, content, backend):
            super().__init__(content, backend)
            self.factor = np.float32(np.nan if backend == broken else 1)

        def outputs(self, waveforms):
            said = super().outputs(waveforms)
            return {name: value * self.factor for name, value in said.items()}

    monkeypatch.setattr(parity, "Tagger", HalfBroken)
    with pytest.raises(ValueError, match="nothing was written; report it"):
        check_parity(content_of(mn), mn, "fp32")


# --- Files ----------------------------------------------------------------------


def test_a_file_tells_all_that_is_needed(folder, tmp_path):
    source = find_source(folder)
    written = export_onnx(folder, tmp_path / "model.onnx", "fp16", "out")
    for backend in BACKENDS:
        facts = Tagger(written.path, backend).facts
        assert facts.labels.names == ("chien", "été", "猫")
        assert facts.labels.mids == ("/m/a", "/m/b", "/m/c")
        assert facts.sha256 == source.sha256 and len(facts.sha256) == 64
        assert (facts.target, facts.clip_seconds) == ("multiclass", 0.5)
        assert facts.front_end.hop_length == 640
        assert (facts.precision, facts.has_front_end) == ("fp16", False)
    assert written.num_bytes == written.path.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx",
        "model.golden.npz",
        "model.front_end.json",
        "model.front_end.h",
    }


def test_nothing_is_left_of_an_export_that_broke_off(weights, tmp_path, monkeypatch):
    before = tmp_path / "a.onnx"
    before.write_bytes(b"as it was")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(onnx_file, "write_golden", full)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(weights[0], before, labels=weights[1], **STATED)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert before.read_bytes() == b"as it was"


def test_golden_vectors_follow_from_the_constants_alone(mn):
    """A port that has the JSON and nothing else, in float64."""
    golden = golden_vectors(mn)
    constants = json.loads(json.dumps(front_end_constants(mn.log_mel)))
    sound = golden["waveform"][0].astype(np.float64)
    sound = sound[1:] - constants["pre_emphasis"] * sound[:-1]
    n_fft, hop = constants["n_fft"], constants["hop_length"]
    sound = np.pad(sound, n_fft // 2, mode="reflect")
    window = np.zeros(n_fft)
    left = (n_fft - constants["win_length"]) // 2
    window[left : left + constants["win_length"]] = constants["window"]
    num_frames = golden["log_mel"].shape[2]
    frames = np.stack([sound[t * hop :][:n_fft] for t in range(num_frames)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    weights = iter(constants["band_weights"])
    for band, (start, length) in enumerate(
        zip(constants["band_start"], constants["band_length"], strict=True)
    ):
        row = np.array([next(weights) for _ in range(length)])
        mel = power[:, start : start + length] @ row
        log_mel = (np.log(mel + 1e-5) + 4.5) / 5
        np.testing.assert_allclose(log_mel, golden["log_mel"][0, band], atol=1e-4)
    assert next(weights, None) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_header_compiles_and_has_the_same_numbers(mn, tmp_path):
    constants = front_end_constants(mn.log_mel)
    (tmp_path / "front_end.h").write_text(header(constants))
    (tmp_path / "a.c").write_text(
        '#include <stdio.h>\n#include "front_end.h"\nint main(void) {\n'
        "  double total = 0;\n"
        "  for (int i = 0; i < EFFICIENTAT_WIN_LENGTH; i++)\n"
        "    total += EFFICIENTAT_WINDOW[i];\n"
        '  printf("%d %.6f %.6g", EFFICIENTAT_BAND_START[5], total,'
        " EFFICIENTAT_LOG_FLOOR);\n  return 0;\n}\n"
    )
    build = ["cc", "-std=c99", "-Wall", "-Werror", "-Wno-unused-variable", "-o", "a"]
    subprocess.run([*build, "a.c"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "a"], capture_output=True, text=True).stdout
    start, total, floor = said.split()
    assert int(start) == constants["band_start"][5]
    assert float(total) == pytest.approx(sum(constants["window"]), abs=1e-4)
    assert float(floor) == pytest.approx(1e-5)


# --- The command ----------------------------------------------------------------


def test_the_command_writes_what_tags(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["export", str(folder)])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.startswith("model.onnx: ") and "next to it: model.golden.npz" in out
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    assert len(Tagger("model.onnx").tag(sound, 32000)) == 3


def test_the_command_calibrates_on_folders(folder, sounds, tmp_path, capsys, any_int8):
    options = ["--precision", "int8", "--frontend", "out", "--output", "a.onnx"]
    options[-1] = str(tmp_path / "a.onnx")
    calibration = ["--calibration", str(sounds[0].parent), "nothing.wav"]
    assert main(["export", str(folder), *options, *calibration]) == 1
    said = capsys.readouterr()
    assert "convolutions compute in int8" in said.out
    assert "nothing.wav: there is no such file" in said.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "int4"], "invalid choice: 'int4'"),
        (["--opset", "17"], "opset=17; it is from 18"),
        (["--opset", "x"], "give a whole number"),
        (["--precision", "int8"], "int8 needs sounds to find its ranges"),
        (
            ["--precision", "int8", "--calibration", "empty"],
            "the folder contains no sound",
        ),
        (["--precision", "int8", "--calibration", "none.wav"], "there is no such file"),
        (["--precision", "int8", "--calibration", "silent.wav"], "sounds are silent"),
        (["--calibration", "silent.wav"], "needs no calibration"),
        (["--labels", "silent.wav"], "has its labels|is not a table"),
        (["--output", "a.pb"], "must end in .onnx"),
        (["--output", "none/a.onnx"], "in an existing folder"),
    ],
    ids=" ".join,
)
def test_the_command_refuses_and_leaves_nothing(
    folder, tmp_path, capsys, monkeypatch, options, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    soundfile.write("silent.wav", np.zeros(32000), 32000)
    assert main(["export", str(folder), *options]) == 2
    assert re.search(reason, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "silent.wav"]


def test_litert_is_not_calibrated(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "check_installed", lambda extra: None)
    options = ["--format", "litert", "--frontend", "out", "--calibration", "a.wav"]
    assert main(["export", str(folder), *options]) == 2
    assert "int8, which litert does not offer" in capsys.readouterr().err


# --- Refusals -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "int4"}, "it is one of fp32, fp16, int8_weights, int8"),
        ({"front_end": "both"}, "it is 'in' or 'out'"),
        ({"opset": 17}, "opset=17; it is from 18"),
        ({"opset": 99}, "the newest of onnx"),
        ({"precision": "int8"}, "int8 needs sounds to find its ranges"),
        ({"calibration": ["a.wav"]}, "needs no calibration"),
        ({"path": "a.pb"}, "must end in .onnx"),
        ({"path": "nowhere/a.onnx"}, "cannot be written"),
        ({"labels": None}, "does not state its classes; pass labels="),
        ({"labels": audioset_labels()}, "has 7 classes, but there are 527 labels"),
        ({"source": "mn04_az"}, "did you mean"),
        ({"source": "mn04_as,mn10_as"}, "several models, .* export each separately"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_exported_is_refused(weights, tmp_path, options, reason):
    settings = {"source": weights[0], "path": "a.onnx", "labels": weights[1]}
    settings |= STATED | options
    settings["path"] = tmp_path / settings["path"]
    with pytest.raises((ValueError, OSError), match=reason):
        export_onnx(**settings)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_the_runtime_lacks_is_refused(weights, tmp_path):
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ValueError, match="too old for the opset.*lower opset"):
        export_onnx(
            weights[0], tmp_path / "a.onnx", opset=newest, labels=weights[1], **STATED
        )
    assert not list(tmp_path.iterdir())


def test_clips_hardly_longer_than_a_transform_are_compared(mn):
    short = mn._replace(model=mn.model._replace(clip_seconds=0.02))
    assert check_parity(content_of(short), short, "fp32").num_sounds == 5


def test_sounds_that_tell_nothing_are_refused(mn, tmp_path):
    silent, empty = tmp_path / "silent.wav", tmp_path / "empty.wav"
    constant = tmp_path / "constant.wav"
    soundfile.write(silent, np.zeros(32000), 32000)
    empty.write_bytes(b"")
    soundfile.write(constant, np.full(32000, 0.5), 32000)
    with pytest.raises(ValueError, match="all of the 2 sounds are silent"):
        observe(mn, [silent, constant])
    with pytest.raises(ValueError, match="empty.wav cannot be used"):
        observe(mn, [empty])
    soundfile.write(empty, np.ones(1) / 2, 192000)  # nothing of it is left at 32 kHz
    with pytest.raises(ValueError, match="all of the 1 sounds are silent"):
        observe(mn, [empty])
    with pytest.raises(ValueError, match="no sounds were given"):
        read_clips(mn, [])


def test_students_and_parts_that_are_not_known_are_refused(mn):
    with pytest.raises(ValueError, match="export an MN or a DyMN"):
        add_maps(Student(3), Graph(), "x", 128)
    with pytest.raises(ValueError, match=r"features\.3 is a GELU"):
        add_module(torch.nn.GELU(), Graph(), "x", "features.3")
    with pytest.raises(ValueError, match="a head of type GELU"):
        add_head(torch.nn.GELU(), Graph(), "x", "y")


def test_clips_that_a_fixed_student_cannot_take_are_refused(tmp_path):
    student = random_weights(MN(3, width=0.1, se_dims="t", n_frames=70))
    student.options = {"num_classes": 3, "width": 0.1, "se_dims": "t", "n_frames": 70}
    student.front_end = {"sample_rate": 32000}
    labels = LabelTable("abc", "abc")
    model = TrainedModel(student, labels, "multiclass", 0.7)
    folder = tmp_path / "model"
    write_model_folder(folder, model, Provenance("a", None, "b", "c", {}))
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("clip_seconds: 0.7", "clip_seconds: 0.9"))
    with pytest.raises(ValueError, match="takes 70 frames only, but its clips"):
        find_source(folder)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("target: multiclass", "target: any", "has target='any', not one of multi"),
        ("short_clips: repeat", "short_clips: cut", "short_clips='cut', not one of"),
        ("clip_seconds: 0.5", "clip_seconds: .nan", "clip_seconds=nan; it must be 0.0"),
        ("clip_seconds: 0.5", "clip_seconds: 0.01", "the shortest sound"),
        ("labels:", "a: [", "is not YAML; copy the folder again"),
        ("labels:", "names:", "has no 'labels'"),
        ("labels: ", "labels: 3\nothers: ", "is not a tagger's"),
    ],
)
def test_a_folder_that_was_changed_is_refused(folder, tmp_path, before, after, reason):
    changed = shutil.copytree(folder, tmp_path / "model")
    yaml = changed / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=reason):
        export_onnx(changed, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_cut_short_is_refused(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "model")
    yaml = changed / "hyperparams.yaml"
    yaml.write_text("")
    with pytest.raises(ValueError, match="has no settings; copy the folder again"):
        find_source(changed)
    shutil.copy(folder / "hyperparams.yaml", yaml)
    weights = changed / "student.ckpt"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(ValueError, match="as torch.save writes it, or is truncated"):
        find_source(changed)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="student.ckpt is not a file"):
        find_source(changed)


def test_weights_that_are_not_finite_are_refused(weights, tmp_path):
    path, labels = weights
    state = torch.load(path)
    state["classifier.5.bias"][0] = torch.nan
    torch.save(state, tmp_path / "student.pt")
    with pytest.raises(ValueError, match=r"in classifier\.5\.bias that are not finite"):
        find_source(tmp_path / "student.pt", labels, **STATED)


def test_a_folder_has_its_labels(folder):
    with pytest.raises(ValueError, match="leave out labels"):
        find_source(folder, labels=audioset_labels())


@pytest.fixture
def litert(monkeypatch):
    """What litert-torch would convert to, by PyTorch; and by how much it is off."""
    off = {"logits": 0.0}

    class Converted:
        def __init__(self, source):
            self.student = source.model.student

        def __call__(self, log_mel):
            with torch.inference_mode():
                logits, embedding = self.student(log_mel.unsqueeze(1))
                return logits + off["logits"], embedding

        def export(self, path):
            Path(path).write_bytes(b"a model")

    monkeypatch.setattr(litert_file, "_converted", Converted)
    return off


def test_a_litert_file_tells_its_one_length(folder, tmp_path, litert):
    written = export_litert(folder, tmp_path / "a.tflite")
    assert written.path.read_bytes() == b"a model"
    facts = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert facts["num_frames"] == 25  # of 0.5 s, 20 ms apart
    assert facts["labels"] == ["chien", "été", "猫"]
    assert {path.name for path in written.others} == {
        path.name for path in tmp_path.iterdir() if path != written.path
    }


def test_a_litert_file_that_says_something_else_is_not_written(
    folder, tmp_path, litert
):
    litert["logits"] = torch.tensor([0.0, 0.1, 0.0])
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_litert(folder, tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())


# --- Arithmetic -----------------------------------------------------------------


@pytest.mark.parametrize("n_fft", [16, 400, 512, 600, 1024, 1102])
def test_factors_multiply_to_the_transform(n_fft):
    rows, columns = factors(n_fft)
    assert rows * columns == n_fft and rows <= columns


def test_zero_is_a_level_of_every_range():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)):
        scale, zero_point = Range(low, high).levels()
        assert 0 <= zero_point <= 255
        lowest, highest = (np.array([0, 255]) - float(zero_point)) * scale
        assert lowest <= max(low, 0) + scale and highest >= min(high, 0) - scale
        assert lowest <= 0 <= highest


def test_a_recipe_chooses_what_computes_in_int8(mn, sounds):
    seen = observe(mn, sounds[:1])
    assert not seen.levels(Recipe(is_int8=lambda site: False)).ranges
    whole = seen.levels(Recipe(percentile=100, clips_hard_swish=False)).ranges
    usual = seen.levels().ranges
    assert whole.keys() == usual.keys()
    assert all(
        whole[name].low <= usual[name].low and whole[name].high >= usual[name].high
        for name in whole
    )


def test_probabilities_and_logits_agree(mn):
    said = Tagger(content_of(mn)).outputs(synthesised(20000, 32000)[None])
    expected = 1 / (1 + np.exp(-said[LOGITS].astype(np.float64)))
    np.testing.assert_allclose(said[PROBABILITIES], expected, atol=1e-6)


def test_log_mels_of_any_batch_are_those_of_each_clip():
    log_mel = LogMel().eval()
    clips = np.stack([synthesised(9000, 32000, number) for number in range(3)])
    together = log_mel(torch.from_numpy(clips))
    for clip, expected in zip(clips, together, strict=True):
        torch.testing.assert_close(log_mel(torch.from_numpy(clip)[None])[0], expected)
