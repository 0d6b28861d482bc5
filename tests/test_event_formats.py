"""Written events are read back as the same events; targets mark their frames."""

import csv
import json

import numpy as np
import pytest

from efficientat_plugin import Event, frame_targets, read_events
from efficientat_plugin.cli.event_formats import (
    EVENT_FORMATS,
    EVENT_TABLES,
    EVENT_TRACKS,
    files_of_sounds,
    write_events,
)
from efficientat_plugin.data.events.event_targets import class_table, merge_events
from efficientat_plugin.data.labels import LabelTable

READABLE = [name for name in EVENT_FORMATS if name != "srt"]
EVENTS = {
    "dog/a.wav": [
        Event("Dog", 0.5, 1.5, 0.875),
        Event("Child speech, kid speaking", 0.123457, 3.0, 0.25),
    ],
    "b.wav": [Event("=HYPERLINK(A1)", 0.0, 10.0, 1.0), Event('12" drum', 0.0, 7e3, 0)],
    "-c.wav": [Event("Caf\u00e9; bar|s", 3601.5, 3602.0, 0.5)],
}


def expected(events, form):
    """Events by clip id; label tracks have no scores."""
    has_scores = form not in EVENT_TRACKS
    return {
        sound.removesuffix(".wav"): sorted(
            [event if has_scores else event._replace(score=None) for event in every],
            key=lambda event: (event.start_seconds, event.end_seconds, event.label),
        )
        for sound, every in events.items()
    }


@pytest.mark.parametrize("form", EVENT_TABLES)
def test_a_table_is_read_back_as_the_same_events(form, tmp_path):
    (path,) = write_events(EVENTS, tmp_path / "events.txt", form)
    if form == "json":
        path = path.rename(tmp_path / "events.json")
    table = read_events(path)
    assert table.events == expected(EVENTS, form)
    assert table.left_out == []


@pytest.mark.parametrize("form", READABLE)
def test_a_file_of_each_sound_is_read_back_as_the_same_events(form, tmp_path):
    paths = write_events(EVENTS, tmp_path, form, per_sound=True)
    assert paths[0].parent == tmp_path / "dog"
    if form in ("raven", "audacity"):
        assert read_events(tmp_path).events == expected(EVENTS, form)
        return
    for path, (sound, events) in zip(paths, EVENTS.items(), strict=True):
        assert read_events(path).events == expected({sound: events}, form)


@pytest.mark.parametrize("form", READABLE)
def test_a_sound_without_events_stays_one(form, tmp_path):
    events = {"a.wav": [], "b.wav": [Event("Dog", 0.0, 1.0, 0.5)]}
    write_events(events, tmp_path, form, per_sound=True)
    if form in ("raven", "audacity"):
        assert read_events(tmp_path).empty == ["a"]
    if form in ("csv", "json", "dcase"):
        (path,) = write_events(events, tmp_path / f"all.{form}", form)
        assert read_events(path).empty == ["a"]


@pytest.mark.parametrize("form", READABLE)
def test_annotated_events_have_no_score(form, tmp_path):
    events = {"a.wav": [Event("Dog", 0.0, 1.0)]}
    name = "a.json" if form == "json" else "a.txt"
    (path,) = write_events(events, tmp_path / name, form)
    assert read_events(path).events == {"a": [Event("Dog", 0.0, 1.0, None)]}


def test_tables_have_the_columns_of_their_formats(tmp_path):
    events = {"a.wav": [Event("Dog", 0.5, 1.0, 0.9)]}
    text = {
        form: write_events(events, tmp_path / form, form)[0].read_text()
        for form in EVENT_FORMATS
    }
    assert text["dcase"] == (
        "filename\tonset\toffset\tevent_label\tconfidence\n"
        "a.wav\t0.500000\t1.000000\tDog\t0.900000\n"
    )
    assert text["audacity"] == "0.500000\t1.000000\tDog\n"
    assert text["srt"] == "1\n00:00:00,500 --> 00:00:01,000\nDog\n\n"
    assert text["raven"].splitlines() == [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\t"
        "High Freq (Hz)\tBegin File\tFile Offset (s)\tLabel\tScore",
        "1\tSpectrogram 1\t1\t0.500000\t1.000000\t0.0\t16000.0\ta.wav\t0.500000\tDog\t"
        "0.900000",
    ]
    assert json.loads(text["json"]) == [
        {"sound": "a.wav", "start_seconds": 0.5, "end_seconds": 1.0, "label": "Dog"}
        | {"score": 0.9}
    ]


def test_no_cell_is_a_formula_and_no_name_commands_a_terminal(tmp_path):
    events = {"=a\x1b[31m.wav": [Event("=cmd|'/c calc'!A1\x1b]0;x\x07\n-->", 0.0, 1.0)]}
    for form in EVENT_FORMATS:
        (path,) = write_events(events, tmp_path / form, form)
        text = path.read_text()
        assert text.replace("\n", "").replace("\t", "").isprintable()
        if form in ("csv", "dcase", "raven"):
            delimiter = "," if form == "csv" else "\t"
            rows = csv.reader(text.splitlines(), delimiter=delimiter)
            assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)
    assert text.count("-->") == 1


def test_subtitles_last_at_least_a_moment(tmp_path):
    events = {"a": [Event("Dog", 1.0, 1.0001), Event("Dog", 359999.9996, 360000.0)]}
    text = write_events(events, tmp_path / "a.srt", "srt")[0].read_text()
    assert "00:00:01,000 --> 00:00:01,001" in text
    assert "\n2\n100:00:00,000 --> 100:00:00,001\n" in text


def test_a_json_list_without_sounds_is_still_json(tmp_path):
    (path,) = write_events({}, tmp_path / "a.json", "json")
    assert json.loads(path.read_text()) == []


def test_files_stay_in_their_folder_and_apart(tmp_path):
    sounds = ["../../etc/a.wav", "/srv/b.wav", "..", "a/../c.wav", "d.wav", "d.mp3"]
    files = files_of_sounds(sounds, tmp_path, ".txt")
    assert [path.relative_to(tmp_path).as_posix() for path in files.values()] == [
        *("etc/a.txt", "srv/b.txt", "sound.txt", "a/c.txt", "d.wav.txt", "d.mp3.txt")
    ]
    with pytest.raises(ValueError, match="would be written to one file"):
        files_of_sounds(["x/a.wav", "../x/a.wav"], tmp_path, ".txt")
    with pytest.raises(ValueError, match="would be written to one file"):
        files_of_sounds(["A.wav", "a.wav"], tmp_path, ".txt")


def test_formats_of_one_sound_hold_no_more(tmp_path):
    for form in EVENT_TRACKS:
        with pytest.raises(ValueError, match=f"format {form} holds one sound, not 3"):
            write_events(EVENTS, tmp_path / "a.txt", form)
    with pytest.raises(ValueError, match="form='vtt' must be one of csv, json"):
        write_events(EVENTS, tmp_path / "a.txt", "vtt")
    assert not [*tmp_path.iterdir()]


def test_a_merged_event_has_the_highest_score():
    events = [Event("a", 1, 2, 0.25), Event("a", 0, 1, 0.75), Event("a", 2, 3)]
    assert merge_events(events) == [Event("a", 0, 3, 0.75)]
    assert merge_events([Event("a", 0, 9), Event("a", 1, 2)]) == [Event("a", 0, 9)]


def test_merging_again_changes_nothing():
    rng = np.random.default_rng(0)
    events = [
        Event(str(rng.integers(3)), start, start + rng.integers(1, 9))
        for start in rng.integers(0, 200, 60).tolist()
    ]
    merged = merge_events(events)
    assert merge_events(reversed(merged)) == merged
    assert 3 < len(merged) < len(events)
    before, after = (frame_targets(e, "012", 209, 1.0) for e in (events, merged))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("first, last", [(0, 1), (3, 7), (7, 175), (249, 250)])
def test_frames_begin_at_the_floor_and_end_at_the_ceiling(first, last):
    """Times on a frame's border mark no frame beyond it, whatever their rounding."""
    exact = frame_targets([Event("a", first * 0.04, last * 0.04)], ["a"], 250)
    inner = frame_targets(
        [Event("a", first * 0.04 + 0.02, last * 0.04 - 0.01)], "a", 250
    )
    np.testing.assert_array_equal(exact, inner)
    assert np.flatnonzero(exact[0]).tolist() == [*range(first, last)]
    assert exact.shape == (1, 250)
    assert exact.dtype == np.float32


def test_targets_end_with_their_frames_and_know_ids_and_names():
    table = LabelTable(["/m/1", "/m/2"], ["Dog", "Cat"])
    events = [Event("/m/2", 0.1, 99.0), Event("dog", 50.0, 99.0), Event("Dog", 0, 0.01)]
    targets = frame_targets(events, table, 5, frame_seconds=0.1)
    assert targets.tolist() == [[1, 0, 0, 0, 0], [0, 1, 1, 1, 1]]
    ready = class_table(table)
    assert class_table(ready) is ready


def test_scores_become_soft_targets():
    events = [Event("a", 0, 2, 0.25), Event("a", 1, 3, 0.75), Event("b", 0, 1)]
    soft = frame_targets(events, "ab", 3, 1.0, use_scores=True)
    assert soft.tolist() == [[0.25, 0.75, 0.75], [1, 0, 0]]
    assert frame_targets(events, "ab", 3, 1.0).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_targets_of_unknown_classes_and_no_frames_are_refused():
    with pytest.raises(ValueError, match="labelled Cat, which is none of the 1 class"):
        frame_targets([Event("Cat", 0, 1)], ["Dog"], 10)
    with pytest.raises(ValueError, match="num_frames=0 and frame_seconds=0.04 must"):
        frame_targets([], ["Dog"], 0)
    with pytest.raises(ValueError, match="frame_seconds=0 must"):
        frame_targets([], ["Dog"], 10, frame_seconds=0)
