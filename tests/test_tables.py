"""Labelled clips read alike from every form, and what is refused."""

import json
import os
import pickle
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import (
    LABELS,
    RATE,
    sound_bytes,
    waveform,
    write_csv,
    write_labelled,
    write_sound,
)

from efficientat_plugin.data import audio_column as sound
from efficientat_plugin.data import rows
from efficientat_plugin.data import table_sources as sources
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.tables import label_table, read_table

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def class_folders(folder):
    for number, (name, label) in enumerate(LABELS.items()):
        write_sound(folder / label / ("deep/er" * (number % 2)) / f"{name}.wav", name)
    (folder / "dog" / "._a1.wav").write_bytes(b"of another system")
    (folder / ".hidden").mkdir()
    write_sound(folder / ".hidden" / "x.wav", "a1")
    (folder / "dog" / "notes.txt").write_text("not a clip")
    return folder, {}


def class_folders_by_split(folder):
    for name, label in LABELS.items():
        split = "test" if name[1] == "2" else "train"
        write_sound(folder / split / label / f"{name}.wav", name)
    return folder, {}


def linked_class_folders(folder):
    class_folders(folder / "real")
    (folder / "links").mkdir()
    for label in set(LABELS.values()):
        os.symlink(folder / "real" / label, folder / "links" / label)
    os.symlink(folder / "links", folder / "links" / "dog" / "loop")
    return folder / "links", {}


def csv_file(folder):
    write_labelled(folder)
    lines = [[f"{name}.wav", label] for name, label in LABELS.items()]
    write_csv(folder / "clips.csv", ["filename", "category"], lines)
    return folder / "clips.csv", {}


def csv_in_folder(folder):
    csv_file(folder)
    return folder, {}


def semicolons_and_mark(folder):
    write_labelled(folder / "wav")
    lines = [f"{name};{label}" for name, label in LABELS.items()]
    text = "\n".join(["fname;label", *lines])
    (folder / "clips.csv").write_text(text, encoding="utf-8-sig")
    return folder, {"audio_folder": "wav"}  # names lack their suffix, too


def nested_tsv(folder):
    write_labelled(folder / "audio")
    lines = [[f"../audio/{name}.wav", label] for name, label in LABELS.items()]
    write_csv(folder / "meta" / "clips.tsv", ["path", "tags"], lines, "\t")
    return folder, {"id_column": "path"}


def jsonl(folder):
    write_labelled(folder)
    rows_ = [
        {"audio": str(folder / f"{name}.wav"), "labels": [label], "more": number}
        for number, (name, label) in enumerate(LABELS.items())
    ]
    text = "\n\n".join(json.dumps(row) for row in rows_)
    (folder / "clips.jsonl").write_text(text, encoding="utf-8")
    return folder / "clips.jsonl", {}


def odd_names(folder):
    write_labelled(folder)
    lines = [[name, f"{name}.wav", f"['{label}']"] for name, label in LABELS.items()]
    write_csv(folder / "clips.csv", ["key", "where", "what"], lines)
    given = {"audio_column": "where", "label_column": "what", "id_column": "key"}
    return folder, given


def parquet_of_names(folder):
    write_labelled(folder / "wavs")
    names = [f"wavs/{name}.wav" for name in LABELS]
    table = pa.table({"file": names, "label": list(LABELS.values())})
    pq.write_table(table, folder / "clips.parquet")
    return folder, {}


def embedded_table(kind):
    contents = [sound_bytes(name) for name in LABELS]
    if kind == "struct":
        content = pa.array([{"bytes": c, "path": "x.flac"} for c in contents], STRUCT)
    elif kind == "uint8":
        content = pa.array([list(c) for c in contents], pa.list_(pa.uint8()))
    else:
        content = pa.array(contents, pa.binary() if kind == "binary" else kind)
    columns_ = {"fname": list(LABELS), "sound": content, "label": [*LABELS.values()]}
    return pa.table(columns_)


def embedded(kind):
    def write(folder):
        pq.write_table(embedded_table(kind), folder / "clips.parquet")
        return folder / "clips.parquet", {}

    return write


def audio_feature(folder):
    """As on the hub, where the file says that `datasets` should decode."""
    names = sorted(set(LABELS.values()))
    features = datasets.Features(
        {
            "fname": datasets.Value("string"),
            "audio": datasets.Audio(),
            "label": datasets.ClassLabel(names=names),
        }
    )
    table = embedded_table("struct").rename_columns(["fname", "audio", "label"])
    numbers = pa.array([names.index(label) for label in LABELS.values()], pa.int64())
    table = table.set_column(2, "label", numbers)
    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    (folder / "data").mkdir()
    for shard, part in enumerate((table.slice(0, 4), table.slice(4))):
        pq.write_table(part, folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    return folder, {}


def saved(folder):
    table = embedded_table("struct").rename_columns(["fname", "audio", "label"])
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    return folder / "saved", {}


def saved_paths(folder):
    write_labelled(folder)
    rows_ = [
        {"audio": {"bytes": None, "path": str(folder / f"{name}.wav")}, "label": label}
        for name, label in LABELS.items()
    ]
    part = datasets.Dataset.from_list(rows_).cast_column(
        "audio", datasets.Features({"audio": sound.SOUND})["audio"]
    )
    datasets.DatasetDict({"train": part}).save_to_disk(str(folder / "saved"))
    return folder / "saved", {}


FORMS = (
    class_folders,
    class_folders_by_split,
    linked_class_folders,
    csv_file,
    csv_in_folder,
    semicolons_and_mark,
    nested_tsv,
    jsonl,
    odd_names,
    parquet_of_names,
    embedded("struct"),
    embedded("binary"),
    embedded("uint8"),
    audio_feature,
    saved,
    saved_paths,
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__qualname__)
def test_every_form_gives_the_same_clips(form, tmp_path):
    dataset, given = form(tmp_path)
    found = read_table(dataset, cache_dir=str(tmp_path / "cache"), **given)
    assert found.features["audio"] == datasets.Audio(decode=False)
    table = label_table(found)
    assert table.names == ("cat", "cow", "dog")
    clips = Clips(found, ClipReader(table, 0.1, RATE))
    names = [clips[place].clip_id.rpartition("/")[2] for place in range(len(clips))]
    assert sorted(names) == sorted(LABELS)
    for place, name in enumerate(names):
        expected = waveform(name).astype(np.float32) / 32768
        np.testing.assert_array_equal(clips[place].waveform, expected)
        assert table.names[clips[place].labels.argmax()] == LABELS[name]
        assert clips[place].labels.sum() == clips[place].labelled == 1


def test_embedded_sound_stays_on_the_disk(tmp_path):
    dataset, _ = embedded("binary")(tmp_path)
    found = read_table(dataset, cache_dir=str(tmp_path / "cache"))
    # What a spawned worker is sent names the file.
    assert len(pickle.dumps(found)) < len(sound_bytes("a1")) * len(LABELS) + 20_000
    kept = pickle.loads(pickle.dumps(found))
    assert kept[3]["audio"]["bytes"] == sound_bytes("b2")


def test_labels_are_read_without_sound(tmp_path, monkeypatch):
    dataset, _ = embedded("struct")(tmp_path)
    asked = []
    original = sources.LazyColumns.__getitem__

    def spy(self, name):
        asked.append(name)
        return original(self, name)

    monkeypatch.setattr(sources.LazyColumns, "__getitem__", spy)
    read_table(dataset, cache_dir=str(tmp_path / "cache"))
    assert set(asked) == {"label", "fname"}


def test_further_columns_come_along_as_text(tmp_path):
    write_labelled(tmp_path)
    header = ["file", "label", "group", "fold", "split", "device"]
    lines = [[n, x, n[0], n[1], "dev", "phone"] for n, x in LABELS.items()]
    lines[0][2] = ""  # a clip of no group
    write_csv(tmp_path / "clips.csv", header, lines)
    found = read_table(tmp_path, splits={"dev": "valid"}, licence="CC0")
    assert found["group"][:] == [None, "a", "b", "b", "c", "c"]
    assert found["fold"][:] == ["1", "2"] * 3
    assert set(found["split"][:]) == {"valid"} and set(found["device"][:]) == {"phone"}
    assert found.info.license == "CC0"


def test_names_that_command_a_terminal_are_shown_in_plain_text(tmp_path, caplog):
    caplog.set_level("INFO")
    write_labelled(tmp_path)
    csv = "file,label\na1.wav,dog\n\x1b[31mno.wav,cat\n"
    (tmp_path / "clips.csv").write_text(csv)
    read_table(tmp_path)
    for name in ("cat/\x1b[31m.wav", "dog/x.\x1b[32m", "\x1b[33m/y.txt"):
        place = tmp_path / "folders" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_sound(place, "a1") if name.endswith(".wav") else place.touch()
    read_table(tmp_path / "folders")
    for color in "123":
        assert rf"\x1b[3{color}m" in caplog.text.replace(r"cat/\x1b[31m", "")
    with pytest.raises(FileNotFoundError) as refusal:
        read_table(tmp_path / "folders" / "dog")
    assert str(refusal.value).isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_form_may_be_forced(tmp_path):
    class_folders(tmp_path)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [["dog/a1.wav", "wolf"]])
    assert read_table(tmp_path)["labels"][:] == [["wolf"]]
    assert len(read_table(tmp_path, form="class_folders")) == 6


FILE, ONE = ["file", "label"], [["a1.wav", "dog"]]
REFUSALS = {  # tables as text or as header and lines, arguments, message
    "form": ({}, {"form": "zip"}, "form='zip' must be one of auto,"),
    "empty": ({}, {}, "holds neither one table .* it has no f"),
    "column": (
        {"clips.csv": (FILE, ONE)},
        {"label_column": "kind"},
        r"no column 'kind' \(label_column\); its columns are file, label",
    ),
    "no usual column": (
        {"clips.csv": (["file", "kind"], ONE)},
        {},
        "no column of a usual name .* columns are file, kind: name one with label_col",
    ),
    "no audio column": (
        {"clips.csv": (["where", "label"], ONE)},
        {},
        "its columns are where, label: name one with audio_column",
    ),
    "unexpected label": (
        {"clips.csv": (FILE, ONE)},
        {"classes": ["cat", "cow"]},
        r"1 labels that are not among the 2 classes: dog \(1\).*begin with cat, cow",
    ),
    "no labels": (
        {"clips.csv": (FILE, [["a1.wav", ""]])},
        {},
        "no clip of clips.csv has a label in column label",
    ),
    "ids twice": (
        {"clips.csv": (FILE, [*ONE, ["a2.wav", "dog"]])},
        {"id_column": "label"},
        r"repeated or empty clip ids: dog \(2\)",
    ),
    "two tables": (
        {"clips.csv": (FILE, ONE), "more.csv": (FILE, ONE)},
        {},
        r"holds 2 tables \(clips.csv, more.csv\); name one of them",
    ),
    "two tables deeper": (
        {"meta/a.csv": (FILE, ONE), "meta/b.csv": (FILE, ONE)},
        {},
        r"holds 2 tables \(meta/a.csv, meta/b.csv\); name one of them",
    ),
    "no rows": ({"clips.csv": (FILE, [])}, {}, "has no rows"),
    "a name twice": ({"clips.csv": (["file"] * 2, ONE)}, {}, "has 'file' twice"),
    "fields": (
        {"clips.csv": (FILE, [["a1.wav", "dog", "x"]])},
        {},
        "line 2 of .* has 3 fields, but its header has 2: file, label; quote fields",
    ),
    "not text": ({"a.csv": b"file,label\n\xff"}, {}, "is not UTF-8 text"),
    "not JSON": ({"a.jsonl": b'{"a": 1}\n{'}, {}, "line 2 of .* is not JSON"),
    "no object": ({"a.jsonl": b"[1]"}, {}, "line 1 of .* is a list; JSONL"),
    "a row without end": (
        {"a.jsonl": b'{"file": ' + b"[" * 100_000},
        {},
        "line 1 of .* is not JSON",
    ),
    "a number without end": (
        {"a.jsonl": b'{"file": ' + b"1" * 5000 + b"}"},
        {},
        "line 1 of .* is not JSON",
    ),
    "a field without end": (
        {"a.csv": b"file,label\n" + b"a" * 200_000 + b",dog"},
        {},
        "line 2 of .* is not a row of a table",
    ),
    "no such split": (
        {"clips.csv": (["file", "label", "split"], [[*ONE[0], "train"]])},
        {"splits": {"dev": "valid"}},
        r"has no split dev; it has train \(1\): name those in splits",
    ),
    "no splits": (
        {"clips.csv": (FILE, ONE)},
        {"splits": {"dev": "valid", "eval": "test"}},
        "no split dev, eval; it has no splits at all",
    ),
    "judged without classes": (
        {"clips.csv": (["file", "label", "mask"], [[*ONE[0], 1]])},
        {"judged_column": "mask"},
        "judged_column=mask holds a number for each class; pass classes",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_sentence(case, tmp_path):
    tables, given, message = REFUSALS[case]
    if tables:
        write_labelled(tmp_path)
    for name, content in tables.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            write_csv(tmp_path / name, *content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_table(tmp_path, **given)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_table(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="needs a folder, but"):
        read_table(csv_file(tmp_path)[0], form="class_folders")


def test_rows_in_the_schema_of_audioset_read_too(shared, tmp_path):
    folder = str(shared / "data" / "audioset_schema")
    given = {"bal_train": "train", "eval": "test"}
    found = read_table(folder, splits=given, cache_dir=str(tmp_path))
    expected = rows.load_rows(folder, "bal_train+eval", cache_dir=str(tmp_path))
    for column in ("video_id", "labels"):
        assert found[column][:] == expected[column][:]
    assert found[200]["audio"] == expected[200]["audio"]
    assert Counter(found["split"][:]) == {"train": 183, "test": 131}


def test_a_hub_id_without_network_is_refused_soon(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a local file or folder nor"):
        read_table("nobody/nothing", cache_dir=str(tmp_path))


def test_a_label_table_does_not_depend_on_the_order_of_rows(tmp_path):
    dataset, _ = csv_file(tmp_path)
    found = read_table(dataset)
    table = label_table(found)
    assert table.mids == table.names == ("cat", "cow", "dog")
    assert label_table(found.select(range(5, -1, -1))).sha256 == table.sha256
    fixed = label_table(found, ["dog", "cow", "cat"])
    assert fixed.names == ("dog", "cow", "cat") and fixed.sha256 != table.sha256
