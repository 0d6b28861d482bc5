"""A file of sound, opened to be read once, from beginning to end."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

# What a file begins with, behind any ID3 tags, and ffmpeg's name of the format. No
# other one is tried: some (playlists) name files, which ffmpeg would open.
CONTAINERS = {
    rb"....(ftyp|moov|mdat|wide)": "mov",
    rb"\x1a\x45\xdf\xa3": "matroska",
    rb"\xff[\xf0\xf1\xf8\xf9]": "aac",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
}
NO_PYAV = (
    "it is M4A, MP4, AAC, WebM, Matroska or WMA, which PyAV reads, and that is not "
    "installed; give the command: pip install 'efficientat_plugin[containers]'"
)
# Where libsndfile finds a place to the sample; elsewhere what comes before is read.
EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF")
EXACT_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# More than any file holds. libsndfile reads an MP3 as far as it estimates it to go by
# its size and its first frame.
ENDLESS = 2**40
LONGEST_COUNTED = 2**32  # frames, and fewer than are estimated from that
# Padding to go before an MP3, which libsndfile may take for another format without it.
ID3_TAG = b"ID3\3\0\0\0\0\0\x22" + bytes(0x22)
ID3V1_BYTES = 128  # at the end of a file
HELD_BYTES = 65536  # of a file, to be read bit by bit
MAX_TAGS = 16  # in a row, before sound
SKIPPED_FRAMES = 65536  # at once

Audio: TypeAlias = "dict[str, Any] | bytes | str | Path"


class UnreadableClip(ValueError):
    """Sound that no clip can be made of; its text says which, if it is known, and why.

    Arguments
    ---------
    reason : str
    name : str, Path or None
        Of the file.
    """

    def __init__(self, reason: str, name: str | Path | None = None) -> None:
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


class OpenSound(Protocol):
    """Sound that is read forwards."""

    @property
    def samplerate(self) -> int:
        """Hz"""

    @property
    def channels(self) -> int:
        """Of what is read next."""

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        """The next [frames, channels]: at most so many, and none at the end."""

    def skip(self, num_frames: int) -> int:
        """Passes over so many frames, or what is left of them; says how many."""

    def count_frames(self) -> int:
        """How many there are; nothing can be read afterwards."""

    def close(self) -> None:
        """Lets go of the file."""


@contextmanager
def open_sound(audio: Audio) -> Iterator[OpenSound]:
    """Opens a file of sound, whatever its format.

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
        Where there is no file, or none that can be decoded, be it later on.

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
        # soundfile begins with an address in memory, of what is no path.
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
        if not os.path.isfile(content):  # a pipe that is opened would be waited for
            raise UnreadableClip(f"not decodable: there is no file {content}")
        return open(os.path.abspath(content), "rb")  # "-" is no name to libsndfile
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
    else:  # any name, and not only one of UTF-8
        sound = _Forwards(name if os.name == "nt" else os.fsencode(name))
    if sound.format != "MP3":
        return sound
    sound.close()  # an MP3 behind something else
    return _Joined(file, [(0, ENDLESS)], ID3_TAG)


class _Piece:
    """Part of a file, as a file of its own for libsndfile.

    A header that is damaged may send it before the beginning. As with a file on the
    disk the place stays what it was; an exception would be printed, since there is no
    way for it through libsndfile.

    Arguments
    ---------
    file : BinaryIO
    start : int
        Where it begins, bytes.
    length : int
        Bytes; ENDLESS for a file whose end nobody is to find.
    head : bytes
        To go before.
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
            # A read that ended here would be taken for the end of the file.
            more = size - len(content)
            content += self._bytes_at(self._start + len(self._head), more)
        else:
            content = self._bytes_at(self._start + self._place, size)
        self._place += len(content)
        return content

    def _bytes_at(self, place: int, size: int) -> bytes:
        """Out of a chunk that is held: libsndfile reads an MP3 in hundreds of bytes."""
        begin = place - self._held_from
        if not 0 <= begin <= len(self._held) - size:
            begin, self._held_from = 0, place
            self._held = _bytes_at(self._file, place, max(size, HELD_BYTES))
        return self._held[begin : begin + size]

    def write(self, _content: bytes) -> int:  # which soundfile asks of any file
        raise io.UnsupportedOperation("write")


class _Skipping:
    """Sound in which no place can be found but by reading up to it."""

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        raise NotImplementedError

    def skip(self, num_frames: int) -> int:
        num_skipped = 0
        while num_skipped < num_frames:
            left = num_frames - num_skipped
            block = self.next_block(min(left, SKIPPED_FRAMES))
            if not len(block):
                break
            num_skipped += len(block)
        return num_skipped

    def count_frames(self) -> int:
        lengths = iter(lambda: len(self.next_block(SKIPPED_FRAMES)), 0)
        return sum(lengths)


class _Forwards(soundfile.SoundFile, _Skipping):
    """A file that libsndfile reads from beginning to end.

    Of a file that can be searched, soundfile looks up its place again after every read,
    which libsndfile finds only roughly in an MP3: hundreds of samples of the next block
    were wrong.
    """

    def seekable(self) -> bool:
        return False

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        return self.read(num_frames, dtype="float32", always_2d=True)

    def skip(self, num_frames: int) -> int:
        is_exact = self.format in EXACT_FORMATS
        if is_exact and self.subtype.startswith(EXACT_SUBTYPES):
            if 0 < num_frames < self.frames:
                return self.seek(num_frames)
        return _Skipping.skip(self, num_frames)

    def count_frames(self) -> int:
        is_counted = self.frames < LONGEST_COUNTED
        return self.frames if is_counted else _Skipping.count_frames(self)


class _Joined(_Skipping):
    """Sounds that were joined to one file, each read to its end; or one MP3.

    Arguments
    ---------
    file : BinaryIO
    pieces : iterable of (int, int)
        Where each begins, and its length, bytes.
    head : bytes
        To go before each.
    """

    def __init__(
        self, file: BinaryIO, pieces: Iterable[tuple[int, int]], head: bytes = b""
    ) -> None:
        self._sounds = (_Forwards(_Piece(file, *piece, head)) for piece in pieces)
        self._sound = next(self._sounds)
        self.samplerate = self._sound.samplerate

    @property
    def channels(self) -> int:
        return self._sound.channels

    def next_block(self, num_frames: int) -> NDArray[np.float32]:
        block = self._sound.next_block(num_frames)
        while not len(block):
            following = next(self._sounds, None)
            if following is None:
                break
            self.close()
            self._sound = following
            if following.samplerate != self.samplerate:
                raise UnreadableClip(
                    f"sounds of {self.samplerate} and {following.samplerate} Hz are "
                    "joined in it; give them as two files"
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


class _Container(_Skipping):
    """The first sound of a file that libsndfile does not read, by PyAV.

    Arguments
    ---------
    file : BinaryIO
        As a file, since ffmpeg takes a name for an address that it may look up.
    kind : str
        ffmpeg's name of its format.
    """

    def __init__(self, file: BinaryIO, kind: str) -> None:
        try:
            import av
        except ImportError:
            raise UnreadableClip(NO_PYAV) from None
        self._fault = av.FFmpegError
        self._resampler = av.AudioResampler(format="fltp")  # another type, and no more
        file.seek(0)
        try:
            self._container = av.open(file, "r", format=kind)
        except self._fault as error:
            raise UnreadableClip(f"not decodable: {error.strerror}") from error
        self._blocks = self._decoded()
        # Of what is decoded: a header may tell half of the rate (HE-AAC).
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
    """Where the ID3 tags at a place end."""
    for _tag in range(MAX_TAGS):
        head = _bytes_at(file, place, 10)
        if head.startswith(b"ID3") and len(head) == 10:
            sevens = [byte & 127 for byte in head[6:]]  # seven bits of the size each
            size = sum(bits << 7 * (3 - n) for n, bits in enumerate(sevens))
            place += 10 + size + (10 if head[5] & 16 else 0)  # with a footer
        elif head.startswith(b"TAG"):
            place += ID3V1_BYTES
        else:
            break
    return place


def _mp3_pieces(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Start and length of each MP3 that a file begins with, bytes.

    Several were joined where another one begins at the end that the header of the first
    one tells. libsndfile would go on no further than that.
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
    """Start and length of each Ogg stream that follows another in a file, bytes.

    libsndfile reads the first. Streams at once, as of pictures and sound, begin with
    one page each, before any other page.
    """
    start = place = 0
    is_begun = False
    while (head := _bytes_at(file, place, 27)).startswith(b"OggS") and len(head) == 27:
        is_first = bool(head[5] & 2)  # page of its stream
        if is_first and is_begun:
            yield start, place - start
            start = place
        is_begun = not is_first
        place += 27 + head[26] + sum(file.read(head[26]))
    if place:
        yield start, file.seek(0, os.SEEK_END) - start


def _begins_mp3(head: bytes) -> bool:
    """Whether there is the header of a frame of MPEG audio."""
    bits = int.from_bytes(head[:4], "big")
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    bit_rate, sample_rate = bits >> 12 & 15, bits >> 10 & 3
    is_legal = version != 1 and layer != 0 and bit_rate != 15 and sample_rate != 3
    return len(head) >= 4 and bits >> 21 == 0x7FF and is_legal


def _counts_of(head: bytes) -> tuple[int, int]:
    """Frames and bytes of an MP3 by its first frame; 0 where that does not tell."""
    if found := re.search(rb"Xing|Info", head[:44]):
        flags, *counts = np.frombuffer(head[found.end() :][:12], ">u4").tolist()
        frames = counts.pop(0) if flags & 1 else 0
        return frames, counts.pop(0) if flags & 2 else 0
    if head[36:40] == b"VBRI":
        length, frames = np.frombuffer(head[46:54], ">u4").tolist()
        return frames, length
    return 0, 0
