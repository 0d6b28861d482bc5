"""The published logits become a store; a file that is not as published runs no code."""

import os
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest

from efficientat_plugin.data.clip_ids import youtube_id
from efficientat_plugin.teachers.store.import_published import import_published

NAMES = [f"Y{chr(97 + n) * 10}-.mp3" for n in range(5)]
RECIPE = Path(__file__).resolve().parents[1] / "recipes/import_teacher_logits.py"
CLASSES = 527


class Payload:
    """Makes a marker file, if unpickled carelessly."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Crafted:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def publish(folder, logits, index, protocol=4):
    np.save(folder / "l.npy", logits, allow_pickle=True)
    with open(folder / "i.pkl", "wb") as file:
        pickle.dump(index, file, protocol=protocol)
    return folder / "l.npy", folder / "i.pkl", folder / "store"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("scalar", [int, np.int64, np.dtype(">u4").type, np.int16])
def test_published_file_becomes_a_store(tmp_path, dtype, scalar, capsys):
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    rows = [4, 0, 5, 1, 2]
    index = {name: scalar(row) for name, row in zip(NAMES, rows, strict=True)}
    files = publish(tmp_path, logits, index)
    store = import_published(*files, labels_sha256="l", rows_per_append=2)
    assert sorted(os.listdir(tmp_path)) == ["i.pkl", "l.npy", "store"]
    assert (
        store.path == files[2] and len(store) == 5 and store.manifest.num_classes == 4
    )
    target = store.lookup([youtube_id(name) for name in NAMES])
    assert target.known.all()
    expected = logits[rows].astype(np.float16).astype(np.float32)
    assert np.array_equal(target.logits.numpy(), expected)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_index_of_any_protocol_is_read(tmp_path, protocol, capsys):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: 3}, protocol)
    assert youtube_id(NAMES[0]) in import_published(*files, labels_sha256="l")


@pytest.mark.parametrize(
    "name, clip_id",
    [
        ("Y--aE2O5G5WE.mp3", "--aE2O5G5WE"),
        ("YYYYYYYYYYYY.mp3", "YYYYYYYYYYY"),
        ("YaE2O5G5WE-", "YaE2O5G5WE-"),
        ("aaaaaaaaaaa.MP3", "aaaaaaaaaaa"),
        ("Y--aE2O5G5WE_30000.opus", "--aE2O5G5WE"),
        ("--aE2O5G5W__0.000_10.000.flac", "--aE2O5G5W_"),
        ("--aE2O5G5WE_30.000", "--aE2O5G5WE"),
        ("Yshort.mp3", "Yshort"),
        ("hello_world_bark.wav", "hello_world_bark"),
        ("a.b", "a.b"),
    ],
)
def test_youtube_id_is_the_bare_eleven_characters(name, clip_id):
    assert youtube_id(name) == clip_id


# --- Crafted files ------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_an_index_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    files = publish(
        tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: 0, "x": Payload(marker)}, protocol
    )
    with pytest.raises(ValueError, match="asks for .*system.*do not trust it"):
        import_published(*files, labels_sha256="l")
    assert not marker.exists() and not files[2].exists()
    pickle.loads(files[1].read_bytes())  # the payload is a real one
    assert marker.exists()


DOUBLED = b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(20))
LISTS = b"".join(b"]q%c(h%ch%ce0" % (i + 1, i, i) for i in range(20))
START = b"\x80\x04"  # of a pickle of protocol 4
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
CRAFTED = {
    "no pickle": b"no pickle",
    "nothing": b"",
    "cut": START,
    "deep": b"(" * 5000 + b".",
    "memory": START + b"\x8e" + b"\xff" * 8 + b".",  # 2**64 bytes promised
    "memo": START + b"}r\xff\xff\xff\x7f.",
    "smaller memo": START + b"}r\xff\xff\xff\x00.",
    "two memos": START + b"}q\x00\x94.",
    "doubled keys": START + b"K\x01\x85q\x000" + DOUBLED + b"}h\x14K\x01s.",
    "doubled rows": START + b"]q\x00K\x01a0" + LISTS + b"}X\x01\0\0\0xh\x14s.",
    "deep key": START + b"})" + b"\x85" * 1000 + b"K\x01s.",
    "copied key": START + b"})" + b"2\x86" * 20 + b"K\x01s.",
    "state of a class": START + b"cnumpy\ndtype\n}}\x86b.",
    "odd scalar": START + b"cnumpy\ndtype\n)\x81" + SCALAR + b"\x8c\x01x\x86R.",
}
OBJECTS = {
    "eval": Crafted(eval, "1"),
    "getattr": Crafted(getattr, "x", "upper"),
    "objects": Crafted(np.dtype, "O"),
    "floats": Crafted(np.dtype, "f8"),
    "fields": Crafted(np.dtype, {"names": ["a"], "formats": ["O"]}),
    "float": np.float64(1.0),
    "array": np.array([1, 2]),
    "array of objects": np.array([None], dtype=object),
    "method": {1, 2}.union,
}
CRAFTED |= {name: pickle.dumps({NAMES[0]: row}) for name, row in OBJECTS.items()}


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_index_is_refused(tmp_path, content):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {})
    files[1].write_bytes(content)
    with pytest.raises(ValueError, match="is not a pickle of a plain dict"):
        import_published(*files, labels_sha256="l")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (5, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 30 + ", 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (",
        "{[]: 1}",
        "-" * 9000 + "1",
        "\0",
    ],
)
def test_a_crafted_header_of_logits_is_refused(tmp_path, header):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: 0})
    length = len(header).to_bytes(2, "little")
    content = b"\x93NUMPY\x01\x00" + length + header.encode() + b"\0" * 64
    files[0].write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a \.npy of numbers"):
        import_published(*files, labels_sha256="l")


def test_logits_that_are_objects_are_not_unpickled(tmp_path):
    marker = tmp_path / "ran"
    logits = np.array([[Payload(marker), 1.0]], dtype=object)
    files = publish(tmp_path, logits, {NAMES[0]: 0})
    with pytest.raises(ValueError, match=r"cannot be read as a \.npy of numbers"):
        import_published(*files, labels_sha256="l")
    assert not marker.exists() and not files[2].exists()
    np.load(files[0], allow_pickle=True)  # the payload is a real one
    assert marker.exists()


# --- Files of another kind ----------------------------------------------------------


@pytest.mark.parametrize(
    "row", [10**5000, -(10**30), [0] * 10**5, "\x1b" * 10**5], ids=range(4)
)
def test_a_row_of_any_length_is_shown_cut(tmp_path, row):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: row})
    with pytest.raises(ValueError, match="rows from 0 to 4") as refusal:
        import_published(*files, labels_sha256="l")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "index, text",
    [
        ({}, "holds nothing"),
        ([1], "holds list"),
        ({NAMES[0]: 5}, "rows from 0 to 4"),
        ({NAMES[0]: -1}, "rows from 0 to 4"),
        ({NAMES[0]: True}, "rows from 0 to 4"),
        ({NAMES[0]: "1"}, "rows from 0 to 4"),
        ({b"abc": 1}, "must map strings"),
        ({NAMES[0]: 1, NAMES[1]: 1}, "gives row 1 .* twice"),
        ({NAMES[0]: 1, youtube_id(NAMES[0]): 2}, "gives row 2 or clip .* twice"),
    ],
)
def test_index_that_is_not_one_is_refused(tmp_path, index, text):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), index)
    with pytest.raises(ValueError, match=text):
        import_published(*files, labels_sha256="l")
    assert not files[2].exists()


@pytest.mark.parametrize(
    "logits, text",
    [
        (np.zeros(5, "f4"), r"float32 \[5\]"),
        (np.zeros((5, 2), "i4"), "int32"),
        (np.zeros((0, 2), "f4"), r"\[0, 2\]"),
        (np.array([[None]]), "cannot be read"),
        (np.full((5, 2), np.nan, "f4"), "not finite"),
    ],
)
def test_logits_that_are_none_are_refused(tmp_path, logits, text, capsys):
    files = publish(tmp_path, logits, {NAMES[0]: 0})
    with pytest.raises(ValueError, match=text):
        import_published(*files, labels_sha256="l")
    assert sorted(os.listdir(tmp_path)) == ["i.pkl", "l.npy"]


@pytest.mark.parametrize(
    "logits, text",
    [
        (
            np.zeros((30, CLASSES - 1), "f4"),
            r"\[30, 526\], and the label table",
        ),
        (np.zeros((CLASSES, 30), "f4") - 1, "it is transposed, so save it again as"),
        (
            np.linspace(0, 1, 30 * CLASSES, dtype="f4").reshape(30, CLASSES),
            "only numbers from 0 to 1, which",
        ),
        (np.full((30, CLASSES), np.nan, "f4"), "not finite"),
        (None, "no file .*; download the published logits"),
    ],
    ids=["columns", "transposed", "probabilities", "NaN", "none"],
)
def test_the_recipe_refuses_other_logits_in_a_sentence(tmp_path, logits, text, capsys):
    files = publish(tmp_path, np.zeros(1) if logits is None else logits, {NAMES[0]: 0})
    if logits is None:
        files[0].unlink()
    main = runpy.run_path(str(RECIPE))["main"]
    with pytest.raises(SystemExit, match=text) as stop:
        main([str(path) for path in files])
    assert "\n" not in stop.value.code and not files[2].exists()


def test_import_refuses_paths_that_are_taken_or_missing(tmp_path):
    logits, index, path = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: 0})
    with pytest.raises(ValueError, match="exists; name another folder"):
        import_published(logits, index, tmp_path, labels_sha256="l")
    with pytest.raises(FileNotFoundError, match="download the published logits"):
        import_published(tmp_path / "x", index, path, labels_sha256="l")
    with pytest.raises(FileNotFoundError, match="download the published index"):
        import_published(logits, tmp_path / "x", path, labels_sha256="l")
    with pytest.raises(ValueError, match="rows_per_append=0"):
        import_published(logits, index, path, labels_sha256="l", rows_per_append=0)
