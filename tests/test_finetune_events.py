"""Detectors of own events: fine-tuned by one command, and what they say is true."""

import json
import time

import numpy as np
import pytest
import torch
from event_runs import SIDES, write_events
from recipe_runs import REPOSITORY, RecipeProcess, arguments_of, run_to_end

from efficientat_plugin import EventDetector, read_events, read_table
from efficientat_plugin.students.mn import MN

pytestmark = pytest.mark.slow
FRONT_END = "{sample_rate: 16000, n_fft: 512, win_length: 400, hop_length: 160, "
FRONT_END += "n_mels: 64, f_max: 7000.0}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Soundscapes, of which some have no times, and the weights of a tagger."""
    place = tmp_path_factory.mktemp("place")
    write_events(place / "data", 40)
    table = place / "data" / "events" / "train.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    weak = {row[0] for row in rows[1:6]}  # their classes are in metadata.jsonl
    kept = [row for row in rows if row[0] not in weak]
    table.write_text("\n".join("\t".join(row) for row in kept))
    torch.manual_seed(0)
    torch.save(MN(9, width=0.1).state_dict(), place / "mn.pt")
    return place


def _command(place, output, recipe="finetune", **more):
    events = [str(place / "data" / "events" / f"{side}.tsv") for side in SIDES]
    options = {
        "dataset": place / "data",
        "events": ",".join(events),
        "pretrained": place / "mn.pt",
        "log_mel": FRONT_END,
        "number_of_epochs": 4,
        "lr": 0.01,
        "sequence_dim": 16,
        "fewest_events": 3,
        "batch_size": 4,
        "num_workers": 0,
        "output_folder": output,
        "device": "cpu",
    }
    options = {k: v for k, v in (options | more).items() if v != "default"}
    path = REPOSITORY / "recipes" / f"{recipe}.py"
    return [path, *arguments_of("finetune_events", **options)]


@pytest.fixture(scope="module")
def done(place):
    """A run, and what it printed."""
    return place / "run", run_to_end(_command(place, place / "run", lr="default"))


def test_what_is_auto_is_decided_and_printed(done):
    text = done[1]
    assert "lr: 0.003, clip_seconds: 3.0, valid_share: 0.25" in text
    assert "clips with weak labels only" in text and "0 clips with weak" not in text
    settings = json.loads((done[0] / "run.json").read_text())
    assert (settings["lr"], settings["clip_seconds"]) == (0.003, 3.0)


def test_the_number_of_epochs_is_decided_and_printed(place):
    """By a run that is ended as soon as it trains."""
    command = _command(place, place / "auto", number_of_epochs="default")
    process = RecipeProcess(command, place)
    trains = "Going into epoch 1"
    text = ""
    while process.poll() is None and trains not in text:
        time.sleep(0.05)
        text = process.output.read_text() if process.output.exists() else ""
    assert process.poll() is None and "number_of_epochs: 80" in text, text
    process.kill()
    settings = json.loads((place / "auto" / "run.json").read_text())
    assert settings["number_of_epochs"] == 80  # the most, of few clips


def _pairs(found, known):
    """Events that are right, each of at most one: starts and ends within collars."""
    left, right = list(known), 0
    for event in found:
        for other in left:
            length = other.end_seconds - other.start_seconds
            off = abs(event.end_seconds - other.end_seconds)
            if (
                event.label == other.label
                and abs(event.start_seconds - other.start_seconds) <= 0.2 + 1e-6
                and off <= max(0.2, 0.5 * length) + 1e-6
            ):
                left.remove(other)
                right += 1
                break
    return right


def test_the_reported_score_is_that_of_its_events(done, place):
    """Counted from the events that the folder finds, without other settings."""
    detector = EventDetector.from_hparams(done[0] / "model", run_opts={"device": "cpu"})
    rows = read_table(place / "data")
    rows = rows.select([n for n, side in enumerate(rows["split"]) if side == "test"])
    seconds = dict.fromkeys(rows["video_id"], 3.0)
    truth = read_events(place / "data" / "events" / "test.tsv", durations=seconds)
    counts = {name: np.zeros(3) for name in detector.labels.names}
    for row in rows:
        found = detector.events(row["audio"])
        known = truth.events[row["video_id"]]
        for name, count in counts.items():
            mine = [each for each in found if each.label == name]
            theirs = [each for each in known if each.label == name]
            count += _pairs(mine, theirs), len(mine), len(theirs)
    scores = [2 * a / (b + c) for a, b, c in counts.values() if c]
    reported = json.loads((done[0] / "scores.json").read_text())
    assert reported["event_F"] == pytest.approx(np.mean(scores), abs=1e-9)
    assert sum(count[1] for count in counts.values()) > 0  # some are found


def test_thresholds_are_told_stored_and_shown(done):
    folder, text = done
    detector = EventDetector.from_hparams(folder / "model", run_opts={"device": "cpu"})
    thresholds = detector.event_options["threshold"]
    assert len(set(thresholds.values())) > 1
    assert "validation clips, thresholds of" in text and "chosen by segment_F" in text
    card = (folder / "model" / "README.md").read_text()
    assert "detector.events(" in card and "| threshold |" in card
    lines = (folder / "per_class.csv").read_text().splitlines()
    column = lines[0].split(",").index("threshold")
    for line in lines[1:]:
        cells = line.split(",")
        assert float(cells[column]) == pytest.approx(thresholds[cells[0]], abs=1e-6)


def test_both_recipes_are_one(done, place):
    text = run_to_end(_command(place, done[0], "audioset_strong", lr="default"))
    assert text.splitlines()[-2:] == done[1].splitlines()[-2:]


def test_training_continues_from_its_folder(done, place, tmp_path):
    """Its classes are known, and its rate is that of a detector."""
    options = {"pretrained": done[0] / "model", "log_mel": "default", "lr": "default"}
    command = _command(place, tmp_path / "again", number_of_epochs=1, **options)
    text = run_to_end(command)
    assert "lr: 0.0003" in text and "start anew" not in text
    before, after = (
        torch.load(folder / "model" / "student.ckpt", weights_only=True)
        for folder in (done[0], tmp_path / "again")
    )
    moved = (before["strong_head.bias"] - after["strong_head.bias"]).abs().max()
    assert 0 < moved < 0.05


def test_one_threshold_may_be_kept(place, tmp_path):
    scores = {"thresholds_by": None, "threshold": 0.4, "number_of_epochs": 1}
    text = run_to_end(_command(place, tmp_path / "run", **scores))
    assert "thresholds of" not in text
    model = tmp_path / "run" / "model"
    detector = EventDetector.from_hparams(model, run_opts={"device": "cpu"})
    assert detector.event_options == {"median_seconds": 0.36, "threshold": 0.4}
    assert "has to exceed, unless another is given, is 0.4" in (
        (model / "README.md").read_text()
    )


def test_a_file_of_unknown_front_end_is_refused(place, tmp_path):
    command = _command(place, tmp_path / "run", log_mel="default")
    text = run_to_end(command, expect=1)
    assert "--log_mel" in text and "Traceback" not in text
    assert not (tmp_path / "run").exists()
