"""Stores of logits: what is written is read, what is killed is cut off, and what
belongs to other clips is found out."""

import functools
import json
import os
import pickle
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientat_plugin.data.clip_ids import youtube_id
from efficientat_plugin.teachers.store.import_published import import_published
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import verify
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
    """Logits that a clip's id determines: what is read tells whose it is."""
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


# Round trips


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


def test_manifest_says_whose_logits_they_are(tmp_path):
    manifest = LogitsStore(write(tmp_path / "s", ["a"])).manifest
    assert vars(manifest).items() >= (ABOUT | {"count": 1}).items()


def test_a_store_of_all_logits_is_as_the_first_release_wrote_it(tmp_path):
    entries = json.loads((write(tmp_path / "s", ["a"]) / "manifest.json").read_text())
    assert entries["version"] == 1 and "short_clips" not in entries


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


# Appending and being killed


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
        aside = path / "manifest.json.partial"
        aside.write_bytes(manifest[: draw.randint(0, len(manifest))])
        check(path, ["a", "b"])
        check(write(path, ["e"]), ["a", "b", "e"])


def test_store_killed_before_its_first_commit_can_be_written(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "logits.f16").touch()
    (tmp_path / "s" / "manifest.json.partial").write_text("{")
    check(write(tmp_path / "s", ["a"]), ["a"])


# In a process of its own, which forks: this one has threads.
APPEND_AND_BE_KILLED = """
import os, random, signal, sys, time
import numpy as np
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

def append_for_ever():
    writer = StoreWriter(sys.argv[1], teacher="t", labels_sha256="l", num_classes=500,
                         sample_rate=32000, clip_seconds=10.0)
    while True:
        numbers = np.arange(len(writer), len(writer) + 50)
        rows = np.repeat(numbers[:, None] % 1000, 500, axis=1)
        writer.append([f"clip{i}" for i in numbers], rows)

draw = random.Random(0)
for _ in range(12):
    child = os.fork()
    if not child:
        append_for_ever()
    time.sleep(draw.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not os.path.exists(f"{sys.argv[1]}/manifest.json"):
        continue
    store = LogitsStore(sys.argv[1])
    target = store.lookup([f"clip{i}" for i in range(len(store))])
    expected = np.arange(len(store))[:, None] % 1000
    assert len(store) % 50 == 0 and target.known.all()
    assert (target.logits.numpy() == expected).all()
print(len(store))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows lacks")
def test_sigkilled_writer_leaves_a_store(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", APPEND_AND_BE_KILLED, tmp_path / "s"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 0


def test_a_long_append_does_not_hold_its_ids_as_strings(tmp_path, monkeypatch):
    monkeypatch.setattr("efficientat_plugin.teachers.store.writer.MAX_RECENT", 3)
    clip_ids = list("hgfedcba")
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        for number, clip_id in enumerate(clip_ids):
            assert writer.knows(clip_ids).tolist() == [n < number for n in range(8)]
            writer.append([clip_id], rows_of([clip_id]))
            assert len(writer._recent) <= 3
            with pytest.raises(ValueError, match="already"):
                writer.append([clip_ids[0]], rows_of(["h"]))
    check(tmp_path / "s", clip_ids)


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


# Refusals


@pytest.mark.parametrize(
    "other",
    [
        {"num_classes": 4},
        {"sample_rate": 16000},
        {"clip_seconds": 5.0},
        {"precision": "bf16"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_append_to_another_teachers_store_is_refused(tmp_path, other):
    write(tmp_path / "s", ["a"])
    ((name, value),) = other.items()
    message = rf"other logits \({name} .* there, {value} here\); .*--store"
    with pytest.raises(ValueError, match=message):
        StoreWriter(tmp_path / "s", **(ABOUT | other))
    check(tmp_path / "s", ["a"])


@pytest.mark.parametrize(
    ("other", "changed"),
    [({"teacher_sha256": None}, "weights"), ({"labels_sha256": "3" * 64}, "classes")],
)
def test_a_teacher_that_changed_is_told_by_its_digests(tmp_path, other, changed):
    write(tmp_path / "s", ["a"])
    value = next(iter(other.values()))
    here = "null" if value is None else f"of digest {value[:8]}"
    message = rf"\({changed} of digest .* there, {here} here\); .*--output_folder"
    with pytest.raises(ValueError, match=message):
        StoreWriter(tmp_path / "s", **(ABOUT | other))
    check(tmp_path / "s", ["a"])


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
    pytest.importorskip("fcntl")
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        with pytest.raises(ValueError, match="written by another process"):
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


# Are they the logits of these clips?


@functools.cache
def labelled_clips(count, num_classes=20, per_clip=2, seed=0):
    """Ids, and classes drawn as real ones are: a few of them nearly everywhere."""
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_classes + 1)
    return tuple(
        (
            f"c{clip}",
            draw.choice(
                num_classes,
                size=draw.integers(1, per_clip + 1),
                replace=False,
                p=weights / weights.sum(),
            ).tolist(),
        )
        for clip in range(count)
    )


def teacher_logits(clips, num_classes=20, separation=4.0, seed=1):
    """Normal scores, those of labelled classes higher: 0.954 gives an AUC of 0.75."""
    logits = np.random.default_rng(seed).normal(-5.0, 1.0, (len(clips), num_classes))
    for row, (_, classes) in enumerate(clips):
        logits[row, classes] += separation
    return logits.astype(np.float32)


def store_of(path, clips, logits, order=None):
    order = np.arange(len(clips)) if order is None else order
    about = ABOUT | {"num_classes": logits.shape[1]}
    with StoreWriter(path, **about) as writer:
        writer.append([clips[i][0] for i in order], logits[order])
    return LogitsStore(path)


def shift_from(logits, row):
    return np.concatenate([logits[:row], np.roll(logits[row:], 1, axis=0)])


@pytest.mark.parametrize("per_clip", [1, 4])
@pytest.mark.parametrize("count", [130, 5000])
def test_aligned_store_passes(tmp_path, count, per_clip):
    clips = labelled_clips(count, per_clip=per_clip)
    report = verify(store_of(tmp_path / "s", clips, teacher_logits(clips)), clips)
    report.raise_if_bad()
    assert report.coverage == 1 and report.labels_match is None and report.blocks >= 2
    assert str(report).startswith(f"ok: 100.0% of {count} clips stored")


@pytest.mark.parametrize("seed", range(8))
def test_weak_but_honest_teacher_passes(tmp_path, seed):
    clips = labelled_clips(1000, seed=seed)
    logits = teacher_logits(clips, separation=0.954, seed=seed + 100)
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_two_classes_of_which_one_prevails_suffice(tmp_path, share):
    present = np.random.default_rng(0).random(1000) < share
    clips = [(f"c{i}", [0] if p else [1]) for i, p in enumerate(present)]
    logits = teacher_logits(clips, num_classes=2, separation=2.0)
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()
    bad = store_of(tmp_path / "bad", clips, shift_from(logits, 0))
    with pytest.raises(ValueError, match="of other clips"):
        verify(bad, clips).raise_if_bad()


def test_data_set_sorted_by_class_passes(tmp_path):
    clips = [(f"c{i}", [i // 100]) for i in range(2000)]
    verify(store_of(tmp_path / "s", clips, teacher_logits(clips)), clips).raise_if_bad()


@pytest.mark.parametrize("separation", [1.5, 4.0])
@pytest.mark.parametrize("count", [130, 5000])
def test_store_off_by_one_is_refused(tmp_path, count, separation):
    clips = labelled_clips(count)
    logits = shift_from(teacher_logits(clips, separation=separation), 0)
    report = verify(store_of(tmp_path / "s", clips, logits), clips)
    assert report.aligned is False
    with pytest.raises(ValueError, match="seem to be of other clips.*rebuild the st"):
        report.raise_if_bad()


@pytest.mark.parametrize("count, start", [(130, 65), (5000, 2500), (5000, 4600)])
def test_stretch_off_by_one_is_refused_and_named(tmp_path, count, start):
    clips = labelled_clips(count)
    logits = shift_from(teacher_logits(clips), start)
    report = verify(store_of(tmp_path / "s", clips, logits), clips)
    assert report.bad_stretch is not None
    assert start - 1 <= int(report.bad_stretch.first[1:]) <= start + 100
    with pytest.raises(ValueError, match=f"from clip '{report.bad_stretch.first}' to"):
        report.raise_if_bad()


def test_stretch_of_the_store_shows_in_a_shuffled_data_set(tmp_path):
    clips = labelled_clips(5000)
    store = store_of(tmp_path / "s", clips, shift_from(teacher_logits(clips), 3000))
    shuffled = random.Random(0).sample(clips, len(clips))
    assert verify(store, shuffled).bad_stretch.order == "store"


def test_half_of_a_weak_teacher_off_by_one_is_refused(tmp_path):
    clips = labelled_clips(2000)
    logits = shift_from(teacher_logits(clips, separation=0.954), 1000)
    with pytest.raises(ValueError, match="of other clips"):
        verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


def test_classes_in_another_order_are_refused(tmp_path):
    clips = labelled_clips(1000)
    logits = np.roll(teacher_logits(clips), 3, axis=1)
    with pytest.raises(ValueError, match="order of its classes"):
        verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


def test_label_tables_that_differ_are_refused(tmp_path):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    verify(store, clips, labels_sha256=ABOUT["labels_sha256"]).raise_if_bad()
    report = verify(store, clips, labels_sha256="9" * 64)
    with pytest.raises(ValueError, match="label tables of the store and the data"):
        report.raise_if_bad()
    assert str(report).startswith("bad: ") and "tables different" in str(report)


def test_another_number_of_classes_is_refused(tmp_path):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    verify(store, clips, num_classes=20).raise_if_bad()
    with pytest.raises(ValueError, match="has another number of classes than"):
        verify(store, clips, num_classes=21).raise_if_bad()


@pytest.mark.parametrize("labelled", [True, False])
def test_probabilities_are_refused(tmp_path, labelled):
    clips = labelled_clips(200)
    probabilities = 1 / (1 + np.exp(-teacher_logits(clips)))
    store = store_of(tmp_path / "s", clips, probabilities)
    clips = clips if labelled else [(name, []) for name, _ in clips]
    with pytest.raises(ValueError, match="numbers are from 0 to 1, so they are"):
        verify(store, clips).raise_if_bad()


@pytest.mark.parametrize("share", [0.25, 0.34, 0.6])
def test_scattered_rows_of_other_clips_are_not_plainly_ok(tmp_path, share):
    clips = labelled_clips(2000, num_classes=100)
    logits = teacher_logits(clips, num_classes=100)
    report = verify(store_of(tmp_path / "good", clips, logits), clips)
    assert str(report).startswith("ok: ") and report.pairs_right > 0.97
    draw = np.random.default_rng(5)
    wrong = np.flatnonzero(draw.random(len(clips)) < share)
    logits[wrong] = logits[draw.permutation(wrong)]
    report = verify(store_of(tmp_path / "bad", clips, logits), clips)
    assert abs(2 * (1 - report.pairs_right) - share) < 0.06
    assert str(report).startswith(("doubtful: ", "bad: "))


def test_low_coverage_is_refused(tmp_path):
    clips = labelled_clips(1000)
    store = store_of(tmp_path / "s", clips[:850], teacher_logits(clips[:850]))
    verify(store, iter(clips), minimum_coverage=0.85).raise_if_bad()
    message = f"^{re.escape(str(tmp_path))}/s: the store has 85.0% of 1000 clips,"
    with pytest.raises(ValueError, match=message):
        verify(store, clips).raise_if_bad()


@pytest.mark.parametrize(
    "labels_of, found",
    [
        (lambda clip, classes: classes if clip < 19 else [], 19),
        (lambda clip, classes: [3], 0),
    ],
    ids=["few", "alike"],
)
def test_too_few_labels_are_no_verdict(tmp_path, labels_of, found):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    clips = [(i, labels_of(n, classes)) for n, (i, classes) in enumerate(clips)]
    report = verify(store, clips)
    assert report.aligned is None
    report.raise_if_bad()  # nothing speaks against it
    assert re.search(f"^unjudged: .* only {found} clips .* and 20 are", str(report))


def test_constant_class_does_not_disturb(tmp_path):
    clips = labelled_clips(500)
    logits = teacher_logits(clips)
    logits[:, 2] = -7.0
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


@pytest.mark.parametrize(
    "clips, coverage, text",
    [
        ([], 0.9, "clips is empty"),
        ([("a", [3])], 0.9, "must be integers from 0 to 2"),
        ([("a", [-1])], 0.9, "must be integers from 0 to 2"),
        ([("a", [0.0, 1.0])], 0.9, "must be integers from 0 to 2"),
        ([("a", [1])], 90, "minimum_coverage=90 must be from 0 to 1"),
    ],
)
def test_verify_refuses_what_it_cannot_read(tmp_path, clips, coverage, text):
    store = LogitsStore(write(tmp_path / "s", ["a"]))
    with pytest.raises(ValueError, match=text):
        verify(store, clips, minimum_coverage=coverage)


# The published file


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


@pytest.mark.parametrize("places", [0x7FFF_FFFF, 0x00FF_FFFF])
def test_an_index_that_asks_for_memory_is_refused_at_once(tmp_path, places):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {})
    memo = b"r" + places.to_bytes(4, "little")  # of as many places
    files[1].write_bytes(b"\x80\x04}" + memo + b".")
    with pytest.raises(ValueError, match="is not a pickle of a plain dict"):
        import_published(*files, labels_sha256="l")


DOUBLED = b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(20))
LISTS = b"".join(b"]q%c(h%ch%ce0" % (i + 1, i, i) for i in range(20))


@pytest.mark.parametrize(
    "content",
    [
        b"K\x01\x85q\x000" + DOUBLED + b"}h\x14K\x01s.",
        b"]q\x00K\x01a0" + LISTS + b"}X\x01\0\0\0xh\x14s.",
        b"})" + b"\x85" * 1000 + b"K\x01s.",
        b"})" + b"2\x86" * 20 + b"K\x01s.",
        b"}q\x00\x94.",
    ],
    ids=["key", "row", "deep", "copied", "two memos"],
)
def test_an_index_of_time_without_end_is_refused(tmp_path, content):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {})
    files[1].write_bytes(b"\x80\x04" + content)
    with pytest.raises(ValueError, match="is not a pickle of a plain dict"):
        import_published(*files, labels_sha256="l")


@pytest.mark.parametrize(
    "row", [10**5000, -(10**30), [0] * 10**5, "\x1b" * 10**5], ids=range(4)
)
def test_a_row_of_any_length_is_shown_cut(tmp_path, row):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: row})
    with pytest.raises(ValueError, match="rows from 0 to 4") as refusal:
        import_published(*files, labels_sha256="l")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600


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


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_a_manifest_that_nests_without_end_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is not the manifest of a logits store"):
        LogitsStore(tmp_path)


@pytest.mark.parametrize("letter", [b"\xff", b"\xc3", b"\x80"])
def test_a_clip_that_is_no_text_is_damage(tmp_path, letter):
    with StoreWriter(tmp_path / "s", **ABOUT) as writer:
        writer.append(["abcd"], np.zeros((1, writer.manifest.num_classes), "f4"))
    path = tmp_path / "s" / "clips.tsv"
    path.write_bytes(path.read_bytes().replace(b"b", letter))
    with pytest.raises(ValueError, match="is not UTF-8.*rebuild the store"):
        LogitsStore(tmp_path / "s").clip(0)


NAMES = [f"Y{chr(97 + n) * 10}-.mp3" for n in range(5)]


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


@pytest.mark.parametrize(
    "content",
    [
        Crafted(eval, "1"),
        Crafted(getattr, "x", "upper"),
        Crafted(np.dtype, "O"),
        Crafted(np.dtype, "f8"),
        Crafted(np.dtype, {"names": ["a"], "formats": ["O"]}),
        np.float64(1.0),
        np.array([1, 2]),
        np.array([None], dtype=object),
        {1, 2}.union,
    ],
    ids=range(9),
)
def test_object_in_an_index_is_refused(tmp_path, content):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {NAMES[0]: content})
    with pytest.raises(ValueError, match="is not a pickle of a plain dict"):
        import_published(*files, labels_sha256="l")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x04",
        b"(" * 5000 + b".",
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",  # 2**64 bytes promised
        b"\x80\x04cnumpy\ndtype\n}}\x86b.",  # a state set on the class itself
        b"\x80\x04cnumpy\ndtype\n)\x81" + b"cnumpy.core.multiarray\nscalar\n"
        b"\x8c\x01x\x86R.",
    ],
)
def test_crafted_index_is_refused(tmp_path, content):
    files = publish(tmp_path, np.zeros((5, 2), "f4"), {})
    files[1].write_bytes(content)
    with pytest.raises(ValueError, match="is not a pickle of a plain dict"):
        import_published(*files, labels_sha256="l")


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


RECIPE = Path(__file__).resolve().parents[1] / "recipes/import_teacher_logits.py"
CLASSES = 527


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


def test_a_teacher_is_known_by_its_weights_and_else_by_its_name(tmp_path):
    write(tmp_path / "s", ["a"])
    with StoreWriter(tmp_path / "s", **(ABOUT | {"teacher": "elsewhere/beats"})):
        check(tmp_path / "s", ["a"])
    unknown = ABOUT | {"teacher_sha256": None}
    StoreWriter(tmp_path / "t", **unknown).close()
    with pytest.raises(ValueError, match=r"\(teacher .* there, beats here\)"):
        StoreWriter(tmp_path / "t", **(unknown | {"teacher": "beats"}))
