"""PSDS equals the published library's, and that of every threshold tried by itself."""

import json
import logging
from collections.abc import Mapping

import numpy as np
import pytest
from every_threshold import psds_by_definition
from golden_vectors import GOLDEN
from small_detections import Case, merged, random_case, random_criteria

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import frame_times
from efficientat_plugin.evaluation import count_curves, detections
from efficientat_plugin.evaluation.events import PSDS1, PSDS2, psds

CASES = range(30)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "sed_evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden_case(golden):
    with np.load(GOLDEN / "sed_evaluation.npz") as arrays:
        scores = {clip: arrays[f"{clip}/median9"] for clip in golden["durations"]}
    names = "ground_truth", "durations", "classes"
    return Case(scores, *(golden[name] for name in names))


def one_clip(scores, events, seconds=4.0, label="dog"):
    return Case(
        {"a": np.asarray(scores, float)[:, None]},
        {"a": [(*event, label) for event in events]},
        {"a": seconds},
        [label],
    )


def perfect(case):
    """Scores of 1 in the events and of 0 elsewhere; frames follow the first clip."""
    found = {}
    for clip, scores in case.scores.items():
        times = frame_times(len(scores), case.durations[clip])
        middle = (times[1:] + times[:-1]) / 2
        found[clip] = np.zeros_like(scores)
        for start, end, label in case.events[clip]:
            inside = (middle >= start) & (middle <= end)
            found[clip][inside, case.classes.index(label)] = 1
    return case._replace(scores=found)


def long_events(case):
    """Events of at least 15 frames that begin and end with a frame."""
    events = {
        clip: [
            (round(start / 0.04) * 0.04, round(start / 0.04) * 0.04 + 0.6, label)
            for start, _, label in events
            if start + 0.7 < case.durations[clip]
        ]
        for clip, events in case.events.items()
    }
    return case._replace(events=events)


def assert_same(found, expected):
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.per_class == pytest.approx(expected.per_class, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name, criteria", [("psds1", PSDS1), ("psds2", PSDS2)])
def test_psds_is_that_of_the_published_library(golden, golden_case, name, criteria):
    found = psds(*golden_case, **criteria)
    assert found.value == pytest.approx(golden[name]["value"], abs=1e-12)
    assert found.per_class == pytest.approx(golden[name]["per_class"], abs=1e-12)
    if name == "psds1":
        assert found.macro == pytest.approx(golden[name]["macro"], abs=1e-12)


@pytest.mark.parametrize("seed", CASES)
def test_psds_equals_trying_every_threshold(seed):
    case, criteria = random_case(seed, most_classes=3), random_criteria(seed)
    found = psds(*case, **criteria)
    value, per_class = psds_by_definition(case, **criteria)
    assert found.value == pytest.approx(value, abs=1e-9)
    present = {k: v for k, v in found.per_class.items() if not np.isnan(v)}
    assert present == pytest.approx(per_class, abs=1e-9)
    assert 0 <= found.value <= 1


@pytest.mark.parametrize("seed", range(8))
def test_psds_does_not_depend_on_how_many_clips_are_counted_at_once(seed, monkeypatch):
    case, criteria = random_case(seed), random_criteria(seed)
    expected = psds(*case, **criteria)
    monkeypatch.setattr(detections, "FRAMES_AT_ONCE", 1)
    monkeypatch.setattr(count_curves, "POINTS_AT_ONCE", 1)
    found = psds(*case, **criteria)
    assert_same(found, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "change", [lambda x: 1 / (1 + np.exp(-x)), lambda x: 7 * x - 3]
)
def test_psds_is_the_same_for_rising_functions_of_the_scores(seed, change):
    case, criteria = random_case(seed), random_criteria(seed)
    expected = psds(*case, **criteria)
    assert psds(*case.changed(change), **criteria).value == expected.value


def test_probabilities_in_float16_are_scored_as_they_are():
    case = random_case(3).changed(lambda x: x.astype(np.float16))
    exact = case.changed(lambda x: x.astype(np.float64))
    assert psds(*case).value == psds(*exact).value


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("criteria", [PSDS1, PSDS2])
def test_a_perfect_detector_has_1(seed, criteria):
    case = perfect(long_events(random_case(seed)))
    assert psds(*case, **criteria).value == pytest.approx(1)


@pytest.mark.parametrize("seed", range(8))
def test_a_set_and_itself_again_has_the_same_psds(seed):
    """Shares of events, and rates in an hour or a second of another class, stay."""
    case, criteria = random_case(seed), random_criteria(seed)
    twice = Case(
        *(
            {name + end: each[name] for name in each for end in "ab"}
            for each in case[:3]
        ),
        case.classes,
    )
    expected = psds(*case, **criteria)
    assert psds(*twice, **criteria).value == pytest.approx(expected.value, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_classes_does_not_matter(seed):
    case, criteria = random_case(seed), random_criteria(seed)
    order = np.random.default_rng(seed).permutation(len(case.classes))
    other = case.changed(lambda x: x[:, order])._replace(
        classes=[case.classes[k] for k in order]
    )
    assert_same(psds(*other, **criteria), psds(*case, **criteria))


@pytest.mark.parametrize("seed", range(8))
def test_merging_events_that_overlap_or_touch_changes_nothing(seed):
    case, criteria = random_case(seed), random_criteria(seed)
    joined = {clip: merged(events) for clip, events in case.events.items()}
    assert_same(
        psds(*case._replace(events=joined), **criteria), psds(*case, **criteria)
    )


def test_touching_events_are_one():
    """Two halves of 0.4 s: one detection covers 70 % of both together, not of each."""
    case = one_clip([1] * 15 + [0] * 85, [(0.0, 0.4), (0.4, 0.8)])
    assert psds(*case).value == 1
    apart = case._replace(events={"a": [(0.0, 0.39, "dog"), (0.4, 0.8, "dog")]})
    assert psds(*apart).value == 0.5


def test_equal_scores_detect_the_whole_clip():
    """A clip of 36 s allows one false detection: at any threshold, there is one."""
    silent = one_clip([0.5] * 900, [(1.0, 2.0)], seconds=36.0)
    assert psds(*silent, max_efpr=99).value == 0
    # Half of the clip is an event: the detection is no longer false.
    half = silent._replace(events={"a": [(1.0, 19.1, "dog")]})
    assert psds(*half, dtc=0.5).value == 1


def test_false_detections_count_in_an_hour():
    """One false detection in 36 s is 100 in an hour; it comes before the event."""
    scores = [0.0] * 900
    scores[100:125], scores[400:425] = [0.9] * 25, [0.5] * 25
    case = one_clip(scores, [(16.0, 17.0)], seconds=36.0)
    assert psds(*case).value == 0
    assert psds(*case, max_efpr=400).value == pytest.approx(0.75)


def test_a_detection_ends_with_its_clip():
    case = one_clip([0.0] * 20 + [1.0] * 20, [(0.8, 1.0)], seconds=1.0)
    assert psds(*case, dtc=1, gtc=1).value == 1


def test_a_negative_infinite_score_is_never_detected():
    case = one_clip([-np.inf] * 10 + [-5.0] * 10 + [-np.inf] * 80, [(0.4, 0.8)])
    assert psds(*case).value == 1


def test_the_standard_deviation_over_classes_is_subtracted():
    first = one_clip([1] * 25 + [0] * 75, [(0.0, 1.0)])
    scores = {"a": np.hstack([first.scores["a"], np.zeros((100, 1))])}
    events = {"a": [(0.0, 1.0, "dog"), (0.0, 1.0, "car")]}
    case = Case(scores, events, first.durations, ["dog", "car"])
    assert psds(*case, alpha_st=0).value == 0.5
    assert psds(*case, alpha_st=0.5).value == 0.25
    assert psds(*case, alpha_st=1).value == 0
    assert psds(*case).per_class == {"dog": 1, "car": 0}


@pytest.mark.parametrize("seed", range(8))
def test_a_class_without_events_is_left_out(seed):
    case, criteria = random_case(seed), random_criteria(seed)
    noise = np.random.default_rng(seed)
    more = case.changed(lambda x: np.hstack([noise.normal(size=(len(x), 1)), x]))
    found = psds(*more._replace(classes=["absent", *case.classes]), **criteria)
    assert found.value == pytest.approx(psds(*case, **criteria).value, abs=1e-12)
    assert np.isnan(found.per_class["absent"])


def test_a_clip_without_events_may_be_left_out_of_the_events():
    case = random_case(5)
    case.events["clip 0"].clear()
    some = {clip: events for clip, events in case.events.items() if events}
    assert_same(psds(*case._replace(events=some)), psds(*case))


def test_an_event_is_clipped_to_its_clip():
    case = one_clip([0] * 50 + [1] * 50, [(2.0, 9.0)])
    assert psds(*case).value == 1


def test_an_event_outside_its_clip_is_left_out_and_reported(caplog):
    case = one_clip([1] * 25 + [0] * 75, [(0.0, 1.0), (4.0, 5.0)])
    with caplog.at_level(logging.WARNING):
        assert psds(*case).value == 1
    assert "1 of the 2 events of clip a lie outside its 4 s" in caplog.text


class Lazy(Mapping):
    """Counts how often scores are loaded."""

    def __init__(self, scores):
        self.scores = scores
        self.loaded = dict.fromkeys(scores, 0)

    def __iter__(self):
        return iter(self.scores)

    def __len__(self):
        return len(self.scores)

    def __getitem__(self, clip):
        self.loaded[clip] += 1
        return self.scores[clip]


def test_scores_may_be_loaded_when_asked_for():
    case = random_case(7)
    lazy = Lazy(case.scores)
    assert_same(psds(*case._replace(scores=lazy)), psds(*case))
    assert set(lazy.loaded.values()) <= {1, 2}


GOOD = one_clip([1] * 25 + [0] * 75, [(0.0, 1.0)])
LONE = GOOD.scores["a"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"events": {"a": []}}, "none of the 1 clips has an event"),
        ({"events": {"a": [(0, 1, "cat")]}}, "the class cat, which is not among the 1"),
        ({"events": {"b": [(0, 1, "dog")]}}, r"without duration \(b\); give their"),
        ({"scores": {}}, r"1 of the 1 clips came without scores \(a\); score them"),
        ({"scores": {"a": LONE, "b": LONE}}, r"1 of the 2 clips .* duration \(b\)"),
        (
            {"scores": {"a": LONE * np.nan}},
            "clip a has scores that are NaN or infinite",
        ),
        ({"scores": {"a": LONE + np.inf}}, "give finite scores"),
        ({"scores": {"a": LONE[:, 0]}}, r"shape \(100,\); give \[frames, 1\]"),
        ({"scores": {"a": np.ones((9, 2))}}, r"shape \(9, 2\); give \[frames, 1\]"),
        ({"durations": {"a": 0.0}}, "a duration of 0.0; give seconds"),
        ({"durations": {"a": float("nan")}}, "a duration of nan; give seconds"),
        ({"events": {"a": [(1, 1, "dog")]}}, "from 1.0 to 1.0 s; an event must end"),
        ({"events": {"a": [(0, float("nan"), "dog")]}}, "must end after it starts"),
        ({"classes": ["dog", "dog"]}, "contain dog more than once; name each"),
        ({"classes": []}, "the classes contain nothing; name each"),
        ({"dtc": 0}, "dtc=0; give a share above 0"),
        ({"gtc": 1.5}, "gtc=1.5; give a share above 0 and at most 1"),
        ({"cttc": -1}, "cttc=-1; give a share"),
        ({"alpha_ct": 0.5}, "need cttc; set cttc=0.3"),
        ({"alpha_st": -1}, "alpha_st=-1; give a weight of at least 0"),
        ({"max_efpr": 0}, "max_efpr=0; give a rate above 0 per hour"),
        ({"frame_seconds": 0}, "frame_seconds=0; give seconds above 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        psds(**(GOOD._asdict() | changes))


def test_events_may_be_detected_ones():
    """`Event`, as detectors and readers return it, or (start, end, label)."""
    case = random_case(0)
    events = {
        clip: [Event(label, start, end) for start, end, label in every]
        for clip, every in case.events.items()
    }
    assert_same(psds(*case._replace(events=events)), psds(*case))
