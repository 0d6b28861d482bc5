"""Tagging of files, arrays, long recordings and streams."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.inference.interfaces import Pretrained
from torch import Tensor

from efficientat_plugin.data.decoding import Resampler
from efficientat_plugin.data.targets import LabelTable, audioset_labels
from efficientat_plugin.embeddings import LayerEmbedding
from efficientat_plugin.hearing import Hearing
from efficientat_plugin.losses import TARGETS
from efficientat_plugin.streams import (
    Averages,
    Sound,
    TagStream,
    batches,
    blocks_of,
    cut,
)
from efficientat_plugin.students.ensemble import Ensemble, HeardStudent, load_ensemble
from efficientat_plugin.tags import ScanWindow, Tag, likeliest
from efficientat_plugin.windows import (
    SHORT_CLIPS,
    Window,
    WindowCutter,
    lengthened,
    runs_of,
)


class AudioTagger(Pretrained):
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
        self.clip_samples = round(self.hparams.clip_seconds * self.sample_rate)
        self.hearing = Hearing(self.ensemble)

    @classmethod
    def from_student(
        cls,
        source: str | Path | Sequence[str | Path],
        labels: LabelTable | None = None,
        savedir: str | Path | None = None,
        clip_seconds: float = 10.0,
        target: str = "multilabel",
        short_clips: str = "repeat",
        run_opts: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> "AudioTagger":
        """A tagger of published weights, or of files of one's own.

        Arguments
        ---------
        source : str, Path or a sequence of them
            As ``load_student`` takes them; several are an ensemble.
        labels : LabelTable or None
            What the classes are; None: those of AudioSet.
        savedir : str, Path or None
            Folder of downloads.
        clip_seconds : float
            Length of the clips that the student was trained on.
        target : str
            "multilabel" or "multiclass".
        short_clips : str
            "repeat", "zero_pad" or "as_is".
        run_opts : dict or None
            SpeechBrain's, as ``{"device": "cuda"}``; None: a GPU where there is one.
        **overrides
            Of ``load_student``, as ``hop_length=640``.

        Returns
        -------
        AudioTagger

        Raises
        ------
        OSError, ValueError
            As ``load_student``; and for labels that are not as many as the classes.

        Example
        -------
        >>> tagger = AudioTagger.from_student("mn10_as")  # doctest: +SKIP
        >>> tagger.tag("metro.wav")[0].name  # doctest: +SKIP
        'Train'
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        ensemble = load_ensemble(sources, savedir, **overrides)
        labels = audioset_labels() if labels is None else labels
        num_classes = ensemble.num_classes
        if num_classes != len(labels):
            raise ValueError(
                f"{source} has {num_classes} classes, but there are {len(labels)} "
                "labels; pass labels=LabelTable(...) with its own"
            )
        settings = {
            "labels": labels,
            "sample_rate": ensemble.sample_rate,
            "clip_seconds": clip_seconds,
            "target": target,
            "short_clips": short_clips,
        }
        return cls({"ensemble": ensemble}, settings, run_opts)

    # --- Clips ------------------------------------------------------------------

    def tag(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        top_k: int | None = 10,
        threshold: float = 0.0,
    ) -> list[Tag]:
        """The likeliest classes of a sound, the likeliest first.

        Arguments
        ---------
        sound : str, Path, bytes, NDArray or Tensor
            A file, the bytes of one, or samples: [N], [N, channels] or [channels, N],
            floating point in [-1, 1] or integers at full scale.
        sample_rate : int or None
            Of samples, Hz; files tell theirs.
        top_k : int or None
            Classes to give, at most; None: all.
        threshold : float
            Only those at least as probable.

        Returns
        -------
        list of Tag

        Raises
        ------
        ValueError
            For what is no sound; ``UnreadableClip`` where a file cannot be decoded.
        """
        probabilities = self.probabilities([sound], sample_rate)[0]
        return likeliest(self.labels, probabilities, top_k, threshold)

    def tag_batch(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None = None,
        top_k: int | None = 10,
        threshold: float = 0.0,
        batch_size: int = 16,
    ) -> list[list[Tag]]:
        """``tag`` of each sound; their lengths may differ, and no padding is heard.

        One that cannot be read refuses the call, as in ``tag``.
        """
        probabilities = self.probabilities(sounds, sample_rate, batch_size)
        return [likeliest(self.labels, row, top_k, threshold) for row in probabilities]

    def probabilities(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None = None,
        batch_size: int = 16,
    ) -> NDArray[np.float32]:
        """[sounds, K]: how probable each class is in each sound."""
        averages = self._averages(self, sounds, sample_rate, batch_size)
        return averages.means(len(self.labels))

    def embed(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> NDArray[np.float32]:
        """[D]: what a sound is like, whatever its classes; for search and probes.

        Arguments
        ---------
        sound : str, Path, bytes, NDArray or Tensor
            As ``tag`` takes it; longer ones are heard in windows and averaged.
        sample_rate : int or None
            Of samples, Hz.
        batch_size : int
            Windows to hear at once.
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

        averages = self._averages(embedding, [sound], sample_rate, batch_size)
        return averages.means(0)[0]

    # --- Long sound -------------------------------------------------------------

    def scan(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        batch_size: int = 16,
    ) -> Iterator[ScanWindow]:
        """Window after window of a long sound, read as it goes, in constant memory.

        Windows begin every ``hop_seconds``. Where the last of them does not reach the
        end, one more ends with the sound; one that is shorter than a window is heard
        as ``tag`` does.

        Arguments
        ---------
        sound : str, Path, bytes, NDArray or Tensor
            As ``tag`` takes it.
        sample_rate : int or None
            Of samples, Hz.
        window_seconds : float or None
            None: the length of the clips that the student was trained on.
        hop_seconds : float or None
            None: half a window.
        batch_size : int
            Windows to hear at once.

        Yields
        ------
        ScanWindow

        Raises
        ------
        ValueError
            For windows too short for a frame, and hops that would leave sound out.
        """
        cutter = self._cutter(window_seconds, hop_seconds)
        windows = cut(blocks_of(sound, sample_rate, self.sample_rate), cutter)
        for batch in batches(windows, batch_size):
            yield from self._hear(batch, cutter.window)

    def stream(
        self,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
    ) -> TagStream:
        """Sound that arrives in chunks: a microphone, a socket.

        Arguments
        ---------
        sample_rate : int or None
            Of the chunks, Hz; None: the student's own.
        window_seconds : float or None
            As ``scan``.
        hop_seconds : float or None
            As ``scan``.

        Returns
        -------
        TagStream
            ``feed(chunk)`` gives the windows that are complete, ``finish()`` the rest;
            all of them are what ``scan`` gives of the whole.

        Raises
        ------
        ValueError
            As ``scan``.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        resampler = Resampler(rate, self.sample_rate)
        cutter = self._cutter(window_seconds, hop_seconds)
        return TagStream(resampler, cutter, self._hear)

    # --- What they share --------------------------------------------------------

    def forward(self, waveform: Tensor) -> Tensor:
        """Probabilities of clips of one length: [B, N] -> [B, K]"""
        return self._probable(self.hearing(waveform))

    def _probable(self, logits: Tensor) -> Tensor:
        if self.hparams.target == "multilabel":
            return logits.sigmoid()
        return logits.softmax(dim=-1)

    def _averages(
        self,
        model: Callable[[Tensor], Tensor],
        sounds: Iterable[Sound],
        sample_rate: int | None,
        batch_size: int,
    ) -> Averages:
        """What ``model`` makes of sounds, averaged over the windows of each."""
        averages = Averages()
        for batch in batches(self._windows(sounds, sample_rate), batch_size):
            rows = self._rows(model, [window.samples for _, window in batch])
            for (number, _), row in zip(batch, rows, strict=True):
                averages.add(number, row)
        return averages

    def _hear(self, windows: Sequence[Window], num_samples: int) -> list[ScanWindow]:
        """What windows sound like; those shorter than ``num_samples`` as ``tag``."""
        rows: list[NDArray[np.float32]] = []
        for run in runs_of(windows):
            if len(run) == 1:
                full = self._as_long_as_needed(run[0], num_samples)
                rows += self._rows(self, [full.samples])
            else:
                rows += self._hear_run(run)
        rate = self.sample_rate
        return [
            ScanWindow(start / rate, (start + len(samples)) / rate, row)
            for (start, samples), row in zip(windows, rows, strict=True)
        ]

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

    def _rows(
        self,
        model: Callable[[Tensor], Tensor],
        waveforms: Sequence[NDArray[np.float32]],
    ) -> list[NDArray[np.float32]]:
        """A row each of what ``model`` makes of them; equally long ones go together."""
        by_length: dict[int, list[int]] = {}
        for number, waveform in enumerate(waveforms):
            by_length.setdefault(len(waveform), []).append(number)
        rows: dict[int, NDArray[np.float32]] = {}
        with torch.inference_mode(), self.inference_ctx:
            for numbers in by_length.values():
                stacked = np.stack([waveforms[number] for number in numbers])
                output = model(torch.from_numpy(stacked).to(self.device))
                rows |= zip(numbers, output.float().cpu().numpy(), strict=True)
        return [rows[number] for number in range(len(waveforms))]

    def _windows(
        self, sounds: Iterable[Sound], sample_rate: int | None
    ) -> Iterator[tuple[int, Window]]:
        """Windows of clip length, half overlapping, with the number of their sound."""
        hop = max(1, self.clip_samples // 2)
        for number, sound in enumerate(sounds):
            cutter = WindowCutter(self.clip_samples, hop)
            for window in cut(blocks_of(sound, sample_rate, self.sample_rate), cutter):
                yield number, self._as_long_as_needed(window, self.clip_samples)

    def _cutter(
        self, window_seconds: float | None, hop_seconds: float | None
    ) -> WindowCutter:
        if window_seconds is None:
            window_seconds = self.hparams.clip_seconds
        if hop_seconds is None:
            hop_seconds = window_seconds / 2
        window = round(window_seconds * self.sample_rate)
        if window < self.ensemble.min_samples:
            raise ValueError(
                f"window_seconds={window_seconds} is too short to hear anything; give "
                f"at least {self.ensemble.min_samples / self.sample_rate:.3f}"
            )
        return WindowCutter(window, round(hop_seconds * self.sample_rate))

    def _as_long_as_needed(self, window: Window, num_samples: int) -> Window:
        samples = lengthened(window.samples, num_samples, self.hparams.short_clips)
        # "as_is" can leave it too short for one frame.
        samples = lengthened(samples, self.ensemble.min_samples, "zero_pad")
        return window._replace(samples=samples)


def _check_settings(settings: Any) -> None:
    if settings.target not in TARGETS:
        raise ValueError(f"target={settings.target!r}; it is one of {TARGETS}")
    if settings.short_clips not in SHORT_CLIPS:
        raise ValueError(
            f"short_clips={settings.short_clips!r}; it is one of {SHORT_CLIPS}"
        )
    if not settings.clip_seconds > 0:
        raise ValueError(f"clip_seconds={settings.clip_seconds} must be above 0")
