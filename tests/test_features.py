"""LogMel is that of the published taggers; SpecMask hides and nothing more."""

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN

from efficientat_plugin.features import LogMel, SpecMask

VARIANTS = {
    "default": {},
    "hop_5": {"hop_length": 160},
    "hop_20": {"hop_length": 640},
    "mels_40": {"n_mels": 40},
    "mels_256": {"n_mels": 256},
    "fmax_14000": {"f_min": 50.0, "f_max": 14000.0},
}
SED = {
    "sample_rate": 16000,
    "win_length": 400,
    "hop_length": 160,
    "n_fft": 512,
    "f_max": 7000.0,
    "log_floor": 1e-7,
    "log_floor_mode": "clamp",
}


def assert_as_published(options, waveform, expected):
    """To 1e-4, and to what the published values are themselves off by their rounding.

    They are in float32, of another processor, and up to 1.5e-4 off those in float64.
    """
    waveform, expected = torch.from_numpy(waveform), torch.from_numpy(expected)
    num_frames = expected.shape[-1]  # of a shortened one, those that its end is not in
    log_mel = LogMel(**options).eval()(waveform)[..., :num_frames]
    exact = LogMel(**options).double().eval()(waveform.double())[..., :num_frames]
    # An energy of less than 1e-6 of the frame's loudest band is about the last bit that
    # a transform in float32 has of it.
    energy = (5 * exact - 4.5).exp()
    lost = energy < 1e-6 * energy.amax(1, keepdim=True)
    allowed = 1e-4 + (expected - exact).abs() + 2e-4 * lost
    assert bool(((log_mel - expected).abs() <= allowed).all())


@pytest.fixture
def waveform() -> torch.Tensor:
    """Two seconds of a tone in noise, [2, 64000]."""
    time = torch.arange(64000) / 32000
    return 0.1 * torch.randn(2, 64000) + torch.sin(2 * torch.pi * 440 * time)


@pytest.mark.parametrize("variant", [*VARIANTS, "events"])
def test_log_mel_equals_the_published_one(variant):
    if variant == "events":
        golden = np.load(GOLDEN / "front_end_of_events.npz")
        assert_as_published(SED, golden["wave"], golden["logmel"])
    else:
        golden = np.load(GOLDEN / "front_end.npz")
        expected = golden[f"logmel/{variant}"]
        assert_as_published(VARIANTS[variant], golden["wave"], expected)


def test_log_mel_is_torch_stft(waveform):
    log_mel = LogMel(f_min_jitter=0, f_max_jitter=0)
    emphasised = waveform[:, 1:] - 0.97 * waveform[:, :-1]
    window = torch.hann_window(800, periodic=False)
    spectrum = torch.stft(
        emphasised, 1024, 320, 800, window, center=True, return_complex=True
    )
    mel = log_mel.mel_bank @ spectrum.abs().square()
    torch.testing.assert_close(log_mel(waveform), ((mel + 1e-5).log() + 4.5) / 5)


def test_log_mel_is_its_two_halves(waveform):
    log_mel = LogMel().eval()
    power = log_mel.spectrum(waveform).abs().square()
    given = power.clone()
    halves = log_mel.from_power(power).transpose(1, 2)
    torch.testing.assert_close(halves, log_mel(waveform))
    assert torch.equal(power, given)


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_gradients_of_the_second_half_are_those_of_the_logarithm(mode):
    log_mel = LogMel(log_floor_mode=mode).eval()
    power = torch.rand(1, 10, 513, requires_grad=True)
    mel = power @ log_mel.mel_bank.T
    mel = mel + 1e-5 if mode == "add" else mel.clamp(min=1e-5)
    expected = (mel.log() + 4.5) / 5
    (found,) = torch.autograd.grad(log_mel.from_power(power).square().sum(), power)
    (wanted,) = torch.autograd.grad(expected.square().sum(), power)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_log_mel_of_silence_is_the_floor(mode):
    log_mel = LogMel(log_floor_mode=mode).eval()(torch.zeros(1, 32000))
    assert torch.allclose(log_mel, torch.tensor((np.log(1e-5) + 4.5) / 5).float())


@pytest.mark.parametrize("num_samples", [32000, 32001, 64319, 320000])
def test_log_mel_has_the_promised_frames(num_samples):
    log_mel = LogMel().eval()
    frames = log_mel(torch.zeros(1, num_samples)).shape[-1]
    assert frames == log_mel.num_frames(num_samples)


def test_a_periodic_window_is_another_window(waveform):
    symmetric = LogMel().eval()(waveform)
    assert not torch.equal(LogMel(periodic_window=True).eval()(waveform), symmetric)


@pytest.mark.parametrize("of_power", [False, True])
def test_jitter_acts_in_training_only(waveform, of_power):
    log_mel = LogMel()
    power = log_mel.spectrum(waveform).abs().square()

    def compute(seed):
        torch.manual_seed(seed)
        return log_mel.from_power(power) if of_power else log_mel(waveform)

    fixed = log_mel.eval() and compute(0)
    assert torch.equal(compute(1), fixed)
    jittered = log_mel.train() and compute(1)
    assert not torch.equal(jittered, fixed)
    assert torch.equal(compute(1), jittered)


def test_jitter_covers_the_published_range(monkeypatch):
    edges = []
    log_mel = LogMel().train()
    bank = log_mel.mel_bank
    monkeypatch.setattr(
        LogMel, "_mel_bank", lambda _, low, high: edges.append((low, high)) or bank
    )
    for _ in range(3000):
        log_mel._current_mel_bank()
    lowest, highest = zip(*edges, strict=True)
    assert set(lowest) == set(range(10))
    assert 14001 <= min(highest) < 14020 and 15980 < max(highest) <= 16000


def test_jitter_never_passes_half_the_sample_rate():
    log_mel = LogMel(f_max=16000.0).train()
    for _ in range(20):
        assert torch.isfinite(log_mel(torch.zeros(1, 2000))).all()


def test_log_mel_is_float32_inside_autocast(waveform):
    log_mel = LogMel().eval()
    power = torch.rand(1, 10, 513)
    computations = (lambda: log_mel(waveform), lambda: log_mel.from_power(power))
    for compute in computations:
        with torch.autocast("cpu", torch.bfloat16):
            inside = compute()
        assert inside.dtype == torch.float32
        assert torch.equal(inside, compute())


def test_log_mel_has_nothing_to_save():
    assert not LogMel().state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_floor_mode": "max"}, "log_floor_mode='max'"),
        ({"win_length": 2048}, "win_length=2048"),
        ({"hop_length": 0}, "hop_length=0"),
        (
            {"sample_rate": 10**30},
            "is not an audio sample rate; give one from 1000 to 768000",
        ),
        ({"n_mels": 1 << 14, "n_fft": 1 << 16}, "product is at most 4194304"),
        ({"f_max": 17000.0}, "16000 Hz; lower f_max"),
        ({"f_max_jitter": -1}, "f_max_jitter=-1"),
        ({"f_max": 900.0}, "jitter can move"),
    ],
)
def test_log_mel_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        LogMel(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((32000,), "takes \\[B, N\\]"), ((1, 100), "100 samples are too few")],
)
def test_log_mel_refuses_the_waveform(shape, message):
    with pytest.raises(ValueError, match=message):
        LogMel()(torch.zeros(shape))


@pytest.mark.parametrize("axis", [1, 2])
def test_spec_mask_fills_bands_or_frames_of_each_example(axis):
    masks = {"max_bins": 48} if axis == 1 else {"max_frames": 48}
    masked = SpecMask(**masks)(torch.zeros(16, 128, 100))
    assert masked.unique().tolist() == pytest.approx([0.0, 0.9])
    hidden = (masked > 0).all(dim=3 - axis)  # [B, F] or [B, T]
    assert torch.equal(hidden, (masked > 0).any(dim=3 - axis))  # whole bands
    assert 0 < hidden.sum(dim=1).max() < 48
    assert len({tuple(row.tolist()) for row in hidden}) > 8


def test_spec_mask_rests_in_evaluation(waveform):
    assert SpecMask(48, 192).eval()(waveform) is waveform


def test_spec_mask_refuses():
    with pytest.raises(ValueError, match="max_bins=-1"):
        SpecMask(max_bins=-1)
