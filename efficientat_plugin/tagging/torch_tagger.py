"""The tagger that computes with torch: of model folders, hub ids and weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, LocalStrategy, fetch
from torch import Tensor

from efficientat_plugin.contracts import SHORT_CLIPS, TARGETS, ScanWindow
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.card import TrainedModel
from efficientat_plugin.pretrained.described import (
    HYPERPARAMS,
    find_model_folder,
    refuse_links_out,
)
from efficientat_plugin.pretrained.folder import load_trained_model
from efficientat_plugin.pretrained.safe_yaml import load_model_yaml, told_of
from efficientat_plugin.pretrained.weights import front_end_of
from efficientat_plugin.students.embeddings import LayerEmbedding
from efficientat_plugin.students.ensemble import Ensemble, HeardStudent
from efficientat_plugin.support.hub import look_up
from efficientat_plugin.support.limits import MAX_WINDOW_SECONDS
from efficientat_plugin.tagging.base import SoundTagger
from efficientat_plugin.tagging.overlap import Hearing
from efficientat_plugin.tagging.streams import Sound, clips_of
from efficientat_plugin.tagging.windows import Window, runs_of


class AudioTagger(SoundTagger, Pretrained):
    """Tags sound of any length, rate and number of channels.

    Made by ``from_hparams`` (a folder that fine-tuning left, or a hub id) or by
    ``from_student`` (published names or files of weights; several are an ensemble,
    whose logits are averaged).

    A sound longer than the student's ``clip_seconds`` is heard in windows of that
    length, half overlapping, whose probabilities are averaged; what is done with
    shorter ones, ``short_clips`` says.

    Its ``modules`` are ``student`` and ``log_mel``, or an ``ensemble``; its
    ``hparams``:

    - ``labels``: a ``LabelTable``;
    - ``sample_rate``: Hz;
    - ``clip_seconds``: length of the clips that the student was trained on;
    - ``target``: "multilabel" (sigmoid) or "multiclass" (softmax);
    - ``short_clips``: "repeat", "zero_pad" or "as_is".

    Arguments
    ---------
    *args, **kwargs
        Of ``speechbrain.inference.interfaces.Pretrained``.

    Raises
    ------
    ValueError
        For a model folder that lacks one of these.

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
            heard = HeardStudent(self.mods.log_mel, self.mods.student)
            self.ensemble = Ensemble([heard])
        self.labels: LabelTable = self.hparams.labels
        self.sample_rate: int = self.hparams.sample_rate
        self.clip_seconds: float = self.hparams.clip_seconds
        self.short_clips: str = self.hparams.short_clips
        self.target: str = self.hparams.target
        self._check_fit()
        self.min_samples: int = self.ensemble.min_samples
        self.hearing = Hearing(self.ensemble)

    def _check_fit(self) -> None:
        """Refuses settings of another model."""
        classes, rate = self.ensemble.num_classes, self.ensemble.sample_rate
        if classes != len(self.labels):
            raise ValueError(
                f"the student has {classes} classes, but there are {len(self.labels)} "
                "labels; give one for each, in their order"
            )
        if rate != self.sample_rate:
            raise ValueError(
                f"sample_rate={self.sample_rate!r}, but the log_mel hears {rate} Hz; "
                "set both to what the student was trained on"
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
        """A tagger of a model folder, or of a name on the hub, whoever made it.

        Of a stranger's YAML nothing is run but what builds the parts of a tagger (see
        `model_yaml`), weights are read without unpickling, and no file of Python is
        looked at.

        Arguments
        ---------
        source : str, Path or FetchSource
            Model folder, that of the run that left one, or name on the hub.
        hparams_file : str
            Name of its YAML.
        trust : bool
            Whether the YAML may import and call whatever it names, as all YAMLs of
            SpeechBrain may. It is a program then: only from whom you would take one.
        **options
            Of ``speechbrain.inference.interfaces.pretrained_from_hparams``:
            ``overrides``, ``savedir``, ``run_opts`` and the like.

        Returns
        -------
        AudioTagger
            None with ``download_only=True``.

        Raises
        ------
        OSError
            Where a file is missing, or a download fails.
        ValueError
            For a YAML that names anything else, a folder whose files are damaged or
            do not fit each other.
        """
        if isinstance(source, str | Path):
            found = None
            if hparams_file == HYPERPARAMS:  # of a run's folder, what it left there
                found = find_model_folder(source)
            source = source if found is None else str(found)
            if not (os.path.isdir(source) or str(source).startswith("https://")):
                look_up(str(source), hparams_file, options.get("fetch_config"))
        if trust:
            return super().from_hparams(source, hparams_file, **options)
        return cls._from_stranger(source, hparams_file, **options)

    @classmethod
    def _from_stranger(
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
        """SpeechBrain's ``pretrained_from_hparams``, with another reader of YAML."""
        how = {
            "local_strategy": local_strategy,
            "fetch_config": fetch_config or FetchConfig(),
        }
        place = str(getattr(source, "path", source))
        is_local = os.path.isdir(place)
        if is_local:
            refuse_links_out(Path(place), [hparams_file])
        path = fetch(hparams_file, source, savedir, **how)
        hparams = load_model_yaml(path, overrides, overrides_must_match)
        hparams["savedir"] = savedir
        pretrainer = hparams["pretrainer"]
        if is_local:
            weights = [f"{name}.ckpt" for name in pretrainer.loadables]
            refuse_links_out(Path(place), weights)
        pretrainer.set_collect_in(savedir)
        pretrainer.collect_files(source, **how)
        if download_only:
            return None
        with told_of(path):
            pretrainer.load_collected()
            return cls(modules=hparams.get("modules"), hparams=hparams, **kwargs)

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
        """A tagger of published weights, or of files of one's own.

        What a source tells need not be given, and nothing is guessed: of a file that
        nothing describes (see `described`), front end, length of clips and classes
        must be stated.

        Arguments
        ---------
        source : str, Path or a sequence of them
            Names, model folders or files of weights; several are an ensemble.
        labels : LabelTable or None
            What the classes are; None: as the source tells, those of AudioSet for
            published weights of 527 classes.
        savedir : str, Path or None
            Folder of downloads.
        clip_seconds : float or None
            Length of the clips that the student was trained on; None: as the source
            tells, 10 for most published weights.
        target : str or None
            "multilabel" or "multiclass"; None: as the source tells, else
            "multilabel".
        short_clips : str or None
            "repeat", "zero_pad" or "as_is"; None: as the source tells, else "repeat".
        run_opts : dict or None
            SpeechBrain's, as ``{"device": "cuda"}``; None: a GPU where there is one.
        **overrides
            Of ``load_network``, for all of them, as ``hop_length=640``.

        Returns
        -------
        AudioTagger

        Raises
        ------
        OSError, ValueError
            As ``load_trained_model``, and for members that do not agree.

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
        heard = [HeardStudent(LogMel(**each.front_end), each) for each in students]
        ensemble = Ensemble(heard).eval()
        first = models[0]
        for name, other in zip(sources, models, strict=True):
            _refuse_unlike(f"{name} and {sources[0]}", other, first)
        settings = {
            "labels": first.labels,
            "sample_rate": ensemble.sample_rate,
            "clip_seconds": first.clip_seconds,
            "target": first.target,
            "short_clips": first.short_clips,
        }
        return cls({"ensemble": ensemble}, settings, run_opts)

    def embed(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """[D]: what a sound is like, whatever its classes; for search and probes.

        Arguments
        ---------
        sound : str, Path, bytes, bytearray, BinaryIO, dict, NDArray or Tensor
            As ``tag`` takes it; longer ones are heard in windows and averaged.
        sample_rate : int or None
            Of samples, Hz.
        batch_size : int or None
            Windows to hear at once; None: 16.
        **options
            Of ``LayerEmbedding``: ``sources`` and ``pooling``.

        Returns
        -------
        NDArray
            Members of an ensemble follow each other.
        """
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

        model = partial(self._computed, embedding)
        averages = self._averages(model, [sound], sample_rate, batch_size)
        return averages.means(0)[0]

    def log_mel_of(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The log-mel of some sound, of an ensemble the first member's: [N] -> [F, T]

        Example
        -------
        >>> tagger = AudioTagger.from_student("mn10_as")  # doctest: +SKIP
        >>> tagger.log_mel_of(np.zeros(32000, np.float32)).shape  # doctest: +SKIP
        (128, 100)
        """
        log_mel: Callable[[Tensor], Tensor] = self.ensemble.members[0].log_mel
        samples = lengthened(samples, self.min_samples, "zero_pad")
        return self._computed(log_mel, samples[None])[0]

    def fingerprint(self) -> dict[str, Any]:
        """All that probabilities depend on besides the sound, weights by their digest.

        Returns
        -------
        dict
            What JSON can hold.
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
        """Probabilities of clips of one length: [B, N] -> [B, K]"""
        return self._probable(self.hearing(waveform))

    def score(self, waveforms: NDArray | Tensor) -> NDArray[np.float32]:
        """``forward``, of arrays and tensors: [B, N] -> [B, K]"""
        return self._computed(self, clips_of(waveforms))

    def _probable(self, logits: Tensor) -> Tensor:
        if self.hparams.target == "multilabel":
            return logits.sigmoid()
        return logits.softmax(dim=-1)

    def _hear(self, windows: Sequence[Window], num_samples: int) -> list[ScanWindow]:
        """What windows sound like; those shorter than ``num_samples`` as ``tag``."""
        rows: list[NDArray[np.float32]] = []
        for run in runs_of(windows):
            if len(run) == 1:
                full = self._as_long_as_needed(run[0], num_samples)
                rows += list(self.score(full.samples[None]))
            else:
                rows += self._hear_run(run)
        return self._scanned(windows, rows)

    def _hear_run(self, run: Sequence[Window]) -> list[NDArray[np.float32]]:
        """Rows of windows of one length that overlap alike, as one piece of sound."""
        hop = run[1].start - run[0].start
        added = [window.samples[-hop:] for window in run[1:]]
        sound = torch.from_numpy(np.concatenate([run[0].samples, *added]))
        with torch.inference_mode(), self.inference_ctx:
            logits = self.hearing.windows(
                sound.to(self.device), len(run[0].samples), hop
            )
            return list(self._probable(logits).float().cpu().numpy())

    def _computed(
        self, model: Callable[[Tensor], Tensor], waveforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        with torch.inference_mode(), self.inference_ctx:
            output = model(torch.from_numpy(waveforms).to(self.device))
            return output.float().cpu().numpy()


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
    """Members of an ensemble hear and say the same."""
    differing = [
        name
        for name in ("target", "clip_seconds", "short_clips")
        if getattr(model, name) != getattr(first, name)
    ]
    if model.labels.mids != first.labels.mids:
        differing.append("labels")
    if differing:
        raise ValueError(
            f"{names} differ in {', '.join(differing)}; an ensemble is of models that "
            "agree in them, so name others, or state them for all"
        )
