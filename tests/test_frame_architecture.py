"""Weights of FrameMN: published names and entries, files, model folders, refusals."""

import logging

import numpy as np
import pytest
import torch
from fill_weights import fill_
from golden_vectors import GOLDEN

from efficientat_plugin import AudioTagger, FrameMN, LogMel, load_student, load_teacher
from efficientat_plugin.contracts import FrameOutput
from efficientat_plugin.data.labels import audioset_labels, audioset_strong_labels
from efficientat_plugin.interfaces.encoders import load_encoder
from efficientat_plugin.pretrained.card import Provenance, TrainedModel
from efficientat_plugin.pretrained.description import describe
from efficientat_plugin.pretrained.folder import read_model_folder, write_model_folder
from efficientat_plugin.pretrained.frame_architecture import (
    frame_names,
    infer_frame_options,
)
from efficientat_plugin.pretrained.published import (
    FRAME_URL,
    PUBLISHED,
    TEACHERS_OF_EVENTS,
    PublishedStudent,
    published,
)
from efficientat_plugin.pretrained.weights import load_published_state
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.sequence import SEQUENCE_MODELS

ENTRIES = [entry for entry in PUBLISHED.values() if entry.family == "fmn"]
FRONT_END = {
    "sample_rate": 16000,
    "n_mels": 128,
    "hop_length": 160,
    "win_length": 400,
    "n_fft": 512,
    "f_max": 7000.0,
    "log_floor": 1e-7,
    "log_floor_mode": "clamp",
}


def raw_names(state, backbone="net.model.features.", others="net."):
    """The names that a published checkpoint has for the entries of a FrameMN."""
    own = "model.fmn.features."
    return {
        backbone + name.removeprefix(own) if name.startswith(own) else others + name: v
        for name, v in state.items()
    }


def scores_alike(one, other):
    clip = torch.randn(1, 1, 128, 44)
    with torch.no_grad():
        return all(map(torch.equal, one.eval()(clip), other.eval()(clip)))


@pytest.fixture
def tiny_entry(monkeypatch):
    """An entry like the published ones, but small."""
    entry = published("fmn10_tf_256_strong")._replace(
        name="tiny_tf_strong", file="tiny+tf-32_strong.pt", width=0.1, sequence_dim=32
    )
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    return entry


# ---------------------------------------------------------------- the table


def test_all_published_models_are_listed():
    names = {entry.name for entry in ENTRIES}
    for width, dims in {"04": [104], "06": [160], "10": [128, 256, 512, 1024]}.items():
        assert {f"fmn{width}_weak", f"fmn{width}_strong"} < names
        for dim in dims:
            for model in ("tf", "gru", "hybrid"):
                assert f"fmn{width}_{model}_{dim}_strong" in names
    assert {"fmn20_gru_512_strong", "fmn30_hybrid_768_strong"} < names
    assert {"fmn10_tf_256_advanced_kd_weak_strong", "frame_mn06"} < names
    assert len(ENTRIES) == 37


@pytest.mark.parametrize(
    "name, file, options",
    [
        ("fmn04_weak", "fmn04_weak.pt", {"width": 0.4, "sequence_model": "none"}),
        (
            "fmn30_hybrid_768_strong",
            "fmn30+hybrid-768_strong.pt",
            {"width": 3.0, "sequence_model": "hybrid", "sequence_dim": 768},
        ),
        (
            "fmn10_tf_256_advanced_kd_weak_strong",
            "fmn10+tf-256_advanced-kd-weak-strong.pt",
            {"width": 1.0, "sequence_model": "tf", "sequence_dim": 256},
        ),
        ("frame_mn10", "frame_mn10_strong_1.pt", {"sequence_model": "none"}),
    ],
)
def test_entry_is_as_published(name, file, options):
    entry = published(name)
    assert isinstance(entry, PublishedStudent) and entry.file == file
    assert options.items() <= entry.options().items()
    assert entry.num_classes == 447 and entry.front_end() == FRONT_END
    url = TEACHERS_OF_EVENTS if name.startswith("frame_mn") else FRAME_URL
    assert entry.base_url == url and url.startswith("https://github.com/")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_options_build_the_student(entry):
    with torch.device("meta"):
        student = FrameMN(**entry.options())
    assert student.width == entry.width
    assert (entry.sequence_model != "none") == bool(len(student.seq_model))


def test_front_end_is_the_published_one():
    golden = np.load(GOLDEN / "front_end_of_events.npz")
    log_mel = LogMel(**published("fmn10_strong").front_end()).eval()
    expected = torch.from_numpy(golden["logmel"])
    found = log_mel(torch.from_numpy(golden["wave"]))[..., : expected.shape[2]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_strong_labels_are_the_published_classes():
    labels, of_clips = audioset_strong_labels(), audioset_labels()
    assert len(labels) == 447 and list(labels.names) == sorted(labels.names)
    shared = set(labels.mids) & set(of_clips.mids)
    assert len(shared) == 376
    names = [
        (labels.names[labels.index[mid]], of_clips.names[of_clips.index[mid]])
        for mid in shared
    ]
    assert sum(ours == theirs for ours, theirs in names) == 365  # others are reworded


# ---------------------------------------------------------------- published checkpoints


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_published_name_loads_with_front_end_and_labels(
    how, tiny_entry, tmp_path, monkeypatch
):
    student = fill_(FrameMN(**tiny_entry.options()))
    (tmp_path / "release").mkdir()
    torch.save(raw_names(student.state_dict()), tmp_path / "release" / tiny_entry.file)
    url = (tmp_path / "release").as_uri()
    if how == "environment":
        monkeypatch.setenv("EFFICIENTAT_BASE_URL", url)
        url = None
    loaded = load_student(tiny_entry.name, savedir=tmp_path / "cache", base_url=url)
    assert type(loaded) is FrameMN and not loaded.training
    assert loaded.front_end == FRONT_END and loaded.sequence_model == "tf"
    assert scores_alike(loaded, student)
    known = describe(tiny_entry.name, savedir=tmp_path / "cache")
    assert known.labels.mids == audioset_strong_labels().mids
    assert known.clip_seconds == 10.0 and known.short_clips == "zero_pad"
    by_file = load_student(tmp_path / "cache" / tiny_entry.file)
    assert by_file.front_end == FRONT_END and scores_alike(by_file, student)


def test_either_name_on_the_server_is_found(tmp_path, monkeypatch):
    entry = published("frame_mn06")._replace(width=0.1)
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    student = fill_(FrameMN(**entry.options()))
    state = raw_names(student.state_dict(), "model.frame_mn.features.", "")
    (tmp_path / "release").mkdir()
    torch.save(state, tmp_path / "release" / "frame_mn06.pt")
    url = (tmp_path / "release").as_uri()
    loaded = load_student("frame_mn06", savedir=tmp_path / "cache", base_url=url)
    assert scores_alike(loaded, student)


@pytest.mark.parametrize(
    "backbone, others",
    [
        ("net.model.features.", "net."),
        ("net.model.fmn.features.", "net."),
        ("model.features.", ""),
        ("model.fmn.features.", ""),
        ("model.frame_mn.features.", ""),
        ("net.model.frame_mn.features.", "net."),
    ],
)
def test_names_of_every_wrapper_become_ours(backbone, others):
    state = FrameMN(2, width=0.1, sequence_model="gru").state_dict()
    assert list(frame_names(raw_names(state, backbone, others))) == list(state)


def test_weak_checkpoint_without_frame_head_loads_with_a_warning(
    tiny_entry, tmp_path, caplog
):
    entry = tiny_entry._replace(sequence_model="none")
    PUBLISHED[entry.name] = entry
    student = fill_(FrameMN(447, num_weak_classes=527, width=0.1))
    state = raw_names(student.state_dict())
    state = {k: v for k, v in state.items() if "strong_head" not in k}
    torch.save(state, tmp_path / entry.file)
    with caplog.at_level(logging.WARNING):
        loaded = load_student(entry.name, savedir=tmp_path)
    assert "strong_head.weight, strong_head.bias stay at their init" in caplog.text
    assert (loaded.num_classes, loaded.num_weak_classes) == (447, 527)
    assert torch.equal(loaded.weak_head.weight, student.weak_head.weight)
    other = load_student(entry.name, savedir=tmp_path, num_weak_classes=447)
    assert other.weak_head.out_features == 447
    with pytest.raises(ValueError, match="clips by 527 classes.*num_weak_classes=447"):
        AudioTagger.from_student(entry.name, savedir=tmp_path)


def test_checkpoint_of_a_backbone_alone_loads_by_its_name(tiny_entry, tmp_path):
    entry = tiny_entry._replace(sequence_model="none")
    PUBLISHED[entry.name] = entry
    student = fill_(FrameMN(447, width=0.1))
    state = raw_names(student.state_dict())
    state = {k: v for k, v in state.items() if ".features." in k}
    torch.save(state, tmp_path / entry.file)
    loaded = load_student(entry.name, savedir=tmp_path)
    assert loaded.num_weak_classes == 447
    ours, theirs = loaded.backbone.state_dict(), student.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("classes", [{"num_classes": 5}, {"num_weak_classes": 5}])
def test_other_classes_keep_their_heads(classes, tiny_entry, tmp_path, caplog):
    student = fill_(FrameMN(**tiny_entry.options()))
    torch.save(raw_names(student.state_dict()), tmp_path / tiny_entry.file)
    with caplog.at_level(logging.WARNING):
        loaded = load_student(tiny_entry.name, savedir=tmp_path, **classes)
    assert loaded.num_weak_classes == 5
    assert loaded.num_classes == classes.get("num_classes", 447)
    assert ("strong_head.weight" in caplog.text) == ("num_classes" in classes)
    assert "weak_head.weight" in caplog.text
    clip = torch.randn(1, 1, 128, 44)
    with torch.no_grad():
        assert torch.equal(loaded(clip).embedding, student.eval()(clip).embedding)


# ---------------------------------------------------------------- files of one's own


@pytest.mark.parametrize("model", SEQUENCE_MODELS)
def test_own_file_comes_back(model, tmp_path):
    student = FrameMN(
        5, 6, width=0.2, sequence_model=model, sequence_dim=48, sequence_layers=3
    )
    torch.save(fill_(student).state_dict(), tmp_path / "own.pt")
    loaded = load_student(tmp_path / "own.pt", n_mels=128, hop_length=160)
    assert scores_alike(loaded, student)
    expected = {"num_classes": 5, "num_weak_classes": 6, "sequence_model": model}
    assert expected.items() <= loaded.options.items()


def test_attention_head_is_stated_for_a_file(tmp_path):
    student = fill_(FrameMN(5, width=0.1, head="attention"))
    torch.save(student.state_dict(), tmp_path / "own.pt")
    stated = {"n_mels": 128, "hop_length": 160, "head": "attention"}
    assert scores_alike(load_student(tmp_path / "own.pt", **stated), student)


def test_filling_takes_every_entry(tmp_path):
    source = fill_(FrameMN(3, width=0.1, sequence_model="tcn", sequence_dim=16))
    student = FrameMN(3, width=0.1, sequence_model="tcn", sequence_dim=16)
    torch.save(source.state_dict(), tmp_path / "own.pt")
    assert load_published_state(student, tmp_path / "own.pt") == []
    assert scores_alike(student, source)


def test_model_folder_comes_back(tmp_path):
    options = {"num_classes": 3, "width": 0.1, "sequence_model": "hybrid"}
    options |= {"sequence_dim": 32, "head": "attention"}
    student = fill_(FrameMN(**options)).eval()
    student.front_end = FRONT_END
    labels = audioset_strong_labels()
    labels = type(labels)(labels.mids[:3], labels.names[:3])
    model = TrainedModel(student, labels, "multilabel", 10.0)
    folder = write_model_folder(
        tmp_path / "m", model, Provenance("a", None, "b", "", {})
    )
    read = read_model_folder(folder)
    assert scores_alike(read.student, student)
    assert read.student.front_end == FRONT_END and read.student.head == "attention"
    with torch.no_grad():
        tagger = AudioTagger.from_hparams(str(folder))
        sound = 0.1 * torch.randn(160000)
        log_mel = LogMel(**FRONT_END).eval()(sound[None])
        weak = student(log_mel[:, None]).weak.sigmoid()[0]
        probabilities = torch.as_tensor(tagger.probabilities([sound], 16000)[0])
    torch.testing.assert_close(probabilities, weak, rtol=0, atol=1e-3)


def test_frame_student_teaches_clips(tiny_entry, tmp_path):
    student = fill_(FrameMN(**tiny_entry.options()))
    torch.save(student.state_dict(), tmp_path / tiny_entry.file)
    teacher = load_teacher(tiny_entry.name, savedir=tmp_path)
    with torch.no_grad():
        output = teacher(torch.randn(2, 16000))
    assert isinstance(output, FrameOutput) and output.logits.shape == (2, 447)


# ---------------------------------------------------------------- refusals


def test_tagger_does_not_fill_a_frame_student(tmp_path):
    torch.save(MN(width=0.1).state_dict(), tmp_path / "mn.pt")
    with pytest.raises(ValueError, match="of MN of width 0.1, .*load_backbone"):
        load_published_state(FrameMN(width=0.1), tmp_path / "mn.pt")


@pytest.mark.parametrize(
    "options, text",
    [
        ({"width": 0.2}, "FrameMN of width 0.1, the student a FrameMN of width 0.2"),
        ({"sequence_model": "tf"}, "entries are missing, as seq_model.0.weight"),
        ({"sequence_dim": 16}, r"differ in shape, as seq_model.0.gru.weight_ih_l0"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(options, text, tmp_path):
    own = {"num_classes": 3, "width": 0.1, "sequence_dim": 32, "sequence_model": "gru"}
    torch.save(FrameMN(**own).state_dict(), tmp_path / "own.pt")
    student = FrameMN(**own | options)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        load_published_state(student, tmp_path / "own.pt")
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_unknown_sequence_models_are_refused():
    state = FrameMN(3, width=0.1).state_dict()
    state["seq_model.2.mixer.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="seq_model.2.mixer.weight.*gru, tf"):
        infer_frame_options(state)


def test_reduced_tail_is_refused():
    state = {
        f"model.fmn.{name}": value
        for name, value in MN(width=0.4, reduced_tail=True).state_dict().items()
    }
    with pytest.raises(ValueError, match="reduced tail.*as an MN"):
        infer_frame_options(state)


def test_encoder_of_clips_refuses_a_frame_student(tiny_entry, tmp_path):
    student = FrameMN(**tiny_entry.options())
    torch.save(student.state_dict(), tmp_path / tiny_entry.file)
    with pytest.raises(ValueError, match="FrameMN .*embeds frames.*MN or a DyMN"):
        load_encoder(tiny_entry.name, savedir=tmp_path)
