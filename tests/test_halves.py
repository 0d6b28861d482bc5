"""Batches of clips with and without strong labels: drawn, mixed and compared alike."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional

from efficientat_plugin.contracts import Clip, ClipBatch, TeacherInput
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.data.frame_mixing import FrameShift
from efficientat_plugin.data.halves import HalvedDraws, Halves
from efficientat_plugin.data.mixing import Mixup, WaveformMix
from efficientat_plugin.data.sampling import PlaceInEpoch
from efficientat_plugin.training.event_brain import EventBrain, EventLoss

IS_STRONG = np.arange(40) % 3 == 0  # 14 of 40 clips
BATCH, STRONG = 5, 2


def _draws(epoch=1, **options):
    draws = HalvedDraws(IS_STRONG, STRONG, BATCH, **options)
    draws.set_epoch(epoch)
    return draws


def _batches(draws):
    drawn = list(draws)
    assert len(drawn) % BATCH == 0
    return [drawn[first : first + BATCH] for first in range(0, len(drawn), BATCH)]


@pytest.mark.parametrize("clips_per_epoch", [None, 50, 203])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_batch_of_every_process_has_its_halves(
    clips_per_epoch, world_size, drop_last
):
    """And processes together draw what one draws alone."""
    draws = _draws(clips_per_epoch=clips_per_epoch)
    alone, shared = _batches(draws), []
    assert len(alone) == (7 if clips_per_epoch is None else clips_per_epoch // BATCH)
    for rank in range(world_size):
        draws.deal(rank, world_size, drop_last)
        own = _batches(draws)
        assert len(draws) == len(own) * BATCH
        shared.append(own)
    assert len({*map(len, shared)}) == 1
    for batch in (batch for own in shared for batch in own):
        assert sum(IS_STRONG[draw.row] for draw in batch) == STRONG
    together = [each for step in zip(*shared, strict=True) for each in step]
    whole = len(alone) if not drop_last else len(alone) // world_size * world_size
    assert together[:whole] == alone[:whole]


def test_rows_are_drawn_once_before_any_twice():
    drawn = [draw.row for draw in _draws(clips_per_epoch=200)]  # 80 and 120 of them
    counts = Counter(drawn)
    assert {counts[row] for row in np.flatnonzero(IS_STRONG)} <= {5, 6}
    assert {counts[row] for row in np.flatnonzero(~IS_STRONG)} <= {4, 5}


def test_an_epoch_follows_from_seed_and_epoch():
    first = list(_draws(epoch=2, seed=3))
    assert list(_draws(epoch=2, seed=3)) == first
    assert list(_draws(epoch=1, seed=3)) != first != list(_draws(epoch=2, seed=4))
    assert [draw.position for draw in first] == list(range(35))
    assert {draw.epoch for draw in first} == {2}


def test_halves_of_one_size_are_paired_differently():
    draws = HalvedDraws(np.arange(40) < 20, 1, 2)
    pairs = []
    for epoch in range(1, 4):
        draws.set_epoch(epoch)
        rows = [draw.row for draw in draws]
        pairs += [rows[n + 1] - 20 == rows[n] for n in range(0, len(rows), 2)]
    assert sum(pairs) < len(pairs) / 4


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_an_interrupted_epoch_is_resumed_with_the_other_clips(before, after):
    """With another number of processes, too."""
    draws = _draws(clips_per_epoch=60)
    alone = list(draws)
    place = PlaceInEpoch(draws, BATCH * before)
    draws.start = place.clips_drawn(step=2)
    assert draws.start == 2 * before * BATCH
    rest = []
    for rank in range(after):
        draws.deal(rank, after, drop_last=True)
        rest += list(draws)
    left = (12 - 2 * before) // after * after * BATCH
    assert sorted(draw.position for draw in rest) == [
        draw.position for draw in alone[draws.start : draws.start + left]
    ]
    assert {*rest} <= {*alone}


def test_weights_are_of_the_weak_half():
    weights = np.where(np.arange(26) < 3, 1000.0, 1.0)
    weak = np.flatnonzero(~IS_STRONG)
    draws = HalvedDraws(IS_STRONG, STRONG, BATCH, 10, weights)
    for epoch in range(1, 6):
        draws.set_epoch(epoch)
        assert {*weak[:3]} <= {draw.row for draw in draws}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strong_clips": 0}, "strong_clips=0 must be 1 or more and less than batch_s"),
        ({"strong_clips": 5}, "strong_clips=5 must be 1 or more and less than batch_s"),
        (
            {"is_strong": IS_STRONG[:4]},
            "needs 2 clips with strong labels and 3 without",
        ),
        ({"is_strong": [True] * 9}, "but there are 9 and 0 to train on"),
        ({"is_strong": [False] * 9}, "but there are 0 and 9 to train on"),
        ({"clips_per_epoch": 4}, "clips_per_epoch=4 is less than a batch of 5 clips"),
        ({"clips_per_epoch": 50, "weights": np.ones(26)}, "cannot be drawn with class"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, sentence):
    legal = {"is_strong": IS_STRONG, "strong_clips": STRONG, "batch_size": BATCH}
    with pytest.raises(ValueError, match=sentence):
        HalvedDraws(**(legal | options))


class _Reader:
    """Reads the number of a row as a constant sound; some rows are unreadable."""

    def __init__(self, unreadable=()):
        self.unreadable = unreadable

    def read(self, row, rng=None):
        del rng  # of clips that are cut from longer sounds
        number = int(row["video_id"])
        if number in self.unreadable:
            raise UnreadableClip("it is not there")
        sound = torch.sin(torch.arange(16) * (number + 1.0))
        known = float(IS_STRONG[number])
        return Clip(
            str(number),
            sound,
            torch.zeros(2),
            torch.tensor(1.0),
            strong=torch.full((2, 4), known),
            strong_known=known,
        )


def _clips(reader=None, **options):
    rows = datasets.Dataset.from_dict({"video_id": [str(n) for n in range(40)]})
    return Clips(
        rows,
        reader or _Reader(),
        replace_unreadable=True,
        is_strong=IS_STRONG,
        **options,
    )


def test_an_unreadable_clip_is_replaced_by_one_of_its_half():
    clips = _clips(_Reader({0, 3, 1, 38}))
    assert clips[0].clip_id == "6"
    assert clips[1].clip_id == "2"
    assert clips[38].clip_id == "2"  # the last one: 0 and 1 come next
    assert [each.clip_id for each in clips[38].skipped] == ["38", "1"]


def test_waveforms_are_mixed_in_the_strong_half_alone():
    clips = _clips(waveform_mix=WaveformMix(probability=1.0))
    for row in range(40):
        clip = clips[row]
        if IS_STRONG[row]:
            assert IS_STRONG[int(clip.partner_id)]
            assert clip.strong_known == pytest.approx(1.0)
        else:
            assert clip.partner_id == ""


def _brain(halves, **hparams):
    """The part of a Brain that mixes and compares."""
    brain = EventBrain.__new__(EventBrain)
    brain.halves, brain.device = halves, "cpu"
    student = torch.nn.Identity()
    student.frame_stride = 4
    modules = {"student": student, "frame_shift": FrameShift(std_frames=50)}
    brain.modules = torch.nn.ModuleDict(modules).train()
    every = {"frame_shift": True, "mixup": None, "student": student} | hparams
    brain.hparams = type("Hparams", (), every)
    return brain


def _batch(num_strong=3, num_weak=2):
    size = num_strong + num_weak
    known = (torch.arange(size) < num_strong).float()
    return ClipBatch(
        [str(n) for n in range(size)],
        torch.zeros(size, 8),
        torch.zeros(size, 2),
        torch.ones(size),
        [""] * size,
        torch.zeros(size),
        [],
        strong=torch.rand(size, 2, 4) * known[:, None, None],
        strong_known=known,
    )


def test_each_half_is_mixed_with_itself():
    halves = Halves(strong=Mixup(0.2, keep_larger=False), weak=Mixup(0.3))
    log_mel = torch.randn(5, 3, 4)
    for _ in range(10):
        mixed, mix = _brain(halves)._mixed(log_mel, _batch())
        assert (mix.partner[:3] < 3).all() and (mix.partner[3:] >= 3).all()
        assert (mix.weight[3:] >= 0.5).all()
        share = mix.weight[:, None, None]
        expected = share * log_mel + (1 - share) * log_mel[mix.partner]
        torch.testing.assert_close(mixed, expected)


def test_a_half_without_mixup_stays_as_it_is():
    log_mel = torch.randn(5, 3, 4)
    mixed, mix = _brain(Halves(None, Mixup(0.3)))._mixed(log_mel, _batch())
    assert torch.equal(mixed[:3], log_mel[:3]) and (mix.weight[:3] == 1).all()
    mixed, mix = _brain(Halves(None, None))._mixed(log_mel, _batch())
    assert torch.equal(mixed, log_mel) and mix is None


def test_only_the_strong_half_is_moved():
    torch.manual_seed(0)
    log_mel, batch = torch.randn(5, 3, 16), _batch()
    moved, shifted_batch, shift = _brain(Halves(None, None))._moved(log_mel, batch)
    assert torch.equal(moved[3:], log_mel[3:])
    assert not torch.equal(moved[:3], log_mel[:3])
    assert (shift.mel_frames[3:] == 0).all() and (shift.mel_frames[:3] != 0).any()


def test_strong_labels_are_averaged_over_the_strong_half():
    """The published loss, computed half by half."""
    batch, logits = _batch(), torch.randn(5, 2, 4)
    teacher = torch.rand(5, 2, 4)
    brain = _brain(Halves(None, None))
    strong = brain._strong(TeacherInput(batch, None, None))
    loss = EventLoss(kd_weight=0.9, weak_weight=0.0).of_frames
    soft = type(strong)(teacher, torch.ones(5))
    bce = functional.binary_cross_entropy_with_logits
    expected = 0.1 * bce(logits[:3], batch.strong[:3])
    of_teacher = 3 * bce(logits[:3], teacher[:3]) + 2 * bce(logits[3:], teacher[3:])
    expected = expected + 0.9 * of_teacher / 5
    assert float(loss(logits, strong, soft)) == pytest.approx(float(expected), rel=1e-5)


def test_without_halves_all_rows_are_alike():
    rows = datasets.Dataset.from_dict({"video_id": [str(n) for n in range(40)]})
    clips = Clips(rows, _Reader({0}), replace_unreadable=True)
    assert clips[0].clip_id == "1"
