"""Signals end a run between two calls of libraries, not within one."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from efficientat_plugin.data.decoding import decode_blocks
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.sound_files import open_sound
from efficientat_plugin.support.interruptions import interruptible, uninterrupted

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored():
    """As it is by what starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(io.BytesIO):
    """A file that a signal arrives in, with the nth call of its methods."""

    calls, number = 1, signal.SIGTERM

    def _called(self):
        self.calls -= 1
        if self.calls == 0:
            os.kill(os.getpid(), self.number)

    def read(self, *size):
        self._called()
        return super().read(*size)

    def readinto(self, buffer):
        self._called()
        return super().readinto(buffer)

    def write(self, content):
        self._called()
        return super().write(content)


def flac():
    file = io.BytesIO()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    soundfile.write(file, sound, 16000, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_read_is_no_fault_of_the_sound(number, calls, monkeypatch):
    content = flac()
    monkeypatch.setattr(Interrupted, "number", number)
    monkeypatch.setattr(Interrupted, "calls", calls)
    monkeypatch.setattr("io.BytesIO", Interrupted)
    with interruptible() as arrived, pytest.raises(KeyboardInterrupt):
        with open_sound(content) as sound:
            while len(sound.next_block(4000)):
                pass
    assert arrived == [number]


@pytest.mark.parametrize("codec", ["flac", "vorbis", "mp3"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_write_is_no_fault_of_the_clip(
    codec, number, monkeypatch, tmp_path
):
    path = tmp_path / "clip.flac"
    path.write_bytes(flac())
    monkeypatch.setattr(Interrupted, "number", number)
    monkeypatch.setattr("io.BytesIO", Interrupted)
    with interruptible() as arrived, pytest.raises(KeyboardInterrupt):
        ClipEncoder(codec, 16000).encode(path)
    assert arrived == [number]


def test_the_outermost_block_raises():
    done = []
    with interruptible(), pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("behind")
    assert done == ["inner", "outer"]


def test_a_signal_that_python_drops_is_known_and_does_not_outlive_the_block():
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with interruptible() as arrived:
        Dropping()
        assert arrived == [signal.SIGTERM]
    time.sleep(0.2)  # sent again, it would end this process


def test_bytes_are_read_as_before():
    assert sum(len(block) for block in decode_blocks(flac(), 16000)) == 48000


INTERRUPTED_IN_A_QUEUE = """
import os, signal
import torch, tqdm
from efficientat_plugin.support import launch

launch.EXIT_SECONDS = 1

def main(argv):
    numbers = tqdm.tqdm(range(10**6), desc="Counting", mininterval=0)
    workers = iter(torch.utils.data.DataLoader(range(10**6), num_workers=2))
    for _ in numbers:
        next(workers)
        # As a signal leaves it that arrives within `put`.
        workers._index_queues[1]._notempty.acquire()
        os.kill(os.getpid(), signal.SIGTERM)

launch.start(main)
"""


@pytest.mark.slow
def test_a_lock_that_an_interruption_left_does_not_keep_the_process():
    """Nor is anything drawn behind the sentence that tells how to resume."""
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_A_QUEUE],
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    sentence = "Terminated; rerun the same command to resume.\n"
    assert ended.stderr.endswith(sentence), ended.stderr
    assert "Counting" in ended.stderr
