"""The backbone of a FrameMN starts from taggers and from other FrameMNs."""

import logging

import pytest
import torch
from fill_weights import fill_

from efficientat_plugin import DyMN, FrameMN, LabelTable, load_backbone
from efficientat_plugin.pretrained.backbone import (
    detects,
    is_detector,
    start_detector,
)
from efficientat_plugin.pretrained.description import Unstated
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.pretrained.published import PUBLISHED, published
from efficientat_plugin.students.mn import MN

BEFORE = "model.fmn."


def backbone_of(state):
    return {k: v for k, v in state.items() if k.startswith(BEFORE)}


@pytest.fixture
def student():
    return FrameMN(3, width=0.1, sequence_model="tf", sequence_dim=32)


@pytest.mark.parametrize("source", ["published", "file", "state"])
def test_all_of_a_tagger_of_the_same_width_is_taken(
    source, student, tmp_path, monkeypatch, caplog
):
    tagger = fill_(MN(width=0.1))
    entry = published("mn01_im")
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    torch.save(tagger.state_dict(), tmp_path / entry.file)
    sources = {
        "published": entry.name,
        "file": tmp_path / entry.file,
        "state": tagger.state_dict(),
    }
    rest = {k: v.clone() for k, v in student.state_dict().items()}
    with caplog.at_level(logging.INFO):
        assert load_backbone(student, sources[source], savedir=tmp_path) == []
    state = tagger.state_dict()
    count = len(backbone_of(student.state_dict()))
    assert f"{count} of the {count} entries of the backbone were taken" in caplog.text
    for name, value in student.state_dict().items():
        expected = state.get(name.removeprefix(BEFORE), rest[name])
        assert torch.equal(value, expected)


@pytest.mark.parametrize("raw", [False, True])
def test_another_frame_student_is_taken(raw, student):
    other = fill_(FrameMN(5, width=0.1))
    state = other.state_dict()
    if raw:
        state = {f"net.{k}".replace(".fmn.", "."): v for k, v in state.items()}
    heads = {k: v.clone() for k, v in student.state_dict().items() if "head" in k}
    assert load_backbone(student, state) == []
    clip = torch.randn(1, 1, 128, 40)
    with torch.no_grad():
        ours, theirs = student.eval().backbone(clip), other.eval().backbone(clip)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(student.state_dict()[k], v) for k, v in heads.items())


def test_what_does_not_fit_is_reported(caplog):
    student, tagger = FrameMN(3, width=0.4), MN(width=0.4, reduced_tail=True)
    with caplog.at_level(logging.INFO):
        left = load_backbone(student, tagger.state_dict())
    assert left and all(name in student.state_dict() for name in left)
    total = len(backbone_of(student.state_dict()))
    assert f"{total - len(left)} of the {total} entries" in caplog.text
    assert f"{len(left)} of the {total} entries of the backbone stay" in caplog.text


def test_training_goes_on_from_the_backbone(student):
    load_backbone(student, fill_(MN(width=0.1)).state_dict())
    student(torch.randn(2, 1, 128, 40)).strong.sum().backward()
    assert all(p.grad is not None for p in student.backbone.parameters())


@pytest.mark.parametrize(
    "state",
    [
        DyMN(width=0.1).state_dict(),
        {"features.0.0.weight": torch.zeros(99, 1, 3, 3)},
        MN(width=0.1, num_classes=2).classifier.state_dict(),
    ],
)
def test_other_networks_are_refused(state, student):
    before = {k: v.clone() for k, v in student.state_dict().items()}
    with pytest.raises(ValueError, match="no convolution that fits .*same width"):
        load_backbone(student, state)
    assert all(torch.equal(student.state_dict()[k], v) for k, v in before.items())


# --- Whole detectors ------------------------------------------------------------------

LABELS = LabelTable(["/m/1", "/m/2"], ["dog", "cat"])
FRONT_END = {"sample_rate": 16000, "n_mels": 64, "hop_length": 160, "n_fft": 512}


def _folder(path, student, labels):
    student.front_end = FRONT_END | {"win_length": 400, "f_max": 7000.0}
    model = TrainedModel(student, labels, "multilabel", 2.0)
    return write_model_folder(path, model, Provenance("a", None, "b", "", {}))


def _same(ours, theirs, prefix=""):
    other = theirs.state_dict()
    return all(
        torch.equal(value, other[name])
        for name, value in ours.state_dict().items()
        if name.startswith(prefix)
    )


def test_a_detector_is_taken_whole_with_new_class_layers(tmp_path, caplog):
    sequence = {"sequence_model": "tf", "sequence_dim": 32}
    trained = fill_(FrameMN(2, width=0.1, **sequence))
    others = LabelTable(["/m/1", "/m/3"], ["dog", "rain"])
    folder = _folder(tmp_path / "other", trained, others)
    assert is_detector(folder) and not detects(folder, LABELS)
    with caplog.at_level(logging.INFO):
        student = start_detector(folder, LABELS, sequence_model="gru")
    assert _same(student, trained, "model.") and _same(student, trained, "seq_model.")
    for head in ("strong_head.", "weak_head."):
        assert not _same(student, trained, head)
    assert student.front_end["f_max"] == 7000.0
    assert "class layers start anew, for 2 classes" in caplog.text
    three = LabelTable("abc", "abc")
    assert start_detector(folder, three).num_classes == 3


def test_a_detector_of_the_same_classes_continues(tmp_path):
    trained = fill_(FrameMN(2, width=0.1))
    folder = _folder(tmp_path / "own", trained, LABELS)
    assert detects(folder, LABELS)
    assert _same(start_detector(folder, LABELS), trained)


def test_a_tagger_gives_convolutions_and_front_end(tmp_path):
    tagger = fill_(MN(5, width=0.1))
    folder = _folder(tmp_path / "tagger", tagger, LabelTable("abcde", "abcde"))
    assert not is_detector(folder) and not detects(folder, LABELS)
    student = start_detector(folder, LABELS, sequence_model="gru", sequence_dim=16)
    assert (student.num_classes, student.num_weak_classes) == (2, 2)
    for name, value in backbone_of(student.state_dict()).items():
        assert torch.equal(value, tagger.state_dict()[name.removeprefix(BEFORE)])
    assert student.front_end["n_mels"] == 64
    torch.save(tagger.state_dict(), tmp_path / "mn.pt")
    stated = start_detector(tmp_path / "mn.pt", LABELS, front_end=FRONT_END)
    assert stated.front_end == FRONT_END
    with pytest.raises(Unstated):
        start_detector(tmp_path / "mn.pt", LABELS)


def test_a_student_of_dynamic_convolutions_gives_none(tmp_path):
    folder = _folder(tmp_path / "d", DyMN(2, width=0.1), LABELS)
    with pytest.raises(ValueError, match="from which no detector can start; give a"):
        start_detector(folder, LABELS)
