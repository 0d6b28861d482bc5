"""Labelled clips read alike from every form, and what is refused."""

import csv
import io
import json
import os
import pickle
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hyperpyyaml import load_hyperpyyaml

from efficientat_plugin.data import audio_column as sound
from efficientat_plugin.data import columns, rows
from efficientat_plugin.data import table_sources as sources
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader, UnreadableClip
from efficientat_plugin.data.facts import Facts
from efficientat_plugin.data.summary import describe
from efficientat_plugin.data.tables import label_table, read_table

SAMPLE_RATE = 32000
FACTS = Path(__file__).resolve().parents[1] / "hparams" / "data"
LABELS = {"a1": "dog", "a2": "cat", "b1": "dog", "b2": "cow", "c1": "cat", "c2": "dog"}
SEEDS = {name: seed for seed, name in enumerate(LABELS)}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def facts_of(name):
    with open(FACTS / f"{name}.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file)


def waveform(name):
    noise = np.random.default_rng(SEEDS[name]).integers(-9000, 9000, 1600)
    return noise.astype(np.int16)


def write_sound(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform(name), SAMPLE_RATE)


def sound_bytes(name):
    file = io.BytesIO()
    soundfile.write(file, waveform(name), SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def write_csv(path, header, lines, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *lines])


def write_files(folder):
    for name in LABELS:
        write_sound(folder / f"{name}.wav", name)


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
    write_files(folder)
    lines = [[f"{name}.wav", label] for name, label in LABELS.items()]
    write_csv(folder / "clips.csv", ["filename", "category"], lines)
    return folder / "clips.csv", {}


def csv_in_folder(folder):
    csv_file(folder)
    return folder, {}


def semicolons_and_mark(folder):
    write_files(folder / "wav")
    lines = [f"{name};{label}" for name, label in LABELS.items()]
    text = "\n".join(["fname;label", *lines])
    (folder / "clips.csv").write_text(text, encoding="utf-8-sig")
    return folder, {"audio_folder": "wav"}  # names lack their suffix, too


def nested_tsv(folder):
    write_files(folder / "audio")
    lines = [[f"../audio/{name}.wav", label] for name, label in LABELS.items()]
    write_csv(folder / "meta" / "clips.tsv", ["path", "tags"], lines, "\t")
    return folder, {"id_column": "path"}


def jsonl(folder):
    write_files(folder)
    rows_ = [
        {"audio": str(folder / f"{name}.wav"), "labels": [label], "more": number}
        for number, (name, label) in enumerate(LABELS.items())
    ]
    text = "\n\n".join(json.dumps(row) for row in rows_)
    (folder / "clips.jsonl").write_text(text, encoding="utf-8")
    return folder / "clips.jsonl", {}


def odd_names(folder):
    write_files(folder)
    lines = [[name, f"{name}.wav", f"['{label}']"] for name, label in LABELS.items()]
    write_csv(folder / "clips.csv", ["key", "where", "what"], lines)
    given = {"audio_column": "where", "label_column": "what", "id_column": "key"}
    return folder, given


def parquet_of_names(folder):
    write_files(folder / "wavs")
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
    write_files(folder)
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
    clips = Clips(found, ClipReader(table, 0.05, SAMPLE_RATE))
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


@pytest.mark.parametrize(
    ("values", "column", "given", "expected"),
    [
        (["a,b", "a", None], "labels", {}, [["a", "b"], ["a"], []]),
        (["a, b | c"], "tags", {}, [["a, b", "c"]]),
        (["a; b;a"], "labels", {}, [["a", "b"]]),
        (["Speech, male"], "label", {}, [["Speech, male"]]),
        (["a+b"], "label", {"separator": "+"}, [["a", "b"]]),
        (["a,b"], "labels", {"separator": ""}, [["a,b"]]),
        (['["a", "b"]', "[odd]"], "what", {}, [["a", "b"], ["[odd]"]]),
        ([["a", None, "b"], None], "labels", {}, [["a", "b"], []]),
        ([3, 14], "target", {}, [["3"], ["14"]]),
        ([[1, 0], [0, 0]], "what", {"classes": ["x", "y"]}, [["x"], []]),
        ([[0.5, 0.51]], "what", {"classes": ["x", "y"]}, [["y"]]),
        (
            [[0.2, 0.1], None],
            "what",
            {"classes": ["x", "y"], "min_probability": 0.15},
            [["x"], []],
        ),
    ],
)
def test_labels_are_read_as_they_are_meant(values, column, given, expected):
    assert columns.read_labels(values, column, **given) == expected


def test_further_columns_come_along_as_text(tmp_path):
    write_files(tmp_path)
    header = ["file", "label", "group", "fold", "split", "device"]
    lines = [[n, x, n[0], n[1], "dev", "phone"] for n, x in LABELS.items()]
    lines[0][2] = ""  # a clip of no group
    write_csv(tmp_path / "clips.csv", header, lines)
    found = read_table(tmp_path, splits={"dev": "valid"}, licence="CC0")
    assert found["group"][:] == [None, "a", "b", "b", "c", "c"]
    assert found["fold"][:] == ["1", "2"] * 3
    assert set(found["split"][:]) == {"valid"} and set(found["device"][:]) == {"phone"}
    assert found.info.license == "CC0"


def test_files_that_do_not_exist_are_named_and_unreadable(tmp_path, caplog):
    csv_file(tmp_path)
    (tmp_path / "b1.wav").unlink()
    found = read_table(tmp_path)
    assert found["video_id"][:] == list(LABELS)
    message = "1 of 6 files of clips.csv do not exist and count as unreadable clips: b1"
    assert message in caplog.text
    assert [clip.clip_id for clip in describe(found).unreadable] == ["b1"]
    reader = ClipReader(label_table(found), 0.05)
    with pytest.raises(UnreadableClip):
        reader.read(found[list(LABELS).index("b1")])


def test_names_that_command_a_terminal_are_shown_in_plain_text(tmp_path, caplog):
    caplog.set_level("INFO")
    write_files(tmp_path)
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


def test_what_is_in_no_class_folder_is_said(tmp_path, caplog):
    class_folders(tmp_path)
    write_sound(tmp_path / "outside.wav", "a1")
    (tmp_path / "empty").mkdir()
    assert len(read_table(tmp_path)) == 6
    assert "1 clips of " in caplog.text and "are in no class folder" in caplog.text
    assert "1 folders of " in caplog.text and "hold no audio: empty" in caplog.text


def test_clips_alike_but_for_their_suffix_keep_it(tmp_path):
    for suffix in ("wav", "flac"):
        write_sound(tmp_path / "dog" / f"a1.{suffix}", "a1")
    assert read_table(tmp_path)["video_id"][:] == ["dog/a1.flac", "dog/a1.wav"]


def test_a_form_may_be_forced(tmp_path):
    class_folders(tmp_path)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [["dog/a1.wav", "wolf"]])
    assert read_table(tmp_path)["labels"][:] == [["wolf"]]
    assert len(read_table(tmp_path, form="class_folders")) == 6


def _with_table(header, lines, name="clips.csv"):
    def write(folder):
        write_files(folder)
        write_csv(folder / name, header, lines)
        return folder

    return write


def _with_text(text, name):
    def write(folder):
        write_files(folder)
        (folder / name).write_bytes(text)
        return folder

    return write


def _two_tables(folder):
    write_files(folder / "audio")
    for name in ("a.csv", "b.csv"):
        write_csv(folder / "meta" / name, ["file", "label"], ONE)
    return folder


ONE = [["a1.wav", "dog"]]
REFUSALS = {
    "form": (lambda folder: folder, {"form": "zip"}, "form='zip' must be one of auto,"),
    "form of a file": (
        lambda folder: csv_file(folder)[0],
        {"form": "class_folders"},
        "needs a folder, but .*clips.csv is not",
    ),
    "nothing there": (lambda folder: folder / "x", {}, "there is no file or folder"),
    "empty": (
        lambda folder: folder,
        {},
        "holds neither one table .* it has no f",
    ),
    "column": (
        _with_table(["file", "label"], ONE),
        {"label_column": "kind"},
        r"no column 'kind' \(label_column\); its columns are file, label",
    ),
    "no usual column": (
        _with_table(["file", "kind"], ONE),
        {},
        "no column of a usual name .* columns are file, kind: name one with label_col",
    ),
    "no audio column": (
        _with_table(["where", "label"], ONE),
        {},
        "its columns are where, label: name one with audio_column",
    ),
    "unexpected label": (
        _with_table(["file", "label"], ONE),
        {"classes": ["cat", "cow"]},
        r"1 labels that are not among the 2 classes: dog \(1\).*begin with cat, cow",
    ),
    "no labels": (
        _with_table(["file", "label"], [["a1.wav", ""]]),
        {},
        "no clip of clips.csv has a label in column label",
    ),
    "ids twice": (
        _with_table(["file", "label"], [["a1.wav", "dog"], ["a2.wav", "dog"]]),
        {"id_column": "label"},
        r"repeated or empty clip ids: dog \(2\)",
    ),
    "all files missing": (
        _with_table(["file", "label"], [["zz.wav", "dog"]]),
        {},
        r"none of the 1 files of clips.csv exists in .*'zz.wav'\); pass audio_folder",
    ),
    "two tables": (
        lambda folder: _with_table(["file", "label"], ONE, "more.csv")(
            csv_in_folder(folder)[0]
        ),
        {},
        r"holds 2 tables \(clips.csv, more.csv\); name one of them",
    ),
    "two tables deeper": (
        _two_tables,
        {},
        r"holds 2 tables \(meta/a.csv, meta/b.csv\); name one of them",
    ),
    "no rows": (_with_table(["file", "label"], []), {}, "has no rows"),
    "a name twice": (_with_table(["file", "file"], ONE), {}, "has 'file' twice"),
    "fields": (
        _with_table(["file", "label"], [["a1.wav", "dog", "x"]]),
        {},
        "line 2 of .* has 3 fields, but its header has 2: file, label; quote fields",
    ),
    "not text": (_with_text(b"file,label\n\xff", "a.csv"), {}, "is not UTF-8 text"),
    "not JSON": (_with_text(b'{"a": 1}\n{', "a.jsonl"), {}, "line 2 of .* is not JSON"),
    "no object": (_with_text(b"[1]", "a.jsonl"), {}, "line 1 of .* is a list; JSONL"),
    "a row without end": (
        _with_text(b'{"file": ' + b"[" * 100_000, "a.jsonl"),
        {},
        "line 1 of .* is not JSON",
    ),
    "a number without end": (
        _with_text(b'{"file": ' + b"1" * 5000 + b"}", "a.jsonl"),
        {},
        "line 1 of .* is not JSON",
    ),
    "a field without end": (
        _with_text(b"file,label\n" + b"a" * 200_000 + b",dog", "a.csv"),
        {},
        "line 2 of .* is not a row of a table",
    ),
    "a pickle": (_with_text(b"\x80\x04cos\nsystem\n.", "a.csv"), {}, "is not UTF-8"),
    "no such split": (
        _with_table(["file", "label", "split"], [["a1.wav", "dog", "train"]]),
        {"splits": {"dev": "valid"}},
        r"has no split dev; it has train \(1\): name those in splits",
    ),
    "no splits": (
        _with_table(["file", "label"], ONE),
        {"splits": {"dev": "valid", "eval": "test"}},
        "no split dev, eval; it has no splits at all",
    ),
    "judged without classes": (
        _with_table(["file", "label", "mask"], [["a1.wav", "dog", 1]]),
        {"judged_column": "mask"},
        "judged_column=mask holds a number for each class; pass classes",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_sentence(case, tmp_path):
    write, given, message = REFUSALS[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_table(write(tmp_path), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["-" * 200_000 + "1", "1+" * 100_000 + "1", "{[]: 1}"])
def test_a_list_that_python_cannot_read_is_a_name(text):
    assert columns.read_labels([f"[{text}]"], "label") == [[f"[{text}]"]]


def test_a_hint_says_where_the_files_are(tmp_path):
    write_files(tmp_path / "sounds")
    write_csv(tmp_path / "clips.csv", ["file", "label"], ONE)
    with pytest.raises(
        FileNotFoundError, match="set audio_folder=sounds, because sounds/a1"
    ):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([[0.1, 0.9]], None, "holds a number for each class, but not their names"),
        ([[0.1, 0.9]], ["x"], "has 2 numbers for 1 classes; give one name for each"),
        ([[0.1, 0], [3.0, 0.2]], ["x", "y"], "row 2 of column what has 3, but a class"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(values, classes, message):
    with pytest.raises(ValueError, match=message):
        columns.read_labels(values, "what", classes=classes)


def test_an_unreadable_folder_is_refused(tmp_path, close_folders):
    class_folders(tmp_path)
    close_folders("cat")
    message = r"cat cannot be read \(Permission denied\); make it readable"
    with pytest.raises(PermissionError, match=message):
        read_table(tmp_path)


def test_a_folder_of_unlike_parquet_is_refused(tmp_path):
    for name in ("train", "test"):
        table = pa.table({"label": ["cat"], f"only_{name}": [1]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="a data set that `datasets` reads .* name"):
        read_table(tmp_path, cache_dir=str(tmp_path / "cache"))


def _two_parquets(folder):
    for name in ("one", "two"):
        table = pa.table({"file": ["in.wav"], "label": ["cat"]})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        "data_files: ../secret.csv",
        "data_files: data/../../secret.csv",
        "data_files: [data/one.parquet, {secret}]",
        "data_files: [{{split: train, path: [data/one.parquet, {secret}]}}]",
        "data_files: file:{secret}",
        "data_files: http://127.0.0.1:9/x.csv",
        "data_files: hf://datasets/somebody/something/x.csv",
        "data_dir: ..",
    ],
)
def test_a_readme_names_nothing_outside_of_its_folder(settings, tmp_path):
    folder = _two_parquets(tmp_path / "folder")
    (tmp_path / "secret.csv").write_text("file,label\nin.wav,secret\n")
    (tmp_path / "in.wav").touch()
    settings = settings.format(secret=tmp_path / "secret.csv")
    text = f"---\nconfigs:\n- config_name: default\n  {settings}\n---\n"
    (folder / "README.md").write_text(text)
    with pytest.raises(
        ValueError, match=r"README.md\) name .* is not inside it; correct"
    ):
        read_table(folder, audio_folder="..", cache_dir=str(tmp_path / "cache"))


def test_a_hidden_readme_is_refused(tmp_path):
    folder = _two_parquets(tmp_path)
    text = "configs:\n- config_name: default\n  data_files: ../secret.csv\n"
    (folder / ".huggingface.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"name .huggingface.yaml, which is not"):
        read_table(folder, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["../outside.arrow", "{outside}", "..", "x::http://h"])
def test_a_saved_folder_names_nothing_outside_of_it(name, tmp_path):
    write_files(tmp_path)
    folder, _ = saved(tmp_path / "ours")
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
    outside, _ = saved(tmp_path / "outside")
    (tmp_path / "ours").mkdir()
    told = json.dumps({"splits": [name.format(outside=outside)]})
    (tmp_path / "ours" / "dataset_dict.json").write_text(told)
    with pytest.raises(ValueError, match="dict.json names .* does not lie beside"):
        read_table(tmp_path / "ours")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_data_files": 5}', "[" * 100_000])
def test_a_saved_folder_that_is_damaged_is_refused(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="state.json is damaged; write"):
        read_table(tmp_path)


def test_rows_in_the_schema_of_audioset_read_too(shared, tmp_path):
    folder = str(shared / "data" / "audioset_schema")
    given = {"bal_train": "train", "eval": "test"}
    found = read_table(folder, splits=given, cache_dir=str(tmp_path))
    expected = rows.load_rows(folder, "bal_train+eval", cache_dir=str(tmp_path))
    for column in ("video_id", "labels"):
        assert found[column][:] == expected[column][:]
    assert found[200]["audio"] == expected[200]["audio"]
    assert Counter(found["split"][:]) == {"train": 183, "test": 131}


# --- Named data sets ----------------------------------------------------------


def test_real_esc50_reads_by_its_facts(shared, caplog):
    found = read_table(shared / "data" / "esc50", **facts_of("esc50"))
    assert len(found) == 314
    assert "has 314 of 2000 clips" in caplog.text
    assert set(found["fold"][:]) == {"1", "2", "3"}
    table = label_table(found, facts_of("esc50")["classes"])
    with open(shared / "data" / "esc50" / "esc50.csv", encoding="utf-8") as file:
        rows_ = list(csv.DictReader(file))
    # The order of the facts is that of the targets.
    for row, clip in zip(rows_, found, strict=True):
        assert table.index[clip["labels"][0]] == int(row["target"])
        assert clip["group"] == row["src_file"]
        assert clip["video_id"] == row["filename"].removesuffix(".flac")
    clip = Clips(found, ClipReader(table, 5.0))[0]
    assert clip.waveform.abs().max() > 0 and clip.labels.sum() == 1
    summary = describe(found)
    assert summary.seconds == (5.0, 5.0, 5.0) and not summary.num_unreadable
    assert summary.hours == pytest.approx(314 * 5 / 3600)


def hub_of(monkeypatch, parts):
    """A hub that knows one data set."""

    def load_dataset(dataset, config, split, streaming, cache_dir):
        assert (dataset, config, split, streaming) == ("some/one", None, None, False)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(rows.datasets, "load_dataset", load_dataset)


def esc50_table():
    names = list(LABELS)
    return pa.table(
        {
            "filename": [f"{name}.wav" for name in names],
            "fold": pa.array([int(name[1]) for name in names]),
            "target": pa.array([0, 5, 0, 3, 5, 0]),
            "category": [LABELS[name] for name in names],
            "esc10": [False] * len(names),
            "src_file": pa.array([ord(name[0]) for name in names]),
            "take": ["A"] * len(names),
            "audio": pa.array(
                [{"bytes": sound_bytes(name), "path": None} for name in names], STRUCT
            ),
        }
    )


def test_esc50_of_the_hub_is_that_of_a_folder(tmp_path, monkeypatch, caplog):
    part = datasets.Dataset(esc50_table())
    hub_of(monkeypatch, {"train": part.cast_column("audio", datasets.Audio())})
    found = read_table("some/one", **facts_of("esc50"))
    write_files(tmp_path / "audio")
    text = esc50_table().drop_columns("audio").to_pylist()
    lines = [list(row.values()) for row in text]
    write_csv(tmp_path / "meta" / "esc50.csv", list(text[0]), lines)
    local = read_table(tmp_path, **facts_of("esc50"))
    assert "split" not in found.column_names  # folds instead
    for one, other in zip(found, local, strict=True):
        assert {**one, "audio": 0} == {**other, "audio": 0}
    assert "has 6 of 2000 clips" in caplog.text


def fsd50k_part(names):
    return pa.table(
        {
            "fname": pa.array([SEEDS[name] for name in names]),
            "labels": ["Dog,Animal" if name < "b" else "Rain" for name in names],
            "mids": ["/m/0bt9lr,/m/0jbk" for _ in names],
            "mp3": pa.array(
                [list(sound_bytes(name)) for name in names], pa.list_(pa.uint8())
            ),
        }
    )


FSD50K_PARTS = {"train": ["a1", "b1"], "dev": ["a2"], "eval": ["c1", "c2"]}


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_fsd50k_of_the_hub_reads_by_its_facts(place, tmp_path, monkeypatch):
    parts = {split: fsd50k_part(names) for split, names in FSD50K_PARTS.items()}
    if place == "hub":
        hub_of(monkeypatch, {s: datasets.Dataset(part) for s, part in parts.items()})
    else:
        for split, part in parts.items():
            pq.write_table(part, tmp_path / f"{split}-00000-of-00001.parquet")
    dataset = "some/one" if place == "hub" else tmp_path
    found = read_table(dataset, cache_dir=str(tmp_path / "c"), **facts_of("fsd50k"))
    assert found["split"][:] == ["train", "train", "valid", "test", "test"]
    assert found["video_id"][:] == ["0", "2", "1", "4", "5"]
    assert found["labels"][:2] == [["Dog", "Animal"], ["Rain"]]
    assert found[2]["audio"] == {"bytes": sound_bytes("a2"), "path": None}


def fsd50k_folder(folder, layout="published"):
    truth, audio = {
        "published": ("FSD50K.ground_truth", "FSD50K.{}_audio"),
        "copy": ("labels", "clips/{}"),
    }[layout]
    header = ["fname", "labels", "mids"]
    dev = [["0", "Dog,Animal", "/m/0bt9lr,/m/0jbk", "train"], ["1", "Dog", "", "val"]]
    write_csv(folder / truth / "dev.csv", [*header, "split"], dev)
    write_csv(folder / truth / "eval.csv", header, [["2", "Animal", "/m/0jbk"]])
    write_csv(folder / truth / "vocabulary.csv", ["0", "Animal", "/m/0jbk"], [])
    for fname, part in (("0", "dev"), ("1", "dev"), ("2", "eval")):
        name = list(LABELS)[int(fname)]
        write_sound(folder / audio.format(part) / f"{fname}.wav", name)
    return folder / truth


@pytest.mark.parametrize("layout", ["published", "copy"])
def test_the_folder_of_fsd50k_reads_by_the_facts_of_the_hub(layout, tmp_path):
    truth = fsd50k_folder(tmp_path, layout)
    found = read_table(tmp_path, **facts_of("fsd50k"))
    assert found["video_id"][:] == ["0", "1", "2"]
    assert found["split"][:] == ["train", "valid", "test"]
    assert found["labels"][:] == [["Dog", "Animal"], ["Dog"], ["Animal"]]
    assert read_table(tmp_path)["split"][:] == ["train", "dev", "eval"]
    write_csv(truth / "dev.csv", ["fname", "labels"], [["0", "Dog"]])
    with pytest.raises(ValueError, match="has no column split; it has fname, lab"):
        read_table(tmp_path)
    (truth / "dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match="dev.csv is missing; pass the unpack"):
        read_table(tmp_path, form="fsd50k_folder")


def openmic_part(names, classes):
    zeros = [0.5] * len(classes)
    rows_ = []
    for name in names:
        probability, mask = zeros.copy(), [0] * len(classes)
        probability[SEEDS[name]], mask[SEEDS[name]] = 0.9, 1
        probability[19], mask[19] = 0.1, 1
        rows_.append(
            {
                "filename": name,
                "true": probability,
                "mask": mask,
                "mp3_bytes": sound_bytes(name),
            }
        )
    schema = pa.schema(
        [
            ("filename", pa.string()),
            ("true", pa.list_(pa.float32(), len(classes))),
            ("mask", pa.list_(pa.int32(), len(classes))),
            ("mp3_bytes", pa.binary()),
        ]
    )
    return pa.Table.from_pylist(rows_, schema)


def test_openmic_says_what_was_judged(tmp_path, monkeypatch):
    facts = facts_of("openmic")
    classes = facts["classes"]
    assert len(classes) == 20
    for split, names in {"train": ["a1", "b1"], "test": ["c2"]}.items():
        path = tmp_path / "data" / f"shard_{split}_0.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(openmic_part(names, classes), path)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/shard_train_*\n"
        "  - split: test\n    path: data/shard_test_*\n---\n"
    )
    found = read_table(tmp_path, cache_dir=str(tmp_path / "cache"), **facts)
    assert found["split"][:] == ["train", "train", "test"]
    # 0.5 of a class that nobody judged is no label.
    assert found["labels"][:] == [["accordion"], ["bass"], ["cymbals"]]
    assert found["judged"][:] == [[*names, "voice"] for names in found["labels"]]
    assert found[2]["audio"]["bytes"] == sound_bytes("c2")


def tau2020_folder(folder, evaluate=True):
    names = [f"audio/{label}-{n}-a.wav" for n, label in enumerate(("bus", "park") * 2)]
    for number, name in enumerate(names):
        write_sound(folder / name, list(LABELS)[number])
    labels = [name[6:].partition("-")[0] for name in names]
    meta = [
        [n, x, f"oslo-{p}", "s1"]
        for p, (n, x) in enumerate(zip(names, labels, strict=False))
    ]
    header = ["filename", "scene_label", "identifier", "source_label"]
    write_csv(folder / "meta.csv", header, meta, "\t")
    setup = folder / "evaluation_setup"
    write_csv(setup / "fold1_train.csv", header[:2], [r[:2] for r in meta[:2]], "\t")
    if evaluate:
        test = setup / "fold1_evaluate.csv"
        write_csv(test, header[:2], [meta[2][:2]], "\t")
    else:
        write_csv(setup / "fold1_test.csv", header[:1], [meta[2][:1]], "\t")
    return folder


@pytest.mark.parametrize("evaluate", [True, False])
def test_tau2020_reads_by_its_facts(evaluate, tmp_path):
    folder = tau2020_folder(tmp_path, evaluate)
    found = read_table(folder, **facts_of("tau2020"))
    assert found["video_id"][:] == ["bus-0-a", "park-1-a", "bus-2-a"]
    assert found["labels"][:] == [["bus"], ["park"], ["bus"]]
    assert found["split"][:] == ["train", "train", "test"]
    assert found["group"][:] == ["oslo-0", "oslo-1", "oslo-2"]
    assert set(found["device"][:]) == {"s1"}


def test_tau2020_is_refused_where_its_tables_do_not_fit(tmp_path):
    setup = tau2020_folder(tmp_path) / "evaluation_setup"
    train = ["audio/bus-0-a.wav", "bus"]
    write_csv(setup / "fold1_evaluate.csv", ["filename", "scene_label"], [train], "\t")
    with pytest.raises(ValueError, match="bus-0-a.wav is in both .*fold1_train.csv a"):
        read_table(tmp_path, **facts_of("tau2020"))
    other = ["audio/bus-9-a.wav", "bus"]
    write_csv(setup / "fold1_evaluate.csv", ["filename", "scene_label"], [other], "\t")
    with pytest.raises(
        ValueError, match="1 files of .* are not in .*meta.csv: audio/b"
    ):
        read_table(tmp_path, **facts_of("tau2020"))
    (setup / "fold1_evaluate.csv").unlink()
    with pytest.raises(FileNotFoundError, match="fold1_test.csv is missing"):
        read_table(tmp_path, **facts_of("tau2020"))


@pytest.mark.parametrize("path", sorted(FACTS.glob("*.yaml")), ids=lambda p: p.stem)
def test_facts_are_what_read_table_takes(path, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text(f"data: !include:{path}\nclip_seconds: !ref <data[clip_seconds]>\n")
    with open(run, encoding="utf-8") as file:
        loaded = load_hyperpyyaml(file)
    assert loaded["clip_seconds"] == loaded["data"]["clip_seconds"] > 0
    assert Facts(**loaded["data"]).class_names == loaded["data"]["classes"]
    assert len(set(loaded["data"]["classes"])) == len(loaded["data"]["classes"])


def test_a_hub_id_without_network_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a local file or folder nor"):
        read_table("nobody/nothing", cache_dir=str(tmp_path))


# --- Label tables and summaries ------------------------------------------------


def test_a_label_table_does_not_depend_on_the_order_of_rows(tmp_path):
    dataset, _ = csv_file(tmp_path)
    found = read_table(dataset)
    table = label_table(found)
    assert table.mids == table.names == ("cat", "cow", "dog")
    assert label_table(found.select(range(5, -1, -1))).sha256 == table.sha256
    fixed = label_table(found, ["dog", "cow", "cat"])
    assert fixed.names == ("dog", "cow", "cat") and fixed.sha256 != table.sha256


def test_a_summary_counts_what_headers_say(tmp_path):
    for seconds, rate, channels, name in (
        (0.5, 16000, 1, "dog/a"),
        (1.0, 32000, 2, "dog/b"),
        (3.0, 32000, 1, "cat/c"),
    ):
        path = tmp_path / f"{name}.flac"
        path.parent.mkdir(exist_ok=True)
        silence = np.zeros((int(seconds * rate), channels))
        soundfile.write(path, silence, rate)
    (tmp_path / "cat" / "d.wav").write_text("a text by the name of a sound")
    summary = describe(read_table(tmp_path))
    assert summary.class_counts == {"cat": 2, "dog": 2}
    assert summary.seconds == (0.5, 1.0, 3.0)
    assert summary.hours == pytest.approx(4.5 / 3600)
    assert summary.sample_rates == {32000: 2, 16000: 1}
    assert summary.channels == {1: 2, 2: 1}
    assert summary.num_unreadable == 1 and summary.headers_read == 4
    assert summary.unreadable[0].clip_id == "cat/d"
    assert "1 of 4 clips could not be opened: cat/d (not decodable: " in str(summary)
    assert "headers were read" not in str(summary)
    assert "are longer than" not in str(summary)


def test_a_summary_says_what_of_long_clips_is_heard(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.01), ("c", 4.0), ("d", 8.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(round(seconds * 4000)), 4000)
    found = read_table(tmp_path, form="sounds")
    summary = describe(found, clip_seconds=2.0)
    assert summary.num_longer == 2  # 2.01 s are not worth a word
    assert summary.hours_heard == pytest.approx(7 / 3600)
    said = str(summary).splitlines()
    assert said[0] == "4 clips, without labels"
    assert said[-1] == (
        "2 clips are longer than 2 s; only their first 2 s are used (0.00 of 0.00 "
        "hours)"
    )
    few = describe(found, max_headers=2, clip_seconds=2.0)
    assert "about 2 clips are longer than 2 s; only" in str(few)
    assert describe(found).hours_heard == pytest.approx(15.01 / 3600)


def test_a_summary_of_many_clips_says_that_it_looked_at_some(tmp_path):
    found = read_table(class_folders(tmp_path)[0])
    summary = describe(found, max_headers=2)
    assert summary.headers_read == 2 and summary.num_clips == 6
    assert summary.hours == pytest.approx(6 * 0.05 / 3600)
    assert "2 of 6 sound headers were read" in str(summary)
    assert str(summary).startswith(
        "6 clips of 3 classes: 1 (cow) to 3 (dog) clips each"
    )
    with pytest.raises(ValueError, match="6 rows and max_headers=0: both must be 1"):
        describe(found, max_headers=0)
