"""Reads and writes the metadata of an exported file, stored as text with its graph."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from efficientat_plugin.contracts import SHORT_CLIPS, TARGETS
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.runtime.front_end import FrontEndSettings
from efficientat_plugin.support.limits import MAX_BANK, MAX_WINDOW_SECONDS, SAMPLE_RATES
from efficientat_plugin.support.plain_text import shown
from efficientat_plugin.tagging.event_finder import options_of_model

FORMAT_VERSION = 1
MAX_SIZE = 1 << 16  # of mel bands, and samples per frame
# Inputs and outputs of the graphs
WAVEFORM, LOG_MEL = "waveform", "log_mel"
PROBABILITIES, LOGITS, EMBEDDING = "probabilities", "logits", "embedding"
FRAME_LOGITS = "frame_logits"  # of models that score frames
INPUTS = WAVEFORM, LOG_MEL
OUTPUTS = PROBABILITIES, LOGITS, EMBEDDING, FRAME_LOGITS


class ModelFacts(NamedTuple):
    """Everything needed to use a file, and where it comes from."""

    source: str  # name or file of the weights
    sha256: str  # of the weights file
    student: str  # a short description
    labels: LabelTable
    target: str  # "multilabel" or "multiclass"
    clip_seconds: float  # of the clips it was trained on
    short_clips: str  # how shorter sounds are lengthened
    front_end: FrontEndSettings
    has_front_end: bool  # waveform to probabilities; else log-mel to logits
    num_frames: int | None  # T, if the student takes only this number
    precision: str
    # Samples from one frame of scores to the next; None: the student scores clips only
    frame_samples: int | None = None
    max_frames: int | None = None  # T, if the student takes no more
    # Of `EventOptions`, thresholds in the order of labels; older files have none
    event_options: Mapping[str, Any] = {}

    def as_texts(self) -> dict[str, str]:
        """Converts the facts to file metadata: a JSON text by name."""
        content: dict[str, Any] = self._asdict()
        content["labels"] = self.labels.names
        content["mids"] = self.labels.mids
        content["front_end"] = self.front_end._asdict()
        content["format_version"] = FORMAT_VERSION
        return {
            name: json.dumps(value, ensure_ascii=False)
            for name, value in content.items()
        }


def read_facts(texts: Mapping[str, str], origin: str) -> ModelFacts:
    """Reads what ``ModelFacts.as_texts`` wrote.

    Arguments
    ---------
    texts : mapping of str to str
    origin : str
        The file, for messages.

    Returns
    -------
    ModelFacts

    Raises
    ------
    ValueError
        If the file was not written by ``efficientat export`` or has another version.
    """
    if "format_version" not in texts:
        raise ValueError(
            f"{origin} was not written by `efficientat export`: its metadata lack "
            "labels and front end; export the model"
        )
    version = texts["format_version"]
    if version != str(FORMAT_VERSION):
        raise ValueError(
            f"{origin} has format {shown(version[:20])}, but this version reads "
            f"{FORMAT_VERSION}; export the model again, or install the version that "
            "wrote it"
        )
    try:
        content = {
            name: json.loads(texts[name])
            for name in (*ModelFacts._fields, "mids")
            if name in texts or name not in ModelFacts._field_defaults  # older files
        }
        content["labels"] = LabelTable(content.pop("mids"), content["labels"])
        content["front_end"] = FrontEndSettings(**content["front_end"])
        _check_front_end(content["front_end"])
        facts = ModelFacts(**content)
        if facts.target not in TARGETS:
            raise ValueError(f"target={facts.target!r}")
        if facts.short_clips not in SHORT_CLIPS:
            raise ValueError(f"short_clips={facts.short_clips!r}")
        shortest = facts.front_end.framing.min_samples / facts.front_end.sample_rate
        if not shortest <= facts.clip_seconds <= MAX_WINDOW_SECONDS:
            raise ValueError(
                f"clip_seconds={facts.clip_seconds!r} must be from {shortest:.3g} to "
                f"{MAX_WINDOW_SECONDS}"
            )
        for name in ("num_frames", "frame_samples", "max_frames"):
            number = getattr(facts, name)
            if number is not None and not (type(number) is int and number > 0):
                raise ValueError(f"{name}={number!r}")
        options_of_model(facts.event_options, facts.labels)
        return facts
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{origin} has metadata that cannot be read ({shown(error)[:200]}); export "
            "the model again"
        ) from error


def _check_front_end(settings: FrontEndSettings) -> None:
    """Raises a ``ValueError`` for illegal settings, and sizes that exhaust memory."""
    sizes = settings.n_mels, settings.n_fft, settings.win_length, settings.hop_length
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes):
        raise ValueError(f"front end sizes {sizes} must be from 1 to {MAX_SIZE}")
    if settings.n_mels * settings.n_fft > MAX_BANK:
        raise ValueError(f"n_mels={settings.n_mels}, n_fft={settings.n_fft}")
    rate = settings.sample_rate
    if type(rate) is not int or not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise ValueError(f"sample_rate={rate!r} Hz must be within {SAMPLE_RATES}")
    if not 0 <= settings.f_min < settings.f_max <= rate / 2:
        raise ValueError(
            f"f_min={settings.f_min!r} and f_max={settings.f_max!r} Hz at {rate!r} Hz"
        )
    for name in ("pre_emphasis", "offset", "log_floor", "scale"):
        number = getattr(settings, name)
        if type(number) not in (int, float) or not math.isfinite(number):
            raise ValueError(f"{name}={number!r}")
    if settings.log_floor <= 0 or settings.scale <= 0:
        raise ValueError(f"log_floor={settings.log_floor}, scale={settings.scale}")
    if settings.win_length > settings.n_fft:
        raise ValueError(f"win_length={settings.win_length}, n_fft={settings.n_fft}")
    if settings.log_floor_mode not in ("add", "clamp"):
        raise ValueError(f"log_floor_mode={settings.log_floor_mode!r}")
