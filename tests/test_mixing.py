"""Gain, roll and mixing: their ranges, and that targets can follow."""

import numpy as np
import pytest
import torch

from efficientat_plugin.data.mixing import Mixup, WaveformAugment, WaveformMix


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_gain_is_whole_decibels_up_to_both_ends(rng):
    augment = WaveformAugment(gain_db=3)
    waveform = rng.standard_normal(64).astype(np.float32)
    decibels = set()
    for _ in range(200):
        louder = augment(waveform, rng)
        assert louder.dtype == np.float32
        gains = louder / waveform
        np.testing.assert_allclose(gains, gains[0], rtol=1e-5)
        decibels.add(round(float(20 * np.log10(gains[0])), 3))
    assert decibels == {-3, -2, -1, 0, 1, 2, 3}


def test_roll_is_circular_up_to_both_ends(rng):
    augment = WaveformAugment(roll_samples=3)
    waveform = np.arange(16, dtype=np.float32)
    shifts = set()
    for _ in range(200):
        rolled = augment(waveform, rng)
        shift = int(np.flatnonzero(rolled == 0)[0])
        assert np.array_equal(rolled, np.roll(waveform, shift))
        shifts.add((shift + 8) % 16 - 8)
    assert shifts == {-3, -2, -1, 0, 1, 2, 3}


def test_augmentation_leaves_its_input_alone(rng):
    waveform = np.ones(16, np.float32)
    WaveformAugment(gain_db=12, roll_samples=4)(waveform, rng)
    assert np.array_equal(waveform, np.ones(16))


def test_no_augmentation_is_none(rng):
    waveform = np.ones(16, np.float32)
    assert WaveformAugment()(waveform, rng) is waveform


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_waveforms_are_mixed_as_often_as_asked(probability, rng):
    mix = WaveformMix(probability)
    drawn = [mix.draw(10, rng) for _ in range(2000)]
    mixed = [draw for draw in drawn if draw is not None]
    assert len(mixed) / 2000 == pytest.approx(probability, abs=0.04)


def test_any_row_is_a_partner_and_never_the_louder_one(rng):
    mix = WaveformMix(probability=1.0, alpha=2.0)
    drawn = [mix.draw(5, rng) for _ in range(2000)]
    assert {draw.partner for draw in drawn} == set(range(5))
    weights = np.array([draw.weight for draw in drawn])
    assert weights.min() >= 0.5 and weights.max() <= 1
    # The larger of w and 1 - w, w of Beta(2, 2): 0.5 + E|w - 0.5| = 0.6875.
    assert weights.mean() == pytest.approx(0.6875, abs=0.01)


def test_mixed_waveforms_keep_their_weights_and_lose_their_mean(rng):
    waveform, partner = rng.standard_normal((2, 1000)).astype(np.float32) + 0.3
    mixed = WaveformMix().mix(waveform, partner, 0.75)
    assert mixed.dtype == np.float32
    centred = 0.75 * (waveform - waveform.mean()) + 0.25 * (partner - partner.mean())
    np.testing.assert_allclose(mixed, centred, atol=1e-5)
    assert abs(mixed.mean()) < 1e-6


def test_mixup_mixes_by_its_weights():
    log_mel = torch.randn(64, 4, 5)
    mixed, mix = Mixup(alpha=0.3)(log_mel)
    assert mix.weight.shape == mix.partner.shape == (64,)
    assert 0.5 <= mix.weight.min() and mix.weight.max() <= 1
    assert sorted(mix.partner.tolist()) == list(range(64))
    weight = mix.weight[:, None, None]
    torch.testing.assert_close(
        mixed, weight * log_mel + (1 - weight) * log_mel[mix.partner]
    )
    assert len(mix.weight.unique()) > 32  # each example its own


def test_mixup_follows_the_seed():
    log_mel = torch.randn(8, 4, 5)
    mixed = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        mixed.append(Mixup()(log_mel)[0])
    assert torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[0], mixed[2])


def test_mixup_leaves_a_batch_of_one_as_it_is():
    log_mel = torch.randn(1, 4, 5)
    torch.testing.assert_close(Mixup()(log_mel)[0], log_mel)


def test_mixup_weights_follow_alpha():
    torch.manual_seed(0)
    log_mel = torch.zeros(4000, 1, 1)
    # Of Beta(1, 1) the larger share is 0.75 on average; a small alpha mixes little.
    assert Mixup(alpha=1.0)(log_mel)[1].weight.mean() == pytest.approx(0.75, abs=0.01)
    assert Mixup(alpha=0.01)(log_mel)[1].weight.mean() > 0.98


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (WaveformAugment, {"gain_db": -1}, "=-1.* must be 0 or more"),
        (WaveformAugment, {"roll_samples": -1}, "=-1.* must be 0 or more"),
        (WaveformMix, {"probability": 1.1}, "must be from 0 to 1 and alpha="),
        (WaveformMix, {"probability": -0.1}, "must be from 0 to 1 and alpha="),
        (WaveformMix, {"alpha": 0}, "must be from 0 to 1 and alpha="),
        (Mixup, {"alpha": 0}, "alpha=0 must be above 0; null switches"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
