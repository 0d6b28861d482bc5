"""How a tagger hears: overlapping windows at once, and each as if it were alone."""

import numpy as np
import pytest
import torch

from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, HeardStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.overlap import Hearing, can_share, shared_log_mels
from efficientat_plugin.tagging.windows import WindowCutter, runs_of

FRONT_ENDS = {
    "published": {},
    "hop 640": {"hop_length": 640},
    "hop 100": {"hop_length": 100},
    "hop 500": {"hop_length": 500},
    "whole window": {"win_length": 1024, "hop_length": 256},
    "16 kHz": {"sample_rate": 16000, "f_max": 7000.0, "win_length": 400, "n_fft": 512},
}


def sound(samples: int) -> torch.Tensor:
    """Ever louder, so that what comes from another place is seen."""
    torch.manual_seed(0)
    return torch.randn(samples) * torch.linspace(0.01, 1, samples)


@pytest.mark.parametrize("odd", [0, 1, -1, 161])
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_frames_are_shared_and_windows_are_as_if_alone(name, odd):
    log_mel = LogMel(**FRONT_ENDS[name]).eval()
    window, hop = 16000 + odd, 7 * log_mel.hop_length
    assert can_share(log_mel, window, hop)
    heard = sound(3 * 16000)
    together = shared_log_mels(log_mel, heard, window, hop)
    alone = log_mel(heard.unfold(0, window, hop))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_frames_at_the_ends_of_windows_are_others_than_in_the_middle():
    log_mel, heard = LogMel().eval(), sound(64000)
    whole = log_mel(heard[None])[0].unfold(1, 100, 20).transpose(0, 1)
    apart = (whole - shared_log_mels(log_mel, heard, 32000, 6400)).abs().amax((0, 1))
    assert (apart > 1e-4).nonzero()[:, 0].tolist() == [0, 1, 99]


@pytest.mark.parametrize(
    "window, hop", [(32000, 32000), (32000, 1000), (1200, 320), (900, 320)]
)
def test_what_cannot_be_shared_is_heard_window_by_window(window, hop):
    assert not can_share(LogMel(), window, hop)
    ensemble = Ensemble([HeardStudent(LogMel(), MN(3, width=0.1))]).eval()
    heard = sound(40000)
    with torch.inference_mode():
        found = Hearing(ensemble).windows(heard, window, hop)
        expected = ensemble(heard.unfold(0, window, hop)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_members_of_other_front_ends_hear_together():
    members = [
        HeardStudent(LogMel(), MN(3, width=0.1)),
        HeardStudent(LogMel(hop_length=640, n_mels=64), MN(3, width=0.2)),
    ]
    ensemble, heard = Ensemble(members, weights=(3, 1)).eval(), sound(64000)
    with torch.inference_mode():
        found = Hearing(ensemble).windows(heard, 32000, 6400)
        expected = ensemble(heard.unfold(0, 32000, 6400)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "samples, starts",
    [
        (100, [[0, 10, 20, 30, 40, 50, 60]]),
        (105, [[0, 10, 20, 30, 40, 50, 60], [65]]),
        (30, [[0]]),
    ],
)
def test_windows_run_until_the_hop_changes(samples, starts):
    cutter = WindowCutter(window=40, hop=10)
    windows = [*cutter.feed(np.zeros(samples, np.float32)), *cutter.finish()]
    assert [[window.start for window in run] for run in runs_of(windows)] == starts
