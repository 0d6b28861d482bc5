"""Labels, in whatever form they were written, and which column has them."""

import json
import re

import datasets
import pytest
from small_tables import (
    CLASSES,
    files,
    write_files,
    write_table,
)

from efficientat_plugin.data.columns import read_labels
from efficientat_plugin.data.labelled import open_labelled
from efficientat_plugin.data.tables import label_table, read_table


@pytest.fixture
def folder(tmp_path):
    """Four short files, in a folder ``audio``."""
    write_files(tmp_path)
    return tmp_path


XY, AN_ID = {"classes": ["x", "y"]}, "-" * 200_000 + "1"
LABELS = [  # values, column, further arguments, labels
    (["a,b", "a", None], "labels", {}, [["a", "b"], ["a"], []]),
    (["a, b | c"], "tags", {}, [["a, b", "c"]]),
    (["a; b;a"], "labels", {}, [["a", "b"]]),
    (["Speech, male"], "label", {}, [["Speech, male"]]),
    (["a+b"], "label", {"separator": "+"}, [["a", "b"]]),
    (["a,b"], "labels", {"separator": ""}, [["a,b"]]),
    ([["a", None, "b"], None], "labels", {}, [["a", "b"], []]),
    ([3, 14], "target", {}, [["3"], ["14"]]),
    ([[3, 1], [0, 1]], "labels", {}, [["3", "1"], ["0", "1"]]),
    ([[0.5, 0.51]], "what", XY, [["y"]]),
    ([[0.2, 0.1], None], "what", XY | {"min_probability": 0.15}, [["x"], []]),
    # Whole numbers that pandas wrote as floats, because of a gap
    (["10.0", "9.0", "", "0.0"], "label", {}, [["10"], ["9"], [], ["0"]]),
    (["1.0", "", "0.5"], "label", {}, [["1.0"], [], ["0.5"]]),
    (["1.0", "", "dog"], "label", {}, [["1.0"], [], ["dog"]]),
    (["1.0", "", "1e5"], "label", {}, [["1.0"], [], ["1e5"]]),
    (["1.0", "", "2.0"], "label", {"classes": ["1.0", "2.0"]}, [["1.0"], [], ["2.0"]]),
    (["None", "x", None], "label", {"classes": ["x", "None"]}, [["None"], ["x"], []]),
] + [  # text that is no list, or one that nobody can parse
    ([text], "label", {}, [[text]])
    for text in ("[dog]", "(dog)", "dog [a, b]", "church 'bells'", "[{[]: 1}]")
    + (f"[{AN_ID}]", "[" + "1+" * 100_000 + "1]")
]


@pytest.mark.parametrize(
    ("values", "column", "given", "expected"), LABELS, ids=range(len(LABELS))
)
def test_labels_are_read_as_they_are_meant(values, column, given, expected):
    assert read_labels(values, column, **given) == expected


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([[0.1, 0.9]], ["x"], "has 2 numbers for 1 classes; give one name for each"),
        ([[0.1, 0], [3.0, 0.2]], ["x", "y"], "row 2 of column what has 3, but a class"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(values, classes, message):
    with pytest.raises(ValueError, match=message):
        read_labels(values, "what", classes=classes)


@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
def test_columns_are_found_in_any_case(folder, spell):
    roles = ["filename", "label", "split", "fold", "group", "device"]
    sides = ["train", "test", "train", "test"]
    fold = ["1.0", "2.0", "", "2.0"]
    columns = [files(), CLASSES, sides, fold, list("xyxy"), ["p"] * 4]
    path = write_table(folder, [spell(role) for role in roles], columns)
    found = read_table(path)
    assert found["labels"][:] == [[name] for name in CLASSES]
    columns[3] = ["1", "2", None, "2"]
    for role, column in zip(roles[2:], columns[2:], strict=True):
        assert found[role][:] == column
    assert read_table(path, label_column="label", fold_column="Group")["fold"][:] == (
        list("xyxy")
    )


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


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", " ", "nan", "NaN", "None", "NA", "<NA>"]
)
@pytest.mark.parametrize("column", ["label", "labels"])
def test_what_is_missing_is_no_class(value, column, caplog):
    values = ["dog", value, ["cat", value], f"[{value}]"]
    assert read_labels(values, column) == [["dog"], [], ["cat"], []]
    if isinstance(value, str) and value.strip():
        assert f"labels in column {column} are treated as missing" in caplog.text


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


@pytest.mark.parametrize("kind", [int, str, float])
def test_labels_that_are_numbers_are_their_own_index(kind):
    labels = read_labels([kind(n) for n in (10, 2, 0, 1, *range(3, 10))], "label")
    if kind is str:
        assert labels[0] == ["10"]
    names = label_table(datasets.Dataset.from_dict({"labels": labels})).names
    assert names == tuple(str(number) for number in range(11))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["dog", "DOG", "cat", "cat"], "only in case.*DOG, dog"),
        (["{'a': 1}", "{'a': 2}", "x", "x"], r"like objects: .*'a': 1"),
        (["dog|cat", "cat", "dog", "dog|cat"], r"separator='\|'"),
        (["a, b", "b; c", "a, b", "b; c"], ""),
    ],
)
def test_odd_classes_are_reported_in_one_line(folder, labels, message, caplog):
    path = write_table(folder, ["file", "label"], [files(), labels])
    assert [*read_table(path)["labels"]] == [[label] for label in labels]
    assert len(caplog.messages) == bool(message)
    assert re.search(message, caplog.text)
