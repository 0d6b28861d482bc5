"""What fine-tuning leaves is of use to SpeechBrain alone, to the hub, and later on."""

import pydoc
import re

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from trained_models import NAMES, trained_model, write_model

from efficientat_plugin.cli.load_model import load_tagger
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.export.source import find_source
from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.encoders import load_encoder
from efficientat_plugin.pretrained.folder import (
    TrainedModel,
    read_model_folder,
)
from efficientat_plugin.pretrained.safe_yaml import PARTS
from efficientat_plugin.pretrained.weights import (
    load_network,
    load_published_state,
    load_student,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.tagging.torch_tagger import AudioTagger
from efficientat_plugin.teachers.load import load_teacher, open_teachers

ON_CPU = {"device": "cpu"}
# As the first folders had it: no slots of SpeechBrain's, SpeechBrain's normalizer.
FIRST_YAML = """\
# A student of efficientat_plugin, for AudioTagger.from_hparams and for SpeechBrain.
sample_rate: 32000  # Hz
clip_seconds: 1.0  # s, of the clips that it was trained on
target: multiclass
short_clips: repeat  # what is done with shorter sound
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>

labels: !new:efficientat_plugin.LabelTable
  mids: ["/m/0", "/m/1", "/m/2"]
  names: ["dog", "cat", "bird"]

log_mel: !new:efficientat_plugin.LogMel
  sample_rate: 32000
  n_mels: 128
  hop_length: 640

student: !new:efficientat_plugin.MN
  num_classes: 3
  width: 0.1

modules:
  log_mel: !ref <log_mel>
  student: !ref <student>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    student: !ref <student>
  custom_hooks:  # all of the weights or none: SpeechBrain's own takes what fits
    student: !name:efficientat_plugin.load_published_state
"""


# --- Names that last -----------------------------------------------------------------

# Where public names were when folders named files of the package
OLD_HOMES = {
    "SoxrNormalizer": "classifiers",
    "StudentClassifier": "classifiers",
    "label_encoder": "classifiers",
    "LabelTable": "data.targets",
    "KeepFeatures": "encoders",
    "LogMelFeatures": "encoders",
    "StudentEncoder": "encoders",
    "LogMel": "features",
    "LogMelFbank": "encoders",
    "LogMelSTFT": "encoders",
    "StudentWaveformEncoder": "encoders",
    "audioset_labels": "data.targets",
    "DyMN": "students.dymn",
    "MN": "students.mn",
    "load_published_state": "students.weights",
    "PaSST": "teachers.passt",
}


@pytest.mark.parametrize("name", OLD_HOMES)
def test_what_a_model_folder_may_name_is_there(name):
    new, old = f"efficientat_plugin.{name}", f"efficientat_plugin.{OLD_HOMES[name]}"
    assert pydoc.locate(new) is pydoc.locate(f"{old}.{name}") is not None
    assert name in PARTS


@pytest.mark.parametrize("kind", ["MN", "DyMN", "PaSST"])
def test_a_folder_names_no_file_of_the_package_and_older_ones_load(kind, tmp_path):
    model = trained_model(family=DyMN if kind == "DyMN" else MN)
    if kind == "PaSST":
        options = {"num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}
        options |= {"n_mels": 128, "num_frames": 50}
        student = PaSST(**options).eval()
        student.options, student.front_end = options, model.student.front_end
        model = model._replace(student=student)
    yaml = write_model(tmp_path / "model", model) / "hyperparams.yaml"
    waveform = 0.1 * torch.randn(1, 32000)
    tagger = AudioTagger.from_hparams(str(tmp_path / "model"), run_opts=ON_CPU)
    expected = tagger.probabilities(waveform.numpy(), 32000)
    names = re.findall(r"efficientat_plugin\.([\w.]+)", yaml.read_text())
    assert kind in names and not any("." in name for name in names)
    old = re.sub(
        r"(:efficientat_plugin)\.(\w+)",
        lambda found: f"{found[1]}.{OLD_HOMES[found[2]]}.{found[2]}",
        yaml.read_text(),
    )
    yaml.write_text(old)
    assert "efficientat_plugin.classifiers.SoxrNormalizer" in old
    tagger = AudioTagger.from_hparams(str(tmp_path / "model"), run_opts=ON_CPU)
    np.testing.assert_array_equal(
        tagger.probabilities(waveform.numpy(), 32000), expected
    )
    assert load_network(tmp_path / "model").num_classes == 3
    if kind == "PaSST":
        return  # for which SpeechBrain has no slot
    classifier = EncoderClassifier.from_hparams(
        source=str(tmp_path / "model"), run_opts=ON_CPU
    )
    given = classifier.classify_batch(waveform)[0].exp().numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


# --- SpeechBrain alone ---------------------------------------------------------------


@pytest.mark.parametrize("target", ["multiclass", "multilabel"])
@pytest.mark.parametrize("options", [{"head": "fully_convolutional"}, {"family": DyMN}])
def test_speechbrain_alone_says_what_the_student_says(tmp_path, options, target):
    model = trained_model(target, **options)
    folder = write_model(tmp_path / "model", model)
    classifier = EncoderClassifier.from_hparams(
        source=str(folder), savedir=str(tmp_path / "links"), run_opts=ON_CPU
    )
    waveform = 0.1 * torch.randn(2, 32000)
    waveform[1] = waveform[1].cumsum(0) / 100  # as unlike as two sounds can be
    with torch.no_grad():
        output = model.student(classifier.mods.log_mel(waveform).unsqueeze(1))
        given, score, index, names = classifier.classify_batch(waveform)
        embedding = classifier.encode_batch(waveform)
    logits = output.logits
    assert (logits[0] - logits[1]).abs().max() > 0.1
    expected = logits.sigmoid() if target == "multilabel" else logits.softmax(-1)
    torch.testing.assert_close(given.exp(), expected)
    assert names == [NAMES[k] for k in logits.argmax(-1)]
    torch.testing.assert_close(score, given.gather(1, index[:, None])[:, 0])
    # By their size: those of an untrained DyMN are large, and rounded accordingly.
    size = output.embedding.abs().max()
    torch.testing.assert_close(embedding / size, output.embedding[:, None] / size)


def test_weights_are_there_once_and_whole(tmp_path):
    folder = write_model(tmp_path / "model", trained_model())
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    students = {id(p) for p in classifier.mods.student.parameters()}
    assert {id(p) for p in classifier.parameters()} == students
    assert [path.suffix for path in folder.iterdir()].count(".ckpt") == 1
    torch.save(MN(3, width=0.2).state_dict(), folder / "student.ckpt")
    with pytest.raises(ValueError, match="it is of MN of width 0.2"):
        EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    (folder / "student.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"student\.ckpt is not a file"):
        EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_files_are_scored_as_by_the_tagger(tmp_path, rate):
    folder = write_model(tmp_path / "model", trained_model())
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (rate, 2))  # 1 s
    soundfile.write(tmp_path / "sound.wav", samples, rate)
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    given, _, _, names = classifier.classify_file(str(tmp_path / "sound.wav"))
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    expected = tagger.probabilities([tmp_path / "sound.wav"])
    np.testing.assert_allclose(given.exp().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert names == [tagger.tag(tmp_path / "sound.wav")[0].name]


def test_a_head_that_needs_frames_embeds_and_has_no_classifier(tmp_path):
    folder = write_model(
        tmp_path / "model", trained_model(head="multihead_attention_pooling")
    )
    classifier = EncoderClassifier.from_hparams(source=str(folder), run_opts=ON_CPU)
    waveform = torch.randn(1, 32000)
    assert classifier.encode_batch(waveform).shape == (1, 1, 96)
    with pytest.raises(AttributeError, match="no attribute 'classifier'"):
        classifier.classify_batch(waveform)
    assert "it cannot classify" in (folder / "README.md").read_text()
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    assert len(tagger.tag(waveform[0], sample_rate=32000)) == 3


# --- A transformer -------------------------------------------------------------------

WAYS = {
    "tagger": lambda path: AudioTagger.from_hparams(str(path), run_opts=ON_CPU),
    "tagger of weights": lambda path: AudioTagger.from_student(path, run_opts=ON_CPU),
    "command": lambda path: load_tagger(str(path), None, "cpu"),
}
OF_WEIGHTS = ("tagger of weights", "command")
SIZES = {"num_frames": 50, "embed_dim": 32, "depth": 1, "num_heads": 2}
SIZES |= {"frequency_stride": 16, "time_stride": 16}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """The folder of a run that left a transformer, and what it is."""
    student = PaSST(3, **SIZES).eval()
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    labels = LabelTable([f"/m/{k}" for k in range(3)], NAMES)
    model = TrainedModel(student, labels, "multilabel", 1.0)
    run = tmp_path_factory.mktemp("run")
    write_model(run / "model", model)
    return run, model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inside", [".", "model", "model/student.ckpt"])
def test_a_transformer_is_a_model_by_every_way_in(transformer, way, inside):
    run, model = transformer
    path = run / inside
    if path.is_file() and way not in OF_WEIGHTS:
        pytest.skip("takes folders")
    tagger = WAYS[way](path)
    sound = 0.1 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    log_mel = LogMel(**model.student.front_end).eval()(torch.from_numpy(sound)[None])
    with torch.no_grad():
        expected = model.student(log_mel.unsqueeze(1)).logits.sigmoid()
    found = tagger.probabilities([sound], 32000)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert tagger.labels.names == NAMES and tagger.clip_seconds == 1.0
    # Shorter than a patch, and longer than there are positions for
    assert len(tagger.tag(sound[:700], 32000)) == 3
    assert len(tagger.tag(np.tile(sound, 3), 32000)) == 3


def test_a_transformer_teaches_and_starts_another(transformer):
    run, model = transformer
    teacher, labels, target = open_teachers(str(run))
    assert labels.names == NAMES and target == "multilabel"
    loaded = load_teacher(run)
    assert loaded.labels.mids == model.labels.mids
    again = PaSST(3, **SIZES)
    assert load_published_state(again, run) == []
    state = model.student.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("head_dist.")}  # unread
    for network in (teacher.members[0].student, loaded.student, again):
        own = network.state_dict()
        assert all(torch.equal(own[name], value) for name, value in state.items())
    options = read_model_folder(run).student.options
    assert options.items() >= model.student.options.items()


def test_what_needs_the_layers_of_a_cnn_says_so(transformer):
    run, _ = transformer
    for load in (hear.load_model, load_student, load_encoder):
        with pytest.raises(ValueError, match="is a PaSST, and an MN or a DyMN is nee"):
            load(run)
    with pytest.raises(ValueError, match="only an MN or a DyMN can be exported"):
        find_source(run)


# --- Later ---------------------------------------------------------------------------


def test_the_first_folders_are_still_read(tmp_path):
    model = trained_model()
    folder = write_model(tmp_path / "model", model)
    (folder / "hyperparams.yaml").write_text(FIRST_YAML)
    again = read_model_folder(folder)
    assert again.labels.names == ("dog", "cat", "bird")
    assert again.labels.mids == model.labels.mids and again[2:] == model[2:]
    log_mel = torch.randn(1, 1, 128, 50)
    expected = model.student(log_mel).logits
    torch.testing.assert_close(again.student(log_mel).logits, expected)
    tagger = AudioTagger.from_hparams(source=str(folder), run_opts=ON_CPU)
    torch.testing.assert_close(tagger.mods.student(log_mel).logits, expected)
