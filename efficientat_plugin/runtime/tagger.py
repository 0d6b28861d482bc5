"""Tags sound with exported models, like ``AudioTagger`` but without torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.runtime.front_end import LogMel
from efficientat_plugin.runtime.model_file import (
    EMBEDDING,
    FRAME_LOGITS,
    INPUTS,
    LOGITS,
    OUTPUTS,
    PROBABILITIES,
    ModelFacts,
    read_facts,
)
from efficientat_plugin.runtime.sessions import OpenVinoSession, Session, open_session
from efficientat_plugin.support.files import sha256_of
from efficientat_plugin.tagging.base import Model, SoundTagger
from efficientat_plugin.tagging.event_finder import options_of_model
from efficientat_plugin.tagging.overlap import window_log_mels
from efficientat_plugin.tagging.streams import clips_of

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]


class Tagger(SoundTagger):
    """Tags, scans and embeds sound with a file from ``efficientat export``.

    For a file without front end, the log-mel is computed in numpy, and in a scan only
    once where windows overlap. A file with front end computes it for each window.

    Arguments
    ---------
    model : str, Path or bytes
        The file, or its content.
    backend : str or None
        "onnxruntime" or "openvino"; None: the first that is installed.
    threads : int or None
        None: as many as there are cores.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ImportError
        If the backend is not installed.
    ValueError
        If the file is corrupt, of another version, or does not match its metadata.

    Example
    -------
    >>> tagger = Tagger("mn04_as.onnx")  # doctest: +SKIP
    >>> tagger.tag("metro.wav")[0].name  # doctest: +SKIP
    'Train'
    """

    batch_size = 8

    def __init__(
        self,
        model: str | Path | bytes,
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        origin = "the model" if isinstance(model, bytes) else str(model)
        self._model = model
        self._session: Session = open_session(model, backend, threads)
        self.facts: ModelFacts = read_facts(self._session.metadata, origin)
        self._check_graph(origin)
        self.labels = self.facts.labels
        self.sample_rate = self.facts.front_end.sample_rate
        self.clip_seconds = self.facts.clip_seconds
        self.short_clips = self.facts.short_clips
        self.target = self.facts.target
        self.takes_only_clips = self.facts.num_frames is not None
        self.min_samples = self.facts.front_end.framing.min_samples
        self.frame_samples = self.facts.frame_samples
        self.event_options = options_of_model(self.facts.event_options, self.labels)
        self._log_mel = LogMel(self.facts.front_end)
        if self.frame_samples and isinstance(self._session, OpenVinoSession):
            # OpenVINO 2026.4 compiles attention at its first use. If it is of a single
            # frame then, all later results are wrong.
            frames = max(2 * self.frame_samples, self.min_samples)
            self.outputs(np.zeros((1, frames), np.float32))

    def score(self, waveforms: "NDArray | Tensor") -> Array:
        """Computes the probabilities of clips of one length: [B, N] -> [B, K]."""
        return self.outputs(waveforms)[PROBABILITIES]

    def outputs(self, waveforms: "NDArray | Tensor") -> dict[str, Array]:
        """Computes all outputs of waveforms [B, N], by name.

        They are "probabilities" and "logits" [B, K] and "embedding" [B, D]; of a model
        that scores frames "embedding" [B, T', D] and "frame_logits" [B, T', K].
        """
        waveforms = clips_of(waveforms)
        self._check_length(waveforms.shape[1])
        if self.facts.has_front_end:
            return self._session.run(waveforms)
        return self._of_log_mels(self._log_mel(waveforms))

    def fingerprint(self) -> dict[str, Any]:
        """Returns everything besides the sound that sets probabilities.

        Returns
        -------
        dict
            Serialisable as JSON.
        """
        model, facts = self._model, self.facts
        return {
            "model_sha256": hashlib.sha256(model).hexdigest()
            if isinstance(model, bytes)
            else sha256_of(model),
            "front_ends": [facts.front_end._asdict()],
            "clip_seconds": facts.clip_seconds,
            "short_clips": facts.short_clips,
            "runtime": type(self._session).__name__,
        }

    def _log_mels(self, waveforms: Array) -> Array:
        return self._log_mel(waveforms)

    def _score_frames(self, waveforms: Array) -> Array:
        logits = self.outputs(waveforms)[FRAME_LOGITS]
        assert self.frame_samples is not None
        expected = -(-waveforms.shape[1] // self.frame_samples)
        if logits.shape[1] != expected:
            raise ValueError(
                f"the model computes {logits.shape[1]} frames of "
                f"{waveforms.shape[1]} samples, but its metadata say {expected}; "
                "export it again"
            )
        return as_probabilities(logits, self.target)

    def _embeddings(self) -> Model:  # type: ignore[override]
        if self.frame_samples is None:
            return lambda waveforms: self.outputs(waveforms)[EMBEDDING]
        return lambda waveforms: self.outputs(waveforms)[EMBEDDING].mean(axis=1)

    def _score_overlapping(self, sound: Array, window: int, hop: int) -> Array:
        if self.facts.has_front_end:
            return super()._score_overlapping(sound, window, hop)
        self._check_length(window)
        log_mels = window_log_mels(self._log_mel, sound, window, hop)
        return self._of_log_mels(log_mels)[PROBABILITIES]

    def _of_log_mels(self, log_mels: Array) -> dict[str, Array]:
        outputs = self._session.run(np.ascontiguousarray(log_mels))
        probabilities = as_probabilities(outputs[LOGITS], self.facts.target)
        return outputs | {PROBABILITIES: probabilities}

    def _check_graph(self, origin: str) -> None:
        """Raises a ``ValueError`` if the graph does not match the metadata."""

        def described(
            inputs: Sequence[str], outputs: Sequence[str], num_classes: int | None
        ) -> str:
            names = f"{', '.join(inputs)} to {', '.join(outputs)}"
            return f"{names} of {num_classes} classes"

        session, labels = self._session, self.facts.labels
        place = 0 if self.facts.has_front_end else 1
        found = described(session.inputs, session.outputs, session.num_classes)
        outputs = OUTPUTS[place:] if self.facts.frame_samples else OUTPUTS[place:-1]
        stated = described(INPUTS[place : place + 1], outputs, len(labels))
        if found != stated:
            raise ValueError(
                f"{origin} has a graph from {found}, but its metadata say {stated}; "
                "export the model again"
            )

    def _check_length(self, num_samples: int) -> None:
        """Raises a ``ValueError`` for lengths that the graph cannot take."""
        if num_samples < self.min_samples:
            raise ValueError(
                f"{num_samples} samples were given, but this model needs "
                f"{self.min_samples} or more; pad them"
            )
        needed, hop = self.facts.num_frames, self.facts.front_end.hop_length
        if needed not in (None, self.facts.front_end.framing.num_frames(num_samples)):
            raise ValueError(
                f"{num_samples} samples were given, but this model takes only "
                f"{needed} frames of {hop} samples, {needed * hop / self.sample_rate:g}"
                " s; leave window_seconds out"
            )
        most = self.facts.max_frames
        if most and self.facts.front_end.framing.num_frames(num_samples) > most:
            raise ValueError(
                f"{num_samples} samples were given, but this model takes at most "
                f"{most} frames of {hop} samples, {most * hop / self.sample_rate:g} s; "
                "give shorter windows"
            )


def as_probabilities(logits: Array, target: str) -> Array:
    """Converts logits [..., K] by sigmoid if "multilabel", else by softmax.

    Example
    -------
    >>> as_probabilities(np.array([[0.0, 0.0]], np.float32), "multiclass")
    array([[0.5, 0.5]], dtype=float32)
    """
    if target == "multilabel":
        odds: Array = np.exp(-np.clip(logits, -80, None))
        return np.reciprocal(1 + odds)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
