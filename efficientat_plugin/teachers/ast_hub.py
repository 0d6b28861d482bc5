"""AST: the audio spectrogram transformer of the hub, as a teacher.

``[B, N] -> StudentOutput``; needs ``transformers``, the extra ``teachers``.
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
from efficientat_plugin.teachers.ast_files import ASTFiles

logger = logging.getLogger(__name__)

AUDIOSET = "audioset"  # labels: AudioSet's, in their official order
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010  # of Kaldi's filter banks


class ASTFeatures(nn.Module):
    """Waveforms to what an AST hears: Kaldi's filter banks, padded and normalised.

    Source: Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021,
    section 2.1, and ``transformers.ASTFeatureExtractor``; differs from it in that clips
    that are too long are refused instead of cut, and other sample rates are taken.

    Arguments
    ---------
    extractor : transformers.ASTFeatureExtractor
        Has the settings.
    sample_rate : int
        Of the waveform, Hz; it is resampled to what the settings say.

    Shape
    -----
    waveform : [B, N]
    features : [B, T, F], T as long as the positions are, for every N

    Raises
    ------
    ValueError
        For waveforms of another shape, shorter than a window, or longer than T.
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
        """What a frame needs."""
        return (self.window - 1) * self.sample_rate // self.own_rate + 1

    @property
    def max_samples(self) -> int:
        """What there are positions for."""
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
        # The published padding is of zeros before the mean is taken off.
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
                "[B, N] of one clip or more"
            )
        samples = waveform.shape[1]
        if not self.min_samples <= samples <= self.max_samples:
            raise ValueError(
                f"clips of {samples} samples are {samples / self.sample_rate:.3f} s "
                f"long, and the AST hears {self.min_samples} to {self.max_samples} "
                f"samples at {self.sample_rate} Hz; pad them, or give windows"
            )


class ASTTeacher(nn.Module):
    """An AST and its front end: [B, N] -> StudentOutput.

    Arguments
    ---------
    network : transformers.ASTForAudioClassification
    features : ASTFeatures
        What it was trained on.
    labels : LabelTable or None
        What its classes are to be, and in which order; None: as they come.

    Shape
    -----
    waveform : [B, N] at ``sample_rate``
    logits : [B, num_classes]
    embedding : [B, D], what the head is given

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
        # Follows from the names: not for a checkpoint
        self.register_buffer("order", torch.tensor(order), persistent=False)

    @property
    def sample_rate(self) -> int:
        """Of what it hears, Hz."""
        return self.features.sample_rate

    @property
    def min_samples(self) -> int:
        """What the front end needs for a frame."""
        return self.features.min_samples

    def forward(self, waveform: Tensor) -> StudentOutput:
        """[B, N] -> [B, K], [B, D]"""
        features = self.features(waveform)
        embedding = self.network.audio_spectrogram_transformer(features).pooler_output
        logits = self.network.classifier(embedding)
        return StudentOutput(logits[:, self.order], embedding)


def plain(name: str) -> str:
    """A class name without what differs between copies: case and punctuation.

    Example
    -------
    >>> plain("Dental drill, dentist's drill")
    'dental drill dentist s drill'
    """
    return re.sub(r"[^a-z0-9/]+", " ", name.casefold()).strip()


def order_of(labels: LabelTable, names: list[str]) -> list[int]:
    """Where each of ``labels`` is among a network's classes, by name or identifier.

    Arguments
    ---------
    labels : LabelTable
    names : list of str
        The network's, in its order: names, or identifiers as /m/09x0r.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If a class is not found, or several are called alike.

    Example
    -------
    >>> order_of(LabelTable(["a", "b"], ["Dog", "Bow-wow"]), ["bow wow", "Dog"])
    [1, 0]
    """
    places = {plain(name): place for place, name in enumerate(names)}
    if len(places) < len(names):
        raise ValueError(
            f"{len(names) - len(places)} of the network's classes are called like "
            "others, so that names do not tell them apart; pass labels=None to keep "
            "its own order"
        )
    pairs = [*zip(labels.mids, labels.names, strict=True)]
    found = [places.get(plain(mid), places.get(plain(name))) for mid, name in pairs]
    order = [place for place in found if place is not None]
    left = [name for place, name in enumerate(names) if place not in order]
    if None in found:
        missing = [
            name
            for place, name in zip(found, labels.names, strict=True)
            if place is None
        ]
        raise ValueError(
            f"{len(missing)} of {len(labels)} classes are not among the network's, as "
            f"{missing[:3]}, and {len(left)} of its {len(names)} are left, as "
            f"{left[:3]}; pass a table of what it knows, or labels=None to keep its own"
        )
    if len(set(order)) < len(order):
        raise ValueError(
            "several of the labels are one class of the network's; give each a name"
        )
    if left:
        logger.warning(
            "%d of the network's classes are left out: %s", len(left), some_of(left)
        )
    return order


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "an AST needs the package transformers; pip install "
            "'efficientat_plugin[teachers]', or pip install 'transformers>=5'"
        ) from error
    return transformers


def load_ast(
    source: str | Path,
    savedir: str | Path | None = None,
    sample_rate: int | None = None,
    labels: LabelTable | str | None = AUDIOSET,
    revision: str | None = None,
) -> ASTTeacher:
    """An AST of the hub, or of a folder, ready to teach.

    Arguments
    ---------
    source : str or Path
        A name on the hub, as "MIT/ast-finetuned-audioset-10-10-0.4593", or a folder
        that ``save_pretrained`` wrote; only weights in safetensors are read, and of
        its settings those that an AST has.
    savedir : str or Path or None
        Folder of downloads; None: the hub's own.
    sample_rate : int or None
        Of the waveforms it shall take, Hz; None: what it was trained on, 16000.
    labels : LabelTable, "audioset" or None
        What its classes are to be: they are found by their names. None: as they come.
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
        Where a download fails, or the weights are not in safetensors.
    ValueError
        For another network, settings that none has, weights that do not fill it, or
        classes that are not those of ``labels``.

    Example
    -------
    >>> name = "MIT/ast-finetuned-audioset-10-10-0.4593"
    >>> teacher = load_ast(name, sample_rate=32000)  # doctest: +SKIP
    """
    transformers = _transformers()
    if isinstance(labels, str) and labels != AUDIOSET:
        raise ValueError(
            f"labels={labels!r}; give a LabelTable, {AUDIOSET!r}, or None for as they "
            "come"
        )
    files = ASTFiles(transformers, source, savedir, revision)
    config, extractor = files.config(), files.extractor()
    network = files.network(config)
    features = ASTFeatures(extractor, sample_rate or extractor.sampling_rate)
    if (features.n_mels, features.num_frames) != (
        config.num_mel_bins,
        config.max_length,
    ):
        raise ValueError(
            f"the extractor of {source} gives {features.num_frames} frames of "
            f"{features.n_mels} bins, and its network takes {config.max_length} of "
            f"{config.num_mel_bins}; mend its preprocessor_config.json"
        )
    table = audioset_labels() if isinstance(labels, str) else labels
    return ASTTeacher(network, features, table).eval()
