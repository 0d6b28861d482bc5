"""Sound of any length is scored over time, in files, arrays and streams."""

import numpy as np
import pytest
import soundfile
import torch
from exported_models import random_weights

from efficientat_plugin import MN, AudioTagger, EventDetector, FrameMN, LabelTable
from efficientat_plugin.features import LogMel
from efficientat_plugin.tagging.detection import ChunkScorer
from efficientat_plugin.tagging.frames import ChunkCutter, CrossFader

LABELS = LabelTable(["a", "b", "c"], ["A", "B", "C"])
RATE = 16000
FRONT_END = {"sample_rate": RATE, "n_fft": 512, "win_length": 400, "hop_length": 160}
FRONT_END |= {"f_max": 7000.0, "n_mels": 64}


def detector_of(student, clip_seconds=2.0, **settings):
    settings = {"target": "multilabel", "short_clips": "zero_pad"} | settings
    settings |= {"labels": LABELS, "sample_rate": RATE, "clip_seconds": clip_seconds}
    parts = {"student": student, "log_mel": LogMel(**FRONT_END)}
    return EventDetector(parts, settings, {"device": "cpu"})


@pytest.fixture(scope="module", params=["frames", "sequence", "clips"])
def detector(request):
    torch.manual_seed(0)
    if request.param == "clips":
        return detector_of(random_weights(MN(3, width=0.1)))
    sequence = {"frames": "none", "sequence": "tf"}[request.param]
    student = FrameMN(3, width=0.1, sequence_model=sequence, sequence_dim=16)
    return detector_of(random_weights(student))


@pytest.fixture(scope="module")
def sound():
    """Noise that comes and goes."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.random(60), 2000)[: 7 * RATE + 123]
    noise = rng.standard_normal(len(loudness)) * loudness * 0.3
    return np.clip(noise, -1, 1).astype(np.float32)


def middle_of(detector, sound):
    """Thresholds that each class crosses now and then, far from any score."""
    ordered = np.sort(detector.frames(sound, RATE).scores, axis=0)
    ordered = ordered[len(ordered) // 3 : -len(ordered) // 3]
    widest = np.diff(ordered, axis=0).argmax(axis=0)
    return {
        name: float(ordered[place : place + 2, number].mean())
        for number, (name, place) in enumerate(zip(LABELS.names, widest, strict=True))
    }


def assert_alike(events, expected):
    """Rounding may differ with the number of clips in a batch."""
    ordered, others = sorted(events), sorted(expected)
    assert [event[:3] for event in ordered] == [event[:3] for event in others]
    scores = [event.score for event in others]
    assert [event.score for event in ordered] == pytest.approx(scores, abs=1e-5)


# --- Scores over time -------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, 0.3, 1.0, 1.99999, 2.0, 2.0001, 2.05, 5.3])
def test_frames_cover_the_sound(detector, sound, seconds):
    samples = sound[: max(1, round(seconds * RATE))]
    frames = detector.frames(samples, RATE)
    assert np.isfinite(frames.scores).all() and frames.scores.shape[1] == 3
    assert -frames.frame_seconds < frames.times[0] <= 0
    end = frames.times[-1] + frames.frame_seconds
    assert frames.times[-1] < len(samples) / RATE <= end + 1e-6


def test_a_short_sound_has_the_scores_of_the_network():
    student = random_weights(FrameMN(3, width=0.1))
    detector, log_mel = detector_of(student), LogMel(**FRONT_END).eval()
    clip = torch.randn(2 * RATE) * 0.1
    with torch.inference_mode():
        strong = student.eval()(log_mel(clip[None])[:, None]).strong[0].T.sigmoid()
    frames = detector.frames(clip, RATE)
    assert frames.frame_seconds == 0.04 and frames.start_seconds == 0.0
    assert np.allclose(frames.scores, strong, atol=1e-5)


def test_windows_are_the_scores_of_their_middle(sound):
    detector = detector_of(random_weights(MN(3, width=0.1)))
    frames = detector.frames(sound, RATE, window_seconds=1.0, hop_seconds=0.5)
    windows = [*detector.scan(sound, RATE, 1.0, 0.5)]
    for window in windows[:-1]:
        middle = (window.start_seconds + window.end_seconds) / 2
        place = int((middle - frames.start_seconds) / frames.frame_seconds)
        assert frames.scores[place] == pytest.approx(window.probabilities, abs=1e-6)
    for place in (0, -1):
        row = frames.scores[place]
        assert row == pytest.approx(windows[place].probabilities, abs=1e-6)


@pytest.mark.parametrize("hop", [2, 4, 6, 8])
@pytest.mark.parametrize("length", [1, 5, 8, 9, 13, 16, 31])
def test_local_scores_are_those_of_the_whole(hop, length):
    """A model that looks at nothing but a frame does not notice chunks."""

    def score(waveforms):
        padded = np.pad(waveforms, ((0, 0), (0, waveforms.shape[1] % 2)))
        return padded.reshape(len(padded), -1, 2).max(2)[:, :, None]

    sound = np.random.default_rng(length).random(length, np.float32)
    scorer = ChunkScorer(score, ChunkCutter(8, hop, 2), lambda samples: samples, 2)
    pieces = [*scorer.feed(sound[:7]), *scorer.feed(sound[7:]), *scorer.finish()]
    found = np.concatenate([piece for piece in pieces if len(piece)])
    assert np.allclose(found, score(sound[None])[0], atol=1e-6)


def test_chunks_that_disagree_leave_no_seam():
    """Scores move from one chunk's to the next's by equal steps."""
    fader = CrossFader(chunk=10, hop=6)
    pieces = [
        fader.feed(6 * number, np.full((10, 1), number % 2)) for number in range(5)
    ]
    scores = np.concatenate([*pieces, fader.finish()])[:, 0]
    assert np.abs(np.diff(scores)).max() <= 1 / 4 + 1e-6
    assert scores.min() == 0 and scores.max() == 1


# --- Events ------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize(
    "more", [{"max_gap_seconds": 0.1}, {"boxes": True, "box_merge_ratio": 1.01}]
)
def test_a_stream_has_the_events_of_the_whole(detector, sound, rate, more):
    options = {"threshold": middle_of(detector, sound)} | more
    whole = detector.events(sound, rate, **options)
    stream, found = detector.event_stream(rate, **options), []
    place, rng = 0, np.random.default_rng(3)
    while place < len(sound):
        size = int(rng.integers(1, 20000))
        found += stream.feed(sound[place : place + size])
        place += size
    assert whole
    assert_alike(found + stream.finish(), whole)
    assert stream.look_ahead_seconds >= 1


def test_an_event_of_a_stream_is_returned_once_its_look_ahead_is_over(detector, sound):
    options = {"threshold": middle_of(detector, sound)}
    step = RATE // 10
    stream, arrived, returned = detector.event_stream(RATE, **options), 0, []
    while arrived < len(sound):
        for event in stream.feed(sound[arrived : arrived + step]):
            returned.append(((arrived + step) / RATE, event))
        arrived += step
    stream.finish()
    frame = (detector.frame_samples or 0.25 * RATE) / RATE
    latest = stream.look_ahead_seconds + 0.1 + 2 * frame
    # What ends an event is the frame behind it; a batch may hold several chunks.
    assert returned
    for now, event in returned:
        assert now - event.end_seconds <= latest


def test_a_file_an_array_and_any_rate_of_reading_are_alike(detector, sound, tmp_path):
    soundfile.write(tmp_path / "s.wav", sound, RATE, subtype="FLOAT")
    options = {"threshold": middle_of(detector, sound)}
    expected = detector.events(sound, RATE, **options)
    assert detector.events(tmp_path / "s.wav", **options) == expected
    assert_alike(detector.events(sound, RATE, batch_size=1, **options), expected)


def test_chunks_of_a_long_sound_are_scored_in_batches(monkeypatch):
    detector = detector_of(random_weights(FrameMN(3, width=0.1)), clip_seconds=0.4)
    sizes = []
    score = detector._score_frames

    def counted(waveforms):
        sizes.append(len(waveforms))
        return score(waveforms)

    monkeypatch.setattr(detector, "_score_frames", counted)
    detector.frames(torch.randn(20 * RATE) * 0.1, RATE, batch_size=32)
    # A block of samples that was read may end within a batch.
    assert sum(sizes) > 60 and sizes[0] == 32 and len(sizes) <= 4


def test_events_are_sorted_and_within_the_sound(detector, sound):
    events = detector.events(sound, RATE, threshold=middle_of(detector, sound))
    starts = [event.start_seconds for event in events]
    assert starts == sorted(starts)
    for event in events:
        assert 0 <= event.start_seconds < event.end_seconds <= len(sound) / RATE
        assert 0 < event.score <= 1


def test_a_tagger_detects_and_a_detector_tags(detector, sound):
    tagger = AudioTagger(
        {"student": detector.mods.student, "log_mel": detector.mods.log_mel},
        {name: getattr(detector.hparams, name) for name in AudioTagger.HPARAMS_NEEDED},
        {"device": "cpu"},
    )
    options = {"threshold": middle_of(detector, sound)}
    expected = detector.events(sound, RATE, **options)
    assert tagger.events(sound, RATE, **options) == expected
    assert tagger.tag(sound, RATE) == detector.tag(sound, RATE)


def test_a_model_of_clips_says_that_it_uses_windows(caplog):
    detector_of(MN(3, width=0.1))
    assert "scores clips, not frames" in caplog.text
    caplog.clear()
    detector_of(FrameMN(3, width=0.1))
    assert not caplog.text


def test_a_model_that_takes_only_clips_scores_windows_of_that_length(sound):
    detector = detector_of(MN(3, width=0.1, se_dims="t", n_mels=64, n_frames=150), 1.5)
    expected = detector.frames(sound, RATE, window_seconds=1.5, hop_seconds=0.25)
    assert np.array_equal(detector.frames(sound, RATE).scores, expected.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_seconds": 0.01}, "window_seconds=0.01"),
        ({"window_seconds": 1.0, "hop_seconds": 0.0}, "hop"),
        ({"window_seconds": 1.0, "hop_seconds": 1.5}, "hop"),
        ({"classes": ["D"]}, "the model has no class D"),
    ],
)
def test_what_cannot_be_detected_is_refused(detector, sound, options, message):
    with pytest.raises(ValueError, match=message):
        detector.events(sound, RATE, **options)


def test_an_unknown_option_is_named(detector, sound):
    with pytest.raises(TypeError, match="no option edge; its options are"):
        detector.events(sound, RATE, edge=0.1)
