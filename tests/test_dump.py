"""Dumps: every clip once, the same logits by any number of processes and after any
interruption, and a sentence for what cannot be done."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from small_rows import LABELS, SAMPLE_RATE, TRAIN_IDS, damaged, write_parquet
from torch import nn

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.bring_your_own import OwnTeacher
from efficientat_plugin.teachers.store.dump import (
    batches_to_score,
    fill_store,
    store_logits,
)
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter

ABOUT = {
    "teacher": "sums",
    "labels_sha256": LABELS.sha256,
    "num_classes": 3,
    "sample_rate": SAMPLE_RATE,
    "clip_seconds": 0.5,
}


class Sums(nn.Module):
    """Logits that a clip's samples determine; counts the clips of each batch."""

    sample_rate, num_classes = SAMPLE_RATE, 3

    def __init__(self, stop_after=None, scale=1.0):
        super().__init__()
        self.sizes, self.stop_after, self.scale = [], stop_after, scale

    def forward(self, waveform):
        if len(self.sizes) == self.stop_after:
            raise KeyboardInterrupt
        self.sizes.append(len(waveform))
        logits = self.scale * waveform[:, :48].unflatten(1, (3, 16)).sum(dim=2)
        return StudentOutput(logits, logits.new_zeros(len(logits), 0))


def dump(path, rows, reader, teacher=None, **options):
    with StoreWriter(path, **ABOUT) as writer:
        options = {"batch_size": 2, "stored": LogitsStore(path), **options}
        return store_logits(writer, teacher or Sums(), rows, reader, **options)


class Group:
    """A process group whose processes are threads."""

    def __init__(self, size):
        self.parts, self.barrier = [None] * size, threading.Barrier(size, timeout=60)
        self.of_thread = threading.local()
        self.left = []  # an entry for each process that has left a gathering

    def rank(self):
        return self.of_thread.rank

    def size(self):
        return len(self.parts)

    def gather(self, found, part):
        self.parts[self.rank()] = part
        self.barrier.wait()
        found[:] = self.parts
        self.barrier.wait()
        self.left.append(self.rank())

    def stop(self):
        """Ends the gatherings to come, once all have left the last one."""
        while len(self.left) % self.size():
            time.sleep(0.001)
        self.barrier.abort()


@pytest.fixture
def dump_by(monkeypatch):
    """Dumps by several processes; returns the clips that each scored."""
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda found, part, group: group.gather(found, part),
    )

    def dump_all(size, path, load, reader, stop_after=None, **options):
        group, writer = Group(size), StoreWriter(path, **ABOUT)
        stored = LogitsStore(path)
        teachers = [Sums(stop_after) for _ in range(size)]

        def work(rank):
            group.of_thread.rank = rank
            try:
                store_logits(
                    None if rank else writer,
                    teachers[rank],
                    load(),
                    reader,
                    stored=stored,
                    batch_size=2,
                    everyone=group,
                    **options,
                )
            except KeyboardInterrupt:
                group.stop()
            except threading.BrokenBarrierError:
                assert stop_after is not None

        with writer, ThreadPoolExecutor(size) as pool:
            list(pool.map(work, range(size)))
        return [sum(teacher.sizes) for teacher in teachers]

    return dump_all


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def logits_of(path, clip_ids=tuple(TRAIN_IDS)):
    store = LogitsStore(path)
    target = store.lookup(list(clip_ids))
    assert target.known.all() and len(store) == len(clip_ids)
    return target.logits


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    dump(path, rows, ClipReader(LABELS, 0.5, SAMPLE_RATE))
    return path


# --- Processes and interruptions ----------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_write_what_one_writes(
    rows, reader, expected, tmp_path, capsys, dump_by, size
):
    scored = dump_by(size, tmp_path / "s", lambda: rows, reader)
    assert sum(scored) == 8 and max(scored) <= 2 * -(-4 // size)
    assert contents(tmp_path / "s") == contents(expected)
    assert capsys.readouterr().out.count("0 of 8 clips are stored already") == 1


@pytest.mark.parametrize("before, after", [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_processes_resumes(
    rows, reader, expected, tmp_path, dump_by, before, after
):
    path = tmp_path / "s"
    dump_by(before, path, lambda: rows, reader, stop_after=1)
    stored = len(LogitsStore(path))
    assert stored == min(2 * before, 8)
    assert sum(dump_by(after, path, lambda: rows, reader)) == 8 - stored  # none twice
    assert contents(path) == contents(expected)


def test_an_interrupted_dump_ends_like_an_undisturbed_one(
    rows, reader, expected, tmp_path
):
    for stop_after in (1, 2, None):
        try:
            dump(tmp_path / "s", rows, reader, Sums(stop_after))
        except KeyboardInterrupt:
            assert stop_after is not None
    assert contents(tmp_path / "s") == contents(expected)
    teacher = Sums()
    dump(tmp_path / "s", rows, reader, teacher)
    assert not teacher.sizes


def test_batches_do_not_depend_on_what_is_stored():
    first = np.array([0, 1, 3, 4, 5, 7, 8])
    known = np.isin(first, [4, 5, 7])
    whole = batches_to_score(first, np.zeros(7, bool), 3)
    assert [batch.tolist() for batch in whole] == [[0, 1, 3], [4, 5, 7], [8]]
    rest = batches_to_score(first, known, 3)
    assert [batch.tolist() for batch in rest] == [[0, 1, 3], [8]]
    assert batches_to_score(first, np.ones(7, bool), 3) == []


def test_a_repeated_row_is_scored_once(rows, reader, expected, tmp_path, capsys):
    twice = datasets.concatenate_datasets([rows, rows])
    dump(tmp_path / "s", twice, reader)
    assert "8 rows repeat the video_id of another" in capsys.readouterr().out
    assert contents(tmp_path / "s") == contents(expected)


def test_unreadable_clips_do_not_change_the_batches(train_rows, reader, tmp_path):
    broken = [damaged(r) if n == 1 else r for n, r in enumerate(train_rows)]
    write_parquet(tmp_path / "train.parquet", broken)
    rows = load_rows(str(tmp_path), "train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips"):
        dump(tmp_path / "whole", rows, reader)
    with pytest.raises(KeyboardInterrupt):
        dump(tmp_path / "s", rows, reader, Sums(stop_after=2))
    teacher = Sums()
    dump(tmp_path / "s", rows, reader, teacher, max_unreadable_share=0.2)
    assert teacher.sizes == [2, 2]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    # When nothing else is left to score, they are no larger share.
    dump(tmp_path / "s", rows, reader, max_unreadable_share=0.2)
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips"):
        dump(tmp_path / "s", rows, reader, max_unreadable_share=0.1)


def test_a_teacher_or_sound_that_changed_is_refused(rows, tmp_path, caplog):
    def fill(scale, some=rows):
        teacher = Sums(scale=scale)
        ensemble = Ensemble([teacher]).eval()
        about = {"clip_seconds": 0.5, "batch_size": 4}
        fill_store(tmp_path / "s", "sums", ensemble, LABELS, some, **about)
        return sum(teacher.sizes)

    assert fill(1.0, rows.select([0, 1, 2])) == 3
    assert fill(1.01) == 5 + 2  # as another precision, or another device, would
    for scale in (50.0, np.nan):
        with pytest.raises(ValueError, match="differ from what the teacher computes"):
            fill(scale)
    others = [row | {"audio": rows[7]["audio"]} for row in rows]
    with pytest.raises(ValueError, match="7 of the 8 clips .*use another store"):
        fill(1.0, datasets.Dataset.from_list(others))
    one = datasets.Dataset.from_list([others[0], *list(rows)[1:]])
    caplog.clear()
    assert fill(1.0, one) == 2
    assert "1 of the 8 clips compared have changed" in caplog.text


# --- Streams ------------------------------------------------------------------------


@pytest.fixture
def stream(train_rows, tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", train_rows[:5])
    write_parquet(tmp_path / "data" / "train-1.parquet", train_rows[5:])

    def load(split="train"):
        return load_rows(str(tmp_path / "data"), split, True)

    return load


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stream_is_stored_like_a_map(
    stream, reader, expected, tmp_path, dump_by, size
):
    dump_by(size, tmp_path / "s", stream, reader, num_clips=8)
    assert torch.equal(logits_of(tmp_path / "s"), logits_of(expected))


def test_clips_that_a_stream_repeats_are_stored_once(stream, expected, tmp_path):
    class Counting(ClipReader):
        read_ids: list[str] = []

        def read(self, row):
            self.read_ids.append(row["video_id"])
            return super().read(row)

    reader = Counting(LABELS, 0.5, SAMPLE_RATE)
    with pytest.raises(KeyboardInterrupt):
        dump(tmp_path / "s", stream(), reader, Sums(stop_after=1))
    stored, reader.read_ids = TRAIN_IDS[:2], []
    scored = dump(tmp_path / "s", stream("train+train"), reader, batch_size=4)
    assert not set(stored) & set(reader.read_ids)  # they are not even decoded
    assert dict(scored).keys() == set(TRAIN_IDS[2:])
    assert dict(scored)[TRAIN_IDS[5]] == [0, 1]  # its classes, for verify
    assert torch.equal(logits_of(tmp_path / "s"), logits_of(expected))


def test_the_clips_to_verify_are_an_even_sample(stream, reader, tmp_path, monkeypatch):
    monkeypatch.setattr("efficientat_plugin.teachers.store.verify.MAX_SAMPLE", 3)
    scored = dump(tmp_path / "s", stream(), reader, batch_size=1)
    assert [clip for clip, _ in scored] == TRAIN_IDS[::4]


def test_a_stream_names_what_it_cannot_read(train_rows, reader, tmp_path):
    broken = [damaged(r) if n == 6 else r for n, r in enumerate(train_rows)]
    write_parquet(tmp_path / "train.parquet", broken)
    rows = load_rows(str(tmp_path), "train", True)
    with pytest.raises(TooManyUnreadable, match="1 of 8 clips.*\n.*-_train-006"):
        dump(tmp_path / "s", rows, reader)
    assert len(LogitsStore(tmp_path / "s")) == 7


# --- Refusals: what was computed before is kept -------------------------------------


class Failing(Sums):
    def __init__(self, spoil, in_batch=2):
        super().__init__()
        self.spoil, self.in_batch = spoil, in_batch

    def forward(self, waveform):
        output = super().forward(waveform)
        return self.spoil(output) if len(self.sizes) == self.in_batch else output


def not_a_number(output):
    output.logits[1, 2] = torch.nan
    return output


def out_of_memory(_output):
    raise torch.OutOfMemoryError("CUDA out of memory")


def too_short(_output):
    raise ValueError("this teacher needs 10 s; set clip_seconds=10")


def one_class_more(output):
    return output._replace(logits=output.logits[:, [0, 1, 2, 2]])


@pytest.mark.parametrize(
    "spoil, text",
    [
        (not_a_number, "clip '-_train-003', is not finite"),
        (out_of_memory, "a batch of 2 clips does not fit .* pass --batch_size 1"),
        (too_short, "needs 10 s; set clip_seconds=10"),
        (one_class_more, r"shape \[2, 4\].* must be numbers of shape \[2, 3\]"),
    ],
)
def test_a_failure_loses_nothing(rows, reader, expected, tmp_path, spoil, text):
    with pytest.raises(ValueError, match=text):
        dump(tmp_path / "s", rows, reader, Failing(spoil))
    assert len(LogitsStore(tmp_path / "s")) == 2
    dump(tmp_path / "s", rows, reader)
    assert contents(tmp_path / "s") == contents(expected)


def test_a_smaller_batch_than_one_is_not_advised(rows, reader, tmp_path):
    with pytest.raises(ValueError, match="a batch of 1 .* use a larger device"):
        dump(tmp_path / "s", rows, reader, Failing(out_of_memory), batch_size=1)


@pytest.mark.parametrize(
    "precision, text", [("fp16", "fp16 needs a GPU"), ("fp8", "must be one of fp32")]
)
def test_a_precision_that_the_device_lacks_is_refused(rows, tmp_path, precision, text):
    about = {"clip_seconds": 0.5, "precision": precision}
    with pytest.raises(ValueError, match=text):
        fill_store(tmp_path / "s", "sums", Ensemble([Sums()]), LABELS, rows, **about)
    assert not (tmp_path / "s").exists()


def test_bfloat16_gives_about_the_same(rows, reader, tmp_path):
    network = nn.Sequential(nn.AdaptiveMaxPool1d(64), nn.Linear(64, 3))
    teacher = OwnTeacher(network, SAMPLE_RATE, LABELS)
    for precision in ("fp32", "bf16"):
        dump(tmp_path / precision, rows, reader, teacher, precision=precision)
    one, other = (logits_of(tmp_path / name) for name in ("fp32", "bf16"))
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.05)
