"""Weights: the published file, and files of one's own."""

import difflib
import inspect
import logging

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from golden_vectors import GOLDEN

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import (
    PUBLISHED,
    PublishedStudent,
    published,
)
from efficientat_plugin.pretrained.weights import (
    FAMILIES,
    FRONT_END,
    front_end_of,
    list_students,
    load_published_state,
    load_student,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN

STATED = {"n_mels": 128, "hop_length": 320}  # which no file of one's own tells
PUBLISHED_FRONT_END = STATED | {"sample_rate": 32000}

TINY = {"width": 0.1, "num_classes": 527}


@pytest.fixture
def published_file(shared):
    return shared / "checkpoints" / "mn04_as_mAP_432.pt"


def save(student, path):
    torch.save(student.state_dict(), path)
    return path


# ---------------------------------------------------------------- the table


def test_every_published_name_is_listed_once():
    names = list_students()
    assert len(names) == len(set(names)) == len(PUBLISHED) == 86
    assert len({entry.file for entry in PUBLISHED.values()}) == len(names)
    for name in ("mn40_as(3)", "mn06_im", "mn10_im_pytorch", "dymn20_as(1)"):
        assert published(name).name == name


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mn04_as", {"file": "mn04_as_mAP_432.pt", "width": 0.4, "mean_ap": 43.2}),
        ("mn40_as(3)", {"file": "mn40_as_mAP_483(2).pt", "width": 4.0}),
        ("mn40_as_ext", {"file": "mn40_as_ext_mAP_487.pt"}),
        ("mn10_as_hop_25", {"hop_length": 800, "n_mels": 128}),
        ("mn10_as_mels_256", {"hop_length": 320, "n_mels": 256}),
        ("mn10_as_fc_s2211", {"head": "fully_convolutional", "strides": (2, 2, 1, 1)}),
        ("mn06_im", {"file": "mn06_im.pt", "width": 0.6, "trained_on": "ImageNet"}),
        ("dymn10_im", {"family": "dymn", "temperature": 30.0}),
        ("dymn20_as", {"file": "dymn20_as_mAP_493.pt", "temperature": 1.0}),
        ("dymn04_replace_se_as", {"dynamic_blocks": "replace_se", "licence": "MIT"}),
    ],
)
def test_entry_is_as_published(name, expected):
    entry = published(name)
    assert isinstance(entry, PublishedStudent)
    assert {field: getattr(entry, field) for field in expected} == expected


@pytest.mark.parametrize("name", ["mn01_as", "dymn04_im", "dymn04_replace_se_as"])
def test_options_build_the_student(name):
    entry = published(name)
    student = FAMILIES[entry.family](**entry.options())
    assert student.width == entry.width
    LogMel(**entry.front_end())


def test_unknown_name_is_refused_with_near_ones():
    near = difflib.get_close_matches("mn04_sa", PUBLISHED)
    assert "mn04_as" in near
    with pytest.raises(ValueError, match="'mn04_sa' is neither .* mn04_as"):
        published("mn04_sa")
    with pytest.raises(ValueError, match="list_students"):
        load_student("zzz")


def test_front_end_arguments_are_those_of_log_mel():
    assert list(FRONT_END) == list(inspect.signature(LogMel).parameters)
    assert set(PUBLISHED_FRONT_END) <= set(FRONT_END)


# ---------------------------------------------------------------- the published file


def read_wave(path):
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.mean(axis=1))
    return torchaudio.functional.resample(mono, rate, 32000)


@pytest.fixture(scope="module")
def published_student(shared):
    return load_student("mn04_as", num_classes=527, savedir=shared / "checkpoints")


@pytest.mark.parametrize("recordings", ["clips", "metro"])
def test_published_checkpoint_scores_as_published(
    recordings, published_student, shared
):
    golden = np.load(GOLDEN / "mn04_as.npz")
    if recordings == "clips":
        folder, prefix = shared / "data" / "esc50" / "audio", ""
        files = [folder / str(name) for name in golden["mn04_as/filenames"]]
        assert len(files) == 24
    else:
        files, prefix = [shared / "audio" / "metro_station-paris.wav"], "metro_"
    waves = torch.stack([read_wave(file) for file in files])
    log_mel = LogMel(**published_student.front_end).eval()
    with torch.no_grad():
        output = published_student(log_mel(waves).unsqueeze(1))
    for scored, key in zip(output, ("logits", "embedding"), strict=True):
        expected = torch.from_numpy(golden[f"mn04_as/{prefix}{key}"])
        torch.testing.assert_close(scored, expected.view_as(scored), rtol=0, atol=1e-3)


def test_published_checkpoint_loads_strictly(published_file, published_student):
    assert isinstance(published_student, MN) and not published_student.training
    assert published_student.front_end == PUBLISHED_FRONT_END
    filled = published_student.state_dict()
    state = torch.load(published_file, weights_only=True)
    assert list(filled) == list(state)
    assert all(torch.equal(filled[name], state[name]) for name in state)


def test_published_checkpoint_gives_way_to_another_head(shared, caplog):
    path = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    student = load_student(path, num_classes=50, head="linear")
    assert "student 50, with a linear head instead of mlp: classifier.2" in caplog.text
    log_mel = torch.randn(1, 1, 128, 100)
    whole = load_student(path)
    torch.testing.assert_close(student(log_mel).embedding, whole(log_mel).embedding)
    assert student(log_mel).logits.shape == (1, 50)


def test_published_checkpoint_gives_way_to_other_classes(published_file, caplog):
    with caplog.at_level(logging.WARNING):
        student = load_student(str(published_file), num_classes=50)
    assert student.width == 0.4 and student.front_end == PUBLISHED_FRONT_END
    assert "527 classes and the student 50: classifier.5.weight" in caplog.text


# ---------------------------------------------------------------- files of one's own

OWN = {
    "mn_odd_width": (MN, {"width": 0.37, "num_classes": 1}, {}),
    "mn_fc_no_se": (
        MN,
        {
            "width": 0.2,
            "num_classes": 5,
            "head": "fully_convolutional",
            "se_dims": "none",
        },
        {},
    ),
    "mn_mhap": (
        MN,
        {
            "width": 0.1,
            "num_classes": 5,
            "head": "multihead_attention_pooling",
            "attention_heads": 3,
        },
        {},
    ),
    "mn_se_f": (
        MN,
        {"width": 0.2, "num_classes": 5, "se_dims": "fc", "se_r": 2},
        {"se_agg": "add"},
    ),
    "mn_se_t": (
        MN,
        {"width": 0.1, "num_classes": 5, "se_dims": "t"},
        {"n_frames": 100, "strides": (2, 2, 1, 2)},
    ),
    "mn_tail": (
        MN,
        {"width": 0.4, "num_classes": 5, "reduced_tail": True},
        {"dilated": True, "strides": [2, 2, 2, 1]},
    ),
    "dymn": (DyMN, {"width": 0.1, "num_classes": 5, "temperature": 3.0}, {}),
    "dymn_replace_se_k": (
        DyMN,
        {
            "width": 0.1,
            "num_classes": 5,
            "dynamic_blocks": "replace_se",
            "dyconv_k": 2,
            "dyrelu_k": 3,
            "head": "fully_convolutional",
        },
        {"use_coordinate_attention": False},
    ),
    "dymn_static": (
        DyMN,
        {"width": 0.1, "num_classes": 5, "use_dyconv": False, "use_dyrelu": False},
        {},
    ),
    "dymn_context": (
        DyMN,
        {"width": 0.2, "num_classes": 5},
        {"context_ratio": 8, "min_context_size": 16, "max_context_size": 64},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_own_file_comes_back(name, tmp_path):
    build, from_state, from_user = OWN[name]
    student = build(**from_state, **from_user).eval()
    path = save(student, tmp_path / "own.pt")
    loaded = load_student(path, **from_user, **STATED)
    assert type(loaded) is build and not loaded.training
    assert loaded.front_end == PUBLISHED_FRONT_END
    clip = torch.randn(1, 1, 128, 100)
    assert torch.equal(loaded(clip).logits, student(clip).logits)
    if build is DyMN:
        assert loaded.temperature == student.temperature


def test_overrides_say_what_a_file_cannot(tmp_path):
    path = save(MN(**TINY, se_dims="f", n_mels=40), tmp_path / "own.pt")
    student = load_student(path, n_mels=40, hop_length=160, f_max=14000.0)
    assert student.front_end == {
        "sample_rate": 32000,
        "n_mels": 40,
        "hop_length": 160,
        "f_max": 14000.0,
    }
    assert student(torch.zeros(1, 1, 40, 30)).logits.shape == (1, 527)


def test_temperature_comes_from_override_then_file_then_table(tmp_path):
    student = DyMN(width=0.4, temperature=5.0)
    path = save(student, tmp_path / "dymn04_im.pt")
    assert load_student(path, temperature=2.0).temperature == 2.0
    assert load_student(path).temperature == 5.0
    state = student.state_dict()
    del state["temperature"]
    torch.save(state, path)
    assert load_student(path).temperature == 30.0
    path = path.rename(tmp_path / "own.pt")
    assert load_student(path, **STATED).temperature == 1.0


def test_class_layer_of_imagenet_is_reported_as_untrained(tmp_path, caplog):
    path = save(MN(**TINY), tmp_path / "mn01_im.pt")
    with caplog.at_level(logging.WARNING):
        load_student(path)
    assert "its class layer is untrained" in caplog.text


# ---------------------------------------------------------------- filling a student


def test_filling_changes_everything_and_keeps_nothing(tmp_path):
    source, student = MN(**TINY), MN(**TINY)
    assert load_published_state(student, save(source, tmp_path / "own.pt")) == []
    for name, value in student.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


@pytest.mark.parametrize(
    "head, kept",
    [
        ("mlp", ["classifier.5.weight", "classifier.5.bias"]),
        ("fully_convolutional", ["classifier.0.weight", "classifier.1.weight"]),
        ("multihead_attention_pooling", ["classifier.subspace_proj.weight"]),
    ],
)
def test_other_classes_keep_their_layer(head, kept, tmp_path, caplog):
    source, student = MN(**TINY, head=head), MN(width=0.1, num_classes=4, head=head)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        left = load_published_state(student, save(source, tmp_path / "own.pt"))
    assert set(kept) <= set(left) and "527 classes and the student 4" in caplog.text
    for name, value in student.state_dict().items():
        assert torch.equal(
            value, (before if name in left else source.state_dict())[name]
        )


def test_filling_takes_the_published_temperature(tmp_path):
    state = DyMN(width=0.4).state_dict()
    del state["temperature"]
    torch.save(state, tmp_path / "dymn04_im.pt")
    student = DyMN(width=0.4, temperature=2.0)
    load_published_state(student, "dymn04_im", savedir=tmp_path)
    assert student.temperature == 30.0


def renamed(state):
    return state | {"\x1b[2J" + "x" * 10**5: torch.zeros(1)}


@pytest.mark.parametrize(
    "weights, student, text",
    [
        (MN, {"width": 0.2}, "of MN of width 0.1, the student a MN of width 0.2"),
        (MN, {"width": 0.1, "head": "fully_convolutional"},
         "missing, as classifier.0.weight; .*unexpected, as classifier.2.weight"),
        (MN, {"width": 0.1, "se_dims": "none"}, "unexpected, as features.4.block.1"),
        (lambda **_: renamed(MN(**TINY).state_dict()), TINY, "1 entries are unex"),
        (lambda **_: {"weight": torch.zeros(1)}, TINY, "it is not of a known student"),
        (DyMN, {"width": 0.1},
         "of DyMN of width 0.1, and the student MN of width 0.1; give MN weights, or "
         "build that DyMN"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_whole(weights, student, text, tmp_path):
    given, student = weights(**TINY), MN(**student)
    state = given.state_dict() if hasattr(given, "state_dict") else given
    torch.save(state, tmp_path / "own.pt")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=text) as refusal:
        load_published_state(student, tmp_path / "own.pt")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1000
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("source", ["no/such.pt", "such.pt"])
def test_missing_file_is_refused(source):
    with pytest.raises(FileNotFoundError, match="such.pt is not a file"):
        load_student(source)


def odd_channels():
    student = MN(**TINY)
    odd = {
        f"features.{k}.1.weight": torch.zeros(7) for k in ("15.block.2", "14.block.3")
    }
    return student.state_dict() | odd


@pytest.mark.parametrize(
    "state, options, text",
    [
        (lambda: MN(**TINY).state_dict(), {"hop_lenght": 160},
         "hop_lenght is not .* hop_length"),
        (lambda: DyMN(width=0.4, context_ratio=8).state_dict(), {},
         "context_ratio=4, .*pass the"),
        (lambda: MN(**TINY, se_dims="f", n_mels=40).state_dict(), {},
         "n_mels=128 .*pass these"),
        (odd_channels, {}, "no width gives"),
    ],
)  # fmt: skip
def test_what_options_do_not_give_is_refused(state, options, text, tmp_path):
    torch.save(state(), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=text):
        load_student(tmp_path / "own.pt", **options)


def test_front_ends_that_differ_are_distinguished():
    assert set(FRONT_END) == set(inspect.signature(LogMel).parameters)
    others = {"sample_rate": 44100, "n_mels": 64, "win_length": 400, "hop_length": 160}
    others |= {"n_fft": 2048, "f_min": 20.0, "f_max": 14000.0, "log_floor": 1e-6}
    others |= {"log_floor_mode": "clamp", "periodic_window": True}
    for name, value in others.items():
        assert front_end_of(LogMel(**{name: value})) != front_end_of(LogMel()), name
    jitter = {name for name in FRONT_END if name not in others}
    assert jitter == {"f_min_jitter", "f_max_jitter"}
    assert front_end_of(LogMel(f_min_jitter=1)) == front_end_of(LogMel())
