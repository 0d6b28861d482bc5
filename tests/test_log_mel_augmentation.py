"""Log-mels are augmented within their limits, by the seed, and never in evaluation."""

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN
from recipe_runs import REPOSITORY

from efficientat_plugin import (
    FilterAugment,
    FreqMixStyle,
    FrequencyWarp,
    LogMel,
    SpecMask,
)
from efficientat_plugin.data.frame_mixing import FrameShift
from efficientat_plugin.data.log_mel_augmentation import mix_styles
from efficientat_plugin.support.launch import load_hparams

BY_BATCH = [FilterAugment, FrequencyWarp, FreqMixStyle]
ALWAYS = [
    *(kind(probability=1.0) for kind in BY_BATCH),
    FrameShift(std_frames=20),
    torch.nn.Sequential(SpecMask(8, 20), *(kind(1.0) for kind in BY_BATCH)),
]


def names(kinds):
    return [type(kind).__name__ for kind in kinds]


@pytest.fixture
def log_mel():
    return torch.randn(6, 32, 80, generator=torch.Generator().manual_seed(0))


def drawn(augment, log_mel, seed):
    torch.manual_seed(seed)
    return augment(log_mel)


@pytest.mark.parametrize("augment", ALWAYS, ids=names(ALWAYS))
def test_it_follows_the_seed_and_leaves_its_input_alone(augment, log_mel):
    before = log_mel.clone()
    first = drawn(augment.train(), log_mel, 1)
    assert first.shape == log_mel.shape and first.dtype == log_mel.dtype
    assert torch.equal(first, drawn(augment, log_mel, 1))
    assert not torch.equal(first, drawn(augment, log_mel, 2))
    assert not torch.equal(first, log_mel) and torch.equal(log_mel, before)


@pytest.mark.parametrize("augment", ALWAYS, ids=names(ALWAYS))
def test_evaluation_is_the_identity_and_draws_nothing(augment, log_mel):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert augment.eval()(log_mel) is log_mel
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", BY_BATCH)
def test_batches_are_changed_as_often_as_asked(kind, log_mel):
    torch.manual_seed(0)
    assert kind(probability=0.0)(log_mel) is log_mel
    augment = kind(probability=0.3)
    alike = [torch.equal(augment(log_mel), log_mel) for _ in range(400)]
    # A warp of all bins, or a share of 1, changes nothing either.
    assert np.mean(alike) == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize("kind", BY_BATCH)
def test_gradients_flow_and_no_value_is_lost(kind, log_mel):
    log_mel.requires_grad_()
    kind(probability=1.0)(log_mel).square().sum().backward()
    assert log_mel.grad.isfinite().all() and log_mel.grad.abs().sum() > 0


def test_the_lines_in_the_docs_stand_in_the_place_of_spec_mask(log_mel, tmp_path):
    text = (REPOSITORY / "docs" / "distil.md").read_text(encoding="utf-8")
    lines = "spec_mask: " + text.split("spec_mask: ")[1].split("```")[0]
    whole = (REPOSITORY / "hparams" / "finetune.yaml").read_text(encoding="utf-8")
    before, _, after = whole.partition("spec_mask: ")
    path = tmp_path / "finetune.yaml"
    path.write_text(before + lines + after[after.index("\n\n") :])
    options = {"dataset": "none", "output_folder": str(tmp_path)}
    augment = load_hparams(path, options)["spec_mask"]
    assert [type(each).__name__ for each in augment] == [
        *("SpecMask", "FilterAugment", "FrequencyWarp", "FreqMixStyle", "FrameShift")
    ]
    assert augment[0].max_frames == 192 and augment[1].probability == 0.8
    assert not torch.equal(augment(log_mel), log_mel)


# ------------------------------------------------------------------- FilterAugment
def test_gains_are_lines_of_decibels_within_their_range():
    augment = FilterAugment(max_db=6.0, min_bins=6)
    torch.manual_seed(0)
    highest, numbers = 0.0, set()
    for _ in range(100):
        decibels = 20 * augment(torch.ones(3, 64, 5)).log10()
        # One gain for each bin, whatever the frame.
        assert torch.equal(decibels, decibels[:, :, :1].expand_as(decibels))
        curve = decibels[:, :, 0].double()
        highest = max(highest, float(curve.abs().max()))
        # Where a band ends, the next one repeats its gain: the line bends twice there,
        # at the last bin of one and the first of the other, in all clips.
        bends = (curve.diff(n=2).abs().amax(0) > 1e-4).nonzero()[:, 0] + 1
        firsts = bends[1::2].tolist()
        assert [first - 1 for first in firsts] == bends[::2].tolist()
        assert np.diff([0, *firsts, 64]).min() >= 6
        numbers.add(1 + len(firsts))
    assert 5.5 < highest <= 6.0 + 1e-4
    assert numbers == {3, 4, 5}


def test_narrow_log_mels_get_narrower_bands():
    augment = FilterAugment(min_bins=6)
    torch.manual_seed(0)
    assert augment(torch.ones(2, 8, 3)).isfinite().all()
    with pytest.raises(ValueError, match="4 mel bins cannot be cut into max_bands=5"):
        augment(torch.ones(2, 4, 3))


# ------------------------------------------------------------------- FrequencyWarp
def test_a_warp_stretches_some_range_of_bins_to_all_of_them():
    bins = 50
    ramp = torch.arange(bins, dtype=torch.float32)[:, None].expand(2, bins, 4)
    augment = FrequencyWarp(min_share=0.6, max_share=1.0)
    torch.manual_seed(0)
    sizes, firsts = set(), set()
    for _ in range(300):
        warped = augment(ramp)
        assert torch.equal(warped[0], warped[1])  # one range for a batch
        ends = warped[0, :, 0]
        first, last = round(float(ends[0])), round(float(ends[-1]))
        line = torch.linspace(first, last, bins)
        torch.testing.assert_close(ends, line, atol=0.1, rtol=0)
        sizes.add(last - first + 1)
        firsts.add(first)
    assert min(sizes) == 30 and max(sizes) in (48, 49) and len(sizes) > 15
    assert min(firsts) == 0 and max(firsts) >= 15


def test_a_warp_moves_nothing_in_time():
    click = torch.zeros(1, 40, 60)
    click[:, :, 17] = 1.0
    torch.manual_seed(0)
    warped = FrequencyWarp()(click)
    assert warped[:, :, 17].min() > 0.99
    assert warped[:, :, [*range(17), *range(18, 60)]].abs().max() < 1e-5


# -------------------------------------------------------------------- FreqMixStyle
def test_styles_are_mixed_as_published():
    golden = np.load(GOLDEN / "freq_mix_style.npz")
    log_mel, weight, partner, mixed = (
        torch.from_numpy(golden[name])
        for name in ("log_mel", "weight", "partner", "mixed")
    )
    torch.testing.assert_close(mix_styles(log_mel, weight, partner), mixed)


def test_styles_lie_between_those_of_both_clips(log_mel):
    log_mel = log_mel * (0.5 + torch.rand(6, 32, 1)) + torch.randn(6, 32, 1)
    weight, partner = torch.linspace(0, 1, 6), torch.tensor([3, 2, 1, 0, 5, 4])
    mixed = mix_styles(log_mel, weight, partner)
    share = weight[:, None]
    for statistic in (torch.mean, torch.std):
        own = statistic(log_mel, dim=2)
        expected = share * own + (1 - share) * own[partner]
        torch.testing.assert_close(
            statistic(mixed, dim=2), expected, atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(mixed[-1], log_mel[-1])  # a share of 1 is the clip's own


def test_silence_has_no_style_to_divide_by():
    silent = LogMel(n_mels=32).eval()(torch.zeros(2, 16000))
    assert FreqMixStyle(1.0)(silent).isfinite().all()


@pytest.mark.parametrize("keep_larger", [True, False])
def test_event_detection_keeps_most_of_the_own_style(keep_larger):
    # Clips of a mean of 0 and 1: the mixed mean shows the partner's share.
    log_mel = torch.randn(200, 1, 400)
    log_mel = (log_mel - log_mel.mean(2, keepdim=True)) / log_mel.std(2, keepdim=True)
    own = torch.arange(200) % 2
    log_mel = log_mel + own[:, None, None]
    torch.manual_seed(0)
    mixed = FreqMixStyle(1.0, alpha=1.0, keep_larger=keep_larger)(log_mel)
    moved = (mixed.mean((1, 2)) - own).abs()
    assert moved.max() <= (0.501 if keep_larger else 1.001)
    assert (moved > 0.5).any() == (not keep_larger)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *((kind, {"probability": 1.1}, "probability=1.1 must be") for kind in BY_BATCH),
        (FilterAugment, {"max_db": -1.0}, "max_db=-1.0 must be 0 or more"),
        (FilterAugment, {"min_bands": 6}, "2 <= min_bands=6 <= max_bands=5"),
        (FilterAugment, {"min_bins": 0}, "min_bins=0 1 or more"),
        (FrequencyWarp, {"min_share": 0.0}, "min_share=0.0 and max_share=1.0 must be"),
        (FrequencyWarp, {"max_share": 1.2}, "max_share=1.2 must be above 0"),
        (FreqMixStyle, {"alpha": 0}, "alpha=0 must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
