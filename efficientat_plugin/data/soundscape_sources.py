"""Sounds to make soundscapes of: recordings, or synthetic ones that need no data."""

from collections import defaultdict
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.decoding import decode_blocks, sound_of
from efficientat_plugin.data.sample.sample_set import MIN_SAMPLE_RATE
from efficientat_plugin.data.sample.synthesis import SOUNDS, Synth
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.data.sound_files import UnreadableClip
from efficientat_plugin.data.soundscape_mixing import Sound, SoundscapeOptions, Waveform
from efficientat_plugin.data.splits import Split
from efficientat_plugin.support.plain_text import shown

# AudioSet's display names of sounds that last from their start to their end
SYNTHETIC_EVENTS = (
    *("Sine wave", "Chirp tone", "Siren", "Theremin", "Organ", "White noise"),
    *("Helicopter", "Clicking", "Drum machine"),
)
BACKGROUND = "background"  # the one class of backgrounds
MAX_TRIES = 100  # draws of a sound until one is readable and not silent
MAX_READ_SECONDS = 60.0  # of a recording
LEVEL_SECONDS = 0.02  # steps in which a recording is searched for silence
SILENCE = 1e-4  # of full scale, -80 dB: nothing that a 16-bit file holds is quieter


class Recordings:
    """Draws recordings of a class from one side of a split.

    Unreadable and silent ones are left out, and counted in ``unusable``.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.
    split : Split
        The rows of each side.
    sample_rate : int
        Hz.
    label : str or None
        One class for all rows; None: their own. Rows with several classes are left out
        then, for nobody knows which of them is where.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        split: Split,
        sample_rate: int,
        label: str | None = None,
    ) -> None:
        self._rows = rows
        self._sample_rate = sample_rate
        self._places: dict[str, dict[str, list[int]]] = {}
        self.unusable: dict[str, str] = {}  # reason, by clip id
        labels = [[label]] * len(rows) if label else rows["labels"][:]
        ids = rows.select_columns(["video_id"])["video_id"][:]
        for side, places in split._asdict().items():
            of_class: defaultdict[str, list[int]] = defaultdict(list)
            for place in places:
                names = sorted(set(labels[place] or ()))
                if len(names) == 1:
                    of_class[names[0]].append(place)
                else:
                    count = "several classes" if names else "no class"
                    self.unusable[str(ids[place])] = f"it has {count}"
            self._places[side] = dict(sorted(of_class.items()))

    def classes(self, side: str) -> list[str]:
        """Returns the classes that the side has recordings of."""
        return list(self._places[side])

    def read(self, side: str, label: str, rng: np.random.Generator) -> Sound:
        """Draws a recording and decodes it, up to its first minute.

        Raises
        ------
        UnreadableClip
            If many draws in a row gave no sound.
        """
        places = self._places[side][label]
        for _ in range(MAX_TRIES):
            row = self._rows[places[int(rng.integers(len(places)))]]
            name = str(row["video_id"])
            if name in self.unusable:
                continue
            try:
                blocks = decode_blocks(
                    sound_of(row), self._sample_rate, MAX_READ_SECONDS
                )
                waveform = np.concatenate(list(blocks)).astype(np.float64)
            except UnreadableClip as error:
                self.unusable[name] = str(error)
                continue
            if np.max(np.abs(waveform), initial=0) > SILENCE:
                return Sound(waveform, name)
            self.unusable[name] = "it is silent"
        raise UnreadableClip(
            f"{MAX_TRIES} draws of recordings of {shown(label)} for {side} gave no "
            "sound; check the data"
        )


class RecordedEvents(Recordings):
    """Draws events: recordings without the silence at their ends, or parts of them.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``.
    split : Split
    options : SoundscapeOptions
    """

    def __init__(
        self, rows: datasets.Dataset, split: Split, options: SoundscapeOptions
    ) -> None:
        super().__init__(rows, split, options.sample_rate)
        self._trim_db = options.trim_db

    def draw(
        self, side: str, label: str, num_samples: int, rng: np.random.Generator
    ) -> Sound:
        """Draws an event of at most ``num_samples``."""
        recording = self.read(side, label, rng)
        rate = self._sample_rate
        waveform = active_part(recording.waveform, rate, self._trim_db)
        if len(waveform) > num_samples:
            # A part of a sound that pauses begins and ends where it is heard.
            first = int(rng.integers(len(waveform) - num_samples + 1))
            part = waveform[first : first + num_samples]
            if np.max(np.abs(part)) <= SILENCE:  # a pause; the start never is one
                part = waveform[:num_samples]
            waveform = active_part(part, rate, self._trim_db)
        return Sound(waveform, recording.source)


class RecordedBackgrounds(Recordings):
    """Draws backgrounds: parts of recordings, which are repeated if they are short.

    Arguments
    ---------
    rows : datasets.Dataset
        From ``read_table``; labels are not used.
    split : Split
    options : SoundscapeOptions
    """

    def __init__(
        self, rows: datasets.Dataset, split: Split, options: SoundscapeOptions
    ) -> None:
        super().__init__(rows, split, options.sample_rate, BACKGROUND)

    def draw(
        self, side: str, label: str, num_samples: int, rng: np.random.Generator
    ) -> Sound:
        """Draws a background of ``num_samples``."""
        for _ in range(MAX_TRIES):
            recording = self.read(side, label, rng)
            waveform: NDArray[Any] = recording.waveform
            waveform = lengthened(waveform, num_samples, "repeat")
            first = int(rng.integers(len(waveform) - num_samples + 1))
            part = np.asarray(waveform[first : first + num_samples], np.float64)
            if np.max(np.abs(part)) > SILENCE:
                return Sound(part, recording.source)
        raise UnreadableClip(
            f"{MAX_TRIES} parts of backgrounds for {side} were silent; check the data"
        )


class SyntheticEvents:
    """Makes events: tones, sweeps, sirens, noise, clicks. No two of them are alike.

    Their classes are AudioSet's, and taggers recognise them (`data.sample`).

    Arguments
    ---------
    options : SoundscapeOptions

    Example
    -------
    >>> events = SyntheticEvents(SoundscapeOptions())
    >>> sound = events.draw("train", "Siren", 16000, np.random.default_rng(0))
    >>> sound.waveform.shape, sound.source
    ((16000,), '')
    """

    def __init__(self, options: SoundscapeOptions) -> None:
        if options.sample_rate < MIN_SAMPLE_RATE:
            raise ValueError(
                f"sample_rate={options.sample_rate} is too low for synthetic events; "
                f"set it to {MIN_SAMPLE_RATE} Hz or more: readers resample"
            )
        self._sample_rate = options.sample_rate
        self.unusable: dict[str, str] = {}

    def classes(self, side: str) -> list[str]:
        """Returns all classes."""
        del side
        return sorted(SYNTHETIC_EVENTS)

    def draw(
        self, side: str, label: str, num_samples: int, rng: np.random.Generator
    ) -> Sound:
        """Makes an event of at most ``num_samples``."""
        del side
        while True:
            waveform = SOUNDS[label](Synth(rng, num_samples, self._sample_rate))
            if np.max(np.abs(waveform)) > SILENCE:  # else between two clicks
                return Sound(active_part(waveform, self._sample_rate, 40.0), "")


class SyntheticBackgrounds:
    """Makes noise whose power falls with frequency, by as much as is drawn.

    Arguments
    ---------
    options : SoundscapeOptions
    """

    def __init__(self, options: SoundscapeOptions) -> None:
        self._sample_rate = options.sample_rate
        self.unusable: dict[str, str] = {}

    def classes(self, side: str) -> list[str]:
        """Returns the one class."""
        del side
        return [BACKGROUND]

    def draw(
        self, side: str, label: str, num_samples: int, rng: np.random.Generator
    ) -> Sound:
        """Makes a background of ``num_samples``."""
        del side, label
        slope = rng.uniform(-2.0, 0.0)
        noise = Synth(rng, num_samples, self._sample_rate).noise(slope=slope)
        return Sound(noise, "")


def active_part(waveform: Waveform, sample_rate: int, trim_db: float) -> Waveform:
    """Cuts off the ends of a sound that are much quieter than its loudest part.

    Arguments
    ---------
    waveform : array
        [N], not silent.
    sample_rate : int
        Hz.
    trim_db : float
        Steps of 20 ms at the ends that are more than this below the loudest one are cut
        off, dB. What is as quiet in between stays.

    Returns
    -------
    array
        [N'], at least a step, or all of a shorter sound.

    Example
    -------
    >>> sound = np.concatenate([np.zeros(320), np.ones(640), np.zeros(960)])
    >>> len(active_part(sound, sample_rate=16000, trim_db=40))
    640
    """
    step = max(1, round(LEVEL_SECONDS * sample_rate))
    starts = np.arange(0, len(waveform), step)
    power = np.add.reduceat(np.square(waveform), starts)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-trim_db / 10))
    return waveform[loud[0] * step : (loud[-1] + 1) * step]
