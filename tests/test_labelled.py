"""The classes, targets and splits of labelled clips."""

import datasets
import pytest
import soundfile

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labelled import open_labelled, runs_of
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import summarize_rows


def rows_of(labels, **columns):
    ids = [f"clip{number:03d}" for number in range(len(labels))]
    return datasets.Dataset.from_dict({"video_id": ids, "labels": labels} | columns)


@pytest.fixture
def table(tmp_path):
    lines = ["file,label,part"]
    for number in range(8):
        soundfile.write(tmp_path / f"{number}.wav", [0.0, 0.1], 32000)
        part = ("train", "train", "dev", "eval")[number % 4]
        lines.append(f"{number}.wav,{'dog' if number < 4 else 'cat'},{part}")
    path = tmp_path / "clips.csv"
    path.write_text("\n".join(lines))
    return path


def test_facts_may_stand_in_a_file_and_what_is_given_goes_before_them(table, tmp_path):
    facts = tmp_path / "facts.yaml"
    facts.write_text("classes: [dog, cat, cow]\nlicence: CC0\nlabel_column: nowhere\n")
    clips = open_labelled(table, facts, label_column="label", group_column=None)
    assert clips.labels.names == ("dog", "cat", "cow")
    assert clips.target == "multiclass" and clips.rows.info.license == "CC0"
    assert open_labelled(table, {}, "multilabel").target == "multilabel"
    with pytest.raises(ValueError, match="target='both'; it is one of"):
        open_labelled(table, {}, "both")
    facts.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="holds no facts about data"):
        open_labelled(table, facts)


@pytest.mark.parametrize("audio", ["audio", "", "meta", "wav"])
def test_the_folder_of_known_data_need_not_be_there(audio, tmp_path):
    """As in copies of ESC-50 with the files beside the table."""
    for place in (tmp_path / audio, tmp_path / "meta"):
        place.mkdir(exist_ok=True)
    lines = ["filename,category"]
    for name in ("dog", "cat"):
        soundfile.write(tmp_path / audio / f"{name}.wav", [0.0, 0.1], 32000)
        lines.append(f"{name}.wav,{name}")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(lines))
    facts = {"audio_folder": "audio", "label_column": "category"}
    if audio == "wav":
        with pytest.raises(FileNotFoundError, match="set audio_folder=wav"):
            open_labelled(tmp_path, facts)
        facts["audio_folder"] = audio
    assert len(open_labelled(tmp_path, facts).rows) == 2
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        open_labelled(tmp_path, facts, audio_folder="nowhere")


def test_several_labels_of_a_clip_make_the_target_multilabel(table):
    lines = table.read_text().replace("0.wav,dog", '0.wav,"dog;cat"')
    table.write_text(lines)
    assert open_labelled(table, {}, separator=";").target == "multilabel"


def test_splits_of_other_names_are_used_once_they_are_explained(table):
    named = {"train": "train", "dev": "valid", "eval": "test"}
    clips = open_labelled(table, {"split_column": "part"}, splits=named)
    (split,) = runs_of(clips.rows).values()
    assert split == ([0, 1, 4, 5], [2, 6], [3, 7])


def test_columns_decide_unless_a_kind_is_given():
    labels = [["a"], ["b"]] * 6
    rows = rows_of(labels, split=["train", "train", "test", "test"] * 3)
    assert list(runs_of(rows)) == ["given"]
    assert list(runs_of(rows, "random")) == ["random"]
    folds = rows_of(labels, fold=["10", "10", "1", "1", "3", "3"] * 2)
    assert list(runs_of(folds)) == ["fold1", "fold3", "fold10"]
    assert list(runs_of(folds, fold=3)) == ["fold3"]
    assert runs_of(folds, valid_share=0.0)["fold1"].test == [2, 3, 8, 9]
    both = rows_of(labels, fold=["1", "1", "2", "2"] * 3, split=["train"] * 12)
    assert list(runs_of(both, fold=1)) == ["fold1"]
    with pytest.raises(ValueError, match="fold=1 was given, but split=random uses no"):
        runs_of(both, "random", fold=1)
    for given, message in (({"kind": "fold"}, "split=fold"), ({"fold": 3}, "fold=3")):
        message += " needs a column of folds, but the data has .*fold_column"
        with pytest.raises(ValueError, match=message):
            runs_of(rows_of(labels), **given)
    with pytest.raises(ValueError, match="split='thirds'; it is one of"):
        runs_of(rows, "thirds")


def test_a_side_without_labels_is_refused():
    sides = ["train", "train", "test"] * 2
    rows = rows_of([["a"], ["b"], []] * 2, split=sides)
    with pytest.raises(ValueError, match=r"no clip to test on \(given\) has a label"):
        runs_of(rows, valid_share=0.0)


def test_labels_are_names_of_the_classes_that_are_given(table):
    given = LabelTable(["/m/0bt9lr", "/m/01yrx"], ["Dog", "Cat"])
    clips = open_labelled(table, {}, "multilabel", given)
    summary = summarize_rows(clips.rows, clips.labels)
    assert summary.counts.tolist() == [4, 4] and not summary.unknown
    read = ClipReader(clips.labels, 0.1).read(clips.rows[0])
    assert read.labels.tolist() == [1, 0] and read.labelled == 1
    given = LabelTable(["/m/0bt9lr", "/m/01yrx"], ["Dog", "Bird"])
    clips = open_labelled(table, {}, "multilabel", given)
    text = str(summarize_rows(clips.rows, clips.labels))
    assert "8 clips, 4 labelled" in text and "are left out: cat (4)" in text
    with pytest.raises(
        ValueError, match=r"\(4\).* none is an id or a name of the 2 cl"
    ):
        open_labelled(table, {}, "multilabel", LabelTable("xy", "XY"))


def test_a_folder_of_sounds_needs_no_labels_where_classes_are_given(table):
    folder = table.parent
    clips = open_labelled(
        folder, {}, "multilabel", LabelTable("xyz", "XYZ"), form="sounds"
    )
    assert clips.rows["video_id"][:] == [str(number) for number in range(8)]
    assert not any(clips.rows["labels"]) and clips.labels.names == ("X", "Y", "Z")
    split = runs_of(clips.rows, valid_share=0.25, test_share=0.25)["random"]
    assert [len(side) for side in split] == [5, 1, 2]
    (folder / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="none holds no audio"):
        open_labelled(folder / "none", {}, form="sounds")


def test_validation_without_a_test_is_a_split():
    rows = rows_of([["x"], ["y"]] * 2, split=["train"] * 2 + ["val"] * 2)
    assert runs_of(rows)["given"] == ([0, 1], [2, 3], [])
    split = runs_of(rows.remove_columns("split"), "random", None, 0.25, 0.0)["random"]
    assert (len(split.valid), split.test) == (1, [])
