"""From a row to a clip: decoded with soundfile, resampled with soxr, of one length."""

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from efficientat_plugin.contracts import Clip
from efficientat_plugin.data.targets import LabelTable

SAMPLE_RATES = (1_000, 768_000)  # Hz; a header beyond these is taken for damaged
# Read beyond the cut, so that the resampler's filter rings on sound, not on its end.
MARGIN_SECONDS = 0.1
BLOCK_FRAMES = 65536


class UnreadableClip(ValueError):
    """Sound that no clip can be made of; its text says why."""


def decode(
    audio: dict[str, Any] | bytes | str | Path, sample_rate: int, num_samples: int
) -> NDArray[np.float32]:
    """The start of a sound file: mono, resampled, cut or zero-padded.

    Reads no more of the file than it needs. Resamples with soxr's high quality,
    which moves the probabilities of a tagger by 4e-4 at most.

    Arguments
    ---------
    audio : dict | bytes | str | Path
        What an undecoded ``Audio`` column holds (``bytes`` and ``path``), the bytes
        of a file, or its path. WAV, FLAC, OGG, Opus or MP3.
    sample_rate : int
        Of the result, Hz.
    num_samples : int
        Of the result.

    Returns
    -------
    NDArray
        [num_samples], float32.

    Raises
    ------
    UnreadableClip
        If there is no file, no sound in it, or values that are not finite.
    """
    try:
        with soundfile.SoundFile(_open(audio)) as sound:
            rate = sound.samplerate
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                raise UnreadableClip(f"its header claims a sample rate of {rate} Hz")
            seconds = num_samples / sample_rate + MARGIN_SECONDS
            blocks = list(_mono_blocks(sound, math.ceil(seconds * rate)))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # soundfile names what was bytes by its address in memory.
        reason = re.sub(r"^Error opening <.*?>: ", "", str(error))
        raise UnreadableClip(f"not decodable: {reason}") from error
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(waveform):
        raise UnreadableClip("it has no samples")
    if not np.isfinite(waveform).all():
        raise UnreadableClip("it has samples that are not finite")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    waveform = waveform[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def _mono_blocks(
    sound: soundfile.SoundFile, num_frames: int
) -> Iterator[NDArray[np.float32]]:
    """Block by block, so that many channels never stand in memory at once."""
    # Not SoundFile.blocks, which goes by the length that the header claims: where a
    # file breaks off before, it gives what happens to stand in memory for sound.
    while num_frames > 0:
        block = sound.read(
            min(BLOCK_FRAMES, num_frames), dtype="float32", always_2d=True
        )
        if not len(block):
            return
        yield block.mean(axis=1)
        num_frames -= len(block)


def _open(audio: dict[str, Any] | bytes | str | Path) -> io.BytesIO | str:
    content: Any = audio
    if isinstance(audio, dict):
        content = audio.get("bytes")
        if content is None:
            content = audio.get("path")
    if isinstance(content, bytes):
        return io.BytesIO(content)
    if isinstance(content, str | Path):
        return str(content)
    raise UnreadableClip("the row holds neither bytes nor the path of a file")


class ClipReader:
    """Makes a ``Clip`` of a row.

    Arguments
    ---------
    labels : LabelTable
        What K means.
    clip_seconds : float
        Length of every clip; longer sound is cut, shorter zero-padded.
    sample_rate : int
        Hz.
    """

    def __init__(
        self, labels: LabelTable, clip_seconds: float = 10.0, sample_rate: int = 32000
    ) -> None:
        if clip_seconds <= 0:
            raise ValueError(f"clip_seconds={clip_seconds} must be above 0")
        self.labels = labels
        self.sample_rate = sample_rate
        self.num_samples = round(clip_seconds * sample_rate)

    def read(self, row: dict[str, Any]) -> Clip:
        """Decodes a row; ``UnreadableClip`` where that cannot be."""
        if not row["video_id"]:
            raise UnreadableClip("its video_id is empty")
        waveform = decode(row["audio"], self.sample_rate, self.num_samples)
        # What the table does not have was counted when the data was summed up.
        indices, _ = self.labels.indices(row["labels"] or ())
        return Clip(
            clip_id=str(row["video_id"]),
            waveform=torch.from_numpy(waveform),
            labels=self.labels.multi_hot(indices),
            labelled=float(bool(indices)),
        )
