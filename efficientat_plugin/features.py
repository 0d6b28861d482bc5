"""The front end: ``LogMel`` computes the input of every model, and ``SpecMask``
masks parts of it in training.

``LogMel`` returns ``[B, F, T]``; a student takes ``[B, 1, F, T]``, and SpeechBrain's
own features are ``[B, T, F]``.
"""

import torch
import torchaudio
from speechbrain.utils.autocast import fwd_default_precision
from torch import Tensor

from efficientat_plugin.contracts import Framing
from efficientat_plugin.support.limits import MAX_BANK, SAMPLE_RATES

PRE_EMPHASIS = 0.97
# They roughly centre and scale the log-mel of AudioSet.
LOG_MEL_OFFSET, LOG_MEL_SCALE = 4.5, 5.0
MASKED = (0.0 + LOG_MEL_OFFSET) / LOG_MEL_SCALE  # fill value of the published masks


class LogMel(torch.nn.Module):
    """Computes the log-mel that the published taggers and PaSST take as input.

    The steps are pre-emphasis, short-time Fourier transform with a Hann window, power,
    Kaldi mel bank, logarithm, and ``(x + 4.5) / 5``. In training the edges of the mel
    bank are jittered, with one draw per batch from torch's global generator; in
    evaluation they are fixed and the mel bank is a buffer. The result is always
    computed in float32, even under autocast.

    Source: Schmid et al., "Efficient Large-Scale Audio Tagging via
    Transformer-to-CNN Knowledge Distillation", ICASSP 2023, section 3, and its code.

    Arguments
    ---------
    sample_rate : int
        Sample rate of the waveform, Hz.
    n_mels : int
        Mel bins F.
    win_length : int
        Window, samples; at most ``n_fft``.
    hop_length : int
        Hop, samples.
    n_fft : int
        Length of the transform, samples.
    f_min : float
        Lower edge of the mel bank, Hz.
    f_max : float
        Upper edge of the mel bank in evaluation, Hz; at most half the sample rate.
    f_min_jitter : int
        In training the lower edge is raised by 0 to ``f_min_jitter - 1`` Hz.
    f_max_jitter : int
        In training the upper edge is ``f_max + f_max_jitter // 2`` minus 0 to
        ``f_max_jitter - 1`` Hz.
    log_floor : float
        Keeps the logarithm finite, in units of power.
    log_floor_mode : str
        "add": ``log(mel + log_floor)``; "clamp": ``log(max(mel, log_floor))``.
    periodic_window : bool
        Whether the Hann window is periodic instead of symmetric.

    Shape
    -----
    waveform : [B, N]
    log-mel : [B, n_mels, T] with ``T = 1 + (N - 1) // hop_length``

    Raises
    ------
    ValueError
        If no log-mel can be computed with the settings or from the waveform.

    Example
    -------
    >>> log_mel = LogMel().eval()
    >>> log_mel(torch.zeros(2, 320000)).shape
    torch.Size([2, 128, 1000])
    """

    mel_bank: Tensor
    window: Tensor

    def __init__(
        self,
        sample_rate: int = 32000,
        n_mels: int = 128,
        win_length: int = 800,
        hop_length: int = 320,
        n_fft: int = 1024,
        f_min: float = 0.0,
        f_max: float = 15000.0,
        f_min_jitter: int = 10,
        f_max_jitter: int = 2000,
        log_floor: float = 1e-5,
        log_floor_mode: str = "add",
        periodic_window: bool = False,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.n_mels = n_mels
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.f_min = f_min
        self.f_max = f_max
        self.f_min_jitter = f_min_jitter
        self.f_max_jitter = f_max_jitter
        self.log_floor = log_floor
        self.log_floor_mode = log_floor_mode
        self.periodic_window = periodic_window
        self._check_settings()
        self.framing = Framing(n_fft, win_length, hop_length)
        # Not saved in checkpoints, since they follow from the settings.
        self.register_buffer("mel_bank", self._mel_bank(f_min, f_max), persistent=False)
        window = torch.hann_window(win_length, periodic=periodic_window)
        left = (n_fft - win_length) // 2
        window = torch.nn.functional.pad(window, (left, n_fft - win_length - left))
        self.register_buffer("window", window, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Computes the log-mels of a batch: [B, N] -> [B, F, T]."""
        self._check(waveform)
        mel_bank = self._current_mel_bank()  # one draw per batch
        parts = [waveform]
        if waveform.device.type == "cpu" and not waveform.requires_grad:
            # Clip by clip, the intermediate results fit into the CPU's cache.
            parts = list(waveform.split(1))
        log_mels = [self._log_mel(self._power(part), mel_bank) for part in parts]
        whole = log_mels[0] if len(log_mels) == 1 else torch.cat(log_mels)
        return whole.transpose(1, 2)

    @fwd_default_precision(cast_inputs=torch.float32)
    def spectrum(self, waveform: Tensor) -> Tensor:
        """Computes the complex spectrum: [B, N] -> [B, T, n_fft / 2 + 1]."""
        self._check(waveform)
        emphasised = waveform[:, 1:] - PRE_EMPHASIS * waveform[:, :-1]
        # A strided view and a real transform give the result of torch.stft in a third
        # of the time, since nothing is transposed.
        half = self.n_fft // 2
        padded = torch.nn.functional.pad(emphasised[:, None], (half, half), "reflect")
        frames = padded[:, 0].unfold(1, self.n_fft, self.hop_length)  # [B, T, n_fft]
        return torch.fft.rfft(frames * self.window)

    @fwd_default_precision(cast_inputs=torch.float32)
    def from_power(self, power: Tensor) -> Tensor:
        """Computes log-mels from power: [B, T, n_fft / 2 + 1] -> [B, T, F]."""
        return self._log_mel(power, self._current_mel_bank())

    def _power(self, waveform: Tensor) -> Tensor:
        spectrum = self.spectrum(waveform)
        # Faster than squaring the complex tensor.
        return spectrum.real.square().add_(spectrum.imag.square())

    @fwd_default_precision(cast_inputs=torch.float32)
    def _log_mel(self, power: Tensor, mel_bank: Tensor) -> Tensor:
        mel = power @ mel_bank.T  # [B, T, F]
        if self.log_floor_mode == "add":
            log_mel = (mel + self.log_floor).log_()
        else:
            log_mel = mel.clamp(min=self.log_floor).log_()
        return log_mel.add_(LOG_MEL_OFFSET).div_(LOG_MEL_SCALE)

    @property
    def min_samples(self) -> int:
        """The shortest waveform, in samples."""
        return self.framing.min_samples

    def num_frames(self, num_samples: int) -> int:
        """Returns T, the number of frames of a waveform with ``num_samples``."""
        return self.framing.num_frames(num_samples)

    def _check_settings(self) -> None:
        """Raises a ``ValueError`` for settings that give no log-mel."""
        low, high, half_rate = self.f_min, self.f_max, self.sample_rate / 2
        low_jitter, high_jitter = self.f_min_jitter, self.f_max_jitter
        jitters = f"f_min_jitter={low_jitter} and f_max_jitter={high_jitter} Hz"
        sizes = f"n_mels={self.n_mels} and n_fft={self.n_fft}"
        lowest, highest = SAMPLE_RATES
        is_legal = {
            f"log_floor_mode={self.log_floor_mode!r} must be 'add' or 'clamp'": (
                self.log_floor_mode in ("add", "clamp")
            ),
            f"win_length={self.win_length} must be from 1 to n_fft={self.n_fft} "
            "samples": 0 < self.win_length <= self.n_fft,
            f"hop_length={self.hop_length} and n_mels={self.n_mels} must be 1 or "
            "more": self.hop_length >= 1 and self.n_mels >= 1,
            f"{sizes} give a mel bank that is too large for memory; their product is "
            f"at most {MAX_BANK}": self.n_mels * self.n_fft <= MAX_BANK,
            f"sample_rate={self.sample_rate} Hz is not an audio sample rate; give one "
            f"from {lowest} to {highest}": lowest <= self.sample_rate <= highest,
            f"{jitters} must be 0 or more; 0 means no jitter": (
                low_jitter >= 0 and high_jitter >= 0
            ),
            f"jitter can move f_min={low} Hz past f_max={high} Hz; lower {jitters}": (
                low + low_jitter < high - high_jitter / 2
            ),
            f"f_min={low} Hz and f_max={high} Hz must satisfy 0 <= f_min < f_max <= "
            f"half the sample rate, {half_rate:g} Hz; lower f_max": (
                0 <= low < high <= half_rate
            ),
        }
        for message, legal in is_legal.items():
            if not legal:
                raise ValueError(message)

    def _check(self, waveform: Tensor) -> None:
        if waveform.ndim != 2:
            raise ValueError(
                f"the waveform has shape {tuple(waveform.shape)}, but LogMel takes "
                "[B, N]; add or remove axes"
            )
        if waveform.shape[1] < self.min_samples:
            raise ValueError(
                f"{waveform.shape[1]} samples are too few for n_fft={self.n_fft}, "
                f"which needs at least {self.min_samples}; pad the waveform"
            )

    def _current_mel_bank(self) -> Tensor:
        if not self.training or not (self.f_min_jitter or self.f_max_jitter):
            return self.mel_bank
        f_min, f_max = self.f_min, self.f_max
        if self.f_min_jitter:
            f_min += int(torch.randint(self.f_min_jitter, ()))
        if self.f_max_jitter:
            # No band may extend beyond half the sample rate.
            drawn = int(torch.randint(self.f_max_jitter, ()))
            f_max += self.f_max_jitter // 2 - drawn
            f_max = min(f_max, self.sample_rate / 2)
        return self._mel_bank(f_min, f_max).to(self.mel_bank.device)

    def _mel_bank(self, f_min: float, f_max: float) -> Tensor:
        bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
            self.n_mels,
            self.n_fft,
            self.sample_rate,
            f_min,
            f_max,
            vtln_low=100.0,
            vtln_high=-500.0,
            vtln_warp_factor=1.0,
        )
        # Kaldi omits the bin at half the sample rate.
        return torch.nn.functional.pad(bank, (0, 1))


class SpecMask(torch.nn.Module):
    """Masks one frequency band and one time span of each log-mel, in training only.

    Each example gets its own masks. The published masks set values to 0 before
    ``(x + 4.5) / 5``; these act on the normalised log-mel, so the fill value is 0.9.

    Source: Park et al., "SpecAugment", Interspeech 2019, section 2.

    Arguments
    ---------
    max_bins : int
        Widest frequency mask, mel bins; 0 switches it off.
    max_frames : int
        Longest time mask, frames; 0 switches it off.

    Shape
    -----
    input and output : [B, F, T]

    Example
    -------
    >>> SpecMask(max_bins=48, max_frames=192)(torch.zeros(2, 128, 1000)).shape
    torch.Size([2, 128, 1000])
    """

    def __init__(self, max_bins: int = 0, max_frames: int = 0) -> None:
        super().__init__()
        if max_bins < 0 or max_frames < 0:
            raise ValueError(
                f"max_bins={max_bins} and max_frames={max_frames} must be 0 or more"
            )
        self.max_bins = max_bins
        self.max_frames = max_frames

    def forward(self, log_mel: Tensor) -> Tensor:
        """Masks the log-mels of a batch: [B, F, T] -> [B, F, T]."""
        if not self.training:
            return log_mel
        mask_along_axis = torchaudio.functional.mask_along_axis_iid
        examples = log_mel[:, None]  # torchaudio takes [B, C, F, T]
        if self.max_bins:
            examples = mask_along_axis(examples, self.max_bins, MASKED, axis=2)
        if self.max_frames:
            examples = mask_along_axis(examples, self.max_frames, MASKED, axis=3)
        return examples[:, 0]
