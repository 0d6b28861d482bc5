"""What belongs to frames moves and mixes as the log-mels do."""

import numpy as np
import pytest
import torch

from efficientat_plugin import Event, FrameShift, LogMel, Mixup, frame_targets
from efficientat_plugin.contracts import Clip, Shift, SoftTarget
from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.frame_mixing import shift_frames, shifted
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.sampling import Draw

RATE, SECONDS = 16000, 4
NUM_SAMPLES, NUM_FRAMES = RATE * SECONDS, SECONDS * 25
LOG_MEL = LogMel(RATE, 32, 400, 160, 512, f_max=7000.0).eval()
PITCHES = {"low": 400.0, "high": 4000.0}


def tone(label, start, end):
    """A clip with one event, and the labels of its frames."""
    time = np.arange(NUM_SAMPLES) / RATE
    sound = 0.5 * np.sin(2 * np.pi * PITCHES[label] * time)
    waveform = np.where((time >= start) & (time < end), sound, 0).astype(np.float32)
    labels = frame_targets([Event(label, start, end)], list(PITCHES), NUM_FRAMES)
    return torch.from_numpy(waveform), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def batch():
    clips = [tone("low", 0.4, 1.2), tone("high", 1.0, 1.4), tone("low", 3.2, 4.0)]
    waveforms, labels = map(torch.stack, zip(*clips, strict=True))
    return LOG_MEL(waveforms), labels


def energy_of_frames(log_mel):
    """[B, F, T] -> [B, T']: whether a student's frame is loud."""
    loud = log_mel.amax(1) > 0.5 * log_mel.max()
    return loud.unflatten(1, (NUM_FRAMES, 4)).float().mean(2)


def test_labels_stay_where_the_energy_is(batch):
    log_mel, labels = batch
    frame_shift = FrameShift(std_frames=100)
    torch.manual_seed(0)
    distances = set()
    for _ in range(20):
        shift = frame_shift.draw(len(log_mel))
        active = shift_frames(labels, shift).amax(1)  # [B, T']
        loud = energy_of_frames(shifted(log_mel, shift))
        # Rounding leaves half a frame, and windows of the log-mel reach over edges.
        assert ((loud - active).abs().sum(1) <= 3).all()
        assert torch.equal(active.sum(1), labels.amax(1).sum(1))
        distances.update(shift.mel_frames.tolist())
    assert min(distances) < -80 and max(distances) > 80


def test_shifts_are_truncated_and_those_of_labels_rounded_half_to_even():
    shift = Shift(torch.tensor([0, 1, 2, 3, 6, 10, -2, -6, -7, 400]))
    labels = torch.zeros(10, 2, 100)
    labels[:, :, 50] = 1
    places = shift_frames(labels, shift)[:, 1].argmax(1) - 50
    expected = [round(each / 4) for each in shift.mel_frames.tolist()]
    assert places.tolist()[:-1] == expected[:-1]
    assert expected[1:5] == [0, 0, 1, 2] and expected[5:8] == [2, 0, -2]
    assert places[-1] == 0  # once around
    torch.manual_seed(0)
    normal = 125 * torch.randn(1000)
    torch.manual_seed(0)
    assert FrameShift(125).draw(1000).mel_frames.tolist() == [
        int(each) for each in normal
    ]


def test_shifting_loses_nothing_and_back_again_is_the_identity(batch):
    log_mel, labels = batch
    shift = Shift(torch.tensor([7, -120, 401]))
    back = Shift(-shift.mel_frames)
    assert torch.equal(shifted(shifted(log_mel, shift), back), log_mel)
    assert torch.equal(shift_frames(shift_frames(labels, shift), back), labels)
    for number, each in enumerate(shift.mel_frames.tolist()):
        assert torch.equal(
            shifted(log_mel, shift)[number], log_mel[number].roll(each, 1)
        )


def test_no_shift_is_the_identity(batch):
    log_mel, labels = batch
    for frame_shift in (FrameShift(0.0), FrameShift().eval()):
        assert frame_shift.draw(3) is None and frame_shift(log_mel) is log_mel
    assert shifted(log_mel, None) is log_mel and shift_frames(labels, None) is labels
    with pytest.raises(ValueError, match="std_frames=-1 must be 0 or more"):
        FrameShift(-1)
    with pytest.raises(ValueError, match="mel_frames_per_frame=0 must be above 0"):
        shift_frames(labels, None, 0)
    with pytest.raises(ValueError, match="2 shifts were drawn for a batch of 3"):
        shifted(log_mel, Shift(torch.tensor([1, 2])))


# ------------------------------------------------------------------------- mixup
def test_targets_of_frames_follow_a_mix_as_those_of_clips_do(batch):
    log_mel, labels = batch
    torch.manual_seed(0)
    mixed, mix = Mixup(alpha=0.2, keep_larger=False)(log_mel)
    target = SoftTarget(labels, torch.ones(3)).followed(mix)
    assert target.scores.shape == labels.shape
    assert 0 <= target.scores.min() and target.scores.max() <= 1
    torch.testing.assert_close(target.weight, torch.ones(3))
    for number in range(3):
        share, partner = mix.weight[number], mix.partner[number]
        expected = share * labels[number] + (1 - share) * labels[partner]
        torch.testing.assert_close(target.scores[number], expected)
        expected = share * log_mel[number] + (1 - share) * log_mel[partner]
        torch.testing.assert_close(mixed[number], expected)
    whole = SoftTarget(labels.amax(2), torch.ones(3, 2)).followed(mix)
    assert whole.scores.shape == (3, 2)


def test_a_batch_is_mixed_as_a_whole_or_not():
    log_mel = torch.randn(64, 2, 3)
    torch.manual_seed(0)
    mixes = [
        Mixup(0.2, probability=0.3, keep_larger=False)(log_mel) for _ in range(400)
    ]
    is_mixed = [mix is not None for _, mix in mixes]
    assert np.mean(is_mixed) == pytest.approx(0.3, abs=0.06)
    for mixed, mix in mixes:
        assert mix is not None or mixed is log_mel
    weights = torch.cat([mix.weight for _, mix in mixes if mix is not None])
    # Beta(.2, .2), of both sides of one half: its variance is 1 / (4 (2 a + 1)).
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(weights.var()) == pytest.approx(1 / 5.6, abs=0.01)
    with pytest.raises(ValueError, match="probability=2 must be from 0 to 1"):
        Mixup(probability=2)


def test_options_that_are_off_leave_earlier_draws_as_they_were():
    """Runs begun before there were options resume bit for bit."""
    log_mel = torch.randn(8, 2, 3)
    torch.manual_seed(0)
    weight = torch.distributions.Beta(0.3, 0.3).sample((8,))
    partner = torch.randperm(8)
    torch.manual_seed(0)
    _, mix = Mixup(alpha=0.3)(log_mel)
    assert torch.equal(mix.weight, torch.maximum(weight, 1 - weight))
    assert torch.equal(mix.partner, partner)


# ------------------------------------------------------------------- waveforms
class Tones:
    """Stands for a ``ClipReader`` of clips whose frames are labelled."""

    ROWS = [("low", 0.4, 1.2), ("high", 1.0, 1.4), ("low", 3.2, 4.0), ("high", 0.0, 4)]

    def read(self, row, rng=None):
        waveform, labels = tone(*self.ROWS[row["number"]])
        name = str(row["number"])
        return Clip(name, waveform, labels, torch.tensor(1.0))


ROWS = [{"video_id": str(number), "number": number} for number in range(4)]


def test_labels_of_frames_are_mixed_like_the_waveforms():
    alone = Clips(ROWS, Tones())
    mixed = Clips(ROWS, Tones(), waveform_mix=WaveformMix(probability=1.0))
    partners = set()
    for position in range(24):
        clip = mixed[Draw(position % 4, 0, position)]
        own, partner = alone[int(clip.clip_id)], alone[int(clip.partner_id)]
        share = clip.partner_share
        torch.testing.assert_close(
            clip.labels, (1 - share) * own.labels + share * partner.labels
        )
        assert clip.labels.shape == (2, NUM_FRAMES) and clip.labelled == 1
        partners.add(clip.partner_id)
    assert partners == {"0", "1", "2", "3"}


def test_labels_of_frames_roll_with_the_waveform():
    augment = WaveformAugment(gain_db=3, roll_samples=NUM_SAMPLES)
    clips, moved = Clips(ROWS, Tones(), augment), set()
    for position in range(30):
        number = position % 3
        clip = clips[Draw(number, 0, position)]
        assert len(clip.waveform) == NUM_SAMPLES
        loud = energy_of_frames(LOG_MEL(clip.waveform[None]))[0]
        assert (loud - clip.labels.amax(0)).abs().sum() <= 3
        moved.add(int(clip.labels.amax(0).argmax()))
    assert len(moved) > 15
    # Labels of whole clips have nothing to move.
    draw = augment.draw(np.random.default_rng(0))
    labels = torch.ones(2)
    assert draw.labels(labels, NUM_SAMPLES) is labels
