"""Sound of every format is read whole, in blocks, and from any place on."""

import io
import itertools

import numpy as np
import pytest
import soundfile

from efficientat_plugin.cli.inputs import decoded_ahead
from efficientat_plugin.data import sound_files
from efficientat_plugin.data.decoding import (
    ClipReader,
    UnreadableClip,
    decode,
    decode_blocks,
)
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.sound_files import open_sound
from efficientat_plugin.tagging.streams import blocks_of

RATE = 16000
NUM_FRAMES = 150_000  # more than two blocks
# Without a header, and with a second file beside it.
NOT_ALONE = ("RAW", "SD2")
KINDS = [
    pair
    for name in sorted(soundfile.available_formats())
    for pair in itertools.product([name], sorted(soundfile.available_subtypes(name)))
    if name not in NOT_ALONE and soundfile.check_format(*pair)
]
CONTAINERS = [
    ("mp4", "aac", "m4a"),
    ("mp4", "alac", "m4a"),
    ("adts", "aac", "aac"),
    ("webm", "libopus", "webm"),
    ("matroska", "ac3", "mka"),
]


def recording(num_frames: int = NUM_FRAMES, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(0)
    seconds = np.arange(num_frames) / rate
    noise = 0.1 * rng.standard_normal(num_frames)
    return 0.3 * np.sin(2 * np.pi * 440 * seconds) + noise


def written(kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, recording(rate=rate), rate, subtype, format=kind)
    return file.getvalue()


def mp3(num_frames: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, recording(num_frames), RATE, format="MP3")
    return file.getvalue()


def uncounted_mp3(
    rate: int = RATE,
    num_frames: int = NUM_FRAMES,
    mode: str = "VARIABLE",
    counts: bytes = b"",
) -> bytes:
    """An MP3 of variable or average rate, as ffmpeg writes it to a pipe: uncounted.

    It begins with noise, which takes many bytes, so that it seems shorter than it is.
    ``counts`` replace those of the encoder.
    """
    file = io.BytesIO()
    sound = recording(num_frames, rate)
    sound[num_frames // 4 :] *= 1e-3
    with soundfile.SoundFile(
        file,
        "w",
        rate,
        1,
        format="MP3",
        bitrate_mode=mode,
        compression_level={"VARIABLE": 0.2, "AVERAGE": 0.8}[mode],
    ) as mp3:
        mp3.write(sound)
    content = file.getvalue()
    start = content.index(b"Xing") - 13  # the frame that holds the count
    length = frame_length(content[start:])
    head = content[start:][:4] + bytes(32) + counts
    head = head.ljust(length, b"\0") if counts else b""
    return content[:start] + head + content[start + length :]


def frame_length(head: bytes) -> int:
    """Bytes of a frame of MPEG-2, layer III."""
    bits = int.from_bytes(head[:4], "big")
    kilobits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    rates = (22050, 24000, 16000)
    bit_rate, rate = kilobits[bits >> 12 & 15] * 1000, rates[bits >> 10 & 3]
    return 72 * bit_rate // rate + (bits >> 9 & 1)


def joined(audio, rate: int = RATE) -> np.ndarray:
    return np.concatenate(list(decode_blocks(audio, rate)))


def container(kind: str, codec: str, rate: int = 48000) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    samples = recording(rate=rate).astype(np.float32)[None]
    with av.open(file, "w", format=kind) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        size = {"libopus": 960, "ac3": 1536}.get(codec, 1024)
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_blocks_are_the_whole_sample_for_sample(tmp_path, kind, subtype):
    rate = 48000 if subtype == "OPUS" else 8000 if kind == "WVE" else RATE
    try:
        content = written(kind, subtype, rate)
        with open(tmp_path / f"sound.{kind.lower()}", "wb") as file:
            file.write(content)  # by whose name libsndfile knows some
        with soundfile.SoundFile(file.name) as sound:
            # In one read: libsndfile finds a place in an MP3 only roughly.
            expected = sound.read(2 * NUM_FRAMES, "float32")
            found_rate = sound.samplerate
    except soundfile.SoundFileError:
        pytest.skip("libsndfile does not read what it wrote")
    if expected.ndim == 2:
        expected = expected.mean(axis=1)
    found = joined(file.name, found_rate)
    np.testing.assert_array_equal(found, expected)
    if kind in ("MP3", "OGG", "FLAC", "WAV"):
        np.testing.assert_array_equal(joined(content, found_rate), expected)
    for start, stop in ((0, 1000), (70_001, 71_001), (70_001, None)):
        segment = {"path": file.name, "start": start / found_rate}
        if stop is not None:
            segment["end"] = stop / found_rate
        cut = joined(segment, found_rate)
        np.testing.assert_array_equal(cut, expected[start:stop])


@pytest.mark.parametrize(("kind", "codec", "suffix"), CONTAINERS)
def test_containers_are_read_whole_and_in_part(tmp_path, kind, codec, suffix):
    content = container(kind, codec)
    path = tmp_path / f"sound.{suffix}"
    path.write_bytes(content)
    found = joined(path, 48000)
    assert abs(len(found) - NUM_FRAMES) <= 2 * 2048  # a coder's delay
    np.testing.assert_array_equal(joined(content, 48000), found)
    segment = {"path": path, "start": 70_001 / 48000, "end": 94_001 / 48000}
    part = joined(segment, 48000)
    np.testing.assert_array_equal(part, found[70_001 : 70_001 + 24000])
    sound = recording(rate=48000)
    delays = range(0, 4096)
    fits = [np.dot(found[d : d + 9000], sound[:9000]) for d in delays]
    delay = int(np.argmax(fits))
    ours = found[delay : delay + 9000]
    assert np.corrcoef(ours, sound[:9000])[0, 1] > 0.9
    with open_sound(path) as opened_sound:
        assert opened_sound.count_frames() == len(found)


@pytest.mark.parametrize(("kind", "codec", "suffix"), CONTAINERS)
def test_containers_without_pyav_are_refused_with_advice(
    monkeypatch, kind, codec, suffix
):
    content = container(kind, codec)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UnreadableClip, match=r"efficientat_plugin\[containers\]"):
        joined(content)


def test_a_playlist_is_not_handed_to_ffmpeg(tmp_path):
    """It would open the files that are named in it."""
    path = tmp_path / "list.m4a"
    path.write_text("#EXTM3U\n#EXTINF:10,\n/etc/hostname\n")
    with pytest.raises(UnreadableClip, match="not decodable"):
        joined(path)


# Counts of Fraunhofer's encoders, of 36684 bytes and 263 frames
VBRI = b"VBRI\0\1\0\0\0\0\0\0\x8f\x4c\0\0\1\7\0\0\0\1\0\2\0\1"


@pytest.mark.parametrize(
    "how", [{}, {"mode": "AVERAGE"}, {"counts": VBRI}], ids=["VBR", "ABR", "VBRI"]
)
def test_an_mp3_without_a_count_is_read_whole(tmp_path, how):
    content = uncounted_mp3(**how)
    path = tmp_path / "piped.mp3"
    path.write_bytes(content)
    assert soundfile.info(path).frames < 0.9 * NUM_FRAMES  # where libsndfile stops
    for audio in (content, path, {"bytes": content, "path": None}):
        found = joined(audio)
        assert NUM_FRAMES <= len(found) < NUM_FRAMES + 4000
        with open_sound(audio) as sound:
            assert sound.count_frames() == len(found)
    assert np.abs(decode(path, RATE, NUM_FRAMES, "zero_pad")[-RATE:]).max() > 0


def test_joined_mp3s_are_read_to_the_end_of_the_last():
    counted, uncounted = written("MP3"), uncounted_mp3()
    tag = b"TAG" + bytes(125)
    for pieces in (
        [counted, counted],
        [counted + tag, b"ID3\x03\0\0\0\0\0\x05abcde" + counted, counted],
        [counted, uncounted],
    ):
        expected = np.concatenate([joined(piece) for piece in pieces])
        np.testing.assert_array_equal(joined(b"".join(pieces)), expected)
    # Without a count the decoder continues from one to the next.
    found = joined(uncounted + uncounted)
    assert len(found) == pytest.approx(2 * len(joined(uncounted)), abs=1200)


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", RATE), ("OPUS", 48000)])
def test_joined_oggs_are_read_to_the_end_of_the_last(subtype, rate):
    content = written("OGG", subtype, rate)
    expected = np.tile(joined(content, rate), 3)
    np.testing.assert_array_equal(joined(content * 3, rate), expected)


def by_tagger(path):
    return np.concatenate(list(blocks_of(path, None, RATE)))


def by_command(path):
    (found,) = decoded_ahead([path], RATE, workers=1)
    return found.samples


def by_reader(path):
    table = LabelTable(["a"], ["A"])
    reader = ClipReader(table, clip_seconds=NUM_FRAMES / RATE, sample_rate=RATE)
    row = {"video_id": "a", "labels": [], "audio": {"bytes": None, "path": path}}
    return reader.read(row).waveform.numpy()


def by_preparation(path):
    clip = ClipEncoder("int16", sample_rate=RATE).encode({"path": path})
    return joined(clip.content)


WAYS = [by_tagger, by_command, by_reader, by_preparation]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["uncounted", "joined"])
def test_every_way_in_reads_an_mp3_whole(tmp_path, way, how):
    path = tmp_path / "sound.mp3"
    half = NUM_FRAMES // 2
    pieces = {"uncounted": [uncounted_mp3()], "joined": [mp3(half), mp3(half)]}[how]
    path.write_bytes(b"".join(pieces))
    expected = np.concatenate([joined(piece) for piece in pieces])
    found = way(path)
    assert len(expected) >= NUM_FRAMES
    length = min(len(found), len(expected))
    assert length >= NUM_FRAMES
    np.testing.assert_allclose(found[:length], expected[:length], atol=1e-4)


def test_joined_mp3s_of_two_rates_are_refused():
    with pytest.raises(UnreadableClip, match="joins sounds of 16000 and 32000 Hz"):
        joined(written("MP3") + written("MP3", rate=32000))


def test_an_mp3_of_endless_tags_ends():
    tag = b"ID3\x03\0\0\0\0\0\0"
    with pytest.raises(UnreadableClip, match="not decodable"):
        joined(tag * 100_000)
    assert sound_files.MAX_TAGS < 100


@pytest.mark.parametrize("name", ["MP3", "FLAC", "OGG", "WAV"])
def test_a_file_cut_within_its_header_is_a_sound_or_unreadable(name):
    """The count of an MP3 is four bytes or none at all."""
    content = written(name)
    for length in [*range(0, 200), *range(200, 600, 7)]:
        try:
            with open_sound(content[:length]) as sound:
                sound.count_frames()
        except UnreadableClip:
            continue
