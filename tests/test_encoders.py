"""Students in SpeechBrain's slots: laws of the parts, and the installed interfaces."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from golden_vectors import GOLDEN
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import AudioClassifier, EncoderClassifier
from speechbrain.inference.encoders import WaveformEncoder
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

HPARAMS = Path(__file__).resolve().parents[1] / "hparams" / "speechbrain"
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
# What the unchanged scripts read, beside what they pass to a Brain.
COMMON_KEYS = {
    *("output_folder", "save_folder", "data_folder", "audio_data_folder"),
    *("train_annotation", "valid_annotation", "test_annotation"),
    *("train_fold_nums", "valid_fold_nums", "test_fold_nums"),
    *("skip_manifest_creation", "use_tensorboard", "tensorboard_logs_folder"),
    *("sample_rate", "out_n_neurons", "dataloader_options", "modules", "opt_class"),
    *("lr_annealing", "checkpointer", "epoch_counter", "train_logger", "error_stats"),
}
SCRIPT_KEYS = {
    "esc50": {
        *("use_melspectra", "use_log1p_mel", "spec_mag_power", "test_only"),
        *("wham_folder", "add_wham_noise", "wham_audio_folder", "signal_length_s"),
    },
    "urbansound8k": {
        *("amp_to_db", "normalize", "compute_cost"),
        *("prepare_noise_data", "prepare_rir_data"),
    },
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


def test_features_are_log_mel_turned(waveform):
    log_mel = LogMel().eval()
    features = LogMelFeatures(log_mel)(waveform)
    assert torch.equal(features, log_mel(waveform).transpose(1, 2))


def test_band_edges_jitter_in_training_only(waveform):
    modules = torch.nn.ModuleDict({"compute_fbank": LogMelFbank(LogMel())})
    power = torch.rand(1, 10, 513)
    fbank = modules["compute_fbank"]
    assert not torch.equal(fbank(power), fbank(power))
    modules.eval()
    assert torch.equal(fbank(power), fbank(power))


def test_front_end_is_float32_within_autocast(waveform):
    log_mel = LogMel().eval()
    with torch.autocast("cpu", torch.bfloat16):
        features = in_two_steps(log_mel, waveform)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, in_two_steps(log_mel, waveform))


@pytest.mark.parametrize("log_floor", [1e-5, 1e-7])
def test_silence_is_what_log_mel_makes_of_zeros(log_floor):
    log_mel = LogMel(log_floor=log_floor).eval()(torch.zeros(1, 3200))
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, silence(log_floor)))


def test_kept_features_are_kept():
    features = torch.rand(2, 5, 3)
    assert KeepFeatures()(features, torch.ones(2)) is features


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
    kept = {id(p) for p in StudentEncoder(student).parameters()}
    head = {id(p) for p in student.classifier.parameters()}
    assert kept == {id(p) for p in student.parameters()} - head
    assert head  # the student keeps it


def test_encoder_every_weight_gets_a_gradient():
    encoder = load_encoder(width=0.1)
    encoder(torch.randn(2, 70, 128)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_encoder_is_not_taken_for_a_vision_model(encoder):
    assert not hasattr(encoder, "config")


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


def test_weights_of_a_file_tell_family_and_width(tmp_path):
    student = DyMN(width=0.1, num_classes=5)
    torch.save(student.state_dict(), tmp_path / "student.pt")
    encoder = load_encoder(tmp_path / "student.pt", log_mel=LogMel())
    features = torch.randn(1, 70, 128)
    expected = StudentEncoder(student.eval())(features)
    torch.testing.assert_close(encoder(features), expected)
    assert not encoder.training and load_encoder(width=0.1).training


def test_features_of_ones_own_need_no_front_end(tmp_path):
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


# --- YAMLs of SpeechBrain's scripts ------------------------------------------


@pytest.mark.parametrize("name", SCRIPT_KEYS)
@pytest.mark.parametrize("family, width", [("mn", 0.1), ("dymn", 0.1)])
def test_yaml_fills_the_slots_of_its_script(name, family, width, tmp_path, waveform):
    overrides = {
        "data_folder": "nowhere",
        "output_folder": str(tmp_path),
        "pretrained": None,
        "family": family,
        "width": width,
    }
    with (HPARAMS / f"{name}.yaml").open(encoding="utf-8") as text:
        hparams = load_hyperpyyaml(text, overrides)
    assert COMMON_KEYS | SCRIPT_KEYS[name] <= hparams.keys()
    modules = torch.nn.ModuleDict(hparams["modules"]).eval()
    if name == "esc50":
        spectrum = modules["compute_stft"](waveform)
        power = spectral_magnitude(spectrum, power=hparams["spec_mag_power"])
        features = modules["compute_fbank"](power)
    else:
        features = modules["compute_features"](waveform)
    expected = hparams["log_mel"](waveform).transpose(1, 2)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    scores = modules["classifier"](modules["embedding_model"](features))
    assert scores.shape == (2, 1, hparams["out_n_neurons"])
    scores.sum().backward()
    assert all(p.grad is not None for p in modules.parameters())


# --- The installed interfaces ------------------------------------------------

SHARED_YAML = """
sample_rate: 32000  # Hz
log_mel: !new:efficientat_plugin.LogMel
  sample_rate: !ref <sample_rate>
embedding_model: !apply:efficientat_plugin.load_encoder
  width: 0.1
  log_mel: !ref <log_mel>
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>
"""
CLASSIFIER_YAML = """
classifier: !new:torch.nn.Linear
  in_features: !ref <embedding_model.embedding_size>
  out_features: 3
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
    label_encoder: !ref <label_encoder>
"""
ENCODER_CLASSIFIER_YAML = """
modules:
  compute_features: !new:efficientat_plugin.LogMelFeatures
    log_mel: !ref <log_mel>
  mean_var_norm: !new:efficientat_plugin.KeepFeatures
  embedding_model: !ref <embedding_model>
  classifier: !ref <classifier>
"""
AUDIO_CLASSIFIER_YAML = """
spec_mag_power: 1
use_melspectra: True
modules:
  compute_stft: !new:efficientat_plugin.LogMelSTFT
    log_mel: !ref <log_mel>
  compute_fbank: !new:efficientat_plugin.LogMelFbank
    log_mel: !ref <log_mel>
  embedding_model: !ref <embedding_model>
  classifier: !ref <classifier>
"""
WAVEFORM_ENCODER_YAML = """
modules:
  encoder: !new:efficientat_plugin.StudentWaveformEncoder
    log_mel: !ref <log_mel>
    encoder: !ref <embedding_model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    embedding_model: !ref <embedding_model>
"""
LABELS = ("dog", "rain", "siren")


class Model:
    """A folder that `from_hparams` takes, and what it must compute."""

    def __init__(self, folder: Path, *parts: str) -> None:
        self.folder = folder
        (folder / "hyperparams.yaml").write_text(SHARED_YAML + "".join(parts))
        self.log_mel = LogMel().eval()
        self.encoder = load_encoder(width=0.1).eval()
        self.classifier = torch.nn.Linear(self.encoder.embedding_size, len(LABELS))
        torch.save(self.encoder.state_dict(), folder / "embedding_model.ckpt")
        torch.save(self.classifier.state_dict(), folder / "classifier.ckpt")
        labels = CategoricalEncoder()
        labels.update_from_iterable(LABELS)
        labels.save(folder / "label_encoder.ckpt")

    def load(self, interface):
        model = interface.from_hparams(
            source=str(self.folder), run_opts={"device": "cpu"}
        )
        if "label_encoder" in vars(model.hparams):
            model.hparams.label_encoder.expect_len(len(LABELS))
        return model

    def embed(self, waveform: torch.Tensor) -> torch.Tensor:
        """[B, N] -> [B, 1, D]"""
        return self.encoder(self.log_mel(waveform).transpose(1, 2))


@pytest.fixture
def audio_file(tmp_path, waveform):
    """One second and a half at 32 kHz."""
    (tmp_path / "audio").mkdir()
    path = tmp_path / "audio" / "clip.wav"
    soundfile.write(path, waveform[0].numpy(), 32000, subtype="FLOAT")
    return path


def test_encoder_classifier_runs_a_student(tmp_path, waveform, audio_file):
    made = Model(tmp_path, CLASSIFIER_YAML, ENCODER_CLASSIFIER_YAML)
    model = made.load(EncoderClassifier)
    expected = made.embed(waveform)
    embeddings = model.encode_batch(waveform)
    torch.testing.assert_close(embeddings, expected)
    scores, best, index, text = model.classify_batch(waveform)
    expected_scores = made.classifier(expected)[:, 0]
    torch.testing.assert_close(scores, expected_scores)
    assert torch.equal(index, scores.argmax(1)) and torch.equal(best, scores.amax(1))
    assert text == [LABELS[i] for i in index]
    of_file, _, _, text_of_file = model.classify_file(str(audio_file))
    torch.testing.assert_close(of_file, expected_scores[:1])
    assert text_of_file == text[:1]


def test_encoder_classifier_encodes_a_padded_clip_as_alone(tmp_path, waveform):
    made = Model(tmp_path, CLASSIFIER_YAML, ENCODER_CLASSIFIER_YAML)
    model = made.load(EncoderClassifier)
    waveform[1, 32000:] = 0.0
    embeddings = model.encode_batch(waveform, torch.tensor([1.0, 2 / 3]))
    torch.testing.assert_close(embeddings[:1], made.embed(waveform[:1]))
    # But for the frames at the end, whose window reaches into the padding
    alone = made.embed(waveform[1:, :32000])
    torch.testing.assert_close(embeddings[1:], alone, atol=0.05, rtol=0.05)


def test_audio_classifier_runs_a_student(tmp_path, waveform, audio_file):
    made = Model(tmp_path, CLASSIFIER_YAML, AUDIO_CLASSIFIER_YAML)
    model = made.load(AudioClassifier)
    expected = made.classifier(made.embed(waveform))
    scores, _, index, text = model.classify_batch(waveform)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert text == [[LABELS[i]] for i in index[:, 0]]
    of_file, _, _, _ = model.classify_file(str(audio_file))
    torch.testing.assert_close(of_file, expected[:1], atol=1e-4, rtol=1e-4)


def test_waveform_encoder_runs_a_student(tmp_path, waveform, audio_file):
    made = Model(tmp_path, WAVEFORM_ENCODER_YAML)
    model = made.load(WaveformEncoder)
    embeddings = model.encode_batch(waveform, torch.ones(2))["embeddings"]
    torch.testing.assert_close(embeddings, made.embed(waveform))
    of_file = model.encode_file(str(audio_file))
    torch.testing.assert_close(of_file, embeddings[:1])


@pytest.mark.parametrize("given, heard", [(True, 48000), (False, 24000)])
def test_files_are_heard_at_16_khz_unless_the_yaml_says_otherwise(
    tmp_path, audio_file, given, heard
):
    made = Model(tmp_path, WAVEFORM_ENCODER_YAML)
    if not given:
        yaml = tmp_path / "hyperparams.yaml"
        yaml.write_text(yaml.read_text().replace("audio_normalizer", "another_name"))
    assert made.load(WaveformEncoder).load_audio(str(audio_file)).shape == (heard,)
