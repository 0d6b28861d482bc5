"""The Brain's hooks: schedules, seeds, teachers and traps of SpeechBrain."""

import time

import numpy as np
import pytest
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from efficientat_plugin import FilterAugment, FrameShift, FreqMixStyle, FrequencyWarp
from efficientat_plugin.contracts import (
    Clip,
    StudentOutput,
    TeacherInput,
    TeacherTarget,
)
from efficientat_plugin.data.clips import collate
from efficientat_plugin.data.mixing import Mixup
from efficientat_plugin.data.sampling import Draws
from efficientat_plugin.evaluation.metrics import TaggingStats
from efficientat_plugin.features import LogMel, SpecMask
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.checkpoints import AtomicCheckpointer
from efficientat_plugin.teachers.stored import StoredTeacher
from efficientat_plugin.training.brain import TRAIN, DistillationBrain, History
from efficientat_plugin.training.losses import DistillationLoss, RunningLoss
from efficientat_plugin.training.schedules import TemperatureRampDown, WarmupRampDown
from efficientat_plugin.training.short_runs import prepare_for_short_run
from efficientat_plugin.training.train_log import PlainTrainLogger

CLASSES = 4


class Tones(torch.utils.data.Dataset):
    """Half a second each of one of four tones, labelled with it."""

    def __init__(self, count: int = 16) -> None:
        self.count = count
        self.asked: list = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw):
        row = getattr(draw, "row", draw)
        self.asked.append(draw)
        time = torch.arange(16000) / 32000
        rng = np.random.default_rng(row)
        tone = torch.sin(2 * torch.pi * 300 * 2.0 ** (row % CLASSES) * time)
        noise = torch.from_numpy(rng.standard_normal(16000).astype(np.float32))
        labels = torch.eye(CLASSES)[row % CLASSES]
        return Clip(f"tone{row}", tone + 0.05 * noise, labels, torch.tensor(1.0))


class Oracle:
    """A store of logits for the tones, except those that it lacks."""

    def __init__(self, deaf_to: tuple = ()) -> None:
        self.deaf_to = deaf_to

    def lookup(self, clip_ids):
        rows = [int(clip_id.removeprefix("tone") or 0) for clip_id in clip_ids]
        logits = 8 * torch.eye(CLASSES)[[row % CLASSES for row in rows]] - 4
        known = torch.tensor([row not in self.deaf_to for row in rows])
        return TeacherTarget(logits * known[:, None], known)


def _stored(**options):
    teacher = StoredTeacher.__new__(StoredTeacher)
    teacher.store = Oracle(**options)
    return teacher


def _brain(folder=None, student=None, log_mel=None, **overrides):
    torch.manual_seed(0)
    student = student or MN(CLASSES, width=0.1, dropout=0.0)
    log_mel = log_mel or LogMel(hop_length=1280, n_mels=64)
    epochs = EpochCounter(limit=overrides.pop("epochs", 2))
    hparams = {
        "student": student,
        "loss": DistillationLoss(kd_weight=0.5),
        "teacher": _stored(),
        "mixup": None,
        "make_stats": TaggingStats,
        "lr_schedule": WarmupRampDown(0.003, warmup_epochs=0),
        "temperature_schedule": None,
        "history": History(),
        "train_logger": PlainTrainLogger("/dev/null"),
        "output_folder": folder,
        "seed": 0,
        "max_unreadable_share": 0.01,
    } | overrides
    checkpointer = None
    if folder is not None:
        recoverables = {"student": student, "epochs": epochs}
        recoverables["history"] = hparams["history"]
        checkpointer = AtomicCheckpointer(folder, recoverables)
    brain = DistillationBrain(
        modules={"log_mel": log_mel, "spec_mask": SpecMask(), "student": student},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.003),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, "max_grad_norm": 1e9},
        checkpointer=checkpointer,
    )
    return brain, epochs


def _fit(brain, epochs, tones=None):
    tones = tones or Tones()
    brain.fit(
        epochs,
        tones,
        Tones(),
        train_loader_kwargs={"batch_size": 8, "sampler": Draws(len(tones))},
        valid_loader_kwargs={"batch_size": 8},
    )
    return tones


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [_stored(), None], ids=["teacher", "labels"])
@pytest.mark.parametrize("family", [MN, DyMN, FrameMN])
def test_it_fits_a_handful_of_clips(family, teacher):
    student = family(CLASSES, width=0.1, dropout=0.0)
    prepare_for_short_run(student, prior=0.25, batch_norm_momentum=0.5)
    log_mel = LogMel(hop_length=640, n_mels=64)
    brain, epochs = _brain(
        student=student,
        log_mel=log_mel,
        teacher=teacher,
        lr_schedule=WarmupRampDown(0.01, 0, ramp_down_start=10, ramp_down_epochs=20),
        epochs=30,
    )
    _fit(brain, epochs)
    assert brain.scores.mAP == 1.0


def test_every_epoch_draws_anew():
    brain, epochs = _brain()
    tones = _fit(brain, epochs)
    first, second = tones.asked[:16], tones.asked[16:]
    assert {draw.epoch for draw in first} == {1}
    assert {draw.epoch for draw in second} == {2}
    assert [draw.row for draw in first] != [draw.row for draw in second]
    assert sorted(draw.row for draw in first) == list(range(16))


def test_without_a_schedule_the_rate_is_that_of_the_optimizer():
    brain, epochs = _brain(lr_schedule=None, epochs=1)
    _fit(brain, epochs)
    assert [group["lr"] for group in brain.optimizer.param_groups] == [0.003]


def test_learning_rate_and_temperature_follow_the_epoch(monkeypatch):
    seen = []
    brain, epochs = _brain(
        student=DyMN(CLASSES, width=0.1),
        lr_schedule=lambda epoch: 0.1 / (1 + epoch),
        temperature_schedule=TemperatureRampDown(start=5.0, step=2.0),
    )
    step = DistillationBrain.on_fit_batch_start

    def spy(self, batch, should_step):
        rate = self.optimizer.param_groups[0]["lr"]
        seen.append((self.epoch, rate, float(self.hparams.student.temperature)))
        step(self, batch, should_step)

    monkeypatch.setattr(DistillationBrain, "on_fit_batch_start", spy)
    _fit(brain, epochs)
    assert seen == [(1, 0.1, 5.0)] * 2 + [(2, 0.05, 3.0)] * 2


def test_the_temperature_travels_with_the_checkpoint(tmp_path):
    schedule = TemperatureRampDown(start=5.0)
    student = DyMN(CLASSES, width=0.1)
    brain, epochs = _brain(tmp_path, student, temperature_schedule=schedule)
    _fit(brain, epochs)
    newest = brain.checkpointer.find_checkpoint()
    saved = torch.load(newest.paramfiles["student"], weights_only=True)
    assert float(saved["temperature"]) == 4.0


def test_a_step_depends_on_its_place_not_on_the_generators_past():
    losses = []
    for noise in (0, 17):
        brain, epochs = _brain(epochs=1, mixup=Mixup(0.3))
        torch.manual_seed(noise)
        _fit(brain, epochs)
        losses.append(brain.train_loss)
    assert losses[0] == losses[1]
    brain, epochs = _brain(epochs=1, mixup=Mixup(0.3), seed=1)
    _fit(brain, epochs)
    assert brain.train_loss != losses[0]


def test_the_teacher_stays_out_of_the_brain(tmp_path):
    brain, epochs = _brain(tmp_path)
    _fit(brain, epochs)
    assert set(brain.modules) == {"log_mel", "spec_mask", "student"}
    saved = brain.checkpointer.find_checkpoint().paramfiles
    assert set(saved) == {
        "student",
        "epochs",
        "history",
        "optimizer",
        "brain",
    }


def test_both_clips_of_a_waveform_mix_ask_the_teacher():
    clips = [Tones()[row] for row in (0, 2)]
    clips[0] = clips[0]._replace(partner_id="tone1", partner_share=0.25)
    clips[1] = clips[1]._replace(partner_id="tone3", partner_share=0.5)
    inputs = TeacherInput(collate(clips), torch.zeros(2, 64, 13), mix=None)
    loss = DistillationLoss()
    target = loss.teacher_target(_stored(deaf_to=(1,))(inputs), inputs)
    torch.testing.assert_close(target.weight, torch.tensor([0.75, 1.0]))
    each = loss.soft_target(Oracle().lookup([f"tone{row}" for row in range(4)])).scores
    torch.testing.assert_close(target.scores[0], 0.75 * each[0])
    torch.testing.assert_close(target.scores[1], 0.5 * each[2] + 0.5 * each[3])


class Linear(torch.nn.Linear):
    """A student for which a clip is the same in any batch, trained or not."""

    def forward(self, log_mel):
        embedding = log_mel.mean(dim=(1, 3))
        return StudentOutput(super().forward(embedding), embedding)


def test_losses_are_means_over_clips_whatever_the_size_of_a_batch():
    """Of 13 clips, so that most sizes leave a small last batch."""
    found = []
    for batch_size in (1, 5, 12, 13):
        brain, epochs = _brain(
            student=Linear(64, CLASSES, bias=False),
            log_mel=LogMel(hop_length=1280, n_mels=64, f_min_jitter=0, f_max_jitter=0),
            teacher=None,
            lr_schedule=lambda epoch: 0.0,
            epochs=1,
        )
        torch.nn.init.normal_(brain.hparams.student.weight, std=3.0)
        tones, options = Tones(13), {"batch_size": batch_size}
        training = options | {"sampler": Draws(13)}
        brain.fit(epochs, tones, tones, None, training, dict(options))
        (epoch,) = brain.hparams.history.epochs
        tested = brain.evaluate(tones, test_loader_kwargs=dict(options))
        found.append([epoch["train_loss"], epoch["valid_loss"], tested])
    logits = np.array([brain.stats.clips[f"tone{row}"][0] for row in range(13)])
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.eye(CLASSES)[torch.arange(13) % CLASSES]
    )
    for losses in found:
        assert losses == pytest.approx([float(by_hand)] * 3, rel=1e-5)


def test_processes_with_unequal_shares_count_by_their_clips(monkeypatch):
    brain, _ = _brain()
    monkeypatch.setattr(brain, "_of_processes", lambda own: [own, [100.0, 1]])
    brain.stage_losses = RunningLoss(2.0, 3)
    brain.on_stage_end(TRAIN, stage_loss=0.0, epoch=1)
    assert brain.train_loss == 102 / 4  # a mean of means would be 50.3
    assert brain.train_losses.num_clips == 0


def test_a_running_loss_is_shared_out_among_another_number_of_processes(tmp_path):
    brain, _ = _brain(tmp_path)
    brain.saved_losses = [[10.0, 4], [2.0, 2]]
    brain._save(tmp_path / "brain")
    brain._recover(tmp_path / "brain", end_of_epoch=False)
    assert (brain.train_losses.total, brain.train_losses.num_clips) == (12.0, 6)
    assert brain.avg_train_loss == 2.0
    brain.saved_losses = []  # at the end of an epoch
    brain._save(tmp_path / "brain")
    brain._recover(tmp_path / "brain", end_of_epoch=True)
    assert brain.train_losses.num_clips == 0 and brain.avg_train_loss == 0.0


@pytest.mark.parametrize("interrupted_after", [1, 2, 3, 5])
def test_a_resume_within_an_epoch_changes_nothing(tmp_path, interrupted_after):
    """Gradients accumulate over two batches, so a checkpoint waits for the step."""

    class Interrupted(Exception):
        pass

    def run(folder, interrupt):
        brain, epochs = _brain(folder, mixup=Mixup(0.3, probability=0.7))
        kinds = (FilterAugment, FrequencyWarp, FreqMixStyle)
        chain = (FrameShift(5.0), *(kind(probability=0.5) for kind in kinds))
        brain.modules.spec_mask = torch.nn.Sequential(SpecMask(4, 4), *chain)
        brain.grad_accumulation_factor = 2
        brain.ckpt_interval_steps, brain.ckpt_interval_minutes = 1, 0
        tones, batches = Tones(32), []
        end = brain.on_fit_batch_end

        def on_fit_batch_end(*args):
            end(*args)
            batches.append(1)
            if interrupt and len(batches) > interrupted_after:
                raise Interrupted

        brain.on_fit_batch_end = on_fit_batch_end
        _fit(brain, epochs, tones)
        return brain

    with pytest.raises(Interrupted):
        run(tmp_path / "a", interrupt=True)
    resumed = run(tmp_path / "a", interrupt=False)
    alone = run(tmp_path / "b", interrupt=False)
    assert resumed.hparams.history.epochs == alone.hparams.history.epochs
    state = alone.hparams.student.state_dict()
    for name, value in resumed.hparams.student.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("clips", [16, 24, 32])
def test_a_kill_between_the_last_save_and_its_deletions_leaves_no_other_checkpoint(
    tmp_path, monkeypatch, clips
):
    """As if all of it were within one second, of which a name is not taken twice."""
    monkeypatch.setattr(time, "strftime", lambda *_args: "2026-11-30+10-00-00")

    class Killed(BaseException):
        pass

    def run(folder, kill):
        brain, epochs = _brain(folder)
        brain.ckpt_interval_steps, brain.ckpt_interval_minutes = 1, 0
        delete = brain.checkpointer.delete_checkpoints

        def delete_checkpoints(**options):
            if kill and len(brain.hparams.history.epochs) == 2:
                raise Killed
            delete(**options)

        brain.checkpointer.delete_checkpoints = delete_checkpoints
        _fit(brain, epochs, Tones(clips))
        return {
            path.name: path.read_bytes()
            for path in max(folder.glob("CKPT*")).glob("*.ckpt")
        }, len([*folder.glob("CKPT*")])

    with pytest.raises(Killed):
        run(tmp_path / "killed", kill=True)
    killed, count = run(tmp_path / "killed", kill=False)
    alone, count_alone = run(tmp_path / "alone", kill=False)
    assert [name for name in alone if killed[name] != alone[name]] == []
    assert count == count_alone
