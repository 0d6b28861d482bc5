"""Students in SpeechBrain's slots: laws of the parts."""

import numpy as np
import pytest
import soundfile
import torch
from golden_vectors import GOLDEN
from speechbrain.processing.features import spectral_magnitude
from speechbrain.utils.parameter_transfer import Pretrainer
from torchaudio.functional import resample

from efficientat_plugin import MN, DyMN, LogMel
from efficientat_plugin.interfaces.encoders import (
    KeepFeatures,
    LogMelFbank,
    LogMelFeatures,
    LogMelSTFT,
    StudentEncoder,
    StudentWaveformEncoder,
    ends_of,
    load_encoder,
    silence,
)

FRONT_ENDS = {
    "default": {},
    "hop_5": {"hop_length": 160},
    "mels_40": {"n_mels": 40},
    "no_jitter": {"f_min_jitter": 0, "f_max_jitter": 0},
    "clamp": {"log_floor": 1e-7, "log_floor_mode": "clamp", "periodic_window": True},
    "sed": {
        "sample_rate": 16000,
        "win_length": 400,
        "hop_length": 160,
        "n_fft": 512,
        "f_max": 7000.0,
    },
}
STUDENTS = {
    "mn": lambda: MN(width=0.1, num_classes=5),
    "mn_fc": lambda: MN(width=0.1, num_classes=5, head="fully_convolutional"),
    "mn_mha": lambda: MN(width=0.1, num_classes=5, head="multihead_attention_pooling"),
    "mn_reduced": lambda: MN(width=0.1, num_classes=5, reduced_tail=True),
    "mn_s2211": lambda: MN(width=0.1, num_classes=5, strides=(2, 2, 1, 1)),
    "dymn": lambda: DyMN(width=0.1, num_classes=5),
}


@pytest.fixture
def waveform() -> torch.Tensor:
    """Two clips of a second and a half, [2, 48000]."""
    return 0.1 * torch.randn(2, 48000)


@pytest.fixture
def encoder() -> StudentEncoder:
    return load_encoder(width=0.1).eval()


def in_two_steps(log_mel: LogMel, waveform: torch.Tensor) -> torch.Tensor:
    """What SpeechBrain's ESC-50 script computes, [B, T, F]."""
    spectrum = LogMelSTFT(log_mel)(waveform)
    return LogMelFbank(log_mel)(spectral_magnitude(spectrum, power=1))


# --- Front end ---------------------------------------------------------------


@pytest.mark.parametrize("options", FRONT_ENDS.values(), ids=FRONT_ENDS)
@pytest.mark.parametrize("training", [False, True])
def test_front_end_of_two_steps_is_log_mel(waveform, options, training):
    log_mel = LogMel(**options).train(training)
    torch.manual_seed(1)
    expected = log_mel(waveform).transpose(1, 2)
    torch.manual_seed(1)
    halves = in_two_steps(log_mel, waveform)
    torch.testing.assert_close(halves, expected, atol=1e-5, rtol=0)


def test_features_are_log_mel_turned_and_kept(waveform):
    log_mel = LogMel().eval()
    features = LogMelFeatures(log_mel)(waveform)
    assert torch.equal(features, log_mel(waveform).transpose(1, 2))
    assert KeepFeatures()(features, torch.ones(2)) is features


@pytest.mark.parametrize("log_floor", [1e-5, 1e-7])
def test_silence_is_what_log_mel_makes_of_zeros(log_floor):
    log_mel = LogMel(log_floor=log_floor).eval()(torch.zeros(1, 3200))
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, silence(log_floor)))


# --- Encoder -----------------------------------------------------------------


@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS)
def test_encoder_gives_the_students_embedding(make):
    student = make().eval()
    encoder = StudentEncoder(student).eval()
    features = torch.randn(2, 70, 128)
    embedding = encoder(features)
    expected = student(features.transpose(1, 2).unsqueeze(1)).embedding
    assert embedding.shape == (2, 1, encoder.embedding_size)
    torch.testing.assert_close(embedding[:, 0], expected)


@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS)
def test_encoder_shares_all_weights_but_the_heads(make):
    student = make()
    encoder = StudentEncoder(student)
    assert not hasattr(encoder, "config")  # nor is it taken for a vision model
    kept = {id(p) for p in encoder.parameters()}
    head = {id(p) for p in student.classifier.parameters()}
    assert kept == {id(p) for p in student.parameters()} - head
    assert head  # the student keeps it


def test_encoder_every_weight_gets_a_gradient():
    encoder = load_encoder(width=0.1)
    encoder(torch.randn(2, 70, 128)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS)
def test_padded_clip_is_encoded_as_alone(make):
    encoder = StudentEncoder(make()).eval()
    clips = [torch.randn(frames, 128) for frames in (40, 100, 63, 40)]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    embedding = encoder(batch, torch.tensor([0.4, 1.0, 0.63, 0.4]))
    alone = torch.cat([encoder(clip[None]) for clip in clips])
    torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-4)


def test_full_lengths_are_no_lengths(encoder):
    features = torch.randn(3, 70, 128)
    expected = encoder(features)
    torch.testing.assert_close(encoder(features, torch.ones(3)), expected)
    masked = encoder._masked(features, torch.ones(3))
    torch.testing.assert_close(masked, expected)


def test_padding_never_matters_in_training():
    encoder = load_encoder(width=0.1)
    features = torch.randn(2, 100, 128)
    lengths = torch.tensor([1.0, 0.3])
    expected = encoder(features, lengths)
    features[1, 30:] = torch.randn(70, 128)
    torch.testing.assert_close(encoder(features, lengths), expected)
    features[1, 30:] = encoder.padding_value
    torch.testing.assert_close(encoder(features, lengths), expected)


@pytest.mark.parametrize("length, kept", [(0.001, 1), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_training_averages_over_the_frames_of_the_clip(encoder, length, kept):
    features = torch.full((1, 320, 128), encoder.padding_value)
    frames = encoder._frames(features)
    assert frames.shape[2] == 10
    masked = encoder._masked(features, torch.tensor([length]))
    torch.testing.assert_close(masked[:, 0], frames[:, :, :kept].mean(2))


@pytest.mark.parametrize("size", [7, 1000, 320000])
def test_ends_are_exact_for_lengths_in_float32(size):
    ends = torch.arange(1, size + 1)
    assert torch.equal(ends_of(ends.float() / size, size), ends)
    assert torch.equal(ends_of((ends.double() / size).float(), size), ends)


# --- Waveform encoder --------------------------------------------------------


def test_padded_waveform_is_encoded_as_alone(encoder):
    waveforms = StudentWaveformEncoder(LogMel(), encoder).eval()
    clips = [0.1 * torch.randn(samples) for samples in (16000, 32000, 27000)]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    lengths = torch.tensor([len(clip) / 32000 for clip in clips])
    embeddings = waveforms(batch, lengths)["embeddings"]
    alone = torch.cat([waveforms(clip[None])["embeddings"] for clip in clips])
    torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_samples_beyond_a_clip_never_matter(training):
    log_mel = LogMel(f_min_jitter=0, f_max_jitter=0)
    waveforms = StudentWaveformEncoder(log_mel, load_encoder(width=0.1))
    waveforms.train(training)
    batch, lengths = torch.randn(2, 32000), torch.tensor([1.0, 0.001])
    expected = waveforms(batch, lengths)["embeddings"]
    batch[1, 32:] = 100.0
    torch.testing.assert_close(waveforms(batch, lengths)["embeddings"], expected)
    assert expected.isfinite().all()


# --- Building ----------------------------------------------------------------


def test_family_and_width_are_those_of_the_file(tmp_path):
    student = DyMN(width=0.1, num_classes=5)
    torch.save(student.state_dict(), tmp_path / "student.pt")
    encoder = load_encoder(tmp_path / "student.pt", log_mel=LogMel())
    features = torch.randn(1, 70, 128)
    expected = StudentEncoder(student.eval())(features)
    torch.testing.assert_close(encoder(features), expected)
    assert not encoder.training and load_encoder(width=0.1).training


def test_own_features_need_no_front_end(tmp_path):
    """Nothing is guessed: without a log-mel there is none, with one it is stated."""
    path = tmp_path / "student.pt"
    torch.save(MN(width=0.1, num_classes=5).state_dict(), path)
    assert not hasattr(load_encoder(path).student, "front_end")
    stated = load_encoder(path, log_mel=LogMel(n_mels=64, hop_length=640)).student
    assert (stated.front_end["n_mels"], stated.front_end["hop_length"]) == (64, 640)


def test_published_weights_encode_as_published(shared):
    golden = np.load(GOLDEN / "mn04_as.npz")
    log_mel = LogMel().eval()
    encoder = load_encoder("mn04_as", log_mel=log_mel, savedir=shared / "checkpoints")
    recording = shared / "audio" / "metro_station-paris.wav"
    samples, sample_rate = soundfile.read(recording, dtype="float32")
    waveform = resample(torch.from_numpy(samples), sample_rate, 32000)
    embedding = StudentWaveformEncoder(log_mel, encoder)(waveform[None])["embeddings"]
    expected = torch.from_numpy(golden["mn04_as/metro_embedding"])
    torch.testing.assert_close(embedding[0, 0], expected, rtol=0, atol=1e-3)


def test_pretrainer_takes_a_whole_checkpoint_or_none(encoder, tmp_path):
    state = encoder.state_dict()
    torch.save(state, tmp_path / "whole.ckpt")
    state.popitem(last=False)
    torch.save(state, tmp_path / "part.ckpt")
    other = load_encoder(width=0.1).eval()
    features = torch.randn(1, 70, 128)
    paths = {"encoder": str(tmp_path / "whole.ckpt")}
    pretrainer = Pretrainer(loadables={"encoder": other}, paths=paths)
    pretrainer.collect_files()
    pretrainer.load_collected()
    assert torch.equal(other(features), encoder(features))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_whole(tmp_path / "part.ckpt")


@pytest.fixture
def weights(tmp_path):
    """The file of an MN of width 0.1."""
    torch.save(MN(width=0.1, num_classes=5).state_dict(), tmp_path / "student.pt")
    return tmp_path / "student.pt"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"family": "cnn14"}, "family='cnn14' is not known; choose one of 'mn', 'dymn"),
        ({"family": "dymn"}, "is of MN, not of family='dymn'; give its own"),
        ({"width": 0.4}, "does not fit the student"),
    ],
)
def test_load_encoder_refuses_what_is_not_of_the_weights(weights, options, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(weights, **options)


@pytest.mark.parametrize(
    "shape, lengths, message",
    [
        ((2, 48000), None, r"shape \(2, 48000\), but an encoder takes \[B, T, F\]"),
        ((2, 9, 128), [1.0], r"shape \(1,\), the batch has 2 clips; give one"),
        ((2, 9, 128), [1.0, 0.0], "must be greater than 0 and at most 1; divide"),
        ((2, 9, 128), [900.0, 9.0], "must be greater than 0 and at most 1; divide"),
    ],
)
def test_encoder_refuses_other_shapes(encoder, shape, lengths, message):
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(shape), lengths)
