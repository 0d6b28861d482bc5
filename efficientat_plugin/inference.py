"""Tagging of files, arrays, long recordings and streams."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.inference.interfaces import Pretrained
from torch import Tensor

from efficientat_plugin.data.decoding import (
    Resampler,
    UnreadableClip,
    decode_blocks,
    mono_samples,
)
from efficientat_plugin.data.targets import LabelTable, audioset_labels
from efficientat_plugin.embeddings import LayerEmbedding
from efficientat_plugin.losses import TARGETS
from efficientat_plugin.students.ensemble import Ensemble, HeardStudent, load_ensemble
from efficientat_plugin.windows import SHORT_CLIPS, Window, WindowCutter, lengthened

TOO_SHORT = "nothing is left of it at the rate of the student: it is too short"
Sound = str | Path | bytes | NDArray | Tensor


class Tag(NamedTuple):
    """A class that a sound may have."""

    name: str
    mid: str  # AudioSet's id of it; of other classes the name again
    probability: float


class ScanWindow(NamedTuple):
    """What a window of a long sound sounds like."""

    start_seconds: float
    end_seconds: float
    probabilities: NDArray[np.float32]  # [K]


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
        return self._tags(self.probabilities([sound], sample_rate)[0], top_k, threshold)

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
        return [self._tags(row, top_k, threshold) for row in probabilities]

    def probabilities(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None = None,
        batch_size: int = 16,
    ) -> NDArray[np.float32]:
        """[sounds, K]: how probable each class is in each sound."""
        total = _Averages()
        hop = max(1, self.clip_samples // 2)
        for batch in _batches(self._windows(sounds, sample_rate, hop), batch_size):
            scores = self._scores([window.samples for _, window in batch])
            for (number, _), row in zip(batch, scores, strict=True):
                total.add(number, row)
        return total.means(len(self.labels))

    def embed(
        self, sound: Sound, sample_rate: int | None = None, **options: Any
    ) -> NDArray[np.float32]:
        """[D]: what a sound is like, whatever its classes; for search and probes.

        Arguments
        ---------
        sound : str, Path, bytes, NDArray or Tensor
            As ``tag`` takes it; longer ones are heard in windows and averaged.
        sample_rate : int or None
            Of samples, Hz.
        **options
            Of ``LayerEmbedding``: ``sources`` and ``pooling``.

        Returns
        -------
        NDArray
            Members of an ensemble follow each other.
        """
        layers = [
            LayerEmbedding(member.student, **options).eval()
            for member in self.ensemble.members
        ]
        total = _Averages()
        hop = max(1, self.clip_samples // 2)
        with torch.inference_mode():
            for _, window in self._windows([sound], sample_rate, hop):
                waveform = torch.from_numpy(window.samples[None]).to(self.device)
                parts = [
                    layer(member.log_mel(waveform).unsqueeze(1))[0]
                    for layer, member in zip(layers, self.ensemble.members, strict=True)
                ]
                total.add(0, torch.cat(parts).cpu().numpy())
        return total.means(0)[0]

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
        """
        stream = self.stream(None, window_seconds, hop_seconds)
        windows = stream.cut(self._blocks(sound, sample_rate))
        for batch in _batches(windows, batch_size):
            yield from stream.hear(batch)

    def stream(
        self,
        sample_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
    ) -> "TagStream":
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
        """
        return TagStream(self, sample_rate, window_seconds, hop_seconds)

    # --- What they share --------------------------------------------------------

    def forward(self, waveform: Tensor) -> Tensor:
        """Probabilities of clips of one length: [B, N] -> [B, K]"""
        logits = self.ensemble(waveform).logits
        if self.hparams.target == "multilabel":
            return logits.sigmoid()
        return logits.softmax(dim=-1)

    def _scores(self, waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """[B, K], hearing together only what is equally long."""
        scores = np.zeros((len(waveforms), len(self.labels)), np.float32)
        by_length: dict[int, list[int]] = {}
        for row, waveform in enumerate(waveforms):
            by_length.setdefault(len(waveform), []).append(row)
        with torch.inference_mode(), self.inference_ctx:
            for rows in by_length.values():
                batch = torch.from_numpy(np.stack([waveforms[row] for row in rows]))
                scores[rows] = self(batch.to(self.device)).float().cpu().numpy()
        return scores

    def _windows(
        self, sounds: Iterable[Sound], sample_rate: int | None, hop: int
    ) -> Iterator[tuple[int, Window]]:
        """Windows of clip length, with the number of the sound they are of."""
        for number, sound in enumerate(sounds):
            cutter = WindowCutter(self.clip_samples, hop)
            for block in self._blocks(sound, sample_rate):
                for window in cutter.feed(block):
                    yield number, window
            if not cutter.num_samples:
                raise UnreadableClip(TOO_SHORT)
            for window in cutter.finish():
                yield number, self._as_long_as_needed(window, self.clip_samples)

    def _as_long_as_needed(self, window: Window, num_samples: int) -> Window:
        samples = lengthened(window.samples, num_samples, self.hparams.short_clips)
        if (
            len(samples) < self.ensemble.min_samples
        ):  # "as_is", and too short for one frame
            samples = lengthened(samples, self.ensemble.min_samples, "zero_pad")
        return window._replace(samples=samples)

    def _blocks(
        self, sound: Sound, sample_rate: int | None
    ) -> Iterator[NDArray[np.float32]]:
        """Any sound as mono blocks at the student's rate."""
        if isinstance(sound, str | Path | bytes):
            yield from decode_blocks(sound, self.sample_rate)
            return
        if sample_rate is None:
            raise ValueError(
                "samples do not tell their rate; pass sample_rate in Hz with them"
            )
        samples = mono_samples(sound)
        if not len(samples):
            raise UnreadableClip("it has no samples")
        resampler = Resampler(sample_rate, self.sample_rate)
        yield resampler.feed(samples)
        yield resampler.finish()

    def _tags(
        self, probabilities: NDArray[np.float32], top_k: int | None, threshold: float
    ) -> list[Tag]:
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [
            Tag(self.labels.names[k], self.labels.mids[k], float(probabilities[k]))
            for k in order
            if probabilities[k] >= threshold
        ]


class TagStream:
    """Sound that arrives in chunks; made by ``AudioTagger.stream``.

    Arguments
    ---------
    tagger : AudioTagger
        Hears the windows.
    sample_rate : int or None
        Of the chunks, Hz; None: the tagger's.
    window_seconds : float or None
        None: the tagger's ``clip_seconds``.
    hop_seconds : float or None
        None: half a window.

    Raises
    ------
    ValueError
        For windows too short for a frame, and hops that would leave sound out.
    """

    def __init__(
        self,
        tagger: AudioTagger,
        sample_rate: int | None,
        window_seconds: float | None,
        hop_seconds: float | None,
    ) -> None:
        if window_seconds is None:
            window_seconds = tagger.hparams.clip_seconds
        if hop_seconds is None:
            hop_seconds = window_seconds / 2
        window = round(window_seconds * tagger.sample_rate)
        if window < tagger.ensemble.min_samples:
            raise ValueError(
                f"window_seconds={window_seconds} is too short to hear anything; give "
                f"at least {tagger.ensemble.min_samples / tagger.sample_rate:.3f}"
            )
        self._tagger = tagger
        self._cutter = WindowCutter(window, round(hop_seconds * tagger.sample_rate))
        rate = tagger.sample_rate if sample_rate is None else sample_rate
        self._resampler = Resampler(rate, tagger.sample_rate)

    def feed(self, chunk: NDArray | Tensor) -> list[ScanWindow]:
        """The windows that are complete with a chunk: samples as ``tag`` takes them."""
        samples = self._resampler.feed(mono_samples(chunk))
        return self.hear(self._cutter.feed(samples))

    def finish(self) -> list[ScanWindow]:
        """The windows that the end of the sound completes."""
        windows = self._cutter.feed(self._resampler.finish())
        return self.hear([*windows, *self._cutter.finish()])

    def cut(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Window]:
        """The windows of a sound at the tagger's own rate."""
        for block in blocks:
            yield from self._cutter.feed(block)
        if not self._cutter.num_samples:
            raise UnreadableClip(TOO_SHORT)
        yield from self._cutter.finish()

    def hear(self, windows: Sequence[Window]) -> list[ScanWindow]:
        """What windows sound like."""
        tagger = self._tagger
        if not windows:
            return []
        ends = [window.start + len(window.samples) for window in windows]
        full = [tagger._as_long_as_needed(w, self._cutter.window) for w in windows]
        scores = tagger._scores([window.samples for window in full])
        rate = tagger.sample_rate
        return [
            ScanWindow(window.start / rate, end / rate, row)
            for window, end, row in zip(windows, ends, scores, strict=True)
        ]


def _check_settings(settings: Any) -> None:
    if settings.target not in TARGETS:
        raise ValueError(f"target={settings.target!r}; it is one of {TARGETS}")
    if settings.short_clips not in SHORT_CLIPS:
        raise ValueError(
            f"short_clips={settings.short_clips!r}; it is one of {SHORT_CLIPS}"
        )
    if not settings.clip_seconds > 0:
        raise ValueError(f"clip_seconds={settings.clip_seconds} must be above 0")


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise ValueError(f"batch_size={size} must be 1 or more")
    batch = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except UnreadableClip:  # what was heard until then is told first
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Averages:
    """Means of rows by number, without keeping the rows."""

    def __init__(self) -> None:
        self._sums: list[Any] = []
        self._counts: list[int] = []

    def add(self, number: int, row: NDArray[np.float32]) -> None:
        while len(self._sums) <= number:
            self._sums.append(0.0)
            self._counts.append(0)
        self._sums[number] = self._sums[number] + row.astype(np.float64)
        self._counts[number] += 1

    def means(self, width: int) -> NDArray[np.float32]:
        if not self._sums:
            return np.zeros((0, width), np.float32)
        pairs = zip(self._sums, self._counts, strict=True)
        return np.stack([total / count for total, count in pairs]).astype(np.float32)
