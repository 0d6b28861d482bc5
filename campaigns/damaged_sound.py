"""A seeded maker of files that were sound once, or never, by names of sound.

File ``number`` of a seed is the same whatever others are made; its name has what
was done to it.
"""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import soundfile

from efficientat_plugin.export.comparison_clips import synthesised


class DamagedFile(NamedTuple):
    name: str
    content: bytes
    must: str | None  # "read" or "refuse"; None: either will do


class Form(NamedTuple):
    """What libsndfile is asked for."""

    format: str
    subtype: str
    suffix: str
    rate: int
    channels: int = 1


FORMS = {
    "wav16": Form("WAV", "PCM_16", ".wav", 32000),
    "wav16_stereo": Form("WAV", "PCM_16", ".wav", 44100, 2),
    "wav24": Form("WAV", "PCM_24", ".wav", 8000),
    "wav32": Form("WAV", "PCM_32", ".wav", 16000, 2),
    "wav8": Form("WAV", "PCM_U8", ".wav", 11025),
    "wav_float": Form("WAV", "FLOAT", ".wav", 32000),
    "wav_double": Form("WAV", "DOUBLE", ".wav", 16000, 3),
    "wav_ulaw": Form("WAV", "ULAW", ".wav", 8000),
    "wav_alaw": Form("WAV", "ALAW", ".wav", 8000, 2),
    "wav_ima": Form("WAV", "IMA_ADPCM", ".wav", 22050),
    "wav_ms": Form("WAV", "MS_ADPCM", ".wav", 22050, 2),
    "wav_gsm": Form("WAV", "GSM610", ".wav", 8000),
    "wav_g721": Form("WAV", "G721_32", ".wav", 8000),
    "wav_nms": Form("WAV", "NMS_ADPCM_32", ".wav", 8000),
    "wavex": Form("WAVEX", "PCM_16", ".wav", 48000, 6),
    "rf64": Form("RF64", "PCM_16", ".wav", 32000),
    "w64": Form("W64", "PCM_16", ".wav", 32000),
    "flac": Form("FLAC", "PCM_16", ".flac", 32000),
    "flac24": Form("FLAC", "PCM_24", ".flac", 48000, 2),
    "vorbis": Form("OGG", "VORBIS", ".ogg", 32000),
    "vorbis_stereo": Form("OGG", "VORBIS", ".ogg", 44100, 2),
    "opus": Form("OGG", "OPUS", ".opus", 48000),
    "opus_stereo": Form("OGG", "OPUS", ".opus", 24000, 2),
    "mp3": Form("MP3", "MPEG_LAYER_III", ".mp3", 32000),
    "mp3_stereo": Form("MP3", "MPEG_LAYER_III", ".mp3", 44100, 2),
    "aiff": Form("AIFF", "PCM_16", ".wav", 32000),
    "aiff_float": Form("AIFF", "FLOAT", ".wav", 16000, 2),
    "aiff_ima": Form("AIFF", "IMA_ADPCM", ".wav", 22050),
    "aiff_dwvw": Form("AIFF", "DWVW_24", ".wav", 22050),
    "au": Form("AU", "PCM_16", ".wav", 16000),
    "caf_alac": Form("CAF", "ALAC_16", ".wav", 32000, 2),  # codespell:ignore
    "voc": Form("VOC", "PCM_16", ".wav", 16000),
}


def written(form: Form, sound: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, form.rate, form.subtype, format=form.format)
    return file.getvalue()


@cache
def whole(form_name: str, seconds: float = 0.6) -> bytes:
    """A good file of a form: [N, channels], each of another sound."""
    form = FORMS[form_name]
    num_samples = round(seconds * form.rate)
    sounds = [synthesised(num_samples, form.rate, n) for n in range(form.channels)]
    return written(form, 0.5 * np.stack(sounds, axis=1))


# --- Damage that knows nothing of formats ---------------------------------------


def _flipped_bits(content, rng):
    changed = bytearray(content)
    for _ in range(rng.integers(1, 65)):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flipped_header(content, rng):
    return _flipped_bits(content[:100], rng) + content[100:]


def _cut(content, rng):
    return content[: rng.integers(len(content))]


def _cut_header(content, rng):
    return content[: rng.integers(100)]


def _bytes_lost(content, rng):
    start, stop = sorted(rng.integers(len(content), size=2))
    return content[:start] + content[stop:]


def _beginning_lost(content, rng):
    return content[rng.integers(1, len(content)) :]


def _bytes_twice(content, rng):
    start, stop = sorted(rng.integers(len(content), size=2))
    return content[:stop] + content[start:]


def _noise_in_it(content, rng):
    start, stop = sorted(rng.integers(len(content), size=2))
    return content[:start] + rng.bytes(stop - start) + content[stop:]


def _hole(content, rng):
    start, stop = sorted(rng.integers(len(content), size=2))
    return content[:start] + bytes(stop - start) + content[stop:]


def _two_files(content, rng):
    other = whole(str(rng.choice(list(FORMS))))
    return content[: rng.integers(len(content))] + other[rng.integers(len(other)) :]


WORDS = [0, 1, 7, 255, 256, 1000, 1024, 32767, 32768, 65535, 10**7, 2**31 - 1, 2**31]
WORDS += [2**32 - 1, 2**32 - 8, 4_000_000_000]


def _lying_word(content, rng):
    """A number that stands at an even place of the header, whatever it holds."""
    size = int(rng.choice([2, 4, 8]))
    place = 2 * int(rng.integers(min(len(content) - size, 200) // 2))
    order = str(rng.choice(["little", "big"]))
    word = int(rng.choice(WORDS)) % 2 ** (8 * size)
    return content[:place] + word.to_bytes(size, order) + content[place + size :]


# --- Headers that lie -----------------------------------------------------------


class Field(NamedTuple):
    """Where a number stands: behind a marker, and in which of its bits."""

    marker: bytes
    offset: int  # from the marker's beginning
    size: int  # bytes
    order: str
    shift: int = 0
    bits: int | None = None


FIELDS = {
    "RIFF": {
        "channels": Field(b"fmt ", 10, 2, "little"),
        "rate": Field(b"fmt ", 12, 4, "little"),
        "format": Field(b"fmt ", 8, 2, "little"),
        "align": Field(b"fmt ", 20, 2, "little"),
        "depth": Field(b"fmt ", 22, 2, "little"),
        "block": Field(b"fmt ", 26, 2, "little"),
        "length": Field(b"data", 4, 4, "little"),
        "size": Field(b"RIFF", 4, 4, "little"),
        "frames": Field(b"fact", 8, 4, "little"),
    },
    "FORM": {
        "channels": Field(b"COMM", 8, 2, "big"),
        "frames": Field(b"COMM", 10, 4, "big"),
        "depth": Field(b"COMM", 14, 2, "big"),
        "rate": Field(b"COMM", 16, 2, "big"),  # the exponent of a float
        "length": Field(b"SSND", 4, 4, "big"),
        "block": Field(b"SSND", 8, 4, "big"),
    },
    "fLaC": {
        "block": Field(b"fLaC", 8, 4, "big"),
        "rate": Field(b"fLaC", 18, 8, "big", 44, 20),
        "channels": Field(b"fLaC", 18, 8, "big", 41, 3),
        "depth": Field(b"fLaC", 18, 8, "big", 36, 5),
        "length": Field(b"fLaC", 18, 8, "big", 0, 36),
    },
    "vorbis": {
        "channels": Field(b"\x01vorbis", 11, 1, "little"),
        "rate": Field(b"\x01vorbis", 12, 4, "little"),
        "block": Field(b"\x01vorbis", 28, 1, "little"),
    },
    "opus": {
        "channels": Field(b"OpusHead", 9, 1, "little"),
        "length": Field(b"OpusHead", 10, 2, "little"),  # to leave out
        "rate": Field(b"OpusHead", 12, 4, "little"),
        "format": Field(b"OpusHead", 16, 2, "little"),  # gain
        "depth": Field(b"OpusHead", 18, 1, "little"),  # mapping
    },
    "mp3": {
        "frames": Field(b"Info", 8, 4, "big"),
        "size": Field(b"Info", 12, 4, "big"),
    },
    "au": {
        "length": Field(b".snd", 8, 4, "big"),
        "format": Field(b".snd", 12, 4, "big"),
        "rate": Field(b".snd", 16, 4, "big"),
        "channels": Field(b".snd", 20, 4, "big"),
    },
    "caf": {  # codespell:ignore
        "channels": Field(b"desc", 36, 4, "big"),
        "block": Field(b"desc", 28, 4, "big"),
        "frames": Field(b"desc", 32, 4, "big"),
        "depth": Field(b"desc", 40, 4, "big"),
        "length": Field(b"data", 4, 8, "big"),
    },
    "w64": {"length": Field(b"data", 16, 8, "little")},
    "OggS": {"length": Field(b"OggS", 6, 8, "little")},  # samples until then
}
ORDINARY = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 64, 128, 8000, 768_000]


def _lying_header(content, rng):
    fields = [field for family in FIELDS.values() for field in family.values()]
    for _ in range(rng.integers(1, 3)):
        present = [field for field in fields if field.marker in content]
        if not present:
            return _lying_word(content, rng)
        field = present[rng.integers(len(present))]
        values = WORDS if rng.random() < 0.7 else ORDINARY
        content = _with_field(content, field, int(rng.choice(values)))
    return content


def _with_field(content: bytes, field: Field, value: int) -> bytes:
    start = content.index(field.marker) + field.offset
    stop = start + field.size
    bits = 8 * field.size if field.bits is None else field.bits
    mask = (1 << bits) - 1 << field.shift
    number = int.from_bytes(content[start:stop], field.order)
    number = number & ~mask | value << field.shift & mask
    return content[:start] + number.to_bytes(field.size, field.order) + content[stop:]


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """The CRC-32 of RFC 3533, section 6: highest bit first and without inversion."""
    inverted = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{inverted:032b}"[::-1], 2)


def with_ogg_checksums(content: bytes) -> bytes:
    """Or a page of OGG that was changed is not looked at."""
    pages, start = bytearray(content), content.find(b"OggS")
    while 0 <= start and start + 27 <= len(pages):
        lacing = pages[start + 27 : start + 27 + pages[start + 26]]
        stop = start + 27 + len(lacing) + sum(lacing)
        pages[start + 22 : start + 26] = bytes(4)
        checksum = _ogg_checksum(bytes(pages[start:stop]))
        pages[start + 22 : start + 26] = checksum.to_bytes(4, "little")
        start = pages.find(b"OggS", stop)
    return bytes(pages)


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "flipped_bits": _flipped_bits,
    "flipped_header": _flipped_header,
    "cut": _cut,
    "cut_header": _cut_header,
    "bytes_lost": _bytes_lost,
    "beginning_lost": _beginning_lost,
    "bytes_twice": _bytes_twice,
    "noise_in_it": _noise_in_it,
    "hole": _hole,
    "two_files": _two_files,
    "lying_word": _lying_word,
    "lying_header": _lying_header,
}


def _damaged(rng: np.random.Generator) -> DamagedFile:
    form_name = str(rng.choice(list(FORMS)))
    # Headers are small and decide about the most.
    kinds = [*DAMAGE, "lying_header", "lying_header", "lying_word"]
    kind = str(rng.choice(kinds))
    content = DAMAGE[kind](whole(form_name), rng)
    if b"OggS" in content and rng.random() < 0.7:
        content = with_ogg_checksums(content)
    suffix = FORMS[form_name].suffix
    return DamagedFile(f"{form_name}-{kind}{suffix}", content, None)


# --- Whole files of what is no sound, or hardly ---------------------------------


def _of_samples(samples: np.ndarray, rate: int = 32000, subtype: str = "FLOAT"):
    return written(Form("WAV", subtype, ".wav", rate), samples)


def _sound(rng, seconds=0.3):
    return 0.1 * rng.standard_normal(round(seconds * 32000))


def _with(value, subtype="FLOAT"):
    def made(rng):
        sound = _sound(rng)
        sound[rng.integers(len(sound), size=rng.integers(1, 50))] = value
        return _of_samples(sound, subtype=subtype)

    return made


def _both_infinities(rng):
    return _of_samples(np.tile([[np.inf, -np.inf]], (9600, 1)))


def _image(rng):
    """A PNG of noise."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + checksum.to_bytes(4, "big")
        )

    size = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + rng.bytes(64) for _ in range(64))
    image = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + image + chunk(b"IEND", b"")


def _text(rng):
    return b"<html><body>404 This video is not available.</body></html>\n" * int(
        rng.integers(1, 200)
    )


def _many_channels(rng):
    return _of_samples(0.1 * rng.standard_normal((2000, 1000)).astype(np.float32))


def _denormal(rng):
    return _of_samples(_sound(rng) * 1e-40, subtype="DOUBLE")


MADE: dict[str, tuple[str | None, Callable[[np.random.Generator], bytes]]] = {
    "empty": ("refuse", lambda rng: b""),
    "text": ("refuse", _text),
    "image": ("refuse", _image),
    "random": (None, lambda rng: rng.bytes(int(rng.integers(1, 20000)))),
    "zeros": ("refuse", lambda rng: bytes(int(rng.integers(1, 20000)))),
    "no_frames": ("refuse", lambda rng: _of_samples(np.zeros(0))),
    "one_frame": ("read", lambda rng: _of_samples(np.ones(1))),
    "one_hertz": ("refuse", lambda rng: _of_samples(_sound(rng), 1)),
    "too_slow": ("refuse", lambda rng: _of_samples(_sound(rng), 999)),
    "slowest": ("read", lambda rng: _of_samples(_sound(rng, 0.01), 1000)),
    "fastest": ("read", lambda rng: _of_samples(_sound(rng, 3.0), 768_000)),
    "ten_megahertz": ("refuse", lambda rng: _of_samples(_sound(rng), 10_000_000)),
    "many_channels": ("read", _many_channels),
    "nan": ("refuse", _with(np.nan)),
    "infinite": ("refuse", _with(np.inf)),
    "minus_infinite": ("refuse", _with(-np.inf)),
    "both_infinities": ("refuse", _both_infinities),
    "huge": ("refuse", _with(1e30)),
    "largest": ("refuse", _with(np.finfo(np.float32).max)),
    "beyond_float32": ("refuse", _with(1e300, "DOUBLE")),
    "denormal": ("read", _denormal),
    "above_full_scale": ("read", lambda rng: _of_samples(40 * _sound(rng))),
    "full_scale": (
        "read",
        lambda rng: _of_samples(np.sign(_sound(rng)), subtype="PCM_16"),
    ),
    "constant": ("read", lambda rng: _of_samples(np.full(9600, 0.9))),
    "silent": ("read", lambda rng: _of_samples(np.zeros(9600))),
}


def _made(rng: np.random.Generator, kind: str) -> DamagedFile:
    must, make = MADE[kind]
    suffix = str(rng.choice([".wav", ".flac", ".ogg", ".mp3", ".opus"]))
    return DamagedFile(f"{kind}{suffix}", make(rng), must)


def damaged_file(seed: int, number: int) -> DamagedFile:
    """The file of a number; the first are of every kind in ``MADE``."""
    rng = np.random.default_rng([seed, number])
    kinds = list(MADE)
    if number < len(kinds):
        file = _made(rng, kinds[number])
    elif rng.random() < 0.1:
        file = _made(rng, str(rng.choice(kinds)))
    else:
        file = _damaged(rng)
    return file._replace(name=f"{number:05d}-{file.name}")
