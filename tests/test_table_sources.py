"""Folders and files of tables, and what they may not make us read."""

import json
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import (
    CLASSES,
    files,
    write_files,
    write_sound,
    write_table,
)

from efficientat_plugin.data import rows
from efficientat_plugin.data.dataset_facts import Facts
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.table_sources import read_rows
from efficientat_plugin.data.tables import read_table


def saved(folder):
    table = pa.table({"fname": ["a"], "label": ["dog"], "audio": [b"?"]})
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def write_parquet(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"file": ["a.wav"], "label": [label]}), path)


PARQUET = {
    "names": (["train.parquet", "my_test.parquet"], ["train", "test"]),
    "folders": (["data/training/0.parquet", "data/val/0.parquet"], ["training", "val"]),
    "the hub's": (
        ["data/bal_train-00000-of-00001.parquet", "data/x-00000-of-00001.parquet"],
        ["bal_train", "x"],
    ),
    "AudioSet's folders": (
        ["data/bal_train/00.parquet", "data/eval/00.parquet"],
        ["bal_train", "eval"],
    ),
    "no split": (["data/one.parquet", "data/two.parquet"], None),
}


@pytest.mark.parametrize("form", PARQUET)
def test_splits_of_parquet_files_are_read_from_their_names(form, tmp_path):
    names, splits = PARQUET[form]
    for name, label in zip(names, ("dog", "cat"), strict=True):
        write_parquet(tmp_path / "set" / name, label)
    write_sound(tmp_path / "set" / "a.wav")
    (tmp_path / "secret.csv").write_text("file,label\na.wav,secret\n")
    settings = "configs:\n- config_name: default\n  data_files: ../secret.csv\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{settings}---\n")
    (tmp_path / "set" / ".huggingface.yaml").write_text(settings)
    source = read_rows(str(tmp_path / "set"), Facts(cache_dir=str(tmp_path / "c")))
    labels, found = source.columns["label"], source.columns.get("split")
    assert [*labels] == ["dog", "cat"] and found == splits


@pytest.mark.parametrize(
    "names",
    [["small/train.parquet", "full/train.parquet"], ["train.parquet", "x.parquet"]],
)
def test_parquet_files_of_several_data_sets_are_refused(names, tmp_path):
    for name in names:
        write_parquet(tmp_path / name, "dog")
    with pytest.raises(ValueError, match="are not those of one data set.*name one"):
        read_table(tmp_path)


def test_a_folder_of_unlike_parquet_is_refused(tmp_path):
    for name in ("train", "test"):
        table = pa.table({"label": ["cat"], f"only_{name}": [1]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="are not the Parquet files of one .* name"):
        read_table(tmp_path, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["../outside.arrow", "{outside}", "..", "x::http://h"])
def test_a_saved_folder_names_nothing_outside_of_it(name, tmp_path):
    folder = saved(tmp_path / "ours")
    state = json.loads((folder / "state.json").read_text())
    file = state["_data_files"][0]["filename"]
    outside = (folder / file).rename(tmp_path / "outside.arrow")
    state["_data_files"] = [{"filename": name.format(outside=outside)}]
    (folder / "state.json").write_text(json.dumps(state))
    for read in (read_table, partial(rows.load_rows, split="train")):
        with pytest.raises(ValueError, match="state.json names .* does not lie beside"):
            read(str(folder))


@pytest.mark.parametrize("name", ["../outside", "{outside}", "x::http://h"])
def test_a_saved_dictionary_names_nothing_outside_of_it(name, tmp_path):
    write_files(tmp_path)
    outside = saved(tmp_path / "outside")
    (tmp_path / "ours").mkdir()
    content = json.dumps({"splits": [name.format(outside=outside)]})
    (tmp_path / "ours" / "dataset_dict.json").write_text(content)
    with pytest.raises(ValueError, match="dict.json names .* does not lie beside"):
        read_table(tmp_path / "ours")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_data_files": 5}', "[" * 100_000])
def test_a_saved_folder_that_is_damaged_is_refused(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="state.json is damaged; write"):
        read_table(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    write_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("depth", ["data", "data/train"])
def test_json_above_parquet_is_about_it(depth, folder):
    """As the sample of the quickstart, and many a data set on the hub, has it."""
    frame = {"audio": [{"bytes": bytes(2), "path": f} for f in files()]}
    table = pa.table(frame | {"labels": [[name] for name in CLASSES]})
    place = folder / "set" / depth
    place.mkdir(parents=True)
    pq.write_table(table, place / "0.parquet")
    (folder / "set" / "facts.json").write_text('{"num_clips": 4}')
    assert read_table(folder / "set")["labels"][:] == [[name] for name in CLASSES]


OFFICIAL = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=2, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--AbCdEfGhI, 30.000, 40.000, "/m/0bt9lr,/m/04rlf"
0123456789a, 30.000, 40.000, "/m/04rlf"
absentclip0, 30.000, 40.000, "/m/04rlf"
"""


@pytest.mark.parametrize("where", ["", "balanced_train_segments.csv"])
@pytest.mark.parametrize("name", ["{}.wav", "audio/Y{}.wav", "{}_30000.wav"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_audiosets_own_table_is_read(where, name, is_relative, tmp_path, monkeypatch):
    for clip_id in ("--AbCdEfGhI", "0123456789a"):
        write_sound(tmp_path / "set" / name.format(clip_id))
    (tmp_path / "set" / "balanced_train_segments.csv").write_text(OFFICIAL)
    monkeypatch.chdir(tmp_path)
    rows = read_table((Path() if is_relative else tmp_path) / "set" / where)
    assert rows["video_id"][:] == ["--AbCdEfGhI", "0123456789a"]
    assert rows["labels"][:] == [["/m/0bt9lr", "/m/04rlf"], ["/m/04rlf"]]


def test_audiosets_own_tables_are_splits_of_one(tmp_path):
    for clip_id in ("--AbCdEfGhI", "0123456789a"):
        write_sound(tmp_path / f"{clip_id}.wav")
    lines = OFFICIAL.splitlines(keepends=True)
    (tmp_path / "balanced_train_segments.csv").write_text("".join(lines[:4]))
    (tmp_path / "eval_segments.csv").write_text("".join(lines[:3] + lines[4:]))
    rows = read_table(tmp_path)
    assert rows["split"][:] == ["train", "eval"]


def test_a_clip_of_audioset_that_has_two_files_is_named(tmp_path, caplog):
    for name in ("x/--AbCdEfGhI.wav", "y/Y--AbCdEfGhI.wav"):
        write_sound(tmp_path / name)
    (tmp_path / "eval_segments.csv").write_text("--AbCdEfGhI, 0, 1, /m/09x0r\n")
    (row,) = load_rows(str(tmp_path), "eval")
    assert row["audio"]["path"] == str(tmp_path / "x" / "--AbCdEfGhI.wav")
    assert "not used: y/Y--AbCdEfGhI.wav" in caplog.text


@pytest.mark.parametrize("where", ["", "clips.csv"])
@pytest.mark.parametrize("classes", ["dog,cat", ["cat", "Dog"]])
def test_columns_of_0_and_1_are_labels_where_they_are_the_classes(
    folder, classes, where
):
    columns = [files(), [1, 1, 0, ""], [0, "1.0", 1, ""]]
    write_table(folder, ["filename", "dog", "cat"], columns)
    rows = read_table(folder / where, classes=classes)
    found = [{name.lower() for name in names} for names in rows["labels"]]
    assert found == [{"dog"}, {"dog", "cat"}, {"cat"}, set()]


def test_columns_of_0_and_1_are_named_and_hold_nothing_else(folder):
    path = write_table(
        folder, ["file", "dog", "cat"], [files(), [1, 0, 1, 0], [0, 1, 0, "x"]]
    )
    with pytest.raises(ValueError, match=r"column of 0 and 1.*classes=dog,cat"):
        read_table(path)
    for value in ("x", 3, "5.0", -1, "inf"):
        path = write_table(
            folder, ["file", "dog", "cat"], [files(), [1, 0, 1, 0], [0, 1, 0, value]]
        )
        with pytest.raises(ValueError, match=f"row 4 .*'{value}' in column cat.* 0 or"):
            read_table(path, classes="dog,cat")
