"""A split, fold or group that the data gives is used, or reported as unused."""

import pytest
from small_tables import write_sound

from efficientat_plugin.data.labelled import runs_of, split_in_words
from efficientat_plugin.data.tables import label_table, read_table

CLASSES = ("cat", "dog")
SIDES = ("train", "val", "test")


def write_folders(folder, *patterns):
    """Writes two sounds into each folder."""
    for pattern in patterns:
        for number in range(2):
            write_sound(folder / pattern / f"{number}.wav")


def write_table(folder, header, lines, name="clips.csv"):
    text = "\n".join([header, *lines, ""])
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def table_with(folder, column, values):
    """Writes a table with a clip for each value, and the files."""
    for number in range(len(values)):
        write_sound(folder / f"{number}.wav")
    lines = [f"{n}.wav,{CLASSES[n % 2]},{value}" for n, value in enumerate(values)]
    return write_table(folder, f"filename,label,{column}", lines)


def sides_of(rows):
    """Returns the clip ids of each side."""
    (split,) = runs_of(rows, valid_share=0.0).values()
    return {
        side: {rows[place]["video_id"] for place in places}
        for side, places in split._asdict().items()
    }


# --- Folders -----------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "audio/"])
def test_split_folders_within_class_folders_are_splits(below, tmp_path):
    names = [f"{below}{label}/{side}" for label in CLASSES for side in SIDES]
    write_folders(tmp_path, *names)
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES
    for side, ids in sides_of(rows).items():
        assert len(ids) == 4 and all(side[:3] in name for name in ids)


def test_fold_folders_within_class_folders_are_folds(tmp_path):
    write_folders(tmp_path, *(f"{c}/fold{n}" for c in CLASSES for n in (1, 2, 3)))
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES
    assert [*runs_of(rows)] == ["fold1", "fold2", "fold3"]


def test_folders_within_one_class_are_no_split(tmp_path):
    write_folders(tmp_path, "dog/train", "dog/test", "cat")
    assert "split" not in read_table(tmp_path).column_names


@pytest.mark.parametrize("more", ["unlabelled", "noise/cat", "noise/hum"])
@pytest.mark.parametrize(
    ("below", "other"), [("", "test"), ("audio/", "test"), ("", "val"), ("", "eval")]
)
def test_a_folder_beside_splits_is_left_out_and_named(
    more, below, other, tmp_path, caplog
):
    names = [f"{below}{side}/{c}" for c in CLASSES for side in ("train", other)]
    write_folders(tmp_path, *names, below + more)
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES and len(rows) == 8
    assert {name.split("/")[-3] for name in sides_of(rows)["train"]} == {"train"}
    assert f"{more.split('/')[0]} (2 clips)" in caplog.text


def test_folders_that_are_splits_in_name_only_are_reported(tmp_path, caplog):
    """FSDKaggle2019 has such folders."""
    tops = ("train_curated", "train_noisy", "test")
    write_folders(tmp_path, *(f"{top}/{c}" for top in tops for c in CLASSES))
    read_table(tmp_path)
    assert "not alike" in caplog.text and "test, train_curated" in caplog.text


def test_classes_that_are_named_like_splits_are_reported(tmp_path, caplog):
    write_folders(tmp_path, "train", "test", "bus")
    write_sound(tmp_path / "flat.wav")
    assert label_table(read_table(tmp_path)).names == ("bus", "test", "train")
    assert caplog.text.count("named like splits") == 1
    assert "read as classes" in caplog.text and "test, train" in caplog.text


# --- File names in a table -----------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_splits_are_read_from_file_names_in_a_folder_or_a_file(whole, tmp_path):
    names = [f"{side}/{n}.wav" for side in ("train", "test") for n in range(2)]
    for name in names:
        write_sound(tmp_path / name)
    lines = [f"{name},{CLASSES[n % 2]}" for n, name in enumerate(names)]
    path = write_table(tmp_path, "filename,label", lines)
    rows = read_table(tmp_path if whole else path)
    assert sides_of(rows)["test"] == {"test/0", "test/1"}


def test_a_column_has_priority_over_file_names(tmp_path):
    names = [f"{side}/{n}.wav" for side in ("train", "test") for n in range(2)]
    for name in names:
        write_sound(tmp_path / name)
    lines = [f"{name},{CLASSES[n % 2]},{n % 2}" for n, name in enumerate(names)]
    path = write_table(tmp_path, "filename,label,k", lines)
    assert "split" not in read_table(path, fold_column="k").column_names


def test_file_names_with_splits_in_some_rows_only_are_reported(tmp_path, caplog):
    names = [f"{top}/{n}.wav" for top in ("train", "test", "more") for n in range(2)]
    for name in names:
        write_sound(tmp_path / name)
    lines = [f"{name},{CLASSES[n % 2]}" for n, name in enumerate(names)]
    rows = read_table(write_table(tmp_path, "filename,label", lines))
    assert "split" not in rows.column_names
    assert "split_column" in caplog.text and "more" in caplog.text


# --- Columns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["subset", "Set", "partition", "usage", "data_split", "Data Split"]
)
def test_a_column_that_holds_only_sides_is_the_split(name, tmp_path, caplog):
    path = table_with(tmp_path, name, ["Train"] * 4 + ["TEST "] * 2)
    rows = read_table(path)
    assert sides_of(rows) == {
        "train": {"0", "1", "2", "3"},
        "valid": set(),
        "test": {"4", "5"},
    }
    assert f"column {name}" in split_in_words(rows, runs_of(rows, valid_share=0.0))
    assert not caplog.records


@pytest.mark.parametrize(
    "values",
    [
        ["train", "train", "extra", "test"],
        ["train", "", "test", "test"],
        ["train-clean-100", "train-clean-360", "test-clean", "dev-clean"],
    ],
)
def test_a_column_of_sides_and_other_values_is_reported(values, tmp_path, caplog):
    rows = read_table(table_with(tmp_path, "subset", values))
    assert "split" not in rows.column_names
    assert "split_column=subset" in caplog.text


@pytest.mark.parametrize("column", ["is_test", "train"])
def test_a_column_of_0_and_1_named_like_a_side_is_reported(column, tmp_path, caplog):
    rows = read_table(table_with(tmp_path, column, [0, 0, 1, 1]))
    assert "split" not in rows.column_names
    assert (
        f"column {column} is not used; if it marks the clips to test on" in caplog.text
    )
    assert f"split_column={column}" in caplog.text


def test_a_column_of_unknown_sides_is_reported(tmp_path, caplog):
    path = table_with(tmp_path, "subset", ["A", "B"] * 2)
    assert "split" not in read_table(path).column_names
    (message,) = caplog.messages
    assert "column subset is not used as the split" in message
    assert "--split_column=subset and --splits='{A: ..., B: ...}'" in message
    caplog.clear()
    sides = {"A": "train", "B": "test"}
    rows = read_table(path, split_column="subset", splits=sides)
    assert sides_of(rows)["test"] == {"1", "3"} and not caplog.records


@pytest.mark.parametrize("values", ["AAAA", map(str, range(12))])
def test_a_column_about_something_else_is_not_reported(values, tmp_path, caplog):
    rows = read_table(table_with(tmp_path, "set", [*values]))
    assert "split" not in rows.column_names and not caplog.records


@pytest.mark.parametrize(
    ("column", "option"),
    [("fold_id", "fold"), ("kfold", "fold"), ("folds", "fold")]
    + [("speaker_id", "group"), ("group_id", "group"), ("Speaker", "group")],
)
def test_columns_that_may_be_folds_or_groups_are_reported(
    column, option, tmp_path, caplog
):
    path = table_with(tmp_path, column, ["1", "2"] * 2)
    assert option not in read_table(path).column_names
    assert f"{option}_column={column}" in caplog.text
    caplog.clear()
    rows = read_table(path, **{f"{option}_column": column})
    assert rows[option][:] == ["1", "2"] * 2 and not caplog.records


# --- How the split is described -------------------------------------------------------


def test_a_split_is_described_with_its_origin_and_sizes(tmp_path):
    def described(folder, **arguments):
        rows = read_table(folder, **arguments)
        return split_in_words(rows, runs_of(rows, valid_share=0.0, seed=7), seed=7)

    write_folders(tmp_path / "a", *(f"{s}/{c}" for s in SIDES for c in CLASSES))
    assert described(tmp_path / "a") == (
        "given by the names of folders: 4 clips to train, 4 to validate and 4 to "
        "test on"
    )
    (tmp_path / "b").mkdir()
    path = table_with(tmp_path / "b", "split", ["train"] * 4 + ["test"] * 2)
    assert described(path).startswith("given by column split: 4 clips to train, 0 to")
    rows = read_table(path)
    assert split_in_words(rows, runs_of(rows, valid_share=0.5), seed=7).endswith(
        "2 to test on, those to validate drawn at random (seed 7)"
    )
    (tmp_path / "c").mkdir()
    path = table_with(tmp_path / "c", "k", ["1", "2"] * 4)
    assert described(path, fold_column="k").startswith(
        "2 folds, given by column k, the first of"
    )
    assert described(path).startswith("drawn at random (seed 7): ")


@pytest.mark.parametrize("column", [None, "split", "fold"])
def test_small_classes_are_reported_once_with_the_split(column, tmp_path, caplog):
    for name in ("dog", "cat"):
        for number in range(10):
            write_sound(tmp_path / name / f"{number}.wav")
    write_sound(tmp_path / "emu" / "0.wav")
    rows = read_table(tmp_path)
    if column:
        sides = ["train", "test"] if column == "split" else ["1", "2"]
        rows = rows.add_column(column, [sides[place % 2] for place in range(21)])
    runs = runs_of(rows, valid_share=0.2, test_share=0.2)
    assert not caplog.records
    where = "valid" if column else "valid and test"
    assert split_in_words(rows, runs).endswith(
        f"; 1 class is too small, or in too few groups, to have clips in {where}: "
        "emu (1)"
    )


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_column_with_nothing_to_train_on_is_refused(column, tmp_path):
    rows = read_table(table_with(tmp_path, column, ["test"] * 4))
    with pytest.raises(ValueError, match=f"column {column} .*all 4 clips"):
        runs_of(rows)
