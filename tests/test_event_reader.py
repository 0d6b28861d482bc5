"""Sounds are joined with their events, and what is known of each stays apart."""

import numpy as np
import pytest
import soundfile
import torch

from efficientat_plugin.contracts import Clip
from efficientat_plugin.data.clips import Clips, collate
from efficientat_plugin.data.events.event_reader import (
    EventClipReader,
    open_event_clips,
)
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.mixing import WaveformAugment, WaveformMix
from efficientat_plugin.data.sampling import Draw
from efficientat_plugin.data.splits import split_rows

RATE = 16000
SECONDS = {"timed": 2.0, "weak": 1.0, "empty": 1.0, "unknown": 1.0}
TABLE = """filename,onset,offset,event_label
timed.wav,0.25,0.5,dog
timed.wav,1.5,1.9,cat
empty.wav,,,
weak.wav,,,cat
"""


@pytest.fixture
def sounds(tmp_path):
    for name, seconds in SECONDS.items():
        noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))
        soundfile.write(tmp_path / f"{name}.wav", noise, RATE)
    (tmp_path / "events.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture
def opened(sounds):
    return open_event_clips(sounds, sounds / "events.csv")


@pytest.fixture
def reader(opened):
    return EventClipReader(opened, 25, clip_seconds=1.0, sample_rate=RATE)


def _batch(opened, reader, **more):
    clips = Clips(opened.rows, reader, **more)
    batch = collate([clips[number] for number in range(len(clips))])
    return {name: row for row, name in enumerate(batch.clip_id)}, batch


def test_each_kind_of_knowledge_is_kept(opened, reader):
    place, batch = _batch(opened, reader)
    assert opened.labels.names == ("cat", "dog")
    assert batch.strong.shape == (4, 2, 25)
    known = {name: float(batch.strong_known[row]) for name, row in place.items()}
    assert known == {"timed": 1.0, "weak": 0.0, "empty": 1.0, "unknown": 0.0}
    labelled = {name: float(batch.labelled[row]) for name, row in place.items()}
    assert labelled == {"timed": 1.0, "weak": 1.0, "empty": 1.0, "unknown": 0.0}
    assert batch.labels[place["weak"]].tolist() == [1.0, 0.0]
    assert not batch.strong[place["weak"]].any()
    assert not batch.strong[place["empty"]].any()


def test_events_behind_the_cut_are_in_neither_label(opened, reader):
    place, batch = _batch(opened, reader)
    strong = batch.strong[place["timed"]]
    assert strong[1].nonzero()[:, 0].tolist() == [*range(6, 13)]  # 0.25 to 0.5 s
    assert not strong[0].any()  # at 1.5 s, of a clip of 1 s
    assert batch.labels[place["timed"]].tolist() == [0.0, 1.0]


def test_a_mix_has_the_mixed_labels_of_frames(opened, reader):
    clips = Clips(opened.rows, reader)
    whole = [clips[number] for number in range(4)]
    mixed = Clips(opened.rows, reader, waveform_mix=WaveformMix(probability=1.0))
    by_name = {clip.clip_id: clip for clip in whole}
    for number in range(4):
        found: Clip = mixed[number]
        share, partner = found.partner_share, by_name[found.partner_id]
        own = by_name[found.clip_id]
        expected = (1 - share) * own.strong + share * partner.strong
        assert torch.allclose(found.strong, expected)
        known = (1 - share) * own.strong_known + share * partner.strong_known
        assert found.strong_known == pytest.approx(known)


def test_a_roll_moves_the_labels_of_frames(opened, reader):
    augment = WaveformAugment(roll_samples=8000)
    rolled = Clips(opened.rows, reader, augment)
    for number, name in enumerate(opened.rows["video_id"]):
        if name == "timed":
            moved = rolled[number].strong[1].sum()
            assert moved == 7  # circularly, by whole frames
            before = Clips(opened.rows, reader)[number].strong
            assert not torch.equal(rolled[number].strong, before)


def test_a_folder_of_sounds_alone_needs_no_labels(sounds, opened):
    (sounds / "events.csv").rename(sounds.parent / "elsewhere.csv")
    clips = open_event_clips(sounds, sounds.parent / "elsewhere.csv")
    assert clips.digest() == opened.digest() and len(clips.rows) == len(SECONDS)
    with pytest.raises(FileNotFoundError, match="class folders"):
        open_event_clips(sounds, None)


def test_labels_of_folders_are_weak_labels(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "1.wav", np.zeros(RATE), RATE)
    opened = open_event_clips(tmp_path, None)
    assert opened.labels.names == ("cat", "dog") and not opened.events
    assert opened.judged == {"cat/1", "dog/1"}


def test_events_of_other_sounds_are_refused(sounds):
    path = sounds / "others.csv"
    path.write_text(TABLE.replace("timed", "a").replace("weak", "b").replace("emp", ""))
    with pytest.raises(ValueError, match="none of the 3 sounds .* is among the 4"):
        open_event_clips(sounds, path)


def test_events_in_milliseconds_are_refused(sounds):
    path = sounds / "ms.csv"
    path.write_text("filename,onset,offset,event_label\ntimed.wav,250,500,dog\n")
    with pytest.raises(ValueError, match="would fit in milliseconds; pass unit='ms'"):
        open_event_clips(sounds, path)
    opened = open_event_clips(sounds, path, event_options={"unit": "ms"})
    assert opened.events["timed"][0].end_seconds == 0.5


def test_two_tables_with_events_of_one_clip_are_refused(sounds):
    with pytest.raises(ValueError, match="events of the same clips: empty, timed"):
        open_event_clips(sounds, [sounds / "events.csv"] * 2)


def test_repeated_clips_are_refused(opened):
    with pytest.raises(ValueError, match="short_clips='repeat' would repeat events"):
        EventClipReader(opened, 25, short_clips="repeat")


@pytest.mark.parametrize("classes", [["dog"], ["dog", "cat"]])
def test_clips_of_one_class_are_split_too(sounds, classes):
    labels = LabelTable(classes, classes)
    opened = open_event_clips(sounds, sounds / "events.csv", labels)
    split = split_rows(opened.rows_to_split(), 0.25, 0.25, seed=0)
    assert sorted(place for side in split for place in side) == [0, 1, 2, 3]
    assert min(map(len, split)) > 0


# --- Parts of longer sounds -----------------------------------------------------------


@pytest.fixture
def ramp(tmp_path):
    """Ten seconds whose samples tell the time, and an event in every odd second."""
    samples = np.arange(10 * RATE) / (10 * RATE)
    soundfile.write(tmp_path / "long.wav", samples, RATE, "FLOAT")
    soundfile.write(tmp_path / "weak.wav", samples, RATE, "FLOAT")
    rows = [f"long.wav,{second},{second + 1},dog" for second in (1, 3, 5, 7, 9)]
    table = ["filename,onset,offset,event_label", *rows, "weak.wav,,,dog"]
    (tmp_path / "events.csv").write_text("\n".join(table))
    return open_event_clips(tmp_path, tmp_path / "events.csv")


def _cropped(ramp, **options):
    reader = EventClipReader(ramp, 50, clip_seconds=2.0, sample_rate=RATE, **options)
    return Clips(ramp.rows, reader, seed=3)


def test_parts_of_longer_sounds_keep_their_labels(ramp):
    clips, begins = _cropped(ramp, random_crop=True), set()
    row = [*ramp.rows["video_id"]].index("long")
    for epoch in range(40):
        clip = clips[Draw(row=row, epoch=epoch, position=0)]
        begin = float(clip.waveform[0]) * 10
        assert begin / 0.04 == pytest.approx(round(begin / 0.04), abs=1e-3)
        assert len(clip.waveform) == 2 * RATE and begin <= 8 + 1e-6
        times = begin + (np.arange(50) + 0.5) * 0.04
        active = (times % 2 >= 1).astype(np.float32)
        # A frame that an event touches has its label
        assert np.abs(clip.strong[0].numpy() - active).sum() <= 2
        assert clip.labels.tolist() == [float(clip.strong.max())]
        begins.add(round(begin, 2))
    assert len(begins) > 20 and min(begins) < 1 and max(begins) > 7
    again = clips[Draw(row=row, epoch=5, position=0)]
    assert torch.equal(again.waveform, clips[Draw(row, 5, 0)].waveform)


def test_weak_labels_are_of_the_whole_sound(ramp):
    row = [*ramp.rows["video_id"]].index("weak")
    clip = _cropped(ramp, random_crop=True)[Draw(row=row, epoch=1, position=0)]
    assert (clip.labels.tolist(), clip.strong_known) == ([1.0], 0.0)


def test_without_it_clips_are_the_beginning(ramp):
    for clip in map(_cropped(ramp).__getitem__, range(2)):
        assert float(clip.waveform[0]) == 0.0


def test_sounds_that_are_not_longer_are_read_whole(sounds, opened):
    """With and without, the same, and later random draws are the same, too."""
    options = {"clip_seconds": 2.0, "sample_rate": RATE}
    mixed = {"waveform_mix": WaveformMix(probability=1.0), "seed": 1}
    waveforms = []
    for crops in (False, True):
        reader = EventClipReader(opened, 50, random_crop=crops, **options)
        clips = Clips(opened.rows, reader, **mixed)
        waveforms.append(torch.stack([clips[place].waveform for place in range(4)]))
    assert torch.equal(*waveforms)
