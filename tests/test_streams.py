"""Long sound: a stream is a scan, in little memory."""

import tracemalloc

import numpy as np
import pytest
import soundfile
from small_tagger import RATE, assert_alike, noise, scores_of, small_tagger

from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.tagging.torch_tagger import AudioTagger


@pytest.fixture(scope="module")
def tagger():
    return small_tagger()


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.21])
def test_a_stream_is_a_scan(tagger, rate, seconds):
    sound = noise(seconds, rate=rate)
    scanned = list(tagger.scan(sound, rate, hop_seconds=0.3, batch_size=3))
    stream = tagger.stream(rate, hop_seconds=0.3)
    streamed = []
    for start in range(0, len(sound), 1111):
        streamed += stream.feed(sound[start : start + 1111])
    streamed += stream.finish()
    assert [w[:2] for w in streamed] == [w[:2] for w in scanned]
    for one, other in zip(streamed, scanned, strict=True):
        assert_alike(one.probabilities, other.probabilities)
    assert scanned[0].start_seconds == 0
    assert scanned[-1].end_seconds == pytest.approx(seconds, abs=1e-3)


def test_a_scan_yields_what_it_scored_before_a_fault(tagger):
    sound = noise(3.0)

    def broken(*_):
        yield sound[:65536]
        raise UnreadableClip("it ends there")

    starts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efficientat_plugin.tagging.base.blocks_of", broken)
        with pytest.raises(UnreadableClip, match="ends there"):
            for window in tagger.scan(sound, RATE):
                starts.append(window.start_seconds)
    assert starts == [0.0, 0.5, 1.0]


def test_a_stream_takes_chunks_of_no_samples(tagger):
    stream = tagger.stream(RATE, window_seconds=1.0)
    for nothing in (np.zeros(0), np.zeros((0, 2)), np.zeros((2, 0))):
        assert stream.feed(nothing) == []
    assert len(stream.feed(noise(1.0))) == 1


@pytest.fixture
def batch_sizes(monkeypatch):
    """How many windows were scored in each batch."""
    sizes, score = [], AudioTagger._score_windows

    def spy(self, windows, num_samples):
        sizes.append(len(windows))
        return score(self, windows, num_samples)

    monkeypatch.setattr(AudioTagger, "_score_windows", spy)
    return sizes


@pytest.mark.parametrize(
    ("window_seconds", "largest"), [(0.5, 16), (1.0, 16), (8.0, 2), (20.0, 1)]
)
def test_longer_windows_are_scored_in_smaller_batches(
    tagger, batch_sizes, window_seconds, largest
):
    sound = noise(30.0)
    list(tagger.scan(sound, RATE, window_seconds))
    assert max(batch_sizes) == largest
    batch_sizes.clear()
    tagger.stream(RATE, window_seconds).feed(sound)
    assert max(batch_sizes) == largest


def test_a_batch_is_as_large_as_asked_for(tagger, batch_sizes):
    list(tagger.scan(noise(30.0), RATE, window_seconds=8.0, batch_size=5))
    assert max(batch_sizes) == 5


@pytest.fixture
def without_network(monkeypatch):
    """Scores of zero, so that only the sound takes memory."""

    def score(self, waveforms):
        return np.zeros((len(waveforms), 3), np.float32)

    def score_overlapping(self, sound, window, hop):
        return np.zeros((1 + (len(sound) - window) // hop, 3), np.float32)

    monkeypatch.setattr(AudioTagger, "score", score)
    monkeypatch.setattr(AudioTagger, "_score_overlapping", score_overlapping)


@pytest.mark.parametrize("is_file", [False, True])
def test_a_long_sound_is_scanned_in_little_memory(
    tagger, without_network, tmp_path, is_file
):
    sound = np.zeros(60 * RATE, np.float32)
    path = tmp_path / "long.flac"
    soundfile.write(path, sound, RATE)
    tracemalloc.start()
    try:
        given = (path, None) if is_file else (sound, RATE)
        windows = tagger.scan(*given, window_seconds=1.0, hop_seconds=0.01)
        num_windows = sum(1 for _ in windows)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_windows == 5901
    assert peak_bytes < sound.nbytes


def test_windows_come_as_soon_as_they_are_complete(tagger):
    stream = tagger.stream(RATE, window_seconds=1.0, hop_seconds=0.5)
    sound = noise(2.0)
    assert stream.feed(sound[: RATE - 1]) == []
    assert [w.start_seconds for w in stream.feed(sound[RATE - 1 : RATE])] == [0.0]
    assert [w.start_seconds for w in stream.feed(sound[RATE:])] == [0.5, 1.0]
    assert stream.finish() == []


def test_a_scan_scores_each_window_as_tag_does(tagger):
    sound = noise(3.0)
    for window in tagger.scan(sound, RATE):
        start = round(window.start_seconds * RATE)
        assert_alike(window.probabilities, scores_of(tagger, sound[start:][:RATE]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_seconds": 0.001}, "window_seconds=0.001 is too short"),
        ({"window_seconds": 1.0, "hop_seconds": 1.5}, "the hop must be from 1"),
        ({"hop_seconds": 0.0}, "the hop must be from 1"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
)
def test_scans_that_would_leave_sound_out_are_refused(tagger, options, message):
    with pytest.raises(ValueError, match=message):
        list(tagger.scan(noise(2.0), RATE, **options))
