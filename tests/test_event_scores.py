"""F-scores of events and segments equal the published libraries' and definitions."""

import json

import numpy as np
import pytest
from every_threshold import detected, event_counts_by_definition, merged, thresholds_of
from golden_vectors import GOLDEN
from sklearn.metrics import roc_curve
from small_detections import Case, random_case

from efficientat_plugin.data.events.frame_events import (
    events_above,
    frame_times,
    median_filter,
)
from efficientat_plugin.evaluation import event_scores as evaluation
from efficientat_plugin.evaluation.event_scores import event_scores, most_pairs
from efficientat_plugin.evaluation.segment_scores import segment_auroc, segment_scores

SEEDS = range(12)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "sed_evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden_case(golden):
    with np.load(GOLDEN / "sed_evaluation.npz") as arrays:
        scores = {clip: arrays[f"{clip}/median9"] for clip in golden["durations"]}
    names = "ground_truth", "durations", "classes"
    return Case(scores, *(golden[name] for name in names))


def assert_published(found, published):
    averages = {"macro_average": found.macro, "micro_average": found.micro}
    assert found.per_class | averages == pytest.approx(published, abs=1e-12)


def test_the_median_filter_is_the_published_one(golden_case):
    with np.load(GOLDEN / "sed_evaluation.npz") as arrays:
        for clip, scores in golden_case.scores.items():
            found = median_filter(arrays[f"{clip}/logits"], width=9)
            np.testing.assert_array_equal(found, scores)


def test_detected_events_are_the_published_ones(golden, golden_case):
    for clip, scores in golden_case.scores.items():
        times = frame_times(len(scores), golden["durations"][clip])
        found = events_above(scores, 0.0, golden["classes"], times)
        published = golden["detections_threshold_0"][clip]
        assert [event[2] for event in found] == [event[2] for event in published]
        for event, other in zip(found, published, strict=True):
            assert event[:2] == pytest.approx(other[:2])


def test_event_scores_are_the_published_ones(golden, golden_case):
    found = event_scores(*golden_case, threshold=0.0)
    assert_published(found, golden["event_f_200ms"])
    other = golden["sed_eval_event_f"]
    assert found.per_class == pytest.approx(other["class_wise"])
    assert found.micro == pytest.approx(other["overall"])
    onsets = event_scores(*golden_case, threshold=0.0, onsets_only=True)
    assert_published(onsets, golden["onset_f_200ms"])


def test_best_event_scores_and_thresholds_are_the_published_ones(golden, golden_case):
    found = event_scores(*golden_case)
    assert_published(found, golden["best_event_f"]["f"])
    assert found.thresholds == pytest.approx(golden["best_event_f"]["threshold"])


def test_segment_scores_are_the_published_ones(golden, golden_case):
    found = segment_scores(*golden_case, threshold=0.0)
    assert_published(found, golden["segment_f_1s"])
    mean, areas = segment_auroc(*golden_case)
    assert areas | {"mean": mean} == pytest.approx(golden["pauroc_0.1_1s"], abs=1e-12)


def f_score(counts):
    return 2 * counts[0] / (counts[1] + counts[2])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "collar, share, onsets_only", [(0.2, 0.5, False), (0.3, 0.2, True)]
)
def test_event_scores_equal_trying_every_threshold(seed, collar, share, onsets_only):
    case = random_case(seed)
    settings = {"collar_seconds": collar, "length_share": share}
    settings["onsets_only"] = onsets_only
    best = event_scores(*case, **settings)
    fixed = event_scores(*case, threshold=0.7, **settings)
    for k, name in enumerate(case.classes):
        if np.isnan(best.per_class[name]):
            continue

        def counted(threshold, k=k):
            return f_score(
                event_counts_by_definition(
                    case, k, threshold, collar, share, onsets_only
                )
            )

        every = max(counted(threshold) for threshold in thresholds_of(case, k))
        assert best.per_class[name] == pytest.approx(every, abs=1e-12)
        assert fixed.per_class[name] == pytest.approx(counted(0.7), abs=1e-12)
        assert counted(best.thresholds[name]) == pytest.approx(every, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_thresholds_give_the_best_scores(seed):
    case = random_case(seed)
    for evaluate in (event_scores, segment_scores):
        best = evaluate(*case)
        found = evaluate(*case, threshold=best.thresholds)
        assert found == best or np.isnan([*best.per_class.values()]).any()
        assert (found.macro, found.micro) == (best.macro, best.micro)
        for threshold in (-1.0, 0.0, 1.0):
            assert evaluate(*case, threshold=threshold).macro <= best.macro + 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("enough", [0, 1])
def test_thresholds_that_cannot_be_the_best_do_not_matter(seed, enough, monkeypatch):
    case = random_case(seed, most_clips=30)
    monkeypatch.setattr(evaluation, "ENOUGH", 1000)
    every = evaluation.event_scores(*case)
    monkeypatch.setattr(evaluation, "ENOUGH", enough)
    found = evaluation.event_scores(*case)
    assert (found.macro, found.micro) == (every.macro, every.micro)
    assert found.thresholds == every.thresholds


def segments_by_definition(case, label, threshold):
    """Whether each second is detected, and whether it has an event."""
    found, true = [], []
    for clip, seconds in case.durations.items():
        spans = detected(case, clip, label, threshold)
        events = merged(case.events[clip], case.classes[label])
        for begin in range(int(np.ceil(seconds))):
            for where, into in ((spans, found), (events, true)):
                into.append(
                    any(a < begin + 1 - 1e-9 and b > begin + 1e-9 for a, b in where)
                )
    return np.array(found), np.array(true)


@pytest.mark.parametrize("seed", SEEDS)
def test_segment_scores_equal_trying_every_threshold(seed):
    case = random_case(seed)
    best, fixed = segment_scores(*case), segment_scores(*case, threshold=0.7)
    _, areas = segment_auroc(*case, max_fpr=0.3)
    for k, name in enumerate(case.classes):
        _, true = segments_by_definition(case, k, 0.0)
        if not true.any():
            assert np.isnan(best.per_class[name])
            continue
        values, points = [], [(0.0, 0.0)]
        for threshold in [*thresholds_of(case, k), 0.7]:
            found, _ = segments_by_definition(case, k, threshold)
            values.append(f_score(((found & true).sum(), found.sum(), true.sum())))
            if not true.all():
                points.append((found[~true].mean(), found[true].mean()))
        assert best.per_class[name] == pytest.approx(max(values), abs=1e-12)
        assert fixed.per_class[name] == pytest.approx(values[-1], abs=1e-12)
        if true.all():
            assert np.isnan(areas[name])
            continue
        edges = sorted({rate for rate, _ in points if rate < 0.3}) + [0.3]
        area = sum(
            max(found for rate, found in points if rate <= begin) * (end - begin)
            for begin, end in zip(edges[:-1], edges[1:], strict=True)
        )
        assert areas[name] == pytest.approx(area / 0.3, abs=1e-12)


def test_the_whole_area_is_that_of_scikit_learn():
    """Without ties, staircase and trapezoids agree."""
    rng = np.random.default_rng(0)
    scores, events = {}, {}
    for clip in map(str, range(30)):
        scores[clip] = np.repeat(rng.normal(size=(1, 1)), 25, axis=0)
        events[clip] = [(0.1, 0.4, "dog")] if rng.random() < 0.5 else []
    durations = dict.fromkeys(scores, 1.0)
    area, _ = segment_auroc(scores, events, durations, ["dog"], max_fpr=1.0)
    true = [bool(each) for each in events.values()]
    rate, found, _ = roc_curve(true, [each[0, 0] for each in scores.values()])
    assert area == pytest.approx(np.trapezoid(found, rate))


def one_clip(scores, events, seconds=4.0):
    return Case(
        {"a": np.asarray(scores, float)[:, None]},
        {"a": [(*event, "dog") for event in events]},
        {"a": seconds},
        ["dog"],
    )


def test_each_event_is_met_by_one_detection():
    """Two short detections beside one start: one is correct, the other false."""
    scores = np.zeros(100)
    scores[[24, 27]] = 1
    case = one_clip(scores, [(1.0, 1.04)])
    assert event_scores(*case, threshold=0.5).macro == pytest.approx(2 / 3)


def test_as_many_detections_as_possible_are_correct():
    """The first detection fits both events, the second only the first."""
    hits = [(0, 0), (0, 1), (1, 0)]
    assert most_pairs(hits) == most_pairs(hits[::-1]) == 2
    assert most_pairs([]) == 0


def test_an_end_may_be_off_by_a_share_of_a_long_event():
    scores = np.zeros(100)
    scores[25:60] = 1  # 1.0 to 2.4 s
    case = one_clip(scores, [(1.0, 3.0)])
    assert event_scores(*case, threshold=0.5, length_share=0.2).macro == 0
    assert event_scores(*case, threshold=0.5, length_share=0.3).macro == 1
    assert (
        event_scores(*case, threshold=0.5, length_share=0, onsets_only=True).macro == 1
    )


def test_a_threshold_itself_is_not_exceeded():
    case = one_clip([0.0] * 25 + [0.5] * 25 + [0.0] * 50, [(1.0, 2.0)])
    for evaluate in (event_scores, segment_scores):
        assert evaluate(*case, threshold=0.5).macro == 0
        assert evaluate(*case, threshold=0.49).macro == 1


def test_false_detections_of_a_class_without_events_count_in_the_micro_average():
    case = one_clip([0.0] * 25 + [1.0] * 25 + [0.0] * 50, [(1.0, 2.0)])
    case = case.changed(lambda x: np.hstack([x, x]))._replace(classes=["dog", "car"])
    found = event_scores(*case, threshold=0.5)
    assert (found.macro, found.micro) == (1, pytest.approx(2 / 3))
    assert np.isnan(found.per_class["car"])
    # No detection is best for it.
    assert event_scores(*case).thresholds["car"] == np.inf


def test_seconds_behind_the_last_frame_are_not_detected():
    case = one_clip([1.0] * 25, [(0.0, 1.0)], seconds=3.0)
    assert segment_scores(*case, threshold=-9.0).macro == 1
    assert segment_auroc(*case)[0] == 1


GOOD = one_clip([1] * 25 + [0] * 75, [(0.0, 1.0)])


@pytest.mark.parametrize(
    "evaluate, changes, message",
    [
        (event_scores, {"collar_seconds": -1}, "collar_seconds=-1; give seconds of 0"),
        (event_scores, {"length_share": 2}, "length_share=2; give a share from 0 to 1"),
        (event_scores, {"threshold": float("nan")}, "a threshold is NaN"),
        (event_scores, {"threshold": {"cat": 1}}, "differ in cat and dog|cat, dog"),
        (event_scores, {"events": {}}, "none of the 1 clips has an event"),
        (segment_scores, {"segment_seconds": 0}, "segment_seconds=0; give seconds"),
        (segment_scores, {"threshold": {}}, "thresholds and classes differ in dog"),
        (segment_auroc, {"max_fpr": 0}, "max_fpr=0; give a share above 0"),
        (segment_auroc, {"scores": {}}, "came without scores"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(evaluate, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**(GOOD._asdict() | changes))
