"""Encodes any sound as the file of one clip: mono, at one rate, with one codec.

Samples are rounded to int16 first, which lossless codecs keep, so that peaks above
full scale are clipped in the same way for each codec and never wrap around.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from efficientat_plugin.data.decoding import (
    BLOCK_FRAMES,
    MARGIN_SECONDS,
    UnreadableClip,
    decode_blocks,
)
from efficientat_plugin.data.parquet import to_pcm
from efficientat_plugin.support.interruptions import uninterrupted

QUIET = 1e-3  # RMS below which a sound counts as silence: -60 dB


class Codec(NamedTuple):
    """The settings with which libsndfile writes a codec."""

    format: str
    subtype: str
    suffix: str  # of a clip's path
    quality: float | None = None  # default; None: lossless
    max_compression: float = 1.0  # libsndfile refuses to write above it
    options: Mapping[str, Any] = {}
    sample_rates: tuple[int, ...] | None = None  # Hz; None: any


MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
CODECS = {
    "flac": Codec("FLAC", "PCM_16", ".flac"),
    "int16": Codec("WAV", "PCM_16", ".wav"),
    "vorbis": Codec("OGG", "VORBIS", ".ogg", quality=0.5),
    "opus": Codec(
        "OGG",
        "OPUS",
        ".opus",
        quality=0.4,
        sample_rates=(8000, 12000, 16000, 24000, 48000),
    ),
    # At a constant bit rate LAME would make all sound 5 % softer.
    "mp3": Codec(
        "MP3",
        "MPEG_LAYER_III",
        ".mp3",
        quality=0.75,
        max_compression=0.99,
        options={"bitrate_mode": "VARIABLE"},
        sample_rates=MPEG_RATES,
    ),
}


class Encoded(NamedTuple):
    """The file of a clip, and how close it is to the clip."""

    content: bytes
    num_samples: int
    correlation: float  # with the clip; 1 for silence


class ClipEncoder:
    """Encodes a clip as a file, and checks the file by decoding it.

    Arguments
    ---------
    codec : str
        "flac" and "int16" (WAV) keep every sample; "vorbis" (OGG), "opus" (OGG) and
        "mp3" (variable rate) are smaller.
    sample_rate : int
        Sample rate of the file, Hz. MP3 and Opus support only some rates; Opus does
        not support 32000, so choose 48000, which readers resample.
    quality : float | None
        From 0 (smallest files) to 1; None: the codec's default. A lossless codec has
        none.
    max_seconds : float | None
        Longer clips are cut to this length, s; None: no clip is cut.

    Raises
    ------
    ValueError
        For settings that the codec does not support.

    Example
    -------
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros(48000), 48000, format="FLAC", subtype="PCM_24")
    >>> encoded = ClipEncoder("int16", 32000).encode(file.getvalue())
    >>> encoded.num_samples, len(encoded.content)
    (32000, 64044)
    """

    def __init__(
        self,
        codec: str = "flac",
        sample_rate: int = 32000,
        quality: float | None = None,
        max_seconds: float | None = None,
    ) -> None:
        if codec not in CODECS:
            raise ValueError(f"codec={codec!r} must be one of {', '.join(CODECS)}")
        about = CODECS[codec]
        if about.sample_rates and sample_rate not in about.sample_rates:
            rates = ", ".join(str(rate) for rate in about.sample_rates)
            raise ValueError(
                f"codec={codec} does not support sample_rate={sample_rate}, but only "
                f"{rates} Hz; pass one of these (readers resample), or another codec"
            )
        if quality is not None and about.quality is None:
            raise ValueError(
                f"codec={codec} is lossless, so that quality={quality} has no effect; "
                "leave it out"
            )
        if quality is not None and not 0 <= quality <= 1:
            raise ValueError(f"quality={quality} must be from 0 (smallest) to 1")
        if max_seconds is not None and max_seconds <= 0:
            raise ValueError(f"max_seconds={max_seconds} must be above 0, or null")
        self.codec = codec
        self.sample_rate = sample_rate
        self.quality = about.quality if quality is None else quality
        self.max_seconds = max_seconds

    @property
    def suffix(self) -> str:
        """The suffix of its files."""
        return CODECS[self.codec].suffix

    def encode(self, audio: dict[str, Any] | bytes | str | Path) -> Encoded:
        """Encodes a sound as a file.

        Arguments
        ---------
        audio : dict | bytes | str | Path
            As ``decode`` takes it.

        Raises
        ------
        UnreadableClip
            If it cannot be decoded, or if the file differs from it in length or, with
            a lossless codec, in any sample.
        """
        samples = self._samples(audio)
        with uninterrupted():
            content = self._written(samples)
        return Encoded(content, len(samples), self._correlation(content, samples))

    def _samples(self, audio: dict[str, Any] | bytes | str | Path) -> NDArray[np.int16]:
        wanted, seconds = None, math.inf
        if self.max_seconds is not None:
            wanted = round(self.max_seconds * self.sample_rate)
            seconds = self.max_seconds + MARGIN_SECONDS
        blocks = [to_pcm(b) for b in decode_blocks(audio, self.sample_rate, seconds)]
        samples = np.concatenate(blocks)[:wanted]
        if not len(samples):
            raise UnreadableClip("it is shorter than a sample")
        return samples

    def _written(self, samples: NDArray[np.int16]) -> bytes:
        codec, options = CODECS[self.codec], {}
        if self.quality is not None:
            compression = min(1 - self.quality, codec.max_compression)
            options = {"compression_level": compression, **codec.options}
        file = io.BytesIO()
        with soundfile.SoundFile(
            file,
            "w",
            self.sample_rate,
            channels=1,
            format=codec.format,
            subtype=codec.subtype,
            **options,
        ) as sound:
            # Vorbis puts a block on the stack, where a whole recording does not fit.
            for start in range(0, len(samples), BLOCK_FRAMES):
                sound.write(samples[start : start + BLOCK_FRAMES])
        return file.getvalue()

    def _correlation(self, content: bytes, samples: NDArray[np.int16]) -> float:
        """Computes the correlation of the decoded file with the given samples."""
        position, same = 0, True
        sums = np.zeros((2, 2))
        for block in decode_blocks(content, self.sample_rate):
            expected = samples[position : position + len(block)]
            position += len(block)
            if position > len(samples):
                break
            pair = np.stack([expected / 32768, block])
            same = same and np.array_equal(*pair)
            sums += pair @ pair.T
        if position != len(samples):
            raise UnreadableClip(
                f"encoded as {self.codec} it no longer has {len(samples)} samples"
            )
        if self.quality is None and not same:
            raise UnreadableClip(f"encoded as {self.codec} it has other samples")
        energies = np.diag(sums)
        if same or (energies < len(samples) * QUIET**2).all():
            return 1.0
        return float(sums[0, 1] / math.sqrt(max(energies.prod(), 1e-30)))
