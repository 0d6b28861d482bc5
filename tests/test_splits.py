"""Splits are disjoint and complete, keep groups whole and classes in proportion."""

from collections import Counter

import datasets
import numpy as np
import pytest

from efficientat_plugin.data.splits import (
    Split,
    given_split,
    split_by_fold,
    split_rows,
)
from efficientat_plugin.data.tables import read_table


def rows_of(labels, groups=None, **more):
    columns = {
        "video_id": [f"clip{place:04d}" for place in range(len(labels))],
        "labels": [[names] if isinstance(names, str) else names for names in labels],
        **more,
    }
    if groups is not None:
        columns["group"] = groups
    return datasets.Dataset.from_dict(columns)


def single_labels(sizes, seed=0):
    labels = [
        f"class{number}" for number, size in enumerate(sizes) for _ in range(size)
    ]
    return np.random.default_rng(seed).permutation(labels).tolist()


def several_labels(num_rows, num_classes=12, seed=0):
    rng = np.random.default_rng(seed)
    often = 0.6 / np.arange(1, num_classes + 1)
    present = rng.random((num_rows, num_classes)) < often
    return [[f"class{c}" for c in np.flatnonzero(row)] for row in present]


DATA = {
    "single": rows_of(single_labels([100, 41, 23, 10, 7])),
    "many small": rows_of(single_labels([6] * 50)),
    "groups": rows_of(single_labels([80, 60, 40]), [f"g{n % 37}" for n in range(180)]),
    "groups of a class": rows_of(
        [f"class{n // 60}" for n in range(180)], [f"g{n // 4}" for n in range(180)]
    ),
    "some in groups": rows_of(
        single_labels([50, 50]), [f"g{n % 9}" if n % 2 else None for n in range(100)]
    ),
    "several labels": rows_of(several_labels(400)),
    "several labels in groups": rows_of(
        several_labels(400), [f"g{n // 3}" for n in range(400)]
    ),
}


def counts_of(rows, side):
    return Counter(name for row in side for name in set(rows[row]["labels"]))


def assert_laws(rows, sides):
    """Disjoint, complete, in order, groups whole."""
    assert sorted(row for side in sides for row in side) == list(range(len(rows)))
    assert all(side == sorted(side) for side in sides)
    if "group" in rows.column_names:
        groups = rows["group"][:]
        held = [{groups[row] for row in side} - {None} for side in sides]
        assert sum(map(len, held)) == len(set(groups) - {None})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", DATA)
def test_a_split_is_disjoint_complete_and_keeps_groups_whole(name, seed):
    rows = DATA[name]
    split = split_rows(rows, valid_share=0.15, test_share=0.2, seed=seed)
    assert_laws(rows, split)
    for side, share in zip(split, (0.65, 0.15, 0.2), strict=True):
        assert abs(len(side) - share * len(rows)) <= 0.05 * len(rows)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.25, 0.0), (0.07, 0.33)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["single", "many small"])
def test_each_class_is_split_to_within_a_clip(name, seed, shares):
    rows = DATA[name]
    split = split_rows(rows, *shares, seed=seed)
    whole = counts_of(rows, range(len(rows)))
    for side, share in zip(split, (1 - sum(shares), *shares), strict=True):
        found = counts_of(rows, side)
        for label, count in whole.items():
            assert abs(found[label] - share * count) < 1, label
    # What each class is rounded by does not add up.
    for side, share in zip(split, (1 - sum(shares), *shares), strict=True):
        assert abs(len(side) - share * len(rows)) < 2


def test_groups_of_one_size_are_split_to_within_a_group():
    rows = DATA["groups of a class"]
    split = split_rows(rows, 0.2, 0.2)
    for side, share in zip(split, (0.6, 0.2, 0.2), strict=True):
        assert all(abs(n - share * 60) < 4 for n in counts_of(rows, side).values())


def test_several_labels_are_split_in_proportion():
    rows = DATA["several labels"]
    split = split_rows(rows, 0.2, 0.2)
    whole = counts_of(rows, range(len(rows)))
    for side, share in zip(split, (0.6, 0.2, 0.2), strict=True):
        found = counts_of(rows, side)
        for label, count in whole.items():
            assert abs(found[label] - share * count) <= max(2, 0.1 * count), label


def test_a_class_of_enough_groups_is_on_every_side():
    # 10 % of a large group is less than any group, but a score needs one.
    groups = [f"{label}{n}" for label in "ab" for n in range(3) for _ in range(10)]
    rows = rows_of([group[0] for group in groups], groups)
    split = split_rows(rows, 0.1, 0.1)
    assert all(set(counts_of(rows, side)) == {"a", "b"} for side in split)


def test_a_class_of_one_clip_is_trained_on_and_named(caplog):
    rows = rows_of(["a"] * 20 + ["b"] * 20 + ["rare"])
    for seed in range(5):
        caplog.clear()
        split = split_rows(rows, 0.2, 0.2, seed=seed)
        assert 40 in split.train
        assert caplog.messages == [
            "1 class is too small, or in too few groups, to have clips in valid and "
            "test: rare (1)"
        ]


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = DATA["groups"]
    split = split_rows(rows, seed=3)
    assert split == split_rows(rows, seed=3) != split_rows(rows, seed=4)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = rows.select(order)
    for one, other in zip(split, split_rows(shuffled, seed=3), strict=True):
        assert sorted(order[row] for row in other) == one


def test_a_split_reads_no_audio():
    rows = DATA["single"].add_column("audio", ["?"] * len(DATA["single"]))

    def refuse_audio(batch):
        assert "audio" not in batch
        return batch

    guarded = rows.with_transform(refuse_audio)
    assert split_rows(guarded) == split_rows(DATA["single"])


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (
            rows_of(["dog", "dog"]),
            {},
            r"the 2 clips have 1 class \(dog\); .* needs clips of two or more",
        ),
        (
            rows_of(["dog", "cat"]),
            {},
            r"2 clips cannot be split into 3 \(train, valid, test\); each needs",
        ),
        (
            rows_of(["dog", "cat"] * 4, ["x", "y"] * 4),
            {},
            r"2 groups \(of 8 clips\) cannot be split into 3",
        ),
        (
            rows_of(["dog", "cat"] * 2),
            {},
            "0.1 of 4 clips, for test, is less than half a clip; .* a share of 0.25 or",
        ),
        (
            rows_of(["dog", "cat"] * 3, ["x", "x", "x", "x", "y", "z"]),
            {"valid_share": 0.4, "test_share": 0.4},
            "no clips are left for train: 6 clips in 3 groups cannot be split",
        ),
        (
            DATA["single"],
            {"valid_share": -0.1},
            "valid_share=-0.1 and test_share=0.1",
        ),
        (DATA["single"], {"valid_share": 0.9}, "leave something to train on"),
    ],
)
def test_what_cannot_be_split_is_refused_with_what_is_needed(rows, given, message):
    with pytest.raises(ValueError, match=message):
        split_rows(rows, **given)


def test_given_folds_and_splits_are_kept():
    rows = rows_of(["a"] * 6, fold=list("112233"))
    split = split_by_fold(rows, test_fold=2)
    assert split == Split(train=[0, 1, 4, 5], valid=[], test=[2, 3])
    assert split_by_fold(rows, "2", valid_fold=1).valid == [0, 1]
    rows = rows_of(["a"] * 3, split=["test", "train", "valid"])
    assert given_split(rows) == Split(train=[1], valid=[2], test=[0])


@pytest.mark.parametrize("folds", [(4, None), (1, 1), (1, 7)])
def test_an_unknown_fold_is_refused(folds):
    rows = rows_of(["a"] * 6, fold=list("112233"))
    with pytest.raises(ValueError, match="must be two of the folds 1, 2, 3"):
        split_by_fold(rows, *folds)


def test_clips_without_labels_are_split_by_number():
    rows = rows_of([[] for _ in range(20)])
    assert [len(side) for side in split_rows(rows, 0.2, 0.3)] == [10, 4, 6]
    grouped = rows_of([[] for _ in range(20)], ["x"] * 3 + ["y"] * 3 + [None] * 14)
    assert_laws(grouped, split_rows(grouped, 0.2, 0.3))
    some = rows_of([["a"], ["b"]] * 10 + [[]] * 20)
    assert [len(side) for side in split_rows(some, 0.25, 0.25)] == [20, 10, 10]


@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
@pytest.mark.parametrize(
    "names",
    [("training", "validation", "testing"), ("train", "val", "test")]
    + [("train", "dev", "eval")],
)
def test_usual_names_of_splits_are_understood(names, spell):
    rows = rows_of(["a"] * 3, split=[spell(name) for name in names])
    assert given_split(rows) == Split(train=[0], valid=[1], test=[2])


def test_names_that_may_be_any_split_are_refused():
    rows = rows_of(["a"] * 3, split=["test", "dev", "eval"])
    message = r"column split holds dev, eval, .* as splits={dev: ..., eval: ..., test:"
    with pytest.raises(ValueError, match=message):
        given_split(rows)


@pytest.mark.parametrize(("read", "name"), [(given_split, "split"), (None, "fold")])
def test_a_missing_column_is_refused_with_what_there_is(read, name):
    read = read or (lambda rows: split_by_fold(rows, 1))
    message = f"no column {name}, only video_id, labels; name it with {name}_column"
    with pytest.raises(ValueError, match=message):
        read(rows_of(["a"]))


def test_groups_on_both_sides_of_a_given_split_are_named(caplog):
    rows = rows_of(["a"] * 3, ["x", "x", "y"], split=["train", "test", "test"])
    given_split(rows)
    assert "1 groups are on several sides of the given split: x" in caplog.text


def test_names_that_command_a_terminal_are_shown_in_plain_text(caplog):
    rows = rows_of([["a"]] * 8 + [["\x1b[31m"]], ["\x1b[32m"] * 2 + [None] * 7)
    split_rows(rows)
    rows = rows_of([["a"], ["b"]], ["\x1b[32m"] * 2, split=["train", "test"])
    given_split(rows)
    for message, color in zip(caplog.messages, "12", strict=True):
        assert rf"\x1b[3{color}m" in message and message.isprintable()


def test_recordings_of_real_esc50_stay_together(shared):
    rows = read_table(
        shared / "data" / "esc50", group_column="src_file", audio_folder="audio"
    )
    split = split_rows(rows, 0.15, 0.15)
    assert_laws(rows, split)
    assert len(counts_of(rows, split.train)) == 50


def test_clips_without_a_fold_are_trained_on():
    columns = {"video_id": list("abcd"), "fold": ["1", None, "2", None]}
    rows = datasets.Dataset.from_dict(columns)
    assert split_by_fold(rows, 1) == Split([1, 2, 3], [], [0])
