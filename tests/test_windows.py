"""Windows cover a sound, and none of it depends on how it arrives."""

import numpy as np
import pytest

from efficientat_plugin.tagging.windows import WindowCutter, runs_of


def _cut(sound, window, hop, chunk):
    cutter = WindowCutter(window, hop)
    windows = []
    for start in range(0, len(sound), chunk):
        windows += cutter.feed(sound[start : start + chunk])
    return windows + cutter.finish()


@pytest.mark.parametrize("num_samples", [1, 9, 10, 11, 13, 14, 20, 23, 57])
@pytest.mark.parametrize(("window", "hop"), [(10, 10), (10, 4), (10, 1), (1, 1)])
def test_every_sample_is_in_a_window_however_it_arrives(num_samples, window, hop):
    sound = np.arange(num_samples, dtype=np.float32)
    whole = _cut(sound, window, hop, num_samples)
    covered = set()
    for start, samples in whole:
        np.testing.assert_array_equal(samples, sound[start : start + window])
        covered |= set(range(start, start + len(samples)))
    assert covered == set(range(num_samples))
    starts = [start for start, _ in whole]
    assert starts[:-1] == [hop * n for n in range(len(starts) - 1)]
    assert starts == sorted(set(starts))
    for chunk in (1, 3, 7):
        again = _cut(sound, window, hop, chunk)
        assert [start for start, _ in again] == starts
        for (_, one), (_, other) in zip(whole, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_more_is_held_than_two_windows():
    cutter = WindowCutter(window=100, hop=100)
    for _ in range(1000):
        list(cutter.feed(np.zeros(70, np.float32)))
        assert len(cutter._held) <= 200


def test_sound_in_tiny_pieces_is_not_copied_again_and_again():
    cutter, memory, num_copies = WindowCutter(window=1000, hop=500), None, 0
    for _ in range(5000):
        list(cutter.feed(np.zeros(1, np.float32)))
        num_copies += cutter._held.base is not memory
        memory = cutter._held.base
    assert num_copies < 30


def test_silence_has_no_windows():
    assert _cut(np.zeros(0, np.float32), 4, 2, 1) == []


@pytest.mark.parametrize("hop", [0, 11])
def test_a_hop_that_leaves_sound_out_is_refused(hop):
    with pytest.raises(ValueError, match=f"hop of {hop} samples with windows of 10"):
        WindowCutter(10, hop)


@pytest.mark.parametrize(
    "samples, starts",
    [
        (100, [[0, 10, 20, 30, 40, 50, 60]]),
        (105, [[0, 10, 20, 30, 40, 50, 60], [65]]),
        (30, [[0]]),
    ],
)
def test_windows_run_until_the_hop_changes(samples, starts):
    windows = _cut(np.zeros(samples, np.float32), 40, 10, samples)
    assert [[window.start for window in run] for run in runs_of(windows)] == starts
