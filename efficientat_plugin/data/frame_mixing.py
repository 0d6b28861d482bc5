"""Shifts log-mels in time, and lets labels and teachers' scores of frames follow."""

import torch
from torch import Tensor

from efficientat_plugin.contracts import Shift

MEL_FRAMES_PER_FRAME = 4  # of the published frame-wise networks: 10 ms and 40 ms


class FrameShift(torch.nn.Module):
    """Shifts each log-mel in time at random, circularly.

    What belongs to frames must be shifted alike: draw once, then use `shifted` for
    log-mels and `shift_frames` for labels and stored scores. Called as a module, it
    does both for log-mels alone, which is enough where labels are of whole clips. All
    draws come from torch's global generator on the CPU.

    Source: the frame shift of the published code of PretrainedSED and EfficientSED.

    Arguments
    ---------
    std_frames : float
        Shifts are drawn from a normal distribution with this standard deviation, mel
        frames, and truncated to whole ones; 0: no shift. Published: an eighth of T.

    Shape
    -----
    input and output : [B, F, T]

    Raises
    ------
    ValueError
        If ``std_frames`` is negative.

    Example
    -------
    >>> frame_shift = FrameShift(std_frames=125)
    >>> log_mel, labels = torch.randn(2, 128, 1000), torch.zeros(2, 447, 250)
    >>> shift = frame_shift.draw(len(log_mel))
    >>> log_mel, labels = shifted(log_mel, shift), shift_frames(labels, shift)
    """

    def __init__(self, std_frames: float = 125.0) -> None:
        super().__init__()
        if std_frames < 0:
            raise ValueError(f"std_frames={std_frames} must be 0 or more mel frames")
        self.std_frames = std_frames

    def draw(self, num_clips: int) -> Shift | None:
        """Draws the shifts of a batch; None in evaluation, or if there are none."""
        if not self.training or not self.std_frames:
            return None
        # Truncated as published: a shift of less than a frame is none.
        return Shift((self.std_frames * torch.randn(num_clips)).trunc().long())

    def forward(self, log_mel: Tensor) -> Tensor:
        """Shifts the log-mels of a batch: [B, F, T] -> [B, F, T]."""
        return shifted(log_mel, self.draw(len(log_mel)))


def shifted(values: Tensor, shift: Shift | None) -> Tensor:
    """Shifts log-mels [B, F, T], or whatever has mel frames on its last axis.

    Example
    -------
    >>> shifted(torch.tensor([[1, 2, 3], [1, 2, 3]]), Shift(torch.tensor([1, -1])))
    tensor([[3, 1, 2],
            [2, 3, 1]])
    """
    return values if shift is None else _rolled(values, shift.mel_frames)


def shift_frames(
    scores: Tensor,
    shift: Shift | None,
    mel_frames_per_frame: int = MEL_FRAMES_PER_FRAME,
) -> Tensor:
    """Shifts labels or scores of frames as their log-mels were shifted.

    Arguments
    ---------
    scores : Tensor
        [B, K, T'], or whatever has student frames on its last axis.
    shift : Shift or None
        From `FrameShift.draw`; None: the scores as they are.
    mel_frames_per_frame : int
        T / T'. A shift is rounded to whole student frames, halves to the even one.

    Returns
    -------
    Tensor
        Of the same shape.

    Example
    -------
    >>> labels = torch.tensor([[[1.0, 0, 0, 0, 0]]])
    >>> shift_frames(labels, Shift(torch.tensor([7])))  # 7 / 4 is rounded to 2
    tensor([[[0., 0., 1., 0., 0.]]])
    """
    if mel_frames_per_frame < 1:
        raise ValueError(f"mel_frames_per_frame={mel_frames_per_frame} must be above 0")
    if shift is None:
        return scores
    # torch rounds halves to even, as the published code does.
    return _rolled(scores, (shift.mel_frames / mel_frames_per_frame).round().long())


def roll_frames(
    scores: Tensor, moved_samples: Tensor | None, num_samples: int
) -> Tensor:
    """Shifts scores of frames as `WaveformAugment` moved the waveforms of their clips.

    Arguments
    ---------
    scores : Tensor
        [B, K, T'], or whatever has student frames on its last axis.
    moved_samples : Tensor or None
        [B], as in `ClipBatch`; None: the scores as they are.
    num_samples : int
        N, length of the waveforms.

    Returns
    -------
    Tensor
        Of the same shape, moved by whole frames, halves to the even one, as labels are.

    Example
    -------
    >>> labels = torch.tensor([[[1.0, 0, 0, 0]]])
    >>> roll_frames(labels, torch.tensor([700]), num_samples=1600)
    tensor([[[0., 0., 1., 0.]]])
    """
    if moved_samples is None or not bool(moved_samples.any()):
        return scores
    frames = moved_samples.double() * scores.shape[-1] / num_samples
    return _rolled(scores, frames.round().long())


def _rolled(values: Tensor, steps: Tensor) -> Tensor:
    """Rolls each row of a batch along the last axis by a number of its own."""
    if len(steps) != len(values):
        raise ValueError(
            f"{len(steps)} shifts were drawn for a batch of {len(values)}; draw as many"
        )
    length = values.shape[-1]
    place = torch.arange(length) - steps.cpu()[:, None]  # [B, length]
    place = (place % length).to(values.device)
    place = place.view(len(values), *[1] * (values.ndim - 2), length)
    return values.gather(-1, place.expand(values.shape))
