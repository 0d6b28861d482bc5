"""Ensembles: logits are averaged with weights, and any module is a member."""

import pytest
import torch
from small_rows import LABELS, SAMPLE_RATE
from torch import nn

from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.bring_your_own import OwnTeacher


def linear_teacher():
    network = nn.Sequential(nn.AdaptiveMaxPool1d(64), nn.Linear(64, 3))
    return OwnTeacher(network, SAMPLE_RATE, LABELS)


def test_weighted_members_are_averaged_by_their_shares():
    members = [linear_teacher(), linear_teacher()]
    waveform = torch.randn(2, 16000)
    plain, alike = Ensemble(members).eval(), Ensemble(members, [5, 5]).eval()
    weighted = Ensemble(members, [2, 1]).eval()
    one, two = (member(waveform).logits for member in members)
    assert torch.allclose(weighted(waveform).logits, (2 * one + two) / 3)
    assert torch.allclose(plain(waveform).logits, alike(waveform).logits)
    digests = {plain.sha256(), alike.sha256(), weighted.sha256()}
    assert len(digests) == 3 and Ensemble(members, (4, 2)).sha256() in digests


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="must be 2 numbers, one for each member"):
        Ensemble([linear_teacher(), linear_teacher()], weights)


def test_any_module_is_a_member_and_its_weights_count():
    own = linear_teacher()
    ensemble = Ensemble([own, WaveformStudent(LogMel(), MN(3, width=0.1))]).eval()
    output = ensemble(torch.zeros(2, 16000))
    assert output.logits.shape == (2, 3) and output.embedding.shape == (2, 96)
    before = ensemble.sha256()
    own.module[1].weight.data += 1
    assert ensemble.sha256() != before
