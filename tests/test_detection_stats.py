"""Scores of a detector in a run."""

import numpy as np
import pytest
import torch

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_targets import frame_targets
from efficientat_plugin.data.events.frame_events import median_filter
from efficientat_plugin.evaluation.detection_stats import DetectionStats
from efficientat_plugin.evaluation.events import PSDS1, psds

CLASSES = ["dog", "cat", "rain"]
EVENTS = {
    "a": [Event("dog", 1.0, 2.0), Event("cat", 4.0, 9.0)],
    "b": [],
    "c": [Event("dog", 0.0, 3.0)],
}
SECONDS = dict.fromkeys("abcd", 10.0)


def _scores(noise, seed=0):
    rng = np.random.default_rng(seed)
    return {
        clip: frame_targets(EVENTS.get(clip, []), CLASSES, 250)
        + noise * rng.standard_normal((3, 250))
        for clip in "abcd"
    }


def _stats(scores, **options):
    stats = DetectionStats(EVENTS, SECONDS, CLASSES, **options)
    for clip, each in scores.items():
        stats.append([clip], torch.from_numpy(each)[None])
    return stats


def test_perfect_scores_are_perfect():
    scores = _stats(_scores(0.0), median_seconds=0.0).summarize()
    assert scores.averages() == {"PSDS1": 1.0, "event_F": 1.0, "segment_F": 1.0}
    assert (scores.num_clips, scores.num_classes) == (3, 2)  # "d" is not annotated
    assert scores.positives.tolist() == [2, 1, 0]
    assert np.isnan(scores.psds_of_classes[2])


def test_it_is_the_psds_of_filtered_scores():
    noisy = _scores(0.8)
    found = _stats(noisy, logits=True, threshold=0.6).summarize()
    filtered = {
        clip: median_filter(noisy[clip].T.astype(np.float32), 9) for clip in "abc"
    }
    known = dict.fromkeys("abc", 10.0)
    expected = psds(filtered, EVENTS, known, CLASSES, **PSDS1)
    assert found.PSDS1 == expected.macro
    assert 0 < found.PSDS1 < 1


def test_probabilities_and_logits_score_alike():
    logits = {clip: 4 * each - 2 for clip, each in _scores(0.3).items()}
    chances = {clip: 1 / (1 + np.exp(-each)) for clip, each in logits.items()}
    one = _stats(logits, logits=True, threshold=0.3).summarize()
    other = _stats(chances, threshold=0.3).summarize()
    assert one.averages() == pytest.approx(other.averages())


def test_the_median_filter_is_as_long_as_it_can_be_in_odd_frames():
    widths = {0.36: 9, 0.35: 9, 0.32: 9, 0.31: 7, 0.0: 1}
    for seconds, frames in widths.items():
        assert _stats({}, median_seconds=seconds).median_frames == frames


def test_no_annotated_clip_is_refused():
    with pytest.raises(ValueError, match="no clip with a table of events was scored"):
        _stats({"d": _scores(0.0)["d"]}).summarize()


@pytest.mark.parametrize("option", [{"threshold": 1.0}, {"median_seconds": -1.0}])
def test_illegal_options_are_refused(option):
    with pytest.raises(ValueError, match="must be a probability between 0 and 1"):
        _stats({}, **option)
