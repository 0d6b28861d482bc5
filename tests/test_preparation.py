"""Prepared data: the same clips, whatever the codec and whatever interrupts."""

import contextlib
import errno
import os
import signal
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from recipe_runs import REPOSITORY, RecipeProcess, arguments_of, launch, run_recipe
from servers import DATASET, local_hub
from small_rows import (
    EVAL_IDS,
    LABELS,
    SAMPLE_RATE,
    TRAIN_IDS,
    assert_equal,
    damaged,
    noise,
    rows_of,
    write_parquet,
)

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader, decode
from efficientat_plugin.data.labelled import open_labelled
from efficientat_plugin.data.parquet import audioset_row
from efficientat_plugin.data.prepare import preparation, shards
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.preparation import prepare
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.support import locks


def _stored(folder):
    """Every file of a folder, those of the state included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three files of a train split, one of an eval split."""
    folder = tmp_path_factory.mktemp("source")
    rows = rows_of(TRAIN_IDS)
    for number, part in enumerate((rows[:3], rows[3:6], rows[6:])):
        write_parquet(folder / "data" / "train" / f"{number}.parquet", part)
    write_parquet(folder / "data" / "eval" / "0.parquet", rows_of(EVAL_IDS))
    return folder


def _splits(source, streaming=False):
    return {
        name: load_rows(str(source), name, streaming, more_columns=["human_labels"])
        for name in ("train", "eval")
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_what_was_prepared_reads_as_the_source_did(streaming, source, tmp_path, reader):
    done = prepare(_splits(source, streaming), ClipEncoder(), tmp_path / "it", 2)
    assert done.num_clips == done.num_new == 10
    assert done.seconds == pytest.approx(5) and done.bytes_in == done.bytes_out
    for name in ("train", "eval"):
        before = load_rows(str(source), name)
        for after in (load_rows(str(done.folder), name, s) for s in (False, True)):
            for one, other in zip(before, after, strict=True):
                assert_equal(reader.read(one), reader.read(other))
    assert pq.read_table(done.folder / "data" / "train").column_names == [
        "video_id",
        "audio",
        "labels",
        "human_labels",
    ]
    clips = Clips(load_rows(str(done.folder), "train"), ClipReader(LABELS, 0.5))
    assert clips[7].clip_id == TRAIN_IDS[7]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_run_that_is_killed_anywhere_ends_as_one_that_is_not(
    streaming, source, tmp_path, monkeypatch
):
    def run(name, num_proc=1):
        splits = _splits(source, streaming)
        return prepare(splits, ClipEncoder("mp3"), tmp_path / name, 2, num_proc).folder

    class Killed(BaseException):
        pass

    def killing(call, countdown):
        def once_more(*args):
            nonlocal countdown
            countdown -= 1
            if countdown < 0:
                raise Killed
            return call(*args)

        return once_more

    whole = _stored(run("whole"))
    # The options take their name first, then 5 shards, and then their number.
    for encoded, renamed in [(0, 9), (1, 9), (5, 9), (9, 0), (9, 1), (9, 2), (9, 6)]:
        name = f"killed-{encoded}-{renamed}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing(os.replace, renamed))
            patch.setattr(ClipEncoder, "encode", killing(ClipEncoder.encode, encoded))
            with pytest.raises(Killed):
                run(name)
        assert not (tmp_path / name).exists()
        assert _stored(run(name, num_proc=2 if encoded == 5 else 1)) == whole


class _Killed(ClipEncoder):
    """As if there were not enough memory for one clip."""

    def encode(self, audio):
        if TRAIN_IDS[5] in audio["path"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(audio)


def test_a_killed_worker_ends_the_run_in_a_sentence(source, tmp_path):
    with pytest.raises(OSError, match="one of 2 processes was killed, perhaps"):
        prepare(_splits(source), _Killed(), tmp_path / "it", 2, num_proc=2)
    resumed = prepare(_splits(source), ClipEncoder(), tmp_path / "it", 2)
    assert 0 < resumed.num_new <= resumed.num_clips == 10


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_finished_shards_are_not_made_again(streaming, source, tmp_path, monkeypatch):
    folder = tmp_path / "it"
    prepare(_splits(source, streaming), ClipEncoder(), folder, 2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    monkeypatch.setattr(ClipEncoder, "encode", None)
    again = prepare(_splits(source, streaming), ClipEncoder(), folder, 2)
    assert again.num_clips == 10 and again.num_new == 0
    assert "nothing was left to do" in str(again)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _turn_a_bit(path):
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(bytes(content))


def _lose_a_clip(path):
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("harm", [_cut, _turn_a_bit, _lose_a_clip, os.remove])
def test_what_was_damaged_is_named_and_written_again(
    harm, streaming, source, tmp_path, caplog
):
    folder = tmp_path / "it"
    prepare(_splits(source, streaming), ClipEncoder(), folder, 2)
    whole = _stored(folder)
    harm(folder / "data" / "train" / "00002.parquet")
    if harm is _turn_a_bit:
        rows = _splits(source, streaming)
        left = prepare(rows, ClipEncoder(), folder, 2, verify=False)
        assert left.num_new == 0 and not caplog.records
    again = prepare(_splits(source, streaming), ClipEncoder(), folder, 2)
    assert again.num_new == 2 and _stored(folder) == whole
    if harm is not os.remove:
        assert len(caplog.records) == 1 and "train/00002.parquet is not" in caplog.text


def test_a_disk_that_keeps_nothing_is_reported(source, tmp_path, monkeypatch):
    def refuse(path, verify):
        raise ValueError("it is bad")

    monkeypatch.setattr(preparation, "read_summary", refuse)
    with pytest.raises(OSError, match="5 shards of .* differ from what .*; check"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "it", 2)


def test_unreadable_clips_are_named_counted_and_left_out(tmp_path, caplog):
    rows = rows_of(TRAIN_IDS)
    rows[1], rows[2] = damaged(rows[1]), {**rows[2], "video_id": ""}
    rows[4], rows[5] = damaged(rows[4]), damaged(rows[5])
    splits = {"train": datasets.Dataset.from_list(rows)}
    folder = tmp_path / "it"
    with pytest.raises(TooManyUnreadable, match="4 of 8 clips .* share of 0.01; fix"):
        prepare(splits, ClipEncoder(), folder, 2)
    assert not folder.exists()
    done = prepare(splits, ClipEncoder(), folder, 2, max_unreadable_share=0.5)
    assert done.num_skipped == 4 and done.num_clips == 4 and done.num_new == 0
    kept = [row["video_id"] for row in load_rows(str(folder), "train")]
    assert kept == [TRAIN_IDS[number] for number in (0, 3, 6, 7)]
    assert f"Skipping clip {TRAIN_IDS[4]}: not decodable" in caplog.text
    # The third shard has no clips, which readers of all kinds must not mind.
    assert [row["video_id"] for row in load_rows(str(folder), "train", True)] == kept
    assert read_table(folder)["video_id"][:] == kept


def test_other_options_or_clips_in_the_same_folder_are_refused(source, tmp_path):
    folder, splits = tmp_path / "it", _splits(source)
    prepare(splits, ClipEncoder(), folder, 2)
    for rows, encoder, size, message in [
        (splits, ClipEncoder("mp3"), 2, "codec flac there, mp3 here"),
        (splits, ClipEncoder(max_seconds=1), 2, "max_seconds null there, 1 here"),
        (splits, ClipEncoder(), 3, "clips_per_shard 2 there, 3 here"),
        (
            {"eval": splits["eval"]},
            ClipEncoder(),
            2,
            r"train\+eval there, eval here",
        ),
        (
            {"train": splits["train"], "eval": splits["train"]},
            ClipEncoder(),
            2,
            r"clips of eval 2 \(.*\) there, 8 \(.*\) here",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            prepare(rows, encoder, folder, size)
        assert "pass another --folder" in str(error.value)


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a prepared data set; delete"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "it")
    with pytest.raises(ValueError, match="splits eval have no clip to prepare"):
        empty = load_rows(str(source), "eval").select([])
        prepare({"eval": empty}, ClipEncoder(), tmp_path / "other")
    with pytest.raises(ValueError, match="num_proc=0 must be 1 or more"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "other", num_proc=0)
    with pytest.raises(ValueError, match="clips_per_shard=0 must be 1 or more"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "other", 0)


def test_two_runs_do_not_write_one_folder(source, tmp_path):
    state = tmp_path / "it.partial" / preparation.STATE
    state.mkdir(parents=True)
    lock = locks.lock_folder(state, "")
    with pytest.raises(ValueError, match="another process is writing"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "it")
    lock.release()
    prepare(_splits(source), ClipEncoder(), tmp_path / "it")


def test_names_of_clips_are_no_paths(tmp_path):
    ids = ["../../up", "/etc/up", "a/../../b", "..", "\x1b[2J", "a\nb", "<b>", "=1+1"]
    rows = [
        row | {"audio": row["audio"] | {"path": i}}
        for i, row in zip(ids, rows_of(ids), strict=True)
    ]
    write_parquet(tmp_path / "in" / "data" / "train" / "0.parquet", rows)
    before = set(tmp_path.rglob("*"))
    prepare(_splits_of(tmp_path / "in"), ClipEncoder("flac"), tmp_path / "out")
    made = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in made)
    assert not any(name in path.name for name in ids[3:] for path in made)
    again = load_rows(str(tmp_path / "out"), "train")
    assert again["video_id"][:] == ids


def _splits_of(folder):
    return {"train": load_rows(str(folder), "train", more_columns=["human_labels"])}


def test_a_full_disk_and_a_closed_folder_are_reported_in_a_sentence(
    source, tmp_path, monkeypatch
):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written .*No space left.*make room"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "it")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written .*Not a directory"):
        prepare(_splits(source), ClipEncoder(), tmp_path / "file" / "it")


def test_a_table_keeps_its_columns_and_opens_without_options(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    lines = ["filename,category,fold,src_file"]
    for number in range(6):
        name = f"{number}.{'wav' if number % 2 else 'flac'}"
        soundfile.write(folder / name, noise(number, 4410), 44100)
        lines.append(f"{name},{'dog' if number < 3 else 'cat'},{number % 3},{number}")
    (folder / "clips.csv").write_text("\n".join(lines))
    before = open_labelled(folder, {"fold_column": "fold", "group_column": "src_file"})
    done = prepare({"all": before.rows}, ClipEncoder(), tmp_path / "it", 4)
    after = open_labelled(done.folder, {})
    assert after.labels.mids == before.labels.mids and after.target == before.target
    for column in ("video_id", "labels", "group", "fold"):
        assert list(after.rows[column]) == list(before.rows[column])
    reader = ClipReader(before.labels, 0.1)
    for one, other in zip(before.rows, after.rows, strict=True):
        difference = reader.read(one).waveform - reader.read(other).waveform
        assert difference.abs().max() < 0.51 / 32768


def test_clips_without_labels_and_judgements_open_again_too(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in ("a.wav", "a.flac", "b.wav"):
        soundfile.write(folder / name, noise(1, 3200), SAMPLE_RATE)
    sounds = open_labelled(folder, {}, form="sounds").rows
    done = prepare({"all": sounds}, ClipEncoder(), tmp_path / "unlabelled")
    again = open_labelled(done.folder, {}, form="sounds").rows
    assert list(again["video_id"]) == list(sounds["video_id"])
    assert sorted(again["video_id"]) == ["a.flac", "a.wav", "b"]

    rows = rows_of(["c", "d"])
    judged = [row | {"judged": ["/m/a", "/m/b"], "split": "test"} for row in rows]
    rows = datasets.Dataset.from_list(judged)
    done = prepare({"all": rows}, ClipEncoder(), tmp_path / "judged")
    opened = open_labelled(done.folder, {}).rows
    assert opened["judged"][:] == [["/m/a", "/m/b"]] * 2
    assert opened["split"][:] == ["test"] * 2


@pytest.mark.slow
def test_real_clips_prepared_decode_as_before(shared, tmp_path):
    dataset = str(shared / "data" / "audioset_schema")
    call = arguments_of(
        "prepare_data",
        dataset=dataset,
        split="eval",
        folder=str(tmp_path / "it"),
        dataset_cache=str(tmp_path / "cache"),
        clips_per_shard=50,
        num_proc=1,
    )
    printed = run_recipe("prepare_data", [call, call])
    assert "131 clips, 0.18 hours, 6.6 MB became" in printed
    assert "131 clips now" in printed and "nothing was left to do" in printed
    before = load_rows(dataset, "eval", cache_dir=str(tmp_path / "cache"))
    after = load_rows(str(tmp_path / "it"), "eval")
    assert after["video_id"][:] == before["video_id"][:]
    assert after["labels"][:] == before["labels"][:]
    for number in range(0, 131, 10):
        one, other = (
            decode(rows[number]["audio"], SAMPLE_RATE, 160000)
            for rows in (before, after)
        )
        assert np.abs(np.clip(one, -1, 1) - other).max() < 1.01 / 32768


def wait_for_end_of_group(pid):
    end = time.monotonic() + 120
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(pid, 0)
            time.sleep(0.01)
        raise AssertionError("the workers of a killed recipe do not end")


@pytest.mark.slow
def test_a_killed_recipe_resumes_and_ctrl_c_prints_how(source, tmp_path):
    # Too long for the pipe between the processes, where workers wait when killed.
    sounds = [noise(number, 3 * SAMPLE_RATE) for number in range(300)]
    rows = [audioset_row(f"{n}", it, SAMPLE_RATE) for n, it in enumerate(sounds)]
    write_parquet(tmp_path / "source" / "train.parquet", rows)
    recipe = REPOSITORY / "recipes" / "prepare_data.py"
    call = arguments_of(
        "prepare_data",
        dataset=str(tmp_path / "source"),
        split="train",
        folder="killed",
        dataset_cache=str(tmp_path / "cache"),
        codec="int16",
        clips_per_shard=1,
        num_proc=2,
    )

    def num_shards():
        return len(list((tmp_path / "killed.partial").glob("data/train/*")))

    for kill in (signal.SIGKILL, signal.SIGINT):
        before = num_shards()
        process = RecipeProcess([recipe, *call], tmp_path)
        while num_shards() == before:
            assert process.poll() is None, process.wait()
            time.sleep(0.01)
        if kill == signal.SIGKILL:
            os.kill(process.pid, kill)  # its workers notice by themselves
        else:
            os.killpg(process.pid, kill)  # as a terminal does
        printed = process.wait()
        assert process.poll() != 0
        # Or a shard of its workers were taken for one of the next process.
        wait_for_end_of_group(process.pid)
        assert not (tmp_path / "killed").exists()
    assert "Interrupted; rerun the same command to resume." in printed
    assert "Traceback" not in printed
    more = ["human_labels"]
    train = load_rows(str(tmp_path / "source"), "train", more_columns=more)
    for name in ("killed", "whole"):
        prepare({"train": train}, ClipEncoder("int16"), tmp_path / name, 1)
    assert _stored(tmp_path / "killed") == _stored(tmp_path / "whole")


CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train/*.parquet}
---
"""


@pytest.mark.slow
def test_a_hubs_stream_is_prepared_like_its_files(tmp_path):
    """Which never come to lie here."""
    source, home = tmp_path / "source", tmp_path / "home"
    rows = rows_of(TRAIN_IDS)
    for number, some in enumerate((rows[:5], rows[5:])):
        write_parquet(source / "data" / "train" / f"{number}.parquet", some)
    (source / "README.md").write_text(CARD)
    options = {"split": "train", "streaming": True, "clips_per_shard": 2}
    options |= {"dataset_cache": home, "num_proc": 1}
    here = arguments_of(
        "prepare_data", dataset=source, folder=tmp_path / "here", **options
    )
    run_recipe("prepare_data", [here])
    afar = arguments_of(
        "prepare_data", dataset=DATASET, folder=tmp_path / "afar", **options
    )
    recipe = REPOSITORY / "recipes" / "prepare_data.py"
    with local_hub(source) as variables:
        printed = launch(recipe, *afar, HF_HOME=str(home), **variables)
    assert "8 clips now" in printed
    assert _stored(tmp_path / "afar") == _stored(tmp_path / "here")
    assert not list(home.rglob("*.parquet")) and not list(home.rglob("*.arrow"))


@pytest.mark.slow
def test_the_recipe_refuses_in_a_sentence(tmp_path):
    calls = [
        arguments_of("prepare_data"),
        arguments_of("prepare_data", dataset="nowhere", streaming=True),
        arguments_of("prepare_data", dataset="nowhere", codec="opus"),
        arguments_of("prepare_data", dataset=str(tmp_path), split="eval"),
    ]
    printed = run_recipe("prepare_data", calls, expect=1)
    assert "--dataset is needed" in printed
    assert "--streaming True needs --split" in printed
    assert "codec=opus does not support sample_rate=32000" in printed
    assert "holds no split 'eval'" in printed
    assert "Traceback" not in printed
