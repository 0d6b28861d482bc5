"""Parquet and Arrow files from strangers: none takes much more memory than its size."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_limit import memory_limit

from efficientat_plugin.data import packed
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.sample.sample_set import write_sample
from efficientat_plugin.data.tables import read_table

LONG = "y" * 10**6


def repeated(value, count):
    """A column of one value; in a file it takes a few bytes."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [value])


def _in_lists(column):
    places = pa.array(range(len(column) + 1), pa.int32())
    return pa.ListArray.from_arrays(places, column)


def _as_audio(column):
    names = pa.array([f"{k}.wav" for k in range(len(column))])
    return pa.StructArray.from_arrays([column, names], ["bytes", "path"])


PACKED = {
    "text": lambda: {"labels": repeated(LONG, 2000)},
    "lists of text": lambda: {"labels": _in_lists(repeated(LONG, 2000))},
    "sound": lambda: {"audio": _as_audio(repeated(LONG.encode(), 2000))},
    "many columns": lambda: {f"c{k}": repeated(LONG[:-k], 200) for k in range(1, 11)},
    "few rows": lambda: {"labels": repeated(LONG * 40, 50)},
}


def write_packed(path, columns, **options):
    table = pa.table(columns)
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)
    return path


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("read", [read_table, lambda path: load_rows(str(path), "x")])
def test_parquet_that_swells_is_refused_before_it_is_decoded(
    name, read, tmp_path, monkeypatch
):
    path = write_packed(tmp_path / "x.parquet", PACKED[name]())
    assert path.stat().st_size < 10**5

    def load_dataset(*_, **__):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    message = r"x\.parquet takes more than 1000000000 bytes of memory"
    with memory_limit(5 * 10**8), pytest.raises(ValueError, match=message):
        read(path)


def test_a_folder_of_parquet_that_swells_is_refused(tmp_path):
    """Each file by itself would do."""
    for split in ("train", "test", "valid"):
        write_packed(tmp_path / f"{split}.parquet", {"labels": repeated(LONG, 500)})
    with memory_limit(5 * 10**8), pytest.raises(ValueError, match="takes more than"):
        read_table(tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.bool_])
@pytest.mark.parametrize("is_list", [True, False])
def test_numbers_that_repeat_are_counted(kind, is_list, tmp_path, monkeypatch):
    """As a hundred million zeros, which take a few bytes."""
    monkeypatch.setattr(packed, "MAX_TABLE_BYTES", 10**6)
    column = pa.array(np.zeros(2 * 10**6, kind))
    if is_list:
        ends = pa.array([0, len(column)], pa.int32())
        column = pa.ListArray.from_arrays(ends, column)
    path = write_packed(tmp_path / "x.parquet", {"n": column})
    assert path.stat().st_size < 10**4
    with pytest.raises(ValueError, match="takes more than 1000000 bytes of memory"):
        read_table(path)


def test_parquet_of_more_rows_than_any_table_is_refused(tmp_path):
    nothing = pa.nulls(2 * 10**7 + 1)
    path = write_packed(tmp_path / "x.parquet", {"n": nothing})
    with pytest.raises(ValueError, match="has 20000001 rows .* at most 20000000 rows"):
        read_table(path)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("row_group_size", [2000, 64])
def test_parquet_as_people_have_it_is_not_refused(
    compression, use_dictionary, row_group_size, tmp_path, monkeypatch
):
    """Nor would it be if the limit were a thousandth, for a table of a thousandth."""
    monkeypatch.setattr(packed, "MAX_TABLE_BYTES", 10**6)
    random = np.random.default_rng(0)
    table = {
        "video_id": [f"Y{number:011d}" for number in range(2000)],
        "audio": [{"bytes": random.bytes(9000 + k), "path": "a"} for k in range(2000)],
        "labels": [["Speech", "Music"]] * 2000,
        "zero": [0] * 2000,
    }
    path = tmp_path / "x.parquet"
    options = {"use_dictionary": use_dictionary, "row_group_size": row_group_size}
    pq.write_table(pa.table(table), path, compression=compression, **options)
    packed.refuse_packed([path])
    monkeypatch.setattr(packed, "MAX_COUNTED", 10**6)  # or the sound is not read
    packed.refuse_packed([path])
    del table["audio"]
    packed.refuse_packed([write_packed(path, table, **options)])


def test_what_is_partly_encoded_by_a_dictionary_is_counted(tmp_path, monkeypatch):
    """As pyarrow writes many different values: in lists, in a struct, by themselves."""
    monkeypatch.setattr(packed, "MAX_TABLE_BYTES", 10**6)
    names = [f"number {row} {'y' * 20}" for row in range(100_000)]
    columns = {
        "tags": [names[row : row + 5] for row in range(0, len(names), 5)],
        "audio": [{"bytes": name.encode()} for name in names[:20_000]],
        "video_id": names[:20_000],
    }
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, dictionary_pagesize_limit=10**4)
    packed.refuse_packed([path])
    counted = [packed._counted_bytes(path, column, 10**9) for column in range(3)]
    by_hand = [sum(map(len, names)), *[sum(map(len, names[:20_000]))] * 2]
    assert counted == by_hand


def test_the_embedded_sample_is_not_refused(tmp_path):
    """The demo's: its sounds are all in dictionaries, in three groups of rows."""
    folder = write_sample(tmp_path, num_labelled=1, num_unlabelled=1, num_eval=150)
    packed.refuse_packed(sorted(Path(folder).glob("**/*.parquet")))


SAVED = {
    "video_id": [f"{number}" for number in range(100)],
    "audio": [{"bytes": b"1", "path": None}] * 100,
    "labels": [["dog"], ["cat"]] * 50,
}


def _beyond_its_end(count):
    """Text whose places in its own memory lead out of it, and back."""
    places = np.array([0] + [10**6, 0] * (count // 2), np.int32)
    buffers = [None, pa.py_buffer(places.tobytes()), pa.py_buffer(b"y")]
    return pa.Array.from_buffers(pa.string(), count, buffers)


ODD = {
    "compressed": (lambda text: text, {"compression": "zstd"}, "it is compressed"),
    "dictionary": (lambda text: text.dictionary_encode(), {}, "it has a dictionary"),
    "views": (lambda text: text.cast(pa.string_view()), {}, "column of string_view"),
    "beyond": (lambda text: _beyond_its_end(len(text)), {}, "[Oo]ffset"),
    "cut": (None, {}, "Expected to be able to read"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("read", [read_table, lambda path: load_rows(str(path), "x")])
def test_a_saved_folder_that_was_made_otherwise_is_refused(name, read, tmp_path):
    change, options, message = ODD[name]
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(SAVED).save_to_disk(folder)
    assert len(read(folder)) == 100
    [path] = folder.glob("*.arrow")
    if change is None:
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        text = pa.array(["y" * 100] * 100)
        table = pa.table(SAVED).set_column(0, "video_id", change(text))
        how = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_stream(path, table.schema, options=how) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=rf"arrow is damaged, or not .*{message}"):
        read(folder)
