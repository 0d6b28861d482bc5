"""Fills SpeechBrain's slots, with a student as the encoder and `LogMel` before it.

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
axes are swapped here and nowhere else. SpeechBrain's lengths are relative to the
longest clip of the batch.

Where SpeechBrain's interfaces differ from what these models expect:

- They resample files to 16 kHz. Give the YAML an ``audio_normalizer`` with the
  sample rate of the `LogMel`, else the model silently gets the wrong pitch.
  `AudioClassifier` reads ``sample_rate`` instead, and treats the two channels of a
  file that already has this rate as two clips.
- `EncoderClassifier` and `AudioClassifier` return the output of the classifier and
  the best class. They apply no sigmoid and return no second label.
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
from efficientat_plugin.pretrained.description import describe
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.pretrained.weights import FAMILIES, front_end_of, student_of
from efficientat_plugin.students.student import Student, check_choice

# Relative lengths are float32: without this, 0.3 of 10 frames could give 4.
ROUNDING = 2e-7


def silence(log_floor: float = 1e-5) -> float:
    """Returns the value of silence in `LogMel` with a given ``log_floor``."""
    return (math.log(log_floor) + LOG_MEL_OFFSET) / LOG_MEL_SCALE


def ends_of(lengths: Tensor, size: int) -> Tensor:
    """Computes where clips end: ``ceil(length * size)``, at least 1: [B] -> [B].

    Lengths are relative to the longest, ``size`` counts samples or frames.

    Example
    -------
    >>> ends_of(torch.tensor([1.0, 0.3, 0.01]), 10)
    tensor([10,  3,  1])
    """
    return (lengths * (size * (1 - ROUNDING))).ceil().long()


def padding_of(lengths: Tensor, size: int) -> Tensor:
    """Computes a mask that is True after the end of each clip: [B] -> [B, size]."""
    positions = torch.arange(size, device=lengths.device)
    return positions >= ends_of(lengths, size)[:, None]


def each_to_its_end(
    encode: Callable[[Tensor], Tensor], clips: Tensor, ends: Tensor
) -> Tensor:
    """Encodes clips without their padding; clips of one length form a batch."""
    distinct, group = ends.unique(return_inverse=True)
    encoded = [
        encode(clips[group == index, :end])
        for index, end in enumerate(distinct.tolist())
    ]
    back = group.argsort(stable=True).argsort()
    return torch.cat(encoded)[back]


def check_lengths(lengths: Tensor, batch_size: int) -> None:
    """Raises a ``ValueError`` for illegal relative lengths."""
    if lengths.shape != (batch_size,):
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)}, the batch has {batch_size} "
            f"clips; give one length per clip, [{batch_size}]"
        )
    if not bool(((lengths > 0) & (lengths <= 1 + ROUNDING)).all()):
        raise ValueError(
            f"lengths={lengths.tolist()} must be greater than 0 and at most 1; divide "
            "them by the longest of the batch"
        )


class LogMelPart(nn.Module):
    """Base of the modules that fill a slot before the encoder with (part of) `LogMel`.

    Arguments
    ---------
    log_mel : LogMel
        Shared by all slots, so that its settings are in one place.
    """

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.log_mel = log_mel


class LogMelFeatures(LogMelPart):
    """`LogMel` for the slot ``compute_features``, with SpeechBrain's order of axes.

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
    The last axis holds the real and the imaginary part.

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

    Applies mel bank, logarithm and normalisation; in training, band edges are jittered.

    Example
    -------
    >>> LogMelFbank(LogMel())(torch.zeros(2, 100, 513)).shape
    torch.Size([2, 100, 128])
    """

    def forward(self, power: Tensor) -> Tensor:
        """[B, T, n_fft / 2 + 1] -> [B, T, F]"""
        return self.log_mel.from_power(power)


class KeepFeatures(nn.Module):
    """Returns its input, for the slot ``mean_var_norm``: `LogMel` already normalises.

    Example
    -------
    >>> KeepFeatures()(torch.ones(1), torch.ones(1))
    tensor([1.])
    """

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, T, F] -> [B, T, F]"""
        return features


def trunk_of(student: Student) -> Student:
    """Returns the student without its head, with shared weights.

    An unused head would get no gradients, which distributed training refuses.
    """
    trunk = copy.copy(student)
    trunk._modules = dict(student._modules)  # the student itself keeps its head
    del trunk.classifier
    return trunk


@register_checkpoint_hooks
class StudentEncoder(nn.Module):
    """A student for the slot ``embedding_model``, in place of ECAPA-TDNN or Cnn14.

    ``lengths`` mark the padding. In evaluation, each clip's features are encoded up to
    their own end, as they would be alone; clips of one length form a batch, so many
    lengths need many passes. Leaving padding out of the average is not enough, because
    the gates (squeeze-excite, the context of DyMN) also average over time. In training,
    batch normalisation needs the whole batch, so this approximation is used: padded
    features become ``padding_value``, and the average is over the first
    ``ceil(length * T')`` of the student's T' frames, at least one. In both modes, the
    content of padded features has no effect.

    `LogMel` reflects the end of a waveform, but does not know where a padded clip
    ends, so the last frame of its features differs from that of the clip alone. This
    changes the embedding of a clip of 0.3 s by 2% and of 3 s by 0.1% (medians of 20
    clips; 15% at most). `StudentWaveformEncoder` is exact.

    Arguments
    ---------
    student : Student
        Its weights are shared, its head is left out; its mode becomes the encoder's.
    padding_value : float
        Value of padded features in training: `silence` of a `LogMel`, or 0 for
        features with their mean subtracted.

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
        For features or lengths of a wrong shape or value.

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
                f"features have shape {tuple(features.shape)}, but an encoder takes "
                "[B, T, F]; for waveforms, use LogMelFeatures first"
            )
        if lengths is None:
            return self._frames(features).mean(2).unsqueeze(1)
        check_lengths(lengths, len(features))
        if self.training:
            return self._masked(features, lengths)
        return each_to_its_end(self, features, ends_of(lengths, features.shape[1]))

    def _masked(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encodes a batch in one pass and averages over each clip's own frames."""
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
        """Loads a checkpoint strictly; SpeechBrain's default may load only a part."""
        self.load_state_dict(read_state(Path(path), unwrap=False), strict=True)


def check_front_end(source: str | Path, student: Student, log_mel: LogMel) -> None:
    """Raises a ``ValueError`` if weights were trained with another log-mel."""
    differing = {
        name: value
        for name, value in student.front_end.items()
        if getattr(log_mel, name, value) != value and "jitter" not in name
    }
    if differing:
        given = ", ".join(f"{name}={getattr(log_mel, name)}" for name in differing)
        trained = ", ".join(f"{name}={value}" for name, value in differing.items())
        raise ValueError(
            f"{source} was trained with {trained}, but the given log_mel has {given}; "
            "change it, or leave out log_mel to use another"
        )


def load_encoder(
    pretrained: str | Path | None = None,
    family: str | None = None,
    width: float | None = None,
    log_mel: LogMel | None = None,
    savedir: str | Path | None = None,
    **options: Any,
) -> StudentEncoder:
    """Creates an encoder, also in a YAML: ``!apply:efficientat_plugin.load_encoder``.

    Arguments
    ---------
    pretrained : str or Path or None
        A name from `list_students`, downloaded once, a model folder, or a file; None:
        from scratch.
    family : str or None
        "mn" or "dymn"; None: that of the weights, "mn" from scratch.
    width : float or None
        Factor on all numbers of channels; None: that of the weights, 1 from scratch.
    log_mel : LogMel or None
        Computes the features; compared with the one that the weights were trained on,
        or assumed to be it if the file does not contain its settings.
    savedir : str or Path or None
        Folder for downloads; None: "efficientat_plugin" in torch.hub's folder.
    **options
        Further arguments of the student.

    Returns
    -------
    StudentEncoder
        In training mode from scratch, in evaluation mode with weights.

    Raises
    ------
    OSError
        If a download fails or the file does not exist.
    ValueError
        For options that are illegal or do not match the weights.

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
        if known.front_end is None and log_mel is not None:  # it gives the settings
            stated = front_end_of(log_mel) | options
        student = student_of(
            known, read_state(known.path), stated, needs_front_end=log_mel is not None
        )
        if family is not None and type(student) is not FAMILIES[family]:
            raise ValueError(
                f"{pretrained} is of {type(student).__name__}, not of "
                f"family={family!r}; give its own family, or none"
            )
        if not isinstance(student, tuple(FAMILIES.values())):
            raise ValueError(
                f"{pretrained} is a {student.describe()}, which embeds frames instead "
                "of clips; give an MN or a DyMN, or use interfaces.hear for frames"
            )
        if log_mel is not None:
            check_front_end(pretrained, student, log_mel)
    if log_mel is None:
        return StudentEncoder(student)
    return StudentEncoder(student, silence(log_mel.log_floor))


class StudentWaveformEncoder(nn.Module):
    """Maps waveforms to embeddings, for ``encoder`` of SpeechBrain's `WaveformEncoder`.

    It returns a dictionary, because SpeechBrain's ``encode_file`` looks up
    "embeddings" in the result. With ``lengths``, samples after a clip's end have no
    effect; in evaluation a clip is encoded as it would be alone, see `StudentEncoder`.

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
        For waveforms or lengths of a wrong shape or value.

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
        ends = ends_of(lengths, samples).clamp(min=self.log_mel.min_samples)
        return {"embeddings": each_to_its_end(self._encode, waveform, ends)}

    def _encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, N] -> [B, 1, D]"""
        return self.encoder(self.log_mel(waveform).transpose(1, 2), lengths)
