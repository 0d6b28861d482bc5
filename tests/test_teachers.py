"""Teachers by name and from files: the table, downloads, strict import, AST."""

import functools
import http.server
import json
import shutil
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from golden_vectors import GOLDEN
from huggingface_hub import constants as hub

from efficientat_plugin.cost.complexity import count_parameters
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained import published_passt
from efficientat_plugin.pretrained.passt_weights import load_start
from efficientat_plugin.pretrained.published_passt import (
    TEACHERS,
    PublishedTeacher,
    list_teachers,
)
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.teachers.ast_hub import ASTFeatures, load_ast, order_of
from efficientat_plugin.teachers.load import load_teacher

SMALL = {"num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}
SECOND = 32000  # samples
STATED = {"n_mels": 128, "hop_length": 320}  # which no file of one's own tells


@pytest.fixture
def small_entry(monkeypatch):
    """A published teacher of a size that tests can afford."""
    entry = PublishedTeacher("small", "v1", "small-s16.pt", stride=16, **SMALL)
    monkeypatch.setitem(TEACHERS, "small", entry)
    return entry


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A release server; its files are in ``folder``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.delenv("EFFICIENTAT_BASE_URL", raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as http_server:
        http_server.folder, http_server.asked = folder, []
        http_server.address = f"http://127.0.0.1:{http_server.server_port}/"
        monkeypatch.setattr(published_passt, "RELEASES", http_server.address)
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield http_server
        http_server.shutdown()
        thread.join()


def build(entry, **options):
    return PaSST(**entry.options() | options)


def save(network, path):
    path.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def on_meta(entry):
    with torch.device("meta"):
        return PaSST(**entry.options())


# ---------------------------------------------------------------- the table


def test_every_published_teacher_is_listed_once():
    names = list_teachers()
    assert len(names) == len(set(names)) == 27
    assert len({entry.file for entry in TEACHERS.values()}) == len(names)
    assert all(entry.name == name for name, entry in TEACHERS.items())


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "passt_s_swa_p16_128_ap476",
            {
                "release": "v0.0.1-audioset",
                "file": "passt-s-f128-p16-s10-ap.476-swa.pt",
                "mean_ap": 47.6,
                "stride": 10,
            },
        ),
        ("passt_s_p16_s12_128_ap470", {"stride": 12, "mean_ap": 47.0}),
        ("passt_s_swa_p16_s16_128_ap473", {"stride": 16, "num_classes": 527}),
        (
            "passt_s_swa_f128_stfthop160_p16_s10_ap473",
            {"hop_length": 160, "num_frames": 2000, "stride": 10},
        ),
        ("passt-s-f128-30sec-p16-s10-ap473-swa", {"num_frames": 3000}),
        ("passt_s_kd_p16_128_ap486", {"file": "passt-s-kd-ap.486.pt", "stride": 10}),
        ("passt_l_kd_p16_128_ap47", {"depth": 7, "mean_ap": 47.0}),
        ("fsd50k-passt-s-n-f128-p16-s16-ap.642", {"stride": 16, "num_classes": 200}),
        ("openmic2008_passt_u_f128_p16_s10_ap85_swa", {"num_classes": 20}),
        ("esc50-passt-s-n-f128-p16-s10-fold1-acc.967", {"num_classes": 50}),
    ],
)
def test_entry_is_as_published(name, expected):
    entry = TEACHERS[name]
    assert {field: getattr(entry, field) for field in expected} == expected


@pytest.mark.parametrize(
    "name, file_bytes",
    [
        ("passt_s_swa_p16_128_ap476", 344_665_734),
        ("passt-s-f128-20sec-p16-s10-ap474-swa", 344_975_942),
        ("openmic-passt-s-f128-10sec-p16-s10-ap.85", 341_546_630),
        ("esc50-passt-s-n-f128-p16-s10-fold1-acc.967", 341_731_206),
    ],
)
def test_published_files_have_room_for_the_entries_weights(name, file_bytes):
    """Four bytes for each, and at most 64 kB of names and archive."""
    weight_bytes = 4 * sum(p.numel() for p in on_meta(TEACHERS[name]).parameters())
    assert 0 < file_bytes - weight_bytes < 2**16


def test_entries_weights_are_the_published_ones():
    golden = json.loads((GOLDEN / "passt.json").read_text())["passt_s"]
    state = on_meta(TEACHERS["passt_s_swa_p16_128_ap476"]).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == golden["keys"]


@pytest.mark.parametrize("name", list_teachers())
def test_teacher_hears_clips_as_long_as_it_was_trained_on(name):
    entry = TEACHERS[name]
    longer = {2000: 20, 3000: 30} if entry.hop_length == 320 else {}
    samples = longer.get(entry.num_frames, 10) * entry.sample_rate
    frames = LogMel(**entry.front_end()).num_frames(samples)
    assert 0 <= on_meta(entry).max_frames - frames < entry.stride + 16


# ---------------------------------------------------------------- downloads


def test_download_happens_once_and_is_all_of_the_file(small_entry, server, tmp_path):
    passt = build(small_entry).eval()
    save(passt, server.folder / "v1" / small_entry.file)
    teacher = load_teacher("small", savedir=tmp_path / "new" / "folder")
    again = load_teacher("small", savedir=tmp_path / "new" / "folder")
    assert server.asked == ["/v1/small-s16.pt"]
    assert isinstance(teacher, WaveformStudent) and not teacher.student.training
    assert (teacher.sample_rate, teacher.num_classes) == (32000, 3)
    assert teacher.student.options == small_entry.options()
    filled = teacher.student.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in passt.state_dict().items())
    waveform = torch.randn(2, SECOND)
    expected = passt(LogMel().eval()(waveform).unsqueeze(1)).logits
    assert torch.equal(teacher(waveform).logits, expected)
    assert torch.equal(again(waveform).logits, expected)
    heads = [p.requires_grad for p in teacher.student.head_dist.parameters()]
    others = [p.requires_grad for p in teacher.student.parameters()]
    assert heads == [False, False] and sum(others) == len(others) - 2


@pytest.mark.parametrize("told_by", ["argument", "environment"])
def test_mirror_has_all_files_in_one_folder(
    told_by, small_entry, server, tmp_path, monkeypatch
):
    save(build(small_entry), server.folder / small_entry.file)
    if told_by == "environment":
        monkeypatch.setenv("EFFICIENTAT_BASE_URL", server.address)
        load_teacher("small", savedir=tmp_path / "cache")
    else:
        load_teacher("small", savedir=tmp_path / "cache", base_url=server.address)
    assert server.asked == ["/small-s16.pt"]


def test_failed_download_leaves_nothing(small_entry, server, tmp_path):
    with pytest.raises(OSError, match="answered 404 .*put small-s16.pt into"):
        load_teacher("small", savedir=tmp_path / "cache")
    (server.folder / "v1").mkdir()
    (server.folder / "v1" / small_entry.file).write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is no state dict; check the address"):
        load_teacher("small", savedir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cached_file_that_does_not_load_is_refused(small_entry, tmp_path):
    (tmp_path / small_entry.file).write_bytes(b"half")
    with pytest.raises(ValueError, match="small-s16.pt holds no .* delete it"):
        load_teacher("small", savedir=tmp_path)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_classes": 4}, r"differ in shape, as head.1.weight is \(4, 32\)"),
        ({"depth": 1}, "entries are missing, as blocks.1.norm1.weight"),
        ({"depth": 3}, "entries are unexpected, as blocks.2.norm1.weight"),
        ({"num_frames": 500}, "differ in shape, as time_new_pos_embed"),
    ],
)
def test_published_file_that_does_not_fit_is_refused_whole(
    options, text, small_entry, tmp_path
):
    save(build(small_entry, **options), tmp_path / small_entry.file)
    with pytest.raises(ValueError, match=text):
        load_teacher("small", savedir=tmp_path)


def test_unread_head_may_be_missing_and_nothing_else(small_entry, tmp_path):
    passt = build(small_entry).eval()
    state = passt.state_dict()
    del state["head_dist.weight"], state["head_dist.bias"]
    torch.save(state, tmp_path / small_entry.file)
    teacher = load_teacher("small", savedir=tmp_path)
    log_mel = torch.randn(1, 1, 128, 200)
    assert torch.equal(teacher.student(log_mel).logits, passt(log_mel).logits)
    del state["head.0.bias"]
    torch.save(state, tmp_path / small_entry.file)
    with pytest.raises(ValueError, match="1 entries are missing, as head.0.bias"):
        load_teacher("small", savedir=tmp_path)


# ---------------------------------------------------------------- files of one's own


@pytest.mark.parametrize(
    "file, told",
    [
        ("own.pt", {"time_stride": 12}),
        ("own.pt", {"clip_seconds": 10}),
        ("own-p16-s12-best.pt", {}),
    ],
)
@pytest.mark.parametrize("num_frames", [998, 1000])
def test_own_file_comes_back(file, told, num_frames, tmp_path):
    passt = PaSST(
        **SMALL,
        num_frames=num_frames,
        frequency_stride=12,
        time_stride=12,
        mlp_ratio=3,
    ).eval()
    path = save(passt, tmp_path / file)
    teacher = load_teacher(path, num_heads=4, **told, **STATED)
    assert teacher.student.front_end == {"sample_rate": 32000, **STATED}
    log_mel = torch.randn(1, 1, 128, 1000)
    assert torch.equal(teacher.student(log_mel).logits, passt(log_mel).logits)


@pytest.mark.parametrize("time_stride", [10, 12, 14, 16, 20])
@pytest.mark.parametrize("seconds", [5, 10, 20])
def test_clip_length_tells_the_stride(time_stride, seconds, tmp_path):
    passt = PaSST(**SMALL, num_frames=100 * seconds, time_stride=time_stride)
    path = save(passt, tmp_path / "own.pt")
    teacher = load_teacher(path, num_heads=4, clip_seconds=seconds, **STATED)
    assert teacher.student.time_stride == time_stride
    assert teacher.student.frequency_stride == 10
    assert teacher.student.max_frames == passt.max_frames


def test_overrides_reach_passt_and_its_front_end(small_entry, tmp_path):
    path = save(build(small_entry), tmp_path / small_entry.file)
    teacher = load_teacher(path, patchout_time=3, f_max=14000.0)
    assert teacher.student.patchout_time == 3
    assert teacher.log_mel.f_max == 14000.0
    assert teacher.student.frequency_stride == 16  # a published file by its name
    passt = PaSST(**SMALL, n_mels=64, num_frames=200)
    path = save(passt, tmp_path / "own.pt")
    teacher = load_teacher(path, n_mels=64, hop_length=320, time_stride=10, num_heads=4)
    assert teacher(torch.randn(1, SECOND)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "told, text",
    [
        ({"num_heads": 4}, "99 time positions, which do not .*pass time_stride"),
        ({"time_stride": 10}, "embed_dim=32, .*pass num_heads"),
        ({"num_heads": 4, "clip_seconds": 3}, "gives 300 frames, .* match 99"),
        (
            {"num_heads": 4, "time_stride": 10, "n_mels": 64},
            r"n_mels=64 and 12 frequency positions match the strides \[\]",
        ),
        (
            {"num_heads": 4, "time_stride": 10, "frequency_stride": 12},
            "does not fit a PaSST with .*freq_new_pos_embed",
        ),
        ({"num_heads": 4, "time_strid": 10}, "time_strid is not .* time_stride"),
        ({"gain": 10}, "gain is not an option of PaSST or LogMel; see"),
    ],
)
def test_what_a_file_does_not_tell_is_asked_for(told, text, tmp_path):
    path = save(PaSST(**SMALL), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=text):
        load_teacher(path, **(STATED | told))


def test_half_a_state_dict_is_refused(tmp_path):
    state = PaSST(**SMALL).state_dict()
    del state["time_new_pos_embed"]
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="not a PaSST's: .* no time_new_pos_embed"):
        load_teacher(tmp_path / "own.pt", time_stride=10, **STATED)


# ---------------------------------------------------------------- students, and others


def test_students_can_teach(shared, tmp_path):
    teacher = load_teacher("mn04_as", savedir=shared / "checkpoints")
    assert isinstance(teacher, WaveformStudent) and not teacher.training
    assert teacher(torch.zeros(1, SECOND)).logits.shape == (1, 527)
    student = MN(num_classes=4, width=0.1).eval()
    own = load_teacher(save(student, tmp_path / "own.pt"), n_mels=128, hop_length=640)
    assert own.log_mel.hop_length == 640 and own.num_classes == 4


def test_class_layer_of_imagenet_does_not_teach():
    with pytest.raises(ValueError, match="mn04_im was trained on ImageNet"):
        load_teacher("mn04_im")


def test_teachers_of_all_kinds_make_an_ensemble(small_entry, tmp_path):
    save(build(small_entry), tmp_path / small_entry.file)
    path = save(MN(num_classes=3, width=0.1), tmp_path / "mn.pt")
    members = [load_teacher("small", savedir=tmp_path), load_teacher(path, **STATED)]
    waveform = torch.randn(2, SECOND)
    output = Ensemble(members).eval()(waveform)
    torch.testing.assert_close(
        output.logits, (members[0](waveform).logits + members[1](waveform).logits) / 2
    )


@pytest.mark.parametrize("source", ["such.pt", "no/such.pt", "/no/such/place"])
def test_missing_file_is_refused(source):
    with pytest.raises(FileNotFoundError, match="is neither file nor folder"):
        load_teacher(source)


@pytest.mark.parametrize(
    "name, text",
    [
        ("passt_s_swa_p16_128_ap467", "did you mean .*passt_s_swa_p16_128_ap476"),
        ("mn4_as", "did you mean .*mn04_as"),
        ("zzz", "'zzz' is neither a published teacher nor a file; list_teachers"),
    ],
)
def test_unknown_name_is_refused_with_near_ones(name, text):
    with pytest.raises(ValueError, match=text):
        load_teacher(name)


# ---------------------------------------------------------------- starting points


def test_training_starts_from_a_published_passt(small_entry, tmp_path):
    published = build(small_entry)
    state = published.state_dict() | {"head_dist.bias": torch.full((5,), 3.0)}
    torch.save(state, tmp_path / small_entry.file)  # its unread head has other classes
    student = build(small_entry, patchout_time=2).eval()
    assert load_start(student, "small", savedir=tmp_path) == []
    log_mel = torch.randn(1, 1, 128, 200)
    assert torch.equal(student(log_mel).logits, published.eval()(log_mel).logits)


def test_other_classes_keep_the_class_layer_of_a_passt(small_entry, tmp_path, caplog):
    published = build(small_entry)
    save(published, tmp_path / small_entry.file)
    student = build(small_entry, num_classes=7)
    before = student.head[1].weight.clone()
    kept = load_start(student, tmp_path / small_entry.file)
    assert kept == ["head.1.weight", "head.1.bias"]
    assert "small-s16.pt has 3 classes and the student 7" in caplog.text
    assert torch.equal(student.head[1].weight, before)
    assert torch.equal(student.head[0].weight, published.head[0].weight)
    assert torch.equal(
        student.blocks[1].mlp.fc1.weight, published.blocks[1].mlp.fc1.weight
    )


@pytest.mark.parametrize(
    "options, source, text",
    [
        ({"depth": 3}, "small", "small does not fit a PaSST of 3 blocks of 32"),
        ({"num_frames": 500}, "small", "num_frames=500 .*time_new_pos_embed"),
        ({}, "small2", "did you mean small"),
        ({}, "mn04_as", "'mn04_as' is neither a published "),
        ({}, "no/such.pt", "neither file nor folder"),
    ],
)
def test_what_a_passt_cannot_start_from_is_refused_whole(
    options, source, text, small_entry, tmp_path
):
    save(build(small_entry), tmp_path / small_entry.file)
    student = build(small_entry, **options)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises((OSError, ValueError), match=text):
        load_start(student, source, savedir=tmp_path)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_cnn_starts_as_ever(tmp_path):
    source, student = (MN(num_classes=3, width=0.1) for _ in range(2))
    assert load_start(student, save(source, tmp_path / "mn.pt")) == []
    assert torch.equal(student.features[0][0].weight, source.features[0][0].weight)


def test_passt_has_as_many_trainable_parameters_as_it_uses():
    passt = on_meta(TEACHERS["passt_s_swa_p16_128_ap476"])
    assert count_parameters(passt) == 85_748_495


# ---------------------------------------------------------------- AST


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ast_folder(transformers, tmp_path_factory):
    """A small AST, whose classes are AudioSet's backwards, spelt as copies do."""
    torch.manual_seed(0)
    names = [name.replace(", ", " - ").lower() for name in audioset_labels().names]
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=128,
        num_mel_bins=32,
        id2label=dict(enumerate(names[::-1])),
    )
    folder = tmp_path_factory.mktemp("ast")
    network = transformers.ASTForAudioClassification(config)
    torch.nn.init.normal_(network.classifier.dense.weight)
    network.save_pretrained(folder)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    extractor.save_pretrained(folder)
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


def test_ast_hears_what_its_extractor_makes(shared, transformers):
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
def test_ast_hears_every_legal_length_and_no_other(sample_rate, transformers):
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
    told = json.loads((folder / file).read_text()) | settings
    (folder / file).write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("place", ["../outside.safetensors", "absolute", 1])
def test_index_of_an_ast_names_no_file_that_lies_elsewhere(ast_copy, place):
    outside = ast_copy.parent / "outside.safetensors"
    (ast_copy / "model.safetensors").rename(outside)
    place = str(outside) if place == "absolute" else place
    index = json.dumps({"metadata": {}, "weight_map": {"classifier.dense.bias": place}})
    (ast_copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="names files other than"):
        load_ast(ast_copy)


def test_ast_in_parts_and_in_half_precision_is_read(ast_folder, transformers, tmp_path):
    network = transformers.ASTForAudioClassification.from_pretrained(ast_folder)
    network.half().save_pretrained(tmp_path, max_shard_size="10KB")
    shutil.copy(ast_folder / "preprocessor_config.json", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
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
        ({"id2label": None, "num_labels": "x"}, "num_labels of .* is x"),
        ({"model_type": "\x1b[2J"}, r"is a \\x1b\[2J; only an audio-spectrogram"),
    ],
)
def test_config_that_no_ast_has_is_refused_in_a_sentence(ast_copy, settings, text):
    with pytest.raises(ValueError, match=text) as refusal:
        load_ast(spoil(ast_copy, **settings))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling_rate": "x"},
        {"sampling_rate": 0},
        {"sampling_rate": 10**30},
        {"mean": "\x1b"},
        {"std": 0},
        {"do_normalize": None},
    ],
)
def test_extractor_that_no_ast_has_is_refused_in_a_sentence(ast_copy, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} of .* correct its") as refusal:
        load_ast(spoil(ast_copy, "preprocessor_config.json", **settings))
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


def test_missing_transformers_is_said_with_the_cure(ast_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'efficientat_plugin.teachers.'"):
        load_teacher(ast_folder)


@pytest.mark.parametrize("name", ["cls_token", "freq_new_pos_embed"])
@pytest.mark.parametrize("shape", [(), (1, 1, 0)])
def test_a_passt_of_no_width_is_refused(name, shape, tmp_path):
    state = PaSST(3, embed_dim=64, depth=1, num_heads=4).state_dict()
    torch.save(state | {name: torch.zeros(shape)}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=f"not a PaSST's: {name} has"):
        load_teacher(tmp_path / "own.pt", clip_seconds=10, num_heads=4, **STATED)
