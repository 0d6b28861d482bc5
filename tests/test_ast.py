"""The AST of the hub as a teacher: its front end, its classes, and untrusted files."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from small_ast import write_ast

from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.ast_hub import ASTFeatures, load_ast, order_of
from efficientat_plugin.teachers.load import load_teacher

SECOND = 32000  # samples


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ast_folder(transformers, tmp_path_factory):
    """A small AST, whose classes are AudioSet's backwards, spelt as copies do."""
    torch.manual_seed(0)
    names = [name.replace(", ", " - ").lower() for name in audioset_labels().names]
    folder = tmp_path_factory.mktemp("ast")
    write_ast(transformers, names[::-1], folder)
    return folder


@pytest.fixture
def ast_copy(ast_folder, tmp_path):
    """A folder to spoil."""
    return shutil.copytree(ast_folder, tmp_path / "ast")


def metro(shared, sample_rate):
    samples, rate = soundfile.read(
        shared / "audio" / "metro_station-paris.wav", dtype="float32", always_2d=True
    )
    mono = torch.from_numpy(samples.mean(axis=1))
    return torchaudio.functional.resample(mono, rate, sample_rate)


def test_ast_front_end_equals_its_extractor(shared, transformers):
    extractor = transformers.ASTFeatureExtractor()
    waveform = metro(shared, 16000)[: 10 * 16000]
    clips = torch.stack([waveform, waveform.flip(0)])
    expected = extractor(clips.numpy(), sampling_rate=16000, return_tensors="np")
    features = ASTFeatures(extractor, 16000)(clips)
    assert features.shape == (2, 1024, 128)
    expected = torch.from_numpy(np.asarray(expected["input_values"]))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_ast_resamples_to_its_own_rate(shared, transformers):
    extractor = transformers.ASTFeatureExtractor()
    at_32k = metro(shared, 32000)[None, : 5 * 32000]
    at_16k = torchaudio.functional.resample(at_32k, 32000, 16000)
    expected = ASTFeatures(extractor, 16000)(at_16k)
    torch.testing.assert_close(ASTFeatures(extractor, 32000)(at_32k), expected)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 32000, 44100])
def test_ast_takes_every_legal_length_and_no_other(sample_rate, transformers):
    extractor = transformers.ASTFeatureExtractor(max_length=64)
    features = ASTFeatures(extractor, sample_rate)
    for samples in (features.min_samples, features.max_samples):
        assert features(torch.randn(1, samples)).shape == (1, 64, 128)
    for samples in (features.min_samples - 1, features.max_samples + 1):
        with pytest.raises(ValueError, match=f"clips of {samples} samples"):
            features(torch.randn(1, samples))
    with pytest.raises(ValueError, match=r"\[B, N\]"):
        features(torch.randn(16000))


@pytest.mark.parametrize(
    ("file", "entry", "module"),
    [
        ("config.json", "AutoConfig", "of_a_stranger.Config"),
        ("preprocessor_config.json", "AutoFeatureExtractor", "of_a_stranger.Extractor"),
    ],
)
def test_code_beside_an_ast_is_neither_run_nor_asked_about(
    ast_copy, tmp_path, monkeypatch, file, entry, module
):
    def asked(*_):
        (tmp_path / "asked").mkdir()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    (ast_copy / "of_a_stranger.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
        "class Config: pass\nclass Extractor: pass\n"
    )
    settings = json.loads((ast_copy / file).read_text())
    settings |= {"auto_map": {entry: module}, "model_type": "of_a_stranger"}
    (ast_copy / file).write_text(json.dumps(settings))
    try:
        load_ast(ast_copy)
    except ValueError as error:
        assert "trust_remote_code" in str(error) or "of_a_stranger" in str(error)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "asked").exists()


def spoil(folder, file="config.json", **settings):
    content = json.loads((folder / file).read_text()) | settings
    (folder / file).write_text(json.dumps(content))
    return folder


def test_ast_in_half_precision_is_read(ast_folder, transformers, tmp_path):
    network = transformers.ASTForAudioClassification.from_pretrained(ast_folder)
    network.half().save_pretrained(tmp_path)
    shutil.copy(ast_folder / "preprocessor_config.json", tmp_path)
    found = load_ast(tmp_path).network.state_dict()
    assert all(
        torch.equal(found[k], v.float()) for k, v in network.state_dict().items()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"_attn_implementation": "evil-org/evil-kernel"},
        {"attn_implementation": "evil-org/evil-kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"transformers_weights": "../other.safetensors", "dtype": "float16"},
    ],
)
def test_config_of_an_ast_does_not_choose_how_it_is_loaded(
    ast_folder, ast_copy, settings
):
    waveform = torch.randn(1, 16000)
    with torch.no_grad():
        expected = load_ast(ast_folder)(waveform).logits
        assert torch.equal(
            load_ast(spoil(ast_copy, **settings))(waveform).logits, expected
        )


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"num_hidden_layers": 1000}, "num_hidden_layers of .* from 1 to 64; correct"),
        (
            {"hidden_size": "x\n"},
            r"hidden_size of .* is x\\n; it must be a whole number from 1",
        ),
        ({"max_length": 30000, "hidden_size": 8192}, "asks for .* weights, and there"),
        ({"hidden_size": 32}, "does not fit its weights|do not fill the network"),
        ({"num_attention_heads": 3}, "does not fit its weights|do not fill the netw"),
        ({"qkv_bias": 1}, "qkv_bias of .* is 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps of .* is nan"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps of .* is 1000"),
        ({"patch_size": 64}, "does not fit its weights"),
        ({"hidden_act": "os.system"}, "hidden_act of .* is os.system"),
        ({"hidden_act": ["gelu"]}, "hidden_act of .* is .'gelu'."),
        ({"id2label": {"5": "a", "7": "b"}}, "id2label of .* does not name all"),
        ({"id2label": {"0": "a", "1": 2}}, "id2label of .* does not name all"),
        ({"id2label": 5}, "id2label of .* does not name all"),
        ({"id2label": None}, "id2label of .* does not name all"),
        ({"sampling_rate": "x"}, "correct its preprocessor"),
        ({"sampling_rate": 10**30}, "correct its preprocessor"),
        ({"mean": "\x1b"}, "correct its preprocessor"),
        ({"std": 0}, "correct its preprocessor"),
        ({"do_normalize": None}, "correct its preprocessor"),
        ({"model_type": "\x1b[2J"}, r"is a \\x1b\[2J; only an audio-spectrogram"),
    ],
)
def test_config_that_no_ast_has_is_refused_in_a_sentence(ast_copy, settings, text):
    is_extractor = text == "correct its preprocessor"
    file = "preprocessor_config.json" if is_extractor else "config.json"
    with pytest.raises(ValueError, match=text) as refusal:
        load_ast(spoil(ast_copy, file, **settings))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '"x"', "\xff"])
def test_settings_of_an_ast_that_are_damaged_are_refused(ast_copy, file, text):
    (ast_copy / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{file} of .* write it"):
        load_ast(ast_copy)


def test_weights_of_an_ast_that_are_damaged_are_refused(ast_copy):
    (ast_copy / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="model.safetensors of .* is corrupt"):
        load_ast(ast_copy)


def test_ast_teaches_in_our_order(ast_folder, transformers):
    teacher = load_teacher(ast_folder, sample_rate=32000)
    assert not teacher.training and not teacher.network.training
    assert (teacher.sample_rate, teacher.num_classes) == (32000, 527)
    assert teacher.labels.mids == audioset_labels().mids
    waveform = torch.randn(2, SECOND)
    with torch.no_grad():
        output = teacher(waveform)
        own = teacher.network(teacher.features(waveform))
    torch.testing.assert_close(output.logits, own.logits.flip(1))
    assert output.embedding.shape == (2, 16)
    whole = load_ast(ast_folder, labels=None)
    assert whole.sample_rate == 16000
    assert whole.labels.names[-1] == audioset_labels().names[0].lower()


def test_ast_teaches_some_of_its_classes(ast_folder, caplog):
    labels = LabelTable(["x", "/m/05zppz"], ["Speech", "Male speech, man speaking"])
    teacher = load_teacher(str(ast_folder), labels=labels)
    assert teacher.num_classes == 2 and "525 of the network's classes" in caplog.text
    assert teacher.order.tolist() == [526, 525]


def test_ast_joins_an_ensemble(ast_folder, shared):
    members = [
        load_teacher(ast_folder, sample_rate=32000),
        load_teacher("mn04_as", savedir=shared / "checkpoints"),
    ]
    ensemble = Ensemble(members)
    assert ensemble(torch.randn(1, SECOND)).logits.shape == (1, 527)


@pytest.mark.parametrize(
    "mids, names, text",
    [
        ("ab", ["Dog", "Cat"], r"1 of 2 classes are not .*\['Cat'\], and 1 of its 2"),
        ("ab", ["Dog", "dog!"], "several labels match the same class"),
    ],
)
def test_labels_that_the_network_does_not_have_are_refused(mids, names, text):
    with pytest.raises(ValueError, match=text):
        order_of(LabelTable(mids, names), ["dog", "Bird"])


def test_classes_that_names_do_not_tell_apart_are_refused():
    with pytest.raises(ValueError, match="1 of the network's classes share"):
        order_of(LabelTable("a", ["Dog"]), ["dog", "Dog!"])


def test_identifiers_go_before_names():
    labels = LabelTable(["/m/1", "/m/2"], ["Dog", "Cat"])
    assert order_of(labels, ["/m/2", "/m/1"]) == [1, 0]


def test_ast_weights_that_are_no_safetensors_are_refused(ast_copy):
    (ast_copy / "model.safetensors").rename(ast_copy / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_teacher(ast_copy)


def test_ast_without_head_is_refused(ast_copy, transformers):
    network = transformers.ASTModel.from_pretrained(ast_copy)
    network.save_pretrained(ast_copy)
    with pytest.raises(ValueError, match="do not fill the network .*classifier"):
        load_teacher(ast_copy, labels=None)


def test_ast_whose_extractor_is_anothers_is_refused(ast_copy, transformers):
    transformers.ASTFeatureExtractor().save_pretrained(ast_copy)
    with pytest.raises(ValueError, match="returns 1024 frames of 128 .* 128 of 32"):
        load_teacher(ast_copy)


def test_other_networks_of_the_hub_are_refused(tmp_path, transformers):
    transformers.Wav2Vec2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a wav2vec2; only an audio-spectrogram"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"hop_length": 320}, "hop_length is not an option of an AST"),
        ({"labels": "esc50"}, "labels='esc50'; give a LabelTable, 'audioset', or None"),
        ({"sample_rate": -1}, "sample_rate=-1 Hz"),
    ],
)
def test_ast_refuses_illegal_options(options, text, ast_folder):
    with pytest.raises(ValueError, match=text):
        load_teacher(ast_folder, **options)


def test_missing_transformers_is_reported_with_the_cure(ast_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'efficientat_plugin.teachers.'"):
        load_teacher(ast_folder)
