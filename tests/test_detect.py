"""``efficientat detect`` writes the events that the detector finds, in every format."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import sound_of
from detect_runs import FIELDS, LABELS, READABLE, files_of, lanes_of, rounded
from exported_models import content_of

from efficientat_plugin import read_events
from efficientat_plugin.cli import main
from efficientat_plugin.cli.event_formats import (
    EVENT_FORMATS,
    EVENT_TABLES,
    EVENT_TRACKS,
    SUFFIXES,
)
from efficientat_plugin.cli.figure import EventFigure
from efficientat_plugin.contracts import Event
from efficientat_plugin.runtime import Tagger

# --- What is written --------------------------------------------------------------


@pytest.mark.parametrize("form", EVENT_TABLES)
def test_a_table_of_many_sounds_has_the_events_of_the_detector(
    detect, frame_detector, three_sounds, middle_thresholds, tmp_path, form
):
    target = tmp_path / f"events{SUFFIXES[form]}"
    code, out, err = detect(three_sounds, "--format", form, "--output", target)
    assert (code, out, err) == (0, "", "")
    found = read_events(target).events
    for name in ("a.wav", "below/b.flac", "below/c.wav"):
        expected = rounded(
            frame_detector.events(three_sounds / name, threshold=middle_thresholds)
        )
        assert expected
        assert found[(three_sounds / name).with_suffix("").as_posix()] == expected
    assert len(found) == 3
    assert files_of(tmp_path) == [target.name]
    assert detect(three_sounds, "--format", form)[1] == target.read_text()


@pytest.mark.parametrize("form", READABLE)
def test_a_file_of_each_sound_has_its_events(
    detect, frame_detector, three_sounds, middle_thresholds, tmp_path, form
):
    target, suffix = tmp_path / "new", SUFFIXES[form]
    code, out, err = detect(three_sounds, "--format", form, "--output-folder", target)
    assert (code, out, err) == (0, "", "")
    names = [f"{name}{suffix}" for name in ("a", "below/b", "below/c")]
    assert files_of(target) == names
    assert files_of(tmp_path) == [f"new/{name}" for name in names]
    expected = rounded(
        frame_detector.events(
            three_sounds / "below/b.flac", threshold=middle_thresholds
        )
    )
    if form in EVENT_TRACKS:
        expected = [event._replace(score=None) for event in expected]
    [events] = read_events(target / names[1]).events.values()
    assert events == expected


def test_subtitles_are_of_one_sound_each(detect, three_sounds, tmp_path):
    code, *_ = detect(three_sounds, "--format", "srt", "--output-folder", tmp_path)
    text = (tmp_path / "a.srt").read_text()
    assert code == 0 and text.startswith("1\n00:00:0") and " --> " in text


def test_one_sound_goes_to_stdout_in_any_format(detect, three_sounds):
    for form in EVENT_FORMATS:
        code, out, err = detect(three_sounds / "a.wav", "--format", form)
        assert (code, err) == (0, "") and "Dog" in out


def test_a_sound_without_events_is_in_the_table(detect, three_sounds, tmp_path):
    target, options = tmp_path / "e.csv", ["--threshold", 1, "--output"]
    assert detect(three_sounds, *options, target, thresholds=False)[0] == 0
    assert len(read_events(target).empty) == 3


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--median-seconds", 0.2], {"median_seconds": 0.2}),
        (["--min-seconds", 0.1], {"min_seconds": 0.1}),
        (["--max-gap-seconds", 0.3], {"max_gap_seconds": 0.3}),
        (
            ["--max-gap-seconds", 0.3, "--max-seconds", 0.5],
            {"max_gap_seconds": 0.3, "max_seconds": 0.5},
        ),
        (["--window-seconds", 0.6], {"window_seconds": 0.6}),
        (["--hop-seconds", 0.4], {"hop_seconds": 0.4}),
        (["--off-threshold", 0.01], {"off_threshold": 0.01}),
        (["--off-threshold", "dog=0.01"], {"off_threshold": {"Dog": 0.01}}),
        (["--boxes"], {"boxes": True}),
        (
            ["--boxes", "--box-step-seconds", 0.2, "--box-merge-ratio", 1.01],
            {"boxes": True, "box_step_seconds": 0.2, "box_merge_ratio": 1.01},
        ),
        (
            ["--boxes", "--box-merge-difference", 0.001],
            {"boxes": True, "box_merge_difference": 0.001, "box_merge_ratio": None},
        ),
        (["--classes", "dog"], {"classes": ["Dog"]}),
        (
            ["--classes", "child speech, kid speaking,/m/c"],
            {"classes": LABELS.names[1:]},
        ),
        (["--classes", "/m/c", "--classes", "Dog"], {"classes": ["Dog", "/m/c"]}),
    ],
)
def test_options_are_those_of_the_detector(
    detect, frame_detector, three_sounds, middle_thresholds, tmp_path, words, options
):
    target, sound = tmp_path / "e.json", three_sounds / "below/c.wav"
    code, *_ = detect(sound, *words, "--format", "json", "--output", target)
    usual = frame_detector.events(sound, threshold=middle_thresholds)
    expected = frame_detector.events(sound, threshold=middle_thresholds, **options)
    assert code == 0 and rounded(expected) != rounded(usual)
    [found] = read_events(target, merge=False).events.values()
    assert rounded(found) == rounded(expected)


def test_a_number_and_thresholds_of_classes_go_together(
    detect, frame_detector, three_sounds, middle_thresholds
):
    sound, low = three_sounds / "a.wav", middle_thresholds["/m/a"]
    words = ["--threshold", 0.99, "--threshold", f"Dog={low}", "--format", "json"]
    _, out, _ = detect(sound, *words, thresholds=False)
    limits = {"Dog": low, "/m/b": 0.99, "/m/c": 0.99}
    expected = rounded(frame_detector.events(sound, threshold=limits))
    found = [tuple(entry.values())[1:] for entry in json.loads(out)]
    assert [(event.start_seconds, event.end_seconds) for event in expected] == [
        (start, end) for start, end, *_ in found
    ]
    _, out, _ = detect(sound, "--threshold", low, thresholds=False)
    rows = csv.DictReader(io.StringIO(out))
    expected = frame_detector.events(sound, threshold=low)
    assert len(list(rows)) == len(expected)


def test_no_class_is_a_formula(detect, three_sounds):
    for form in ("csv", "dcase", "raven"):
        _, out, _ = detect(three_sounds / "a.wav", "--format", form)
        assert "'=SUM(A1)" in out and "\t=SUM" not in out and ",=SUM" not in out


def test_a_name_that_stdout_lacks_is_escaped(
    detect, three_sounds, tmp_path, monkeypatch
):
    sound = tmp_path / "é\n.wav"
    sound.write_bytes((three_sounds / "a.wav").read_bytes())
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert detect(sound)[0] == 0
    sys.stdout.flush()
    assert r"\xe9\n.wav,0." in written.getvalue().decode("ascii")


def test_a_model_of_clips_says_once_that_it_uses_windows(detect, model, three_sounds):
    code, out, err = detect(three_sounds, model=model, thresholds=False)
    assert code == 0 and out.startswith("sound,")
    assert err.count("scores clips, not frames") == err.count("\n") == 1
    assert str(model) in err


def test_an_exported_model_of_clips_detects(detect, mn, three_sounds, tmp_path):
    model, figure = tmp_path / "mn.onnx", tmp_path / "e.png"
    model.write_bytes(content_of(mn))
    sound, words = three_sounds / "a.wav", ["--threshold", 0.3, "--format", "json"]
    code, out, err = detect(
        sound, *words, "--figure", figure, model=model, thresholds=False
    )
    assert code == 0 and "mn.onnx scores clips, not frames" in err
    expected = rounded(Tagger(model).events(sound, threshold=0.3))
    found = [Event(*(entry[name] for name in FIELDS)) for entry in json.loads(out)]
    assert expected and rounded(found) == expected
    assert len(lanes_of(figure)) == len({event.label for event in found})


# --- What cannot be read ----------------------------------------------------------


@pytest.mark.parametrize(
    "option", [("--output", "e.csv"), ("--output-folder", "e"), ()]
)
def test_a_bad_file_does_not_stop_the_others(
    detect, mixed_folder, tmp_path, monkeypatch, option
):
    monkeypatch.chdir(tmp_path)
    code, out, err = detect(mixed_folder, *option)
    assert code == 1 and "4 of 6 inputs could not be read" in err
    if option:
        text = "".join(path.read_text() for path in tmp_path.rglob("e*/**/*.csv"))
        out = text or Path("e.csv").read_text()
    names = {row["sound"] for row in csv.DictReader(io.StringIO(out))} - {"sound"}
    assert {Path(name).name for name in names} == {"good.wav", "also.flac.wav"}
    assert not list(tmp_path.rglob("*.part*"))


def test_what_comes_before_a_fault_is_written(detect, tmp_path):
    sound, target = tmp_path / "cut.flac", tmp_path / "e.csv"
    soundfile.write(sound, sound_of(60.0), 32000)
    content = sound.read_bytes()
    sound.write_bytes(content[: len(content) // 2])
    code, _, err = detect(sound, "--output", target)
    assert code == 1 and "1 of 1 inputs could not be read" in err
    assert "cut.flac: read until " in err
    [events] = read_events(target).events.values()
    assert 10 < events[-1].end_seconds < 31


def test_nothing_readable_leaves_what_was_there(detect, tmp_path):
    target, sound = tmp_path / "e.csv", tmp_path / "no.wav"
    target.write_text("of before")
    sound.write_text("no sound")
    code, _, err = detect(sound, "--output", target)
    assert code == 2 and "nothing could be read" in err
    assert target.read_text() == "of before"
    assert files_of(tmp_path) == ["e.csv", "no.wav"]


# --- Refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "Dogs"], "has no class Dogs; similar to it is Dog"),
        (["--classes", "kid"], "similar to it is Child speech, kid speaking"),
        (["--classes", "Xylophone"], "its 3 classes are Dog, Child speech"),
        (["--classes", ", "], "--classes is empty"),
        (["--threshold", "Dgo=0.3"], "has no class Dgo; similar to it is Dog"),
        (["--threshold", "Dog=2"], "'2' is given; give one from 0 to 1"),
        (["--threshold", "=0.5"], "give NAME=PROBABILITY"),
        (["--threshold", "-1"], "give one from 0 to 1"),
        (["--threshold", "Dog=0.3", "--classes", "/m/c"], "'=SUM(A1)=P'"),
        (["--threshold", "0.3", "--off-threshold", "0.4"], "is above its threshold"),
        (["--window-seconds", "0.01"], "window_seconds=0.01 is too short"),
        (["--hop-seconds", "0.001"], "hop_seconds=0.001 were given; give at least"),
        (["--hop-seconds", "0"], "'0' is given; give seconds above 0"),
        (["--hop-seconds", "5"], "the hop must be from 1 to the window"),
        (["--median-seconds", "-1"], "'-1' is given; give seconds, 0 or more"),
        (
            ["--box-merge-ratio", "2"],
            "--box-merge-ratio is an option of boxes",
        ),
        (
            ["--boxes", "--max-gap-seconds", "1"],
            "max_gap_seconds=1.0 does nothing to",
        ),
        (
            ["--boxes", "--box-merge-ratio", "0.5"],
            "'0.5' is given; give a number of 1 or more",
        ),
        (["--model", "fmn99"], "neither a published model nor a file"),
        (["--format", "audacity"], "takes one sound, 3 were given; give --output-fo"),
        (["--figure", "x.png"], "--figure takes one sound, 3 were given"),
        (["--output", "e.csv", "--output-folder", "e"], "not both"),
        (["--output", "e.wav"], "has the suffix of a sound file"),
        (["--output-folder", __file__], "is not a folder"),
        (["--output-folder", "no/such"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    detect, three_sounds, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    output = [] if any("output" in word for word in options) else ["--output", "e.csv"]
    model = options.pop() if options[0] == "--model" else None
    given = options if model is None else []
    words = {} if model is None else {"model": model}
    code, out, err = detect(three_sounds, *given, *output, thresholds=False, **words)
    assert (code, out) == (2, "") and message in err
    assert "Traceback" not in err and err.splitlines()[-1].startswith("efficientat")
    assert files_of(tmp_path) == []


def test_a_sound_is_not_replaced_by_its_events(detect, three_sounds, tmp_path):
    sound = tmp_path / "a.csv"
    sound.write_bytes((three_sounds / "a.wav").read_bytes())
    code, _, err = detect(sound, "--output", sound)
    assert code == 2 and "would be replaced by its events" in err
    assert sound.read_bytes() == (three_sounds / "a.wav").read_bytes()


@pytest.mark.parametrize("command", ["tag", "scan"])
def test_tags_are_those_of_the_classes(run, five, command):
    words = [command, five / "0.wav", "--threshold", 0, "--format", "csv"]
    _, out, _ = run(*words, "--classes", "Dog,Child speech, kid speaking")
    names = {row["name"] for row in csv.DictReader(io.StringIO(out))}
    assert names == {"Dog", "Child speech, kid speaking"}
    code, out, err = run(*words, "--classes", "dgo")
    assert (code, out) == (2, "") and "the model has no class dgo; similar" in err
    assert "Dog" in err and err.count("\n") == 1


# --- The figure -------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_each_class_that_is_found_has_a_lane(detect, three_sounds, tmp_path, classes):
    target = tmp_path / "events.png"
    names = ",".join(LABELS.mids[:classes])
    words = ["--classes", names, "--figure", target]
    code, out, err = detect(three_sounds / "a.wav", *words)
    assert (code, err) == (0, "")
    found = {row["label"] for row in csv.DictReader(io.StringIO(out))}
    assert len(found) == classes
    lanes = lanes_of(target)
    assert len(lanes) == classes and np.ptp(lanes) <= 2 and lanes.min() > 8


def test_each_event_has_one_label(frame_detector, three_sounds):
    from matplotlib.figure import Figure

    events = [Event("Dog", 0.1 * n, 0.1 * n + 0.05, 0.6) for n in range(7)]
    events.append(Event("Cat $1$", 0.0, 2.0, 0.9))
    figure = EventFigure(three_sounds / "a.wav", frame_detector, events)
    axes = Figure().subplots()
    figure._draw_lower(axes, 2.5)
    labels = sorted(
        (text.get_text().strip(), text.get_position()) for text in axes.texts
    )
    assert [text for text, _ in labels] == ["0.60"] * 7 + ["0.90"]
    starts = [place for _, (place, _) in labels]
    assert starts == [event.start_seconds for event in events]
    # The class with the higher score is on top
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Cat $1$", "Dog"]


def test_a_sound_without_events_has_a_figure(detect, three_sounds, tmp_path):
    target = tmp_path / "events.png"
    words = ["--threshold", 1, "--figure", target]
    assert detect(three_sounds / "a.wav", *words, thresholds=False)[0] == 0
    assert len(lanes_of(target)) == 0


# --- The published model ----------------------------------------------------------


def test_the_published_checkpoint_finds_the_metro(shared, capsys):
    checkpoint = shared / "checkpoints" / "mn04_as_mAP_432.pt"
    sound = shared / "audio" / "metro_station-paris.wav"
    words = ["detect", sound, "--model", checkpoint, "--device", "cpu"]
    assert main([*map(str, words), "--classes", "Train", "--threshold", "0.3"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["label"] for row in rows} == {"Train"}
    assert 5 < float(rows[-1]["start_seconds"]) < float(rows[-1]["end_seconds"]) <= 10
