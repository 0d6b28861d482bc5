"""The runtime computes what the tagger computes, and never imports torch."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from exported_models import (
    content_of,
    random_weights,
    small_content,
    small_source,
    source_of,
)
from simultaneous import in_threads

from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.front_end import LogMel as NumpyLogMel
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


@pytest.fixture(scope="module", params=["in", "out"])
def tagger(request):
    return Tagger(small_content(request.param), "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def reference():
    """The same student in PyTorch."""
    source = small_source()
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


def test_a_stream_is_a_scan(tagger, sound):
    """Two at once do not disturb each other."""
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


def test_embeddings_are_the_students(tagger, sound):
    source = small_source()
    clip = sound[:RATE]
    with torch.inference_mode():
        log_mel = source.log_mel(torch.from_numpy(clip)[None])
        expected = source.model.student(log_mel.unsqueeze(1)).embedding[0]
    embedding = tagger.embed(clip, RATE)
    assert embedding.shape == (96,)
    np.testing.assert_allclose(embedding, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("front_end", ["in", "out"])
def test_both_runtimes_compute_the_same(front_end, sound):
    one, other = (
        Tagger(small_content(front_end), backend).scan(sound, RATE, 1.0)
        for backend in ("onnxruntime", "openvino")
    )
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-4)


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_probabilities_of_extreme_logits_are_finite(target):
    logits = np.array([[-1e4, 0.0, 1e4]], np.float32)
    np.testing.assert_allclose(as_probabilities(logits, target)[0, 2], 1.0)
    assert np.isfinite(as_probabilities(logits, target)).all()


# --- The log-mel is computed once -----------------------------------------------


def test_frames_that_windows_share_are_computed_once(monkeypatch):
    tagger = Tagger(small_content("out"), "onnxruntime", threads=1)
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


def test_torch_is_never_imported(tmp_path):
    """Not even where it is installed: whoever asks for it fails."""
    models = [tmp_path / "in.onnx", tmp_path / "out.onnx"]
    for model in models:
        model.write_bytes(small_content(model.stem))
    path = tmp_path / "sound.wav"
    soundfile.write(path, synthesised(2 * RATE, RATE), RATE)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path), *map(str, models)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sound.wav") == 4


# --- Refusals -------------------------------------------------------------------


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


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("front_end", ["in", "out"])
def test_threads_that_share_a_tagger_do_not_disturb_each_other(backend, front_end):
    tagger = Tagger(small_content(front_end), backend, threads=1)
    sounds = [synthesised(length, RATE, length) for length in (9000, 32000, 50000)]
    expected = [tagger.outputs(sound[None]) for sound in sounds]

    def run(number):
        order = np.random.default_rng(number).integers(len(sounds), size=12)
        return [(each, tagger.outputs(sounds[each][None])) for each in order]

    for found in in_threads(run, 4):
        for each, outputs in found:
            for name, values in outputs.items():
                assert np.array_equal(values, expected[each][name])
