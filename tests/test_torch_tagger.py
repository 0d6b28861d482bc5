"""The tagger gives the same result for a sound however it is handed in."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from simultaneous import in_threads
from small_tagger import (
    LABELS,
    RATE,
    assert_alike,
    member,
    noise,
    scores_of,
    small_tagger,
    wav,
)

from efficientat_plugin.contracts import SHORT_CLIPS
from efficientat_plugin.data.decoding import UnreadableClip, mono_samples
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger


@pytest.fixture(scope="module")
def tagger():
    return small_tagger()


# --- Clips ----------------------------------------------------------------------


def test_a_clip_is_tagged_as_the_student_scores_it(tagger):
    sound = noise(1.0)
    logits = tagger.ensemble(torch.from_numpy(sound)[None]).logits[0]
    assert_alike(scores_of(tagger, sound), logits.sigmoid().numpy())
    tags = tagger.tag(sound, RATE)
    assert [tag.probability for tag in tags] == sorted(scores_of(tagger, sound))[::-1]
    assert {(tag.name, tag.mid) for tag in tags} == {
        ("A", "/m/a"),
        ("B", "/m/b"),
        ("C", "/m/c"),
    }
    assert tagger.tag(sound, RATE, top_k=1) == tags[:1]
    assert tagger.tag(sound, RATE, threshold=1.1) == []


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8"])
def test_integers_are_full_scale(dtype):
    sound = noise(0.1)
    info = np.iinfo(dtype)
    scale, middle = (info.max - info.min + 1) / 2, (info.max + info.min + 1) / 2
    integers = np.clip(np.rint(sound * scale + middle), info.min, info.max)
    assert_alike(mono_samples(integers.astype(dtype)), sound, atol=1.01 / scale)


@pytest.mark.parametrize(
    "sound", ["a.wav", Path("a.wav"), b"RIFF", {"array": [0.0]}, io.BytesIO(), "noise"]
)
def test_one_sound_in_the_place_of_several_is_refused(tagger, sound):
    sound = noise(1.0) if sound == "noise" else sound
    for take in (tagger.probabilities, tagger.tag_batch):
        with pytest.raises(ValueError, match="is one sound, but several .* a list"):
            take(sound, RATE)


@pytest.mark.parametrize(
    "rate",
    [0, -1, 1, 10**7, float("nan"), float("inf"), "44100", [44100], b"8000", True],
)
def test_rates_that_no_sound_has_are_refused(tagger, rate):
    for use in (lambda: tagger.tag(noise(0.1), rate), lambda: tagger.stream(rate)):
        with pytest.raises(ValueError, match="give Hz, from 1000 to 768000"):
            use()


@pytest.mark.parametrize("level", [64.0, 1e-40])
def test_probabilities_are_finite_at_any_level(tagger, level):
    sound = level * np.clip(noise(1.0), -1, 1).astype(np.float64)
    assert np.isfinite(scores_of(tagger, sound)).all()
    assert np.isfinite(scores_of(tagger, wav(sound))).all()


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_any_rate_will_do(tagger, rate):
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    at_32k = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE).astype(np.float32)
    assert_alike(scores_of(tagger, tone, rate), scores_of(tagger, at_32k), atol=0.02)


@pytest.mark.parametrize("short_clips", ["repeat", "zero_pad", "as_is"])
def test_the_others_of_a_batch_change_nothing(short_clips):
    tagger = small_tagger(short_clips=short_clips)
    sounds = [noise(s, n) for n, s in enumerate((0.3, 1.0, 2.7, 0.001, 1.0, 5.0))]
    together = tagger.probabilities(sounds, RATE, batch_size=4)
    assert together.shape == (6, 3)
    for sound, row in zip(sounds, together, strict=True):
        assert_alike(scores_of(tagger, sound), row)
    tags = tagger.tag_batch(sounds, RATE, top_k=2)
    assert [len(found) for found in tags] == [2] * 6
    assert tagger.tag_batch([], RATE) == []


@pytest.mark.parametrize("short_clips", SHORT_CLIPS)
def test_short_sound_is_lengthened_as_asked(short_clips):
    tagger, short = small_tagger(short_clips=short_clips), noise(0.4)
    clip = torch.from_numpy(lengthened(short, RATE, short_clips))
    logits = tagger.ensemble(clip[None]).logits[0]
    assert_alike(scores_of(tagger, short), logits.sigmoid().numpy())


@pytest.mark.parametrize("rate", [RATE, 10_000_000])
def test_a_file_that_cannot_be_read_is_named(tagger, tmp_path, rate):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    good.write_bytes(wav(noise(0.1)))
    bad.write_bytes(wav(np.full(1000, np.nan), rate))
    uses = [tagger.tag_batch, lambda paths: [list(tagger.scan(p)) for p in paths]]
    uses.append(lambda paths: [tagger.embed(path) for path in paths])
    for use in uses:
        with pytest.raises(UnreadableClip, match=r"bad\.wav: it") as caught:
            use([good, str(bad), good])
        assert str(caught.value) == f"{bad}: {caught.value.reason}"


AVERAGED = {
    "probabilities": lambda tagger, sound, size: tagger.probabilities(
        [sound], RATE, size
    )[0],
    "embedding": lambda tagger, sound, size: tagger.embed(sound, RATE, size),
}


@pytest.mark.parametrize("compute", AVERAGED.values(), ids=AVERAGED)
@pytest.mark.parametrize("short_clips", ["repeat", "as_is"])
def test_long_sound_is_the_average_of_its_windows(short_clips, compute):
    tagger, sound = small_tagger(short_clips=short_clips), noise(2.2)
    starts = [0, RATE // 2, RATE, len(sound) - RATE]
    parts = [compute(tagger, sound[start : start + RATE], None) for start in starts]
    for batch_size in (1, 3, 16):
        together = compute(tagger, sound, batch_size)
        assert_alike(together, np.mean(parts, axis=0))


def test_an_ensemble_averages_logits():
    sound = noise(1.0)
    members = [member(0), member(1)]
    alone = [scores_of(small_tagger(member), sound) for member in members]
    logits = np.mean([np.log(p / (1 - p)) for p in alone], axis=0)
    assert_alike(scores_of(small_tagger(*members), sound), 1 / (1 + np.exp(-logits)))
    with pytest.raises(ValueError, match=r"have num_classes \[3, 4\]"):
        small_tagger(member(), member(num_classes=4))
    with pytest.raises(ValueError, match="no student was named"):
        AudioTagger.from_student([])


def test_multiclass_probabilities_sum_to_one():
    scores = scores_of(small_tagger(target="multiclass"), noise(1.0))
    assert scores.sum() == pytest.approx(1.0, abs=1e-6)


def test_an_embedding_is_of_the_sound_alone(tagger):
    sound = noise(1.0)
    embedding = tagger.embed(sound, RATE)
    assert embedding.shape == (184,) and np.isfinite(embedding).all()
    assert_alike(tagger.embed(np.tile(sound, 1), RATE), embedding)
    assert tagger.embed(sound, RATE, sources=("mel",)).shape == (128,)
    assert small_tagger(member(0), member(1)).embed(sound, RATE).shape == (368,)


def test_scores_are_computed_in_the_precision_asked_for(tagger):
    parts, settings = {"ensemble": tagger.ensemble}, vars(tagger.hparams)
    coarse = AudioTagger(parts, settings, {"device": "cpu", "precision": "bf16"})
    sound = noise(1.0)
    for compute in (AudioTagger.embed, scores_of):
        expected, found = compute(tagger, sound, RATE), compute(coarse, sound, RATE)
        assert found.dtype == np.float32
        assert not np.array_equal(found, expected)
        assert_alike(found, expected, atol=0.05 * np.abs(expected).max())


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
        small_tagger(**settings)


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
    assert len(tagger.tag(noise(0.5), RATE)) == 3


def test_the_published_checkpoint_recognises_the_metro(shared):
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


def test_threads_that_share_a_tagger_do_not_disturb_each_other(tagger):
    sounds = [noise(seconds, seed) for seed, seconds in enumerate([0.3, 1, 1.7, 3.2])]
    expected = [tagger.probabilities([sound], RATE) for sound in sounds]

    def score(number):
        order = np.random.default_rng(number).permutation(len(sounds))
        return [(each, tagger.probabilities([sounds[each]], RATE)) for each in order]

    for scored in in_threads(score, 4):
        for each, probabilities in scored:
            assert np.array_equal(probabilities, expected[each])
