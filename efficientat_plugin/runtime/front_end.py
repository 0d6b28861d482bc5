"""Computes the log-mel of ``features.LogMel`` in evaluation mode, in numpy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    def min_samples(self) -> int:
        """The shortest sound, in samples, whose ends can be reflected."""
        return self.n_fft // 2 + 2

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames T of a sound of ``num_samples``."""
        return 1 + (num_samples - 1) // self.hop_length


def mel_bank(settings: FrontEndSettings) -> Array:
    """Computes Kaldi's triangular mel filters: [F, n_fft / 2 + 1].

    Each step is in float32, as in torchaudio.
    """
    low, high = (
        1127.0 * np.log(1.0 + hertz / 700.0)
        for hertz in (settings.f_min, settings.f_max)
    )
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
    """Computes log-mels: [N] -> [F, T].

    Arguments
    ---------
    settings : FrontEndSettings

    Example
    -------
    >>> settings = FrontEndSettings(
    ...     32000, 128, 1024, 800, 320, 0.0, 15000.0, 0.97, 1e-5, "add", False, 4.5, 5.0
    ... )
    >>> LogMel(settings)(np.zeros(32000, np.float32)).shape
    (128, 100)
    """

    def __init__(self, settings: FrontEndSettings) -> None:
        self.settings = settings
        self.bank = mel_bank(settings).T  # [bins, F]
        length = settings.win_length
        turns = 2 * np.pi * np.arange(length)
        turns /= length if settings.periodic_window else max(1, length - 1)
        self.window = (0.5 - 0.5 * np.cos(turns)).astype(np.float32)
        # Samples of a frame before and after its centre.
        self.before = settings.n_fft // 2 - (settings.n_fft - length) // 2
        self.behind = length - self.before

    def __call__(self, waveform: Array) -> Array:
        """[N] -> [F, T]"""
        padded = self.padded(waveform)
        return self.frames(padded, 0, self.settings.num_frames(len(waveform))).T

    def padded(self, waveform: Array) -> Array:
        """Applies pre-emphasis and reflects the ends."""
        emphasised = (
            waveform[1:] - np.float32(self.settings.pre_emphasis) * waveform[:-1]
        )
        return np.pad(emphasised, (self.before, self.behind), mode="reflect")

    def frames(self, padded: Array, first: int, end: int) -> Array:
        """Computes the frames from ``first`` to ``end``: [end - first, F]."""
        mel = np.empty((max(0, end - first), self.settings.n_mels), np.float32)
        # In blocks of frames, so that intermediate results stay in the cache.
        for start in range(0, len(mel), FRAMES_AT_ONCE):
            part = mel[start : start + FRAMES_AT_ONCE]
            power = self._power(padded, first + start, len(part))
            np.matmul(power, self.bank, out=part)
        floor = np.float32(self.settings.log_floor)
        if self.settings.log_floor_mode == "add":
            mel += floor
        else:
            np.maximum(mel, floor, out=mel)
        np.log(mel, out=mel)
        mel += np.float32(self.settings.offset)
        mel /= np.float32(self.settings.scale)
        return mel

    def _power(self, padded: Array, first: int, count: int) -> Array:
        hop, length = self.settings.hop_length, self.settings.win_length
        sound = padded[first * hop : (first + count - 1) * hop + length]
        framed = np.lib.stride_tricks.sliding_window_view(sound, length)[::hop]
        # The position of the window in the transform does not change the power.
        spectrum = np.fft.rfft(framed * self.window, self.settings.n_fft)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        return power.astype(np.float32)  # already float32 with numpy 2

    def inner_frames(self, num_samples: int) -> tuple[int, int]:
        """Returns the range of frames that contain no reflected samples."""
        hop = self.settings.hop_length
        num_emphasised = num_samples - 1
        first = -(-self.before // hop)
        end = (num_emphasised - self.behind) // hop + 1
        return first, max(first, min(end, self.settings.num_frames(num_samples)))


class OverlappingWindows:
    """Computes log-mels of overlapping windows, with shared frames computed once.

    The ends of each window are reflected, as if it were a sound of its own. Frames
    that contain reflected samples are computed per window; only the others are shared.

    Arguments
    ---------
    log_mel : LogMel
    """

    def __init__(self, log_mel: LogMel) -> None:
        self._log_mel = log_mel
        self._start = 0
        self._num_samples = 0
        self._frames: Array | None = None  # [T, F] of the window before

    def __call__(self, start: int, waveform: Array) -> Array:
        """Computes the log-mel of the window at ``start``: [N] -> [F, T]."""
        log_mel, hop = self._log_mel, self._log_mel.settings.hop_length
        num_frames = log_mel.settings.num_frames(len(waveform))
        padded = log_mel.padded(waveform)
        shift, rest = divmod(start - self._start, hop)
        first, end = log_mel.inner_frames(len(waveform))
        shared_end = end - shift
        before = self._frames
        if (
            before is None
            or rest
            or shift < 0
            or len(waveform) != self._num_samples
            or shared_end <= first
        ):
            frames = log_mel.frames(padded, 0, num_frames)
        else:
            frames = np.concatenate(
                [
                    log_mel.frames(padded, 0, first),
                    before[first + shift : end],
                    log_mel.frames(padded, shared_end, num_frames),
                ]
            )
        self._start, self._num_samples, self._frames = start, len(waveform), frames
        return frames.T
