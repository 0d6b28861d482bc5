"""The tagger says the same of a sound however it comes."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from at_once import in_threads

from efficientat_plugin.data.decoding import UnreadableClip, mono_samples
from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 32000
LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])


def _member(seed=0, num_classes=3):
    torch.manual_seed(seed)
    student = MN(num_classes, width=0.1)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that sounds differ
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.3)
    return WaveformStudent(LogMel(), student)


def _tagger(*members, **settings):
    settings = {
        "labels": LABELS,
        "sample_rate": RATE,
        "clip_seconds": 1.0,
        "target": "multilabel",
        "short_clips": "repeat",
    } | settings
    ensemble = Ensemble(list(members) or [_member()])
    return AudioTagger({"ensemble": ensemble}, settings, {"device": "cpu"})


@pytest.fixture(scope="module")
def tagger():
    return _tagger()


def _noise(seconds, seed=0, rate=RATE):
    """Noise whose spectrum wanders, so that its parts differ."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(seconds * rate))
    time = np.arange(len(sound)) / rate
    return (0.1 * sound * np.sin(2 * np.pi * 0.7 * time)).astype(np.float32)


def _wav(sound, rate=RATE, subtype="FLOAT", form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, sound, rate, subtype=subtype, format=form)
    return file.getvalue()


def _scores(tagger, sound, rate=RATE):
    return tagger.probabilities([sound], rate)[0]


def _assert_alike(one, other, atol=1e-5):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# --- Clips ----------------------------------------------------------------------


def test_a_clip_is_tagged_as_the_student_scores_it(tagger):
    sound = _noise(1.0)
    logits = tagger.ensemble(torch.from_numpy(sound)[None]).logits[0]
    _assert_alike(_scores(tagger, sound), logits.sigmoid().numpy())
    tags = tagger.tag(sound, RATE)
    assert [tag.probability for tag in tags] == sorted(_scores(tagger, sound))[::-1]
    assert {(tag.name, tag.mid) for tag in tags} == {
        ("A", "/m/a"),
        ("B", "/m/b"),
        ("C", "/m/c"),
    }
    assert tagger.tag(sound, RATE, top_k=1) == tags[:1]
    assert tagger.tag(sound, RATE, threshold=1.1) == []


def test_files_bytes_arrays_and_tensors_are_tagged_alike(tagger, tmp_path):
    sound = _noise(2.3)
    expected = _scores(tagger, sound)
    path = tmp_path / "a.wav"
    path.write_bytes(_wav(sound))
    for same in (path, str(path), path.read_bytes(), torch.from_numpy(sound)):
        _assert_alike(_scores(tagger, same), expected)
    stereo = np.stack([sound, sound])
    for same in (stereo, stereo.T, sound.astype(np.float64), _wav(stereo.T)):
        _assert_alike(_scores(tagger, same), expected)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8"])
def test_integers_are_full_scale(dtype):
    sound = _noise(0.1)
    info = np.iinfo(dtype)
    scale, middle = (info.max - info.min + 1) / 2, (info.max + info.min + 1) / 2
    integers = np.clip(np.rint(sound * scale + middle), info.min, info.max)
    _assert_alike(mono_samples(integers.astype(dtype)), sound, atol=1.01 / scale)


def test_what_is_no_sound_is_refused(tagger):
    with pytest.raises(ValueError, match="pass sample_rate in Hz"):
        tagger.tag(_noise(1.0))
    with pytest.raises(UnreadableClip, match="no samples"):
        tagger.tag(np.zeros(0, np.float32), RATE)
    for say in (tagger.tag, tagger.embed, lambda *sound: list(tagger.scan(*sound))):
        with pytest.raises(UnreadableClip, match="shorter than a sample"):
            say(np.zeros(1, np.float32), 192000)
    with pytest.raises(UnreadableClip, match="not decodable"):
        tagger.tag("no\udcff.wav")
    with pytest.raises(UnreadableClip, match="not decodable"):
        tagger.tag(b"no sound")
    with pytest.raises(ValueError, match="not finite"):
        tagger.tag(np.array([0.0, np.nan]), RATE)
    for huge in (np.full((100, 2), 3e38, np.float32), np.full(100, 1e300)):
        with pytest.raises(ValueError, match=r"up to \de\+\d+, and full scale is 1"):
            tagger.tag(huge, RATE)
    with pytest.raises(ValueError, match="no axis of channels"):
        tagger.tag(np.zeros((100, 100)), RATE)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 9\)"):
        tagger.tag(np.zeros((1, 1, 9)), RATE)
    with pytest.raises(ValueError, match="of type complex128"):
        tagger.tag(np.zeros(9, complex), RATE)


@pytest.mark.parametrize(
    "sound", ["a.wav", Path("a.wav"), b"RIFF", {"array": [0.0]}, io.BytesIO(), "noise"]
)
def test_one_sound_in_the_place_of_several_is_refused(tagger, sound):
    sound = _noise(1.0) if sound == "noise" else sound
    for take in (tagger.probabilities, tagger.tag_batch):
        with pytest.raises(ValueError, match="is one sound, but several .* a list"):
            take(sound, RATE)


@pytest.mark.parametrize("rate", [0, -1, 1, 10**7, float("nan"), float("inf")])
def test_rates_that_no_sound_has_are_refused(tagger, rate):
    with pytest.raises(ValueError, match="give Hz, from 1000 to 768000"):
        tagger.tag(_noise(0.1), rate)
    with pytest.raises(ValueError, match="give Hz, from 1000 to 768000"):
        tagger.stream(rate)


@pytest.mark.parametrize("level", [64.0, 1e-40])
def test_probabilities_are_finite_at_any_level(tagger, level):
    sound = level * np.clip(_noise(1.0), -1, 1).astype(np.float64)
    assert np.isfinite(_scores(tagger, sound)).all()
    assert np.isfinite(_scores(tagger, _wav(sound))).all()


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_any_rate_will_do(tagger, rate):
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    at_32k = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    _assert_alike(_scores(tagger, tone, rate), _scores(tagger, at_32k), atol=0.02)


@pytest.mark.parametrize("short_clips", ["repeat", "zero_pad", "as_is"])
def test_the_others_of_a_batch_change_nothing(short_clips):
    tagger = _tagger(short_clips=short_clips)
    sounds = [_noise(s, n) for n, s in enumerate((0.3, 1.0, 2.7, 0.001, 1.0, 5.0))]
    together = tagger.probabilities(sounds, RATE, batch_size=4)
    assert together.shape == (6, 3)
    for sound, row in zip(sounds, together, strict=True):
        _assert_alike(_scores(tagger, sound), row)
    tags = tagger.tag_batch(sounds, RATE, top_k=2)
    assert [len(found) for found in tags] == [2] * 6
    assert tagger.tag_batch([], RATE) == []


def test_short_sound_is_lengthened_as_asked():
    short = _noise(0.4)
    padded = np.pad(short, (0, RATE - len(short)))
    repeated = np.resize(short, RATE)
    _assert_alike(_scores(_tagger(), short), _scores(_tagger(), repeated))
    zero_pad = _tagger(short_clips="zero_pad")
    _assert_alike(_scores(zero_pad, short), _scores(zero_pad, padded))
    as_is = _tagger(short_clips="as_is")
    logits = as_is.ensemble(torch.from_numpy(short)[None]).logits[0]
    _assert_alike(_scores(as_is, short), logits.sigmoid().numpy())


@pytest.mark.parametrize("rate", [RATE, 10_000_000])
def test_a_file_that_cannot_be_read_is_named(tagger, tmp_path, rate):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(_wav(_noise(0.1)))
    bad.write_bytes(_wav(np.full(1000, np.nan), rate))
    sayings = [tagger.tag_batch, lambda paths: [list(tagger.scan(p)) for p in paths]]
    sayings.append(lambda paths: [tagger.embed(path) for path in paths])
    for say in sayings:
        with pytest.raises(UnreadableClip, match=r"bad\.wav: it") as caught:
            say([good, str(bad), good])
        assert str(caught.value) == f"{bad}: {caught.value.reason}"


def test_long_sound_is_the_average_of_its_windows(tagger):
    sound = _noise(2.2)
    starts = [0, RATE // 2, RATE, len(sound) - RATE]
    parts = [_scores(tagger, sound[start : start + RATE]) for start in starts]
    _assert_alike(_scores(tagger, sound), np.mean(parts, axis=0))


def test_an_ensemble_averages_logits():
    sound = _noise(1.0)
    members = [_member(0), _member(1)]
    alone = [_scores(_tagger(member), sound) for member in members]
    logits = np.mean([np.log(p / (1 - p)) for p in alone], axis=0)
    _assert_alike(_scores(_tagger(*members), sound), 1 / (1 + np.exp(-logits)))
    with pytest.raises(ValueError, match=r"have num_classes \[3, 4\]"):
        _tagger(_member(), _member(num_classes=4))
    with pytest.raises(ValueError, match="no student was named"):
        AudioTagger.from_student([])


def test_multiclass_probabilities_sum_to_one():
    scores = _scores(_tagger(target="multiclass"), _noise(1.0))
    assert scores.sum() == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_is_of_the_sound_alone(tagger):
    sound = _noise(1.0)
    embedding = tagger.embed(sound, RATE)
    assert embedding.shape == (184,) and np.isfinite(embedding).all()
    _assert_alike(tagger.embed(np.tile(sound, 1), RATE), embedding)
    assert tagger.embed(sound, RATE, sources=("mel",)).shape == (128,)
    assert _tagger(_member(0), _member(1)).embed(sound, RATE).shape == (368,)


@pytest.mark.parametrize("short_clips", ["repeat", "as_is"])
def test_an_embedding_of_long_sound_is_the_average_of_its_windows(short_clips):
    tagger = _tagger(short_clips=short_clips)
    sound = _noise(2.2)
    starts = [0, RATE // 2, RATE, len(sound) - RATE]
    parts = [tagger.embed(sound[start : start + RATE], RATE) for start in starts]
    for batch_size in (1, 3, 16):
        together = tagger.embed(sound, RATE, batch_size=batch_size)
        _assert_alike(together, np.mean(parts, axis=0))


def test_sound_is_heard_in_the_precision_asked_for(tagger):
    parts, settings = {"ensemble": tagger.ensemble}, vars(tagger.hparams)
    coarse = AudioTagger(parts, settings, {"device": "cpu", "precision": "bf16"})
    sound = _noise(1.0)
    for say in (AudioTagger.embed, _scores):
        expected, found = say(tagger, sound, RATE), say(coarse, sound, RATE)
        assert found.dtype == np.float32
        assert not np.array_equal(found, expected)
        _assert_alike(found, expected, atol=0.05 * np.abs(expected).max())


# --- Long sound -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.21])
def test_a_stream_is_a_scan(tagger, rate, seconds):
    sound = _noise(seconds, rate=rate)
    scanned = list(tagger.scan(sound, rate, hop_seconds=0.3, batch_size=3))
    stream = tagger.stream(rate, hop_seconds=0.3)
    streamed = []
    for start in range(0, len(sound), 1111):
        streamed += stream.feed(sound[start : start + 1111])
    streamed += stream.finish()
    assert [w[:2] for w in streamed] == [w[:2] for w in scanned]
    for one, other in zip(streamed, scanned, strict=True):
        _assert_alike(one.probabilities, other.probabilities)
    assert scanned[0].start_seconds == 0
    assert scanned[-1].end_seconds == pytest.approx(seconds, abs=1e-3)


def test_a_scan_tells_what_it_heard_before_a_fault(tagger):
    sound = _noise(3.0)

    def broken(*_):
        yield sound[:65536]
        raise UnreadableClip("it ends there")

    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efficientat_plugin.tagging.base.blocks_of", broken)
        with pytest.raises(UnreadableClip, match="ends there"):
            for window in tagger.scan(sound, RATE):
                heard.append(window.start_seconds)
    assert heard == [0.0, 0.5, 1.0]


def test_a_stream_takes_chunks_of_no_samples(tagger):
    stream = tagger.stream(RATE, window_seconds=1.0)
    for nothing in (np.zeros(0), np.zeros((0, 2)), np.zeros((2, 0))):
        assert stream.feed(nothing) == []
    assert len(stream.feed(_noise(1.0))) == 1


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
    sound = _noise(30.0)
    list(tagger.scan(sound, RATE, window_seconds))
    assert max(batch_sizes) == largest
    batch_sizes.clear()
    tagger.stream(RATE, window_seconds).feed(sound)
    assert max(batch_sizes) == largest


def test_a_batch_is_as_large_as_asked_for(tagger, batch_sizes):
    list(tagger.scan(_noise(30.0), RATE, window_seconds=8.0, batch_size=5))
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


def test_a_long_array_is_scanned_in_little_memory(tagger, without_network):
    sound = np.zeros(60 * RATE, np.float32)
    tracemalloc.start()
    try:
        windows = tagger.scan(sound, RATE, window_seconds=1.0, hop_seconds=0.01)
        num_windows = sum(1 for _ in windows)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_windows == 5901
    assert peak_bytes < sound.nbytes


def test_windows_come_as_soon_as_they_are_complete(tagger):
    stream = tagger.stream(RATE, window_seconds=1.0, hop_seconds=0.5)
    sound = _noise(2.0)
    assert stream.feed(sound[: RATE - 1]) == []
    assert [w.start_seconds for w in stream.feed(sound[RATE - 1 : RATE])] == [0.0]
    assert [w.start_seconds for w in stream.feed(sound[RATE:])] == [0.5, 1.0]
    assert stream.finish() == []


def test_a_scan_hears_each_window_as_tag_does(tagger):
    sound = _noise(3.0)
    for window in tagger.scan(sound, RATE):
        start = round(window.start_seconds * RATE)
        _assert_alike(window.probabilities, _scores(tagger, sound[start:][:RATE]))


def test_a_long_file_is_scanned_in_little_memory(
    tagger, tmp_path, monkeypatch, without_network
):
    path = tmp_path / "long.flac"
    rate = 8000
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(60):
            file.write(_noise(10, rate=rate))
    held = []
    feed = type(tagger.stream(None)._cutter).feed

    def spy(self, samples):
        windows = list(feed(self, samples))
        held.append(len(self._held) + sum(len(w.samples) for w in windows))
        return windows

    monkeypatch.setattr(type(tagger.stream(None)._cutter), "feed", spy)
    windows = list(tagger.scan(path, window_seconds=1.0, hop_seconds=1.0))
    assert len(windows) == 600
    assert max(held) < 20 * RATE  # seconds, of 600


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
        list(tagger.scan(_noise(2.0), RATE, **options))


# --- Models ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "both"}, "target='both'"),
        ({"short_clips": "loop"}, "short_clips='loop'"),
        ({"clip_seconds": 0}, "clip_seconds=0 must be above 0"),
        ({"clip_seconds": 20000.0}, "above 0, and at most 3600"),
        ({"labels": ["dog", "cat"]}, "labels are a list; give a LabelTable"),
    ],
)
def test_settings_of_no_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _tagger(**settings)


def test_a_model_without_its_parts_is_refused():
    settings = {"sample_rate": RATE, "labels": LABELS}
    with pytest.raises(ValueError, match="Need hparams"):
        AudioTagger({}, settings, {"device": "cpu"})
    settings |= {"clip_seconds": 1.0, "target": "multilabel", "short_clips": "as_is"}
    with pytest.raises(ValueError, match="no module student and no log_mel"):
        AudioTagger({}, settings, {"device": "cpu"})


def test_labels_must_be_those_of_the_student(tmp_path):
    path = tmp_path / "student.pt"
    torch.save(MN(3, width=0.1).state_dict(), path)
    stated = {"n_mels": 128, "hop_length": 320, "clip_seconds": 1.0}
    stated["run_opts"] = {"device": "cpu"}
    with pytest.raises(ValueError, match="has 3 classes, but there are 527 labels"):
        AudioTagger.from_student(path, audioset_labels(), **stated)
    tagger = AudioTagger.from_student(path, LABELS, **stated)
    assert len(tagger.tag(_noise(0.5), RATE)) == 3


def test_the_published_checkpoint_hears_the_metro(shared):
    checkpoint = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    tagger = AudioTagger.from_student(checkpoint, run_opts={"device": "cpu"})
    tags = tagger.tag(shared / "audio" / "metro_station-paris.wav", top_k=4)
    expected = {
        "Train": 0.725,
        "Rail transport": 0.576,
        "Railroad car, train wagon": 0.558,
        "Subway, metro, underground": 0.492,
    }
    assert [tag.name for tag in tags] == list(expected)
    for tag in tags:  # those were resampled less exactly
        assert tag.probability == pytest.approx(expected[tag.name], abs=3e-3)
        assert audioset_labels().names[audioset_labels().index[tag.mid]] == tag.name


def test_threads_that_share_a_tagger_hear_what_one_hears(tagger):
    sounds = [_noise(seconds, seed) for seed, seconds in enumerate([0.3, 1, 1.7, 3.2])]
    expected = [tagger.probabilities([sound], RATE) for sound in sounds]

    def hear(number):
        order = np.random.default_rng(number).permutation(len(sounds))
        return [(each, tagger.probabilities([sounds[each]], RATE)) for each in order]

    for heard in in_threads(hear, 4):
        for each, probabilities in heard:
            assert np.array_equal(probabilities, expected[each])


@pytest.mark.parametrize("rate", ["44100", [44100], b"8000", True])
def test_rates_that_are_no_numbers_are_refused(tagger, rate):
    with pytest.raises(ValueError, match="sample rate of .*give Hz, from 1000"):
        tagger.tag(_noise(0.1), rate)
