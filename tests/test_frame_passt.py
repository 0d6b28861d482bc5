"""FramePaSST: published outputs, loading by name, laws of frames, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from fill_weights import fill_
from golden_vectors import GOLDEN

from efficientat_plugin import FrameOutput, FramePaSST, load_student, load_teacher
from efficientat_plugin.pretrained.frame_architecture import frame_names, infer_student
from efficientat_plugin.pretrained.published import PUBLISHED, published
from efficientat_plugin.pretrained.weights import load_published_state

TINY = {"num_classes": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}


def relative_error(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


@pytest.fixture
def student():
    return fill_(FramePaSST(**TINY)).eval()


# ---------------------------------------------------------------- the published network


def test_network_scores_as_published():
    golden = np.load(GOLDEN / "frame_passt.npz")
    entry = json.loads((GOLDEN / "frame_passt.json").read_text())
    student = fill_(FramePaSST(**published("fpasst_strong").options())).eval()
    shapes = {k: list(v.shape) for k, v in student.state_dict().items()}
    assert list(shapes.items()) == list(entry["keys"].items())
    assert sum(p.numel() for p in student.parameters()) == entry["params"]
    with torch.no_grad():
        strong, weak, embedding = student(torch.from_numpy(golden["log_mel"]))
    scored = {
        "strong": strong[:, :, golden["frames"]],
        "weak": weak,
        "sequence_mean": embedding.mean(1),
    }
    for name, value in scored.items():
        assert relative_error(value, torch.from_numpy(golden[name])) <= 1e-5


def test_front_end_has_a_periodic_window():
    front_end = published("fpasst_strong").front_end()
    assert front_end == published("fmn10_strong").front_end() | {
        "periodic_window": True
    }


# ---------------------------------------------------------------- loading


@pytest.fixture
def tiny_name(monkeypatch):
    """A published name whose checkpoint is small."""
    entry = published("fpasst_strong")._replace(num_classes=3)
    monkeypatch.setitem(PUBLISHED, entry.name, entry)
    return entry.name


@pytest.mark.parametrize("before", ["model.", "model.fpasst.", "net.model."])
def test_published_name_loads(before, student, tiny_name, tmp_path):
    state = student.state_dict()
    raw = {k.replace("model.fpasst.", before): v for k, v in state.items()}
    assert list(frame_names(raw)) == list(state)
    torch.save(raw, tmp_path / "fpasst_strong_1.pt")
    options = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    loaded = load_student(tiny_name, savedir=tmp_path, **options)
    assert type(loaded) is FramePaSST
    clip = torch.randn(1, 1, 128, 40)
    with torch.no_grad():
        assert all(map(torch.equal, loaded(clip), student(clip)))
    teacher = load_teacher(tiny_name, savedir=tmp_path, **options)
    with torch.no_grad():
        output = teacher(torch.randn(2, 16000))
    assert isinstance(output, FrameOutput) and output.logits.shape == (2, 3)
    assert teacher.sample_rate == 16000


def test_options_follow_from_the_state(student):
    family, options = infer_student(student.state_dict(), {"num_heads": 4})
    assert family == "fpasst"
    expected = {"num_weak_classes": 3, "n_mels": 128, "num_frames": 1000}
    assert options == TINY | expected
    with pytest.raises(ValueError, match="pass num_heads"):
        infer_student(student.state_dict(), {})


def test_other_classes_keep_their_heads(student, tmp_path, caplog):
    torch.save(student.state_dict(), tmp_path / "own.pt")
    stated = {"n_mels": 128, "hop_length": 160, "num_heads": 4}
    loaded = load_student(tmp_path / "own.pt", num_classes=5, **stated)
    assert (loaded.num_classes, loaded.num_weak_classes) == (5, 5)
    assert "strong_head.weight" in caplog.text and "weak_head.bias" in caplog.text


def test_weights_of_another_size_are_refused(student, tmp_path):
    torch.save(student.state_dict(), tmp_path / "own.pt")
    with pytest.raises(ValueError, match="it is .*differ in shape"):
        load_published_state(FramePaSST(**TINY, num_frames=80), tmp_path / "own.pt")


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("frames", [1, 2, 5, 37, 1000])
def test_every_fourth_frame_has_scores(frames, student):
    with torch.no_grad():
        output = student(torch.randn(2, 1, 128, frames))
    quarter = math.ceil(frames / 4)
    assert output.strong.shape == (2, 3, quarter) and output.weak.shape == (2, 3)
    assert output.embedding.shape == (2, quarter, 32)
    assert all(part.isfinite().all() for part in output)


def test_a_clip_scores_alone_as_in_a_batch(student):
    student, clips = student.double(), torch.randn(2, 1, 128, 40).double()
    with torch.no_grad():
        together, alone = student(clips), student(clips[1:])
    assert relative_error(alone.strong[0], together.strong[1]) <= 1e-9


def test_every_parameter_is_trained(student):
    strong, weak, _ = student.train()(torch.randn(2, 1, 128, 1000))
    (strong.square().sum() + weak.square().sum()).backward()
    assert all(p.grad is not None for p in student.parameters())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "option, text",
    [
        ({"n_mels": 30}, "n_mels=30 .*multiple of 4"),
        ({"embed_dim": 30}, "embed_dim=30 .*num_heads=4"),
        ({"depth": 101}, "depth=101 .*from 1 to 100"),
        ({"num_frames": 0}, "num_frames=0 .*at least 1"),
        ({"head": "mlp"}, "head='mlp' .*'attention'"),
    ],
)
def test_illegal_options_are_refused(option, text):
    with pytest.raises(ValueError, match=text):
        FramePaSST(**TINY | option)


@pytest.mark.parametrize(
    "shape, text",
    [
        ((1, 1, 64, 40), "64 mel bins.*n_mels=128"),
        ((1, 1, 128, 1001), "1001 frames.*at most num_frames=1000"),
        ((1, 128, 40), "log_mel has shape"),
    ],
)
def test_illegal_inputs_are_refused(shape, text, student):
    with pytest.raises(ValueError, match=text):
        student(torch.zeros(shape))
