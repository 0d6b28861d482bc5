"""Runs that are killed end as if nobody had touched them."""

import contextlib
import os
import random
import signal
import time

import pytest
from commands import COMMANDS
from lengths import short_and_full

KILLS_IN_A_ROW = 4  # then a run may end
WORKERS = (0, 1, 4)
PATIENCE_SECONDS = 120


def wait_for_end_of_group(pid):
    """Workers notice by themselves that they are alone."""
    end = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(pid, 0)
            time.sleep(0.01)
        raise AssertionError("the workers of a killed run do not end")


def wait_for_a_save(command, output, process, seconds):
    """Until something is half written, the process has ended, or for ``seconds``."""
    end = time.monotonic() + seconds
    while not command.is_saving(output) and process.poll() is None:
        if time.monotonic() > end:
            return


@pytest.mark.slow
@short_and_full(1, 30)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_killed_runs_end_like_one_left_alone(
    command, tries, data, undisturbed, tmp_path, seed, figures
):
    """SIGKILL to the first process, at any moment; every third while it saves."""
    expected, seconds, _ = undisturbed(command)
    rng = random.Random(seed)
    kills = kills_in_saves = ends = 0
    while kills < tries:
        workers = WORKERS[ends % len(WORKERS)]
        output = tmp_path / str(ends) / "run"
        for number in range(KILLS_IN_A_ROW):
            if kills == tries:
                break
            process = command.start(data, output, workers)
            in_a_save = number % 3 == 0  # of which the last is long before the end
            time.sleep(rng.uniform(0, seconds / 3 if in_a_save else seconds))
            if in_a_save:
                wait_for_a_save(command, output, process, seconds)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            wait_for_end_of_group(process.pid)
            kills += 1
            kills_in_saves += command.is_saving(output)
        process = command.start(data, output, workers)
        printed = process.wait()
        assert process.poll() == 0, printed[-3000:]
        assert command.outcome(output) == expected, f"{workers} workers"
        ends += 1
    figures(f"{kills} kills", f"{kills_in_saves} in a save", f"{ends} runs as alone")


@pytest.mark.slow
@short_and_full(1, 80)
def test_interrupted_runs_report_how_to_resume(
    tries, data, undisturbed, tmp_path, seed, figures
):
    """Ctrl-C of a terminal goes to all processes, SIGTERM often to the first one."""
    rng = random.Random(seed)
    stops = ends = 0
    outputs = {}
    while stops < tries:
        command, workers = rng.choice(COMMANDS), rng.choice(WORKERS)
        alone = undisturbed(command)
        output = outputs.setdefault(
            command, tmp_path / f"{ends}-{command.name}" / "run"
        )
        process = command.start(data, output, workers)
        time.sleep(rng.uniform(0.1, alone.seconds))
        sent = rng.choice([signal.SIGINT, signal.SIGTERM])
        if process.poll() is None:
            is_for_all = sent == signal.SIGINT or rng.random() < 0.5
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if is_for_all else os.kill)(process.pid, sent)
        printed = process.wait()
        wait_for_end_of_group(process.pid)
        if command.outcome(output) == alone.outcome:  # it was over
            del outputs[command]
            ends += 1
        elif printed:  # else it had not begun
            stops += 1
            assert process.poll() == 128 + sent, printed[-3000:]
            last = printed.rstrip().splitlines()[-1]
            assert last.endswith("; rerun the same command to resume."), printed[-3000:]
            assert "Traceback" not in printed
    for command, output in outputs.items():
        process = command.start(data, output)
        printed = process.wait()
        assert process.poll() == 0, printed[-3000:]
        assert command.outcome(output) == undisturbed(command).outcome
    figures(f"{stops} stops", f"{ends + len(outputs)} runs as alone")
