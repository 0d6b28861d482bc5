"""Clips sound alike from every format, and what is no sound is refused."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from small_rows import (
    LABELS,
    SAMPLE_RATE,
    noise,
)

from efficientat_plugin.data.clips import collate
from efficientat_plugin.data.decoding import (
    ClipReader,
    UnreadableClip,
    decode,
    decode_blocks,
    sound_of,
)
from efficientat_plugin.data.parquet import audioset_row

FORMATS = {
    "wav_int16": ("WAV", "PCM_16", 44100),
    "wav_int24": ("WAV", "PCM_24", 8000),
    "wav_float32": ("WAV", "FLOAT", 192000),
    "wav_at_the_rate": ("WAV", "PCM_16", 32000),
    "flac": ("FLAC", "PCM_16", 22050),
    "vorbis": ("OGG", "VORBIS", 44100),
    "opus": ("OGG", "OPUS", 48000),
    "mp3": ("MP3", "MPEG_LAYER_III", 44100),
}


def _encode(waveform, sample_rate=SAMPLE_RATE, form="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format=form, subtype=subtype)
    return file.getvalue()


def _tone(frequency, seconds, sample_rate):
    return np.sin(
        2 * np.pi * frequency * np.arange(seconds * sample_rate) / sample_rate
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_tone_keeps_its_pitch_level_and_length(name):
    form, subtype, rate = FORMATS[name]
    content = _encode(0.5 * _tone(1000, 1, rate), rate, form, subtype)
    waveform = decode(content, SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.dtype == np.float32 and waveform.shape == (SAMPLE_RATE,)
    middle = waveform[8000:24000]  # half a second: bins of 2 Hz
    spectrum = np.abs(np.fft.rfft(middle)) / 8000
    assert spectrum.argmax() == 500
    assert spectrum[500] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_the_start_is_that_of_the_whole_file_resampled(name):
    form, subtype, rate = FORMATS[name]
    content = _encode(noise(0, 3 * rate), rate, form, subtype)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    expected = soxr.resample(whole, rate, SAMPLE_RATE, quality="HQ")
    for num_samples in (SAMPLE_RATE, 70001, len(expected)):
        waveform = decode(content, SAMPLE_RATE, num_samples)
        np.testing.assert_allclose(waveform, expected[:num_samples], rtol=0, atol=1e-4)


def test_samples_at_the_rate_are_left_as_they_are():
    samples = np.array([0, 1, -32768, 32767] * 10, np.int16)
    waveform = decode(_encode(samples, subtype="PCM_16"), SAMPLE_RATE, 40)
    assert np.array_equal(waveform, samples / np.float32(32768))


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_are_averaged(channels):
    waveforms = np.stack([noise(seed, 70000) for seed in range(channels)], axis=1)
    waveform = decode(_encode(waveforms), SAMPLE_RATE, 70000)
    np.testing.assert_allclose(waveform, waveforms.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 32000])
def test_short_sound_is_padded_with_zeros(rate):
    waveform = decode(_encode(noise(0, rate // 20), rate), SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.shape == (SAMPLE_RATE,)
    assert waveform[1500:1600].any() and not waveform[1600:].any()


def test_silence_is_sound():
    assert not decode(_encode(np.zeros(800)), SAMPLE_RATE, 1600).any()


def test_a_long_file_is_read_no_further_than_needed(tmp_path):
    ten_minutes = np.zeros(600 * 8000, np.float32)
    ten_minutes[:8000] = noise(0, 8000)
    ten_minutes[8000 + 1600 :] = np.nan  # from 0.2 s behind the cut
    soundfile.write(tmp_path / "long.wav", ten_minutes, 8000, subtype="FLOAT")
    waveform = decode(tmp_path / "long.wav", SAMPLE_RATE, SAMPLE_RATE)
    assert waveform.shape == (SAMPLE_RATE,) and waveform.any()
    with pytest.raises(UnreadableClip, match="not finite"):
        decode(tmp_path / "long.wav", SAMPLE_RATE, 2 * SAMPLE_RATE)


def test_sound_is_read_from_bytes_paths_and_dicts(tmp_path):
    content = _encode(noise(0))
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    expected = decode(content, SAMPLE_RATE, 16000)
    assert expected.any()
    for audio in (
        path,
        str(path),
        {"path": str(path)},
        {"bytes": None, "path": str(path)},
        {"bytes": content, "path": None},
        {"bytes": content, "path": "a name alone.wav"},
    ):
        assert np.array_equal(decode(audio, SAMPLE_RATE, 16000), expected)


def test_a_file_that_breaks_off_ends_in_silence():
    # Its header gives 4 s.
    whole = _encode(noise(0, 4 * 32000), 32000, "MP3", "MPEG_LAYER_III")
    content = whole[: len(whole) // 2]
    readable, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert 16000 < len(readable) < 64000
    waveform = decode(content, SAMPLE_RATE, 4 * SAMPLE_RATE)
    assert np.array_equal(waveform[: len(readable)], readable)
    assert not waveform[len(readable) :].any()


UNREADABLE = {
    "no_bytes": (b"", "not decodable"),
    "no_frames": (_encode(np.zeros(0)), "it has no samples"),
    "nan": (_encode(np.array([0.0, np.nan, 0.0])), "not finite"),
    "infinite": (_encode(np.array([0.0, np.inf])), "not finite"),
    "both_infinities": (_encode(np.full((9, 2), [np.inf, -np.inf])), "not finite"),
    "huge": (_encode(np.array([0.0, -1e30])), "up to 1e\\+30, and full scale is 1"),
    "largest": (_encode(np.full((9, 2), 3e38)), "up to 3e\\+38, and full scale is 1"),
    "int16_sized": (
        _encode(32768 * noise(0).astype(np.float32)),
        "up to \\de\\+04, and full scale is 1; .* divide",
    ),
    "text": (b"<html>This video is not available</html>", "not decodable"),
    "flac_header": (
        _encode(noise(0), form="FLAC", subtype=None)[:30],
        "not decodable",
    ),
    "flac_half": (
        _encode(noise(0), form="FLAC", subtype=None)[:9000],
        "not decodable",
    ),
    "no_sample_at_the_rate": (_encode(np.ones(1), 192000), "shorter than a sample"),
    "rate": (_encode(noise(0), 10), "claims a sample rate of 10 Hz"),
    "absent": ("/absent/clip.wav", "not decodable: .*absent"),
    "folder": ("/", "not decodable"),
    "none": (None, "neither bytes nor the path"),
    "null_struct": ({"bytes": None, "path": None}, "neither bytes nor the path"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_sound_is_refused_with_a_reason(name):
    audio, reason = UNREADABLE[name]
    with pytest.raises(UnreadableClip, match=reason):
        decode(audio, SAMPLE_RATE, 16000)


@pytest.mark.parametrize("level", [0.5, 4.0, 63.0])
def test_sound_that_is_somewhat_too_loud_is_read_unchanged(level):
    sound = level * np.sin(np.arange(16000))
    found = decode(_encode(sound), SAMPLE_RATE, 16000)
    np.testing.assert_allclose(found, sound, rtol=1e-5, atol=1e-5)


def test_a_header_that_breaks_off_is_refused_without_noise(monkeypatch):
    printed = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    # libsndfile asks for a place before its beginning.
    content = _encode(noise(0), form="AIFF", subtype="PCM_16")[:29]
    with pytest.raises(UnreadableClip, match="not decodable"):
        decode(content, SAMPLE_RATE, 16000)
    assert not printed


def test_many_channels_are_read_in_little_memory():
    sound = np.zeros((20_000, 1000), np.float32)
    content = _encode(sound, subtype="PCM_U8")
    del sound
    tracemalloc.start()
    try:
        assert not decode(content, SAMPLE_RATE, 16000).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**23  # bytes; as floating point all of them are 80 MB


@pytest.mark.parametrize(
    ("labels", "judged", "expected", "labelled"),
    [
        (["/m/c", "/m/?", "/m/a", "/m/a"], None, [1, 0, 1], 1),
        ([], None, [0, 0, 0], 0),
        (None, None, [0, 0, 0], 0),
        (["/m/?"], None, [0, 0, 0], 0),
        (["/m/c"], ["/m/a", "/m/c"], [0, 0, 1], [1, 0, 1]),
        ([], ["/m/b"], [0, 0, 0], [0, 1, 0]),
    ],
)
def test_a_clip_has_the_labels_of_its_row(reader, labels, judged, expected, labelled):
    row = audioset_row("clip", noise(0), SAMPLE_RATE)
    clip = reader.read(row | {"labels": labels, "judged": judged})
    assert clip.clip_id == "clip" and clip.waveform.shape == (16000,)
    assert clip.labels.tolist() == expected and clip.labelled.tolist() == labelled
    assert collate([clip, clip]).labelled.shape == (2, *clip.labelled.shape)


def test_clips_of_no_length_are_refused():
    with pytest.raises(ValueError, match="clip_seconds=0 must be above 0"):
        ClipReader(LABELS, clip_seconds=0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("times", [(0.0, 0.4), (0.7, 1.3), (1.5, None)])
def test_a_segment_is_what_a_file_cut_by_hand_would_be(name, times):
    form, subtype, rate = FORMATS[name]
    content = _encode(0.3 * noise(1, 2 * rate), rate, form, subtype)
    whole = np.concatenate(list(decode_blocks(content, rate)))
    start, end = times
    by_hand = whole[round(start * rate) : None if end is None else round(end * rate)]
    expected = decode(_encode(by_hand, rate), SAMPLE_RATE, SAMPLE_RATE)
    row = {"audio": {"bytes": content, "path": None}, "start": start, "end": end}
    found = decode(sound_of(row), SAMPLE_RATE, SAMPLE_RATE)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_segment_beyond_the_end_is_refused(name):
    form, subtype, rate = FORMATS[name]
    audio = {"bytes": _encode(noise(1, rate), rate, form, subtype), "start": 5.0}
    with pytest.raises(UnreadableClip, match="segment starts at 5 s, but the file end"):
        decode(audio, SAMPLE_RATE, SAMPLE_RATE)
