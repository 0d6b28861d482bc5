"""The HEAR API: what its validator asks for, laws of windows, refusals.

The validator itself (hearvalidator 2021.0.2) is no part of the tests: it needs
TensorFlow and does not know the published 32 kHz. With TensorFlow stubbed and that
rate allowed its checks pass; here are its rules, those of its later versions included.
"""

import inspect

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN

from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.hear import (
    HearModel,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)
from efficientat_plugin.students.embeddings import LayerEmbedding
from efficientat_plugin.students.mn import MN

SAMPLE_RATE = 4000  # a small front end, so that long sounds are cheap
SMALL_FRONT_END = {
    "sample_rate": SAMPLE_RATE,
    "n_mels": 40,
    "win_length": 100,
    "hop_length": 40,
    "n_fft": 128,
    "f_max": 1900.0,
    "f_max_jitter": 100,
}


@pytest.fixture(scope="module")
def model() -> HearModel:
    torch.manual_seed(0)
    student = MN(num_classes=3, width=0.1, n_mels=40)
    return HearModel(LayerEmbedding(student), LogMel(**SMALL_FRONT_END)).eval()


@pytest.fixture
def published_model(shared) -> HearModel:
    return load_model(str(shared / "checkpoints" / "mn04_as_mAP_432.pt"))


def noise(sounds: int, seconds: float, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    return 2 * torch.rand(sounds, int(seconds * sample_rate)) - 1


def test_functions_have_the_signatures_of_the_api():
    defaults = inspect.signature(load_model).parameters.values()
    assert next(iter(defaults)).name == "model_file_path"
    assert all(
        each.default != inspect.Parameter.empty or each.kind is each.VAR_KEYWORD
        for each in defaults
    )
    for function in (get_scene_embeddings, get_timestamp_embeddings):
        assert list(inspect.signature(function).parameters) == ["audio", "model"]


def test_no_path_is_the_default_student(monkeypatch):
    asked = []

    def load(source, **options):
        asked.append((source, options))
        student = MN(num_classes=3, width=0.1)
        student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 320}
        return student

    monkeypatch.setattr(hear, "load_student", load)
    assert not load_model().training
    load_model("mn04_as", savedir="weights")
    assert asked == [("mn10_as", {}), ("mn04_as", {"savedir": "weights"})]


def test_options_reach_the_model(shared):
    model = load_model(
        shared / "checkpoints" / "mn04_as_mAP_432.pt",
        sources=["b15", "mel"],
        pooling="avg_and_max",
        timestamp_window_ms=640,
    )
    assert model.scene_embedding_size == 128 + 2 * 64
    assert model.timestamp_window == 20480


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_validators_rules_hold(model, seconds):
    assert isinstance(model, torch.nn.Module)
    assert type(model.scene_embedding_size) is int
    assert type(model.timestamp_embedding_size) is int
    audio = noise(3, seconds)
    scene = get_scene_embeddings(audio, model)
    assert scene.dtype == torch.float32
    assert scene.shape == (3, model.scene_embedding_size)
    embeddings, timestamps = get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    steps = timestamps.diff(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, 50.0))
    assert timestamps[0, 0] == 0
    assert 1000 * seconds - 50 < timestamps[0, -1] <= 1000 * seconds
    assert not scene.requires_grad and not embeddings.requires_grad


@pytest.mark.parametrize("sound", ["silence", "noise", "full_scale"])
def test_embeddings_are_finite_and_repeat(model, sound):
    audio = {
        "silence": torch.zeros(2, SAMPLE_RATE),
        "noise": noise(2, 1),
        "full_scale": torch.ones(2, SAMPLE_RATE),
    }[sound]
    for function in (
        get_scene_embeddings,
        lambda *arguments: get_timestamp_embeddings(*arguments).embeddings,
    ):
        embeddings = function(audio, model)
        assert embeddings.isfinite().all()
        assert torch.equal(embeddings, function(audio.clone(), model))


@pytest.mark.parametrize("seconds", [1, 11])
def test_a_sound_is_embedded_alone_as_in_a_batch(model, seconds):
    audio = noise(3, seconds)
    scene = get_scene_embeddings(audio, model)
    alone = torch.cat([get_scene_embeddings(each[None], model) for each in audio])
    torch.testing.assert_close(scene, alone, atol=1e-5, rtol=1e-4)
    moments = get_timestamp_embeddings(audio, model).embeddings
    alone = get_timestamp_embeddings(audio[1:2], model).embeddings
    torch.testing.assert_close(moments[1:2], alone, atol=1e-5, rtol=1e-4)


def test_batches_are_of_bounded_length_and_change_nothing(model, monkeypatch):
    audio, lengths = noise(2, 12), []
    whole = get_scene_embeddings(audio, model)
    moments = get_timestamp_embeddings(audio[:, :9000], model).embeddings
    monkeypatch.setattr(hear, "MAX_BATCH_SECONDS", 20.0)
    handle = model.log_mel.register_forward_pre_hook(
        lambda _layer, inputs: lengths.append(inputs[0].numel())
    )
    torch.testing.assert_close(get_scene_embeddings(audio, model), whole)
    monkeypatch.setattr(hear, "MAX_BATCH_SECONDS", 1.0)  # six windows of 160 ms
    again = get_timestamp_embeddings(audio[:, :9000], model).embeddings
    handle.remove()
    torch.testing.assert_close(again, moments, atol=1e-5, rtol=1e-4)
    assert max(lengths) == 20 * SAMPLE_RATE and lengths[-1] <= SAMPLE_RATE


def test_a_short_scene_is_one_forward(model):
    for seconds in (0.5, 10):
        audio = noise(2, seconds)
        with torch.no_grad():
            expected = model(audio)
        torch.testing.assert_close(get_scene_embeddings(audio, model), expected)


def test_a_long_scene_is_the_average_over_reflected_windows(model):
    audio = noise(1, 10.1)
    margins = ((0, 0), (20000, 20000))
    padded = torch.from_numpy(np.pad(audio.numpy(), margins, "reflect"))
    starts = range(0, 40401, 10000)  # every 2.5 s of the sound
    with torch.no_grad():
        windows = [model(padded[:, start : start + 40000]) for start in starts]
    expected = torch.stack(windows).mean(0)
    torch.testing.assert_close(get_scene_embeddings(audio, model), expected)


def test_a_moment_is_the_window_around_its_timestamp(model):
    audio = noise(2, 1)
    embeddings, timestamps = get_timestamp_embeddings(audio, model)
    middle = round(float(timestamps[0, 7]) * SAMPLE_RATE / 1000)
    with torch.no_grad():
        expected = model(audio[:, middle - 320 : middle + 320])
    torch.testing.assert_close(embeddings[:, 7], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [2, 3, 65, 66, 320, 321])
def test_short_sounds_are_reflected_until_they_are_long_enough(model, samples):
    audio = noise(2, 1)[:, :samples]
    assert get_scene_embeddings(audio, model).isfinite().all()
    embeddings, timestamps = get_timestamp_embeddings(audio, model)
    assert embeddings.shape[1] == timestamps.shape[1] == 1 + samples // 200
    padded = np.pad(audio.numpy(), ((0, 0), (320, 320)), "reflect")
    with torch.no_grad():
        expected = model(torch.from_numpy(padded)[:, :640])
    torch.testing.assert_close(embeddings[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_timestamps_do_not_drift_where_the_hop_is_no_whole_number():
    front_end = LogMel(**{**SMALL_FRONT_END, "sample_rate": 4410})  # 220.5 samples
    student = MN(num_classes=3, width=0.1, n_mels=40)
    model = HearModel(LayerEmbedding(student, ["mel"]), front_end)
    embeddings, timestamps = get_timestamp_embeddings(torch.zeros(1, 44100), model)
    hop_ms = torch.tensor(1000 * 220 / 4410)
    assert embeddings.shape == (1, 201, 40)
    assert float(timestamps[0, -1]) <= 10000 < float(timestamps[0, -1] + 50)
    steps = timestamps.diff()
    torch.testing.assert_close(steps, hop_ms.expand_as(steps), atol=1e-3, rtol=0)


def test_neither_mode_nor_precision_changes_embeddings(model):
    audio = noise(2, 1)
    expected = get_scene_embeddings(audio, model)
    model.train()
    found = get_scene_embeddings(audio.double(), model)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert not model.embedding.student.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sounds_go_to_the_models_device(model):
    audio = noise(2, 1)
    expected = get_scene_embeddings(audio, model)
    moments = get_timestamp_embeddings(audio, model)
    try:
        model.cuda()
        for sound in (audio, audio.cuda()):
            scene = get_scene_embeddings(sound, model)
            assert scene.device.type == "cuda"
            torch.testing.assert_close(scene.cpu(), expected, atol=1e-3, rtol=1e-3)
            found = get_timestamp_embeddings(sound, model)
            assert found.timestamps.device.type == "cuda"
            assert torch.equal(found.timestamps.cpu(), moments.timestamps)
    finally:
        model.cpu()


def test_published_values_are_met(published_model):
    golden = np.load(GOLDEN / "front_end.npz")
    wave = torch.from_numpy(golden["wave"])
    long = torch.cat([wave] * 6, dim=1)
    scene = get_scene_embeddings(long, published_model)
    moments, timestamps = get_timestamp_embeddings(wave, published_model)
    assert moments.shape == (1, 41, 320) and timestamps[0, -1] == 2000
    # Norms of the first sound's embeddings, computed with the published code.
    assert float(scene[0].norm()) == pytest.approx(13.839585, rel=1e-5)
    assert float(moments[0].norm()) == pytest.approx(98.592842, rel=1e-5)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(4000), r"shape \(4000,\) and torch.float32 was given; the API"),
        (torch.zeros(1, 4000, dtype=torch.int16), "torch.int16 was given; the API"),
        (torch.zeros(0, 4000), r"\(0, 4000\) was given; at least one sound of two"),
        (torch.zeros(2, 1), r"\(2, 1\) was given; at least one sound of two samples"),
    ],
)
def test_what_is_no_batch_of_sounds_is_refused(model, audio, message):
    for function in (get_scene_embeddings, get_timestamp_embeddings):
        with pytest.raises(ValueError, match=message):
            function(audio, model)


def test_front_ends_and_windows_that_do_not_fit_are_refused():
    embedding = LayerEmbedding(MN(num_classes=3, width=0.1))
    with pytest.raises(ValueError, match="gives 40 bands, the embedding takes 128"):
        HearModel(embedding, LogMel(**SMALL_FRONT_END))
    with pytest.raises(ValueError, match="at least 16.0625 ms are needed"):
        HearModel(embedding, LogMel(), timestamp_window_ms=16)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="did you mean mn10_as"):
        load_model("mn10_a")
