"""Stores of logits: what is written is read; a kill loses one append at most."""

import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from memory_limit import memory_limit

from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter
from efficientat_plugin.teachers.stored import as_teacher

ABOUT = {
    "teacher": "passt",
    "labels_sha256": "1" * 64,
    "num_classes": 3,
    "sample_rate": 32000,
    "clip_seconds": 10.0,
    "teacher_sha256": "2" * 64,
}


def rows_of(clip_ids, num_classes=3):
    """Logits that a clip's id determines: what is read shows whose it is."""
    return np.stack(
        [
            np.random.default_rng(sum(i.encode())).normal(size=num_classes) * 3
            for i in clip_ids
        ]
    ).astype(np.float16)


def write(path, clip_ids, digests=None, **about):
    about = ABOUT | about
    with StoreWriter(path, **about) as writer:
        if clip_ids:
            writer.append(clip_ids, rows_of(clip_ids, about["num_classes"]), digests)
    return path


def check(path, clip_ids):
    store = LogitsStore(path)
    assert len(store) == len(clip_ids)
    if clip_ids:
        target = store.lookup(clip_ids)
        assert target.known.all()
        assert torch.equal(target.logits, torch.from_numpy(rows_of(clip_ids)).float())


# --- Round trips -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_logits_come_back_in_float16(tmp_path, dtype):
    logits = torch.randn(4, 3).mul(10).to(dtype)
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        writer.append(list("dbca"), logits)
    target = LogitsStore(tmp_path / "s").lookup(list("abcdd"))
    assert target.logits.dtype == torch.float32
    assert torch.equal(target.logits, logits.half().float()[[3, 1, 2, 0, 0]])


def test_logits_beyond_float16_are_clamped(tmp_path):
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        writer.append(["a"], torch.tensor([[1e30, -1e300, 1.0]], dtype=torch.float64))
    logits = LogitsStore(tmp_path / "s").lookup(["a"]).logits
    assert logits.tolist() == [[65504.0, -65504.0, 1.0]]


@pytest.mark.parametrize(
    "clip_id", ["a\0", "ab\0", "abc", "", "ä", "nowhere at all", "\udc80"]
)
def test_unknown_clips_are_zero_and_not_known(tmp_path, clip_id):
    store = LogitsStore(write(tmp_path / "s", ["a", "ab"]))
    target = store.lookup(["ab", clip_id])
    assert target.known.tolist() == [True, False]
    assert not target.logits[1].any()
    assert clip_id not in store and "ab" in store


def test_ids_of_any_script_and_length_are_found(tmp_path):
    clip_ids = ["x", "Zürich 3/铁.wav", "é" * 100, "-_", "é" * 99 + "e"]
    check(write(tmp_path / "s", clip_ids), clip_ids)


def test_empty_store_knows_nothing(tmp_path):
    store = LogitsStore(write(tmp_path / "s", []))
    assert len(store) == 0 and "a" not in store
    assert store.lookup(["a"]).logits.shape == (1, 3)
    assert store.lookup([]).known.shape == (0,)


def test_digests_are_kept_per_clip(tmp_path):
    store = LogitsStore(write(tmp_path / "s", ["b", "a"], ["beef", ""]))
    assert (store.digest("b"), store.digest("a")) == ("beef", "")
    assert store.clip(0) == ("b", "beef")
    with pytest.raises(ValueError, match="'c' is not in"):
        store.digest("c")


def test_manifest_describes_the_logits(tmp_path):
    manifest = LogitsStore(write(tmp_path / "s", ["a"])).manifest
    assert vars(manifest).items() >= (ABOUT | {"count": 1}).items()


def test_a_manifest_without_later_settings_is_read(tmp_path):
    manifest = write(tmp_path / "s", ["a"]) / "manifest.json"
    entries = json.loads(manifest.read_text())
    del entries["short_clips"], entries["precision"]
    manifest.write_text(json.dumps(entries))
    write(tmp_path / "s", ["b"])
    check(tmp_path / "s", ["a", "b"])


def test_store_pickles_as_its_path(tmp_path, monkeypatch):
    write(tmp_path / "s", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(LogitsStore("s"))
    assert len(payload) < 1000
    monkeypatch.chdir("/")
    assert pickle.loads(payload).lookup(["b"]).known.all()


def test_a_yamls_teacher_is_a_path_or_null(tmp_path):
    path = write(tmp_path / "s", ["a"])
    assert as_teacher(None) is None
    teacher = as_teacher(str(path))
    assert len(teacher.store) == 1 and as_teacher(teacher) is teacher


# --- Appending and being killed ------------------------------------------------------


def test_reopened_store_grows(tmp_path):
    write(tmp_path / "s", ["c", "a"])
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        assert len(writer) == 2 and "c" in writer and "b" not in writer
        writer.append(["b"], rows_of(["b"]))
        check(tmp_path / "s", ["c", "a", "b"])
        writer.append([], np.empty((0, 3), np.float32))
        writer.append(["d"], rows_of(["d"]))
    check(tmp_path / "s", list("cabd"))


def test_store_killed_at_any_byte_keeps_what_was_committed(tmp_path):
    before = {}
    path = write(tmp_path / "s", ["a", "b"])
    for file in path.iterdir():
        before[file.name] = file.read_bytes()
    write(path, ["c", "dd"])
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    draw = random.Random(0)
    for _ in range(40):
        path.joinpath("manifest.json").write_bytes(before["manifest.json"])
        for name in ("logits.f16", "clips.tsv"):
            length = draw.randint(len(before[name]), len(after[name]))
            path.joinpath(name).write_bytes(after[name][:length])
        manifest = after["manifest.json"]
        aside = path / ".manifest.json-12345678.part"
        aside.write_bytes(manifest[: draw.randint(0, len(manifest))])
        check(path, ["a", "b"])
        check(write(path, ["e"]), ["a", "b", "e"])
        assert not aside.exists()


# In a process of its own, which forks: this one has threads. The nth of the steps that
# change the disk kills the child.
APPEND_AND_BE_KILLED = """
import itertools, os, signal, sys
import numpy as np
from efficientat_plugin.teachers.store import writer
from efficientat_plugin.teachers.store.logits_store import LogitsStore

def append_until(step):
    steps = itertools.count(1)
    def counted(function):
        def call(*arguments):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return call
    writer._write_all = counted(writer._write_all)
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    store = writer.StoreWriter(sys.argv[1], teacher="t", labels_sha256="l",
                               num_classes=50, sample_rate=32000, clip_seconds=10.0)
    while True:
        numbers = np.arange(len(store), len(store) + 50)
        rows = np.repeat(numbers[:, None] % 1000, 50, axis=1)
        store.append([f"clip{i}" for i in numbers], rows)

count = 0
for step in range(1, 25):
    child = os.fork()
    if not child:
        append_until(step)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if not os.path.exists(f"{sys.argv[1]}/manifest.json"):
        assert step < 5
        continue
    store = LogitsStore(sys.argv[1])
    target = store.lookup([f"clip{i}" for i in range(len(store))])
    expected = np.arange(len(store))[:, None] % 1000
    assert len(store) % 50 == 0 and len(store) >= count and target.known.all()
    assert (target.logits.numpy() == expected).all()
    count = len(store)
assert count > 500
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows lacks")
def test_a_writer_killed_at_any_step_leaves_a_store(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", APPEND_AND_BE_KILLED, tmp_path / "s"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr


def test_interrupted_append_closes_the_writer(tmp_path, monkeypatch):
    writer = StoreWriter(write(tmp_path / "s", ["a"]), **ABOUT)

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            writer.append(["b"], rows_of(["b"]))
    with pytest.raises(ValueError, match="is closed"):
        writer.append(["b"], rows_of(["b"]))
    check(tmp_path / "s", ["a"])
    check(write(tmp_path / "s", ["b"]), ["a", "b"])


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"num_classes": 4},
        {"sample_rate": 16000},
        {"clip_seconds": 5.0},
        {"precision": "bf16"},
        {"teacher_sha256": None},
        {"labels_sha256": "3" * 64},
    ],
    ids=lambda other: next(iter(other)),
)
def test_append_to_another_teachers_store_is_refused(tmp_path, other):
    write(tmp_path / "s", ["a"])
    ((name, value),) = other.items()
    digests = {"teacher_sha256": "weights", "labels_sha256": "classes"}
    if name in digests:
        name, value = digests[name], f"of digest {value[:8]}" if value else "null"
    message = rf"other logits \({name} .* there, {value} here\); .*--output_folder"
    with pytest.raises(ValueError, match=message):
        StoreWriter(tmp_path / "s", **(ABOUT | other))
    check(tmp_path / "s", ["a"])


def test_a_teacher_is_known_by_its_weights_and_else_by_its_name(tmp_path):
    write(tmp_path / "s", ["a"])
    with StoreWriter(tmp_path / "s", **(ABOUT | {"teacher": "elsewhere/beats"})):
        check(tmp_path / "s", ["a"])
    unknown = ABOUT | {"teacher_sha256": None}
    StoreWriter(tmp_path / "t", **unknown).close()
    with pytest.raises(ValueError, match=r"\(teacher .* there, beats here\)"):
        StoreWriter(tmp_path / "t", **(unknown | {"teacher": "beats"}))


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"teacher": ""}, "teacher='' must be a string"),
        ({"labels_sha256": None}, "labels_sha256=None must be a string"),
        ({"teacher_sha256": 1}, "teacher_sha256=1 must be a string or None"),
        ({"num_classes": 0}, "num_classes=0 must be an int of 1 or more"),
        ({"sample_rate": 32e3}, "sample_rate=32000.0 must be an int"),
        ({"clip_seconds": float("inf")}, "clip_seconds=inf must be above 0"),
    ],
)
def test_store_of_nonsense_is_refused(tmp_path, wrong, text):
    with pytest.raises(ValueError, match=text):
        StoreWriter(tmp_path / "s", **(ABOUT | wrong))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "clip_ids, logits, digests, text",
    [
        (["a"], np.zeros((1, 3)), None, "'a' is in .* already"),
        (["b", "b"], np.zeros((2, 3)), None, "'b' is in .* already"),
        (["b\t"], np.zeros((1, 3)), None, "without tabs"),
        (["b\n"], np.zeros((1, 3)), None, "without tabs"),
        (["\udc80"], np.zeros((1, 3)), None, "must be a string"),
        ([7], np.zeros((1, 3)), None, "must be a string"),
        ([""], np.zeros((1, 3)), None, "from 1 to 255 bytes"),
        (["b" * 256], np.zeros((1, 3)), None, "from 1 to 255 bytes"),
        ("b", np.zeros((1, 3)), None, "must be lists"),
        (["b"], np.zeros((1, 3)), ["x\n"], "without tabs"),
        (["b"], np.zeros((1, 3)), ["x" * 255], "from 1 to 255 bytes"),
        (["b"], np.zeros((1, 3)), [], "must be lists of the same length"),
        (["b"], np.zeros((1, 4)), None, r"shape \[1, 4\].* shape \[1, 3\]"),
        (["b"], np.zeros((2, 3)), None, r"shape \[2, 3\]"),
        (["b"], np.array([["x"] * 3]), None, "must be numbers"),
        (["b"], torch.tensor([[0.0, float("nan"), 0]]), None, "row 0 .* not finite"),
        (["b"], np.array([[0.0, -np.inf, 0]]), None, "row 0 .* not finite"),
    ],
)
def test_refused_append_writes_nothing(tmp_path, clip_ids, logits, digests, text):
    with StoreWriter(write(tmp_path / "s", ["a"]), **ABOUT) as writer:
        with pytest.raises(ValueError, match=text):
            writer.append(clip_ids, logits, digests)
        writer.append(["z"], rows_of(["z"]))
    check(tmp_path / "s", ["a", "z"])


def test_second_writer_is_refused(tmp_path):
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        with pytest.raises(ValueError, match="another process is writing"):
            StoreWriter(tmp_path / "s", **ABOUT)
        writer.append(["a"], rows_of(["a"]))
    check(write(tmp_path / "s", ["b"]), ["a", "b"])


def test_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a store"):
        StoreWriter(tmp_path, **ABOUT)
    with pytest.raises(ValueError, match="is a file"):
        StoreWriter(tmp_path / "notes.txt", **ABOUT)
    assert os.listdir(tmp_path) == ["notes.txt"]
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(FileNotFoundError, match="no logits store at"):
            LogitsStore(path)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"version": 2, "top_k": 2}, "version 2, and only version 1, which keeps all"),
        ({"format": "x"}, "is not the manifest"),
        ({"count": 3}, "logits_bytes=12 is not count=3"),
        ({"count": "2"}, "count='2' must be an int"),
        ({"count": 3, "logits_bytes": 18}, "has 12 bytes, not the 18 in the manifest"),
        ({"clips_bytes": 7}, "has 6 bytes, not the 7 in the manifest"),
        ({"clips_bytes": 5}, "is not 2 lines"),
    ],
)
def test_damaged_store_is_refused(tmp_path, change, text):
    manifest = write(tmp_path / "s", ["a", "b"]) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ValueError, match=text):
        LogitsStore(tmp_path / "s")


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("manifest.json", b'{"form', "is not the manifest"),
        ("manifest.json", b"[]", "is not the manifest"),
        ("manifest.json", b'{"format": "logits store", "version": 1}', "lacks teacher"),
        ("logits.f16", b"", "has 0 bytes"),
        ("clips.tsv", b"a\t\na\t\n", "has clip 'a' twice"),
        ("clips.tsv", b"\t\nab\t\n", "is not 2 lines"),
        ("clips.tsv", b"a\n\tb\t\n", "is not 2 lines"),
        ("clips.tsv", b"\xff\t\nb\t\n", "is not 2 lines .*utf-8.* rebuild the store"),
        ("manifest.json", b"[" * 100_000, "is not the manifest"),
        ("manifest.json", b'{"a":' * 100_000, "is not the manifest"),
        ("manifest.json", b"1" * 5000, "is not the manifest"),
    ],
)
def test_store_of_damaged_files_is_refused(tmp_path, name, content, text):
    (write(tmp_path / "s", ["a", "b"]) / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        LogitsStore(tmp_path / "s")


@pytest.mark.parametrize("name", ["manifest.json", "logits.f16", "clips.tsv"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_a_store_of_what_is_no_file_is_refused(tmp_path, name, kind):
    path = write(tmp_path / "s", ["a", "b"]) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name if kind == "loop" else "/dev/null")
    with pytest.raises(ValueError, match=f"{name} is neither a file nor a link to one"):
        LogitsStore(tmp_path / "s")


def test_a_store_of_links_to_files_is_read(tmp_path):
    write(tmp_path / "s", ["a", "b"])
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "s").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    assert "a" in LogitsStore(tmp_path / "links")


def test_a_manifest_of_any_length_is_refused(tmp_path):
    manifest = write(tmp_path / "s", ["a", "b"]) / "manifest.json"
    os.truncate(manifest, 1 << 30)
    with pytest.raises(ValueError, match="has at most 1048576"):
        LogitsStore(tmp_path / "s")


def test_clips_that_take_no_room_are_not_read_whole(tmp_path):
    manifest = write(tmp_path / "s", ["a", "b"]) / "manifest.json"
    os.truncate(tmp_path / "s" / "clips.tsv", 10**9)
    many = json.loads(manifest.read_text()) | {"clips_bytes": 10**9}
    manifest.write_text(json.dumps(many))
    message = r"clips.tsv is not 2 lines .* so it is corrupt"
    with memory_limit(3 * 10**8), pytest.raises(ValueError, match=message) as refusal:
        LogitsStore(tmp_path / "s")
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("classes", ["x" * 10**5, 2**30 - 1], ids=["long", "many"])
def test_classes_that_nobody_has_are_refused_in_short(tmp_path, classes):
    manifest = write(tmp_path / "s", ["a", "b"]) / "manifest.json"
    none = {"num_classes": classes, "count": 0, "logits_bytes": 0, "clips_bytes": 0}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | none))
    with pytest.raises(ValueError, match="num_classes=") as refusal:
        LogitsStore(tmp_path / "s")
    assert len(str(refusal.value)) < 500


def test_store_that_is_cut_while_it_is_open_is_refused(tmp_path):
    write(tmp_path / "s", ["a", "b"])
    store = LogitsStore(tmp_path / "s")
    os.truncate(tmp_path / "s" / "logits.f16", 0)
    with pytest.raises(OSError, match=r"logits.f16 now has only 0 of 12 bytes"):
        store.lookup(["a", "b"])


@pytest.mark.parametrize("clip_ids", ["abc", [1, 2], [b"a"]])
def test_lookup_of_no_strings_is_refused(tmp_path, clip_ids):
    with pytest.raises(ValueError, match="must be a list of strings"):
        LogitsStore(write(tmp_path / "s", ["a"])).lookup(clip_ids)
