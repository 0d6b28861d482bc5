"""Tables as people have them, read as they mean them."""

import csv
import json
import re
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from efficientat_plugin.data.columns import read_labels
from efficientat_plugin.data.labelled import open_labelled, runs_of
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.splits import given_split
from efficientat_plugin.data.tables import label_table, read_table

RATE = 8000
NAMES = ("a", "b", "c", "d")
CLASSES = ("dog", "cat", "dog", "cat")


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    for number, name in enumerate(NAMES):
        write_sound(tmp_path / "audio" / f"{name}.wav", number)
    return tmp_path


def write_sound(path, seed=0, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, noise, RATE)


def write_csv(path, header, lines, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = [header, *lines] if header else lines
        csv.writer(file, delimiter=delimiter).writerows(rows)


def files(pattern="audio/{}.wav"):
    return [pattern.format(name) for name in NAMES]


def write_table(folder, header, columns, name="clips.csv"):
    write_csv(folder / name, header, zip(*columns, strict=True))
    return folder / name


# --- Columns ---------------------------------------------------------------------


@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
def test_columns_are_found_in_any_case(folder, spell):
    roles = ["filename", "label", "split", "fold", "group", "device"]
    sides = ["train", "test", "train", "test"]
    columns = [files(), CLASSES, sides, list("1212"), list("xyxy"), ["p"] * 4]
    path = write_table(folder, [spell(role) for role in roles], columns)
    found = read_table(path)
    assert found["labels"][:] == [[name] for name in CLASSES]
    for role, column in zip(roles[2:], columns[2:], strict=True):
        assert found[role][:] == column
    assert read_table(path, label_column="label", fold_column="Group")["fold"][:] == (
        list("xyxy")
    )


@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
def test_sides_are_known_in_any_case(spell):
    sides = [spell(name) for name in ("train", "validation", "test")]
    split = given_split(datasets.Dataset.from_dict({"split": sides}))
    assert split == ([0], [1], [2])


HEADERLESS = {
    "known by the file": (files(), CLASSES, {}),
    "by number": (files(), CLASSES, {"audio_column": 0, "label_column": "1"}),
    "no suffix": (files("audio/{}"), CLASSES, {"audio_column": 0, "label_column": 1}),
    "the other way": (CLASSES, files(), {"audio_column": "1", "label_column": 0}),
    "the other way, by itself": (CLASSES, files(), {}),
}


@pytest.mark.parametrize("case", HEADERLESS)
def test_a_table_without_a_header_is_read_by_numbers(case, folder):
    *columns, given = HEADERLESS[case]
    found = read_table(write_table(folder, None, columns), **given)
    assert found["video_id"][:] == files("audio/{}")
    assert found["labels"][:] == [[name] for name in CLASSES]


@pytest.mark.parametrize("header", [["0", "1"], ["file", "label"], ["where", "what"]])
def test_numbers_name_columns_below_a_header_too(header, folder):
    # The last of them is taken for a row, and its file is missing.
    path = write_table(folder, header, [files(), CLASSES])
    found = read_table(path, audio_column=0, label_column=1)
    assert found["labels"][-4:] == [[name] for name in CLASSES]
    assert len(found) == 4 + (header == ["where", "what"])


def _json_forms():
    table = pandas.DataFrame({"file": files(), "label": CLASSES})
    records = table.to_dict("records")
    return {
        "list": records,
        "data": {"data": records},
        "and more": {"version": 1, "classes": ["dog"], "clips": records},
        "columns": table.to_dict("list"),
        "pandas": json.loads(table.to_json()),
        "by file": dict(zip(files(), CLASSES, strict=True)),
        "by file, several": {f: [c] for f, c in zip(files(), CLASSES, strict=True)},
        "by file, columns": {
            file: {"label": name} for file, name in zip(files(), CLASSES, strict=True)
        },
    }


@pytest.mark.parametrize("form", _json_forms())
def test_every_form_of_json_is_the_same_table(form, folder):
    (folder / "clips.json").write_text(json.dumps(_json_forms()[form]))
    found = read_table(folder / "clips.json")
    assert found["video_id"][:] == files("audio/{}")
    assert found["labels"][:] == [[name] for name in CLASSES]


@pytest.mark.parametrize("text", ["3", "[]", "{}", '{"a": 1}', "[1, 2]", '["a", {}]'])
def test_json_that_is_no_table_is_refused(text, folder):
    (folder / "clips.json").write_text(text)
    with pytest.raises(ValueError, match=r"is JSON, but not a table; write a list"):
        read_table(folder / "clips.json")


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


# --- Labels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "['dog' 'indoor']",
        "['dog'\n 'indoor']",
        "['dog', 'indoor']",
        '["dog", "indoor"]',
        "('dog', 'indoor')",
        "[dog, indoor]",
        '["dog", "indoor", null]',
        ' ["dog","indoor"] ',
    ],
)
@pytest.mark.parametrize("column", ["label", "labels"])
def test_text_that_looks_like_a_list_is_one(text, column):
    assert read_labels([text], column) == [["dog", "indoor"]]


@pytest.mark.parametrize("text", ["[dog]", "(dog)", "dog [a, b]", "church 'bells'"])
def test_text_that_is_no_list_is_a_name(text):
    assert read_labels([text], "label") == [[text]]


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", " ", "nan", "NaN", "None", "NA", "<NA>"]
)
@pytest.mark.parametrize("column", ["label", "labels"])
def test_what_is_missing_is_no_class(value, column, caplog):
    values = ["dog", value, ["cat", value], f"[{value}]"]
    assert read_labels(values, column) == [["dog"], [], ["cat"], []]
    if isinstance(value, str) and value.strip():
        assert f"labels in column {column} are treated as missing" in caplog.text


def test_a_class_called_none_is_one_where_it_is_told():
    found = read_labels(["None", "dog", None], "label", classes=["dog", "None"])
    assert found == [["None"], ["dog"], []]


MULTI_HOT = {
    "lists": [[1, 0, 0], [0, 1, 1]],
    "text": ["[1, 0, 0]", "[0, 1, 1]"],
    "numpy": ["[1 0 0]", "[0 1 1]"],
    "numpy floats": ["[1. 0. 0.]", "[0. 1. 1.]"],
    "booleans": [[True, False, False], [False, True, True]],
    "floats": [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]],
}


@pytest.mark.parametrize("form", MULTI_HOT)
def test_zeros_and_ones_are_of_named_classes_or_refused(form):
    values = MULTI_HOT[form]
    found = read_labels(values, "labels", classes=["dog", "cat", "rain"])
    assert found == [["dog"], ["cat", "rain"]]
    with pytest.raises(ValueError, match="a number for each class, but not their name"):
        read_labels(values, "labels")


def test_classes_may_be_named_in_a_line(folder):
    rows = [{"file": f, "y": [i % 2, 1]} for i, f in enumerate(files())]
    (folder / "clips.json").write_text(json.dumps(rows))
    given = {"label_column": "y", "classes": "dog, cat"}
    clips = open_labelled(folder / "clips.json", {}, **given)
    assert clips.labels.names == ("dog", "cat")
    assert clips.rows["labels"][:] == [["cat"], ["dog", "cat"]] * 2


def test_numbers_of_classes_are_not_zeros_and_ones():
    assert read_labels([[3, 1], [0, 1]], "labels") == [["3", "1"], ["0", "1"]]


@pytest.mark.parametrize("kind", [int, str, float])
def test_labels_that_are_numbers_are_their_own_index(kind):
    labels = read_labels([kind(n) for n in (10, 2, 0, 1, *range(3, 10))], "label")
    if kind is str:
        assert labels[0] == ["10"]
    names = label_table(datasets.Dataset.from_dict({"labels": labels})).names
    assert names == tuple(str(number) for number in range(11))


def test_folds_are_in_the_order_of_their_numbers():
    columns = {"video_id": list("abcdef"), "labels": [["x"], ["y"]] * 3}
    columns |= {"fold": ["10", "10", "9", "9", "1", "1"]}
    rows = datasets.Dataset.from_dict(columns)
    assert [*runs_of(rows, valid_share=0.0)] == ["fold1", "fold9", "fold10"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_unicode_forms_are_alike(form, on_disk, tmp_path):
    name, label = "fl\u00fcte.wav", "caf\u00e9"
    write_sound(tmp_path / unicodedata.normalize(on_disk, name))
    write_csv(
        tmp_path / "clips.csv",
        ["file", "label"],
        [[unicodedata.normalize(form, name), unicodedata.normalize(form, label)]],
    )
    found = read_table(tmp_path)
    assert found["labels"][:] == [[label]]
    assert found["video_id"][:] == ["fl\u00fcte"]
    assert found["audio"][0]["path"].endswith(unicodedata.normalize(on_disk, name))
    write_sound(tmp_path / "folders" / unicodedata.normalize(form, label) / name)
    assert read_table(tmp_path / "folders")["labels"][:] == [[label]]
    table = LabelTable(["/m/x"], [unicodedata.normalize(on_disk, label)]).with_names()
    assert table.indices([unicodedata.normalize(form, label)]) == ([0], [])


def test_a_label_table_may_begin_with_a_mark(tmp_path):
    text = "index,mid,display_name\n0,/m/a,Dog\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")
    assert LabelTable.from_csv(tmp_path / "labels.csv").names == ("Dog",)


# --- Files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "audio/{}.wav",
        "./audio/{}.wav",
        "audio\\{}.wav",
        "C:\\Users\\me\\set\\audio\\{}.wav",
        "/home/somebody/set/audio/{}.wav",
        "audio/{}.flac",
        "audio/{}.WAV",
        "audio/{}",
    ],
)
def test_a_file_has_one_id_however_it_is_named(pattern, folder):
    found = read_table(
        write_table(folder, ["file", "label"], [files(pattern), CLASSES])
    )
    assert found["video_id"][:] == files("audio/{}")
    paths = [audio["path"] for audio in found["audio"]]
    assert paths == [str(folder / name) for name in files()]


def test_a_file_has_one_id_wherever_it_is_named_from(folder):
    path = write_table(folder, ["file", "label"], [files("{}.wav"), CLASSES])
    found = read_table(path, audio_folder="audio")
    assert found["video_id"][:] == files("audio/{}")


def test_files_of_another_format_are_named(folder, caplog):
    columns = [[*files()[:3], "audio/d.mp3"], CLASSES]
    read_table(write_table(folder, ["file", "label"], columns))
    message = "1 files of clips.csv exist in another format than listed: audio/d"
    assert message in caplog.text


HINTS = {
    "x.wav": "set audio_folder=audio, because audio/x.wav exists",
    "audio/x.wav": "set audio_folder=deep/er, because deep/er/audio/x.wav exists",
    "sounds/x.wav": "audio/x.wav exists: write such names in column file",
    "other.wav": "pass audio_folder, or another audio_column",
}


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_helps_or_is_not_given(name, tmp_path):
    place = "deep/er/audio/x.wav" if name == "audio/x.wav" else "audio/x.wav"
    write_sound(tmp_path / place)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [[name, "dog"]])
    with pytest.raises(FileNotFoundError, match=HINTS[name]):
        read_table(tmp_path)
    if "set audio_folder=" in HINTS[name]:
        hint = HINTS[name].partition("=")[2].partition(",")[0]
        assert len(read_table(tmp_path, audio_folder=hint)) == 1


def test_a_file_in_several_folders_is_named(tmp_path, caplog):
    for name in ("x/a.wav", "y/a.wav"):
        write_sound(tmp_path / name)
    write_csv(tmp_path / "clips.csv", ["file", "label"], [["a.wav", "dog"]])
    with pytest.raises(FileNotFoundError, match=r"=x, because x/a.wav .*and y/a.wav"):
        read_table(tmp_path)
    (tmp_path / "clips.csv").rename(tmp_path / "x" / "clips.csv")
    assert not caplog.records and len(read_table(tmp_path)) == 1
    assert not caplog.records
    write_sound(tmp_path / "a.wav")
    assert read_table(tmp_path)["audio"][0]["path"] == str(tmp_path / "a.wav")
    assert "those in the first of these are used: a.wav" in caplog.text
    caplog.clear()
    read_table(tmp_path, audio_folder="y")
    assert not caplog.records


def test_a_file_of_a_split_that_may_be_any_of_several_is_refused(tmp_path):
    for name in ("x/a.wav", "y/a.wav", "y/b.wav"):
        write_sound(tmp_path / name)
    for side, name in (("train", "a"), ("test", "b")):
        lines = [[f"{name}.wav", "dog"]]
        write_csv(tmp_path / f"{side}.csv", ["file", "label"], lines)
    with pytest.raises(ValueError, match=r"several files a.wav \(x/a.wav, y/a.wav\)"):
        read_table(tmp_path)


def test_a_clip_of_audioset_that_has_two_files_is_named(tmp_path, caplog):
    for name in ("x/--AbCdEfGhI.wav", "y/Y--AbCdEfGhI.wav"):
        write_sound(tmp_path / name)
    (tmp_path / "eval_segments.csv").write_text("--AbCdEfGhI, 0, 1, /m/09x0r\n")
    (row,) = load_rows(str(tmp_path), "eval")
    assert row["audio"]["path"] == str(tmp_path / "x" / "--AbCdEfGhI.wav")
    assert "not used: y/Y--AbCdEfGhI.wav" in caplog.text


NAMED_LIKE_YOUTUBE = (
    "kitchen_mic_0",
    "kitchen_mic_1",
    "Yellowhammer_1",
    "Y--PJHxphWEs",
)


def test_every_reader_gives_a_file_the_same_id(tmp_path):
    names = [f"{c}/{name}" for c in ("cat", "dog") for name in NAMED_LIKE_YOUTUBE]
    names = sorted([*names, "dog/caf\u00e9", "dog/twice.flac", "dog/twice.wav"])
    for name in names:
        suffix = "" if "." in name else ".wav"
        write_sound(tmp_path / unicodedata.normalize("NFD", name + suffix))
    lines = [[name, name[:3]] for name in names]
    (tmp_path / "tables").mkdir()
    write_csv(tmp_path / "tables" / "clips.csv", ["file", "label"], lines)
    found = {
        "class folders": read_table(tmp_path, form="class_folders"),
        "sounds": read_table(tmp_path, form="sounds"),
        "table": read_table(tmp_path),
        "no labels": load_rows(str(tmp_path), None),
    }
    for form, rows in found.items():
        assert sorted(rows["video_id"]) == names, form


def test_ids_of_audioset_are_those_of_youtube(tmp_path):
    write_sound(tmp_path / "Y--PJHxphWEs_30000.wav")
    assert load_rows(str(tmp_path), None)["video_id"][:] == ["Y--PJHxphWEs_30000"]
    (tmp_path / "eval_segments.csv").write_text("--PJHxphWEs, 30, 40, /m/09x0r\n")
    assert load_rows(str(tmp_path), None)["video_id"][:] == ["--PJHxphWEs"]


# --- Several rows of a file --------------------------------------------------------


def test_rows_of_a_file_are_events_in_it(folder, caplog):
    lines = [
        ["audio/a.wav", "0.0", "0.02", "dog"],
        ["audio/a.wav", "0.03", "0.05", "cat"],
        ["audio/b.wav", "0.0", "0.01", "dog"],
        ["audio/a.wav", "0.06", "0.08", "dog"],
        ["audio/c.wav", "", "", ""],
    ]
    header = ["filename", "onset", "offset", "event_label"]
    write_csv(folder / "strong.tsv", header, lines, "\t")
    found = read_table(folder / "strong.tsv")
    assert found["video_id"][:] == ["audio/a", "audio/b", "audio/c"]
    assert found["labels"][:] == [["dog", "cat"], ["dog"], []]
    assert "start" not in found.column_names
    assert "5 rows describe 3 clips. Rows of the same clip are read as" in caplog.text
    assert "The times (onset, offset) are not used" in caplog.text


def test_a_file_on_two_sides_is_refused(folder):
    lines = [["audio/a.wav", "dog", "train"], ["audio\\a.wav", "cat", "test"]]
    write_csv(folder / "clips.csv", ["file", "label", "split"], lines)
    with pytest.raises(
        ValueError, match=r"a.wav in split train and in split test; put"
    ):
        read_table(folder / "clips.csv")


SEGMENTS = {
    "start, end": (["start", "end"], [["0", "0.05"], ["0.05", "0.1"]]),
    "units": (["Begin Time (s)", "End Time (s)"], [["0", "0.05"], ["0.05", "0.1"]]),
    "lengths": (["offset", "duration"], [["0", "0.05"], ["0.05", "0.05"]]),
    "start, length": (["Start", "Duration"], [["0", "0.05"], ["0.05", "0.05"]]),
    "all three": (
        ["start", "end", "duration"],
        [["0", "0.05", "9"], ["0.05", "0.1", "9"]],
    ),
}


@pytest.mark.parametrize("case", SEGMENTS)
def test_times_cut_segments(case, folder):
    header, times = SEGMENTS[case]
    lines = [[f, *t, c] for f in files() for t, c in zip(times, "xy", strict=True)]
    write_csv(folder / "clips.csv", ["file", *header, "label"], lines)
    found = read_table(folder / "clips.csv")
    assert found["start"][:] == [0.0, 0.05] * 4
    assert found["end"][:] == pytest.approx([0.05, 0.1] * 4)
    assert found["labels"][:] == [["x"], ["y"]] * 4
    assert found["video_id"][:2] == ["audio/a:0-0.05", "audio/a:0.05-0.1"]
    whole = read_table(folder / "clips.csv", segments=False)
    assert whole["video_id"][:] == files("audio/{}")
    assert whole["labels"][:] == [["x", "y"]] * 4


@pytest.mark.parametrize("groups", [None, "1234", "1122"])
def test_segments_of_a_file_are_never_on_two_sides(groups, folder):
    lines, header = [], ["file", "start", "end", "label", "group"]
    for place, file in enumerate(files()):
        for n, label in enumerate("xyxy"):
            group = groups[place] if groups and n else ""  # the first is of no group
            lines.append([file, n / 50, (n + 1) / 50, label, group])
    header, cut = (header, 5) if groups else (header[:4], 4)
    write_csv(folder / "clips.csv", header, [line[:cut] for line in lines])
    found = read_table(folder / "clips.csv")
    paths = np.array([audio["path"] for audio in found["audio"]])
    for seed in range(5):
        valid = 0.0 if groups == "1122" else 0.25
        (split,) = runs_of(found, "random", None, valid, 0.25, seed).values()
        sides = [set(paths[rows]) for rows in split if rows]
        assert sum(map(len, sides)) == len(set(paths))
        if groups == "1122":  # files of one group stay together, too
            together = {str(folder / name) for name in files()[:2]}
            assert all(len(side & together) != 1 for side in sides)


def test_segments_of_one_file_alone_are_split_by_a_column_or_not_at_all(folder):
    lines = [["audio/a.wav", n / 50, (n + 1) / 50, "xyxy"[n]] for n in range(4)]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], lines)
    found = read_table(folder / "clips.csv")
    with pytest.raises(ValueError, match="segments of one file, stay together unless"):
        runs_of(found, test_share=0.5)
    assert len(runs_of(found, "random", None, 0.0, 0.0)["random"].train) == 4
    sides = [*zip(lines, ["train", "train", "test", "test"], strict=True)]
    header = ["file", "start", "end", "label", "split"]
    write_csv(folder / "clips.csv", header, [[*line, side] for line, side in sides])
    assert (
        len(runs_of(read_table(folder / "clips.csv"), valid_share=0.0)["given"].test)
        == 2
    )


def test_files_that_are_cut_already_are_read_whole(folder, caplog):
    pairs = zip(files(), CLASSES, strict=True)
    lines = [[f, 60 + n, 64 + n, c] for n, (f, c) in enumerate(pairs)]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], lines)
    assert "start" not in read_table(folder / "clips.csv").column_names
    assert "assumed to be segments already and are read whole" in caplog.text


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2", "1"], "row 1 of clips.csv has a segment from 2 to 1 s .* is empty"),
        (["1:30", "1:40"], "has '1:30' in column start, which is not a time"),
        (["-1", "1"], "has '-1' in column start, which is not a time"),
        (["0", "inf"], "has 'inf' in column end, which is not a time"),
    ],
)
def test_times_that_are_none_are_refused(times, message, folder):
    line = [files()[0], *times, "dog"]
    write_csv(folder / "clips.csv", ["file", "start", "end", "label"], [line])
    with pytest.raises(ValueError, match=message):
        read_table(folder / "clips.csv")
    assert len(read_table(folder / "clips.csv", segments=False)) == 1


# --- Splits ----------------------------------------------------------------------


def test_a_fold_without_folds_is_refused():
    columns = {"video_id": list("abcd"), "labels": [["x"], ["y"]] * 2}
    rows = datasets.Dataset.from_dict(columns)
    with pytest.raises(ValueError, match="fold=3 needs a column of folds.*fold_column"):
        runs_of(rows, fold=3)
    rows = rows.add_column("fold", list("1122"))
    rows = rows.add_column("split", ["train"] * 4)
    assert [*runs_of(rows, fold=1, valid_share=0.0)] == ["fold1"]
    with pytest.raises(ValueError, match="fold=1 was given, but split=random uses no"):
        runs_of(rows, "random", fold=1)


def test_validation_without_a_test_is_a_split():
    columns = {"video_id": list("abcd"), "labels": [["x"], ["y"]] * 2}
    rows = datasets.Dataset.from_dict(
        columns | {"split": ["train", "train"] + ["val"] * 2}
    )
    assert runs_of(rows)["given"] == ([0, 1], [2, 3], [])
    split = runs_of(rows.remove_columns("split"), "random", None, 0.25, 0.0)["random"]
    assert (len(split.valid), split.test) == (1, [])


# --- Whole numbers, times, places ----------------------------------------------------


def test_whole_numbers_beside_a_gap_are_whole_numbers(folder):
    fold = ["1.0", "2.0", "", "2.0"]
    path = write_table(
        folder, ["file", "label", "fold"], [files(), ["10.0", "9.0", "", "0.0"], fold]
    )
    rows = read_table(path)
    assert rows["labels"][:] == [["10"], ["9"], [], ["0"]]
    assert label_table(rows).names == ("0", "9", "10")
    assert rows["fold"][:] == ["1", "2", None, "2"]


@pytest.mark.parametrize("more", ["0.5", "dog", "1e5"])
def test_numbers_beside_anything_else_stay_as_they_are(folder, more):
    path = write_table(folder, ["file", "label"], [files(), ["1.0", "2.0", "", more]])
    assert read_table(path)["labels"][:] == [["1.0"], ["2.0"], [], [more]]


def test_classes_that_are_given_with_a_point_keep_it(folder):
    path = write_table(folder, ["file", "label"], [files(), ["1.0", "2.0", "", "1.0"]])
    rows = read_table(path, classes="1.0,2.0")
    assert rows["labels"][:] == [["1.0"], ["2.0"], [], ["1.0"]]


@pytest.mark.parametrize("name", ["aa", "audio/aa", "/nowhere/audio"])
def test_a_folder_of_audio_that_is_not_there_is_refused(folder, name):
    path = write_table(folder, ["file", "label"], [files(), CLASSES])
    with pytest.raises(FileNotFoundError, match=f"no folder {name} .*audio_folder"):
        read_table(path, audio_folder=name)


@pytest.mark.parametrize(
    ("start", "end"),
    [("t_start", "t_end"), ("tmin", "tmax"), ("xmin", "xmax"), ("Start_Time", "Stop")],
)
def test_usual_columns_of_seconds_cut_segments(folder, start, end):
    columns = [files(), CLASSES, [0.0, 0.05] * 2, [0.05, 0.1] * 2]
    rows = read_table(write_table(folder, ["file", "label", start, end], columns))
    assert rows["start"][:] == [0.0, 0.05] * 2 and rows["end"][:] == [0.05, 0.1] * 2


@pytest.mark.parametrize(
    ("start", "end"),
    [("start_ms", "end_ms"), ("Start (ms)", "End (ms)"), ("start_frame", "num_frames")]
    + [("offset_ms", "duration_ms"), ("frame_offset", "num_frames")]
    + [("start_sample", "end_sample"), ("begin_samples", "end_samples")],
)
def test_times_in_other_units_are_said_not_to_be_used(folder, start, end, caplog):
    columns = [files(), CLASSES, [0, 50] * 2, [50, 100] * 2]
    path = write_table(folder, ["file", "label", start, end], columns)
    assert "start" not in read_table(path).column_names
    assert f"{start}, {end} are not used" in caplog.text and "seconds" in caplog.text
    caplog.clear()
    read_table(path, segments=False)
    assert not caplog.records


@pytest.mark.parametrize("end", ["end_ms", "duration_ms", "num_frames", "End (ms)"])
def test_the_column_in_another_unit_is_named(folder, end, caplog):
    columns = [files(), CLASSES, [0, 0.05] * 2, [50, 100] * 2]
    path = write_table(folder, ["file", "label", "start", end], columns)
    assert "start" not in read_table(path).column_names
    assert f"start, {end} are not used, because {end} is not in seconds" in caplog.text
    path = write_table(folder, ["file", "label", "start"], columns[:3])
    read_table(path)
    assert "start cuts no segments, because no column has ends or" in caplog.text


def test_lengths_in_other_units_alone_are_nothing_to_be_said(folder, caplog):
    columns = [files(), CLASSES, [100] * 4, [800] * 4]
    header = ["file", "label", "duration_ms", "num_frames"]
    read_table(write_table(folder, header, columns))
    assert not caplog.records


# --- Other people's forms ------------------------------------------------------------

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


def test_a_comment_before_the_header_is_named(folder):
    text = "# made by me\nfile,label\naudio/a.wav,dog\n"
    (folder / "clips.csv").write_text(text)
    with pytest.raises(ValueError, match="begins with a comment .# made by me.*delete"):
        read_table(folder / "clips.csv")


def test_a_column_of_numbers_of_rows_is_no_comment(folder):
    path = write_table(folder, ["#", "sound", "kind"], [range(4), files(), CLASSES])
    rows = read_table(path, audio_column="sound", label_column="kind")
    assert rows["labels"][:] == [[name] for name in CLASSES]


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


@pytest.mark.parametrize("root", ["{}", "{{data_root}}/{}", "/of/others/{}"])
def test_a_manifest_of_speechbrain_is_read(folder, root):
    clips = {
        f"utt{n}": {"wav": root.format(file), "length": 0.1, "label": CLASSES[n]}
        for n, file in enumerate(files())
    }
    (folder / "train.json").write_text(json.dumps(clips))
    rows = read_table(folder / "train.json")
    assert rows["video_id"][:] == [f"utt{n}" for n in range(4)]
    assert rows["labels"][:] == [[name] for name in CLASSES]


def test_no_message_is_as_long_as_a_table(folder):
    numbers = np.random.default_rng(0).random(3000).tolist()
    tables = {
        "objects.json": {f"utt{n}": {"sound": "a.wav"} for n in range(3000)},
        "samples.json": [{"audio": numbers, "label": "dog"}],
        "many.json": [{"file": "x.wav", "label": "dog", "audio": numbers}],
        "wide.json": [{f"column{n}": n for n in range(3000)}],
    }
    for name, content in tables.items():
        (folder / name).write_text(json.dumps(content))
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            read_table(folder / name)
        assert len(str(error.value)) < 1000, name


def test_samples_in_a_table_are_told_to_be_such(folder):
    content = [{"audio": [0.1, 0.2], "label": "dog"}]
    (folder / "clips.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="column audio .* lists .* soundfile.write"):
        read_table(folder / "clips.json")


@pytest.mark.parametrize(
    ("name", "what"),
    [("a.wav", "is a sound; pass a folder"), ("x.mp3", "is a sound; pass a folder")]
    + [("x.xlsx", "is a spreadsheet; export it as CSV")]
    + [("x.ods", "is a spreadsheet; export it as CSV")]
    + [("x.csv.gz", "gunzip"), ("x.zip", "unzip x.zip"), ("x.tar.gz", "tar xf")],
)
def test_a_file_that_is_no_table_is_called_what_it_is(name, what, tmp_path):
    (tmp_path / name).write_bytes(b"PK\3\4\0\0 something \0 else")
    with pytest.raises(ValueError, match=what):
        read_table(tmp_path / name)


def test_a_header_that_is_repeated_is_no_row(folder, caplog):
    text = "file,label\naudio/a.wav,dog\n file,label\naudio/b.wav,cat\nfile,label\n"
    (folder / "a.csv").write_text(text)
    assert read_table(folder / "a.csv")["labels"][:] == [["dog"], ["cat"]]
    assert "a.csv: skipped lines that repeat the header: 3, 5" in caplog.text


def test_rows_of_empty_cells_are_no_rows(folder):
    lines = [[file, name, ""] for file, name in zip(files(), CLASSES, strict=True)]
    write_csv(
        folder / "a.csv", ["file", "label", "x"], [*lines, ["", "", ""], ["", ""]]
    )
    assert len(read_table(folder / "a.csv")) == 4


# --- Odd classes and ids -------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["dog", "DOG", "cat", "cat"], "only in case.*DOG, dog"),
        (["{'a': 1}", "{'a': 2}", "x", "x"], r"like objects: .*'a': 1"),
        (["dog|cat", "cat", "dog", "dog|cat"], r"separator='\|'"),
    ],
)
def test_odd_classes_are_said_in_a_line(folder, labels, said, caplog):
    path = write_table(folder, ["file", "label"], [files(), labels])
    assert [*read_table(path)["labels"]] == [[label] for label in labels]
    (record,) = caplog.records
    assert re.search(said, record.getMessage())


def test_a_comma_in_a_name_is_not_talked_of(folder, caplog):
    path = write_table(folder, ["file", "label"], [files(), ["a, b", "b; c"] * 2])
    read_table(path)
    assert not caplog.records


def test_ids_that_are_not_used_are_said(folder, caplog):
    path = write_table(
        folder, ["file", "label", "clip_id"], [files(), CLASSES, list("xxyz")]
    )
    assert read_table(path)["video_id"][:] == files("audio/{}")
    assert "clip_id" in caplog.text and "x (2)" in caplog.text
