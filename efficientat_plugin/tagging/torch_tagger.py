"""Tags sound with torch, from model folders, hub ids and weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, LocalStrategy, fetch
from torch import Tensor

from efficientat_plugin.contracts import SHORT_CLIPS, TARGETS
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.pretrained.description import (
    HYPERPARAMS,
    WEIGHTS,
    Described,
    find_model_folder,
    refuse_links_out,
    with_yaml,
)
from efficientat_plugin.pretrained.folder import load_trained_model, trained_model
from efficientat_plugin.pretrained.safe_yaml import IF_TRUSTED
from efficientat_plugin.pretrained.weights import front_end_of
from efficientat_plugin.students.embeddings import LayerEmbedding
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.inference_form import InferenceForm, inference_form
from efficientat_plugin.support.hub import look_up
from efficientat_plugin.support.limits import MAX_WINDOW_SECONDS
from efficientat_plugin.support.yaml_text import Refused
from efficientat_plugin.tagging.base import Model, SoundTagger
from efficientat_plugin.tagging.event_finder import options_of_model
from efficientat_plugin.tagging.overlap import window_log_mels
from efficientat_plugin.tagging.streams import clips_of


class FastEnsemble:
    """An ensemble for inference only, with the same logits.

    Students are in their inference form, and overlapping windows share log-mels.

    Arguments
    ---------
    ensemble : Ensemble
        Its members, each a `WaveformStudent`, are copied: later changes to them have no
        effect.

    Example
    -------
    >>> from efficientat_plugin.students.mn import MN
    >>> fast = FastEnsemble(Ensemble([WaveformStudent(LogMel(), MN(3, width=0.1))]))
    >>> fast(torch.zeros(2, 32000)).shape
    torch.Size([2, 3])
    >>> fast.windows(torch.zeros(48000), window=32000, hop=3200).shape
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
        return self._logits(lambda log_mel: log_mel(waveform))

    def windows(self, sound: Tensor, window: int, hop: int) -> Tensor:
        """Computes the logits of windows every ``hop`` samples: [N] -> [windows, K]."""
        return self._logits(
            lambda log_mel: window_log_mels(log_mel, sound, window, hop)
        )

    def frames(self, waveform: Tensor) -> Tensor:
        """Computes the logits of frames, if all members have them: -> [B, T', K]."""
        logits = [
            student(log_mel(waveform).unsqueeze(1)).strong.transpose(1, 2)
            for log_mel, student in self.members
        ]
        return self.average(torch.stack(logits))

    def _logits(self, log_mels: Callable[[LogMel], Tensor]) -> Tensor:
        """Averages the logits of the members, given the log-mel [B, F, T] of each."""
        logits = [
            student(log_mels(log_mel).unsqueeze(1)).logits
            for log_mel, student in self.members
        ]
        return self.average(torch.stack(logits))


class AudioTagger(SoundTagger, Pretrained):
    """Tags sound of any length, rate and number of channels.

    Create it with ``from_hparams`` (a model folder, or a hub id) or ``from_student``
    (published names or weights files; several form an ensemble, whose logits are
    averaged).

    A sound longer than the student's ``clip_seconds`` is scored in half-overlapping
    windows of that length, and their probabilities are averaged; ``short_clips`` sets
    how shorter sounds are lengthened.

    Its ``modules`` are ``student`` and ``log_mel``, or an ``ensemble``; its
    ``hparams`` are:

    - ``labels``: a ``LabelTable``;
    - ``sample_rate``: Hz;
    - ``clip_seconds``: length of the clips that the student was trained on;
    - ``target``: "multilabel" (sigmoid) or "multiclass" (softmax);
    - ``short_clips``: "repeat", "zero_pad" or "as_is";
    - ``event_options``, if any: a mapping as in `TrainedModel`.

    Arguments
    ---------
    *args, **kwargs
        Arguments of ``speechbrain.inference.interfaces.Pretrained``.

    Raises
    ------
    ValueError
        If one of these is missing or illegal, or they do not match the student.

    Example
    -------
    >>> from efficientat_plugin.features import LogMel
    >>> from efficientat_plugin.students.mn import MN
    >>> parts = {"student": MN(num_classes=2, width=0.1), "log_mel": LogMel()}
    >>> settings = {"labels": LabelTable(["dog", "cat"], ["Dog", "Cat"])}
    >>> settings |= {"sample_rate": 32000, "clip_seconds": 1.0}
    >>> settings |= {"target": "multilabel", "short_clips": "repeat"}
    >>> tagger = AudioTagger(parts, settings, {"device": "cpu"})
    >>> len(tagger.tag(np.zeros(8000, np.float32), sample_rate=8000))
    2
    """

    HPARAMS_NEEDED = ["labels", "sample_rate", "clip_seconds", "target", "short_clips"]
    MODULES_NEEDED = ["student", "log_mel"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_settings(self.hparams)
        absent = [name for name in self.MODULES_NEEDED if name not in self.mods]
        if "ensemble" in self.mods:
            self.ensemble = self.mods.ensemble
        elif absent:
            raise ValueError(
                f"the model has no module {' and no '.join(absent)}; an AudioTagger "
                "needs student and log_mel"
            )
        else:
            member = WaveformStudent(self.mods.log_mel, self.mods.student)
            self.ensemble = Ensemble([member])
        self.labels: LabelTable = self.hparams.labels
        self.sample_rate: int = self.hparams.sample_rate
        self.clip_seconds: float = self.hparams.clip_seconds
        self.short_clips: str = self.hparams.short_clips
        self.target: str = self.hparams.target
        self._check_fit()
        self.min_samples: int = self.ensemble.min_samples
        self.frame_samples = self.ensemble.frame_samples
        self.takes_only_clips = any(
            "t" in getattr(member.student, "se_dims", "")
            for member in self.ensemble.members
        )
        stored = vars(self.hparams).get("event_options", {})
        self.event_options = options_of_model(stored, self.labels)
        self._fast = FastEnsemble(self.ensemble)

    def _check_fit(self) -> None:
        """Raises a ``ValueError`` if settings and student do not match."""
        classes, rate = self.ensemble.num_classes, self.ensemble.sample_rate
        if classes != len(self.labels):
            raise ValueError(
                f"the student has {classes} classes, but there are {len(self.labels)} "
                "labels; give one for each, in their order"
            )
        if rate != self.sample_rate:
            raise ValueError(
                f"sample_rate={self.sample_rate!r}, but log_mel has {rate} Hz; set "
                "both to the rate that the student was trained on"
            )

    @classmethod
    def from_hparams(
        cls,
        source: Any,
        hparams_file: str = "hyperparams.yaml",
        *,
        trust: bool = False,
        **options: Any,
    ) -> "AudioTagger":
        """Loads a tagger from a model folder or the hub, even if untrusted.

        An untrusted YAML is read as plain values and may only name the parts of a
        tagger (see `safe_yaml`); weights are read without unpickling, and Python files
        are ignored. ``overrides`` need ``trust``.

        Arguments
        ---------
        source : str, Path or FetchSource
            A model folder, the run folder that holds one, or a name on the hub.
        hparams_file : str
            Name of its YAML.
        trust : bool
            Whether the YAML may import and call anything it names, as SpeechBrain's
            YAMLs may. It can then execute any code: only for sources that you trust.
        **options
            Arguments of ``speechbrain.inference.interfaces.pretrained_from_hparams``,
            such as ``overrides``, ``savedir`` and ``run_opts``.

        Returns
        -------
        AudioTagger
            None with ``download_only=True``.

        Raises
        ------
        OSError
            If a file is missing or a download fails.
        ValueError
            If the YAML names anything else, or files are corrupt or do not match.
        """
        if isinstance(source, str | Path):
            found = None
            if hparams_file == HYPERPARAMS:  # may be inside a run folder
                found = find_model_folder(source)
            source = source if found is None else str(found)
            if not (os.path.isdir(source) or str(source).startswith("https://")):
                look_up(str(source), hparams_file, options.get("fetch_config"))
        if trust:
            return super().from_hparams(source, hparams_file, **options)
        return cls._from_untrusted(source, hparams_file, **options)

    @classmethod
    def _from_untrusted(
        cls,
        source: Any,
        hparams_file: str,
        overrides: Mapping[str, Any] | str | None = None,
        overrides_must_match: bool = True,
        savedir: str | Path | None = None,
        download_only: bool = False,
        local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
        fetch_config: FetchConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """As SpeechBrain's ``pretrained_from_hparams``, with a safe YAML reader."""
        if overrides:
            raise Refused(
                f"overrides change what the YAML of {source} builds; {IF_TRUSTED}"
            )
        place = str(getattr(source, "path", source))
        if os.path.isdir(place):
            refuse_links_out(Path(place), [hparams_file, WEIGHTS])
        how = {
            "local_strategy": local_strategy,
            "fetch_config": fetch_config or FetchConfig(),
        }
        yaml = _existing(fetch(hparams_file, source, savedir, **how))
        known = with_yaml(Described(place, yaml, yaml=yaml), only_known_parts=True)
        known = known._replace(path=_existing(fetch(WEIGHTS, source, savedir, **how)))
        if download_only:
            return None
        model = trained_model(known)
        with known.naming_errors():
            log_mel = LogMel(**model.student.front_end)
            settings = _settings_of(model, log_mel.sample_rate) | {"savedir": savedir}
            modules = {"log_mel": log_mel, "student": model.student}
            return cls(modules, settings, **kwargs)

    @classmethod
    def from_student(
        cls,
        source: str | Path | Sequence[str | Path],
        labels: LabelTable | None = None,
        savedir: str | Path | None = None,
        clip_seconds: float | None = None,
        target: str | None = None,
        short_clips: str | None = None,
        run_opts: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> "AudioTagger":
        """Loads a tagger from published weights, or from weights files.

        Settings that the source contains need not be given. Nothing is guessed: for a
        file without a description (see `described`), the front end, clip length and
        classes must be given.

        Arguments
        ---------
        source : str, Path or a sequence of them
            Names, model folders or weights files; several form an ensemble.
        labels : LabelTable or None
            The classes; None: from the source, or those of AudioSet for published
            weights of 527 classes.
        savedir : str, Path or None
            Folder for downloads.
        clip_seconds : float or None
            Length of the clips that the student was trained on; None: from the
            source, 10 for most published weights.
        target : str or None
            "multilabel" or "multiclass"; None: from the source, else "multilabel".
        short_clips : str or None
            "repeat", "zero_pad" or "as_is"; None: from the source, else "repeat".
        run_opts : dict or None
            As in SpeechBrain, such as ``{"device": "cuda"}``; None: a GPU if available.
        **overrides
            Arguments of ``load_network`` for all members, such as ``hop_length=640``.

        Returns
        -------
        AudioTagger

        Raises
        ------
        OSError, ValueError
            As ``load_trained_model``, and if members have different settings.

        Example
        -------
        >>> tagger = AudioTagger.from_student("mn10_as")  # doctest: +SKIP
        >>> tagger.tag("metro.wav")[0].name  # doctest: +SKIP
        'Train'
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        models = [
            load_trained_model(
                name, labels, savedir, clip_seconds, target, short_clips, **overrides
            )
            for name in sources
        ]
        students = [model.student for model in models]
        members = [WaveformStudent(LogMel(**each.front_end), each) for each in students]
        ensemble = Ensemble(members).eval()
        first = models[0]
        if len(models) > 1:  # thresholds of one do not suit the average
            first = first._replace(event_options={})
        for name, other in zip(sources, models, strict=True):
            _refuse_unlike(f"{name} and {sources[0]}", other, first)
        settings = _settings_of(first, ensemble.sample_rate)
        return cls({"ensemble": ensemble}, settings, run_opts)

    def fingerprint(self) -> dict[str, Any]:
        """Returns everything besides the sound that sets probabilities.

        Returns
        -------
        dict
            Serialisable as JSON; weights are given by their digest.
        """
        return {
            "model_sha256": self.ensemble.sha256(),
            "front_ends": [
                front_end_of(each.log_mel) for each in self.ensemble.members
            ],
            "clip_seconds": self.clip_seconds,
            "short_clips": self.short_clips,
        }

    def forward(self, waveform: Tensor) -> Tensor:
        """Computes the probabilities of clips of one length: [B, N] -> [B, K]."""
        return self._probable(self._fast(waveform))

    def score(self, waveforms: NDArray | Tensor) -> NDArray[np.float32]:
        """Calls ``forward`` on arrays or tensors: [B, N] -> [B, K]."""
        return self._computed(self, clips_of(waveforms))

    def _score_overlapping(
        self, sound: NDArray[np.float32], window: int, hop: int
    ) -> NDArray[np.float32]:
        def probabilities(sound: Tensor) -> Tensor:
            return self._probable(self._fast.windows(sound, window, hop))

        return self._computed(probabilities, sound)

    def _score_frames(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._computed(
            lambda waveform: self._probable(self._fast.frames(waveform)), waveforms
        )

    def _log_mels(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        log_mel: Any = self.ensemble.members[0].log_mel
        return self._computed(log_mel, waveforms)

    def _embeddings(self, **options: Any) -> Model:
        members = self.ensemble.members
        layers = [
            LayerEmbedding(member.student, **options).eval() for member in members
        ]

        def embedding(waveform: Tensor) -> Tensor:  # [B, N] -> [B, D]
            parts = [
                layer(member.log_mel(waveform).unsqueeze(1))
                for layer, member in zip(layers, members, strict=True)
            ]
            return torch.cat(parts, dim=1)

        return partial(self._computed, embedding)

    def _probable(self, logits: Tensor) -> Tensor:
        if self.hparams.target == "multilabel":
            return logits.sigmoid()
        return logits.softmax(dim=-1)

    def _computed(
        self, model: Callable[[Tensor], Tensor], waveforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        with torch.inference_mode(), self.inference_ctx:
            output = model(torch.from_numpy(waveforms).to(self.device))
            return output.float().cpu().numpy()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; copy the folder again")
    return path


def _settings_of(model: TrainedModel, sample_rate: int) -> dict[str, Any]:
    """Returns the ``hparams`` of a tagger."""
    return {
        "labels": model.labels,
        "sample_rate": sample_rate,
        "clip_seconds": model.clip_seconds,
        "target": model.target,
        "short_clips": model.short_clips,
        "event_options": model.event_options,
        "audio_normalizer": AudioNormalizer(sample_rate),
    }


def _check_settings(settings: Any) -> None:
    if settings.target not in TARGETS:
        raise ValueError(f"target={settings.target!r}; it is one of {TARGETS}")
    if settings.short_clips not in SHORT_CLIPS:
        raise ValueError(
            f"short_clips={settings.short_clips!r}; it is one of {SHORT_CLIPS}"
        )
    if not 0 < settings.clip_seconds <= MAX_WINDOW_SECONDS:
        raise ValueError(
            f"clip_seconds={settings.clip_seconds} must be above 0, and at most "
            f"{MAX_WINDOW_SECONDS}"
        )
    if not isinstance(settings.labels, LabelTable):
        raise ValueError(
            f"labels are a {type(settings.labels).__name__}; give a LabelTable"
        )


def _refuse_unlike(names: str, model: TrainedModel, first: TrainedModel) -> None:
    """Raises a ``ValueError`` if ensemble members differ in input or output."""
    differing = [
        name
        for name in ("target", "clip_seconds", "short_clips")
        if getattr(model, name) != getattr(first, name)
    ]
    if model.labels.mids != first.labels.mids:
        differing.append("labels")
    if differing:
        raise ValueError(
            f"{names} differ in {', '.join(differing)}, which must be equal in an "
            "ensemble; give other models, or set it for all"
        )
