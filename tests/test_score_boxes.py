"""Boxes are found where they are, merged as told, however the scores are cut."""

import itertools

import numpy as np
import pytest

from efficientat_plugin.data.events.score_boxes import (
    FLOOR,
    USUAL,
    BoxOptions,
    BoxSearch,
    box_scores,
)

APART = BoxOptions(merge_ratio=None)  # nothing is merged


def found(scores, options=USUAL, sizes=(1000,)):
    """Boxes as (class, begin, end, score), in pieces of these sizes."""
    search, place, boxes = BoxSearch(scores.shape[1], 0.04, options), 0, []
    for size in itertools.cycle(sizes):
        boxes += zip(*search.feed(scores[place : place + size]), strict=True)
        place += size
        if place >= len(scores):
            break
    boxes += zip(*search.finish(), strict=True)
    return sorted(boxes)


def column(*levels):
    """Scores of one class: (frames, score), one after the other."""
    return np.concatenate([np.full(count, score) for count, score in levels])[:, None]


def searched(scores, options):
    """The definition, of a class: all places first, then all ends, then all boxes."""
    half, whole = options.half_frames(0.04), np.rint(scores * 2**30).astype(int)
    padded = np.concatenate([np.zeros(2 * half, int), whole, np.zeros(2 * half, int)])
    place = range(-half, len(whole) + half + 1)
    sums = np.convolve(padded, np.ones(half, int), "valid")  # of half a filter
    step = (sums[half:] - sums[:-half]).tolist()
    runs = [(run[0][0], run[0][1], run[-1][1]) for run in _level_runs(step, place)]
    ends = []
    for before, (value, first, last), behind in zip(
        runs, runs[1:], runs[2:], strict=False
    ):
        if before[0] < value > behind[0]:
            ends.append(last if value > 0 else first)
        elif before[0] > value < behind[0]:
            ends.append(first if value < 0 else last)
    boxes = [[begin, end, begin] for begin, end in zip(*[iter(ends)] * 2, strict=True)]
    merged = boxes[:1]
    for begin, end, _ in boxes[1:]:
        last = merged[-1]
        gap = whole[last[1] : begin].min()
        highs = whole[last[2] : last[1]].max(), whole[begin:end].max()
        joins = options.merge_difference is not None or options.merge_ratio is not None
        for high in highs:
            if options.merge_difference is not None:
                joins &= high - gap < options.merge_difference * 2**30
            if options.merge_ratio is not None:
                joins &= high + FLOOR < options.merge_ratio * (gap + FLOOR)
        if joins:
            merged[-1] = [last[0], end, begin]
        else:
            merged.append([begin, end, begin])
    return [(begin, end, whole[begin:end].mean() / 2**30) for begin, end, _ in merged]


def _level_runs(step, place):
    return [
        [*run]
        for _, run in itertools.groupby(
            zip(step, place, strict=True), lambda pair: pair[0]
        )
    ]


@pytest.mark.parametrize("begin", [0, 1, 7, 20])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 30])
@pytest.mark.parametrize("behind", [0, 1, 9])
def test_a_clean_event_is_found_exactly(begin, length, behind):
    scores = column((begin, 0.0), (length, 0.75), (behind, 0.0))
    assert found(scores) == [(0, begin, begin + length, 0.75)]
    assert found(scores, APART) == [(0, begin, begin + length, 0.75)]


def test_clean_events_half_a_filter_apart_are_found_exactly():
    scores = column((9, 0.0), (10, 0.9), (6, 0.0), (12, 0.8), (7, 0.0), (8, 1.0))
    ends = [(begin, end) for _, begin, end, _ in found(scores)]
    assert ends == [(9, 19), (25, 37), (44, 52)]


def test_neighbours_are_merged_across_a_shallow_gap_alone():
    scores = column((9, 0.0), (20, 0.8), (10, 0.65), (20, 0.8), (9, 0.0))
    [box] = found(scores, BoxOptions(0.48, 0.2, None))
    assert box == (0, 9, 59, pytest.approx((40 * 0.8 + 10 * 0.65) / 50))
    ends = [box[1:3] for box in found(scores, BoxOptions(0.48, 0.1, None))]
    assert ends == [(9, 29), (39, 59)]
    for ratio, count in ((1.3, 1), (1.2, 2)):
        options = BoxOptions(merge_difference=None, merge_ratio=ratio)
        assert len(found(scores, options)) == count
    both = BoxOptions(merge_difference=0.2, merge_ratio=1.2)
    assert len(found(scores, both)) == 2 and len(found(scores, APART)) == 2


def test_a_score_does_not_move_the_ends():
    """Unlike those of a threshold."""
    scores = column((9, 0.1), (30, 0.7), (9, 0.1))
    expected = [box[1:3] for box in found(scores)]
    assert expected == [box[1:3] for box in found(scores * 0.5)]
    assert (9, 39) in expected


def test_nothing_is_found_in_silence():
    assert found(np.zeros((50, 3))) == []
    assert found(np.zeros((0, 3))) == []


OPTIONS = [
    BoxOptions(),
    APART,
    BoxOptions(0.08),
    BoxOptions(0.64, 0.15, None),
    BoxOptions(0.32, None, 3.0),
    BoxOptions(0.4, 0.3, 1.5),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["noise", "walk", "steps"])
def test_boxes_are_those_of_the_definition(options, kind):
    rng = np.random.default_rng(1)
    scores = rng.random((120, 20))
    if kind == "walk":
        scores = 1 / (1 + np.exp(-np.cumsum(rng.normal(size=scores.shape), axis=0)))
    elif kind == "steps":  # with levels, where the filter has no single maximum
        scores = np.round(rng.random((15, 20)) * 3).repeat(8, axis=0) / 4
    expected = [(k, *box) for k in range(20) for box in searched(scores[:, k], options)]
    got = found(scores, options)
    assert [box[:3] for box in got] == [box[:3] for box in expected]
    assert [box[3] for box in got] == pytest.approx([box[3] for box in expected])


@pytest.mark.parametrize("sizes", [(1,), (2, 5, 11), (7,), (60,), (0, 3)])
def test_boxes_do_not_depend_on_the_pieces(sizes):
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(size=(150, 8)), axis=0)
    scores = (1 / (1 + np.exp(-walk))).astype(np.float32)
    for options in OPTIONS:
        assert found(scores, options, sizes) == found(scores, options)


def test_a_box_is_final_as_soon_as_its_gap_is_deep():
    search = BoxSearch(1)
    search.feed(column((10, 0.0), (20, 0.9)))
    [end] = search.feed(column((14, 0.0))).end
    assert end == 30


def test_scores_of_boxes_are_constant_in_them():
    rng = np.random.default_rng(3)
    scores = rng.random((80, 3))
    boxed, expected = box_scores(scores), np.zeros((80, 3), np.float32)
    for label, begin, end, score in found(scores):
        expected[begin:end, label] = score
    assert np.array_equal(boxed, expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step_seconds": 0.0}, "step_seconds=0.0 must be above 0"),
        ({"step_seconds": float("nan")}, "step_seconds=nan must be above 0"),
        ({"merge_difference": 1.5}, "merge_difference=1.5 must be from 0 to 1"),
        ({"merge_ratio": 0.5}, "merge_ratio=0.5 must be at least 1"),
    ],
)
def test_illegal_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BoxSearch(1, options=BoxOptions(**options))


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match="boxes are found in probabilities"):
        BoxSearch(1).feed(np.array([[0.5], [score]]))
