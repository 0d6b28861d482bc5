"""Thresholds of a detector are the best ones of the clips that they are chosen on."""

import numpy as np
import pytest
import torch

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_targets import frame_targets
from efficientat_plugin.evaluation.detection_stats import DetectionStats
from efficientat_plugin.evaluation.event_scores import event_scores
from efficientat_plugin.evaluation.segment_scores import segment_scores
from efficientat_plugin.evaluation.threshold_choice import choose_thresholds

CLASSES = ["dog", "cat", "rain"]
CLIPS = [f"clip{number}" for number in range(8)]
SECONDS = dict.fromkeys(CLIPS, 4.0)
SCORES_OF = {"event_F": event_scores, "segment_F": segment_scores}


def _data(seed):
    """Noisy probabilities of a few events; it never rains."""
    rng = np.random.default_rng(seed)
    events, scores = {}, {}
    for clip in CLIPS:
        starts = rng.uniform(0, 3, 3)
        names = rng.choice(CLASSES[:2], 3)
        events[clip] = [
            Event(str(name), float(start), float(start + rng.uniform(0.2, 1.0)))
            for name, start in zip(names, starts, strict=True)
        ]
        known = frame_targets(events[clip], CLASSES, 100).T
        logits = 3 * known - 2 + rng.standard_normal(known.shape)
        scores[clip] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores, events


@pytest.mark.parametrize("chosen_by", SCORES_OF)
@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_is_better(seed, chosen_by):
    """Every score that occurs is tried as the threshold, and one below all."""
    scores, events = _data(seed)
    known = (scores, events, SECONDS, CLASSES)
    chosen = choose_thresholds(*known, chosen_by=chosen_by, fewest_events=1)
    given = dict(zip(CLASSES, chosen.thresholds, strict=True))
    found = SCORES_OF[chosen_by](*known, given).per_class
    best = dict.fromkeys(CLASSES, 0.0)
    tried = np.unique(np.concatenate([each.ravel() for each in scores.values()]))
    for threshold in [0.0, *tried[:: len(tried) // 150].tolist()]:
        tried_scores = SCORES_OF[chosen_by](*known, threshold).per_class
        best = {name: max(best[name], tried_scores[name]) for name in CLASSES[:2]}
    exact = SCORES_OF[chosen_by](*known).per_class
    for name in CLASSES[:2]:
        assert found[name] == exact[name] >= best[name] > 0
        assert 0 <= given[name] < 1
    assert chosen.kept == ["rain"] and given["rain"] == 0.5


def test_few_events_tell_little_and_the_console_says_so():
    scores, events = _data(0)
    known = (scores, events, SECONDS, CLASSES, 0.4, "event_F")
    counts = choose_thresholds(*known, fewest_events=1).num_events
    limit = max(counts)
    assert min(counts[:2]) < limit  # one class has fewer
    chosen = choose_thresholds(*known, fewest_events=limit)
    rare = [name for name, count in zip(CLASSES, counts, strict=True) if count < limit]
    assert chosen.kept == rare and len(rare) == 2
    assert all(chosen.thresholds[CLASSES.index(name)] == 0.4 for name in rare)
    assert "of 1 of 3 classes are chosen by event_F; 0.4 is kept" in str(chosen)
    assert all(name in str(chosen) for name in rare)


def test_a_class_never_detected_right_keeps_the_default():
    scores = {"a": np.full((100, 1), 0.3, np.float32)}
    events = {"a": [Event("dog", number, number + 0.2) for number in range(4)]}
    chosen = choose_thresholds(
        scores, events, {"a": 4.0}, ["dog"], chosen_by="event_F", fewest_events=1
    )
    assert (chosen.thresholds, chosen.kept) == ([0.5], ["dog"])


def test_onsets_alone_choose_other_thresholds():
    """The start is right at up to 0.8, and the end at up to 0.3."""
    column = np.zeros((100, 1), np.float32)
    column[25:50], column[28:35] = 0.3, 0.8
    data = ({"a": column}, {"a": [Event("dog", 1.0, 2.0)]}, {"a": 4.0}, ["dog"])
    data += (0.5, "event_F")
    both = choose_thresholds(*data, fewest_events=1).thresholds
    onset = choose_thresholds(*data, fewest_events=1, onsets_only=True).thresholds
    assert both == pytest.approx([0.15]) and onset == pytest.approx([0.4])


def _stats(threshold, logits, seed=1, **options):
    scores, events = _data(seed)
    stats = DetectionStats(
        events, SECONDS, CLASSES, threshold=threshold, logits=logits, **options
    )
    for clip, each in scores.items():
        values = np.log(each / (1 - each)) if logits else each
        stats.append([clip], torch.from_numpy(values.T[None]))
    return stats


def test_a_run_scores_at_the_thresholds_of_classes():
    by_class = {"dog": 0.3, "cat": 0.7, "rain": 0.5}
    found = _stats(by_class, logits=False).summarize()
    for name, value in by_class.items():
        alone = _stats(value, logits=False).summarize()
        for scores in ("event_F_of_classes", "segment_F_of_classes"):
            place = CLASSES.index(name)
            assert np.array_equal(
                getattr(found, scores)[place],
                getattr(alone, scores)[place],
                equal_nan=True,
            )
    assert found.thresholds.tolist() == [0.3, 0.7, 0.5]
    of_logits = _stats(by_class, logits=True).summarize()
    assert of_logits.event_F == pytest.approx(found.event_F, abs=1e-12)
    assert of_logits.segment_F == pytest.approx(found.segment_F, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"thresholds_by": "PSDS1"}, "one of event_F, segment_F"),
        ({"fewest_events": 0}, "must be 1 or more"),
    ],
)
def test_other_ways_to_choose_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        _stats(0.5, logits=False, **options)


@pytest.mark.parametrize(
    "given",
    [
        {"logits": True, "threshold": 0.5},
        {"logits": False, "threshold": dict.fromkeys(CLASSES, 0.5)},
    ],
)
def test_thresholds_are_chosen_from_probabilities(given):
    with pytest.raises(ValueError, match="chosen from probabilities, with one default"):
        _stats(**given).choose_thresholds()
