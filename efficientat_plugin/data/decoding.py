"""Decodes rows into clips of one length, resampled with soxr."""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
from numpy.typing import NDArray

from efficientat_plugin.contracts import SHORT_CLIPS, Clip
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.data.sound_files import (
    Audio,
    OpenSound,
    UnreadableClip,
    open_sound,
)
from efficientat_plugin.support.limits import SAMPLE_RATES

if TYPE_CHECKING:
    from torch import Tensor

# Extra sound read beyond the cut, so that the resampler's filter has no edge there.
MARGIN_SECONDS = 0.1
BLOCK_FRAMES = 65536  # fewer with more than 8 channels
BLOCK_SAMPLES = 8 * BLOCK_FRAMES  # over all channels
# Largest sample of a floating-point file; undivided 16-bit integers are louder.
LOUDEST = 64.0
LOUDEST_GIVEN = 2 * LOUDEST  # for arrays: resampling raises peaks
SAME_LENGTH = tuple(how for how in SHORT_CLIPS if how != "as_is")
MAX_CHANNELS = 64  # a longer axis is taken for time


def decode(
    audio: Audio,
    sample_rate: int,
    num_samples: int,
    short_clips: str = "zero_pad",
) -> NDArray[np.float32]:
    """Decodes the start of a sound file: mono, resampled, cut or lengthened.

    Reads no more of the file than it needs. Resamples with soxr's high quality,
    which changes the probabilities of a tagger by at most 4e-4.

    Arguments
    ---------
    audio : dict | bytes | str | Path
        What an undecoded ``Audio`` column holds (``bytes`` and ``path``), the bytes
        of a file, or its path: WAV, FLAC, OGG, Opus, MP3 and whatever else libsndfile
        reads; with PyAV installed also M4A, MP4, AAC, WebM, Matroska and WMA. A
        dict may also hold ``start`` and ``end``: see ``sound_of``.
    sample_rate : int
        Sample rate of the result, Hz.
    num_samples : int
        Length of the result.
    short_clips : str
        How shorter sound is lengthened: "zero_pad" or "repeat".

    Returns
    -------
    NDArray
        [num_samples], float32.

    Raises
    ------
    UnreadableClip
        If there is no file, or no sound in it, or if samples are not finite or far
        beyond full scale.
    """
    seconds = num_samples / sample_rate + MARGIN_SECONDS
    blocks = list(decode_blocks(audio, sample_rate, seconds))
    waveform = np.concatenate(blocks)[:num_samples]
    if not len(waveform):  # padding would turn it into a clip of silence
        raise UnreadableClip(f"it is shorter than a sample at {sample_rate} Hz")
    return lengthened(waveform, num_samples, short_clips)


def decode_blocks(
    audio: Audio,
    sample_rate: int,
    max_seconds: float = math.inf,
) -> Iterator[NDArray[np.float32]]:
    """Decodes a sound file block by block, in constant memory: mono, resampled.

    Arguments
    ---------
    audio : dict | bytes | str | Path
        As ``decode`` takes it.
    sample_rate : int
        Sample rate of the blocks, Hz.
    max_seconds : float
        Reads at most this much of the file, s.

    Yields
    ------
    NDArray
        [samples], float32; joined, they are the sound.

    Raises
    ------
    UnreadableClip
        As ``decode``, once the unreadable block is reached.
    """
    with open_sound(audio) as sound:
        rate = sound.samplerate
        if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
            raise UnreadableClip(f"its header claims a sample rate of {rate} Hz")
        resampler = Resampler(rate, sample_rate)
        first, last = _frames_of(audio, rate)
        num_skipped = sound.skip(first)
        num_frames = 0
        for block in _mono_blocks(sound, min(max_seconds * rate, last - first)):
            num_frames += len(block)
            yield resampler.feed(block)
        if num_skipped < first or (first and not num_frames):
            raise UnreadableClip(
                f"its segment starts at {first / rate:g} s, but the file ends at "
                f"{num_skipped / rate:g} s"
            )
        if not num_frames:
            raise UnreadableClip("it has no samples")
        yield resampler.finish()


def sound_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sound of a row in the form that ``decode`` and taggers take.

    Arguments
    ---------
    row : Mapping
        Its ``audio`` is ``{bytes, path}``; ``start`` and ``end``, s, mark the clip's
        segment of the file. None or no such column: from the beginning, to the end.

    Example
    -------
    >>> sound_of({"audio": {"path": "a.wav"}, "start": 1.5, "end": None})
    {'path': 'a.wav', 'start': 1.5}
    """
    times = {name: row.get(name) for name in ("start", "end")}
    return {**row["audio"], **{n: t for n, t in times.items() if t is not None}}


def _frames_of(audio: Any, rate: int) -> tuple[int, float]:
    """Returns the first frame of the segment, and the first frame after it."""
    times = audio if isinstance(audio, dict) else {}
    start, end = times.get("start", 0), times.get("end", math.inf)
    return round(start * rate), end if end == math.inf else round(end * rate)


class Resampler:
    """Resamples mono sound in chunks, with the same result as in one piece.

    Arguments
    ---------
    source_rate : int
        Hz.
    target_rate : int
        Hz.

    Raises
    ------
    ValueError
        For an invalid sample rate.

    Example
    -------
    >>> resampler = Resampler(16000, 32000)
    >>> chunks = [resampler.feed(np.zeros(800)), resampler.finish()]
    >>> len(np.concatenate(chunks))
    1600
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        for rate in (source_rate, target_rate):
            is_number = isinstance(rate, Real)
            if not is_number or not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                raise ValueError(
                    f"a sample rate of {rate if is_number else repr(rate)} is not "
                    f"valid; give Hz, from {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}"
                )
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(
                source_rate, target_rate, num_channels=1, dtype="float32", quality="HQ"
            )

    def feed(self, chunk: NDArray) -> NDArray[np.float32]:
        """Takes [samples] and returns the resampled ones that are ready."""
        chunk = chunk.astype(np.float32, copy=False)
        return chunk if self._stream is None else self._stream.resample_chunk(chunk)

    def finish(self) -> NDArray[np.float32]:
        """Returns the samples that the filter still holds."""
        nothing = np.zeros(0, np.float32)
        if self._stream is None:
            return nothing
        return self._stream.resample_chunk(nothing, last=True)


def _mono_blocks(sound: OpenSound, max_frames: float) -> Iterator[NDArray[np.float32]]:
    """Yields mono blocks, so that many channels are never in memory at once."""
    # SoundFile.blocks trusts the length that the header claims: for a truncated file
    # it returns uninitialised memory as sound.
    remaining = max_frames
    while remaining > 0:
        num_frames = max(1, min(BLOCK_FRAMES, BLOCK_SAMPLES // sound.channels))
        block = sound.next_block(math.ceil(min(num_frames, remaining)))
        if not len(block):
            return
        # Checked before the mean, which both infinities would turn into NaN.
        if fault := _fault_of(block):
            raise UnreadableClip(f"it has {fault}")
        # A single channel is its own mean; computing none takes a tenth of the time.
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        remaining -= len(block)


def _fault_of(samples: NDArray, loudest: float = LOUDEST) -> str | None:
    """Returns what is wrong with samples, or None."""
    lowest, highest = float(samples.min()), float(samples.max())
    if -loudest <= lowest and highest <= loudest:  # False if a sample is NaN
        return None
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "samples that are not finite"
    return (
        f"samples of up to {max(-lowest, highest):.0e}, and full scale is 1; if they "
        "were integers, divide them by their full scale (int16: by 32768)"
    )


def as_array(samples: "NDArray | Tensor") -> NDArray:
    """Converts an array, a list or a tensor on any device to a NumPy array.

    Example
    -------
    >>> as_array([0.5, 1.0])
    array([0.5, 1. ])
    """
    if not isinstance(samples, np.ndarray) and hasattr(samples, "detach"):  # a tensor
        samples = samples.detach().cpu()
        # numpy has no bfloat16.
        is_float = samples.is_floating_point()
        samples = (samples.float() if is_float else samples).numpy()
    return np.asarray(samples)


def mono_samples(sound: "NDArray | Tensor") -> NDArray[np.float32]:
    """Converts samples of any type and number of channels to mono floating point.

    Arguments
    ---------
    sound : NDArray or Tensor
        [N], [N, channels] or [channels, N]; floating point in [-1, 1], or integers of
        8 to 32 bits, whose full scale becomes 1.

    Returns
    -------
    NDArray
        [N]

    Raises
    ------
    ValueError
        For other shapes and types, and for samples that are not finite or far beyond
        full scale.

    Example
    -------
    >>> mono_samples(np.array([[16384, 0], [-32768, 0], [0, 0]], np.int16))
    array([ 0.25, -0.5 ,  0.  ], dtype=float32)
    """
    samples = as_array(sound)
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:
        raise ValueError(
            f"samples of type {samples.dtype} have no known full scale; give int16 or "
            "int32, or floating point in [-1, 1]"
        )
    if samples.dtype.kind in "iu":
        scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
        offset = scale if samples.dtype.kind == "u" else 0.0
        samples = (samples.astype(np.float64) - offset) / scale
    elif samples.dtype.kind != "f":
        raise ValueError(
            f"samples of type {samples.dtype} are not sound; give floating point in "
            "[-1, 1] or integers"
        )
    if not samples.size:  # whatever its shape
        return np.zeros(0, np.float32)
    if fault := _fault_of(samples, LOUDEST_GIVEN):
        raise ValueError(
            f"the sound has {fault}; give floating point in [-1, 1], or integers as "
            "they are"
        )
    if samples.ndim == 2:
        # The shorter axis is that of the channels, whichever comes first.
        channels = int(np.argmin(samples.shape))
        if samples.shape[channels] > MAX_CHANNELS:
            raise ValueError(
                f"samples of shape {samples.shape} have no axis of channels (at most "
                f"{MAX_CHANNELS}); tag_batch takes a list of sounds"
            )
        samples = samples.mean(axis=channels)
    if samples.ndim != 1:
        raise ValueError(
            f"samples of shape {samples.shape} were given; give [N], [N, channels] or "
            "[channels, N]"
        )
    return samples.astype(np.float32, copy=False)


class ClipReader:
    """Turns a row into a ``Clip``.

    Arguments
    ---------
    labels : LabelTable
        Defines the K classes.
    clip_seconds : float
        Length of every clip, s; longer sound is cut to its beginning.
    sample_rate : int
        Hz.
    short_clips : str
        How shorter sound is lengthened: "zero_pad" or "repeat".

    Raises
    ------
    ValueError
        If ``clip_seconds`` or ``short_clips`` is not legal.
    """

    def __init__(
        self,
        labels: LabelTable,
        clip_seconds: float = 10.0,
        sample_rate: int = 32000,
        short_clips: str = "zero_pad",
    ) -> None:
        if clip_seconds <= 0:
            raise ValueError(f"clip_seconds={clip_seconds} must be above 0")
        if short_clips not in SAME_LENGTH:
            raise ValueError(
                f"short_clips={short_clips!r} does not make all clips equally long, "
                f"as batches require; choose one of {', '.join(SAME_LENGTH)}"
            )
        self.labels = labels
        self.sample_rate = sample_rate
        self.num_samples = round(clip_seconds * sample_rate)
        self.short_clips = short_clips

    def read(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> Clip:
        """Decodes a row; raises ``UnreadableClip`` if that fails.

        A subclass may draw a part of a longer sound by ``rng``; None: its beginning.
        """
        import torch  # here, so that sound can be decoded without torch

        if not row["video_id"]:
            raise UnreadableClip("its video_id is empty")
        waveform = decode(
            sound_of(row), self.sample_rate, self.num_samples, self.short_clips
        )
        # Labels that are not in the table were counted when the data was summarised.
        indices, _ = self.labels.indices(row["labels"])
        labelled = torch.tensor(float(bool(indices)))
        if row.get("judged") is not None:  # other classes may be present or not
            judged, _ = self.labels.indices(row["judged"])
            labelled = self.labels.multi_hot([*judged, *indices])
        return Clip(
            clip_id=str(row["video_id"]),
            waveform=torch.from_numpy(waveform),
            labels=self.labels.multi_hot(indices),
            labelled=labelled,
        )
