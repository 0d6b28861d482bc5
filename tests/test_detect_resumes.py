"""An interrupted or killed ``efficientat detect`` resumes with the same command."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from detect_runs import files_of


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
    detect, three_sounds, tmp_path, monkeypatch, per_sound
):
    option = "--output-folder" if per_sound else "--output"
    name = "events" if per_sound else "events.csv"
    whole, resumed = tmp_path / "whole" / name, tmp_path / "resumed" / name
    for path in (whole, resumed):
        path.parent.mkdir()
    assert detect(three_sounds, option, whole)[0] == 0
    with interrupted_at(monkeypatch, 2) as read:
        code, _, err = detect(three_sounds, option, resumed)
        assert code == 130 and "resume from there" in err
        kept = files_of(resumed.parent)
        assert kept == [f"{name}/events.parts" if per_sound else f"{name}.parts"]
        code, _, err = detect(three_sounds, option, resumed, "--min-seconds", 1)
        assert code == 2 and "with other settings (min_seconds)" in err
        assert detect(three_sounds, option, resumed)[0] == 0
    assert read == ["a.wav", "b.flac", "b.flac", "c.wav"]
    assert files_of(resumed.parent) == files_of(whole.parent)
    for file in files_of(whole.parent):
        content = (whole.parent / file).read_bytes()
        assert (resumed.parent / file).read_bytes() == content


def test_results_are_kept_until_they_are_written(
    detect, three_sounds, tmp_path, monkeypatch
):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    target = tmp_path / "e.csv"
    with monkeypatch.context() as patch:
        patch.setattr("efficientat_plugin.cli.detect.write_events", interrupted)
        assert detect(three_sounds, "--output", target)[0] == 130
    with interrupted_at(monkeypatch, 1) as read:  # reads no sound again
        assert detect(three_sounds, "--output", target)[0] == 0
    assert read == [] and target.read_text() == detect(three_sounds)[1]
    assert files_of(tmp_path) == ["e.csv"]


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
    detect, frame_folder, three_sounds, middle_thresholds, tmp_path
):
    words = ["detect", three_sounds, "--model", frame_folder, "--device", "cpu"]
    for mid, value in middle_thresholds.items():
        words += ["--threshold", f"{mid}={value}"]
    target = tmp_path / "e.csv"
    command = [sys.executable, "-c", KILLED_AT, *words, "--output", target]
    threads = {"OMP_NUM_THREADS": "1"}  # as many as here; others round differently
    done = subprocess.run(
        [*map(str, command)], capture_output=True, env=os.environ | threads
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files_of(tmp_path) == ["e.csv.parts"]
    assert detect(three_sounds, "--output", target)[0] == 0
    assert detect(three_sounds, "--output", tmp_path / "whole.csv")[0] == 0
    assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()
