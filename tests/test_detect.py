"""``efficientat detect`` writes the events that the detector finds, in every format."""

import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import sound_of
from exported_models import random_weights

from efficientat_plugin import EventDetector, FrameMN, LabelTable, read_events
from efficientat_plugin.cli import main
from efficientat_plugin.cli.event_formats import (
    EVENT_FORMATS,
    EVENT_TABLES,
    EVENT_TRACKS,
    SUFFIXES,
)
from efficientat_plugin.contracts import Event
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)

RATE = 16000
LABELS = LabelTable(
    ["/m/a", "/m/b", "/m/c"], ["Dog", "Child speech, kid speaking", "=SUM(A1)"]
)
READABLE = [form for form in EVENT_FORMATS if form != "srt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of a student that scores frames; its numbers are random."""
    torch.manual_seed(0)
    student = FrameMN(3, width=0.1, sequence_model="tf", sequence_dim=16)
    random_weights(student)
    student.front_end = {"sample_rate": RATE, "n_fft": 512, "win_length": 400}
    student.front_end |= {"hop_length": 160, "n_mels": 64, "f_max": 7000.0}
    model = TrainedModel(student, LABELS, "multilabel", 1.0)
    path = tmp_path_factory.mktemp("model") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}))


@pytest.fixture(scope="module")
def detector(folder):
    return EventDetector.from_hparams(folder, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Three sounds that come and go, in two folders."""
    top = tmp_path_factory.mktemp("sounds")
    for number, name in enumerate(["a.wav", "below/b.flac", "below/c.wav"]):
        path = top / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, sound_of(2.5 + number, seed=number), 32000)
    return top


@pytest.fixture(scope="module")
def threshold(detector, sounds):
    """A probability that each class is above of now and then."""
    scores = detector.frames(sounds / "a.wav").scores
    return {
        mid: float(np.quantile(column, 0.7))
        for mid, column in zip(LABELS.mids, scores.T, strict=True)
    }


@pytest.fixture
def detect(folder, threshold, capsys):
    """Runs the command: exit code, stdout, stderr."""

    def detect(*arguments, model=folder, thresholds=True):
        words = ["detect", *arguments, "--model", model, "--device", "cpu"]
        for mid, value in threshold.items() if thresholds else ():
            words += ["--threshold", f"{mid}={value}"]
        code = main([*map(str, words)])
        return code, *capsys.readouterr()

    return detect


def rounded(events):
    """Events as a table has them: 6 decimals, sorted, those that touch as one."""
    rows = [
        Event(label, round(start, 6), round(end, 6), round(score, 6))
        for label, start, end, score in events
    ]
    return sorted(rows, key=lambda event: (*event[1:3], event.label))


def files_of(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


# --- What is written --------------------------------------------------------------


@pytest.mark.parametrize("form", EVENT_TABLES)
def test_a_table_of_many_sounds_has_the_events_of_the_detector(
    detect, detector, sounds, threshold, tmp_path, form
):
    target = tmp_path / f"events{SUFFIXES[form]}"
    code, out, err = detect(sounds, "--format", form, "--output", target)
    assert (code, out, err) == (0, "", "")
    found = read_events(target).events
    for name in ("a.wav", "below/b.flac", "below/c.wav"):
        expected = rounded(detector.events(sounds / name, threshold=threshold))
        assert expected
        assert found[(sounds / name).with_suffix("").as_posix()] == expected
    assert len(found) == 3
    assert files_of(tmp_path) == [target.name]
    assert detect(sounds, "--format", form)[1] == target.read_text()


@pytest.mark.parametrize("form", READABLE)
def test_a_file_of_each_sound_has_its_events(
    detect, detector, sounds, threshold, tmp_path, form
):
    target, suffix = tmp_path / "new", SUFFIXES[form]
    code, out, err = detect(sounds, "--format", form, "--output-folder", target)
    assert (code, out, err) == (0, "", "")
    names = [f"{name}{suffix}" for name in ("a", "below/b", "below/c")]
    assert files_of(target) == names
    assert files_of(tmp_path) == [f"new/{name}" for name in names]
    expected = rounded(detector.events(sounds / "below/b.flac", threshold=threshold))
    if form in EVENT_TRACKS:
        expected = [event._replace(score=None) for event in expected]
    [events] = read_events(target / names[1]).events.values()
    assert events == expected


def test_subtitles_are_of_one_sound_each(detect, sounds, tmp_path):
    code, *_ = detect(sounds, "--format", "srt", "--output-folder", tmp_path)
    text = (tmp_path / "a.srt").read_text()
    assert code == 0 and text.startswith("1\n00:00:0") and " --> " in text


def test_one_sound_goes_to_stdout_in_any_format(detect, sounds):
    for form in EVENT_FORMATS:
        code, out, err = detect(sounds / "a.wav", "--format", form)
        assert (code, err) == (0, "") and "Dog" in out


def test_a_sound_without_events_is_in_the_table(detect, sounds, tmp_path):
    target, options = tmp_path / "e.csv", ["--threshold", 1, "--output"]
    assert detect(sounds, *options, target, thresholds=False)[0] == 0
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
        (["--classes", "dog"], {"classes": ["Dog"]}),
        (
            ["--classes", "child speech, kid speaking,/m/c"],
            {"classes": LABELS.names[1:]},
        ),
        (["--classes", "/m/c", "--classes", "Dog"], {"classes": ["Dog", "/m/c"]}),
    ],
)
def test_options_are_those_of_the_detector(
    detect, detector, sounds, threshold, tmp_path, words, options
):
    target, sound = tmp_path / "e.json", sounds / "below/c.wav"
    code, *_ = detect(sound, *words, "--format", "json", "--output", target)
    usual = detector.events(sound, threshold=threshold)
    expected = detector.events(sound, threshold=threshold, **options)
    assert code == 0 and rounded(expected) != rounded(usual)
    [found] = read_events(target, merge=False).events.values()
    assert rounded(found) == rounded(expected)


def test_a_number_and_thresholds_of_classes_go_together(
    detect, detector, sounds, threshold
):
    sound, low = sounds / "a.wav", threshold["/m/a"]
    words = ["--threshold", 0.99, "--threshold", f"Dog={low}", "--format", "json"]
    _, out, _ = detect(sound, *words, thresholds=False)
    limits = {"Dog": low, "/m/b": 0.99, "/m/c": 0.99}
    expected = rounded(detector.events(sound, threshold=limits))
    found = [tuple(entry.values())[1:] for entry in json.loads(out)]
    assert [(event.start_seconds, event.end_seconds) for event in expected] == [
        (start, end) for start, end, *_ in found
    ]
    _, out, _ = detect(sound, "--threshold", low, thresholds=False)
    rows = csv.DictReader(io.StringIO(out))
    expected = detector.events(sound, threshold=low)
    assert len(list(rows)) == len(expected)


def test_no_class_is_a_formula(detect, sounds):
    for form in ("csv", "dcase", "raven"):
        _, out, _ = detect(sounds / "a.wav", "--format", form)
        assert "'=SUM(A1)" in out and "\t=SUM" not in out and ",=SUM" not in out


def test_a_name_that_stdout_lacks_is_escaped(detect, sounds, tmp_path, monkeypatch):
    sound = tmp_path / "é\n.wav"
    sound.write_bytes((sounds / "a.wav").read_bytes())
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert detect(sound)[0] == 0
    sys.stdout.flush()
    assert r"\xe9\n.wav,0." in written.getvalue().decode("ascii")


def test_a_model_of_clips_says_once_that_it_uses_windows(detect, model, sounds):
    code, out, err = detect(sounds, model=model, thresholds=False)
    assert code == 0 and out.startswith("sound,")
    assert err.count("scores clips, not frames") == err.count("\n") == 1
    assert str(model) in err


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


# --- Resuming ---------------------------------------------------------------------


@contextlib.contextmanager
def interrupted_at(monkeypatch, number):
    """Interrupts the command when it reads its n-th sound; counts those it reads."""
    from efficientat_plugin.data import decoding

    read, blocks = [], decoding.decode_blocks

    def counted(path, rate):
        read.append(Path(path).name)
        if len(read) == number:
            raise KeyboardInterrupt
        return blocks(path, rate)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_blocks", counted)
        yield read


@pytest.mark.parametrize("per_sound", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    detect, sounds, tmp_path, monkeypatch, per_sound
):
    option = "--output-folder" if per_sound else "--output"
    name = "events" if per_sound else "events.csv"
    whole, resumed = tmp_path / "whole" / name, tmp_path / "resumed" / name
    for path in (whole, resumed):
        path.parent.mkdir()
    assert detect(sounds, option, whole)[0] == 0
    with interrupted_at(monkeypatch, 2) as read:
        code, _, err = detect(sounds, option, resumed)
        assert code == 130 and "resume from there" in err
        kept = files_of(resumed.parent)
        assert kept == [f"{name}/events.parts" if per_sound else f"{name}.parts"]
        code, _, err = detect(sounds, option, resumed, "--min-seconds", 1)
        assert code == 2 and "with other settings (min_seconds)" in err
        assert detect(sounds, option, resumed)[0] == 0
    assert read == ["a.wav", "b.flac", "b.flac", "c.wav"]
    assert files_of(resumed.parent) == files_of(whole.parent)
    for file in files_of(whole.parent):
        content = (whole.parent / file).read_bytes()
        assert (resumed.parent / file).read_bytes() == content


KILLED_AT = """
import os, signal, sys
from efficientat_plugin.cli import main, resumed_output

add, added = resumed_output.KeptResults.add, []

def added_and_killed(self, *arguments):
    add(self, *arguments)
    added.append(arguments)
    if len(added) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

resumed_output.KeptResults.add = added_and_killed
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(
    detect, folder, sounds, threshold, tmp_path
):
    words = ["detect", sounds, "--model", folder, "--device", "cpu"]
    for mid, value in threshold.items():
        words += ["--threshold", f"{mid}={value}"]
    target = tmp_path / "e.csv"
    command = [sys.executable, "-c", KILLED_AT, *words, "--output", target]
    done = subprocess.run([*map(str, command)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files_of(tmp_path) == ["e.csv.parts"]
    assert detect(sounds, "--output", target)[0] == 0
    assert detect(sounds, "--output", tmp_path / "whole.csv")[0] == 0
    assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()


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
    detect, sounds, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    output = [] if any("output" in word for word in options) else ["--output", "e.csv"]
    model = options.pop() if options[0] == "--model" else None
    given = options if model is None else []
    words = {} if model is None else {"model": model}
    code, out, err = detect(sounds, *given, *output, thresholds=False, **words)
    assert (code, out) == (2, "") and message in err
    assert "Traceback" not in err and err.splitlines()[-1].startswith("efficientat")
    assert files_of(tmp_path) == []


def test_a_sound_is_not_replaced_by_its_events(detect, sounds, tmp_path):
    sound = tmp_path / "a.csv"
    sound.write_bytes((sounds / "a.wav").read_bytes())
    code, _, err = detect(sound, "--output", sound)
    assert code == 2 and "would be replaced by its events" in err
    assert sound.read_bytes() == (sounds / "a.wav").read_bytes()


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


def lanes_of(path):
    """Rows of pixels of the lower panel, in which a bar is, as groups."""
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    # Colours that are no grey: of the log-mel, the bars and the colour bar
    coloured = np.ptp(pixels, axis=2) > 20
    axes = coloured[:, : int(0.93 * coloured.shape[1])]
    rows = axes.sum(axis=1) > 3
    edges = np.flatnonzero(np.diff(np.pad(rows.astype(int), 1)))
    groups = edges.reshape(-1, 2)
    heights = np.diff(groups, axis=1)[:, 0]
    return heights[heights.argmax() + 1 :]  # below the log-mel


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_each_class_that_is_found_has_a_lane(detect, sounds, tmp_path, classes):
    target = tmp_path / "events.png"
    names = ",".join(LABELS.mids[:classes])
    words = ["--classes", names, "--figure", target]
    code, out, err = detect(sounds / "a.wav", *words)
    assert (code, err) == (0, "")
    found = {row["label"] for row in csv.DictReader(io.StringIO(out))}
    assert len(found) == classes
    lanes = lanes_of(target)
    assert len(lanes) == classes and np.ptp(lanes) <= 2 and lanes.min() > 8


def test_a_sound_without_events_has_a_figure(detect, sounds, tmp_path):
    target = tmp_path / "events.png"
    words = ["--threshold", 1, "--figure", target]
    assert detect(sounds / "a.wav", *words, thresholds=False)[0] == 0
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
