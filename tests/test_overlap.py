"""Overlapping windows share their frames, and each is as if it were alone."""

import numpy as np
import pytest
import torch

from efficientat_plugin.export.log_mel import front_end_settings
from efficientat_plugin.features import LogMel
from efficientat_plugin.runtime.front_end import LogMel as NumpyLogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.overlap import can_share, window_log_mels
from efficientat_plugin.tagging.torch_tagger import FastEnsemble

FRONT_ENDS = {
    "published": {},
    "hop 640": {"hop_length": 640},
    "hop 100": {"hop_length": 100},
    "hop 500": {"hop_length": 500},
    "whole window": {"win_length": 1024, "hop_length": 256},
    "short window": {"win_length": 2, "hop_length": 320},
    "16 kHz": {"sample_rate": 16000, "f_max": 7000.0, "win_length": 400, "n_fft": 512},
}


def sound(samples: int) -> torch.Tensor:
    """Ever louder, so that frames from another place differ."""
    torch.manual_seed(0)
    return torch.randn(samples) * torch.linspace(0.01, 1, samples)


@pytest.mark.parametrize("odd", [0, 1, -1, 161])
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_windows_with_shared_frames_are_as_if_alone(name, odd):
    log_mel = LogMel(**FRONT_ENDS[name]).eval()
    window, hop = 16000 + odd, 7 * log_mel.hop_length
    assert can_share(log_mel.framing, window, hop)
    whole = sound(3 * 16000)
    together = window_log_mels(log_mel, whole, window, hop)
    alone = log_mel(whole.unfold(0, window, hop))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hop", [320, 4000, 8000, 16000, 333, 7 * 320])
@pytest.mark.parametrize("window", [16000, 16161, 2000])
def test_the_front_end_in_numpy_computes_the_same(window, hop):
    log_mel = LogMel().eval()
    in_numpy = NumpyLogMel(front_end_settings(log_mel))
    whole = sound(40000)
    windows = whole.unfold(0, window, hop)
    found = window_log_mels(in_numpy, whole.numpy(), window, hop)
    np.testing.assert_allclose(found, in_numpy(windows.numpy()), atol=1e-6)
    np.testing.assert_allclose(found, log_mel(windows).numpy(), atol=2e-4)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_frames_at_the_ends_of_windows_are_others_than_in_the_middle(name):
    log_mel, whole = LogMel(**FRONT_ENDS[name]).eval(), sound(64000)
    frames, shift = log_mel.num_frames(32000), 20
    window_hop = shift * log_mel.hop_length
    cut = log_mel(whole[None])[0].unfold(1, frames, shift).transpose(0, 1)
    together = window_log_mels(log_mel, whole, 32000, window_hop)
    differing = ((cut - together).abs().amax((0, 1)) > 1e-4).nonzero()[:, 0].tolist()
    first, end = log_mel.framing.inner_frames(32000)
    assert set(differing) <= {*range(first), *range(end, frames)}
    if name == "published":
        assert differing == [0, 1, 99]


@pytest.mark.parametrize(
    "window, hop", [(32000, 32000), (32000, 1000), (1200, 320), (900, 320)]
)
def test_windows_that_share_no_frames_are_scored_one_by_one(window, hop):
    assert not can_share(LogMel().framing, window, hop)
    ensemble = Ensemble([WaveformStudent(LogMel(), MN(3, width=0.1))]).eval()
    whole = sound(40000)
    with torch.inference_mode():
        found = FastEnsemble(ensemble).windows(whole, window, hop)
        expected = ensemble(whole.unfold(0, window, hop)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_members_of_an_ensemble_may_have_other_front_ends():
    members = [
        WaveformStudent(LogMel(), MN(3, width=0.1)),
        WaveformStudent(LogMel(hop_length=640, n_mels=64), MN(3, width=0.2)),
    ]
    ensemble, whole = Ensemble(members, weights=(3, 1)).eval(), sound(64000)
    with torch.inference_mode():
        found = FastEnsemble(ensemble).windows(whole, 32000, 6400)
        expected = ensemble(whole.unfold(0, 32000, 6400)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
