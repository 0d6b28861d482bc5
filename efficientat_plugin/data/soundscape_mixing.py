"""Mixes one soundscape: events at known times and levels on a background."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import Event
from efficientat_plugin.data.events.event_targets import in_time
from efficientat_plugin.support.limits import SAMPLE_RATES

Waveform = NDArray[np.float64]

MAX_PLACES = 50  # tries to find a place for an event
SAME_CLASS_GAP_SECONDS = 0.15  # less and nobody would tell two events from one
PEAK = 10 ** (-1 / 20)  # of full scale, above which a soundscape is attenuated
FADE_SECONDS = 0.004  # of the ends of events, which may be cut


@dataclass(frozen=True, kw_only=True)
class SoundscapeOptions:
    """Holds what soundscapes are like. Ranges include both of their ends.

    Arguments
    ---------
    clip_seconds : float
        Length of a soundscape.
    sample_rate : int
        Hz.
    events_per_clip : (int, int)
        Number of events, 0 or more.
    event_seconds : (float, float)
        Longest duration of an event, drawn for each: a longer recording is cut to a
        part of it, a shorter one stays as it is.
    snr_db : (float, float)
        Power of an event over its time, relative to that of the background, dB.
    background_db : (float, float)
        Power of the background, relative to full scale, dB.
    max_overlap : int
        Largest number of events at a time, 1 or more. Events of one class never
        overlap, and are at least 0.15 s apart.
    trim_db : float
        Recordings are cut to where they are at most this much below their loudest
        20 ms, dB: silence at their ends belongs to no event.

    Raises
    ------
    ValueError
        If a value is not legal.

    Example
    -------
    >>> SoundscapeOptions(max_overlap=0)
    Traceback (most recent call last):
    ValueError: max_overlap=0 must be 1 or more
    """

    clip_seconds: float = 10.0
    sample_rate: int = 32000
    events_per_clip: tuple[int, int] = (1, 5)
    event_seconds: tuple[float, float] = (0.25, 4.0)
    snr_db: tuple[float, float] = (6.0, 30.0)
    background_db: tuple[float, float] = (-50.0, -30.0)
    max_overlap: int = 2
    trim_db: float = 40.0

    def __post_init__(self) -> None:
        lowest, highest = SAMPLE_RATES
        if not lowest <= self.sample_rate <= highest:
            raise ValueError(
                f"sample_rate={self.sample_rate} must be from {lowest} to {highest} Hz"
            )
        if not 0 < self.clip_seconds < math.inf:
            raise ValueError(f"clip_seconds={self.clip_seconds} must be above 0")
        if self.max_overlap < 1:
            raise ValueError(f"max_overlap={self.max_overlap} must be 1 or more")
        if self.trim_db <= 0:
            raise ValueError(f"trim_db={self.trim_db} must be above 0 dB")
        limits = {
            "events_per_clip": (0, math.inf),
            "event_seconds": (0.05, self.clip_seconds),
            "snr_db": (-60, 60),
            "background_db": (-80, 0),
        }
        for name, (least, most) in limits.items():
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 2 or not least <= values[0] <= values[1] <= most:
                raise ValueError(
                    f"{name}={list(values)} must be two numbers in order, from "
                    f"{least:g} to {most:g}"
                )

    @property
    def num_samples(self) -> int:
        """Length of a soundscape, samples."""
        return round(self.clip_seconds * self.sample_rate)


class Sound(NamedTuple):
    """A sound to mix, and the recording that it is from."""

    waveform: Waveform  # [N], of any level but silence
    source: str  # "" for synthetic sounds, no two of which are alike


class Sounds(Protocol):
    """What draws the sounds of a class on one side of a split."""

    unusable: dict[str, str]  # reason, by the recordings that are left out

    def classes(self, side: str) -> list[str]:
        """Returns the classes that the side has sounds of."""

    def draw(
        self, side: str, label: str, num_samples: int, rng: np.random.Generator
    ) -> Sound:
        """Draws a sound of at most ``num_samples``."""


class Placed(NamedTuple):
    """An event of a soundscape, as it was mixed."""

    event: Event
    snr_db: float
    source: str


class Soundscape(NamedTuple):
    """One soundscape."""

    waveform: Waveform  # [N], in [-1, 1]
    placed: list[Placed]  # in time
    background: str  # its recording
    num_left_out: int  # events for which there was no place

    @property
    def events(self) -> list[Event]:
        """The events, sorted by start, end and class."""
        return in_time(each.event for each in self.placed)


def mix_soundscape(
    side: str,
    sounds: Sounds,
    backgrounds: Sounds,
    options: SoundscapeOptions,
    rng: np.random.Generator,
) -> Soundscape:
    """Draws a background and events, and mixes them.

    Arguments
    ---------
    side : str
        "train", "valid" or "test": where the sounds are from.
    sounds, backgrounds : Sounds
        Classes are drawn evenly, whatever the number of their recordings.
    options : SoundscapeOptions
    rng : np.random.Generator
        Source of all randomness.

    Returns
    -------
    Soundscape
    """
    num_samples, rate = options.num_samples, options.sample_rate
    behind_all = backgrounds.draw(
        side, _one_of(backgrounds.classes(side), rng), num_samples, rng
    )
    level = 10 ** (rng.uniform(*options.background_db) / 20)
    mix = behind_all.waveform * (level / _rms(behind_all.waveform))
    placed: list[Placed] = []
    num_events = int(rng.integers(*options.events_per_clip, endpoint=True))
    for _ in range(num_events):
        label = _one_of(sounds.classes(side), rng)
        longest = round(rng.uniform(*options.event_seconds) * rate)
        sound = sounds.draw(side, label, longest, rng)
        snr_db = rng.uniform(*options.snr_db)
        length = len(sound.waveform)
        for start in rng.integers(num_samples - length + 1, size=MAX_PLACES):
            event = Event(label, start / rate, (start + length) / rate)
            if _has_place(event, placed, options.max_overlap):
                break
        else:
            continue
        faded = sound.waveform * _fade(length, rate)
        gain = level * 10 ** (snr_db / 20) / _rms(faded)
        mix[start : start + length] += gain * faded
        placed.append(Placed(event, snr_db, sound.source))
    # All of it, so that events keep their levels over the background.
    mix *= min(1.0, PEAK / np.max(np.abs(mix)))
    placed.sort(key=lambda each: (each.event.start_seconds, each.event.label))
    return Soundscape(mix, placed, behind_all.source, num_events - len(placed))


def _has_place(event: Event, placed: list[Placed], max_overlap: int) -> bool:
    """Whether an event is apart from those of its class, and few enough overlap."""
    others = [each.event for each in placed]
    for other in others:
        gap = max(
            event.start_seconds - other.end_seconds,
            other.start_seconds - event.end_seconds,
        )
        if other.label == event.label and gap < SAME_CLASS_GAP_SECONDS:
            return False
    # The number of events at a time changes only where one of them starts.
    starts = [event.start_seconds, *(other.start_seconds for other in others)]
    return all(
        1 + sum(o.start_seconds <= start < o.end_seconds for o in others) <= max_overlap
        for start in starts
        if event.start_seconds <= start < event.end_seconds
    )


def _one_of(names: list[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _rms(waveform: Waveform) -> float:
    return float(np.sqrt(np.mean(np.square(waveform))))


def _fade(length: int, rate: int) -> Waveform:
    edge = np.arange(length) + 0.5
    return np.minimum(1.0, np.minimum(edge, edge[::-1]) / (FADE_SECONDS * rate))
