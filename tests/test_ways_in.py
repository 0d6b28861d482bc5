"""Every method of every tagger takes sound in every form that it comes in."""

import io

import numpy as np
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of

from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 16000
SOUND = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


def _wav():
    file = io.BytesIO()
    soundfile.write(file, SOUND, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    path.write_bytes(_wav())
    return path


@pytest.fixture(scope="module")
def source():
    return source_of(random_weights(MN(7, width=0.1)), clip_seconds=1.0)


@pytest.fixture(scope="module", params=["torch", "exported"])
def tagger(request, source):
    if request.param == "exported":
        return Tagger(content_of(source), "onnxruntime", threads=1)
    model = source.model
    settings = {"labels": model.labels, "sample_rate": 32000, "clip_seconds": 1.0}
    settings |= {"target": "multilabel", "short_clips": "repeat"}
    parts = {"student": model.student, "log_mel": source.log_mel}
    return AudioTagger(parts, settings, {"device": "cpu"})


WAYS = {
    "name": str,
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: io.BufferedReader(io.BytesIO(path.read_bytes())),
    "undecoded row": lambda path: {"bytes": path.read_bytes(), "path": None},
    "row of a path": lambda path: {"bytes": None, "path": str(path)},
    "decoded row": lambda _: {"array": SOUND, "sampling_rate": RATE, "path": None},
    "decoded row of a list": lambda _: {
        "array": SOUND.tolist(),
        "sampling_rate": RATE,
    },
}
WITH_RATE = {
    "array": lambda: SOUND,
    "list": SOUND.tolist,
    "tensor": lambda: torch.from_numpy(SOUND),
    "tensor with a gradient": lambda: torch.from_numpy(SOUND).requires_grad_(),
    "two channels": lambda: np.stack([SOUND, SOUND]),
    "channels last": lambda: np.stack([SOUND, SOUND]).T.astype(np.float64),
    "decoded row": lambda: {"array": SOUND, "path": None},
}
METHODS = {
    "tag": lambda tagger, *sound: [tag.probability for tag in tagger.tag(*sound)],
    "scan": lambda tagger, *sound: [row.probabilities for row in tagger.scan(*sound)],
    "embed": lambda tagger, *sound: tagger.embed(*sound),
    "probabilities": lambda tagger, sound, rate=None: tagger.probabilities(
        [sound], rate
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_sound_is_the_same_in_every_way_that_it_comes(tagger, path, method):
    expected = np.array(method(tagger, path))
    for name, way in WAYS.items():
        found = np.array(method(tagger, way(path)))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    for name, make in WITH_RATE.items():
        found = np.array(method(tagger, make(), RATE))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)


NO_SOUNDS = {
    "int16-sized floats": (32768 * SOUND, "full scale is 1; .*; give floating"),
    "in a row": ({"array": 32768 * SOUND, "sampling_rate": RATE}, "full scale is 1"),
    "64-bit integers": ((32768 * SOUND).astype(int), "have no known full scale"),
    "a file read to its end": (io.BytesIO(), r"call seek\(0\)"),
    "a file of text": (io.StringIO("RIFF"), 'or open it with "rb"'),
    "no samples": (np.zeros(0, np.float32), "no samples"),
    "no file": ("no\udcff.wav", "not decodable"),
    "other bytes": (b"no sound", "not decodable"),
    "other bytes in an array": (bytearray(b"no sound"), "not decodable"),
    "not finite": (np.array([0.0, np.nan]), "not finite"),
    "huge": (np.full((100, 2), 3e38, np.float32), r"up to \de\+\d+, and full scale"),
    "huge doubles": (np.full(100, 1e300), r"up to \de\+\d+, and full scale is 1"),
    "a square": (np.zeros((100, 100)), "no axis of channels"),
    "three axes": (np.zeros((1, 1, 9)), r"shape \(1, 1, 9\)"),
    "complex": (np.zeros(9, complex), "of type complex128"),
}


@every_method
@pytest.mark.parametrize("name", NO_SOUNDS)
def test_what_is_no_sound_is_refused_in_every_method(tagger, method, name):
    sound, message = NO_SOUNDS[name]
    with pytest.raises(ValueError, match=message):
        method(tagger, sound, RATE)


def test_streams_refuse_them_too(tagger):
    for name in ("int16-sized floats", "64-bit integers"):
        sound, message = NO_SOUNDS[name]
        with pytest.raises(ValueError, match=message):
            tagger.stream(RATE).feed(sound)


@every_method
def test_a_file_of_them_is_a_sound_that_cannot_be_read(tagger, method, tmp_path):
    soundfile.write(tmp_path / "a.wav", 32768 * SOUND, RATE, subtype="FLOAT")
    for sound in (str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()):
        with pytest.raises(UnreadableClip, match="full scale is 1; .* by 32768"):
            method(tagger, sound)


def test_loud_sound_is_none_of_them(tagger):
    tagger.tag(10 * SOUND / np.abs(SOUND).max(), RATE)


def test_arrays_and_tensors_are_scored_alike(tagger):
    clips = np.stack([SOUND, SOUND[::-1]])
    expected = tagger.score(clips)
    assert expected.shape == (2, 7)
    tensor = torch.from_numpy(clips)
    with_gradient = torch.tensor(clips, requires_grad=True)
    for same in (tensor, with_gradient, clips.astype(np.float64), clips.tolist()):
        np.testing.assert_allclose(tagger.score(same), expected, atol=1e-6)
    for other in (SOUND, clips[:0], clips.astype(int)):
        with pytest.raises(ValueError, match=r"\[B, N\], floating point"):
            tagger.score(other)


def test_a_tagger_is_described_in_one_line(tagger):
    assert repr(tagger) == (
        f"{type(tagger).__name__} of 7 classes (multilabel), clips of 1 s at 32000 Hz"
    )


@every_method
def test_numbers_that_are_not_finite_are_an_error(source, method, monkeypatch):
    tagger = Tagger(content_of(source), "onnxruntime", threads=1)
    computed = tagger._session.run
    monkeypatch.setattr(
        tagger._session,
        "run",
        lambda inputs: {k: np.nan * v for k, v in computed(inputs).items()},
    )
    with pytest.raises(ValueError, match="its weights are corrupt"):
        method(tagger, SOUND, RATE)


@every_method
def test_a_sound_needs_a_rate_and_a_sample_at_the_students(tagger, method):
    with pytest.raises(ValueError, match="pass sample_rate in Hz"):
        method(tagger, SOUND)
    with pytest.raises(UnreadableClip, match="shorter than a sample"):
        method(tagger, np.zeros(1, np.float32), 192000)


@pytest.mark.parametrize("sound", [b"no sound", "no.wav", np.zeros(0, np.float32)])
def test_unreadable_sounds_have_an_error_of_their_own(tagger, sound):
    with pytest.raises(UnreadableClip):
        tagger.tag(sound, RATE)
