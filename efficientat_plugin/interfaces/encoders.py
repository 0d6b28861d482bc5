"""SpeechBrain's slots, filled: a student as the encoder, `LogMel` before it.

===========================  ==============================  ======================
Slot of SpeechBrain          Shape there                     Fill it with
===========================  ==============================  ======================
``compute_features``         [B, N] -> [B, T, F]             `LogMelFeatures`
``compute_stft``             [B, N] -> [B, T, bins, 2]       `LogMelSTFT`
``compute_fbank``            [B, T, bins] -> [B, T, F]       `LogMelFbank`
``mean_var_norm``            [B, T, F] -> [B, T, F]          `KeepFeatures`
``embedding_model``          [B, T, F] -> [B, 1, D]          `load_encoder`
``classifier``               [B, 1, D] -> [B, 1, K]          `classifiers`
``encoder``, of waveforms    [B, N] -> {"embeddings": ...}   `StudentWaveformEncoder`
===========================  ==============================  ======================

SpeechBrain's features are ``[B, T, F]`` and a student takes ``[B, 1, F, T]``: the
axes are swapped here and nowhere else. Its lengths are relative to the longest clip
of the batch.

What SpeechBrain's own interfaces do and these models do not expect:

- They resample files to 16 kHz. Give the YAML an ``audio_normalizer`` of the
  sample rate of the `LogMel`, else a model hears the wrong pitch, silently;
  `AudioClassifier` reads ``sample_rate`` instead, and takes the two channels of a
  file that has this rate already for two clips.
- `EncoderClassifier` and `AudioClassifier` return what the classifier returns and
  the best class. They take no sigmoid and know no second label.
- A `!new:` cannot be replaced from the command line: SpeechBrain keeps the class and
  merges the arguments. Change the encoder in the YAML.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

# SpeechBrain's scripts and `AudioClassifier` use it without importing it.
import speechbrain.processing.features  # noqa: F401
import torch
from speechbrain.utils.checkpoints import mark_as_transfer, register_checkpoint_hooks
from torch import Tensor, nn

from efficientat_plugin.features import LOG_MEL_OFFSET, LOG_MEL_SCALE, LogMel
from efficientat_plugin.pretrained.described import describe
from efficientat_plugin.pretrained.download import read_state
from efficientat_plugin.pretrained.weights import FAMILIES, front_end_of, student_of
from efficientat_plugin.students.student import Student, check_choice

# Relative lengths are float32: without it, 0.3 of 10 frames could be 4.
ROUNDING = 2e-7


def silence(log_floor: float = 1e-5) -> float:
    """What `LogMel` makes of silence; ``log_floor`` is its argument."""
    return (math.log(log_floor) + LOG_MEL_OFFSET) / LOG_MEL_SCALE


def ends_of(lengths: Tensor, size: int) -> Tensor:
    """Where clips end: ``ceil(length * size)``, at least 1.

    Arguments
    ---------
    lengths : Tensor
        Relative to the longest, greater than 0 and at most 1.
    size : int
        Positions along the axis: samples or frames.

    Returns
    -------
    Tensor

    Example
    -------
    >>> ends_of(torch.tensor([1.0, 0.3, 0.01]), 10)
    tensor([10,  3,  1])
    """
    return (lengths * (size * (1 - ROUNDING))).ceil().long()


def padding_of(lengths: Tensor, size: int) -> Tensor:
    """True where clips have ended: [B] -> [B, size]"""
    positions = torch.arange(size, device=lengths.device)
    return positions >= ends_of(lengths, size)[:, None]


def each_to_its_end(
    encode: Callable[[Tensor], Tensor], clips: Tensor, ends: Tensor
) -> Tensor:
    """``encode`` of clips without padding; clips of one length go together."""
    distinct, group = ends.unique(return_inverse=True)
    encoded = [
        encode(clips[group == index, :end])
        for index, end in enumerate(distinct.tolist())
    ]
    back = group.argsort(stable=True).argsort()
    return torch.cat(encoded)[back]


def check_lengths(lengths: Tensor, batch_size: int) -> None:
    """Refuses what are no relative lengths of a batch."""
    if lengths.shape != (batch_size,):
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)}, the batch has {batch_size} "
            f"clips; give one length a clip, [{batch_size}]"
        )
    if not bool(((lengths > 0) & (lengths <= 1 + ROUNDING)).all()):
        raise ValueError(
            f"lengths={lengths.tolist()} must be greater than 0 and at most 1; divide "
            "them by the longest of the batch"
        )


class LogMelPart(nn.Module):
    """What fills a slot before the encoder with a part of `LogMel`, or all of it.

    Arguments
    ---------
    log_mel : LogMel
        One for all slots, so that its settings stand in one place.
    """

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.log_mel = log_mel


class LogMelFeatures(LogMelPart):
    """`LogMel` for the slot ``compute_features``: as SpeechBrain turns its features.

    Example
    -------
    >>> LogMelFeatures(LogMel())(torch.zeros(2, 32000)).shape
    torch.Size([2, 100, 128])
    """

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, T, F]"""
        return self.log_mel(waveform).transpose(1, 2)


class LogMelSTFT(LogMelPart):
    """The first half of `LogMel`, for the slot ``compute_stft``.

    With ``spec_mag_power: 1``, ``use_melspectra: True``, ``use_log1p_mel: False`` and
    `LogMelFbank`, SpeechBrain's scripts and its `AudioClassifier` compute `LogMel`.
    The last axis is real and imaginary part.

    Example
    -------
    >>> LogMelSTFT(LogMel())(torch.zeros(2, 32000)).shape
    torch.Size([2, 100, 513, 2])
    """

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, T, n_fft / 2 + 1, 2]"""
        return torch.view_as_real(self.log_mel.spectrum(waveform))


class LogMelFbank(LogMelPart):
    """The second half of `LogMel`, for the slot ``compute_fbank``.

    Mel bank, logarithm and normalisation; in training the band edges jitter.

    Example
    -------
    >>> LogMelFbank(LogMel())(torch.zeros(2, 100, 513)).shape
    torch.Size([2, 100, 128])
    """

    def forward(self, power: Tensor) -> Tensor:
        """[B, T, n_fft / 2 + 1] -> [B, T, F]"""
        return self.log_mel.from_power(power)


class KeepFeatures(nn.Module):
    """For the slot ``mean_var_norm``: `LogMel` has normalised already.

    Example
    -------
    >>> KeepFeatures()(torch.ones(1), torch.ones(1))
    tensor([1.])
    """

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, T, F] -> [B, T, F]"""
        return features


def trunk_of(student: Student) -> Student:
    """A student without its head, on the very same weights.

    A head that nobody asks gets no gradients, which distributed training refuses.
    """
    trunk = copy.copy(student)
    trunk._modules = dict(student._modules)  # the student itself keeps its head
    del trunk.classifier
    return trunk


@register_checkpoint_hooks
class StudentEncoder(nn.Module):
    """A student for the slot ``embedding_model``: ECAPA-TDNN's and Cnn14's.

    Padding is told by ``lengths``. In evaluation the features of every clip go through
    the network to their own end, as they would alone; clips of one length go together,
    and many lengths take many passes. Merely to leave padding out of the average would
    not do: the gates (squeeze-excite, the context of DyMN) average over time too. In
    training, where batch normalisation needs the batch as a whole, that is what
    remains: padded features become ``padding_value``, and the average is over the first
    ``ceil(length * T')`` of the student's T' frames, at least one. In either mode what
    stood in the padded features never matters.

    `LogMel` mirrors the end of a waveform, and of a padded one it does not know the
    end, so that the last frame of its features differs from that of the clip alone.
    This changes the embedding of a clip of 0.3 s by 2% and of 3 s by 0.1% (medians of
    20 clips; 15% at most). `StudentWaveformEncoder` is exact.

    Arguments
    ---------
    student : Student
        Its weights are shared, its head is left out; its mode becomes the encoder's.
    padding_value : float
        What padded features are set to in training: `silence` of a `LogMel`; 0 for
        features whose mean was taken away.

    Attributes
    ----------
    embedding_size : int
        D, 960 at width 1.

    Shape
    -----
    features : [B, T, F]
    lengths : [B], relative to the longest; None: no padding
    embedding : [B, 1, D]

    Raises
    ------
    ValueError
        For what are no features or lengths.

    Example
    -------
    >>> from efficientat_plugin import MN
    >>> encoder = StudentEncoder(MN(width=0.1)).eval()
    >>> encoder(torch.zeros(2, 100, 128), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 1, 96])
    """

    def __init__(self, student: Student, padding_value: float = silence()) -> None:
        super().__init__()
        self.student = trunk_of(student)
        self.padding_value = padding_value
        norms = [m for m in self.student.modules() if isinstance(m, nn.BatchNorm2d)]
        self.embedding_size = norms[-1].num_features  # of the last convolution
        self.train(student.training)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, T, F] -> [B, 1, D]"""
        if features.ndim != 3:
            raise ValueError(
                f"features have shape {tuple(features.shape)}, an encoder takes "
                "[B, T, F]; from waveforms use LogMelFeatures"
            )
        if lengths is None:
            return self._frames(features).mean(2).unsqueeze(1)
        check_lengths(lengths, len(features))
        if self.training:
            return self._masked(features, lengths)
        return each_to_its_end(self, features, ends_of(lengths, features.shape[1]))

    def _masked(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The average over each clip's own frames, of a batch in one pass."""
        ended = padding_of(lengths, features.shape[1])[:, :, None]
        frames = self._frames(features.masked_fill(ended, self.padding_value))
        kept = ~padding_of(lengths, frames.shape[2])[:, None]  # [B, 1, T']
        return ((frames * kept).sum(2) / kept.sum(2)).unsqueeze(1)

    def _frames(self, features: Tensor) -> Tensor:
        """[B, T, F] -> [B, D, T']"""
        log_mel = features.transpose(1, 2).unsqueeze(1)  # [B, 1, F, T]
        self.student.check_input(log_mel)
        return self.student.maps(log_mel).mean(2)

    @mark_as_transfer
    def load_whole(self, path: str | Path) -> None:
        """Takes all of a checkpoint or refuses; SpeechBrain's default takes a part."""
        self.load_state_dict(read_state(Path(path), unwrap=False), strict=True)


def check_front_end(source: str | Path, student: Student, log_mel: LogMel) -> None:
    """Refuses a log-mel that weights were not trained on."""
    differing = {
        name: value
        for name, value in student.front_end.items()
        if getattr(log_mel, name, value) != value and "jitter" not in name
    }
    if differing:
        given = ", ".join(f"{name}={getattr(log_mel, name)}" for name in differing)
        trained = ", ".join(f"{name}={value}" for name, value in differing.items())
        raise ValueError(
            f"{source} was trained with {trained}, the log_mel given has {given}; set "
            "it so, or leave log_mel out to try another"
        )


def load_encoder(
    pretrained: str | Path | None = None,
    family: str | None = None,
    width: float | None = None,
    log_mel: LogMel | None = None,
    savedir: str | Path | None = None,
    **options: Any,
) -> StudentEncoder:
    """The encoder of a YAML, ``!apply:efficientat_plugin.load_encoder``.

    Arguments
    ---------
    pretrained : str or Path or None
        A name of `list_students`, downloaded once, a model folder, or a file; None:
        from scratch.
    family : str or None
        "mn" or "dymn"; None: as the weights, "mn" from scratch.
    width : float or None
        What every number of channels is multiplied by; None: as the weights, 1 from
        scratch.
    log_mel : LogMel or None
        What makes the features, to compare with what the weights were trained on; of a
        file that does not tell, it is taken to be that.
    savedir : str or Path or None
        Folder of downloads; None: "efficientat_plugin" in torch.hub's folder.
    **options
        Further arguments of the student.

    Returns
    -------
    StudentEncoder
        In training mode from scratch, in evaluation mode with weights.

    Raises
    ------
    OSError
        Where a download fails or there is no such file.
    ValueError
        For options that are illegal or not those of the weights.

    Example
    -------
    >>> load_encoder(family="dymn", width=0.4).embedding_size
    384
    """
    if family is not None:
        check_choice("family", family, FAMILIES)
    student: Student
    if pretrained is None:
        student = FAMILIES[family or "mn"](
            width=1.0 if width is None else width, **options
        )
    else:
        if width is not None:
            options["width"] = width
        known = describe(pretrained, savedir)
        stated = options
        if known.front_end is None and log_mel is not None:  # which states it
            stated = front_end_of(log_mel) | options
        student = student_of(
            known, read_state(known.path), stated, needs_front_end=log_mel is not None
        )
        if family is not None and type(student) is not FAMILIES[family]:
            raise ValueError(
                f"{pretrained} is of {type(student).__name__}, not of "
                f"family={family!r}; give its own family, or none"
            )
        if log_mel is not None:
            check_front_end(pretrained, student, log_mel)
    if log_mel is None:
        return StudentEncoder(student)
    return StudentEncoder(student, silence(log_mel.log_floor))


class StudentWaveformEncoder(nn.Module):
    """Waveform to embedding, for ``encoder`` of SpeechBrain's `WaveformEncoder`.

    The result is a dictionary, since SpeechBrain's ``encode_file`` looks up
    "embeddings" in what its ``encode_batch`` returns as it is. With ``lengths``,
    samples beyond a clip's end never matter; in evaluation a clip is encoded as it
    would be alone, see `StudentEncoder`.

    Arguments
    ---------
    log_mel : LogMel
    encoder : StudentEncoder

    Shape
    -----
    waveform : [B, N]
    lengths : [B], relative to the longest; None: no padding
    embeddings : [B, 1, D]

    Raises
    ------
    ValueError
        For what are no waveforms or lengths.

    Example
    -------
    >>> encoder = StudentWaveformEncoder(LogMel(), load_encoder(width=0.1)).eval()
    >>> encoder(torch.zeros(2, 32000))["embeddings"].shape
    torch.Size([2, 1, 96])
    """

    def __init__(self, log_mel: LogMel, encoder: StudentEncoder) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.encoder = encoder

    def forward(
        self, waveform: Tensor, lengths: Tensor | None = None
    ) -> dict[str, Tensor]:
        """[B, N] -> {"embeddings": [B, 1, D]}"""
        if lengths is None:
            return {"embeddings": self._encode(waveform)}
        check_lengths(lengths, len(waveform))
        samples = waveform.shape[1]
        waveform = waveform.masked_fill(padding_of(lengths, samples), 0.0)
        if self.training:
            return {"embeddings": self._encode(waveform, lengths)}
        shortest = self.log_mel.n_fft // 2 + 2  # samples that a spectrum needs
        ends = ends_of(lengths, samples).clamp(min=shortest)
        return {"embeddings": each_to_its_end(self._encode, waveform, ends)}

    def _encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, N] -> [B, 1, D]"""
        return self.encoder(self.log_mel(waveform).transpose(1, 2), lengths)
