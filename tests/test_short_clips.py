"""How a short clip is lengthened is one setting, which all that reads clips obeys."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from efficientat_plugin.contracts import SHORT_CLIPS
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.short_clips import lengthened
from efficientat_plugin.teachers.store.manifest import read_manifest
from efficientat_plugin.teachers.store.writer import StoreWriter
from efficientat_plugin.teachers.stored import StoredTeacher, warn_of_other_clips

REPOSITORY = Path(__file__).resolve().parents[1]
HPARAMS = [
    path
    for path in sorted((REPOSITORY / "hparams").glob("*.yaml"))
    if "clip_seconds:" in path.read_text()
]
LABELS = LabelTable(["a", "b"], ["A", "B"])


@pytest.fixture
def sound(tmp_path):
    """A third of a second, 32 kHz."""
    path = tmp_path / "short.wav"
    samples = 0.1 * np.random.default_rng(0).standard_normal(10_000)
    soundfile.write(path, samples, 32000, "FLOAT")
    return path, samples.astype(np.float32)


@pytest.mark.parametrize("short_clips", ["repeat", "zero_pad"])
def test_clips_are_lengthened_as_taggers_do(sound, short_clips):
    path, samples = sound
    row = {"video_id": "x", "audio": {"bytes": None, "path": str(path)}, "labels": []}
    clip = ClipReader(LABELS, 1.0, 32000, short_clips).read(row)
    wanted = lengthened(samples, 32000, short_clips)
    np.testing.assert_array_equal(clip.waveform.numpy(), wanted)


def test_short_sound_is_made_longer_as_asked():
    sound = np.array([1.0, 2.0, 3.0], np.float32)
    assert lengthened(sound, 7, "repeat").tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert lengthened(sound, 5, "zero_pad").tolist() == [1, 2, 3, 0, 0]
    assert lengthened(sound, 5, "as_is").tolist() == [1, 2, 3]
    for how in SHORT_CLIPS:
        assert lengthened(sound, 2, how).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="'twice'; choose one of repeat"):
        lengthened(sound, 5, "twice")


@pytest.mark.parametrize("short_clips", ["as_is", "twice"])
def test_other_ways_are_refused(short_clips):
    with pytest.raises(ValueError, match="choose one of repeat, zero_pad"):
        ClipReader(LABELS, 1.0, 32000, short_clips)


@pytest.mark.parametrize("path", HPARAMS, ids=lambda path: path.stem)
def test_every_yaml_with_clips_sets_it(path):
    makes_clips = path.stem == "soundscapes"  # and reads none
    assert makes_clips != ("short_clips: " in path.read_text())


def _about(short_clips):
    return {
        "teacher": "t",
        "labels_sha256": LABELS.sha256,
        "num_classes": 2,
        "sample_rate": 32000,
        "clip_seconds": 1.0,
        "short_clips": short_clips,
    }


def test_a_store_records_how_its_teacher_was_given_short_clips(tmp_path):
    for short_clips in ("repeat", "zero_pad"):
        StoreWriter(tmp_path / short_clips, **_about(short_clips)).close()
        assert read_manifest(tmp_path / short_clips).short_clips == short_clips
        with pytest.raises(ValueError, match="short_clips"):
            other = {"repeat": "zero_pad", "zero_pad": "repeat"}[short_clips]
            StoreWriter(tmp_path / short_clips, **_about(other))


@pytest.mark.parametrize(
    ("seconds", "short_clips", "warns"),
    [(1.0, "zero_pad", False), (1.0, "repeat", True), (2.0, "zero_pad", True)],
)
def test_logits_of_other_clips_cause_a_warning(
    tmp_path, caplog, seconds, short_clips, warns
):
    StoreWriter(tmp_path / "store", **_about("zero_pad")).close()
    teacher = StoredTeacher(tmp_path / "store")
    warn_of_other_clips(teacher, seconds, short_clips)
    assert ("are of clips of 1 s (short_clips: zero_pad)" in caplog.text) == warns
    warn_of_other_clips(None, seconds, short_clips)
