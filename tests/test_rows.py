"""Rows read alike from every form of the data."""

import io
import re
import time
import tracemalloc
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from small_rows import (
    EVAL_IDS,
    LABELS,
    SAMPLE_RATE,
    TRAIN_IDS,
    assert_equal,
    rows_of,
    write_parquet,
)

from efficientat_plugin.data.clip_ids import AUDIO_SUFFIXES
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.parquet import SCHEMA
from efficientat_plugin.data.rows import COLUMNS, load_rows, summarize_rows
from efficientat_plugin.data.tables import read_table


def _one_file(folder, split, rows):
    write_parquet(folder / f"{split}.parquet", rows)
    return folder / f"{split}.parquet"


def _in_parquet(pattern):
    def write(folder, split, rows):
        half = (len(rows) + 1) // 2
        for shard, part in enumerate((rows[:half], rows[half:])):
            write_parquet(folder / pattern.format(split=split, shard=shard), part)
        return folder

    return write


def _saved(folder, split, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / split))
    return folder / split


def _saved_by_split(folder, split, rows):
    part = datasets.DatasetDict({split: datasets.Dataset.from_list(rows)})
    part.save_to_disk(str(folder))
    return folder


def _saved_dataset(folder, split, part):
    part.save_to_disk(str(folder / split))
    return str(folder / split)


def _parquet_dataset(folder, split, part):
    """Whose metadata tell the names of its classes."""
    part.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


def _with_audio_feature(folder, split, rows):
    """As on the hub, where the file says that `datasets` should decode."""
    features = datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "audio": datasets.Audio(),
            "labels": datasets.List(datasets.Value("string")),
            "human_labels": datasets.List(datasets.Value("string")),
        }
    )
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    path = folder / "data" / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return folder


def _audio_files(folder, split, rows):
    names = ["Y{}.wav", "{}_30.000.flac", "{}.flac", "deeper/{}_0.wav"]
    header = (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2"
    )
    header += "\n# YTID, start_seconds, end_seconds, positive_labels\n"
    lines = ['absentclip0, 30.000, 40.000, "/m/a"\n']
    for number, row in enumerate(rows):
        file = folder / "audio" / names[number % len(names)].format(row["video_id"])
        file.parent.mkdir(parents=True, exist_ok=True)
        samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        soundfile.write(file, samples, SAMPLE_RATE)
        lines.append(f'{row["video_id"]}, 0.0, 10.0, "{",".join(row["labels"])}"\n')
    (folder / "audio" / "README.txt").write_text("not a clip")
    (folder / f"{split}_segments.csv").write_text(header + "".join(lines))
    return folder


FORMS = {
    "file": _one_file,
    "data_folders": _in_parquet("data/{split}/{shard}.parquet"),
    "split_folders": _in_parquet("{split}/{shard}.parquet"),
    "data_names": _in_parquet("data/{split}-0000{shard}-of-00002.parquet"),
    "names": _in_parquet("{split}-0000{shard}-of-00002.parquet"),
    "saved": _saved,
    "saved_by_split": _saved_by_split,
    "audio_feature": _with_audio_feature,
    "audio_files": _audio_files,
}


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_read_alike_from_every_form(form, streaming, train_rows, reader, tmp_path):
    # The official CSV has no clips without labels.
    labelled = [row for row in train_rows if row["labels"]]
    dataset = FORMS[form](tmp_path / "data set", "bal_train", labelled)
    if form not in ("file", "saved", "saved_by_split"):
        FORMS[form](tmp_path / "data set", "eval", rows_of(EVAL_IDS))
    loaded = load_rows(
        str(dataset), "bal_train", streaming, cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded, datasets.IterableDataset) == streaming
    found = list(loaded)
    assert [row["video_id"] for row in found] == [row["video_id"] for row in labelled]
    assert [row["labels"] for row in found] == [row["labels"] for row in labelled]
    for row, expected in zip(found, labelled, strict=True):
        assert set(row) == set(COLUMNS)
        assert_equal(reader.read(row), reader.read(expected))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("is_list", [False, True], ids=["one", "list"])
@pytest.mark.parametrize("form", [_saved_dataset, _parquet_dataset])
def test_class_numbers_become_the_names_that_are_kept_for_them(
    form, is_list, streaming, train_rows, tmp_path
):
    """Not numbers of another table, in whatever order this one has them."""
    kind = datasets.ClassLabel(names=["C", "/m/b", "a"])
    numbers = [0, 1, 2, -1, 0, 1, 2, -1]
    column = [[number] if is_list else number for number in numbers]
    feature = datasets.List(kind) if is_list else kind
    rows = [
        row | {"labels": labels} for row, labels in zip(train_rows, column, strict=True)
    ]
    audio = datasets.Features(
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    )
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    features = {"video_id": datasets.Value("string"), "audio": audio}
    part = datasets.Dataset.from_dict(
        columns, datasets.Features(features | {"labels": feature})
    )
    dataset = form(tmp_path, "train", part)
    loaded = load_rows(dataset, "train", streaming, cache_dir=str(tmp_path / "cache"))
    names = [["C"], ["/m/b"], ["a"], []] * 2
    found = list(loaded)
    assert [row["labels"] for row in found] == names
    assert [row["audio"]["bytes"] for row in found] == [
        row["audio"]["bytes"] for row in train_rows
    ]
    if not streaming:
        summary = summarize_rows(loaded, LABELS.with_names())
        assert summary.indices == [[2], [1], [0], []] * 2


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("form", ["data_folders", "audio_files"])
def test_splits_joined_by_plus_keep_their_order(form, streaming, tmp_path):
    FORMS[form](tmp_path, "bal_train", rows_of(TRAIN_IDS[:3]))
    FORMS[form](tmp_path, "eval", rows_of(EVAL_IDS))
    for split, expected in {
        "bal_train+eval": TRAIN_IDS[:3] + EVAL_IDS,
        "eval+bal_train": EVAL_IDS + TRAIN_IDS[:3],
    }.items():
        joined = load_rows(str(tmp_path), split, streaming)
        assert [row["video_id"] for row in joined] == expected


def test_segments_of_absent_files_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    dataset = _audio_files(tmp_path, "eval", rows_of(EVAL_IDS))
    assert len(load_rows(str(dataset), "eval")) == 2
    assert "eval_segments.csv: 2 clips, 1 without a file" in caplog.text


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_sounds_of_any_suffix_are_found_beside_segments(suffix, tmp_path):
    lines = '# YTID\nabcdefghijk, 0.0, 10.0, "/m/a"\n'
    (tmp_path / "eval_segments.csv").write_text(lines)
    path = tmp_path / "audio" / f"Yabcdefghijk_0.0{suffix}"
    path.parent.mkdir()
    path.touch()
    assert load_rows(str(tmp_path), "eval")[0]["audio"]["path"] == str(path)


def test_segments_without_any_file_are_refused(tmp_path):
    (tmp_path / "eval_segments.csv").write_text('-_eval--000, 0, 10, "/m/a"\n')
    with pytest.raises(FileNotFoundError, match="none of the 1 clips in .* name the"):
        load_rows(str(tmp_path), "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_missing_column_is_refused_with_what_was_found(streaming, tmp_path):
    table = pa.table({"video_id": ["a"], "sound": [b"?"], "labels": [["/m/a"]]})
    pq.write_table(table, tmp_path / "eval.parquet")
    message = r"\(eval\) has no column audio; .* found were video_id, sound, labels"
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path), "eval", streaming)


@pytest.mark.parametrize(
    "read",
    [partial(load_rows, split="eval"), partial(read_table, splits={"eval": "test"})]
    + [read_table],
    ids=["rows", "split", "table"],
)
@pytest.mark.parametrize("kept", [0, 100, -1000], ids=["emptied", "cut", "page"])
def test_of_many_parquet_files_the_damaged_one_is_named(kept, read, tmp_path):
    for shard in range(3):
        rows = rows_of([f"clip{shard}-{number}" for number in range(20)])
        write_parquet(tmp_path / "eval" / f"{shard}.parquet", rows)
    damaged = tmp_path / "eval" / "1.parquet"
    content = damaged.read_bytes()
    changed = bytes(byte ^ 0x5A for byte in content[100:3000])
    whole = content[:100] + changed + content[3000:]
    damaged.write_bytes(whole if kept < 0 else content[:kept])
    message = (
        rf"{re.escape(str(damaged))} is damaged \(.*\); download or write it again"
    )
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("split", [None, "eval"])
def test_a_folder_of_sounds_that_cannot_be_read_is_refused(
    split, tmp_path, close_folders
):
    (tmp_path / "closed").mkdir()
    (tmp_path / "eval_segments.csv").write_text('-_eval--000, 0, 10, "/m/a"\n')
    close_folders("closed")
    message = r"closed cannot be read \(Permission denied\); make it readable"
    with pytest.raises(PermissionError, match=message):
        load_rows(str(tmp_path), split)


def test_a_folder_without_the_split_is_refused(tmp_path):
    write_parquet(tmp_path / "eval" / "0.parquet", rows_of(EVAL_IDS))
    with pytest.raises(FileNotFoundError, match="no split 'train': expected train/"):
        load_rows(str(tmp_path), "train")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_hub_id_without_network_is_refused_soon(streaming, tmp_path):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="neither a local file or") as error:
        load_rows("nobody/nothing", "train", streaming, cache_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    assert len(str(error.value).splitlines()) == 1


def test_an_error_of_the_hub_may_be_without_words(monkeypatch):
    def load_dataset(*_args, **_kwargs):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="on the hub \\(ConnectionError: \\)"):
        load_rows("nobody/nothing", "train")


def test_the_label_summary_reads_no_audio(rows):
    def refuse_audio(batch):
        assert "audio" not in batch
        return batch

    guarded = rows.with_transform(refuse_audio)
    with pytest.raises(AssertionError):
        guarded[0]
    summary = summarize_rows(guarded, LABELS)
    assert summary.clip_ids == TRAIN_IDS
    assert summary.indices == [[0], [0, 1], [2], []] * 2
    assert summary.counts.tolist() == [4, 2, 2]


def test_labels_are_summed_up_in_passing():
    def held_on_the_way(num_rows):
        ids = [f"clip {number}" for number in range(num_rows)]
        labels = [["/m/09x0r", "/m/04rlf", "/m/05zppz"]] * num_rows
        rows = datasets.Dataset.from_dict({"video_id": ids, "labels": labels})
        tracemalloc.start()
        try:
            summary = summarize_rows(rows, audioset_labels())
            kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(summary.clip_ids) == num_rows
        return peak_bytes - kept_bytes

    assert held_on_the_way(40_000) < 1.2 * held_on_the_way(20_000)


def test_real_rows_read_in_both_ways(shared, tmp_path):
    dataset = str(shared / "data" / "audioset_schema")
    both = load_rows(dataset, "bal_train+eval", cache_dir=str(tmp_path))
    assert len(both) == 183 + 131
    assert both.column_names == list(COLUMNS)
    summary = summarize_rows(both, audioset_labels())
    assert summary.num_labelled == len(set(summary.clip_ids)) == 314
    assert not summary.unknown

    stream = load_rows(dataset, "eval", streaming=True, cache_dir=str(tmp_path))
    in_passing = list(stream.take(2))
    reader = ClipReader(audioset_labels())
    for row, number in zip(in_passing, (183, 184), strict=True):
        clip = reader.read(row)
        assert_equal(clip, reader.read(both[number]))
        assert clip.waveform.shape == (320000,)
        assert clip.waveform.abs().max() > 0 and clip.labels.sum() >= 1
