"""``efficientat scan``: windows, label tracks and figures."""

import csv
import io
import json
import re

import numpy as np
import pytest
import soundfile
import tqdm
from command_line import RATE, sound_of, write_sound

from efficientat_plugin.cli.figure import PairedColumns
from efficientat_plugin.cli.label_track import LabelMerger
from efficientat_plugin.data.labels import audioset_labels


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_a_scan_says_what_the_tagger_scans(run, tagger, tmp_path, form):
    sound = write_sound(tmp_path / "long.wav", 3.3)
    windows = ["--window", 1.0, "--hop", 0.5]
    options = [*windows, "--threshold", 0, "--top", 1, "--format", form]
    code, out, err = run("scan", sound, *options)
    assert (code, err) == (0, "")
    expected = list(tagger.scan(sound, window_seconds=1.0, hop_seconds=0.5))
    names = [audioset_labels().names[w.probabilities.argmax()] for w in expected]
    if form == "jsonl":
        entries = [json.loads(line) for line in out.splitlines()]
        found = [
            (e["start_seconds"], e["end_seconds"], e["tags"][0]["name"])
            for e in entries
        ]
    elif form == "csv":
        found = [
            (float(row["start_seconds"]), float(row["end_seconds"]), row["name"])
            for row in csv.DictReader(io.StringIO(out))
        ]
    else:
        cells = [line.split(maxsplit=2) for line in out.splitlines()[1:]]
        found = [(float(a), float(b), text.rsplit(" ", 1)[0]) for a, b, text in cells]
    assert [name for *_, name in found] == names
    for (start, end, _), window in zip(found, expected, strict=True):
        assert start == pytest.approx(window.start_seconds, abs=0.01)
        assert end == pytest.approx(window.end_seconds, abs=0.01)


def test_an_audacity_track_covers_the_windows_above_the_threshold(
    run, tagger, tmp_path
):
    sound = write_sound(tmp_path / "long.wav", 3.3)
    windows = list(tagger.scan(sound, window_seconds=1.0, hop_seconds=0.5))
    scores = np.stack([window.probabilities for window in windows])
    threshold = float(np.quantile(scores.max(axis=1), 0.5))
    options = ["--window", 1.0, "--threshold", threshold, "--format", "audacity"]
    code, out, _ = run("scan", sound, *options)
    assert code == 0
    labels = [line.split("\t") for line in out.splitlines()]
    for window in windows:
        where = (window.start_seconds, window.end_seconds)
        covering = {
            name
            for start, end, name in labels
            if float(start) <= where[0] + 1e-5 and where[1] - 1e-5 <= float(end)
        }
        above = {
            audioset_labels().names[k]
            for k in np.flatnonzero(window.probabilities >= threshold)
        }
        assert above <= covering
    by_class = {}
    for start, end, name in labels:  # those of a class neither touch nor overlap
        by_class.setdefault(name, []).append((float(start), float(end)))
    assert by_class
    for spans in by_class.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1e-5 for a, b in zip(spans, spans[1:], strict=False))


def test_windows_of_a_class_become_one_label():
    merger = LabelMerger()
    found = []
    # above, above, below, below, above; then apart
    for start, classes in enumerate([["x"], ["x"], [], [], ["x"], [], [], []]):
        found += merger.add(start / 2, start / 2 + 1, classes)
    found += merger.finish()
    assert [label[:2] for label in found] == [(0.0, 1.5), (2.0, 3.0)]
    # One window below between two that overlap
    for start, classes in enumerate([["x"], [], ["x"]]):
        assert merger.add(float(start), start + 4.0, classes) == []
    assert [label[:2] for label in merger.finish()] == [(0.0, 6.0)]


def test_a_figure_is_a_png(run, tmp_path):
    sound = write_sound(tmp_path / "cost $5 _ ^2$ \u6f22.wav", 2.3)
    target = tmp_path / "scan.png"
    options = ["--window", 1.0, "--figure", target]
    code, out, err = run("scan", sound, *options)
    assert (code, err) == (0, "") and out
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    code, _, err = run("scan", sound, sound.parent, "--figure", tmp_path / "x.jpg")
    assert code == 2 and "must end in .png" in err


def test_columns_are_means_however_many_there_are():
    for number in (1, 7, 8, 9, 100, 1000):
        columns = PairedColumns(limit=8)
        for value in range(number):
            columns.add(np.array([value, 1.0]))
        found = columns.columns()
        assert len(found) <= 9 and (found[:, 1] == 1).all()
        assert (np.diff(found[:, 0]) > 0).all()
        assert found[0, 0] < number / 2 or number == 1


def test_what_comes_before_a_fault_is_written(run, tmp_path):
    sound, target = tmp_path / "cut.flac", tmp_path / "found.jsonl"
    soundfile.write(sound, sound_of(12.0), RATE)
    content = sound.read_bytes()
    sound.write_bytes(content[: len(content) // 2])
    figure = tmp_path / "scan.png"
    options = ["--window", 1, "--batch-size", 2, "--format", "jsonl"]
    files = ["--output", target, "--figure", figure]
    code, _, err = run("scan", sound, *options, *files)
    assert code == 1 and "1 of 1 inputs could not be read" in err
    assert re.search(r"cut.flac: read until \d\.\d\d s, then: not decodable", err)
    windows = [json.loads(line) for line in target.read_text().splitlines()]
    assert windows[0]["start_seconds"] == 0 and windows[-1]["end_seconds"] < 7
    assert figure.exists()
    assert run("tag", sound)[0] == 2  # half a sound is not tagged as a whole


@pytest.mark.parametrize("option", [["--format", "audacity"], ["--figure", "x.png"]])
def test_what_is_of_one_sound_takes_one(run, five, tmp_path, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("scan", five, *option)
    assert code == 2 and "takes one sound, 5 were given" in err


@pytest.mark.parametrize("hop", [0.04, 0.25, 0.5])
def test_the_bar_of_a_scan_ends_with_the_sound(run, tmp_path, monkeypatch, hop):
    reached = []

    class Bar(tqdm.tqdm):
        def close(self):
            reached.append(self.n)
            super().close()

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr("efficientat_plugin.cli.scan.hides_progress", lambda _: False)
    sound = write_sound(tmp_path / "sound.wav", 3.0)
    assert run("scan", sound, "--window", 1, "--hop", hop)[0] == 0
    assert reached[0] == 3.0


def test_a_hop_beyond_the_window_is_refused(run, five):
    code, out, err = run("scan", five / "0.wav", "--window", 1, "--hop", 2)
    assert (code, out) == (2, "") and "the hop must be from 1 to the window" in err
