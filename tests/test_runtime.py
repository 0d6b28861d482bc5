"""The runtime says what the tagger says, and never imports torch."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import soundfile
import torch
from at_once import in_threads
from exported_models import content_of, random_weights, source_of

from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.export.test_clips import synthesised
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.front_end import LogMel as NumpyLogMel
from efficientat_plugin.runtime.model_file import read_facts
from efficientat_plugin.runtime.tagger import as_probabilities
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 32000


WITHOUT_TORCH = """
import sys

for name in ("torch", "torchaudio", "speechbrain", "datasets", "onnx", "scipy"):
    sys.modules[name] = None  # importing it raises
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.cli import main

sound, *models = sys.argv[1:]
for backend in ("onnxruntime", "openvino"):
    for model in models:
        tagger = Tagger(model, backend)
        assert len(tagger.tag(sound, top_k=3)) == 3
        assert len(list(tagger.scan(sound, window_seconds=0.5))) == 7
        assert tagger.embed(sound).shape == (96,)
        stream = tagger.stream(16000)
        stream.feed([0.0] * 40000)
        stream.finish()
        assert main(["tag", sound, "--model", model]) == 0
"""


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return source_of(random_weights(MN(7, width=0.1)), clip_seconds=1.0)


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    """By where the front end is."""
    folder = tmp_path_factory.mktemp("files")
    paths = {front_end: folder / f"{front_end}.onnx" for front_end in ("in", "out")}
    for front_end, path in paths.items():
        path.write_bytes(content_of(source, front_end=front_end))
    return paths


@pytest.fixture(scope="module", params=["in", "out"])
def tagger(request, files):
    return Tagger(files[request.param], "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def reference(source):
    """The same student in PyTorch."""
    model = source.model
    settings = {
        "labels": model.labels,
        "sample_rate": RATE,
        "clip_seconds": model.clip_seconds,
        "target": model.target,
        "short_clips": model.short_clips,
    }
    parts = {"student": model.student, "log_mel": source.log_mel}
    return AudioTagger(parts, settings, {"device": "cpu"})


@pytest.fixture(scope="module")
def sound():
    """Of 3.3 s, to which nothing divides."""
    return np.concatenate([synthesised(80011, RATE, 3), synthesised(25013, RATE, 5)])


def other_graph(operator, kind=onnx.TensorProto.FLOAT, opset=18):
    """One operator, as nothing that was exported here."""
    value, result = (
        onnx.helper.make_tensor_value_info(name, kind, ["a", "b"]) for name in "xy"
    )
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", [value], [result])
    version = onnx.helper.make_opsetid("", opset)
    return onnx.helper.make_model(graph, opset_imports=[version], ir_version=9)


# --- The same as in PyTorch -----------------------------------------------------


@pytest.mark.parametrize("seconds", [0.003, 0.4, 1.0, 3.3])
def test_tags_are_those_of_the_tagger(tagger, reference, sound, seconds):
    some = sound[: round(seconds * RATE)]
    expected = reference.tag(some, RATE, top_k=None)
    found = tagger.tag(some, RATE, top_k=None)
    by_mid = {tag.mid: tag.probability for tag in expected}
    assert [tag.mid for tag in found[:1]] == [expected[0].mid]
    assert all(abs(by_mid[tag.mid] - tag.probability) < 1e-4 for tag in found)


@pytest.mark.parametrize(
    ("window", "hop"),
    [(None, None), (1.0, 0.25), (0.8, 0.8), (0.5, 0.13337), (0.3, 0.001 * 297)],
)
def test_scans_are_those_of_the_tagger(tagger, reference, sound, window, hop):
    found, expected = (
        list(each.scan(sound, RATE, window, hop)) for each in (tagger, reference)
    )
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_a_stream_says_what_a_scan_says(tagger, sound):
    """Two at once do not hear each other."""
    streams = [tagger.stream(RATE, 0.5, 0.25) for _ in range(2)]
    found = [[], []]
    for start in range(0, len(sound), 7001):
        for number, stream in enumerate(streams):
            found[number] += stream.feed((1 - number) * sound[start : start + 7001])
    found = [
        each + stream.finish() for each, stream in zip(found, streams, strict=True)
    ]
    for one, other in zip(found[0], tagger.scan(sound, RATE, 0.5, 0.25), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    silent = [window.probabilities for window in found[1]]
    np.testing.assert_allclose(silent[0], silent[-1], atol=1e-5)


def test_embeddings_are_the_students(tagger, source, sound):
    clip = sound[:RATE]
    with torch.inference_mode():
        log_mel = source.log_mel(torch.from_numpy(clip)[None])
        expected = source.model.student(log_mel.unsqueeze(1)).embedding[0]
    embedding = tagger.embed(clip, RATE)
    assert embedding.shape == (96,)
    np.testing.assert_allclose(embedding, expected, atol=1e-3, rtol=1e-3)


def test_both_runtimes_say_the_same(files, sound):
    for path in files.values():
        one, other = (
            Tagger(path, backend).scan(sound, RATE, 1.0)
            for backend in ("onnxruntime", "openvino")
        )
        for first, second in zip(one, other, strict=True):
            np.testing.assert_allclose(
                first.probabilities, second.probabilities, atol=1e-4
            )


def test_files_of_any_rate_and_kind_are_read(tagger, reference, tmp_path):
    path = tmp_path / "sound.flac"
    soundfile.write(path, np.stack([synthesised(44100, 44100)] * 2, axis=1), 44100)
    found, expected = (each.tag(path, top_k=1)[0] for each in (tagger, reference))
    assert found.name == expected.name
    assert found.probability == pytest.approx(expected.probability, abs=1e-4)
    assert tagger.tag(path.read_bytes(), top_k=1)[0] == found


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_probabilities_of_extreme_logits_are_finite(target):
    logits = np.array([[-1e4, 0.0, 1e4]], np.float32)
    np.testing.assert_allclose(as_probabilities(logits, target)[0, 2], 1.0)
    assert np.isfinite(as_probabilities(logits, target)).all()


# --- The log-mel is computed once -----------------------------------------------


def test_frames_that_windows_share_are_computed_once(files, monkeypatch):
    tagger = Tagger(files["out"], "onnxruntime", threads=1)
    computed = []
    power = NumpyLogMel._power

    def counted(self, framed):
        computed.append(len(framed))
        return power(self, framed)

    monkeypatch.setattr(NumpyLogMel, "_power", counted)
    sound = np.random.default_rng(0).normal(size=10 * RATE).astype(np.float32)
    windows = list(tagger.scan(sound, RATE, 1.0))
    assert len(windows) == 19  # of 100 frames each
    assert sum(computed) < 1300


# --- Without torch --------------------------------------------------------------


def test_torch_is_never_imported(files, tmp_path):
    """Not even where it is installed: whoever asks for it fails."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, synthesised(2 * RATE, RATE), RATE)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path), *map(str, files.values())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sound.wav") == 4


# --- Refusals -------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_cut_short_is_refused(files, tmp_path, backend):
    content = files["in"].read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path = tmp_path / f"{length}.onnx"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"\.onnx.*(export|copy)"):
            Tagger(path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": "2"}, "has format 2, but this version reads 1"),
        ({"format_version": None}, "was not written by `efficientat export`"),
        ({"mids": "[]"}, "has metadata that cannot be read"),
        ({"front_end": "{}"}, "has metadata that cannot be read"),
        ({"labels": "no JSON"}, "has metadata that cannot be read"),
        ({"target": '"any"'}, r"cannot be read \(target='any'\)"),
        ({"short_clips": '"any"'}, r"cannot be read \(short_clips='any'\)"),
        ({"clip_seconds": "0"}, r"cannot be read \(clip_seconds=0 must be"),
        ({"num_frames": "0"}, r"cannot be read \(num_frames=0\)"),
        ({"num_frames": '"any"'}, "has metadata that cannot be read"),
        ({"labels": '["a"]', "mids": '["a"]'}, "of 7 classes, .* of 1 classes; export"),
        ({"has_front_end": "true"}, "has a graph from log_mel to logits, embedding"),
    ],
    ids=str,
)
def test_files_of_others_are_refused(files, tmp_path, change, reason, backend):
    model = onnx.load(files["out"])
    texts = {prop.key: prop.value for prop in model.metadata_props} | change
    texts = {name: text for name, text in texts.items() if text is not None}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, texts)
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=reason):
        Tagger(path, backend)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_fft": 10**12}, "front end sizes .* must be"),
        ({"hop_length": 0}, "front end sizes .* must be"),
        ({"n_mels": "128"}, "front end sizes .* must be"),
        ({"win_length": 2048}, "win_length=2048, n_fft=1024"),
        ({"f_max": 99999.0}, r"f_max=99999\.0 Hz"),
        ({"sample_rate": 32000.5}, r"sample_rate=32000\.5 Hz"),
        ({"sample_rate": 10**30}, r"=10+ Hz must be within \(1000, 768000\)"),
        ({"n_mels": 1 << 14, "n_fft": 1 << 16}, "n_mels=16384, n_fft=65536"),
        ({"pre_emphasis": None}, "pre_emphasis=None"),
        ({"offset": float("nan")}, "offset=nan"),
        ({"log_floor": -1}, "log_floor=-1"),
        ({"scale": 0}, "scale=0"),
        ({"log_floor_mode": "\x1b[2J"}, r"log_floor_mode='\\x1b\[2J'"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused(files, change, reason):
    facts = Tagger(files["out"]).facts
    texts = facts._replace(front_end=facts.front_end._replace(**change)).as_texts()
    with pytest.raises(ValueError, match=rf"^x\.onnx has metadata .*{reason}"):
        read_facts(texts, "x.onnx")
    with pytest.raises(ValueError, match=r"^x\.onnx has metadata"):
        read_facts(facts.as_texts() | {"source": "[" * 100_000}, "x.onnx")
    assert read_facts(facts.as_texts(), "x.onnx").front_end == facts.front_end


@pytest.mark.parametrize("seconds", [20000.0, 1e300, 1e-300, math.inf, math.nan])
def test_a_length_that_no_clip_has_is_refused(files, seconds):
    texts = Tagger(files["out"]).facts._replace(clip_seconds=seconds).as_texts()
    with pytest.raises(ValueError, match=r"seconds=.* must be from 0\.0161 to 3600"):
        read_facts(texts, "x.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_of_others_is_refused(files, tmp_path, backend):
    """Without our metadata, and with it."""
    path = tmp_path / "relu.onnx"
    onnx.save(other_graph("Relu"), path)
    with pytest.raises(ValueError, match="was not written by `efficientat export`"):
        Tagger(path, backend)
    texts = {prop.key: prop.value for prop in onnx.load(files["in"]).metadata_props}
    other = other_graph("Relu")
    onnx.helper.set_model_props(other, texts)
    onnx.save(other, path)
    with pytest.raises(ValueError, match="relu.onnx has a graph from .* of None class"):
        Tagger(path, backend)
    other.graph.node[0].output[0] = other.graph.output[0].name = "logits"
    onnx.save(other, path)
    with pytest.raises(ValueError, match="relu.onnx has a graph from .* to logits of"):
        Tagger(path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_operator_that_the_runtime_lacks_is_named_as_the_reason(backend):
    content = other_graph("Strange").SerializeToString()
    with pytest.raises(
        ValueError, match="lacks an operator of the model; export it in"
    ):
        Tagger(content, backend)


def test_a_number_format_that_the_runtime_lacks_is_named_as_the_reason():
    content = other_graph("Gelu", onnx.TensorProto.DOUBLE, 20).SerializeToString()
    with pytest.raises(
        ValueError, match="lacks an operator of the model; export it in"
    ):
        Tagger(content, "onnxruntime")


def test_a_damaged_file_is_not_judged_by_its_name(files, tmp_path):
    path = tmp_path / "opset18.onnx"
    path.write_bytes(files["in"].read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or no model"):
        Tagger(path, "onnxruntime")


def test_a_newer_file_format_is_refused(files, tmp_path):
    model = onnx.load(files["out"])
    model.ir_version = 99
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"too old for the opset of .*new\.onnx"):
        Tagger(path, "onnxruntime")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_metadata_that_are_no_text_are_refused(files, tmp_path, backend):
    path = tmp_path / "bytes.onnx"
    path.write_bytes(files["out"].read_bytes().replace(b"class 3", b"class \xda"))
    with pytest.raises(
        ValueError, match=r"cannot read .*bytes\.onnx, so it is damaged"
    ):
        Tagger(path, backend)


def test_a_newer_opset_is_refused(files, tmp_path):
    model = onnx.load(files["out"])
    model.opset_import[0].version = 99
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"too old for the opset of .*new\.onnx"):
        Tagger(path, "onnxruntime")


def test_settings_that_cannot_be_are_refused(files, monkeypatch):
    with pytest.raises(ValueError, match="it is one of onnxruntime, openvino"):
        Tagger(files["in"], "tensorflow")
    with pytest.raises(ValueError, match="threads=0 must be 1 or more"):
        Tagger(files["in"], threads=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install openvino"):
        Tagger(files["in"], "openvino")
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Tagger(files["in"])


def test_lengths_that_the_graph_cannot_take_are_refused(tmp_path):
    student = random_weights(MN(3, width=0.1, se_dims="t", n_frames=64))
    content = content_of(source_of(student, clip_seconds=0.64), front_end="out")
    tagger = Tagger(content)
    assert len(tagger.tag(np.ones(5000, np.float32), RATE)) == 3
    with pytest.raises(ValueError, match="takes only 64 frames of 320 samples, 0.64 s"):
        next(tagger.scan(np.ones(RATE, np.float32), RATE, window_seconds=0.5))


@pytest.mark.parametrize("shape", [(32000,), (0, 32000), (1, 0), (1, 513), (1, 1, 999)])
def test_waveforms_that_the_graph_cannot_take_are_refused(tagger, shape):
    with pytest.raises(ValueError, match=r"more, \[B, N\]|needs 514 or more; pad"):
        tagger.score(np.zeros(shape, np.float32))


@pytest.mark.parametrize("seconds", [np.inf, np.nan, 1e9])
def test_windows_that_no_memory_holds_are_refused(tagger, sound, seconds):
    with pytest.raises(ValueError, match="too long; give at most 3600"):
        next(tagger.scan(sound, RATE, seconds))


def test_waveforms_of_any_number_format_are_taken(tagger):
    clip = synthesised(20000, RATE)[None]
    expected = tagger.score(clip)
    found = tagger.score(clip.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_no_sound_is_refused(tagger, tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("no sound")
    with pytest.raises(UnreadableClip, match="not decodable"):
        tagger.tag(path)
    with pytest.raises(ValueError, match="pass sample_rate"):
        tagger.tag(np.zeros(100))
    with pytest.raises(ValueError, match="not finite"):
        tagger.tag(np.full(1000, np.nan), RATE)


def test_metadata_is_json_that_others_can_read(files):
    model = onnx.load(files["in"])
    texts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert texts["front_end"]["hop_length"] == 320
    assert len(texts["labels"]) == len(texts["mids"]) == 7
    assert texts["sha256"] == "0" * 64
    assert os.path.getsize(files["in"]) < 2**20


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("front_end", ["in", "out"])
def test_threads_that_share_a_tagger_hear_what_one_hears(backend, front_end, files):
    tagger = Tagger(files[front_end], backend, threads=1)
    sounds = [synthesised(length, RATE, length) for length in (9000, 32000, 50000)]
    expected = [tagger.outputs(sound[None]) for sound in sounds]

    def hear(number):
        order = np.random.default_rng(number).integers(len(sounds), size=12)
        return [(each, tagger.outputs(sounds[each][None])) for each in order]

    for heard in in_threads(hear, 4):
        for each, outputs in heard:
            for name, values in outputs.items():
                assert np.array_equal(values, expected[each][name])
