"""Do logits belong to the clips of a store's index? The labels of a data set tell."""

import functools
import random
import re

import numpy as np
import pytest

from efficientat_plugin.data.labels import LabelTable, summarize_labels
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import verify
from efficientat_plugin.teachers.store.writer import StoreWriter
from efficientat_plugin.teachers.stored import StoredTeacher

ABOUT = {
    "teacher": "passt",
    "labels_sha256": "1" * 64,
    "num_classes": 3,
    "sample_rate": 32000,
    "clip_seconds": 10.0,
}


@functools.cache
def labelled_clips(count, num_classes=20, per_clip=2, seed=0):
    """Ids, and classes drawn as real ones are: a few of them nearly everywhere."""
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_classes + 1)
    return tuple(
        (
            f"c{clip}",
            draw.choice(
                num_classes,
                size=draw.integers(1, per_clip + 1),
                replace=False,
                p=weights / weights.sum(),
            ).tolist(),
        )
        for clip in range(count)
    )


def teacher_logits(clips, num_classes=20, separation=4.0, seed=1):
    """Normal scores, those of labelled classes higher: 0.954 gives an AUC of 0.75."""
    logits = np.random.default_rng(seed).normal(-5.0, 1.0, (len(clips), num_classes))
    for row, (_, classes) in enumerate(clips):
        logits[row, classes] += separation
    return logits.astype(np.float32)


def store_of(path, clips, logits, order=None, **about):
    order = np.arange(len(clips)) if order is None else order
    about = ABOUT | {"num_classes": logits.shape[1]} | about
    with StoreWriter(path, **about) as writer:
        writer.append([clips[i][0] for i in order], logits[order])
    return LogitsStore(path)


def shift_from(logits, row):
    return np.concatenate([logits[:row], np.roll(logits[row:], 1, axis=0)])


@pytest.mark.parametrize("per_clip", [1, 4])
@pytest.mark.parametrize("count", [130, 5000])
def test_aligned_store_passes(tmp_path, count, per_clip):
    clips = labelled_clips(count, per_clip=per_clip)
    report = verify(store_of(tmp_path / "s", clips, teacher_logits(clips)), clips)
    report.raise_if_bad()
    assert report.coverage == 1 and report.labels_match is None and report.blocks >= 2
    assert str(report).startswith(f"ok: 100.0% of {count} clips stored")


@pytest.mark.parametrize("seed", range(8))
def test_weak_but_honest_teacher_passes(tmp_path, seed):
    clips = labelled_clips(1000, seed=seed)
    logits = teacher_logits(clips, separation=0.954, seed=seed + 100)
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_two_classes_of_which_one_prevails_suffice(tmp_path, share):
    present = np.random.default_rng(0).random(1000) < share
    clips = [(f"c{i}", [0] if p else [1]) for i, p in enumerate(present)]
    logits = teacher_logits(clips, num_classes=2, separation=2.0)
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()
    bad = store_of(tmp_path / "bad", clips, shift_from(logits, 0))
    with pytest.raises(ValueError, match="of other clips"):
        verify(bad, clips).raise_if_bad()


def test_data_set_sorted_by_class_passes(tmp_path):
    clips = [(f"c{i}", [i // 100]) for i in range(2000)]
    verify(store_of(tmp_path / "s", clips, teacher_logits(clips)), clips).raise_if_bad()


@pytest.mark.parametrize("separation", [1.5, 4.0])
@pytest.mark.parametrize("count", [130, 5000])
def test_store_off_by_one_is_refused(tmp_path, count, separation):
    clips = labelled_clips(count)
    logits = shift_from(teacher_logits(clips, separation=separation), 0)
    report = verify(store_of(tmp_path / "s", clips, logits), clips)
    assert report.aligned is False
    with pytest.raises(ValueError, match="seem to be of other clips.*rebuild the st"):
        report.raise_if_bad()


@pytest.mark.parametrize("count, start", [(130, 65), (5000, 2500), (5000, 4600)])
def test_stretch_off_by_one_is_refused_and_named(tmp_path, count, start):
    clips = labelled_clips(count)
    logits = shift_from(teacher_logits(clips), start)
    report = verify(store_of(tmp_path / "s", clips, logits), clips)
    assert report.bad_stretch is not None
    assert start - 1 <= int(report.bad_stretch.first[1:]) <= start + 100
    with pytest.raises(ValueError, match=f"from clip '{report.bad_stretch.first}' to"):
        report.raise_if_bad()


def test_stretch_of_the_store_shows_in_a_shuffled_data_set(tmp_path):
    clips = labelled_clips(5000)
    store = store_of(tmp_path / "s", clips, shift_from(teacher_logits(clips), 3000))
    shuffled = random.Random(0).sample(clips, len(clips))
    assert verify(store, shuffled).bad_stretch.order == "store"


def test_half_of_a_weak_teacher_off_by_one_is_refused(tmp_path):
    clips = labelled_clips(2000)
    logits = shift_from(teacher_logits(clips, separation=0.954), 1000)
    with pytest.raises(ValueError, match="of other clips"):
        verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


def test_classes_in_another_order_are_refused(tmp_path):
    clips = labelled_clips(1000)
    logits = np.roll(teacher_logits(clips), 3, axis=1)
    with pytest.raises(ValueError, match="order of its classes"):
        verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


def test_label_tables_that_differ_are_refused(tmp_path):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    verify(store, clips, labels_sha256=ABOUT["labels_sha256"]).raise_if_bad()
    report = verify(store, clips, labels_sha256="9" * 64)
    with pytest.raises(ValueError, match="label tables of the store and the data"):
        report.raise_if_bad()
    assert str(report).startswith("bad: ") and "tables different" in str(report)


def test_another_number_of_classes_is_refused(tmp_path):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    verify(store, clips, num_classes=20).raise_if_bad()
    with pytest.raises(ValueError, match="has another number of classes than"):
        verify(store, clips, num_classes=21).raise_if_bad()


@pytest.mark.parametrize("kind", ["another number", "probabilities"])
def test_training_on_other_logits_is_refused(tmp_path, kind):
    """Though the digest is that of the label table."""
    names = [f"/m/{number}" for number in range(20)]
    labels, clips = LabelTable(names, names), labelled_clips(200, num_classes=19)
    ids, indices = zip(*clips, strict=True)
    given = [[names[index] for index in classes] for classes in indices]
    summary = summarize_labels(ids, given, labels)
    logits = teacher_logits(clips)
    about = {"labels_sha256": labels.sha256}
    good = StoredTeacher(store_of(tmp_path / "good", clips, logits, **about))
    assert good.check(summary, labels).startswith("ok: ")
    other = logits[:, :19] if kind == "another number" else 1 / (1 + np.exp(-logits))
    bad = StoredTeacher(store_of(tmp_path / "bad", clips, other, **about))
    with pytest.raises(ValueError, match="another number of classes|probabilities"):
        bad.check(summary, labels)


@pytest.mark.parametrize("labelled", [True, False])
def test_probabilities_are_refused(tmp_path, labelled):
    clips = labelled_clips(200)
    probabilities = 1 / (1 + np.exp(-teacher_logits(clips)))
    store = store_of(tmp_path / "s", clips, probabilities)
    clips = clips if labelled else [(name, []) for name, _ in clips]
    with pytest.raises(ValueError, match="numbers are from 0 to 1, so they are"):
        verify(store, clips).raise_if_bad()


@pytest.mark.parametrize("share", [0.25, 0.34, 0.6])
def test_scattered_rows_of_other_clips_are_not_plainly_ok(tmp_path, share):
    clips = labelled_clips(2000, num_classes=100)
    logits = teacher_logits(clips, num_classes=100)
    report = verify(store_of(tmp_path / "good", clips, logits), clips)
    assert str(report).startswith("ok: ") and report.pairs_right > 0.97
    draw = np.random.default_rng(5)
    wrong = np.flatnonzero(draw.random(len(clips)) < share)
    logits[wrong] = logits[draw.permutation(wrong)]
    report = verify(store_of(tmp_path / "bad", clips, logits), clips)
    assert abs(2 * (1 - report.pairs_right) - share) < 0.06
    assert str(report).startswith(("doubtful: ", "bad: "))


def test_low_coverage_is_refused(tmp_path):
    clips = labelled_clips(1000)
    store = store_of(tmp_path / "s", clips[:850], teacher_logits(clips[:850]))
    verify(store, iter(clips), minimum_coverage=0.85).raise_if_bad()
    message = f"^{re.escape(str(tmp_path))}/s: the store has 85.0% of 1000 clips,"
    with pytest.raises(ValueError, match=message):
        verify(store, clips).raise_if_bad()


@pytest.mark.parametrize(
    "labels_of, found",
    [
        (lambda clip, classes: classes if clip < 19 else [], 19),
        (lambda clip, classes: [3], 0),
    ],
    ids=["few", "alike"],
)
def test_too_few_labels_are_no_verdict(tmp_path, labels_of, found):
    clips = labelled_clips(200)
    store = store_of(tmp_path / "s", clips, teacher_logits(clips))
    clips = [(i, labels_of(n, classes)) for n, (i, classes) in enumerate(clips)]
    report = verify(store, clips)
    assert report.aligned is None
    report.raise_if_bad()  # nothing speaks against it
    assert re.search(f"^unjudged: .* only {found} clips .* and 20 are", str(report))


def test_constant_class_does_not_disturb(tmp_path):
    clips = labelled_clips(500)
    logits = teacher_logits(clips)
    logits[:, 2] = -7.0
    verify(store_of(tmp_path / "s", clips, logits), clips).raise_if_bad()


@pytest.mark.parametrize(
    "clips, coverage, text",
    [
        ([], 0.9, "clips is empty"),
        ([("a", [3])], 0.9, "must be integers from 0 to 2"),
        ([("a", [-1])], 0.9, "must be integers from 0 to 2"),
        ([("a", [0.0, 1.0])], 0.9, "must be integers from 0 to 2"),
        ([("a", [1])], 90, "minimum_coverage=90 must be from 0 to 1"),
    ],
)
def test_verify_refuses_what_it_cannot_read(tmp_path, clips, coverage, text):
    store = store_of(tmp_path / "s", [("a", [])], np.zeros((1, 3)))
    with pytest.raises(ValueError, match=text):
        verify(store, clips, minimum_coverage=coverage)
