"""Computes the log-mel of ``features.LogMel`` in evaluation mode, in numpy."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Framing

Array = NDArray[np.float32]
FRAMES_AT_ONCE = 128


class FrontEndSettings(NamedTuple):
    """The settings of a log-mel."""

    sample_rate: int  # Hz
    n_mels: int  # F
    n_fft: int  # samples
    win_length: int  # samples
    hop_length: int  # samples
    f_min: float  # Hz
    f_max: float  # Hz
    pre_emphasis: float  # y[n] = x[n + 1] - pre_emphasis * x[n]
    log_floor: float  # units of power
    log_floor_mode: str  # "add" or "clamp"
    periodic_window: bool
    offset: float  # (log + offset) / scale
    scale: float

    @property
    def framing(self) -> Framing:
        """Where the frames lie in a sound."""
        return Framing(self.n_fft, self.win_length, self.hop_length)


def mel_of(hertz: Any) -> Any:
    """Converts frequencies to mel, on Kaldi's scale.

    Example
    -------
    >>> round(float(mel_of(1000.0)))
    1000
    """
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def mel_bank(settings: FrontEndSettings) -> Array:
    """Computes Kaldi's triangular mel filters: [F, n_fft / 2 + 1].

    Each step is in float32, as in torchaudio.
    """
    low, high = mel_of(settings.f_min), mel_of(settings.f_max)
    step = (high - low) / (settings.n_mels + 1)
    band = np.arange(settings.n_mels, dtype=np.float32)[:, None]
    left, centre, right = (
        np.float32(low) + (band + k) * np.float32(step) for k in range(3)
    )
    bins = np.arange(settings.n_fft // 2, dtype=np.float32)
    hertz = bins * np.float32(settings.sample_rate / settings.n_fft)
    mel = np.float32(1127.0) * np.log(np.float32(1.0) + hertz / np.float32(700.0))
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    bank = np.maximum(np.minimum(rising, falling), np.float32(0.0))
    return np.pad(bank, ((0, 0), (0, 1)))  # without the bin at half the sample rate


class LogMel:
    """Computes log-mels: [B, N] -> [B, F, T].

    Arguments
    ---------
    settings : FrontEndSettings

    Example
    -------
    >>> settings = FrontEndSettings(
    ...     32000, 128, 1024, 800, 320, 0.0, 15000.0, 0.97, 1e-5, "add", False, 4.5, 5.0
    ... )
    >>> LogMel(settings)(np.zeros((2, 32000), np.float32)).shape
    (2, 128, 100)
    """

    def __init__(self, settings: FrontEndSettings) -> None:
        self.settings = settings
        self.framing = settings.framing
        self.bank = mel_bank(settings).T  # [bins, F]
        length = settings.win_length
        turns = 2 * np.pi * np.arange(length)
        turns /= length if settings.periodic_window else max(1, length - 1)
        self.window = (0.5 - 0.5 * np.cos(turns)).astype(np.float32)

    def __call__(self, waveforms: Array) -> Array:
        """[B, N] -> [B, F, T]"""
        return np.stack([self._frames(each) for each in waveforms]).swapaxes(1, 2)

    def _frames(self, waveform: Array) -> Array:
        """[N] -> [T, F]"""
        settings, framing = self.settings, self.framing
        emphasis = np.float32(settings.pre_emphasis)
        emphasised = waveform[1:] - emphasis * waveform[:-1]
        padded = np.pad(emphasised, (framing.before, framing.behind), mode="reflect")
        sound = np.lib.stride_tricks.sliding_window_view(padded, settings.win_length)
        framed = sound[:: settings.hop_length][: framing.num_frames(len(waveform))]
        mel = np.empty((len(framed), settings.n_mels), np.float32)
        # In blocks of frames, so that intermediate results stay in the cache.
        for start in range(0, len(mel), FRAMES_AT_ONCE):
            block = slice(start, start + FRAMES_AT_ONCE)
            np.matmul(self._power(framed[block]), self.bank, out=mel[block])
        floor = np.float32(settings.log_floor)
        if settings.log_floor_mode == "add":
            mel += floor
        else:
            np.maximum(mel, floor, out=mel)
        np.log(mel, out=mel)
        mel += np.float32(settings.offset)
        mel /= np.float32(settings.scale)
        return mel

    def _power(self, framed: Array) -> Array:
        # The position of the window in the transform does not change the power.
        spectrum = np.fft.rfft(framed * self.window, self.settings.n_fft)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        return power.astype(np.float32)  # already float32 with numpy 2
