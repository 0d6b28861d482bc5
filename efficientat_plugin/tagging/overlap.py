"""Computes the log-mels of overlapping windows, each shared frame once.

Both front ends use it, on arrays and on tensors, so it needs no torch.
"""

from typing import Any

import numpy as np

from efficientat_plugin.contracts import Framing


def unfolded(values: Any, size: int, step: int) -> Any:
    """Views overlapping pieces of the last axis: [..., N] -> [..., pieces, size].

    Example
    -------
    >>> unfolded(np.arange(6), size=4, step=2)
    array([[0, 1, 2, 3],
           [2, 3, 4, 5]])
    """
    if isinstance(values, np.ndarray):
        pieces = np.lib.stride_tricks.sliding_window_view(values, size, axis=-1)
        return pieces[..., ::step, :]
    return values.unfold(-1, size, step)


def can_share(framing: Framing, window: int, hop: int) -> bool:
    """Whether windows share frames that contain no reflected samples.

    Example
    -------
    >>> framing = Framing(n_fft=1024, win_length=800, hop_length=320)
    >>> can_share(framing, 320000, 80000), can_share(framing, 320000, 80001)
    (True, False)
    """
    first, end = framing.inner_frames(window)
    shift, rest = divmod(hop, framing.hop_length)
    return window >= framing.min_samples and rest == 0 and first + shift < end


def window_log_mels(log_mel: Any, sound: Any, window: int, hop: int) -> Any:
    """Computes the log-mels of windows every ``hop`` samples: [N] -> [windows, F, T].

    Each window is treated as a sound of its own, so its ends are reflected. Frames that
    contain reflected samples are computed per window; the others are shared.

    Arguments
    ---------
    log_mel : callable
        [B, N] -> [B, F, T], with its ``framing``, in evaluation mode.
    sound : NDArray or Tensor
        [N], at least a window.
    window : int
        Samples of a window.
    hop : int
        Samples from one window to the next.

    Returns
    -------
    NDArray or Tensor
        Equal to ``log_mel`` of each window, up to rounding.

    Example
    -------
    >>> import torch
    >>> from efficientat_plugin.features import LogMel
    >>> log_mel, sound = LogMel().eval(), torch.randn(64000)
    >>> together = window_log_mels(log_mel, sound, window=32000, hop=6400)
    >>> alone = log_mel(sound[None, 6400 : 6400 + 32000])
    >>> torch.allclose(together[1:2], alone, atol=1e-4)
    True
    """
    windows, framing = unfolded(sound, window, hop), log_mel.framing
    if len(windows) == 1 or not can_share(framing, window, hop):
        return log_mel(windows)
    step, num_frames = framing.hop_length, framing.num_frames(window)
    first, end = framing.inner_frames(window)
    starts = np.arange(len(windows)) * (hop // step)
    places = starts[:, None] + np.arange(num_frames)
    frames = log_mel(sound[None])[0].T[places]  # [windows, T, F], a copy
    # Long enough that the frames needed at an end do not touch the cut.
    head = max(framing.min_samples, (first - 1) * step + framing.behind + 1)
    frames[:, :first] = log_mel(windows[:, :head]).swapaxes(1, 2)[:, :first]
    skipped = min(end - first, (window - framing.min_samples) // step)
    tail = log_mel(windows[:, skipped * step :]).swapaxes(1, 2)
    frames[:, end:] = tail[:, end - skipped :]
    return frames.swapaxes(1, 2)
