"""Provides sound for calibration and comparison: files, or clips of the sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.decoding import UnreadableClip, decode_blocks
from efficientat_plugin.data.sample.sample_set import (
    MIN_SAMPLE_RATE,
    MIN_SECONDS,
    sample_clip,
)
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.export.source import Source

SILENT = 1e-4  # of full scale; a smaller range counts as silence


def spread(sounds: Sequence[str | Path], count: int) -> list[str | Path]:
    """Selects at most ``count`` sounds, spread evenly over the list.

    Example
    -------
    >>> spread(["a", "b", "c", "d", "e"], 2)
    ['a', 'c']
    """
    if len(sounds) <= count:
        return list(sounds)
    return [sounds[number * len(sounds) // count] for number in range(count)]


def read_clips(
    source: Source, sounds: Sequence[str | Path]
) -> list[NDArray[np.float32]]:
    """Reads the start of each file, as long as the clips of a model's training.

    Arguments
    ---------
    source : Source
    sounds : sequence of str or Path

    Returns
    -------
    list of NDArray
        [N] each.

    Raises
    ------
    ValueError
        If there is none, one cannot be read, or all are silent.
    """
    if not sounds:
        raise ValueError(
            "no sounds were given; give some like those the model is meant for"
        )
    rate, num_samples = source.log_mel.sample_rate, source.clip_samples
    clips = []
    for sound in sounds:
        try:
            blocks = decode_blocks(sound, rate, source.model.clip_seconds + 0.1)
            waveform = np.concatenate([np.zeros(0, np.float32), *blocks])
        except UnreadableClip as fault:
            raise ValueError(
                f"{sound} cannot be used: {fault}; leave it out"
            ) from fault
        if len(waveform):
            how = source.model.short_clips
            how = "zero_pad" if how == "as_is" else how
            clips.append(lengthened(waveform[:num_samples], num_samples, how))
    if all(np.ptp(clip) < SILENT for clip in clips):  # a constant is silent, too
        raise ValueError(
            f"all of the {len(sounds)} sounds are silent, so nothing can be measured; "
            "give some like those the model is meant for"
        )
    return clips


def synthesised(
    num_samples: int, sample_rate: int, number: int = 0
) -> NDArray[np.float32]:
    """Synthesises a clip of the embedded sample, of any length.

    Example
    -------
    >>> len(synthesised(16000, 32000))
    16000
    """
    seconds = min(max(num_samples / sample_rate, MIN_SECONDS), 60.0)
    rate = max(sample_rate, MIN_SAMPLE_RATE)  # a lower one only lowers the pitch
    clip = sample_clip("eval", number, seconds, rate)
    return np.resize(clip.waveform, num_samples).astype(np.float32)
