"""Exported models of frames compute what PyTorch computes, of sound of any length."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from exported_models import (
    BACKENDS,
    content_of,
    random_weights,
    small_content,
    source_of,
)
from test_detection import assert_alike
from torch import nn

from efficientat_plugin import EventDetector, FrameMN, FramePaSST
from efficientat_plugin.cli import main
from efficientat_plugin.export import litert_file, onnx_file, parity
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.frame_networks import add_frames, most_frames
from efficientat_plugin.export.graph import Graph
from efficientat_plugin.export.litert_file import export_litert
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.export.parity import check_parity
from efficientat_plugin.export.quantize import observe
from efficientat_plugin.export.sequence_networks import MAX_SCANNED, add_layer
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import Provenance, write_model_folder
from efficientat_plugin.runtime import Detector, Tagger
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    FRAME_LOGITS,
    LOGITS,
    PROBABILITIES,
    read_facts,
)
from efficientat_plugin.students.frame_student import FRAME_HEADS, FrameStudent
from efficientat_plugin.students.sequence import SEQUENCE_MODELS
from efficientat_plugin.students.sequence.recurrent import MinGRU

RATE = 32000
MEMBERS = [*SEQUENCE_MODELS, "passt"]
# Of the laws that take seconds for each member, two members are always tested.
SOME_SLOW = [
    name if name in ("tf", "gru") else pytest.param(name, marks=pytest.mark.slow)
    for name in MEMBERS
]
LONGEST = 37.3  # s, of clips here


def student_of(member, head="linear", seed=0):
    """A small one of random weights; FramePaSST has positions for all clips here."""
    torch.manual_seed(seed)
    if member == "passt":
        size = {"num_frames": 4000, "embed_dim": 32, "depth": 2, "num_heads": 4}
        return random_weights(FramePaSST(7, head=head, **size))
    sequence = {"sequence_model": member, "sequence_dim": 32}
    return random_weights(FrameMN(7, width=0.1, head=head, **sequence))


@pytest.fixture(scope="module", params=SOME_SLOW)
def any_source(request):
    """Each member in turn."""
    return source_of(student_of(request.param), clip_seconds=1.0)


@pytest.fixture(scope="module")
def hybrid():
    return source_of(student_of("hybrid"), clip_seconds=1.0)


def torch_detector(source):
    parts = {"student": source.model.student, "log_mel": source.log_mel}
    settings = {"labels": source.model.labels, "sample_rate": RATE}
    names = ("clip_seconds", "target", "short_clips")
    settings |= {name: getattr(source.model, name) for name in names}
    return EventDetector(parts, settings, {"device": "cpu"})


def sound_of(seconds, number=0):
    """Sound whose loudness changes, so that scores do."""
    sound = synthesised(round(seconds * RATE), RATE, number)
    swell = 0.55 - 0.45 * np.cos(np.arange(len(sound)) / RATE * 2.7)
    return (sound * swell).astype(np.float32)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


# --- The same as in PyTorch ---------------------------------------------------------


@pytest.mark.parametrize("head", FRAME_HEADS)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_and_head_is_compared_in_every_runtime(member, head):
    source = source_of(student_of(member, head), clip_seconds=0.7)
    found = check_parity(content_of(source, front_end="out"), source, "fp32")
    assert found.backends == BACKENDS
    assert found.frame_error < 1e-4 and found.frame_decibels > 70
    assert found.logits_decibels > 75 and found.num_sounds == 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("front_end", ["in", "out"])
def test_frames_of_sound_of_any_length_are_those_of_pytorch(
    any_source, front_end, backend
):
    tagger = Tagger(content_of(any_source, front_end=front_end), backend)
    for seconds in (0.02, 0.5, 10.0, LONGEST):
        waveforms = sound_of(seconds)[None]
        expected, found = any_source.outputs(waveforms), tagger.outputs(waveforms)
        for name in (LOGITS, FRAME_LOGITS):
            assert found[name].shape == expected[name].shape
            error = np.abs(sigmoid(found[name]) - sigmoid(expected[name])).max()
            assert error < 1e-4, (seconds, name)
        assert found[EMBEDDING].shape == expected[EMBEDDING].shape
        assert found[FRAME_LOGITS].shape[1] == np.ceil(waveforms.shape[1] / 1280)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_has_the_frames_that_it_has_in_a_batch(any_source, backend):
    tagger = Tagger(content_of(any_source), backend)
    waveforms = np.stack([sound_of(1.0, number) for number in range(3)])
    together = tagger.outputs(waveforms)
    for number, waveform in enumerate(waveforms):
        alone = tagger.outputs(waveform[None])
        for name in (LOGITS, FRAME_LOGITS):
            difference = sigmoid(alone[name][0]) - sigmoid(together[name][number])
            assert np.abs(difference).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_keeps_what_gates_keep_for_a_minute(hybrid, backend):
    """1500 frames, whose states are never, hardly and always replaced."""
    student = student_of("hybrid")
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, MinGRU):
                module.to_hidden_and_gate.weight.mul_(8.0)
    source = source_of(student, clip_seconds=1.0)
    waveforms = sound_of(60.0)[None]
    with torch.inference_mode():
        log_mel = source.log_mel(torch.from_numpy(waveforms)).unsqueeze(1)
        exact = student.double()(log_mel.double()).strong.transpose(1, 2).numpy()
    student.float()
    found = Tagger(content_of(source), backend).outputs(waveforms)[FRAME_LOGITS]
    assert exact.shape[1] == 1500
    assert np.abs(sigmoid(found) - sigmoid(exact)).max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_over_frames_is_finite_where_probabilities_are_0_and_1(backend):
    student = student_of("none", "attention")
    with torch.no_grad():
        student.strong_head.weight.mul_(200.0)
        student.weak_head.weight.mul_(200.0)
    source = source_of(student, clip_seconds=1.0)
    waveforms = sound_of(5.0)[None]
    found = Tagger(content_of(source), backend).outputs(waveforms)
    expected = source.outputs(waveforms)
    assert np.abs(expected[FRAME_LOGITS]).max() > 200
    assert np.abs(expected[LOGITS]).max() > 15  # 1 - sigmoid(15) is lost in float32
    np.testing.assert_allclose(found[LOGITS], expected[LOGITS], rtol=1e-3, atol=0.01)


@pytest.mark.parametrize("precision", ["fp16", "int8_weights"])
def test_smaller_files_compute_nearly_the_same(any_source, precision):
    content = content_of(any_source, precision)
    found = check_parity(content, any_source, precision)  # raises where it does not
    assert found.backends == BACKENDS and found.frame_decibels > 15
    assert len(content) < len(content_of(any_source))


def test_convolutions_compute_in_int8(calibration_sounds, any_int8):
    source = source_of(student_of("tcn"), clip_seconds=0.5)
    levels = observe(source, calibration_sounds).levels()
    graph, _ = onnx_file.build_model(source, "int8", "out", 18, levels)
    assert graph.num_int8 > 20
    assert all(name.startswith("features.") for name in levels.means)
    content = content_of(source, "int8", "out", levels)
    found = check_parity(content, source, "int8", calibration_sounds)
    assert found.backends == BACKENDS


def test_several_classes_at_a_time_or_one(hybrid):
    source = hybrid._replace(model=hybrid.model._replace(target="multiclass"))
    assert check_parity(content_of(source), source, "fp32").frame_error < 1e-4
    scores = Detector(content_of(source)).frames(sound_of(2.0), RATE).scores
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)


# --- Events -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("front_end", ["in", "out"])
def test_events_are_those_of_pytorch(any_source, front_end, backend):
    expected = torch_detector(any_source)
    detector = Detector(content_of(any_source, front_end=front_end), backend)
    assert detector.frame_samples == expected.frame_samples == 1280
    sound = sound_of(4.321)
    frames = [each.frames(sound, RATE) for each in (expected, detector)]
    assert frames[1].frame_seconds == 0.04 and frames[1].start_seconds == 0.0
    assert np.abs(frames[0].scores - frames[1].scores).max() < 1e-4
    options = {"threshold": thresholds(expected.labels, frames[0].scores)}
    events = detector.events(sound, RATE, **options)
    assert events
    assert_close(events, expected.events(sound, RATE, **options))
    stream = detector.event_stream(RATE, **options)
    fed = [event for part in np.array_split(sound, 7) for event in stream.feed(part)]
    assert_alike(fed + stream.finish(), events)


def thresholds(labels, scores):
    """Thresholds that each class crosses, farther from scores [T', K] than errors are.

    Not in the middle of the scores: those of silence are all alike.
    """
    ordered = np.sort(scores, axis=0)[3:-3]
    gaps = np.diff(ordered, axis=0)
    assert gaps.max(axis=0).min() > 1e-4
    widest = gaps.argmax(axis=0)
    return {
        name: float(ordered[place : place + 2, number].mean())
        for number, (name, place) in enumerate(zip(labels.names, widest, strict=True))
    }


def assert_close(events, expected):
    """The same classes and times; scores as near as files are to PyTorch."""
    events, expected = sorted(events), sorted(expected)
    assert [event[:3] for event in events] == [event[:3] for event in expected]
    scores = [event.score for event in expected]
    assert [event.score for event in events] == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("member", MEMBERS)
def test_events_of_recordings_are_those_of_pytorch(member, backend, shared):
    source = source_of(student_of(member), clip_seconds=10.0, short="zero_pad")
    expected, detector = torch_detector(source), Detector(content_of(source), backend)
    clips = sorted((shared / "data" / "esc50" / "audio").glob("*.flac"))[:3]
    for path in [*sorted((shared / "audio").glob("*.wav")), *clips]:
        frames = [each.frames(path).scores for each in (expected, detector)]
        assert np.abs(frames[0] - frames[1]).max() < 1e-4, path
        options = {"threshold": thresholds(expected.labels, frames[0])}
        assert_close(detector.events(path, **options), expected.events(path, **options))


def test_a_file_of_clips_says_that_it_uses_windows(caplog, hybrid):
    detector = Detector(small_content("out"))
    assert "scores clips, not frames" in caplog.text
    assert detector.frame_samples is None
    assert len(detector.frames(sound_of(1.0), RATE).scores) == 5
    caplog.clear()
    Detector(content_of(hybrid))
    assert not caplog.text


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchaudio", "speechbrain", "datasets", "onnx", "scipy"):
    sys.modules[name] = None  # importing it raises
from efficientat_plugin.runtime import Detector
detector = Detector(sys.argv[1], sys.argv[2])
print(len(detector.events(sys.argv[3], threshold=0.0)), len(detector.labels))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_need_no_torch(hybrid, tmp_path, calibration_sounds, backend):
    path = tmp_path / "a.onnx"
    path.write_bytes(content_of(hybrid))
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, path, backend, calibration_sounds[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["7", "7"]


# --- Files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model folder of a FrameMN."""
    options = {"num_classes": 7, "width": 0.1, "sequence_model": "gru"}
    options["sequence_dim"] = 16
    student = random_weights(FrameMN(**options), 640)
    model = source_of(student, "multilabel", 1.0, "zero_pad", hop_length=640).model
    student.options = options
    student.front_end = {"sample_rate": RATE, "n_mels": 128, "hop_length": 640}
    path = tmp_path_factory.mktemp("folder") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}))


def test_the_command_writes_what_detects(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder), "--output", "a.onnx"]) == 0
    assert "(embedding), of frames " in capsys.readouterr().out
    golden = np.load("a.golden.npz")
    detector = Detector("a.onnx")
    assert detector.facts.frame_samples == 2560 and detector.facts.max_frames is None
    assert (detector.short_clips, detector.clip_seconds) == ("zero_pad", 1.0)
    found = detector.outputs(golden["waveform"])
    for name in (PROBABILITIES, LOGITS, EMBEDDING, FRAME_LOGITS):
        np.testing.assert_allclose(found[name], golden[name], rtol=1e-3, atol=1e-3)
    assert detector.embed(sound_of(3.0), RATE).shape == (32,)
    assert len(detector.tag(sound_of(1.0), RATE)) == 7
    assert main(["info", "a.onnx"]) == 0
    assert "scored every 80 ms" in capsys.readouterr().out


def test_metadata_are_read_as_written(hybrid):
    facts = Tagger(content_of(hybrid)).facts
    assert (facts.frame_samples, facts.max_frames) == (1280, 4 * MAX_SCANNED)
    again = read_facts(facts.as_texts(), "a")
    assert again.as_texts() == facts.as_texts()
    model = onnx.load_from_string(content_of(hybrid))
    shapes = {
        each.name: [size.dim_param or size.dim_value for size in dimensions(each)]
        for each in model.graph.output
    }
    assert shapes[FRAME_LOGITS] == ["batch", "student_frames", 7]
    assert shapes[LOGITS] == ["batch", 7]


def dimensions(value):
    return value.type.tensor_type.shape.dim


def test_files_of_before_are_still_read():
    """They lack the facts of frames."""
    texts = Tagger(small_content("out")).facts.as_texts()
    older = {name: texts[name] for name in texts if "frame" not in name}
    older["num_frames"] = texts["num_frames"]
    facts = read_facts(older, "a")
    assert facts.frame_samples is None and facts.max_frames is None


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frame_samples", "max_frames"])
@pytest.mark.parametrize("number", ["0", "-1", "2.5", "true", '"a"'])
def test_numbers_of_frames_that_cannot_be_are_refused(hybrid, name, number):
    texts = Tagger(content_of(hybrid)).facts.as_texts() | {name: number}
    with pytest.raises(ValueError, match=f"cannot be read .{name}="):
        read_facts(texts, "a")


@pytest.mark.parametrize(
    ("number", "reason"),
    [("null", "has a graph from .* frame_logits"), ("640", "50 frames of .* say 100")],
)
def test_a_file_that_contradicts_its_metadata_is_refused(hybrid, number, reason):
    model = onnx.load_from_string(content_of(hybrid))
    texts = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, texts | {"frame_samples": number})
    with pytest.raises(ValueError, match=reason):
        Tagger(model.SerializeToString()).frames(
            sound_of(2.0), RATE, window_seconds=2.0
        )


def test_a_clip_longer_than_the_positions_is_refused():
    student = FramePaSST(7, num_frames=100, embed_dim=32, depth=1, num_heads=4)
    source = source_of(random_weights(student), clip_seconds=1.0)
    assert check_parity(content_of(source), source, "fp32").num_sounds == 5
    detector = Detector(content_of(source))
    with pytest.raises(ValueError, match="takes at most 100 frames .*, 1 s; give shor"):
        detector.frames(sound_of(3.0), RATE, window_seconds=2.0)
    assert len(detector.frames(sound_of(3.0), RATE).scores) == 75
    assert most_frames(student) == 100


def test_clips_longer_than_the_positions_are_refused(tmp_path):
    options = {"num_classes": 7, "num_frames": 100, "embed_dim": 64, "depth": 1}
    student = FramePaSST(**options, num_heads=1)
    source = source_of(random_weights(student), clip_seconds=1.0)
    student.options = options | {"num_heads": 1}
    student.front_end = {"sample_rate": RATE}
    path = tmp_path / "model"
    write_model_folder(path, source.model, Provenance("a", None, "b", "c", {}))
    yaml = path / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("clip_seconds: 1.0", "clip_seconds: 2.0"))
    with pytest.raises(ValueError, match="at most 100 frames, but its clips of 2 s"):
        find_source(path)


def test_what_has_no_conversion_is_refused(tmp_path, monkeypatch, calibration_sounds):
    with pytest.raises(ValueError, match="export a FrameMN or a FramePaSST"):
        add_frames(FrameStudent(3, None, "linear"), Graph(), "x")
    with pytest.raises(ValueError, match=r"seq_model\.0 is a Tanh, which cannot"):
        add_layer(nn.Tanh(), Graph(), "x", "seq_model.0")
    passt = source_of(student_of("passt"), clip_seconds=1.0)
    with pytest.raises(ValueError, match="a transformer, which int8 does not compute"):
        observe(passt, calibration_sounds)
    monkeypatch.setattr(litert_file, "find_source", lambda *_: passt)
    with pytest.raises(ValueError, match="scores frames, which LiteRT files do not"):
        export_litert("any", tmp_path / "a.tflite")


def test_frames_that_differ_are_not_written(folder, tmp_path, monkeypatch):
    """Of the frames alone: the clip's logits are right."""
    build = onnx_file.build_model

    def wrong(source, *options):
        bias = source.model.student.strong_head.bias
        with torch.no_grad():
            bias.add_(1.0)
        built = build(source, *options)
        with torch.no_grad():
            bias.sub_(1.0)
        return built

    monkeypatch.setattr(onnx_file, "build_model", wrong)
    with pytest.raises(ValueError, match="of frames .* nothing was written"):
        export_onnx(folder, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["frame_error", "frame_decibels"])
def test_frames_that_are_not_finite_are_not_written(name):
    good = parity.Parity(0.0, 90.0, 90.0, 1.0, 1, ("a",), 0.0, 90.0)
    parity.judge(good, "fp32", "a")
    bad = parity.worst_of([good, good._replace(**{name: np.nan})])
    with pytest.raises(ValueError, match="nothing was written"):
        parity.judge(bad, "fp32", "a")


def test_frames_may_differ_by_the_rounding_of_a_front_end_and_no_more():
    good = parity.Parity(0.0, 90.0, 90.0, 1.0, 1, ("a",), 1.4e-4, 90.0)
    parity.judge(good, "fp32", "a")
    for bad in (good._replace(frame_error=2e-3), good._replace(frame_decibels=50.0)):
        with pytest.raises(ValueError, match="of frames 0.001, and 60 dB"):
            parity.judge(bad, "fp32", "a")
