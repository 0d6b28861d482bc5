"""Tables of text as people have them: CSV, TSV, JSON and JSONL."""

import json

import numpy as np
import pandas
import pytest
from small_tables import (
    CLASSES,
    files,
    write_csv,
    write_files,
    write_table,
)

from efficientat_plugin.data.tables import read_table


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    write_files(tmp_path)
    return tmp_path


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


def test_a_comment_before_the_header_is_named(folder):
    text = "# made by me\nfile,label\naudio/a.wav,dog\n"
    (folder / "clips.csv").write_text(text)
    with pytest.raises(ValueError, match="begins with a comment .# made by me.*delete"):
        read_table(folder / "clips.csv")


def test_a_column_of_numbers_of_rows_is_no_comment(folder):
    path = write_table(folder, ["#", "sound", "kind"], [range(4), files(), CLASSES])
    rows = read_table(path, audio_column="sound", label_column="kind")
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


def test_samples_in_a_table_are_refused(folder):
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
