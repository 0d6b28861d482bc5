"""Files of clips: the sound is kept, whatever the codec."""

import io

import numpy as np
import pytest
import soundfile
from small_rows import SAMPLE_RATE, noise

from efficientat_plugin.data.decoding import UnreadableClip, decode
from efficientat_plugin.data.parquet import to_pcm
from efficientat_plugin.data.prepare.encoding import CODECS, ClipEncoder


def _file(samples, rate=SAMPLE_RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **options})
    return file.getvalue()


def _rate_of(codec):
    return 48000 if codec == "opus" else SAMPLE_RATE


def _chord(rate, seconds=1.0):
    time = np.arange(round(rate * seconds)) / rate
    return sum(0.2 * np.sin(2 * np.pi * pitch * time) for pitch in (220, 1000, 4400))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_samples", [1, 777, 32000, 70001])
def test_a_codec_keeps_the_length_to_the_sample(codec, num_samples):
    rate = _rate_of(codec)
    encoded = ClipEncoder(codec, rate).encode(_file(noise(1, num_samples), rate))
    samples, found_rate = soundfile.read(io.BytesIO(encoded.content))
    assert found_rate == rate
    assert len(samples) == encoded.num_samples == num_samples


@pytest.mark.parametrize("codec", ["flac", "int16"])
def test_a_lossless_codec_keeps_every_sample(codec):
    encoder = ClipEncoder(codec)
    once = encoder.encode(_file(noise(2), subtype="FLOAT"))
    stored = decode(once.content, SAMPLE_RATE, 16000)
    assert np.array_equal(stored, to_pcm(noise(2).astype(np.float32)) / 32768)
    assert once.correlation == 1.0
    assert encoder.encode(once.content) == once


@pytest.mark.parametrize("codec", ["vorbis", "opus", "mp3"])
def test_a_lossy_codec_keeps_the_sound_at_its_level(codec):
    rate = _rate_of(codec)
    encoded = ClipEncoder(codec, rate).encode(_file(_chord(rate), rate))
    stored, _ = soundfile.read(io.BytesIO(encoded.content))
    assert encoded.correlation > 0.99
    gain = stored @ _chord(rate) / (_chord(rate) @ _chord(rate))
    assert gain == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("codec", ["vorbis", "opus", "mp3"])
def test_quality_makes_files_larger_and_better(codec):
    rate = _rate_of(codec)
    source = _file(noise(3, 2 * rate), rate)
    made = [ClipEncoder(codec, rate, q).encode(source) for q in (0, 0.3, 0.7, 1)]
    sizes = [len(each.content) for each in made]
    assert sizes == sorted(sizes) and sizes[0] < 0.6 * sizes[-1]
    assert made[-1].correlation > made[0].correlation


@pytest.mark.parametrize("codec", ["flac", "int16"])
def test_peaks_above_full_scale_are_clipped_and_do_not_wrap(codec):
    square = np.where(_chord(48000) > 0, 1.0, -1.0)  # rings above 1 when resampled
    loud = _file(1.5 * square, 48000, subtype="FLOAT")
    content = ClipEncoder(codec).encode(loud).content
    stored = decode(content, SAMPLE_RATE, SAMPLE_RATE)
    expected = decode(loud, SAMPLE_RATE, SAMPLE_RATE)
    assert np.abs(expected).max() > 1.5
    assert np.abs(stored - np.clip(expected, -1, 32767 / 32768)).max() < 2 / 32768


def test_a_studio_file_is_stored_as_the_reader_decodes_it():
    stereo = np.stack([_chord(48000), noise(5, 48000)], axis=1)
    source = _file(stereo, 48000, format="FLAC", subtype="PCM_24")
    content = ClipEncoder("flac").encode(source).content
    expected = decode(source, SAMPLE_RATE, SAMPLE_RATE)
    stored = decode(content, SAMPLE_RATE, SAMPLE_RATE)
    assert np.abs(stored - expected).max() < 0.51 / 32768
    assert soundfile.info(io.BytesIO(content)).channels == 1


def test_a_clip_is_cut_to_max_seconds_and_not_padded():
    encoder = ClipEncoder("flac", max_seconds=0.25)
    assert encoder.encode(_file(noise(6), 44100)).num_samples == 8000
    assert encoder.encode(_file(noise(6, 100))).num_samples == 100


@pytest.mark.parametrize("codec", CODECS)
def test_silence_is_no_clip_that_was_changed(codec):
    rate = _rate_of(codec)
    for quiet in (np.zeros(9000), np.sign(noise(7, 9000)) / 32768):
        assert ClipEncoder(codec, rate).encode(_file(quiet, rate)).correlation == 1.0


def test_a_file_that_is_not_the_clip_is_refused(monkeypatch):
    encoder = ClipEncoder("flac")
    monkeypatch.setattr(encoder, "_written", lambda samples: _file(samples[1:]))
    with pytest.raises(UnreadableClip, match="as flac it no longer has"):
        encoder.encode(_file(noise(8)))
    monkeypatch.setattr(encoder, "_written", lambda samples: _file(-samples))
    with pytest.raises(UnreadableClip, match="as flac it has other samples"):
        encoder.encode(_file(noise(8)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"codec": "aac"}, "codec='aac' must be one of flac, int16, vorbis, opus, mp3"),
        ({"codec": "opus"}, "opus does not support sample_rate=32000, .* 48000 Hz;"),
        ({"codec": "flac", "quality": 0.5}, "quality=0.5 has no effect"),
        ({"codec": "mp3", "quality": 1.5}, "quality=1.5 must be from 0"),
        ({"max_seconds": 0}, "max_seconds=0 must be above 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClipEncoder(**options)
