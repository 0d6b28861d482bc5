"""Smoothing of scores, thresholds and merging, as the published evaluation does it."""

import numpy as np
import pytest
from small_detections import merged, random_case

from efficientat_plugin.data.events.frame_events import (
    events_above,
    frame_times,
    median_filter,
)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 40])
@pytest.mark.parametrize("width", [1, 3, 9, 15])
def test_the_median_filter_is_that_of_scipy(num_frames, width):
    ndimage = pytest.importorskip("scipy.ndimage")
    scores = np.random.default_rng(width).normal(size=(num_frames, 3))
    expected = ndimage.median_filter(scores, size=(width, 1), mode="reflect")
    np.testing.assert_array_equal(median_filter(scores, width), expected)


def test_the_median_filter_commutes_with_rising_functions_and_with_time():
    scores = np.random.default_rng(0).normal(size=(50, 4))
    filtered = median_filter(scores, 9)
    np.testing.assert_array_equal(median_filter(np.exp(scores), 9), np.exp(filtered))
    np.testing.assert_array_equal(median_filter(scores[::-1], 9), filtered[::-1])


def test_the_median_filter_keeps_constants_edges_and_types():
    step = np.repeat([[0.0], [1.0]], 20, axis=0).astype(np.float16)
    found = median_filter(step, 9)
    np.testing.assert_array_equal(found, step)
    assert found.dtype == np.float16
    assert median_filter(np.zeros((0, 3)), 9).shape == (0, 3)


@pytest.mark.parametrize("width", [0, -3, 4])
def test_a_median_without_a_middle_is_refused(width):
    with pytest.raises(ValueError, match="choose an odd width"):
        median_filter(np.zeros((5, 1)), width)


def test_scores_of_one_class_without_its_axis_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5,\); give \[frames, classes\]"):
        median_filter(np.zeros(5), 3)


def test_frames_end_with_their_clip():
    times = frame_times(250, 9.98)
    assert len(times) == 251
    assert times[249] == 9.96
    assert times[250] == 9.98
    np.testing.assert_allclose(np.diff(times[:-1]), 0.04)


@pytest.mark.parametrize(
    "events, expected",
    [
        ([], []),
        ([(0, 1, "a"), (1, 2, "a")], [(0, 2, "a")]),  # touch
        ([(0, 1, "a"), (1.001, 2, "a")], [(0, 1, "a"), (1.001, 2, "a")]),
        ([(0, 1, "a"), (1, 2, "b")], [(0, 1, "a"), (1, 2, "b")]),
        ([(0, 9, "a"), (1, 2, "a"), (3, 10, "a")], [(0, 10, "a")]),  # inside
        ([(5, 6, "a"), (0, 1, "b"), (5, 6, "a")], [(0, 1, "b"), (5, 6, "a")]),
    ],
)
def test_events_that_overlap_or_touch_are_merged(events, expected):
    assert merged(events) == expected
    assert merged(merged(events[::-1])) == expected


@pytest.mark.parametrize("seed", range(6))
def test_merged_events_cover_what_the_events_cover(seed):
    case = random_case(seed)
    for events in case.events.values():
        for time in np.linspace(0, 3, 301):
            before = {label for start, end, label in events if start <= time <= end}
            joined = merged(events)
            after = [label for start, end, label in joined if start <= time <= end]
            assert sorted(before) == sorted(after)


@pytest.mark.parametrize("seed", range(6))
def test_events_above_a_threshold_are_the_frames_above_it(seed):
    case = random_case(seed)
    for clip, scores in case.scores.items():
        times = frame_times(len(scores), case.durations[clip])
        events = events_above(scores, 0.5, case.classes, times)
        assert events == merged(events)
        middle = (times[1:] + times[:-1]) / 2
        active = np.zeros(scores.shape, dtype=bool)
        for start, end, label in events:
            inside = (middle > start) & (middle < end)
            active[inside, case.classes.index(label)] = True
        np.testing.assert_array_equal(active, scores > 0.5)


def test_each_class_has_a_threshold_of_its_own():
    scores = np.full((10, 2), 0.5)
    times = frame_times(10, 0.4)
    assert events_above(scores, [0.5, 0.4], ["a", "b"], times) == [(0.0, 0.4, "b")]
