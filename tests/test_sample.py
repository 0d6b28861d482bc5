"""The embedded sample: its clips, its files, and the laws of the signal."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from efficientat_plugin.data import parquet
from efficientat_plugin.data.labels import AUDIOSET_LABELS
from efficientat_plugin.data.parquet import SCHEMA, waveform_digest
from efficientat_plugin.data.sample import sample_set as sample
from efficientat_plugin.data.sample.sample_set import (
    SPLITS,
    sample_classes,
    sample_clip,
    write_sample,
)
from efficientat_plugin.data.sample.synthesis import (
    DTMF_COLUMNS,
    DTMF_ROWS,
    SOUNDS,
    Synth,
)

SAMPLE_RATE = 32000
COUNTS = {"bal_train": 3, "unlabelled": 2, "eval": 3}


def _sound(name, seed, seconds):
    rng = np.random.Generator(np.random.PCG64(seed))
    return SOUNDS[name](Synth(rng, seconds * SAMPLE_RATE, SAMPLE_RATE))


def _spectrum(waveform):
    """Power and the frequency of every bin (Hz)."""
    power = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
    return power, np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)


def _write(folder, **overrides):
    return write_sample(
        folder,
        num_labelled=COUNTS["bal_train"],
        num_unlabelled=COUNTS["unlabelled"],
        num_eval=COUNTS["eval"],
        **{"clip_seconds": 2.0, **overrides},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("sample"))


# ----------------------------------------------------------------------------- clips
def test_clip_is_a_function_of_seed_split_and_number_alone():
    first = [sample_clip("eval", number, 2.0) for number in range(4)]
    np.random.seed(1234)  # the global state must not matter, nor the order
    np.random.rand(7)
    second = [sample_clip("eval", number, 2.0) for number in reversed(range(4))]
    for one, other in zip(first, reversed(second), strict=True):
        assert np.array_equal(one.waveform, other.waveform)
        assert one.labels == other.labels
        assert one.clip_id == other.clip_id


def test_clips_of_another_seed_split_or_number_are_disjoint():
    clips = [
        sample_clip(split, number, 2.0, seed=seed)
        for split in SPLITS
        for number in range(8)
        for seed in (0, 1)
    ]
    assert len({waveform_digest(clip.waveform) for clip in clips}) == len(clips)
    assert len({clip.clip_id for clip in clips}) == len(clips) / 2
    assert clips[0].clip_id == "sample-train-0000"


def test_every_class_is_among_as_many_clips_as_there_are_classes():
    for split in SPLITS:
        seen = set()
        for number in range(len(SOUNDS)):
            seen.update(sample_clip(split, number, 2.0).labels)
        assert seen == set(sample_classes().values())


def test_labels_are_official_mids():
    rows = AUDIOSET_LABELS.read_text().splitlines()[1:]
    official = {row.split(",")[1] for row in rows}
    assert len(official) == 527
    assert len(set(sample_classes().values())) == len(SOUNDS) >= 20
    assert set(sample_classes().values()) <= official
    counts = set()
    for number in range(12):
        clip = sample_clip("bal_train", number, 2.0)
        assert clip.labels == [sample_classes()[name] for name in clip.human_labels]
        assert len(set(clip.labels)) == len(clip.labels)
        counts.add(len(clip.labels))
    assert counts == {1, 2, 3}  # alone, and overlapping


@pytest.mark.parametrize("clip_seconds", [2.0, 5.0])
def test_amplitude_is_in_range_and_never_silent(clip_seconds):
    for number in range(12):
        waveform = sample_clip("bal_train", number, clip_seconds).waveform
        assert waveform.shape == (round(clip_seconds * SAMPLE_RATE),)
        peak = np.max(np.abs(waveform))
        assert 10 ** (-18.1 / 20) < peak < 10 ** (-0.9 / 20)
        for second in waveform.reshape(-1, SAMPLE_RATE):
            assert np.any(second)


# This is the sample on other people's disks. If it fails, raise SAMPLE_VERSION, so
# that what they have is made anew, and put the new digests here.
@pytest.mark.parametrize(
    ("number", "digest"),
    [(0, "3ab845a4d466cb21"), (8, "2440d2e00715acdb"), (20, "605c82906a178b6b")],
)
def test_clips_of_this_version_are_known(number, digest):
    assert sample.SAMPLE_VERSION == 1
    assert waveform_digest(sample_clip("eval", number, 2.0).waveform) == digest


def test_digest_is_alike_before_and_after_int16_and_in_float32():
    waveform = sample_clip("eval", 3, 2.0).waveform
    flac = io.BytesIO()
    pcm = (waveform * 32768).astype(np.int16)
    soundfile.write(flac, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    flac.seek(0)
    decoded, _ = soundfile.read(flac, dtype="float32")
    assert waveform_digest(decoded) == waveform_digest(waveform)
    assert waveform_digest(waveform + 0.4 / 32768) == waveform_digest(waveform)
    assert waveform_digest(waveform + 1 / 32768) != waveform_digest(waveform)
    assert waveform_digest([1.0]) == waveform_digest([32767 / 32768])  # clipped


@pytest.mark.parametrize("wrong", [np.zeros((1, 4)), np.zeros(4, np.int16)])
def test_digest_refuses_what_is_not_one_float_waveform(wrong):
    with pytest.raises(ValueError, match="takes one waveform"):
        waveform_digest(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "split='train' is not one of bal_train, unlabelled"),
        ({"number": -1}, "number=-1 is negative"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"clip_seconds": 1.0}, "clip_seconds=1.0 is out of range"),
        ({"sample_rate": 16000}, "sample_rate=16000 is too low"),
    ],
)
def test_clip_refuses_what_it_cannot_make(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_clip(**{"split": "eval", "number": 0, **arguments})


# ----------------------------------------------------------------------------- files
def test_rows_are_the_clips_and_only_unlabelled_hides_its_labels(written):
    for split in COUNTS:
        table = pq.read_table(written / "data" / split / "00.parquet")
        assert table.num_rows == COUNTS[split] and table.schema == SCHEMA
        for number, row in enumerate(table.to_pylist()):
            clip = sample_clip(split, number, 2.0)
            assert row["video_id"] == clip.clip_id
            assert row["audio"]["path"] == f"{clip.clip_id}.flac"
            labelled = split != "unlabelled"
            assert row["labels"] == (clip.labels if labelled else [])
            assert row["human_labels"] == (clip.human_labels if labelled else [])
            file = io.BytesIO(row["audio"]["bytes"])
            info = soundfile.info(file)
            assert (info.format, info.subtype) == ("FLAC", "PCM_16")
            file.seek(0)
            decoded, sample_rate = soundfile.read(file)
            assert sample_rate == SAMPLE_RATE
            assert np.array_equal(decoded, clip.waveform)


def test_rows_come_in_groups_of_moderate_size(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 2)
    file = pq.ParquetFile(_write(tmp_path) / "data" / "eval" / "00.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [2, 1]


def test_same_arguments_return_at_once_and_others_get_their_own_folder(
    tmp_path, monkeypatch
):
    first = _write(tmp_path)
    other = _write(tmp_path, seed=1)
    assert other != first
    assert json.loads((other / "sample.json").read_text())["seed"] == 1
    monkeypatch.setattr(sample, "sample_clip", None)  # a call would fail
    assert _write(tmp_path) == first
    assert _write(tmp_path, clip_seconds=2) == first
    assert sorted(tmp_path.iterdir()) == sorted([first, other])


def test_interrupted_write_leaves_no_complete_folder(tmp_path, monkeypatch):
    made = []

    def interrupted(split, number, *arguments):
        if split == "eval":
            # What a kill at this moment would leave behind.
            made.extend(path.name for path in tmp_path.iterdir())
            raise KeyboardInterrupt
        return sample_clip(split, number, *arguments)

    monkeypatch.setattr(sample, "sample_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path)
    assert len(made) == 1 and made[0].startswith(".sample-")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert (_write(tmp_path) / "sample.json").is_file()


def test_write_that_comes_second_takes_the_first(tmp_path, monkeypatch):
    def overtaken(source, target):
        target.mkdir()
        (target / "sample.json").write_text("{}")
        raise OSError("Directory not empty")

    monkeypatch.setattr("os.rename", overtaken)
    written = _write(tmp_path)
    assert list(tmp_path.iterdir()) == [written]


def test_write_refuses_a_folder_in_the_way(tmp_path, written):
    (tmp_path / written.name / "something").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is not a complete sample"):
        _write(tmp_path)


def test_write_refuses_negative_counts(tmp_path):
    with pytest.raises(ValueError, match="num_eval=-1 is negative"):
        write_sample(tmp_path, num_eval=-1)


# ---------------------------------------------------------------------------- sounds
@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_pure_finite_and_not_silent_for_two_seconds(name):
    for seed in range(4):
        sound = _sound(name, seed, seconds=2)
        assert sound.shape == (2 * SAMPLE_RATE,) and sound.dtype == np.float64
        assert np.all(np.isfinite(sound))
        assert np.max(np.abs(sound)) > 0.05
        again = _sound(name, seed, seconds=2)
        assert np.array_equal(sound, again)


@pytest.mark.parametrize("seed", range(4))
def test_sine_wave_has_one_peak(seed):
    sound = _sound("Sine wave", seed, seconds=2)
    power, frequency = _spectrum(sound)
    peak = frequency[np.argmax(power)]
    crossings = np.count_nonzero(np.diff(np.signbit(sound)))
    assert peak == pytest.approx(crossings / 4, abs=1)  # two a period, two seconds
    assert power[np.abs(frequency - peak) < 3].sum() > 0.9999 * power.sum()


def _decibels_per_octave(sound):
    power, frequency = _spectrum(sound)
    edges = 125.0 * 2 ** np.arange(7)
    density = [
        power[(frequency >= low) & (frequency < 2 * low)].mean() for low in edges
    ]
    return np.polyfit(np.arange(7), 10 * np.log10(density), 1)[0]


def test_pink_noise_falls_three_decibels_per_octave_and_white_none():
    pink = _sound("Pink noise", 0, seconds=5)
    white = _sound("White noise", 0, seconds=5)
    assert _decibels_per_octave(pink) == pytest.approx(-3.01, abs=0.3)
    assert _decibels_per_octave(white) == pytest.approx(0, abs=0.3)


def test_noise_is_gaussian():
    white = _sound("White noise", 0, seconds=5)
    assert np.mean(white**2) == pytest.approx(1)
    assert np.mean(white**4) == pytest.approx(3, rel=0.03)  # a normal's kurtosis


def test_dtmf_key_is_one_row_and_one_column():
    sound = _sound("Telephone dialing, DTMF", 0, seconds=5)
    tones = np.array(DTMF_ROWS + DTMF_COLUMNS)
    width = int(0.06 * SAMPLE_RATE)
    windows = sound[: len(sound) // width * width].reshape(-1, width)
    level = np.sqrt(np.mean(windows**2, axis=1))
    steady = windows[level > 0.95 * level.max()]
    assert len(steady) > 5
    keys = set()
    for window in steady:
        # How much of each tone is in it, by correlation with that tone.
        turns = np.exp(-2j * np.pi * np.outer(tones, np.arange(width)) / SAMPLE_RATE)
        amplitude = np.abs(turns * np.hanning(width) @ window)
        row, column = np.argmax(amplitude[:4]), np.argmax(amplitude[4:])
        rest = np.delete(amplitude, [row, 4 + column])
        assert rest.max() < 0.1 * min(amplitude[row], amplitude[4 + column])
        keys.add((row, column))
    assert len(keys) > 1


@pytest.mark.parametrize("seed", range(4))
def test_chirp_moves_one_way_over_octaves(seed):
    sound = _sound("Chirp tone", seed, seconds=2)
    peaks = []
    for part in np.split(sound, 8):
        power, frequency = _spectrum(part)
        peaks.append(np.sum(power * frequency) / np.sum(power))
    steps = np.diff(peaks)
    assert np.all(steps > 0) or np.all(steps < 0)
    assert max(peaks) > 4 * min(peaks)
