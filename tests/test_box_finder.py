"""Bounding boxes become events like any others, in pieces or at once."""

import numpy as np
import pytest

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import events_above, frame_times
from efficientat_plugin.data.events.score_boxes import BoxOptions, box_scores
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.tagging.box_finder import BoxFinder
from efficientat_plugin.tagging.event_finder import EventOptions

LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["Dog", "Cat", "Speech, whispered"])
STEP = 0.04


def found(scores, sizes=(1000,), start=0.0, end=None, **options):
    finder = BoxFinder(LABELS, STEP, EventOptions(boxes=True, **options), start)
    events, place = [], 0
    while place < len(scores):
        for size in sizes:
            events += finder.feed(scores[place : place + size])
            place += size
    return sorted(events + finder.finish(len(scores) * STEP if end is None else end))


def random_scores(seed):
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(90, 3)), axis=0)
    return (1 / (1 + np.exp(-walk))).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_events_are_where_the_scores_of_boxes_exceed_the_threshold(seed, threshold):
    """Computed as the evaluation does."""
    scores = random_scores(seed)
    options = {"box_step_seconds": 0.32, "box_merge_difference": 0.3}
    options |= {"box_merge_ratio": None}
    boxed = box_scores(scores, STEP, BoxOptions(0.32, 0.3, None))
    times = frame_times(90, 90 * STEP)
    expected = events_above(boxed, threshold, LABELS.names, times)
    events = found(scores, threshold=threshold, **options)
    assert [(e.start_seconds, e.end_seconds, e.label) for e in events] == sorted(
        expected, key=lambda each: (each[2], each[0])
    )
    for event in events:
        place = LABELS.names.index(event.label), round(event.start_seconds / STEP)
        assert event.score == pytest.approx(boxed[place[1], place[0]], abs=1e-6)
        assert event.score > threshold


@pytest.mark.parametrize("sizes", [(1,), (4, 9), (50,)])
def test_events_do_not_depend_on_how_scores_arrive(sizes):
    for seed in range(5):
        scores = random_scores(seed)
        assert found(scores, sizes, threshold=0.3) == found(scores, threshold=0.3)


def test_no_threshold_moves_the_ends():
    scores = random_scores(0)
    low, high = found(scores, threshold=0.2), found(scores, threshold=0.6)
    assert 0 < len(high) < len(low) and {*high} <= {*low}


def test_classes_thresholds_and_durations_apply():
    scores = random_scores(3)
    every = found(scores, threshold=0.0)
    dogs = found(scores, threshold={"Dog": 0.4})
    assert dogs == [e for e in every if e.label == "Dog" and e.score > 0.4]
    assert found(scores, threshold=0.0, classes=["Cat"]) == [
        e for e in every if e.label == "Cat"
    ]
    long = found(scores, threshold=0.0, min_seconds=0.4)
    expected = [e for e in every if e.end_seconds - e.start_seconds >= 0.4 - 1e-9]
    assert long == expected != every


def test_events_end_with_the_sound_and_begin_with_it():
    scores = np.full((10, 3), [0.8, 0.0, 0.0])
    assert found(scores, start=-0.06, end=0.3) == [Event("Dog", 0.0, 0.3, 0.8)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"off_threshold": 0.2}, "off_threshold=0.2 does nothing to boxes; merge them"),
        ({"max_gap_seconds": 0.2}, "max_gap_seconds=0.2 does nothing to boxes"),
        ({"max_seconds": 3.0}, "max_seconds=3.0 does nothing to boxes"),
        ({"box_step_seconds": 0.0}, "step_seconds=0.0 must be above 0"),
    ],
)
def test_options_that_do_nothing_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        found(random_scores(0), **options)
