"""Teachers of one's own: a function by its dotted name, and any sample rate."""

import pytest
import torch

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.bring_your_own import Resampled, load_own
from efficientat_plugin.teachers.load import open_teachers


def test_a_function_makes_a_teacher(own_module):
    teacher = load_own("my_teachers:make")
    assert teacher.sample_rate == 16000 and teacher.labels.names == ("dog", "cat")
    assert teacher(torch.ones(3, 32)).logits.tolist() == [[16.0, 16.0]] * 3
    given = load_own("my_teachers:make_silent", 8000, LabelTable("ab", "ab"))
    assert given.sample_rate == 8000 and given.num_classes == 2


@pytest.mark.parametrize(
    "source, text",
    [
        ("no_such_module:make", "cannot be imported .*No module named"),
        ("my_teachers:nothing", "cannot be imported .*no attribute 'nothing'"),
        ("my_teachers:make_mute", "returned int; it must return an nn.Module"),
        ("my_teachers:made", "made is of type Net; it must be a function that"),
        (
            "my_teachers:make_silent",
            "no attribute sample_rate; .*'{sample_rate: HZ}'",
        ),
        ("my_teachers:make_unnamed", "must be a LabelTable or a list of names"),
    ],
)
def test_what_is_no_teacher_is_refused(own_module, source, text):
    with pytest.raises(ValueError, match=text):
        load_own(source)


def test_a_teacher_without_class_names_is_refused(own_module):
    with pytest.raises(ValueError, match="no attribute labels; .* '{labels: CSV}'"):
        load_own("my_teachers:make_silent", 8000)


def test_logits_of_another_shape_are_refused(own_module):
    with pytest.raises(ValueError, match=r"returned .*\[2, 3\].* of shape \(2, 2\)"):
        load_own("my_teachers:make_short")(torch.zeros(2, 32))


def test_a_member_of_another_rate_takes_the_same_sound():
    class Peak(torch.nn.Module):
        num_classes = 3

        def __init__(self, sample_rate=16000):
            super().__init__()
            self.sample_rate = sample_rate

        def forward(self, waveform):
            spectrum = torch.fft.rfft(waveform).abs().argmax(dim=1)
            frequency = spectrum * self.sample_rate / waveform.shape[1]
            return StudentOutput(frequency[:, None].repeat(1, 3), waveform[:, :0])

    seconds = torch.arange(32000) / 32000
    tone = torch.sin(2 * torch.pi * 1000 * seconds)[None]
    with pytest.raises(ValueError, match=r"sample_rate \[32000, 16000\]; give m"):
        Ensemble([Peak(32000), Peak()])
    ensemble = Ensemble([Resampled(Peak(), 32000), Resampled(Peak(), 32000)])
    assert ensemble.sample_rate == 32000
    assert ensemble(tone).logits.tolist() == [[1000.0] * 3]


def test_teachers_of_two_rates_share_one_where_it_is_given(own_module):
    sources = "my_teachers:make,my_teachers:make_slow"
    with pytest.raises(ValueError, match=r"\[16000, 8000\] Hz; pass --sample_rate"):
        open_teachers(sources)
    teacher, labels, _ = open_teachers(sources, sample_rate=32000, weights=[3, 1])
    assert teacher.sample_rate == 32000 and teacher.weights == (0.75, 0.25)
    assert labels.names == ("dog", "cat") and not teacher.training
    assert teacher(torch.zeros(2, 16000)).logits.shape == (2, 2)


def test_teachers_of_other_classes_are_refused(own_module):
    with pytest.raises(ValueError, match="different classes .2 and 3."):
        open_teachers("my_teachers:make,my_teachers:make_three")
