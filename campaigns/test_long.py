"""Hours of sound: memory stays flat, times do not drift, windows do not wander.

The sound repeats itself, so that a window sounds like the one a period before.
"""

import json
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of
from lengths import short_and_full
from memory_use import Course, alone, here, linux, megabytes

from efficientat_plugin.cli import main, outputs
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.runtime.tagger import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger

pytestmark = linux

RATE = 32000  # Hz, of the students
PERIOD_SECONDS = 7
WINDOW_SECONDS, HOP_SECONDS = 2.0, 0.5
PERIOD = round(PERIOD_SECONDS / HOP_SECONDS)  # windows
GROWTH = 24.0  # MB that a process may come to hold after a quarter of the way
# Of probabilities: what rounding may change. A sample's shift changes 8e-4 at least.
SAME = 5e-4
FILE = "mn01_as_mAP_298.pt"  # a published name, whose front end is known


@pytest.fixture(scope="module")
def period(tmp_path_factory):
    """By rate, a file of the sound that is repeated, int16."""
    folder = tmp_path_factory.mktemp("period")
    paths = {}
    for rate in (16000, RATE, 44100):
        paths[rate] = folder / f"{rate}.wav"
        sound = 0.5 * synthesised(PERIOD_SECONDS * rate, rate, number=3)
        soundfile.write(paths[rate], sound, rate, subtype="PCM_16")
    return paths


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By what computes, a file of one small student."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    source = source_of(random_weights(MN(527, width=0.1)), clip_seconds=2.0)
    torch.save(source.model.student.state_dict(), folder / FILE)
    for front_end in ("in", "out"):
        path = folder / f"front_end_{front_end}.onnx"
        path.write_bytes(content_of(source, front_end=front_end))
    return folder


def tagger_of(models: Path, what: str):
    """Of torch, the published mn04_as, or a file whose front end is in or out of it."""
    torch.set_num_threads(1)
    if what in ("in", "out"):
        return Tagger(models / f"front_end_{what}.onnx", "onnxruntime", threads=1)
    weights = what if what == "mn04_as" else models / FILE
    return AudioTagger.from_student(weights, run_opts={"device": "cpu"})


def long_file(path: Path, period: Path, num_frames: int) -> Path:
    """The period again and again, written piece by piece."""
    piece, rate = soundfile.read(period, dtype="int16")
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        while num_frames > 0:
            file.write(piece[:num_frames])
            num_frames -= len(piece)
    return path


def refuse_drift(starts_and_ends, num_samples: int) -> None:
    """Windows begin at whole hops to the sample, and end with the sound."""
    window, hop = round(WINDOW_SECONDS * RATE), round(HOP_SECONDS * RATE)
    places = [(start * RATE, end * RATE) for start, end in starts_and_ends]
    last = num_samples - window
    expected = [(start, start + window) for start in range(0, last + 1, hop)]
    if last % hop:
        expected.append((last, num_samples))
    assert len(places) == len(expected)
    # The command line prints microseconds, which are 0.03 samples.
    np.testing.assert_allclose(places, expected, rtol=0, atol=0.05)


def refuse_wandering(rows) -> None:
    """A window sounds as the one a period before, but for the ends of the sound."""
    rows = np.asarray(rows)
    inner = rows[PERIOD:-2]
    again = len(inner) // PERIOD * PERIOD
    by_place = inner[:again].reshape(-1, PERIOD, rows.shape[1])
    assert np.ptp(by_place, axis=1).max() > 0.01  # windows differ from each other
    assert np.ptp(by_place, axis=0).max() < SAME


class Windows:
    """What is kept of windows, in memory that is taken before they come."""

    def __init__(self, num_windows: int) -> None:
        self.times = np.ones((num_windows, 2))
        self.rows = np.ones((num_windows, 527), np.float32)
        self.count = 0

    def add(self, window) -> None:
        """One more."""
        self.times[self.count] = window[:2]
        self.rows[self.count] = window.probabilities
        self.count += 1


def num_windows_of(num_frames: int, rate: int) -> int:
    """At the most."""
    return round(num_frames / rate / HOP_SECONDS) + 1


# --- Streams ------------------------------------------------------------------------


def streamed(models, what, period, num_frames, seed):
    """Chunks of any length, none among them, as fast as they are scored."""
    tagger, rng = tagger_of(models, what), np.random.default_rng(seed)
    piece, rate = soundfile.read(period, dtype="int16")
    piece = np.concatenate([piece, piece])
    stream = tagger.stream(rate, WINDOW_SECONDS, HOP_SECONDS)
    scored = Windows(num_windows_of(num_frames, rate))
    course, place = Course(num_frames), 0
    longest = len(piece) // 2
    while place < num_frames:
        most = rng.choice([10, 1000, 20_000, longest], p=[0.3, 0.4, 0.28, 0.02])
        # The longest comes first: what it takes is there from then on.
        length = int(rng.integers(0, most)) if place else longest
        length = min(length, num_frames - place)
        start = place % longest
        for window in stream.feed(piece[start : start + length]):
            scored.add(window)
        place += length
        course.look(place)
    for window in stream.finish():
        scored.add(window)
    return scored, course.growth, megabytes("VmHWM")


@pytest.mark.parametrize(
    ("what", "rate"),
    [("torch", RATE), ("torch", 44100), ("in", RATE), ("out", 44100)],
)
@short_and_full(short=1, full=60)  # minutes
def test_a_stream(tries, what, rate, models, period, seed, figures, tmp_path):
    # Neither whole periods nor whole hops
    num_frames = tries * 60 * rate + 12347
    if what == "torch" and tries == 60:
        what = "mn04_as"
    begun = time.monotonic()
    run = alone if tries == 60 else here
    scored, growth, peak = run(streamed, models, what, period[rate], num_frames, seed)
    taken = time.monotonic() - begun
    num_samples = round(num_frames * RATE / rate)
    times, rows = scored.times[: scored.count], scored.rows[: scored.count]
    refuse_drift(times, num_samples)
    refuse_wandering(rows)
    file = long_file(tmp_path / "long.flac", period[rate], num_frames)
    tagger = tagger_of(models, what)
    windows = tagger.scan(file, None, WINDOW_SECONDS, HOP_SECONDS)
    for number, window in enumerate(windows):
        assert window[:2] == tuple(times[number])
        assert np.abs(window.probabilities - rows[number]).max() < SAME
    assert number + 1 == len(rows)
    file.unlink()
    assert growth < GROWTH
    figures(
        f"{what}, {rate} Hz",
        f"{tries} minutes",
        f"{len(rows)} windows",
        f"+{growth:.1f} MB from a quarter of the way on",
        f"peak {peak:.0f} MB",
        f"{taken:.0f} s",
    )


# --- Files --------------------------------------------------------------------------


def scanned(models, what, file, num_windows):
    """A file, window by window."""
    tagger = tagger_of(models, what)
    course, scored = Course(num_windows), Windows(num_windows)
    for window in tagger.scan(file, None, WINDOW_SECONDS, HOP_SECONDS):
        scored.add(window)
        course.look(scored.count)
    times, rows = scored.times[: scored.count], scored.rows[: scored.count]
    return times, rows, course.growth, megabytes("VmHWM")


def scanned_by_command(models, what, file, num_windows):
    """The same by the command line."""
    course, output = Course(num_windows), file.with_suffix(".jsonl")
    write, written = outputs.JsonLinesWriter.write, count(1)

    def write_and_look(*arguments):
        write(*arguments)
        course.look(next(written))

    model = ["--model", what if what == "mn04_as" else str(models / FILE)]
    form = ["--format", "jsonl", "--threshold", "0", "--device", "cpu"]
    window = ["--window", str(WINDOW_SECONDS), "--hop", str(HOP_SECONDS)]
    words = ["scan", str(file), *model, *form, *window, "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.JsonLinesWriter, "write", write_and_look)
        assert main(words) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    times = [(line["start_seconds"], line["end_seconds"]) for line in lines]
    rows = [[tag["probability"] for tag in line["tags"]] for line in lines]
    return times, np.array(rows), course.growth, megabytes("VmHWM")


@pytest.mark.parametrize(
    ("by", "what", "rate"),
    [
        (scanned, "torch", 16000),
        (scanned, "in", 44100),
        (scanned, "out", 16000),
        (scanned_by_command, "torch", 44100),
    ],
)
@short_and_full(short=1, full=180)  # minutes
def test_a_scan(tries, by, what, rate, models, period, figures, tmp_path):
    num_frames = tries * 60 * rate + 12347
    if what == "torch" and tries == 180:
        what = "mn04_as"
    file = long_file(tmp_path / "long.flac", period[rate], num_frames)
    num_samples = round(num_frames * RATE / rate)
    num_windows = num_windows_of(num_frames, rate)
    begun = time.monotonic()
    run = alone if tries == 180 else here
    times, rows, growth, peak = run(by, models, what, file, num_windows)
    taken = time.monotonic() - begun
    file.unlink()
    refuse_drift(times, num_samples)
    refuse_wandering(rows)
    assert growth < GROWTH
    figures(
        f"{by.__name__}, {what}, {rate} Hz",
        f"{tries} minutes",
        f"{len(rows)} windows",
        f"+{growth:.1f} MB from a quarter of the way on",
        f"peak {peak:.0f} MB",
        f"{taken:.0f} s",
    )
