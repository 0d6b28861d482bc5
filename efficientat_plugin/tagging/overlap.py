"""Computes a tagger's logits faster than the students do, with the same result.

Students are converted to their inference form, and the log-mel of overlapping windows
is computed once.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.students.inference_form import InferenceForm, inference_form


class Hearing:
    """An ensemble for inference only: waveforms to logits.

    Arguments
    ---------
    ensemble : Ensemble
        Its `HeardStudent`s are copied: later changes to them have no effect.

    Example
    -------
    >>> from efficientat_plugin.students.ensemble import HeardStudent
    >>> from efficientat_plugin.students.mn import MN
    >>> hearing = Hearing(Ensemble([HeardStudent(LogMel(), MN(3, width=0.1))]))
    >>> hearing(torch.zeros(2, 32000)).shape
    torch.Size([2, 3])
    >>> hearing.windows(torch.zeros(48000), window=32000, hop=3200).shape
    torch.Size([6, 3])
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.average = ensemble.average
        members: Any = ensemble.members
        self.members: list[tuple[LogMel, InferenceForm]] = [
            (member.log_mel, inference_form(member.student)) for member in members
        ]

    def __call__(self, waveform: Tensor) -> Tensor:
        """Computes the logits of clips of one length: [B, N] -> [B, K]."""
        return self._logits([log_mel(waveform) for log_mel, _ in self.members])

    def windows(self, sound: Tensor, window: int, hop: int) -> Tensor:
        """Computes the logits of windows every ``hop`` samples: [N] -> [windows, K].

        Each window is treated as a clip, so its own ends are reflected.
        """
        return self._logits(
            [
                shared_log_mels(log_mel, sound, window, hop)
                if can_share(log_mel, window, hop)
                else log_mel(sound.unfold(0, window, hop))
                for log_mel, _ in self.members
            ]
        )

    def _logits(self, log_mels: Sequence[Tensor]) -> Tensor:
        """Averages the logits of the members: a log-mel [B, F, T] each -> [B, K]."""
        pairs = zip(self.members, log_mels, strict=True)
        logits = [
            student(log_mel.unsqueeze(1)).logits for (_, student), log_mel in pairs
        ]
        return self.average(torch.stack(logits))


def can_share(log_mel: LogMel, window: int, hop: int) -> bool:
    """Whether windows share frame positions, and have more frames than those at ends.

    Example
    -------
    >>> can_share(LogMel(), 320000, 80000), can_share(LogMel(), 320000, 80001)
    (True, False)
    """
    left, right = _touching_ends(log_mel)
    frames = log_mel.num_frames(window)
    fits = frames >= 2 * (left + right) and window >= log_mel.n_fft
    return fits and window > hop and hop % log_mel.hop_length == 0


def shared_log_mels(log_mel: LogMel, sound: Tensor, window: int, hop: int) -> Tensor:
    """Computes the log-mels of overlapping windows, with inner frames computed once.

    The frames that touch the reflected ends of a window are computed per window.

    Arguments
    ---------
    log_mel : LogMel
        In evaluation mode.
    sound : Tensor
        [N]
    window : int
        Samples of a window.
    hop : int
        Samples from one window to the next, a multiple of ``log_mel.hop_length``.

    Returns
    -------
    Tensor
        [windows, F, T], equal to ``log_mel`` of each window up to rounding.

    Example
    -------
    >>> log_mel, sound = LogMel().eval(), torch.randn(64000)
    >>> together = shared_log_mels(log_mel, sound, window=32000, hop=6400)
    >>> alone = log_mel(sound[None, 6400 : 6400 + 32000])
    >>> torch.allclose(together[1:2], alone, atol=1e-4)
    True
    """
    step = log_mel.hop_length
    frames = log_mel.num_frames(window)
    left, right = _touching_ends(log_mel)
    middle = log_mel(sound[None])[0].unfold(1, frames, hop // step)  # [F, windows, T]
    log_mels = middle.transpose(0, 1).clone()
    cut = sound.unfold(0, window, hop)  # [windows, window]
    # Long enough that the frames needed at an end do not touch the cut.
    head = cut[:, : (left + right) * step + log_mel.n_fft]
    log_mels[:, :, :left] = log_mel(head)[:, :, :left]
    first = (frames - left - 2 * right) * step
    log_mels[:, :, frames - right :] = log_mel(cut[:, first:])[:, :, -right:]
    return log_mels


def _touching_ends(log_mel: LogMel) -> tuple[int, int]:
    """Returns how many frames extend beyond a clip's start, and at most its end."""
    reach = math.ceil(log_mel.win_length / 2 / log_mel.hop_length)
    # The last frame lies up to a hop before the end.
    return reach, reach
