"""Weights: the published file, and files of one's own."""

import difflib
import inspect
import logging
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from golden_vectors import GOLDEN

from efficientat_plugin.features import LogMel
from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.encoders import StudentEncoder
from efficientat_plugin.pretrained.download import read_state
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
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.teachers.load import load_teacher

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
    assert len(names) == len(set(names)) == len(PUBLISHED) == 47
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
    build, told_by_state, told_by_user = OWN[name]
    student = build(**told_by_state, **told_by_user).eval()
    path = save(student, tmp_path / "own.pt")
    loaded = load_student(path, **told_by_user, **STATED)
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


def test_class_layer_of_imagenet_is_said_to_be_untrained(tmp_path, caplog):
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


@pytest.mark.parametrize(
    "student, text",
    [
        (
            lambda: MN(width=0.2),
            r"of MN of width 0.1, the student a MN of width 0.2 .*differ in shape",
        ),
        (
            lambda: MN(width=0.1, head="fully_convolutional"),
            "missing, as classifier.0.weight; .*unexpected, as classifier.2.weight",
        ),
        (lambda: MN(width=0.1, se_dims="none"), "unexpected, as features.4.block.1"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(student, text, tmp_path):
    path, student = save(MN(**TINY), tmp_path / "own.pt"), student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        load_published_state(student, path)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_name_of_an_unexpected_entry_is_shown_cut(tmp_path):
    state = MN(**TINY).state_dict() | {"\x1b[2J" + "x" * 10**5: torch.zeros(1)}
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="unexpected") as refusal:
        load_published_state(MN(**TINY), tmp_path / "own.pt")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 1000


def test_weights_of_an_unknown_student_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="it is not of a known student"):
        load_published_state(MN(**TINY), tmp_path / "own.pt")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("source", ["no/such.pt", "such.pt"])
def test_missing_file_is_refused(source):
    with pytest.raises(FileNotFoundError, match="such.pt is not a file"):
        load_student(source)


@pytest.mark.parametrize(
    "content, text",
    [
        ([1, 2], "holds a list, not the names and tensors"),
        ({}, r"holds a mapping with \[\]"),
        ({"epoch": 3, "model": {}}, r"holds a mapping with \['epoch', 'model'\]"),
        ({1: torch.zeros(1)}, "save student.state_dict"),
        ({"weight": torch.zeros(1)}, r"begins with \['weight'\]"),
        ({"features.0.0.weight": torch.zeros(1)}, "no block 'features.1.'"),
    ],
)
def test_file_that_is_no_students_state_is_refused(content, text, tmp_path):
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=text):
        load_student(tmp_path / "own.pt")


def test_file_with_code_is_refused(tmp_path):
    torch.save(MN(**TINY), tmp_path / "own.pt")
    with pytest.raises(ValueError, match="holds no weights that torch can load"):
        load_student(tmp_path / "own.pt")


STRANGE = {
    "of repeated values": lambda value: value.new_zeros(1).expand(9, *value.shape)[0],
    "of no values": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
    "quantized": lambda value: torch.quantize_per_tensor(value, 1.0, 0, torch.qint8),
    "complex": lambda value: value.to(torch.complex64),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_no_weights_are_refused(kind, tmp_path):
    state = MN(**TINY).state_dict()
    name = "classifier.5.weight"
    torch.save(state | {name: STRANGE[kind](state[name])}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="not a plain array|no weights that torch"):
        load_student(tmp_path / "own.pt")


def test_a_small_file_of_large_tensors_is_refused(tmp_path):
    state = MN(**TINY).state_dict()
    for name in ("classifier.5.weight", "classifier.5.bias"):
        shape = (10**9, *state[name].shape[1:])
        state[name] = torch.zeros(1).expand(shape)
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="not a plain array of numbers"):
        load_student(tmp_path / "own.pt")


def with_pickle(path, content):
    """A file of weights whose pickle is another."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)
    return path


def test_storages_that_the_file_does_not_fill_are_refused(tmp_path):
    state = {"weight": torch.zeros(1000, 1000)}
    torch.save(state, tmp_path / "own.pt", _use_new_zipfile_serialization=False)
    with open(tmp_path / "own.pt", "r+b") as file:
        for _ in range(4):  # magic, protocol, system, state; the storages follow
            for _ in pickletools.genops(file):
                pass
        file.truncate()
        pickle.dump([], file, protocol=2)
    assert (tmp_path / "own.pt").stat().st_size < 1000
    with pytest.raises(ValueError, match="bytes, too few for its tensors of 4000000"):
        read_state(tmp_path / "own.pt")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}K\x01\x85q\0"
        + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(22))
        + b"K\x01s.",
        b"\x80\x02}" + b")" + b"\x85" * 1000 + b"K\x01s.",
        b"\x80\x02}ctorch\nSize\n)RK\x01s.",
        b"\x80\x02}u.",
        b"\x80\x02q\0}.",
    ],
    ids=["shared", "deep", "a name", "empty", "nothing"],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_of_time_without_end_is_refused(form, pickled, tmp_path):
    path = tmp_path / "own.pt"
    if form == "zip":
        with_pickle(path, pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(ValueError, match="no weights that torch can load, or more"):
        read_state(path)


def test_a_name_of_an_entry_is_shown_cut(tmp_path):
    name = "\x1b[2J" + "x" * 10**5
    torch.save({name: torch.zeros(2).to("meta")}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="no weights|not a plain array") as refusal:
        read_state(tmp_path / "own.pt")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400
    torch.save({name: 1, (1,) * 1000: 2}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="'tuple'") as refusal:
        read_state(tmp_path / "own.pt")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


@pytest.mark.parametrize("kind", [b"Tensor", b"FloatTensor"])
def test_a_tensor_that_is_not_filled_is_refused(kind, tmp_path):
    call = b"ctorch\n" + kind + b"\nJ" + (1000).to_bytes(4, "little") + b"\x85R"
    pickled = b"\x80\x02}X\x01\0\0\0a" + call + b"s."
    with pytest.raises(ValueError, match="of 4000 bytes|no weights that torch can"):
        read_state(with_pickle(tmp_path / "own.pt", pickled))


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    state = MN(**TINY).state_dict() | {"more": torch.zeros(1 << 24)}
    torch.save(state, tmp_path / "own.pt")
    with (
        zipfile.ZipFile(tmp_path / "own.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(ValueError, match="is a compressed archive"):
        load_student(tmp_path / "packed.pt")


def split_archive(path):
    """Members, directory and end of a zip, bytes."""
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content = path.read_bytes()
    return content[:start], content[start:-22], content[-22:]


def packed_and_plain(tmp_path):
    """Two zips of alike names: one torch would have to unpack, one as it saves."""
    path, sizes = tmp_path / "own.pt", {"packed": 10**6, "plain": 4}
    for name, method in [("packed", zipfile.ZIP_DEFLATED), ("plain", 0)]:
        torch.save({"weight": torch.zeros(sizes[name])}, path)
        with (
            zipfile.ZipFile(path) as saved,
            zipfile.ZipFile(tmp_path / name, "w", method) as made,
        ):
            for entry in saved.infolist():
                made.writestr(entry.filename, saved.read(entry))
    return tmp_path / "packed", tmp_path / "plain"


def test_an_archive_of_two_directories_is_refused(tmp_path):
    packed, plain = map(split_archive, packed_and_plain(tmp_path))
    before = len(packed[0] + packed[1])
    directory = bytearray(plain[1])
    place = 0
    while place < len(directory):  # of members that Python takes to be elsewhere
        name, extra, comment = struct.unpack_from("<HHH", directory, place + 28)
        (offset,) = struct.unpack_from("<I", directory, place + 42)
        moved = offset + before - len(plain[0]) - len(packed[1])
        struct.pack_into("<I", directory, place + 42, moved % 2**32)
        place += 46 + name + extra + comment
    end = bytearray(plain[2])
    struct.pack_into("<I", end, 16, len(packed[0]))  # where torch finds the packed one
    path = tmp_path / "own.pt"
    path.write_bytes(packed[0] + packed[1] + plain[0] + directory + end)
    assert torch.load(path, weights_only=True)["weight"].numel() == 10**6
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(path)


@pytest.mark.parametrize("padding", [1, 22, 66_000])
def test_an_archive_with_something_behind_it_is_refused(padding, tmp_path):
    path, _ = packed_and_plain(tmp_path)
    with path.open("ab") as file:
        file.write(bytes(padding))
    assert torch.load(path, weights_only=True)["weight"].numel() == 10**6
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(path)


@pytest.mark.parametrize("place", [-98, -42 + 8, -98 + 48])
def test_an_archive_whose_wide_directory_is_elsewhere_is_refused(place, tmp_path):
    path = save(MN(**TINY), tmp_path / "own.pt")
    read_state(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(path)


def test_an_archive_whose_members_overlap_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "own.pt")
    members, directory, _ = split_archive(tmp_path / "own.pt")
    directory = directory[:-76]  # without the wide end
    count = 20
    end = b"PK\5\6" + struct.pack(
        "<4H2LH", 0, 0, *[7 * count] * 2, len(directory) * count, len(members), 0
    )
    (tmp_path / "own.pt").write_bytes(members + directory * count + end)
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(tmp_path / "own.pt")


def prefixed(before, state):
    return {f"{before}{name}": value for name, value in state.items()}


WRAPPED = {
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "state_dict": lambda state: {"state_dict": state, "hyper": {"a": [1, "b"]}},
    "student": lambda state: {"student": state},
    "module.": lambda state: prefixed("module.", state),
    "net.": lambda state: prefixed("net.", state),
    "_orig_mod.": lambda state: prefixed("_orig_mod.", state),
    "'model.' in 'state_dict'": lambda state: {"state_dict": prefixed("model.", state)},
    "'_orig_mod.' in 'module.' in 'model'": lambda state: {
        "model": prefixed("module._orig_mod.", state)
    },
}


@pytest.mark.parametrize("load", [load_student, load_teacher], ids=["student", "teach"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapped_weights_are_unwrapped_and_it_is_said(wrapping, load, tmp_path, caplog):
    network, told = MN(**TINY), {}
    if load is load_teacher:
        network = PaSST(3, embed_dim=32, depth=1, num_heads=4)
        told = {"time_stride": 10, "num_heads": 4}
    state, path = network.state_dict(), tmp_path / "own.pt"
    torch.save(WRAPPED[wrapping](state), path)
    with caplog.at_level(logging.WARNING):
        loaded = load(path, **STATED, **told)
    loaded = loaded if load is load_student else loaded.student
    found = loaded.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "wraps it: weights were read from" in caplog.text
    assert wrapping.strip("'") in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"weights": {"a": torch.zeros(1)}},
        {"model": {"student": {}}},
        {"model": {"student": {"a": 1}}},
        {"model": [torch.zeros(1)]},
        {"model": {"model": {"b": "text"}, "a": torch.zeros(1)}},
    ],
)
def test_what_wraps_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="not the names and tensors of a state dict"):
        read_state(tmp_path / "own.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_payload_is_refused_unexecuted(form, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "own.pt"
    content = {"weight": torch.zeros(1), "x": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="holds no weights that torch can load"):
        load_student(path)
    with pytest.raises(ValueError, match="holds no weights that torch can load"):
        load_teacher(path)
    with pytest.raises(ValueError, match="holds no weights that torch can load"):
        StudentEncoder(MN(**TINY)).load_whole(path)
    with pytest.raises(ValueError, match="holds no weights that torch can load"):
        hear.load_model(str(path))
    assert not marker.exists()
    if form != "pickle":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the payload is a real one


class Payload:
    """Makes a marker file, if unpickled carelessly."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_unknown_override_is_refused_with_a_near_one(tmp_path):
    path = save(MN(**TINY), tmp_path / "own.pt")
    with pytest.raises(ValueError, match="hop_lenght is not .* hop_length"):
        load_student(path, hop_lenght=160)


def test_contexts_that_options_do_not_give_are_refused(tmp_path):
    path = save(DyMN(width=0.4, context_ratio=8), tmp_path / "own.pt")
    with pytest.raises(ValueError, match="context_ratio=4, .*pass the"):
        load_student(path)


def test_squeeze_excite_that_options_do_not_give_is_refused(tmp_path):
    path = save(MN(**TINY, se_dims="f", n_mels=40), tmp_path / "own.pt")
    with pytest.raises(ValueError, match="n_mels=128 .*pass these"):
        load_student(path)


def test_channels_that_no_width_gives_are_refused(tmp_path):
    state = MN(**TINY).state_dict()
    state["features.15.block.2.1.weight"] = torch.zeros(7)
    state["features.14.block.3.1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="no width gives"):
        load_student(tmp_path / "own.pt")


def test_front_ends_that_differ_are_told_apart():
    assert set(FRONT_END) == set(inspect.signature(LogMel).parameters)
    others = {"sample_rate": 44100, "n_mels": 64, "win_length": 400, "hop_length": 160}
    others |= {"n_fft": 2048, "f_min": 20.0, "f_max": 14000.0, "log_floor": 1e-6}
    others |= {"log_floor_mode": "clamp", "periodic_window": True}
    for name, value in others.items():
        assert front_end_of(LogMel(**{name: value})) != front_end_of(LogMel()), name
    jitter = {name for name in FRONT_END if name not in others}
    assert jitter == {"f_min_jitter", "f_max_jitter"}
    assert front_end_of(LogMel(f_min_jitter=1)) == front_end_of(LogMel())


@pytest.mark.parametrize(("given", "built"), [(MN, DyMN), (DyMN, MN)])
def test_weights_of_the_other_family_are_told_in_a_sentence(tmp_path, given, built):
    path = tmp_path / "other.pt"
    torch.save(given(3, width=0.1).state_dict(), path)
    with pytest.raises(ValueError, match=f"of {given.__name__} of width 0.1") as error:
        load_published_state(built(3, width=0.1), path)
    assert str(error.value).endswith(
        f"and the student {built.__name__} of width 0.1; give {built.__name__} "
        f"weights, or build that {given.__name__}"
    )
