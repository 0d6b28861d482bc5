"""An online teacher takes what the student takes, and is not trained."""

import pytest
import torch
import torchaudio
from test_brain import CLASSES, Tones, _brain, _fit

from efficientat_plugin.contracts import TeacherInput
from efficientat_plugin.data.clips import collate
from efficientat_plugin.data.labels import LabelTable, summarize_labels
from efficientat_plugin.data.mixing import Mixup
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.teachers.bring_your_own import RESAMPLING
from efficientat_plugin.teachers.online import OnlineTeacher
from efficientat_plugin.training.losses import DistillationLoss

LABELS = LabelTable("abcd", "abcd")


def target_of(teacher, inputs):
    """What the loss makes of a teacher's logits."""
    return DistillationLoss().teacher_target(teacher(inputs), inputs)


def log_mel_of(**options):
    return LogMel(hop_length=1280, n_mels=64, **options)


def model_of(**options):
    torch.manual_seed(1)
    return WaveformStudent(log_mel_of(**options), MN(CLASSES, width=0.1))


def inputs_of(mixed=False):
    batch = collate([Tones()[row] for row in range(4)])
    log_mel, mix = log_mel_of().eval()(batch.waveform), None
    if mixed:
        log_mel, mix = Mixup(0.3)(log_mel)
    return TeacherInput(batch, log_mel, mix)


class FromWaveforms(torch.nn.Module):
    """Somebody's own: logits of waveforms."""

    def __init__(self, num_samples=16000):
        super().__init__()
        self.layer = torch.nn.Linear(num_samples, CLASSES)

    def forward(self, waveform):
        return self.layer(waveform)


def test_a_front_end_alike_is_the_students():
    model, inputs = model_of(f_max_jitter=500), inputs_of(mixed=True)
    teacher = OnlineTeacher(model, log_mel_of(f_min_jitter=10))
    assert teacher.shares_log_mel  # whatever the jitter
    masked = inputs._replace(log_mel=inputs.log_mel * 0.5)
    expected = model.student(masked.log_mel.unsqueeze(1)).logits.sigmoid()
    torch.testing.assert_close(target_of(teacher, masked).scores, expected)


def test_another_front_end_takes_the_waveforms_and_mixes_alike():
    model, inputs = model_of(f_max=8000.0), inputs_of(mixed=True)
    teacher = OnlineTeacher(model, log_mel_of())
    assert not teacher.shares_log_mel
    features, mix = model.log_mel(inputs.batch.waveform), inputs.mix
    share = mix.weight[:, None, None]
    features = share * features + (1 - share) * features[mix.partner]
    expected = model.student(features.unsqueeze(1)).logits.sigmoid()
    torch.testing.assert_close(target_of(teacher, inputs).scores, expected)


def test_a_module_of_ones_own_takes_mixed_waveforms():
    model, inputs = FromWaveforms(), inputs_of(mixed=True)
    waveform, mix = inputs.batch.waveform, inputs.mix
    share = mix.weight[:, None]
    mixed = share * waveform + (1 - share) * waveform[mix.partner]
    target = target_of(OnlineTeacher(model, log_mel_of()), inputs)
    torch.testing.assert_close(target.scores, model(mixed).sigmoid())
    assert (target.weight == 1).all()


def test_an_ensemble_averages_logits():
    members = [model_of(), WaveformStudent(log_mel_of(), MN(CLASSES, width=0.2))]
    inputs = inputs_of()
    each = [OnlineTeacher(member, log_mel_of())(inputs).logits for member in members]
    both = OnlineTeacher(Ensemble(members), log_mel_of())(inputs)
    torch.testing.assert_close(both.logits, (each[0] + each[1]) / 2)


def test_training_leaves_the_teacher_alone(tmp_path):
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = OnlineTeacher(model, log_mel_of())
    brain, epochs = _brain(tmp_path, teacher=teacher, mixup=Mixup(0.3))
    _fit(brain, epochs)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert set(brain.modules) == {"log_mel", "spec_mask", "student"}
    taught = {id(p) for group in brain.optimizer.param_groups for p in group["params"]}
    assert not taught & {id(p) for p in model.parameters()}
    saved = brain.checkpointer.find_checkpoint().paramfiles
    assert not {"teacher", "model"} & set(saved)


def test_the_student_comes_to_agree_with_its_teacher():
    """Whatever the labels say: with a teacher alone they have no part."""
    teacher = OnlineTeacher(model_of(), log_mel_of())
    brain, epochs = _brain(
        teacher=teacher,
        loss=DistillationLoss(kd_weight=1.0),
        lr_schedule=lambda epoch: 0.01,
        epochs=8,
    )
    losses = []
    finish = brain._finish_epoch

    def note(epoch, *others):
        losses.append(brain.train_loss)
        finish(epoch, *others)

    brain._finish_epoch = note
    _fit(brain, epochs)
    assert losses[-1] < losses[0]


def test_what_does_not_fit_is_refused():
    summary = summarize_labels(["x"], [["a"]], LABELS)
    teacher = OnlineTeacher(model_of(), log_mel_of())
    assert "log-mel, for 1 clips" in teacher.check(summary, LABELS)
    three = LabelTable("abc", "abc")
    with pytest.raises(ValueError, match="the teacher has 4 classes and the student 3"):
        teacher.check(summary, three)
    other = OnlineTeacher(model_of(), log_mel_of(), LabelTable("abce", "abce"))
    with pytest.raises(ValueError, match="teacher and student share 3 classes"):
        other.check(summary, LABELS)
    model = model_of()
    model.labels = LabelTable("abdc", "abdc")  # of its own
    with pytest.raises(ValueError, match="teacher and student share 4 classes, in ano"):
        OnlineTeacher(model, log_mel_of()).check(summary, LABELS)


def test_a_teacher_of_another_kind_is_refused():
    summary = summarize_labels(["x"], [["a"]], LABELS)
    model = model_of()
    model.target = "multiclass"
    with pytest.raises(ValueError, match="teacher is multiclass and the student multi"):
        OnlineTeacher(model, log_mel_of()).check(summary, LABELS)
    OnlineTeacher(model, log_mel_of()).check(summary, LABELS, target="multiclass")


@pytest.mark.parametrize("of_an_ensemble", [False, True])
@pytest.mark.parametrize("has_log_mel", [False, True])
def test_a_teacher_of_another_rate_takes_resampled_clips(has_log_mel, of_an_ensemble):
    """And its features are mixed where it has a log-mel, as of the student's rate."""
    summary = summarize_labels(["x"], [["a"]], LABELS)
    inputs = inputs_of(mixed=True)
    waveform, mix = inputs.batch.waveform, inputs.mix
    slower = torchaudio.functional.resample(waveform, 32000, 16000, **RESAMPLING)
    if has_log_mel:
        model = model_of(sample_rate=16000, f_max=8000.0).eval()
        features, share = model.log_mel(slower), mix.weight[:, None, None]
        features = share * features + (1 - share) * features[mix.partner]
        expected = model.student(features.unsqueeze(1)).logits
    else:
        model = FromWaveforms(8000)
        model.sample_rate, model.num_classes = 16000, CLASSES
        share = mix.weight[:, None]
        expected = model(share * slower + (1 - share) * slower[mix.partner])
    teacher = OnlineTeacher(
        Ensemble([model, model]) if of_an_ensemble else model, log_mel_of()
    )
    assert "takes the student's waveforms, for 1 cl" in teacher.check(summary, LABELS)
    logits = teacher(inputs).logits
    torch.testing.assert_close(logits, expected)


def test_a_teacher_that_has_diverged_names_the_clip():
    model = FromWaveforms()
    torch.nn.init.constant_(model.layer.bias, float("nan"))
    with pytest.raises(ValueError, match="of 4 clips are not finite, .* tone0; check"):
        target_of(OnlineTeacher(model, log_mel_of()), inputs_of())
