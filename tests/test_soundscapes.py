"""Soundscapes sound as their labels say, and share no recording between sides."""

import csv
import itertools
import json
from collections import defaultdict

import datasets
import numpy as np
import pytest
import soundfile
import torch

from efficientat_plugin import (
    FrameMN,
    FrameShift,
    LogMel,
    Mixup,
    SoundscapeOptions,
    frame_targets,
    make_soundscapes,
    prepare_for_short_run,
    read_events,
    read_table,
    segment_scores,
)
from efficientat_plugin.contracts import SoftTarget
from efficientat_plugin.data import soundscapes
from efficientat_plugin.data.decoding import decode
from efficientat_plugin.data.frame_mixing import shift_frames, shifted
from efficientat_plugin.data.sound_files import UnreadableClip
from efficientat_plugin.data.soundscape_mixing import mix_soundscape
from efficientat_plugin.data.soundscape_sources import (
    SYNTHETIC_EVENTS,
    SyntheticBackgrounds,
    SyntheticEvents,
    active_part,
)

RATE = 16000
PITCHES = {"low": 300.0, "middle": 1000.0, "high": 4000.0}
SHORT = {"clip_seconds": 3.0, "sample_rate": RATE, "event_seconds": (0.25, 1.0)}
SIDES = ("train", "valid", "test")


def tone(pitch, seconds=0.6, before=0.3, behind=0.5):
    """A tone between silences, which belong to no event."""
    sound = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)
    ends = [np.zeros(int(each * RATE)) for each in (before, behind)]
    return np.concatenate([ends[0], sound, ends[1]])


def write_recordings(folder):
    """Ten groups of three classes of tones, each of two takes."""
    rows = []
    for group, (label, pitch) in itertools.product(range(10), PITCHES.items()):
        for take in range(2):
            name = f"{label}-{group}-{take}.wav"
            soundfile.write(folder / name, tone(pitch + 20 * group + take), RATE)
            rows.append({"filename": name, "label": label, "group": f"street {group}"})
    with open(folder / "table.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noises")
    for number in range(6):
        noise = 0.05 * np.random.default_rng(number).standard_normal(
            RATE * (1 + number)
        )
        soundfile.write(folder / f"{number}.wav", noise, RATE)
    return folder


@pytest.fixture(scope="module")
def made(recordings, noises, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "scapes"
    return make_soundscapes(folder, 60, recordings, noises, **SHORT)


def placed(folder):
    with open(folder / "events" / "placed.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------- what is written
def test_there_are_as_many_as_asked_and_all_tables_agree(made):
    assert made.num_clips == {"train": 48, "valid": 6, "test": 6}
    rows = read_table(made.folder)
    assert [rows["split"][:].count(side) for side in SIDES] == [48, 6, 6]
    weak = dict(zip(rows["video_id"][:], rows["labels"][:], strict=True))
    counts, rows_of_events = defaultdict(int), placed(made.folder)
    for side in SIDES:
        table = read_events(
            made.folder / "events" / f"{side}.tsv",
            durations=dict.fromkeys(weak, 3.0),
            merge=False,
        )
        assert table.left_out == [] and table.weak == {}
        assert {clip.split("/")[0] for clip in table.events} == {side}
        for clip, events in table.events.items():
            assert weak[clip] == sorted({event.label for event in events})
            found = [
                (float(row["onset"]), float(row["offset"]), row["event_label"])
                for row in rows_of_events
                if row["filename"] == f"{clip}.flac"
            ]
            times = [(e.start_seconds, e.end_seconds, e.label) for e in events]
            assert found == times
            for event in events:
                counts[event.label] += 1
    assert counts == made.num_events and set(counts) == set(PITCHES)
    for path in made.folder.rglob("*.flac"):
        about = soundfile.info(path)
        assert (about.frames, about.samplerate, about.channels) == (3 * RATE, RATE, 1)


def test_the_same_seed_gives_the_same_bytes(made, recordings, noises, tmp_path):
    again = make_soundscapes(tmp_path / "again", 60, recordings, noises, **SHORT)
    assert contents(again.folder) == contents(made.folder)
    other = make_soundscapes(tmp_path / "other", 5, recordings, noises, seed=1, **SHORT)
    sounds = {data for name, data in contents(other.folder).items() if "flac" in name}
    assert len(sounds) == 5 and not sounds & {*contents(made.folder).values()}


def test_a_soundscape_does_not_depend_on_how_many_there_are(
    made, recordings, noises, tmp_path
):
    fewer = make_soundscapes(tmp_path / "fewer", 10, recordings, noises, **SHORT)
    files = {k: v for k, v in contents(fewer.folder).items() if k.endswith(".flac")}
    assert len(files) == 10 and files.items() <= contents(made.folder).items()


def test_no_recording_is_on_two_sides(made, recordings):
    rows = read_table(recordings)
    group_of = dict(zip(rows["video_id"][:], rows["group"][:], strict=True))
    used = {kind: defaultdict(set) for kind in ("sound", "background")}
    for row in placed(made.folder):
        side = row["filename"].split("/")[0]
        used["sound"][side].add(group_of[row["sound"]])
        used["background"][side].add(row["background"])
    for kind, by_side in used.items():
        assert set(by_side) == set(SIDES), kind
        for one, other in itertools.combinations(SIDES, 2):
            assert not by_side[one] & by_side[other], (kind, one, other)


def test_a_given_split_is_kept_unless_it_divides_a_group(recordings, tmp_path):
    rows = read_table(recordings)
    groups = rows["group"][:]
    sides = ["test" if group[-1] in "01" else "train" for group in groups]
    given = rows.add_column("split", sides)
    made = make_soundscapes(
        tmp_path / "scapes", 20, given, valid_share=0.2, test_share=0.4, **SHORT
    )
    of = dict(zip(rows["video_id"][:], sides, strict=True))
    for row in placed(made.folder):
        assert of[row["sound"]] == row["filename"].split("/")[0].replace(
            "valid", "train"
        )
    divided = rows.add_column("split", ["train", "test"] * (len(rows) // 2))
    with pytest.raises(ValueError, match="one group on several sides: street 0"):
        make_soundscapes(tmp_path / "other", 20, divided, valid_share=0, **SHORT)


# ------------------------------------------------------------------ times and levels
def power(waveform, start, end, rate=RATE):
    return np.mean(np.square(waveform[round(start * rate) : round(end * rate)]))


def test_events_are_where_the_energy_is(recordings, tmp_path):
    """Frame by frame, in the band of each class, at 30 dB above the background."""
    loud = {"snr_db": (30, 30), "events_per_clip": (2, 4), "max_overlap": 3}
    made = make_soundscapes(tmp_path / "scapes", 30, recordings, **loud, **SHORT)
    step, checked = RATE // 50, 0
    for name, rows in itertools.groupby(placed(made.folder), lambda r: r["filename"]):
        waveform, _ = soundfile.read(made.folder / name)
        frames = waveform.reshape(-1, step) * np.hanning(step)
        spectrum = np.abs(np.fft.rfft(frames)) ** 2  # bins of 50 Hz
        rows = list(rows)
        for label, pitch in PITCHES.items():
            band = slice(round(pitch / 50) - 1, round((pitch + 200) / 50) + 2)
            energy = spectrum[:, band].sum(1)
            inside, touched = np.zeros((2, len(energy)), bool)
            for row in rows:
                if row["event_label"] == label:
                    onset, offset = float(row["onset"]) * 50, float(row["offset"]) * 50
                    inside[int(np.ceil(onset)) : int(offset)] = True
                    touched[int(onset) : int(np.ceil(offset))] = True
            if inside.any():
                limit = 0.2 * np.median(energy[inside])
                assert (energy[inside] > limit).all(), (name, label)
                assert (energy[~touched] < limit).all(), (name, label)
                checked += 1
    assert checked > 30


@pytest.mark.parametrize("snr_db", [0.0, 12.0, 30.0])
def test_levels_are_as_asked(snr_db, tmp_path):
    options = {"clip_seconds": 4.0, "event_seconds": (0.5, 1.5), "max_overlap": 1}
    options |= {"events_per_clip": (1, 1), "snr_db": (snr_db, snr_db)}
    options |= {"background_db": (-45.0, -45.0)}
    made = make_soundscapes(tmp_path / "scapes", 30, file_format="wav", **options)
    found, quiet = [], []
    for row in placed(made.folder):
        waveform, rate = soundfile.read(made.folder / row["filename"])
        start, end = float(row["onset"]), float(row["offset"])
        assert float(row["snr_db"]) == snr_db
        if end - start < 0.3:
            continue  # a click, in noise that is not the same everywhere
        outside = np.concatenate(
            [waveform[: round(start * rate)], waveform[round(end * rate) :]]
        )
        background = np.mean(np.square(outside))
        event = power(waveform, start, end, rate) - background
        found.append(10 * np.log10(max(event, 1e-12) / background))
        quiet.append(10 * np.log10(background))
    # The background is random, and slow where its power falls steeply.
    assert len(found) > 20
    assert np.median(found) == pytest.approx(snr_db, abs=0.5)
    assert np.median(quiet) == pytest.approx(-45.0, abs=0.5)


def test_the_loudest_soundscapes_are_attenuated_as_a_whole(tmp_path):
    loud = {"background_db": (-10.0, -10.0), "snr_db": (30.0, 30.0)}
    loud |= {"events_per_clip": (1, 1), "event_seconds": (0.5, 1.0)}
    made = make_soundscapes(tmp_path / "scapes", 10, clip_seconds=3.0, **loud)
    for row in placed(made.folder):
        waveform, rate = soundfile.read(made.folder / row["filename"])
        assert np.abs(waveform).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)


def test_overlaps_are_as_few_as_asked_and_classes_apart():
    options = SoundscapeOptions(
        clip_seconds=5.0, events_per_clip=(8, 12), max_overlap=2, event_seconds=(0.3, 2)
    )
    sounds, backgrounds = SyntheticEvents(options), SyntheticBackgrounds(options)
    most, left_out = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scape = mix_soundscape("train", sounds, backgrounds, options, rng)
        left_out += scape.num_left_out
        events = scape.events
        assert 8 <= len(events) + scape.num_left_out <= 12
        for time in np.arange(0, 5, 0.01):
            active = [e for e in events if e.start_seconds <= time < e.end_seconds]
            assert len({event.label for event in active}) == len(active) <= 2
            most = max(most, len(active))
        by_class = defaultdict(list)
        for event in events:
            assert 0 <= event.start_seconds < event.end_seconds <= 5
            by_class[event.label].append(event)
        for same in by_class.values():
            for one, other in itertools.pairwise(same):
                assert other.start_seconds - one.end_seconds >= 0.15 - 1e-9
    assert most == 2 and left_out > 0


@pytest.mark.parametrize("label", SYNTHETIC_EVENTS)
@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_synthetic_events_begin_and_end_with_sound(label, seconds):
    options = SoundscapeOptions()
    rng = np.random.default_rng(0)
    for _ in range(5):
        length = round(seconds * options.sample_rate)
        sound = SyntheticEvents(options).draw("train", label, length, rng).waveform
        assert 0 < len(sound) <= length
        step = min(640, len(sound))
        loudest = np.sqrt(np.mean(np.square(sound)))
        for end in (sound[:step], sound[-step:]):
            assert np.sqrt(np.mean(np.square(end))) > 1e-3 * loudest


def test_silence_at_the_ends_of_recordings_belongs_to_no_event(recordings, made):
    sound = tone(1000.0, seconds=0.6, before=0.3, behind=0.5)
    cut = active_part(sound, RATE, trim_db=40)
    assert len(cut) == round(0.6 * RATE) and np.array_equal(cut, sound[4800:14400])
    paused = np.concatenate([sound, sound])
    assert len(active_part(paused, RATE, 40)) == len(sound) + len(cut)
    lengths = [float(r["offset"]) - float(r["onset"]) for r in placed(made.folder)]
    assert max(lengths) == pytest.approx(0.6, abs=1e-3) and min(lengths) >= 0.25


# ---------------------------------------------------------------- folders and refusals
def test_a_folder_is_made_once_and_only_for_its_settings(made, recordings, noises):
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    assert make_soundscapes(made.folder, 60, recordings, noises, **SHORT) == made
    assert before == {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    with pytest.raises(FileExistsError, match=r"\(seed 0 there, 3 here; .*delete it"):
        make_soundscapes(made.folder, 60, recordings, noises, seed=3, **SHORT)
    with pytest.raises(FileExistsError, match="number 60 there, 50 here"):
        make_soundscapes(made.folder, 50, recordings, noises, **SHORT)
    with pytest.raises(FileExistsError, match="holds other things; delete it"):
        make_soundscapes(recordings, 60)


def test_other_recordings_are_other_settings(made, noises, tmp_path):
    recordings = write_recordings(tmp_path)
    soundfile.write(recordings / "low-0-0.wav", tone(310.0, seconds=0.7), RATE)
    with pytest.raises(FileExistsError, match="sounds.train"):
        make_soundscapes(made.folder, 60, recordings, noises, **SHORT)


def test_an_interrupted_run_leaves_nothing_and_is_rerun(tmp_path, monkeypatch):
    options = {"clip_seconds": 2.0, "event_seconds": (0.25, 1.0)}
    whole = make_soundscapes(tmp_path / "whole", 6, **options)
    mixed, folder = [], tmp_path / "scapes"

    def interrupted(*given):
        mixed.append(1)
        if len(mixed) == 4:
            raise KeyboardInterrupt
        return mix_soundscape(*given)

    monkeypatch.setattr(soundscapes, "mix_soundscape", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_soundscapes(folder, 6, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.undo()
    again = make_soundscapes(folder, 6, **options)
    assert contents(again.folder) == contents(whole.folder)


def test_what_cannot_be_used_is_left_out_and_counted(recordings, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    sound = (recordings / "low-0-0.wav").read_bytes()
    clips = {
        "damaged": (b"?", ["low"]),
        "both": (sound, ["low", "high"]),
        "none": (sound, []),
        "silent": ((tmp_path / "silent.wav").read_bytes(), ["low"]),
        "low-0": (sound, ["low"]),
        "high-0": ((recordings / "high-0-0.wav").read_bytes(), ["high"]),
    }
    rows = datasets.Dataset.from_dict(
        {
            "video_id": [*clips],
            "audio": [{"bytes": data, "path": None} for data, _ in clips.values()],
            "labels": [labels for _, labels in clips.values()],
        }
    )
    made = make_soundscapes(
        tmp_path / "scapes", 40, rows, valid_share=0, test_share=0, **SHORT
    )
    assert {row["sound"].split("-")[0] for row in placed(made.folder)} == {
        "low",
        "high",
    }
    text = "\n".join(made.left_out)
    assert "1 recording because it has several classes: both" in text
    assert "1 recording because it has no class: none" in text
    assert "1 recording because it is silent: silent" in text
    assert text.count(" recording because ") == 4 and ": damaged" in text
    kept = json.loads((made.folder / "made_of.json").read_text())
    assert kept["left_out"] == made.left_out
    with pytest.raises(
        UnreadableClip, match="recordings of low for train gave no sound"
    ):
        make_soundscapes(
            tmp_path / "none", 4, rows.select([0, 3]), valid_share=0, test_share=0
        )


def test_one_class_and_unlabelled_backgrounds_are_split_by_recording(
    recordings, tmp_path
):
    rows = read_table(recordings)
    low = rows.select([k for k, names in enumerate(rows["labels"]) if names == ["low"]])
    made = make_soundscapes(tmp_path / "scapes", 10, low, **SHORT)
    assert set(made.num_events) == {"low"} and len(made.num_clips) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_seconds": 0.0}, "clip_seconds=0.0 must be above 0"),
        ({"sample_rate": 10}, "sample_rate=10 must be from 1000"),
        ({"sample_rate": 16000}, "sample_rate=16000 is too low for synthetic events"),
        ({"max_overlap": 0}, "max_overlap=0 must be 1 or more"),
        ({"trim_db": 0}, "trim_db=0 must be above 0"),
        ({"snr_db": (9, 3)}, r"snr_db=\[9, 3\] must be two numbers in order"),
        ({"event_seconds": (1, 30)}, r"event_seconds=\[1, 30\] .* from 0.05 to 10"),
        ({"events_per_clip": (-1, 3)}, "two numbers in order, from 0 to inf"),
        ({"background_db": (-20, 3)}, r"\[-20, 3\] must be .* from -80 to 0"),
        ({"file_format": "mp3"}, "file_format='mp3' must be one of flac, wav"),
        ({"seed": -1}, "seed=-1 0 or more"),
        ({"number": 2}, "number=2 is too few soundscapes for train, valid, test"),
        ({"valid_share": 0.6, "test_share": 0.4}, "must be 0 or more and leave"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_soundscapes(tmp_path / "scapes", **options)
    assert not [*tmp_path.iterdir()]


def test_a_side_without_recordings_is_refused(recordings, tmp_path):
    rows = read_table(recordings)
    few = rows.select([0, 20]).remove_columns("group")
    with pytest.raises(ValueError, match="the backgrounds cannot be split: 2 clips"):
        make_soundscapes(tmp_path / "few", 20, rows, few, **SHORT)
    given = rows.add_column("split", ["train"] * len(rows))
    with pytest.raises(
        ValueError, match="the sounds have no usable recordings for test"
    ):
        make_soundscapes(tmp_path / "scapes", 20, given, **SHORT)


# -------------------------------------------------------------------------- learning
@pytest.mark.slow
@pytest.mark.parametrize("labels_follow", [True, False])
def test_a_student_learns_events_if_labels_follow_the_shifts(
    labels_follow, recordings, tmp_path
):
    """It fits a handful of soundscapes, from the files to F-scores."""
    options = {"clip_seconds": 2.0, "sample_rate": RATE, "event_seconds": (0.3, 0.6)}
    options |= {"snr_db": (20.0, 30.0), "events_per_clip": (1, 2)}
    folder = tmp_path / "scapes"
    make_soundscapes(folder, 12, recordings, valid_share=0, test_share=0, **options)
    classes = sorted(PITCHES)
    events = read_events(folder / "events" / "train.tsv").events
    waveforms = [decode(folder / f"{clip}.flac", RATE, 2 * RATE) for clip in events]
    targets = [frame_targets(each, classes, 50) for each in events.values()]
    targets = torch.from_numpy(np.stack(targets))
    log_mel = LogMel(RATE, 64, 400, 160, 512, f_max=7000.0).eval()
    log_mels = log_mel(torch.from_numpy(np.stack(waveforms)))
    torch.manual_seed(0)
    student = FrameMN(len(classes), width=0.1, dropout=0.0)
    prepare_for_short_run(student, prior=0.1, batch_norm_momentum=0.5)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.005)
    frame_shift, mixup = FrameShift(80), Mixup(0.2, probability=0.3, keep_larger=False)
    for _ in range(100):
        shift = frame_shift.draw(len(log_mels))
        labels = shift_frames(targets, shift) if labels_follow else targets
        mixed, mix = mixup(shifted(log_mels, shift))
        labels = SoftTarget(labels, torch.ones(len(labels))).followed(mix).scores
        strong = student(mixed[:, None]).strong
        loss = torch.nn.functional.binary_cross_entropy_with_logits(strong, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        strong = student.eval()(log_mels[:, None]).strong.sigmoid()
    scores = dict(zip(events, strong.transpose(1, 2).numpy(), strict=True))
    durations = dict.fromkeys(events, 2.0)
    found = segment_scores(
        scores, events, durations, classes, threshold=0.5, segment_seconds=0.2
    )
    assert found.micro > 0.8 if labels_follow else found.micro < 0.5
