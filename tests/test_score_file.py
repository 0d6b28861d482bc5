"""Scores to evaluate are kept on disk, and come back as they were."""

import errno
import gc
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.frame_events import median_filter
from efficientat_plugin.evaluation.detection_stats import DetectionStats
from efficientat_plugin.evaluation.event_scores import event_scores
from efficientat_plugin.evaluation.events import PSDS1, psds
from efficientat_plugin.evaluation.score_file import ScoreFile, ScoresOfClips
from efficientat_plugin.evaluation.segment_scores import segment_scores


@pytest.mark.parametrize("in_memory", [1, 2**20])
def test_scores_come_back_in_any_order(in_memory):
    rng, file = np.random.default_rng(0), ScoreFile(in_memory)
    scores = {str(n): rng.random((n, 5)).astype(np.float32) for n in range(20)}
    stored = ScoresOfClips(file, {n: file.append(each) for n, each in scores.items()})
    assert [*stored] == [*scores] and len(stored) == 20
    for name in sorted(scores, reverse=True):
        assert np.array_equal(stored[name], scores[name])
    stored["3"], file.append(np.ones((2, 5)))  # writing goes on behind the last one
    assert np.array_equal(stored["19"], scores["19"])


def test_the_file_goes_away(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = ScoreFile(in_memory=1)
    file.append(np.zeros((100, 100)))
    inner = file._file
    del file
    gc.collect()
    assert inner.closed and not [*tmp_path.iterdir()]


def test_a_full_disk_is_told_in_a_sentence():
    class Full:
        def seek(self, place):
            del place

        def write(self, what):
            raise OSError(errno.ENOSPC, "No space left on device")

    file = ScoreFile()
    file._file = Full()
    with pytest.raises(OSError, match="is full; set TMPDIR to a folder with more room"):
        file.append(np.zeros((2, 2)))


# Scores 300 clips of 447 classes, 134 MB, and prints how much more memory that took.
GROWTH = """
import resource, numpy as np, torch
from efficientat_plugin.contracts import Event
from efficientat_plugin.evaluation.detection_stats import DetectionStats
names = [f"class {k}" for k in range(447)]
ids = [f"clip {n}" for n in range(300)]
events = {name: [Event(names[n], 1.0, 3.0)] for n, name in enumerate(ids)}
stats = DetectionStats(events, dict.fromkeys(ids, 10.0), names)
stats._file._file._max_size = 2**20
def score(n):
    rng = np.random.default_rng(n)
    return torch.from_numpy(rng.random((1, 447, 250), np.float32))
stats.append(["warm"], score(0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for n, name in enumerate(ids):
    stats.append([name], score(n))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_collecting_scores_takes_no_memory():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 30  # MB, of 134 MB of scores


SHARED = """
import sys, torch, numpy as np
from efficientat_plugin.contracts import Event
from efficientat_plugin.evaluation import detection_stats
detection_stats.CLIPS_AT_ONCE = 3
rank, place = int(sys.argv[1]), f"file://{sys.argv[2]}"
torch.distributed.init_process_group("gloo", place, rank=rank, world_size=2)
ids = [f"clip {n}" for n in range(17)]
events = {name: [Event("dog", 1.0, 3.0)] for name in ids}
def stats_of(some):
    stats = detection_stats.DetectionStats(events, dict.fromkeys(ids, 10.0), ["dog"])
    for name in some:
        rng = np.random.default_rng(ids.index(name))
        stats.append([name], torch.from_numpy(rng.random((1, 1, 250), np.float32)))
    return stats
shared, whole = stats_of(ids[:4] if rank else ids[4:]), stats_of(ids)
shared.gather()
assert shared.summarize().averages() == whole.summarize().averages()
assert shared.summarize().num_clips == 17
print("alike", flush=True)
"""


@pytest.mark.slow
def test_processes_share_what_they_scored(tmp_path):
    """Unequal shares, in several rounds."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    texts = [child.communicate(timeout=120)[0] for child in children]
    assert all("alike" in text for text in texts)


@pytest.mark.parametrize("logits", [True, False])
def test_scores_are_those_of_all_scores_in_memory(logits):
    """Not equal by chance: levels are few, and one of them is the threshold."""
    rng, ids = np.random.default_rng(4), [f"clip {n}" for n in range(12)]
    names = ["dog", "cat", "rain"]
    begins = rng.uniform(0, 8, len(ids))
    events = {
        name: [Event(names[n % 3], begins[n], begins[n] + 1.5)]
        for n, name in enumerate(ids)
    }
    levels = rng.integers(0, 5, (len(ids), 3, 25)).repeat(10, axis=2) / 4
    for n, name in enumerate(ids):
        frames = slice(*(int(25 * each) for each in events[name][0][1:3]))
        levels[n, n % 3, frames] = rng.choice([0.5, 0.75, 1.0])
    scores = (8 * levels - 4 if logits else levels).astype(np.float32)
    seconds = dict.fromkeys(ids, 10.0)
    stats = DetectionStats(events, seconds, names, logits=logits)
    stats.append(ids, torch.from_numpy(scores))
    whole = {name: median_filter(scores[n].T, 9) for n, name in enumerate(ids)}
    found, at = stats.summarize(), 0.0 if logits else 0.5
    assert found.PSDS1 == psds(whole, events, seconds, names, **PSDS1).macro
    expected = event_scores(whole, events, seconds, names, at)
    assert found.event_F == expected.macro and 0 < expected.macro < 1
    assert found.event_F_of_classes.tolist() == [*expected.per_class.values()]
    expected = segment_scores(whole, events, seconds, names, at)
    assert found.segment_F == expected.macro and 0 < expected.macro < 1


def test_a_clip_that_is_scored_twice_counts_once():
    events, seconds = {"a": [Event("dog", 1.0, 2.0)]}, {"a": 10.0}
    stats = DetectionStats(events, seconds, ["dog"], median_seconds=0.0)
    stats.append(["a"], torch.zeros(1, 1, 250))
    perfect = torch.zeros(1, 1, 250)
    perfect[0, 0, 25:50] = 0.9
    stats.append(["a"], perfect)
    found = stats.summarize()
    assert (found.num_clips, found.PSDS1) == (1, 1.0)
