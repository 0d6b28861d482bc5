"""What the K of every label and logit means, and how labels are read."""

import re

import numpy as np
import pytest

from efficientat_plugin.data.labels import (
    LabelTable,
    audioset_labels,
    summarize_labels,
)

TABLE = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])


def test_audioset_has_its_527_classes_in_the_official_order():
    labels = audioset_labels()
    assert len(labels) == len(labels.mids) == len(labels.names) == 527
    for index, mid, name in (
        (0, "/m/09x0r", "Speech"),
        (43, "/m/01d3sd", "Snoring"),
        (427, "/m/032s66", "Gunshot, gunfire"),
        (526, "/m/07hvw1", "Field recording"),
    ):
        assert labels.index[mid] == index
        assert (labels.mids[index], labels.names[index]) == (mid, name)


def test_audioset_is_the_table_that_google_publishes(shared):
    official = shared / "data" / "audioset_class_labels_indices.csv"
    assert LabelTable.from_csv(official).mids == audioset_labels().mids


def test_a_table_is_read_in_the_order_of_its_index(tmp_path):
    text = 'index,mid,display_name\n1,/m/b,B\n0,/m/a,"A, or a"\n10,/m/c,C\n2,/m/d,D\n'
    (tmp_path / "labels.csv").write_text(text)
    table = LabelTable.from_csv(tmp_path / "labels.csv")
    assert table.mids == ("/m/a", "/m/b", "/m/d", "/m/c")
    assert table.names == ("A, or a", "B", "D", "C")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mid,display_name\n/m/a,A\n",
        "index,mid\n0,/m/a\n",
        "index,mid,display_name\n0\n",
        "index,mid,display_name\nfirst,/m/a,A\n",
        "index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n",
        f"index,mid,display_name\n0,/m/a,{'A' * 200_000}\n",
        "\x80\x04.",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_a_file_that_is_no_table_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"labels\.csv is not a table of labels"):
        LabelTable.from_csv(path)


def test_names_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="must be text, but 1"):
        LabelTable(["/m/a", 1], ["A", "B"])
    with pytest.raises(ValueError, match="must be text, but None"):
        LabelTable(["/m/a", "/m/b"], ["A", None])


def test_unknown_labels_do_not_command_a_terminal():
    table = LabelTable(["a"], ["A"])
    text = str(summarize_labels(["x"], [["\x1b[2J"]], table))
    assert "\x1b" not in text and r"\x1b[2J (1)" in text


def test_the_digest_is_of_the_ids_in_their_order():
    assert LabelTable(TABLE.mids, ["x", "y", "z"]).sha256 == TABLE.sha256
    assert LabelTable(TABLE.mids[::-1], TABLE.names).sha256 != TABLE.sha256
    assert LabelTable(TABLE.mids[:2], TABLE.names[:2]).sha256 != TABLE.sha256
    assert LabelTable(["ab", "c"], "xy").sha256 != LabelTable(["a", "bc"], "xy").sha256


def test_multi_hot_is_one_at_the_indices():
    assert TABLE.multi_hot([2, 0, 2]).tolist() == [1, 0, 1]
    assert TABLE.multi_hot([]).tolist() == [0, 0, 0]


def test_labels_are_mapped_counted_and_kept_in_the_order_of_the_rows():
    labels = [["/m/c", "/m/a"], [], ["/m/a"], None]
    summary = summarize_labels(["w", "x", "y", "z"], labels, TABLE)
    assert summary.clip_ids == ["w", "x", "y", "z"]
    assert summary.indices == [[0, 2], [], [0], []]
    assert summary.counts.dtype == np.int64 and summary.counts.tolist() == [2, 0, 1]
    assert summary.num_labelled == 2
    assert str(summary) == "4 clips, 2 labelled with 2 classes"


def test_a_label_given_twice_counts_once():
    summary = summarize_labels(["x"], [["/m/b", "/m/b"]], TABLE)
    assert summary.indices == [[1]] and summary.counts.tolist() == [0, 1, 0]


def test_unknown_labels_are_counted_and_listed():
    labels = [["/m/?", "/m/a"], ["/m/?"], ["/t/!"]]
    summary = summarize_labels(["x", "y", "z"], labels, TABLE)
    assert summary.unknown == {"/m/?": 2, "/t/!": 1}
    assert summary.num_labelled == 1
    assert str(summary) == (
        "3 clips, 1 labelled with 1 classes; 3 labels of 2 kinds are not in the label "
        "table and are left out: /m/? (2), /t/! (1)"
    )


@pytest.mark.parametrize("kinds", [1, 5, 6, 10])
def test_of_labels_that_are_left_out_all_are_named_or_the_rest_is_counted(kinds):
    labels = [[f"x{number}" for number in range(kinds)]] * 2
    text = str(summarize_labels(["x", "y"], labels, TABLE))
    named = re.findall(r"x\d \(2\)", text)
    more = re.search(r"and (\d+) more", text)
    assert len(named) + (int(more[1]) if more else 0) == kinds
    assert f"{2 * kinds} labels of {kinds} kind" in text


# --- Labels as people write them ------------------------------------------------


@pytest.mark.parametrize("how", ["id", "name", "lower", "place", "digits"])
def test_every_class_of_audioset_is_understood_however_it_is_written(how):
    table = audioset_labels().with_numbers()
    for place, (mid, name) in enumerate(zip(table.mids, table.names, strict=True)):
        written = {
            "id": mid,
            "name": name,
            "lower": name.lower(),
            "place": place,
            "digits": str(place),
        }[how]
        assert table.indices([written]) == table.indices(written) == ([place], [])


def test_names_are_understood_that_were_parted_at_their_commas():
    """Whoever joined labels by commas, and whatever stands before and after."""
    table = audioset_labels().with_names()
    rng = np.random.default_rng(0)
    for place, name in enumerate(table.names):
        others = rng.choice(len(table), 2).tolist()
        places = [others[0], place, others[1]]
        joined = ", ".join(table.names[each] for each in places)
        for parts in (joined.split(","), joined.split(", ")):
            assert table.indices(parts) == (places, [])
        assert table.indices([*name.split(","), "nothing"]) == ([place], ["nothing"])


def test_a_number_is_a_place_only_where_it_can_be_nothing_else():
    digits = LabelTable(["1", "2", "3"], ["one", "two", "three"]).with_numbers()
    assert digits.indices(["1", 2, 0]) == ([0, 1], ["0"])
    assert TABLE.with_names().indices([0, "1"]) == ([], ["0", "1"])
    assert TABLE.with_numbers().indices([0, "2", 3, -1]) == ([0, 2], ["3", "-1"])
    assert TABLE.with_numbers().sha256 == TABLE.sha256


@pytest.mark.parametrize("labels", [None, [], [None], 0, "0", "/m/a"])
def test_labels_of_any_form_are_read_or_counted(labels):
    known, unknown = TABLE.indices(labels)
    assert len(known) + len(unknown) == (labels not in (None, [], [None]))


def test_ids_go_before_names_and_a_name_of_several_classes_is_of_none():
    named = LabelTable(["rain", "/m/a", "/m/b", "/m/c"], ["Wind", "Rain", "Dog", "dog"])
    table = named.with_names()
    assert table.indices(["rain", "/M/B", "wind"]) == ([0, 2, 0], [])
    assert table.indices(["Rain", "Dog", "cat"]) == ([], ["Rain", "Dog", "cat"])
    assert named.indices(["wind"]) == ([], ["wind"])
    assert (table.mids, table.names, table.sha256) == (
        named.mids,
        named.names,
        named.sha256,
    )


@pytest.mark.parametrize(
    ("mids", "names", "message"),
    [
        (["a", "b"], ["A"], "2 class ids but 1 names"),
        (["a", "b", "a"], ["A", "B", "C"], r"must be unique, but some repeat: a"),
    ],
)
def test_a_table_refuses(mids, names, message):
    with pytest.raises(ValueError, match=message):
        LabelTable(mids, names)


def test_a_label_table_may_begin_with_a_mark(tmp_path):
    text = "index,mid,display_name\n0,/m/a,Dog\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8-sig")
    assert LabelTable.from_csv(tmp_path / "labels.csv").names == ("Dog",)
