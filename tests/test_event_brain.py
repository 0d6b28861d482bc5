"""Loss, rates and Brain of detectors of sound events."""

import math
from functools import partial

import pytest
import torch
from event_runs import LENGTHS
from torch.nn import functional

from efficientat_plugin.contracts import (
    FrameOutput,
    Mix,
    SoftTarget,
    TeacherInput,
    TeacherTarget,
)
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.events.event_reader import (
    EventClipReader,
    open_event_clips,
)
from efficientat_plugin.data.sampling import Draws
from efficientat_plugin.data.soundscapes import make_soundscapes
from efficientat_plugin.evaluation.detection_stats import DetectionStats
from efficientat_plugin.features import LogMel, SpecMask
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.brain import History
from efficientat_plugin.training.event_brain import EventBrain, EventLoss, event_groups
from efficientat_plugin.training.schedules import WarmupCosine
from efficientat_plugin.training.short_runs import prepare_for_short_run
from efficientat_plugin.training.train_log import PlainTrainLogger

BCE = functional.binary_cross_entropy_with_logits


def _random(*shape):
    return torch.rand(*shape)


def _output(num_clips=4):
    strong, weak = torch.randn(num_clips, 3, 5), torch.randn(num_clips, 3)
    return FrameOutput(strong, weak, torch.zeros(num_clips, 5, 1))


def test_the_loss_is_the_sum_of_three_cross_entropies():
    """Reimplemented plainly, for labels and logits of all clips."""
    output = _output()
    labels, clips, logits = _random(4, 3, 5), _random(4, 3), torch.randn(4, 3, 5)
    loss = EventLoss(kd_weight=0.7, kd_temperature=2.0, weak_weight=0.3)
    inputs = TeacherInput(None, None, None)
    teacher = loss.teacher_target(
        TeacherTarget(logits, torch.ones(4, dtype=torch.bool)), inputs
    )
    found = loss(
        output,
        SoftTarget(labels, torch.ones(4)),
        SoftTarget(clips, torch.ones(4)),
        teacher,
    )
    expected = 0.3 * BCE(output.strong, labels)
    expected += 0.7 * BCE(output.strong, (logits / 2).sigmoid())
    expected += 0.3 * BCE(output.weak, clips)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_what_is_not_known_adds_nothing():
    output = _output()
    known = torch.tensor([1.0, 0.0, 1.0, 0.0])
    labels = _random(4, 3, 5) * known[:, None, None]
    loss = EventLoss(weak_weight=0.0)
    nothing = SoftTarget(torch.zeros(4, 3), torch.zeros(4))
    found = loss(output, SoftTarget(labels, known), nothing)
    each = BCE(output.strong, labels, reduction="none").mean((1, 2))
    assert float(found) == pytest.approx(float((each * known).sum() / 4), rel=1e-5)
    other = FrameOutput(output.strong.clone(), output.weak + 1, output.embedding)
    other.strong[1] += 5.0
    assert loss(other, SoftTarget(labels, known), nothing) == found


def test_targets_of_frames_are_mixed_like_the_batch():
    labels, known = _random(2, 3, 5), torch.tensor([1.0, 0.0])
    labels[1] = 0
    mix = Mix(torch.tensor([0.75, 0.5]), torch.tensor([1, 0]))
    mixed = SoftTarget(labels, known).followed(mix)
    assert torch.allclose(mixed.scores[0], 0.75 * labels[0])
    assert torch.allclose(mixed.scores[1], 0.5 * labels[0])
    assert mixed.weight.tolist() == [0.75, 0.5]


@pytest.mark.parametrize("option", [{"weak_weight": -1.0}, {"kd_weight": 2.0}])
def test_illegal_weights_are_refused(option):
    with pytest.raises(ValueError, match="must be"):
        EventLoss(**option)


def test_rates_fall_from_stage_to_stage_as_published():
    student = FrameMN(2, width=0.1, sequence_model="gru", sequence_dim=8)
    groups = event_groups(student, layer_decay=0.9, head_scale=0.5)
    scales = [group["lr_scale"] for group in groups]
    assert scales[:-1] == pytest.approx([0.9**depth for depth in range(16, -1, -1)])
    assert scales[-1] == 0.5
    stages = [*student.model["fmn"].features]
    for group, stage in zip(groups, stages, strict=False):
        assert {*map(id, group["params"])} == {*map(id, stage.parameters())}
    head = {id(each) for each in student.seq_model.parameters()}
    head |= {id(student.strong_head.weight), id(student.weak_head.bias)}
    assert head <= {*map(id, groups[-1]["params"])}
    grouped = [id(each) for group in groups for each in group["params"]]
    assert sorted(grouped) == sorted(map(id, student.parameters()))


def test_illegal_rates_are_refused():
    with pytest.raises(ValueError, match=r"layer_decay=1\.5 must be above 0"):
        event_groups(FrameMN(2, width=0.1), layer_decay=1.5)
    with pytest.raises(ValueError, match="the rate of the heads above 0"):
        event_groups(FrameMN(2, width=0.1), head_scale=0.0)


def test_groups_of_equal_rates_need_no_stages():
    (group,) = event_groups(MN(2, width=0.1))
    assert len(group["params"]) == len([*MN(2, width=0.1).parameters()])


class _Trained:
    """A small detector, trained on a few clips without a recipe."""

    def __init__(self, folder, number_of_epochs, num_clips=12, lr=0.01):
        data = folder / "sounds"
        shares = {"valid_share": 0.0, "test_share": 0.0}
        make_soundscapes(data, num_clips, **shares, **LENGTHS)
        self.opened = open_event_clips(data, data / "events" / "train.tsv")
        log_mel = LogMel(16000, 64, 400, 160, 512, f_max=7000.0, f_max_jitter=1)
        self.student = FrameMN(len(self.opened.labels), width=0.2)
        prepare_for_short_run(self.student, prior=0.1, batch_norm_momentum=0.1)
        reader = EventClipReader(self.opened, 75, clip_seconds=3.0, sample_rate=16000)
        self.clips = Clips(self.opened.rows, reader)
        self.make_stats = partial(
            DetectionStats,
            self.opened.events,
            self.opened.seconds,
            self.opened.labels.names,
        )
        draws = Draws(len(self.clips), 24, seed=1)
        hparams = {
            "student": self.student,
            "loss": EventLoss(weak_weight=0.1),
            "teacher": None,
            "mixup": None,
            "frame_shift": None,
            "make_stats": self.make_stats,
            "lr_schedule": WarmupCosine(lr, number_of_epochs, warmup_share=0.1),
            "temperature_schedule": None,
            "layer_decay": 1.0,
            "head_scale": 1.0,
            "history": History(),
            "train_logger": PlainTrainLogger(folder / "log.txt"),
            "seed": 1,
            "max_unreadable_share": 0.0,
            "output_folder": str(folder),
        }
        self.rates = []
        modules = {"log_mel": log_mel, "spec_mask": SpecMask(), "student": self.student}
        self.brain = EventBrain(
            modules, partial(torch.optim.Adam, lr=lr), hparams, {"device": "cpu"}
        )
        step = self.brain.on_fit_batch_end
        self.brain.on_fit_batch_end = lambda *given: (
            self.rates.append(self.brain.optimizer.param_groups[0]["lr"]),
            step(*given),
        )
        self.brain.fit(
            range(1, number_of_epochs + 1),
            self.clips,
            None,
            progressbar=False,
            train_loader_kwargs={"batch_size": 4, "sampler": draws},
        )
        self.brain.evaluate(
            self.clips, progressbar=False, test_loader_kwargs={"batch_size": 4}
        )


def test_the_rate_changes_at_every_step(tmp_path):
    rates = _Trained(tmp_path, number_of_epochs=2, num_clips=4, lr=0.01).rates
    assert len(rates) == 12
    done = [(step + 0.5) / 12 for step in range(12)]
    expected = [
        0.01
        * min(1, each / 0.1)
        * 0.5
        * (1 + math.cos(math.pi * max(0, each - 0.1) / 0.9))
        for each in done
    ]
    assert rates == pytest.approx(expected)


@pytest.mark.slow
def test_a_small_detector_learns_a_few_clips_by_heart(tmp_path):
    trained = _Trained(tmp_path, number_of_epochs=35)
    assert trained.brain.scores.PSDS1 > 0.8
