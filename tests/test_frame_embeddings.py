"""Students of frames embed sound over time, through HEAR as well."""

import pytest
import torch

from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.frame_embeddings import FrameEmbedding
from efficientat_plugin.students.frame_mn import FrameMN

FRONT_END = {"sample_rate": 16000, "n_mels": 64, "win_length": 400, "n_fft": 512}
FRONT_END |= {"hop_length": 160, "f_max": 7000.0}
RATE, FRAME = 16000, 640


def student_of(sequence_model="gru"):
    torch.manual_seed(0)
    return FrameMN(3, width=0.1, sequence_model=sequence_model, sequence_dim=16)


@pytest.fixture(scope="module")
def model():
    return FrameEmbedding(student_of(), LogMel(**FRONT_END)).eval()


def noise(sounds, seconds):
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(sounds, round(seconds * RATE), generator=generator) - 1


@pytest.mark.parametrize("seconds", [0.5, 1.07, 3.0])
def test_frames_are_those_of_the_network(model, seconds):
    audio = noise(2, seconds)
    count = -(-audio.shape[1] // FRAME)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (2, count, model.timestamp_embedding_size)
    padded = torch.nn.functional.pad(audio, (0, count * FRAME - audio.shape[1]))
    with torch.no_grad():
        expected = model.student(model.log_mel(padded)[:, None]).embedding
    torch.testing.assert_close(embeddings, expected[:, :count], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(timestamps[0], 20.0 + 40 * torch.arange(float(count)))
    assert embeddings.dtype == timestamps.dtype == torch.float32


def test_long_sound_is_embedded_in_chunks_that_agree_where_alone(model):
    """The first frames are those of the first ten seconds."""
    audio = noise(1, 23)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape[:2] == (1, 575) and timestamps[0, -1] == 22980
    first, _ = hear.get_timestamp_embeddings(audio[:, : 10 * RATE], model)
    torch.testing.assert_close(embeddings[:, :200], first[:, :200])
    assert not torch.allclose(embeddings[:, 240:250], first[:, 240:])  # cross-faded


@pytest.mark.parametrize("seconds", [2, 12])
def test_a_scene_is_the_mean_of_frames_and_alike_in_a_batch(model, seconds):
    audio = noise(2, seconds)
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size)
    alone = hear.get_scene_embeddings(audio[1:], model)
    torch.testing.assert_close(scene[1:], alone, atol=1e-5, rtol=1e-4)
    if seconds == 2:
        frames = hear.get_timestamp_embeddings(audio, model).embeddings
        torch.testing.assert_close(scene, frames.mean(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("samples", [2, 100, 700])
def test_short_sounds_are_embedded(model, samples):
    audio = noise(2, 1)[:, :samples]
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape[1] == -(-samples // FRAME) == timestamps.shape[1]
    assert embeddings.isfinite().all()
    assert hear.get_scene_embeddings(audio, model).isfinite().all()


def test_loading_a_student_of_frames_gives_it(monkeypatch):
    def load(source, **options):
        student = student_of()
        student.front_end = FRONT_END
        return student

    monkeypatch.setattr(hear, "load_student", load)
    found = hear.load_model("fmn04")
    assert isinstance(found, FrameEmbedding) and not found.training
    assert found.sample_rate == RATE
    with pytest.raises(ValueError, match="are options of students of clips; FrameMN"):
        hear.load_model("fmn04", timestamp_window_ms=640.0)


def test_another_front_end_is_refused():
    student = student_of()
    student.front_end = FRONT_END
    with pytest.raises(ValueError, match="gives 128 bands, the student takes 64"):
        FrameEmbedding(student, LogMel(**FRONT_END | {"n_mels": 128}))
