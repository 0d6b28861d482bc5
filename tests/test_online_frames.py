"""A teacher of frames scores what the student does, mixed and moved alike."""

import pytest
import torch

from efficientat_plugin.contracts import ClipBatch, Mix, Shift, TeacherInput
from efficientat_plugin.data.frame_mixing import shifted
from efficientat_plugin.data.labels import LabelTable, summarize_labels
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.online_frames import FrameTeacher

LABELS = LabelTable("abc", "abc")


def _log_mel(**more):
    options = {"sample_rate": 16000, "hop_length": 160, "f_max": 7000.0}
    return LogMel(**(options | {"f_max_jitter": 1, "f_min_jitter": 1} | more)).eval()


def _network(**more):
    return WaveformStudent(_log_mel(**more), FrameMN(3, width=0.1)).eval()


def _inputs(**more):
    waveform = 0.1 * torch.randn(2, 16000)
    nothing = torch.zeros(2)
    batch = ClipBatch(["a", "b"], waveform, torch.zeros(2, 3), nothing, [], nothing, [])
    return TeacherInput(batch, _log_mel()(waveform), None, **more)


def _expected(network, log_mel):
    with torch.no_grad():
        return network.student(log_mel.unsqueeze(1)).strong


def test_it_scores_frames_of_the_students_log_mel():
    network, inputs = _network(), _inputs()
    found = FrameTeacher(network, _log_mel())(inputs)
    assert found.logits.shape == (2, 3, 25) and found.is_mixed
    assert torch.equal(found.logits, _expected(network, inputs.log_mel))


def test_another_front_end_is_moved_and_mixed_alike():
    network = _network(n_mels=64)
    mix = Mix(torch.tensor([0.75, 0.5]), torch.tensor([1, 0]))
    inputs = _inputs(shift=Shift(torch.tensor([8, -12])))._replace(mix=mix)
    found = FrameTeacher(network, _log_mel())(inputs)
    own = shifted(network.log_mel(inputs.batch.waveform), inputs.shift)
    share = mix.weight[:, None, None]
    own = share * own + (1 - share) * own[mix.partner]
    assert torch.allclose(found.logits, _expected(network, own), atol=1e-5)


def test_teachers_are_averaged_frame_by_frame():
    networks, inputs = [_network(), _network()], _inputs()
    found = FrameTeacher(Ensemble(networks), _log_mel())(inputs)
    each = [_expected(network, inputs.log_mel) for network in networks]
    assert torch.allclose(found.logits, (each[0] + each[1]) / 2, atol=1e-6)


def test_scores_that_are_not_finite_are_refused():
    network = _network()
    network.student.strong_head.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="logits of 2 clips are not finite"):
        FrameTeacher(network, _log_mel())(_inputs())


def _refusal(network, log_mel, labels=LABELS):
    summary = summarize_labels(["a"], [["a"]], LABELS)
    with pytest.raises(ValueError) as found:
        FrameTeacher(network, log_mel).check(summary, labels)
    return str(found.value)


def test_a_tagger_is_refused():
    tagger = WaveformStudent(_log_mel(), MN(3, width=0.1))
    assert "does not score frames" in _refusal(tagger, _log_mel())
    with pytest.raises(ValueError, match="does not score frames"):
        FrameTeacher(tagger, _log_mel())(_inputs())


def test_other_frames_and_classes_are_refused():
    printed = _refusal(_network(), _log_mel(hop_length=320))
    assert "has frames of 0.04 s and the student of 0.08 s" in printed
    assert "3 classes" in _refusal(_network(), _log_mel(), LabelTable("ab", "ab"))


def test_labels_of_other_frames_are_refused():
    inputs = _inputs()
    batch = inputs.batch._replace(strong=torch.zeros(2, 3, 50))
    with pytest.raises(ValueError, match=r"\[3, 25\], and the labels \[3, 50\]"):
        FrameTeacher(_network(), _log_mel())(inputs._replace(batch=batch))
