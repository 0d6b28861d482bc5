"""Folders of splits and folds are read as such, never as classes, and so are tables."""

import json

import pytest
from small_tables import write_csv, write_sound

from efficientat_plugin.data.labelled import runs_of
from efficientat_plugin.data.tables import label_table, read_table

CLASSES = ("cat", "dog", "train")


def write_table(path, lines):
    write_csv(path, None, [line.split(",") for line in lines])


def class_folders(folder, tops):
    for top in tops:
        for number, name in enumerate(CLASSES):
            write_sound(folder / top / name / f"{number}.wav")


def table_in(top, number):
    return [f"{top}-{number}-{place}.wav,{name}" for place, name in enumerate(CLASSES)]


SPLITS = [
    ("train", "valid", "test"),
    ("train", "test"),
    ("train", "validation", "test"),
    ("Train", "Val", "Test"),
    ("training", "validation", "testing"),
    ("train", "dev", "test"),
    ("train", "dev", "eval"),
    ("train", "eval"),
    ("nsynth-train", "nsynth-valid", "nsynth-test"),
    ("audio/train", "audio/test"),
    ("My.audio_train", "My.audio_test"),
]


@pytest.mark.parametrize("tops", SPLITS, ids="+".join)
def test_folders_of_splits_are_no_classes(tops, tmp_path):
    class_folders(tmp_path, tops)
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES
    (split,) = runs_of(rows, valid_share=0.0).values()
    sides = {"test": split.test, "train": split.train, "valid": split.valid}
    for side, places in sides.items():
        folders = {rows[place]["video_id"].rsplit("/", 2)[0] for place in places}
        assert len(folders) == (side in ("train", "test") or len(tops) == 3)
    assert all("est" in rows[row]["video_id"] or "ev" in tops[-1] for row in split.test)


@pytest.mark.parametrize("below", ["", "audio"])
@pytest.mark.parametrize("name", ["fold{}", "Fold {}", "fold_0{}"])
def test_folders_of_folds_are_no_classes(name, below, tmp_path):
    class_folders(tmp_path / below, [name.format(number) for number in (1, 2, 3)])
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES
    assert sorted(runs_of(rows)) == ["fold1", "fold2", "fold3"]


def test_a_class_may_be_called_train(tmp_path):
    class_folders(tmp_path, [""])
    rows = read_table(tmp_path)
    assert "split" not in rows.column_names and label_table(rows).names == CLASSES


@pytest.mark.parametrize("tops", [("train", "test"), ("fold1", "fold2")], ids="+".join)
@pytest.mark.parametrize("below", ["", "audio"])
def test_splits_without_classes_are_refused_with_the_tables(tops, below, tmp_path):
    for top in tops:
        write_sound(tmp_path / top / below / "1.wav")
    write_table(tmp_path / "meta" / "notes.csv", ["when", "today"])
    text = rf"(splits|folds) \(.*{tops[0]}.*\).* left out: meta/notes.csv"
    with pytest.raises(ValueError, match=text):
        read_table(tmp_path, form="class_folders")
    with pytest.raises(ValueError, match=text):
        read_table(tmp_path)


def audiofolder(folder):
    """As `datasets` documents it."""
    for top in ("train", "test"):
        lines = ["file_name,label"]
        for number in range(2):
            lines += table_in(top, number)
        write_table(folder / top / "metadata.csv", lines)
        for line in lines[1:]:
            write_sound(folder / top / line.split(",")[0])


def audiofolder_of_jsonl(folder):
    audiofolder(folder)
    for top in ("train", "test"):
        path = folder / top / "metadata.csv"
        pairs = [line.split(",") for line in path.read_text().splitlines()[1:]]
        lines = [json.dumps({"file_name": n, "label": x}) for n, x in pairs]
        path.with_suffix(".jsonl").write_text("\n".join(lines))
        path.unlink()


def audiofolder_with_one_table(folder):
    audiofolder(folder)
    lines = ["file_name,label"]
    for top in ("train", "test"):
        path = folder / top / "metadata.csv"
        lines += [f"{top}/{line}" for line in path.read_text().splitlines()[1:]]
        path.unlink()
    write_table(folder / "metadata.csv", lines)


def fsdkaggle2018(folder):
    """As Zenodo gives it: names without folders, which may be alike in both."""
    for top in ("train", "test"):
        lines = ["fname,label,manually_verified,freesound_id,license"]
        for place, name in enumerate(CLASSES * 2):
            write_sound(folder / f"FSDKaggle2018.audio_{top}" / f"0{place}.wav")
            lines.append(f"0{place}.wav,{name},1,{place},CC0")
        ending = "_scoring_clips" * (top == "test")
        name = f"{top}_post_competition{ending}.csv"
        write_table(folder / "FSDKaggle2018.meta" / name, lines)
    write_table(folder / "FSDKaggle2018.doc" / "README.md", ["about it"])


def table_of_each_split(folder):
    for top in ("train", "test"):
        lines = ["filename,label"]
        for number in range(2):
            lines += table_in(top, number)
        write_table(folder / f"{top}.csv", lines)
        for line in lines[1:]:
            write_sound(folder / "audio" / line.split(",")[0])


TABLES = [
    audiofolder,
    audiofolder_of_jsonl,
    audiofolder_with_one_table,
    fsdkaggle2018,
    table_of_each_split,
]


@pytest.mark.parametrize("write", TABLES)
def test_tables_of_splits_are_one_table(write, tmp_path):
    write(tmp_path)
    rows = read_table(tmp_path)
    assert len(rows) == 12 and label_table(rows).names == CLASSES
    (split,) = runs_of(rows, valid_share=0.0).values()
    for side in ("train", "test"):
        files = [rows[row]["audio"]["path"] for row in getattr(split, side)]
        assert len(set(files)) == 6
        assert all(f"{side}" in file.removeprefix(str(tmp_path)) for file in files)


def test_speech_commands_is_read_by_its_lists(tmp_path, caplog):
    for name in ("yes", "no", "_background_noise_"):
        for number in range(4):
            write_sound(tmp_path / name / f"{number}_nohash_0.wav")
    for number, split in enumerate(("validation", "testing")):
        lines = [f"{name}/{number}_nohash_0.wav" for name in ("yes", "no")]
        write_table(tmp_path / f"{split}_list.txt", lines)
    rows = read_table(tmp_path)
    assert label_table(rows).names == ("no", "yes")
    (split,) = runs_of(rows).values()
    assert [len(side) for side in split] == [4, 2, 2]
    assert "_background_noise_ (4 clips); rename" in caplog.text


def test_a_stray_table_beside_class_folders_is_named(tmp_path, caplog):
    class_folders(tmp_path, [""])
    write_table(tmp_path / "notes.csv", ["date,weather", "2024-05-01,rain"])
    rows = read_table(tmp_path)
    assert label_table(rows).names == CLASSES and len(rows) == 3
    assert "left out tables" in caplog.text and "notes.csv" in caplog.text
    with pytest.raises(ValueError, match="no column 'sky'"):  # as was asked for
        read_table(tmp_path, label_column="sky")


def test_what_is_in_no_class_folder_is_reported(tmp_path, caplog):
    class_folders(tmp_path, [""])
    write_sound(tmp_path / "outside.wav")
    (tmp_path / "empty").mkdir()
    assert len(read_table(tmp_path)) == 3
    assert "1 clips of " in caplog.text and "are in no class folder" in caplog.text
    assert "1 folders of " in caplog.text and "hold no audio: empty" in caplog.text


def test_an_unreadable_folder_is_refused(tmp_path, close_folders):
    class_folders(tmp_path, [""])
    close_folders("cat")
    message = r"cat cannot be read \(Permission denied\); make it readable"
    with pytest.raises(PermissionError, match=message):
        read_table(tmp_path)


def test_a_file_of_a_split_that_may_be_any_of_several_is_refused(tmp_path):
    for name in ("x/a.wav", "y/a.wav", "y/b.wav"):
        write_sound(tmp_path / name)
    for side, name in (("train", "a"), ("test", "b")):
        lines = [[f"{name}.wav", "dog"]]
        write_csv(tmp_path / f"{side}.csv", ["file", "label"], lines)
    with pytest.raises(ValueError, match=r"several files a.wav \(x/a.wav, y/a.wav\)"):
        read_table(tmp_path)
