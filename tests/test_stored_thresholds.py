"""Thresholds are kept in the model folder, and used wherever it detects events."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from detect_runs import (
    LABELS,
    detect,
    frame_detector,
    frame_folder,
    middle_thresholds,
)
from exported_models import BACKENDS, content_of
from test_detection import assert_alike

from efficientat_plugin import AudioTagger, EventDetector, LabelTable
from efficientat_plugin.evaluation.threshold_choice import ChosenThresholds
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import (
    Provenance,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.runtime import Detector
from efficientat_plugin.runtime.model_file import read_facts
from efficientat_plugin.tagging.event_finder import options_of_model

__all__ = ["detect", "frame_detector", "frame_folder", "middle_thresholds"]
ON_CPU = {"device": "cpu"}
IN_A_FRESH_PROCESS = """
import json, sys
from efficientat_plugin import EventDetector
detector = EventDetector.from_hparams(sys.argv[1], run_opts={"device": "cpu"})
print(json.dumps(detector.events(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def options(middle_thresholds):
    """What is stored; the median is not the default."""
    thresholds = [middle_thresholds[mid] for mid in LABELS.mids]
    return {"median_seconds": 0.2, "threshold": thresholds}


@pytest.fixture(scope="module")
def folder(frame_folder, options, tmp_path_factory):
    """``frame_folder`` with thresholds, and a card that tells how they were chosen."""
    model = read_model_folder(frame_folder)._replace(event_options=options)
    names = [*LABELS.names]
    chosen = ChosenThresholds(
        names, options["threshold"], [20, 30, 3], names[2:], 0.5, "event_F", 10
    )
    path = tmp_path_factory.mktemp("stored") / "model"
    return write_model_folder(path, model, Provenance("a", None, "b", "c", {}, chosen))


@pytest.fixture(scope="module")
def by_hand(options):
    """The same, as a user gives them."""
    thresholds = dict(zip(LABELS.mids, options["threshold"], strict=True))
    return options | {"threshold": thresholds}


@pytest.fixture(scope="module")
def expected(frame_detector, three_sounds, by_hand):
    """The events of the folder without thresholds, with those given by hand."""
    events = frame_detector.events(three_sounds / "a.wav", **by_hand)
    assert len(events) > 3
    assert events != frame_detector.events(three_sounds / "a.wav")
    return events


def test_a_fresh_process_finds_the_events_of_thresholds_given_by_hand(
    folder, three_sounds, expected
):
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, folder, three_sounds / "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [tuple(event) for event in found] == expected


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: EventDetector.from_student(folder, run_opts=ON_CPU),
        lambda folder: AudioTagger.from_hparams(folder, run_opts=ON_CPU),
        lambda folder: EventDetector.from_hparams(
            str(folder), trust=True, run_opts=ON_CPU
        ),
    ],
)
def test_every_way_to_load_it_uses_them(load, folder, three_sounds, expected):
    assert load(folder).events(three_sounds / "a.wav") == expected


def test_what_is_given_takes_their_place(
    folder, frame_detector, three_sounds, by_hand, expected
):
    detector = EventDetector.from_hparams(folder, run_opts=ON_CPU)
    sound = three_sounds / "a.wav"
    assert detector.event_options == by_hand
    for given in ({"threshold": 0.5}, {"threshold": {"Dog": 0.2}}, {"min_seconds": 9}):
        plain = frame_detector.events(sound, **(by_hand | given))
        assert detector.events(sound, **given) == plain != expected
    samples, rate = soundfile.read(sound, dtype="float32")
    stream = detector.event_stream(rate)
    events = [each for part in np.array_split(samples, 7) for each in stream.feed(part)]
    assert_alike(events + stream.finish(), expected)


def test_a_folder_without_them_detects_as_before(
    frame_folder, frame_detector, three_sounds
):
    assert "event_options" not in (frame_folder / "hyperparams.yaml").read_text()
    assert frame_detector.event_options == {}
    events = frame_detector.events(three_sounds / "a.wav")
    assert events == frame_detector.events(
        three_sounds / "a.wav", threshold=0.5, median_seconds=0.36
    )


def test_the_command_uses_them_unless_told_otherwise(
    detect, folder, frame_folder, three_sounds, by_hand, tmp_path
):
    sound = three_sounds / "a.wav"

    def table(name, *arguments, model=folder):
        output = tmp_path / name
        words = (sound, "--output", output, *arguments)
        code, _, said = detect(*words, model=model, thresholds=False)
        assert code == 0, said
        return output.read_bytes()

    hand = [f"{mid}={value}" for mid, value in by_hand["threshold"].items()]
    hand = [word for each in hand for word in ("--threshold", each)]
    hand += ["--median-seconds", 0.2]
    stored = table("stored.csv")
    assert stored == table("hand.csv", *hand, model=frame_folder)
    half = ["--threshold", 0.5, "--median-seconds", 0.36]
    plain = table("plain.csv", model=frame_folder)
    assert table("half.csv", *half) == plain != stored
    dogs = table("dogs.csv", "--classes", "Dog").decode()
    assert len(dogs.splitlines()) > 1 and "Child" not in dogs


def test_an_exported_file_has_them(folder, frame_folder, three_sounds, expected):
    for backend in BACKENDS:
        detector = Detector(content_of(find_source(folder)), backend)
        found = detector.events(three_sounds / "a.wav")
        assert [each[:3] for each in found] == [each[:3] for each in expected]
    assert detector.facts.event_options["median_seconds"] == 0.2
    texts = detector.facts.as_texts()
    older = {k: v for k, v in texts.items() if k != "event_options"}
    assert read_facts(older, "it").event_options == {}


def test_an_average_of_models_has_none(folder, three_sounds):
    detector = EventDetector.from_student([folder, folder], run_opts=ON_CPU)
    assert detector.event_options == {}


def test_a_folder_is_written_as_it_is_read(folder, options, tmp_path):
    model = read_model_folder(folder)
    assert model.event_options == options
    again = write_model_folder(tmp_path / "m", model, Provenance("a", None, "", "", {}))
    for name in ("hyperparams.yaml", "labels.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_lists_them(folder, options):
    card = (folder / "README.md").read_text()
    assert "detector.events(" in card
    assert "thresholds of 2 of 3 classes are chosen by event" in card
    assert "0.5 is kept for those with fewer than 10 events" in card
    assert f"- Dog, threshold {options['threshold'][0]:.3f}" in card


REFUSED = [
    ({"threshold": [0.5, 0.5]}, "has 2 numbers as threshold, but there are 3 classes"),
    ({"threshold": [0.5, 0.5, 1.5]}, "is no probability"),
    ({"threshold": [0.5, 0.5, float("nan")]}, "is no probability"),
    ({"median_seconds": -1.0}, "must be 0 or more"),
    ({"classes": 1.0}, "event_options has classes; its options are threshold"),
    ({"colour": 1.0}, "event_options has colour"),
]


@pytest.mark.parametrize(("stored", "sentence"), REFUSED)
def test_options_that_cannot_be_are_refused(stored, sentence, folder, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        options_of_model(stored, LABELS)
    bad = _with_options(folder, json.dumps(stored), tmp_path)
    with pytest.raises(ValueError, match=f"is not a tagger's: .*{sentence}"):
        EventDetector.from_hparams(bad)
    with pytest.raises(ValueError, match=sentence):
        find_source(bad)


def _with_options(folder, text, copy):
    """A copy of a model folder with other options of events."""
    lines = (folder / "hyperparams.yaml").read_text().splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("event_options"))
    lines[place : place + 3] = [f"event_options: {text}"]
    for name in ("student.ckpt", "labels.csv"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "hyperparams.yaml").write_text("\n".join(lines))
    return copy


@pytest.mark.parametrize(
    "text", ["often", "[[1, 2, 3]]", "{threshold: often}", "{threshold: [{}, {}, {}]}"]
)
def test_a_yaml_with_other_things_in_their_place_is_refused(text, folder, tmp_path):
    with pytest.raises(ValueError, match="is not a tagger's"):
        EventDetector.from_hparams(_with_options(folder, text, tmp_path))


def test_metadata_with_other_things_in_their_place_are_refused(folder):
    facts = Detector(content_of(find_source(folder))).facts
    for text in ('"often"', "[1]", '{"threshold": [true, 0, 0]}', '{"threshold": "a"}'):
        texts = facts.as_texts() | {"event_options": text}
        with pytest.raises(ValueError, match="metadata that cannot be read"):
            read_facts(texts, "it")


def test_classes_that_share_a_name_keep_theirs():
    labels = LabelTable(["/m/1", "/m/2", "Dog"], ["Dog", "Dog", "/m/1"])
    found = options_of_model({"threshold": [0.1, 0.2, 0.3]}, labels)
    assert found == {"threshold": {"/m/1": 0.1, "/m/2": 0.2, "Dog": 0.3}}
