"""Scores over time become events, however they arrive."""

import math

import numpy as np
import pytest

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import (
    events_above,
    frame_times,
    median_filter,
)
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.tagging.event_finder import (
    EventFinder,
    EventOptions,
    class_thresholds,
)

LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["Dog", "Cat", "Speech, whispered"])
STEP = 0.04


def found(scores, options, sizes=None, start=0.0, end=None):
    """All events, sorted, of scores that arrive in pieces of these sizes."""
    finder, events, place = EventFinder(LABELS, STEP, options, start), [], 0
    for size in sizes or [len(scores)]:
        events += finder.feed(scores[place : place + size])
        place += size
    assert place >= len(scores)
    return sorted(events + finder.finish(len(scores) * STEP if end is None else end))


def column(text):
    """Scores of Dog from digits, tenths each; the other classes are silent."""
    scores = np.zeros((len(text), 3), np.float32)
    scores[:, 0] = [int(digit) / 10 for digit in text]
    return scores


def spans(text, **options):
    """First and last frame of each event of Dog."""
    events = found(column(text), EventOptions(**{"median_seconds": 0.0} | options))
    return [
        (round(each.start_seconds / STEP), round(each.end_seconds / STEP) - 1)
        for each in events
    ]


def random_options(rng):
    options = EventOptions(
        threshold=float(rng.integers(3, 9)) / 10,
        median_seconds=float(rng.integers(0, 5)) * 0.08,
        min_seconds=float(rng.choice([0.0, 0.08, 0.2])),
        max_gap_seconds=float(rng.choice([0.0, 0.04, 0.12, 0.4])),
        max_seconds=float(rng.choice([math.inf, 0.5])),
    )
    if rng.random() < 0.5:
        options = options._replace(off_threshold=options.threshold - 0.2)
    return options


@pytest.mark.parametrize("seed", range(100))
def test_events_do_not_depend_on_how_scores_arrive(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random((rng.integers(1, 60), 3)), 1)
    options, sizes = random_options(rng), []
    while sum(sizes) < len(scores):
        sizes.append(int(rng.integers(1, 10)))
    assert found(scores, options, sizes) == found(scores, options)


@pytest.mark.parametrize("seed", range(30))
def test_plain_events_are_where_smoothed_scores_exceed_the_threshold(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random((40, 3)), 1)
    half = int(rng.integers(0, 5))
    events = found(scores, EventOptions(0.5, median_seconds=half * 2 * STEP))
    smooth, times = median_filter(scores, 2 * half + 1), frame_times(40, 40 * STEP)
    expected = events_above(smooth, 0.5, LABELS.names, times)
    assert len(events) == len(expected)
    for event, (start, end, label) in zip(
        sorted(events, key=lambda e: (e.start_seconds, e.end_seconds, e.label)),
        expected,
        strict=True,
    ):
        assert event[:3] == (label, pytest.approx(start), pytest.approx(end))
        first, last = round(start / STEP), round(end / STEP)
        peak = smooth[first:last, LABELS.names.index(label)].max()
        assert event.score == pytest.approx(peak)


def test_an_event_ends_below_the_lower_threshold():
    text = "0044740400480"
    assert spans(text, threshold=0.6) == [(4, 4), (11, 11)]
    assert spans(text, threshold=0.6, off_threshold=0.3) == [(2, 5), (10, 11)]


def test_short_gaps_are_closed_unless_the_event_becomes_too_long():
    text = "0770770007700"
    assert spans(text) == [(1, 2), (4, 5), (9, 10)]
    assert spans(text, max_gap_seconds=STEP) == [(1, 5), (9, 10)]
    assert spans(text, max_gap_seconds=3 * STEP) == [(1, 10)]
    assert spans(text, max_gap_seconds=3 * STEP, max_seconds=6 * STEP) == [
        (1, 5),
        (9, 10),
    ]


def test_short_events_are_left_out_once_gaps_are_closed():
    text = "0707000700000"
    assert spans(text, min_seconds=2 * STEP) == []
    assert spans(text, min_seconds=2 * STEP, max_gap_seconds=STEP) == [(1, 3)]


def test_an_event_ends_with_the_sound_and_starts_with_it():
    [event] = found(column("7777"), EventOptions(median_seconds=0.0), end=0.13)
    assert event == Event("Dog", 0.0, 0.13, pytest.approx(0.7))
    [event] = found(column("7777"), EventOptions(), start=-0.06)
    assert (event.start_seconds, event.end_seconds) == (0.0, pytest.approx(0.1))


def test_a_score_that_equals_the_threshold_is_no_event():
    scores = np.full((5, 3), 0.5)
    assert found(scores, EventOptions(0.5)) == []
    assert len(found(scores, EventOptions(0.49))) == 3


def test_classes_and_thresholds_go_by_name_or_id():
    scores = np.full((5, 3), 0.5)
    options = EventOptions({"cat": 0.4, "/m/a": 0.6, "Speech, whispered": 0.1})
    assert [event.label for event in found(scores, options)] == [
        "Cat",
        "Speech, whispered",
    ]
    chosen = options._replace(classes=["/m/b"])
    assert [event.label for event in found(scores, chosen)] == ["Cat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.2}, "threshold=1.2 of Dog is no probability; give one"),
        ({"threshold": math.nan}, "threshold=nan of Dog is no probability"),
        ({"threshold": {"Bird": 0.5}}, "the model has no class Bird; its 3 classes"),
        ({"classes": ["Bird", "Dog"]}, "the model has no class Bird"),
        ({"off_threshold": 0.6}, "off_threshold=0.6 of Dog is above its threshold"),
        ({"median_seconds": -1.0}, "median_seconds=-1.0 must be 0 or more"),
        ({"min_seconds": math.nan}, "min_seconds=nan must be 0 or more"),
    ],
)
def test_illegal_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EventFinder(LABELS, STEP, EventOptions(**options))


def test_a_lower_threshold_for_some_classes_leaves_the_others():
    options = EventOptions(0.5, off_threshold={"Dog": 0.2})
    assert [*class_thresholds(options, LABELS).off] == [0.2, 0.5, 0.5]


def test_no_frames_have_no_events():
    finder = EventFinder(LABELS, STEP, EventOptions())
    assert finder.finish(0.0) == []


def test_names_are_looked_up_once_however_many_thresholds(monkeypatch):
    """Else each sound of a folder took a second with 527 thresholds."""
    calls, with_names = [], LabelTable.with_names
    monkeypatch.setattr(
        LabelTable, "with_names", lambda table: calls.append(1) or with_names(table)
    )
    options = EventOptions(threshold=dict.fromkeys(LABELS.mids, 0.5), classes=["dog"])
    assert class_thresholds(options, LABELS).names == ["Dog"]
    assert len(calls) == 2
