"""The files of an export, and the command."""

import re

import numpy as np
import onnx
import pytest
import soundfile
import torch
from exported_models import BACKENDS, STATED
from golden_vectors import GOLDEN

from efficientat_plugin.cli import export, main
from efficientat_plugin.data.decoding import decode
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.export import onnx_file
from efficientat_plugin.export.golden import golden_vectors
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.published import PUBLISHED
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.model_file import LOGITS


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


def test_a_file_tells_all_that_is_needed(model_folder, tmp_path):
    source = find_source(model_folder)
    written = export_onnx(model_folder, tmp_path / "model.onnx", "fp16", "out")
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


def test_nothing_is_left_of_an_export_that_broke_off(
    weights_file, tmp_path, monkeypatch
):
    before = tmp_path / "a.onnx"
    before.write_bytes(b"as it was")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(onnx_file, "write_golden", full)
    with pytest.raises(OSError, match="no space left"):
        export_onnx(weights_file[0], before, labels=weights_file[1], **STATED)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert before.read_bytes() == b"as it was"


def test_the_command_writes_what_tags(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["export", str(model_folder)])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.startswith("model.onnx: ") and "next to it: model.golden.npz" in out
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    assert len(Tagger("model.onnx").tag(sound, 32000)) == 3


def test_the_command_calibrates_on_folders(
    model_folder, calibration_sounds, tmp_path, capsys, any_int8
):
    options = ["--precision", "int8", "--frontend", "out", "--output", "a.onnx"]
    options[-1] = str(tmp_path / "a.onnx")
    calibration = ["--calibration", str(calibration_sounds[0].parent), "nothing.wav"]
    assert main(["export", str(model_folder), *options, *calibration]) == 1
    printed = capsys.readouterr()
    assert "convolutions compute in int8" in printed.out
    assert "nothing.wav: there is no such file" in printed.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "int4"], "invalid choice: 'int4'"),
        (["--opset", "x"], "give a whole number"),
        (
            ["--precision", "int8", "--calibration", "empty"],
            "the folder contains no sound",
        ),
        (["--precision", "int8", "--calibration", "none.wav"], "there is no such file"),
        (["--precision", "int8", "--calibration", "silent.wav"], "sounds are silent"),
        (["--calibration", "silent.wav"], "needs no calibration"),
        (["--labels", "silent.wav"], "has its labels|is not a table"),
    ],
    ids=" ".join,
)
def test_the_command_refuses_and_leaves_nothing(
    model_folder, tmp_path, capsys, monkeypatch, options, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    soundfile.write("silent.wav", np.zeros(32000), 32000)
    assert main(["export", str(model_folder), *options]) == 2
    assert re.search(reason, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "silent.wav"]


def test_litert_is_not_calibrated(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "check_installed", lambda extra: None)
    options = ["--format", "litert", "--frontend", "out", "--calibration", "a.wav"]
    assert main(["export", str(model_folder), *options]) == 2
    assert "int8, which litert does not offer" in capsys.readouterr().err


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
def test_what_cannot_be_exported_is_refused(weights_file, tmp_path, options, reason):
    settings = {"source": weights_file[0], "path": "a.onnx", "labels": weights_file[1]}
    settings |= STATED | options
    settings["path"] = tmp_path / settings["path"]
    with pytest.raises((ValueError, OSError), match=reason):
        export_onnx(**settings)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_the_runtime_lacks_is_refused(weights_file, tmp_path):
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ValueError, match="too old for the opset.*lower opset"):
        export_onnx(
            weights_file[0],
            tmp_path / "a.onnx",
            opset=newest,
            labels=weights_file[1],
            **STATED,
        )
    assert not list(tmp_path.iterdir())
