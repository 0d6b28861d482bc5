"""Opens sound files of every format for reading once, from beginning to end."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from efficientat_plugin.support.interruptions import uninterrupted

# The first bytes of a file, after any ID3 tags, and ffmpeg's name for the format. No
# others are tried: some (playlists) name files, which ffmpeg would open.
CONTAINERS = {
    rb"....(ftyp|moov|mdat|wide)": "mov",
    rb"\x1a\x45\xdf\xa3": "matroska",
    rb"\xff[\xf0\xf1\xf8\xf9]": "aac",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
}
NO_PYAV = (
    "it is M4A, MP4, AAC, WebM, Matroska or WMA, which needs PyAV, and PyAV is not "
    "installed; run: pip install 'efficientat_plugin[containers]'"
)
# Formats in which libsndfile seeks to the exact sample; others are read up to it.
EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF")
EXACT_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# More than any file holds: libsndfile estimates the length of an MP3 from its size and
# its first frame, and reads no further.
ENDLESS = 2**40
LONGEST_COUNTED = 2**32  # frames; estimates from ENDLESS are longer
# Put before an MP3, which libsndfile may take for another format without it.
ID3_TAG = b"ID3\3\0\0\0\0\0\x22" + bytes(0x22)
ID3V1_BYTES = 128  # at the end of a file
HELD_BYTES = 65536  # size of the read buffer
MAX_TAGS = 16  # in a row, before the sound
SKIPPED_FRAMES = 65536  # at once

Audio: TypeAlias = "dict[str, Any] | bytes | str | Path"


class UnreadableClip(ValueError):
    """Raised for an unreadable clip; the text names it, if its name is known, and why.

    Arguments
    ---------
    reason : str
    name : str, Path or None
        Name of the file, if known.
    """

    def __init__(self, reason: str, name: str | Path | None = None) -> None:
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


class OpenSound:
    """An open sound, which is read forwards only."""

    samplerate: int  # Hz
    channels: int  # of the next block

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        """Returns the next [frames, channels]: at most ``num_frames``, 0 at the end."""
        raise NotImplementedError

    def skip(self, num_frames: int) -> int:
        """Skips ``num_frames``, or as many as are left; returns how many."""
        num_skipped = 0
        while num_skipped < num_frames:
            left = num_frames - num_skipped
            block = self.next_block(min(left, SKIPPED_FRAMES))
            if not len(block):
                break
            num_skipped += len(block)
        return num_skipped

    def count_frames(self) -> int:
        """Counts the frames; nothing can be read afterwards."""
        lengths = iter(lambda: len(self.next_block(SKIPPED_FRAMES)), 0)
        return sum(lengths)

    def close(self) -> None:
        """Closes the file."""
        raise NotImplementedError


@contextmanager
def open_sound(audio: Audio) -> Iterator[OpenSound]:
    """Opens a sound file of any supported format.

    Arguments
    ---------
    audio : dict | bytes | str | Path
        What an undecoded ``Audio`` column holds (``bytes`` and ``path``), the bytes
        of a file, or its path.

    Yields
    ------
    OpenSound

    Raises
    ------
    UnreadableClip
        If there is no file, or it cannot be decoded, even if only later, while reading.

    Example
    -------
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros((5, 2)), 16000, format="FLAC")
    >>> with open_sound(file.getvalue()) as sound:
    ...     sound.samplerate, sound.next_block(3).shape, sound.next_block(3).shape
    (16000, (3, 2), (2, 2))
    """
    try:
        with _opened_file(audio) as file:
            if not file.read(1):
                raise UnreadableClip("not decodable: the file is empty")
            sound = _open_kind(file)
            try:
                yield sound
            finally:
                sound.close()
    except (soundfile.SoundFileError, OSError, TypeError, UnicodeError) as error:
        # For a file object soundfile's message begins with an address in memory.
        reason = getattr(error, "error_string", None) or str(error)
        raise UnreadableClip(f"not decodable: {reason}") from error


def _opened_file(audio: Audio) -> BinaryIO:
    content: Any = audio
    if isinstance(audio, dict):
        content = audio.get("bytes")
        if content is None:
            content = audio.get("path")
    if isinstance(content, bytes):
        return io.BytesIO(content)
    if isinstance(content, str | Path):
        if not os.path.isfile(content):  # opening a pipe would block
            raise UnreadableClip(f"not decodable: there is no file {content}")
        return open(os.path.abspath(content), "rb")  # "-" means stdin to libsndfile
    raise UnreadableClip("the row holds neither bytes nor the path of a file")


def _open_kind(file: BinaryIO) -> OpenSound:
    head = _bytes_at(file, _behind_tags(file, 0), 16)
    for pattern, kind in CONTAINERS.items():
        if re.match(pattern, head, re.DOTALL):
            return _Container(file, kind)
    pieces = _mp3_pieces(file)
    if first := next(pieces, None):
        return _Joined(file, chain([first], pieces), ID3_TAG)
    if len(links := list(_ogg_links(file))) > 1:
        return _Joined(file, links)
    name = getattr(file, "name", None)
    if name is None:
        sound = _Forwards(_Piece(file, 0, file.seek(0, os.SEEK_END)))
    else:  # as bytes, since names need not be UTF-8
        sound = _Forwards(name if os.name == "nt" else os.fsencode(name))
    if sound.format != "MP3":
        return sound
    sound.close()  # an MP3 that follows other bytes
    return _Joined(file, [(0, ENDLESS)], ID3_TAG)


class _Piece:
    """Presents part of a file to libsndfile as a file of its own.

    A damaged header may make libsndfile seek to before the beginning. As in a file on
    disk, the position then stays the same; an exception would only be printed, since
    it cannot pass through libsndfile.

    Arguments
    ---------
    file : BinaryIO
    start : int
        Offset of the part, bytes.
    length : int
        Bytes; ENDLESS hides where the file ends.
    head : bytes
        Bytes to put before the part.
    """

    def __init__(
        self, file: BinaryIO, start: int, length: int, head: bytes = b""
    ) -> None:
        self._file = file
        self._start = start - len(head)
        self._length = length + len(head)
        self._head = head
        self._place = 0
        self._held, self._held_from = b"", 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self._place, self._length)[whence]
        if place >= 0:
            self._place = place
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        size = min(size, self._length - self._place)
        if size <= 0:
            return b""
        if self._place >= ENDLESS - ID3V1_BYTES:  # where libsndfile looks for a tag
            content = bytes(size)
        elif self._place < len(self._head):
            content = self._head[self._place :][:size]
            # A short read here would be taken for the end of the file.
            more = size - len(content)
            content += self._bytes_at(self._start + len(self._head), more)
        else:
            content = self._bytes_at(self._start + self._place, size)
        self._place += len(content)
        return content

    def _bytes_at(self, place: int, size: int) -> bytes:
        """Reads through a buffer: libsndfile reads MP3s in hundreds of bytes."""
        begin = place - self._held_from
        if not 0 <= begin <= len(self._held) - size:
            begin, self._held_from = 0, place
            self._held = _bytes_at(self._file, place, max(size, HELD_BYTES))
        return self._held[begin : begin + size]

    def write(self, _content: bytes) -> int:  # soundfile requires the method
        raise io.UnsupportedOperation("write")


class _Forwards(soundfile.SoundFile, OpenSound):
    """Reads a file with libsndfile from beginning to end.

    In a seekable file, soundfile seeks to its position again after every read, which
    libsndfile finds only roughly in an MP3: hundreds of samples of the next block were
    wrong.
    """

    def seekable(self) -> bool:
        return False

    def __init__(self, file: Any) -> None:
        with uninterrupted():
            super().__init__(file)

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        with uninterrupted():
            return self.read(num_frames, dtype="float32", always_2d=True)

    def skip(self, num_frames: int) -> int:
        is_exact = self.format in EXACT_FORMATS
        if is_exact and self.subtype.startswith(EXACT_SUBTYPES):
            if 0 < num_frames < self.frames:
                with uninterrupted():
                    return self.seek(num_frames)
        return OpenSound.skip(self, num_frames)

    def count_frames(self) -> int:
        is_counted = self.frames < LONGEST_COUNTED
        return self.frames if is_counted else OpenSound.count_frames(self)


class _Joined(OpenSound):
    """Reads several sounds joined in one file, one after the other; or one MP3.

    Arguments
    ---------
    file : BinaryIO
    pieces : iterable of (int, int)
        Start and length of each, bytes.
    head : bytes
        Bytes to put before each.
    """

    def __init__(
        self, file: BinaryIO, pieces: Iterable[tuple[int, int]], head: bytes = b""
    ) -> None:
        self._sounds = (_Forwards(_Piece(file, *piece, head)) for piece in pieces)
        self._sound = next(self._sounds)
        self.samplerate, self.channels = self._sound.samplerate, self._sound.channels

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        block = self._sound.next_block(num_frames)
        while not len(block):
            following = next(self._sounds, None)
            if following is None:
                break
            self.close()
            self._sound, self.channels = following, following.channels
            if following.samplerate != self.samplerate:
                raise UnreadableClip(
                    f"it joins sounds of {self.samplerate} and {following.samplerate} "
                    "Hz; split it into two files"
                )
            block = following.next_block(num_frames)
        return block

    def count_frames(self) -> int:
        num_frames = 0
        for sound in chain([self._sound], self._sounds):
            num_frames += sound.count_frames()
            sound.close()
        return num_frames

    def close(self) -> None:
        self._sound.close()


class _Container(OpenSound):
    """Decodes the first audio stream of a file with PyAV, where libsndfile cannot.

    Arguments
    ---------
    file : BinaryIO
        An open file, since ffmpeg takes a name for a URL that it may look up.
    kind : str
        ffmpeg's name for its format.
    """

    def __init__(self, file: BinaryIO, kind: str) -> None:
        try:
            import av
        except ImportError:
            raise UnreadableClip(NO_PYAV) from None
        self._fault = av.FFmpegError
        self._resampler = av.AudioResampler(format="fltp")  # changes the type only
        file.seek(0)
        try:
            self._container = av.open(file, "r", format=kind)
        except self._fault as error:
            raise UnreadableClip(f"not decodable: {error.strerror}") from error
        self._blocks = self._decoded()
        # The decoded sound gives the rate: a header may state half of it (HE-AAC).
        first = next(self._blocks, None)
        if first is None:
            self.close()
            raise UnreadableClip("it has no sound, or none that can be decoded")
        self._held = first
        self.channels = first.shape[1]

    def _decoded(self) -> Iterator[NDArray[np.float32]]:
        if not self._container.streams.audio:
            return
        try:
            for frame in chain(self._container.decode(audio=0), [None]):
                for resampled in self._resampler.resample(frame):
                    self.samplerate = resampled.sample_rate
                    yield np.asarray(resampled.to_ndarray().T, np.float32)
        except (self._fault, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UnreadableClip(f"not decodable: {reason}") from error

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        blocks = [self._held]
        while sum(map(len, blocks)) < num_frames:
            block = next(self._blocks, None)
            if block is None:
                break
            blocks.append(block)
        joined = np.concatenate(blocks)
        self._held = joined[num_frames:]
        return joined[:num_frames]

    def close(self) -> None:
        self._container.close()


def _bytes_at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _behind_tags(file: BinaryIO, place: int) -> int:
    """Returns the offset at which the ID3 tags at ``place`` end."""
    for _tag in range(MAX_TAGS):
        head = _bytes_at(file, place, 10)
        if head.startswith(b"ID3") and len(head) == 10:
            sevens = [byte & 127 for byte in head[6:]]  # each has 7 bits of the size
            size = sum(bits << 7 * (3 - n) for n, bits in enumerate(sevens))
            place += 10 + size + (10 if head[5] & 16 else 0)  # with a footer
        elif head.startswith(b"TAG"):
            place += ID3V1_BYTES
        else:
            break
    return place


def _mp3_pieces(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yields start and length, in bytes, of each MP3 at the beginning of a file.

    Several are joined if another one begins where the first ends according to its
    header. libsndfile would stop there.
    """
    size = file.seek(0, os.SEEK_END)
    start, is_last = 0, False
    while not is_last:
        start = _behind_tags(file, start)
        head = _bytes_at(file, start, 56)
        if not _begins_mp3(head):
            return
        frames, length = _counts_of(head)
        end = start + length
        is_last = not (frames and length and end < size) or not _begins_mp3(
            _bytes_at(file, _behind_tags(file, end), 4)
        )
        if is_last:
            length = size - start if frames else ENDLESS
        yield start, length
        start += length


def _ogg_links(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yields start and length, in bytes, of each of the Ogg streams chained in a file.

    libsndfile reads only the first. Multiplexed streams, such as pictures and sound,
    all begin with one page each, before any other page.
    """
    start = place = 0
    is_begun = False
    while (head := _bytes_at(file, place, 27)).startswith(b"OggS") and len(head) == 27:
        is_first = bool(head[5] & 2)  # is the first page of its stream
        if is_first and is_begun:
            yield start, place - start
            start = place
        is_begun = not is_first
        place += 27 + head[26] + sum(file.read(head[26]))
    if place:
        yield start, file.seek(0, os.SEEK_END) - start


def _begins_mp3(head: bytes) -> bool:
    """Whether the bytes begin with the header of an MPEG audio frame."""
    bits = int.from_bytes(head[:4], "big")
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    bit_rate, sample_rate = bits >> 12 & 15, bits >> 10 & 3
    is_legal = version != 1 and layer != 0 and bit_rate != 15 and sample_rate != 3
    return len(head) >= 4 and bits >> 21 == 0x7FF and is_legal


def _counts_of(head: bytes) -> tuple[int, int]:
    """Returns the frames and bytes of an MP3 as its first frame gives them; 0: none.

    libsndfile does not read the counts of Fraunhofer's encoders (VBRI), so files with
    these have none.
    """
    if found := re.search(rb"Xing|Info", head[:44]):
        flags, *counts = _numbers(head[found.end() :], 3)
        frames = counts.pop(0) if flags & 1 else 0
        return frames, counts.pop(0) if flags & 2 else 0
    return 0, 0


def _numbers(content: bytes, count: int) -> list[int]:
    """Reads big-endian numbers of 32 bits; those that are cut off are 0."""
    cut = content[: 4 * count].ljust(4 * count, b"\0")
    return [int.from_bytes(cut[at : at + 4], "big") for at in range(0, len(cut), 4)]
