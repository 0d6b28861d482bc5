"""Files of weights are read whole, or refused without executing code in them."""

import logging
import os
import pickle
import pickletools
import struct
import zipfile

import pytest
import torch

from efficientat_plugin.interfaces import hear
from efficientat_plugin.interfaces.encoders import StudentEncoder
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.teachers.load import load_teacher

STATED = {"n_mels": 128, "hop_length": 320}  # which a state dict does not contain
TINY = {"width": 0.1, "num_classes": 527}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "own.pt"


def test_bit_that_flipped_in_the_cache_is_noticed(path):
    torch.save(MN(**TINY).state_dict(), path)
    body, expected = path.read_bytes(), read_state(path)
    for place in range(100, len(body) - 100, len(body) // 20):
        damaged = bytearray(body)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            state = read_state(path)
        except ValueError as error:
            assert "holds no weights that torch can load; delete it" in str(error)
        else:  # between two entries, which nobody reads
            assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_weights_saved_by_older_torch_are_read(path):
    state = MN(**TINY).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    read = read_state(path)
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_half_a_file_is_refused(path):
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="own.pt holds no .* delete it"):
        read_state(path)


def large(value):
    return torch.zeros(1).expand(10**9, *value.shape[1:])


ODD_TENSORS = {
    "of repeated values": lambda value: value.new_zeros(1).expand(9, *value.shape)[0],
    "of one value": large,
    "of no values": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
    "quantized": lambda value: torch.quantize_per_tensor(value, 1.0, 0, torch.qint8),
    "complex": lambda value: value.to(torch.complex64),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_not_weights_are_refused(kind, path):
    state = MN(**TINY).state_dict()
    name = "classifier.5.weight"
    torch.save(state | {name: ODD_TENSORS[kind](state[name])}, path)
    with pytest.raises(ValueError, match="not a plain array|no weights that torch"):
        load_student(path)


NO_STATE = "not the names and tensors of a state dict"
CONTENTS = [
    ([1, 2], "holds a list, not the names and tensors"),
    ({}, r"holds a mapping with \[\]"),
    ({"epoch": 3, "model": {}}, r"holds a mapping with \['epoch', 'model'\]"),
    ({1: torch.zeros(1)}, "save student.state_dict"),
    ({"weight": torch.zeros(1)}, r"begins with \['weight'\]"),
    ({"features.0.0.weight": torch.zeros(1)}, "no block 'features.1.'"),
    ({"weights": {"a": torch.zeros(1)}}, NO_STATE),
    ({"model": {"student": {}}}, NO_STATE),
    ({"model": {"student": {"a": 1}}}, NO_STATE),
    ({"model": [torch.zeros(1)]}, NO_STATE),
    ({"model": {"model": {"b": "text"}, "a": torch.zeros(1)}}, NO_STATE),
    (MN(**TINY), "holds no weights that torch can load"),
]


@pytest.mark.parametrize("content, text", CONTENTS)
def test_what_is_not_the_state_of_a_student_is_refused(content, text, path):
    torch.save(content, path)
    with pytest.raises(ValueError, match=text):
        load_student(path)


def with_pickle(path, content):
    """A file of weights whose pickle is another."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)
    return path


def test_storages_that_the_file_does_not_fill_are_refused(path):
    state = {"weight": torch.zeros(1000, 1000)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with open(path, "r+b") as file:
        for _ in range(4):  # magic, protocol, system, state; the storages follow
            for _ in pickletools.genops(file):
                pass
        file.truncate()
        pickle.dump([], file, protocol=2)
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match="bytes, too few for its tensors of 4000000"):
        read_state(path)


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
def test_a_pickle_of_time_without_end_is_refused(form, pickled, path):
    if form == "zip":
        with_pickle(path, pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(ValueError, match="no weights that torch can load, or more"):
        read_state(path)


def test_a_name_of_an_entry_is_shown_cut(path):
    name = "\x1b[2J" + "x" * 10**5
    torch.save({name: torch.zeros(2).to("meta")}, path)
    with pytest.raises(ValueError, match="no weights|not a plain array") as refusal:
        read_state(path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400
    torch.save({name: 1, (1,) * 1000: 2}, path)
    with pytest.raises(ValueError, match="'tuple'") as refusal:
        read_state(path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


@pytest.mark.parametrize("kind", [b"Tensor", b"FloatTensor"])
def test_a_tensor_that_is_not_filled_is_refused(kind, path):
    call = b"ctorch\n" + kind + b"\nJ" + (1000).to_bytes(4, "little") + b"\x85R"
    pickled = b"\x80\x02}X\x01\0\0\0a" + call + b"s."
    with pytest.raises(ValueError, match="of 4000 bytes|no weights that torch can"):
        read_state(with_pickle(path, pickled))


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
def test_an_archive_whose_wide_directory_is_elsewhere_is_refused(place, path):
    torch.save(MN(**TINY).state_dict(), path)
    read_state(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(path)


def test_an_archive_whose_members_overlap_is_refused(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    members, directory, _ = split_archive(path)
    directory = directory[:-76]  # without the wide end
    count = 20
    end = b"PK\5\6" + struct.pack(
        "<4H2LH", 0, 0, *[7 * count] * 2, len(directory) * count, len(members), 0
    )
    path.write_bytes(members + directory * count + end)
    with pytest.raises(ValueError, match="not an archive as torch.save writes it"):
        read_state(path)


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
def test_wrapped_weights_are_unwrapped_with_a_warning(wrapping, load, tmp_path, caplog):
    network, sizes = MN(**TINY), {}
    if load is load_teacher:
        network = PaSST(3, embed_dim=32, depth=1, num_heads=4)
        sizes = {"time_stride": 10, "num_heads": 4}
    state, path = network.state_dict(), tmp_path / "own.pt"
    torch.save(WRAPPED[wrapping](state), path)
    with caplog.at_level(logging.WARNING):
        loaded = load(path, **STATED, **sizes)
    loaded = loaded if load is load_student else loaded.student
    found = loaded.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "wraps it: weights were read from" in caplog.text
    assert wrapping.strip("'") in caplog.text


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_payload_is_refused_unexecuted(form, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "own.pt"
    content = {"weight": torch.zeros(1), "x": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    load_encoder = StudentEncoder(MN(**TINY)).load_whole
    for load in (load_student, load_teacher, load_encoder, hear.load_model):
        with pytest.raises(ValueError, match="holds no weights that torch can load"):
            load(str(path))
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
