"""The audio spectrogram transformer (AST) of the hub as a teacher.

``[B, N] -> StudentOutput``; needs ``transformers`` (the extra ``teachers``).
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
import torchaudio
from speechbrain.utils.autocast import fwd_default_precision
from torch import Tensor, nn

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.support.plain_text import some_of
from efficientat_plugin.teachers.ast_files import read_ast

logger = logging.getLogger(__name__)

AUDIOSET = "audioset"  # AudioSet's labels, in their published order
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010  # of Kaldi's filter banks


class ASTFeatures(nn.Module):
    """Computes the input of an AST: Kaldi's filter banks, padded and normalised.

    Source: Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021,
    section 2.1, and ``transformers.ASTFeatureExtractor``; differs from it in that clips
    that are too long are refused, not cut, and other sample rates are resampled.

    Arguments
    ---------
    extractor : transformers.ASTFeatureExtractor
        Holds the settings.
    sample_rate : int
        Sample rate of the waveform, Hz; it is resampled to that of the settings.

    Shape
    -----
    waveform : [B, N]
    features : [B, T, F]; T is the number of positions, whatever N is

    Raises
    ------
    ValueError
        For waveforms of another shape, shorter than an analysis window, or longer than
        T frames.
    """

    def __init__(self, extractor: Any, sample_rate: int) -> None:
        super().__init__()
        if sample_rate < 1:
            raise ValueError(f"sample_rate={sample_rate} Hz must be 1 or more")
        self.sample_rate = sample_rate
        self.own_rate: int = extractor.sampling_rate
        self.n_mels: int = extractor.num_mel_bins
        self.num_frames: int = extractor.max_length
        self.mean: float = extractor.mean if extractor.do_normalize else 0.0
        self.scale: float = 2 * extractor.std if extractor.do_normalize else 1.0
        self.window = round(WINDOW_SECONDS * self.own_rate)  # samples
        self.hop = round(HOP_SECONDS * self.own_rate)  # samples

    @property
    def min_samples(self) -> int:
        """Samples that one frame needs."""
        return (self.window - 1) * self.sample_rate // self.own_rate + 1

    @property
    def max_samples(self) -> int:
        """Samples that there are positions for."""
        longest = self.window + self.num_frames * self.hop - 1
        return longest * self.sample_rate // self.own_rate

    @fwd_default_precision(cast_inputs=torch.float32)
    def forward(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, T, F]"""
        self._check(waveform)
        if self.sample_rate != self.own_rate:
            waveform = torchaudio.functional.resample(
                waveform, self.sample_rate, self.own_rate
            )
        log_mel = torch.stack([self._filter_banks(clip) for clip in waveform])
        missing = self.num_frames - log_mel.shape[1]
        # As published: pad with zeros, then subtract the mean.
        padded = nn.functional.pad(log_mel, (0, 0, 0, missing))
        return (padded - self.mean) / self.scale

    def _filter_banks(self, clip: Tensor) -> Tensor:
        return torchaudio.compliance.kaldi.fbank(
            clip[None],
            sample_frequency=self.own_rate,
            window_type="hanning",
            num_mel_bins=self.n_mels,
        )

    def _check(self, waveform: Tensor) -> None:
        if waveform.ndim != 2 or not len(waveform):
            raise ValueError(
                f"a waveform of shape {tuple(waveform.shape)} was given; an AST takes "
                "[B, N] with one clip or more"
            )
        samples = waveform.shape[1]
        if not self.min_samples <= samples <= self.max_samples:
            raise ValueError(
                f"clips of {samples} samples are {samples / self.sample_rate:.3f} s "
                f"long, and the AST takes {self.min_samples} to {self.max_samples} "
                f"samples at {self.sample_rate} Hz; pad them, or cut them into windows"
            )


class ASTTeacher(nn.Module):
    """An AST and its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    network : transformers.ASTForAudioClassification
    features : ASTFeatures
        The front end that it was trained with.
    labels : LabelTable or None
        The classes to return, in order; None: the network's own.

    Shape
    -----
    waveform : [B, N] at ``sample_rate``
    logits : [B, num_classes]
    embedding : [B, D], the input of the head

    Raises
    ------
    ValueError
        For labels that the network does not know.
    """

    order: Tensor

    def __init__(
        self, network: Any, features: ASTFeatures, labels: LabelTable | None
    ) -> None:
        super().__init__()
        self.network = network
        self.features = features
        names = [network.config.id2label[k] for k in range(network.num_labels)]
        self.labels = labels or LabelTable(names, names)
        self.num_classes = len(self.labels)
        order = range(len(names)) if labels is None else order_of(labels, names)
        # Follows from the names, so it is not saved
        self.register_buffer("order", torch.tensor(order), persistent=False)

    @property
    def sample_rate(self) -> int:
        """Sample rate of its input, Hz."""
        return self.features.sample_rate

    @property
    def min_samples(self) -> int:
        """Samples that the front end needs for one frame."""
        return self.features.min_samples

    def forward(self, waveform: Tensor) -> StudentOutput:
        """[B, N] -> [B, K], [B, D]"""
        features = self.features(waveform)
        embedding = self.network.audio_spectrogram_transformer(features).pooler_output
        logits = self.network.classifier(embedding)
        return StudentOutput(logits[:, self.order], embedding)


def plain(name: str) -> str:
    """Normalises a class name: without case and punctuation, which vary by source.

    Example
    -------
    >>> plain("Dental drill, dentist's drill")
    'dental drill dentist s drill'
    """
    return re.sub(r"[^a-z0-9/]+", " ", name.casefold()).strip()


def order_of(labels: LabelTable, names: list[str]) -> list[int]:
    """Finds the index of each label among a network's classes, by name or identifier.

    Arguments
    ---------
    labels : LabelTable
    names : list of str
        The network's, in its order: names, or identifiers such as /m/09x0r.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If a class is not found, or several have the same name.

    Example
    -------
    >>> order_of(LabelTable(["a", "b"], ["Dog", "Bow-wow"]), ["bow wow", "Dog"])
    [1, 0]
    """
    places = {plain(name): place for place, name in enumerate(names)}
    if len(places) < len(names):
        raise ValueError(
            f"{len(names) - len(places)} of the network's classes share their names "
            "with others, so names cannot identify them; pass labels=None to keep the "
            "network's order"
        )
    classes = [*zip(labels.mids, labels.names, strict=True)]
    found = [places.get(plain(mid), places.get(plain(name))) for mid, name in classes]
    missing = [
        name for place, (_, name) in zip(found, classes, strict=True) if place is None
    ]
    order = [place for place in found if place is not None]
    left = [name for place, name in enumerate(names) if place not in order]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(labels)} classes are not among the network's, "
            f"e.g. {missing[:3]}, and {len(left)} of its {len(names)} are unused, e.g. "
            f"{left[:3]}; pass a table of its classes, or labels=None to keep its own"
        )
    if len(set(order)) < len(order):
        raise ValueError(
            "several labels match the same class of the network; give each its own name"
        )
    if left:
        logger.warning(
            "%d of the network's classes are left out: %s", len(left), some_of(left)
        )
    return order


def load_ast(
    source: str | Path,
    savedir: str | Path | None = None,
    sample_rate: int | None = None,
    labels: LabelTable | str | None = AUDIOSET,
    revision: str | None = None,
) -> ASTTeacher:
    """Loads an AST from the hub or a folder, ready to teach.

    Arguments
    ---------
    source : str or Path
        A name on the hub, such as "MIT/ast-finetuned-audioset-10-10-0.4593", or a
        folder that ``save_pretrained`` wrote. Weights are read from one file of
        safetensors, and only the settings of an AST are read.
    savedir : str or Path or None
        Folder of downloads; None: the hub's own.
    sample_rate : int or None
        Sample rate of its input, Hz; None: that of its training, 16000.
    labels : LabelTable, "audioset" or None
        The classes to return, found by their names; None: the network's own.
    revision : str or None
        Commit, tag or branch on the hub.

    Returns
    -------
    ASTTeacher
        In evaluation mode.

    Raises
    ------
    ImportError
        Without transformers.
    OSError
        If a download fails, or the weights are not in safetensors.
    ValueError
        For another network, illegal settings, weights that do not fill it, or
        classes that do not match ``labels``.

    Example
    -------
    >>> name = "MIT/ast-finetuned-audioset-10-10-0.4593"
    >>> teacher = load_ast(name, sample_rate=32000)  # doctest: +SKIP
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "an AST needs the package transformers; pip install "
            "'efficientat_plugin[teachers]', or pip install 'transformers>=5'"
        ) from error
    if isinstance(labels, str) and labels != AUDIOSET:
        raise ValueError(
            f"labels={labels!r}; give a LabelTable, {AUDIOSET!r}, or None for the "
            "network's own classes"
        )
    network, extractor = read_ast(transformers, source, savedir, revision)
    config = network.config
    features = ASTFeatures(extractor, sample_rate or extractor.sampling_rate)
    if (features.n_mels, features.num_frames) != (
        config.num_mel_bins,
        config.max_length,
    ):
        raise ValueError(
            f"the extractor of {source} returns {features.num_frames} frames of "
            f"{features.n_mels} bins, and its network takes {config.max_length} of "
            f"{config.num_mel_bins}; correct its preprocessor_config.json"
        )
    table = audioset_labels() if isinstance(labels, str) else labels
    return ASTTeacher(network, features, table).eval()
