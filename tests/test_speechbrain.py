"""Students in SpeechBrain's scripts and its installed interfaces."""

from pathlib import Path

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.inference.classifiers import AudioClassifier, EncoderClassifier
from speechbrain.inference.encoders import WaveformEncoder
from speechbrain.processing.features import spectral_magnitude

from efficientat_plugin import LogMel
from efficientat_plugin.interfaces.encoders import load_encoder

HPARAMS = Path(__file__).resolve().parents[1] / "hparams" / "speechbrain"
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


@pytest.mark.parametrize("has_normalizer, num_samples", [(True, 48000), (False, 24000)])
def test_files_are_resampled_to_16_khz_without_a_normalizer(
    tmp_path, audio_file, has_normalizer, num_samples
):
    made = Model(tmp_path, WAVEFORM_ENCODER_YAML)
    if not has_normalizer:
        yaml = tmp_path / "hyperparams.yaml"
        yaml.write_text(yaml.read_text().replace("audio_normalizer", "another_name"))
    assert made.load(WaveformEncoder).load_audio(str(audio_file)).shape == (
        num_samples,
    )
