"""Where nothing can be written: one sentence, and what was saved stays good."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from commands import COMMANDS
from lengths import short_and_full
from recipe_runs import ENVIRONMENT

SMALLEST_BYTES = 2**14
ENOUGH = "64m"
SOMEBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@contextmanager
def small_disk(folder, num_bytes):
    """A file system in memory, mounted on a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here, which takes a superuser")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def the_sentence(printed):
    """The last line, of one that ended without a traceback."""
    assert "Traceback" not in printed, printed[-3000:]
    return printed.rstrip().splitlines()[-1]


@pytest.mark.slow
@short_and_full(1, 40)
def test_a_full_disk_is_reported_and_room_is_all_it_takes(
    tries, data, undisturbed, tmp_path, seed, figures
):
    rng = random.Random(seed)
    went_well = 0
    for number in range(tries):
        command = rng.choice(COMMANDS)
        alone = undisturbed(command)
        size = max(SMALLEST_BYTES, round(rng.uniform(0.02, 1) * alone.num_bytes))
        with small_disk(tmp_path / str(number), size) as disk:
            process = command.start(data, disk / "run")
            printed = process.wait()
            if process.poll() == 0:
                went_well += 1
            else:
                sentence = the_sentence(printed)
                assert f"{disk / 'run'} cannot be written (" in sentence
                assert "make room for it" in sentence
                remount = ["mount", "-o", f"remount,size={ENOUGH}", str(disk)]
                subprocess.run(remount, check=True)
                process = command.start(data, disk / "run")
                printed = process.wait()
                assert process.poll() == 0, printed[-3000:]
            assert command.outcome(disk / "run") == alone.outcome, f"{size} bytes"
    refused = tries - went_well
    figures(f"{refused} disks full", f"{went_well} just not", "all end as alone")


@pytest.mark.slow
@short_and_full(1, len(COMMANDS))
def test_a_folder_without_permission_is_reported(tries, data, tmp_path, seed, figures):
    if os.geteuid() == 0 and shutil.which(SOMEBODY[0]) is None:
        pytest.skip("a superuser may write anywhere, and there is no setpriv")
    prefix = SOMEBODY if os.geteuid() == 0 else []
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for command in COMMANDS[-tries:]:
        words = command.words(data, closed / "run")
        done = subprocess.run(
            [*prefix, sys.executable, *words],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr[-3000:]
        sentence = the_sentence(done.stdout + done.stderr)
        assert "Permission denied" in sentence and "closed" in sentence
    figures(f"{tries} refused")


@pytest.mark.slow
@short_and_full(1, 40)
def test_a_folder_that_vanishes_ends_a_run_or_is_made_anew(
    tries, data, undisturbed, tmp_path, seed, figures
):
    rng = random.Random(seed)
    ended = half_removed = 0
    for number in range(tries):
        command = rng.choice(COMMANDS)
        alone = undisturbed(command)
        output = tmp_path / str(number) / "run"
        process = command.start(data, output, rng.choice((0, 4)))
        time.sleep(rng.uniform(0, alone.seconds))
        for folder in (output, output.with_name(f"{output.name}.partial")):
            shutil.rmtree(folder, ignore_errors=True)
        printed = process.wait()
        if process.poll() != 0:
            ended += 1
            assert str(output) in the_sentence(printed)
        process = command.start(data, output)
        printed = process.wait()
        if "was only partly deleted" in printed:  # and whole again but for its name
            half_removed += 1
            shutil.rmtree(output)
            process = command.start(data, output)
            printed = process.wait()
        assert process.poll() == 0, printed[-3000:]
        assert command.outcome(output) == alone.outcome
    figures(
        f"{ended} ended",
        f"{tries - ended} went on, {half_removed} of them to be removed",
        "all end as alone",
    )


@pytest.mark.slow
@short_and_full(1, 20)
def test_sounds_that_change_under_a_run_are_named(
    tries, data, undisturbed, tmp_path, seed, figures
):
    """Brought back, the same command ends."""
    rng = random.Random(seed)
    commands = [each for each in COMMANDS if each.name in ("finetune", "dump")]
    named = 0
    for number in range(tries):
        command = rng.choice(commands)
        output = tmp_path / str(number) / "run"
        own = tmp_path / str(number) / "data"
        shutil.copytree(data, own)
        process = command.start(own, output)
        time.sleep(rng.uniform(0, undisturbed(command).seconds))
        for file in own.glob("sounds/*/*.wav"):
            rng.choice([file.unlink, lambda file=file: file.write_bytes(b"no sound")])()
        printed = process.wait()
        if process.poll() != 0:
            named += 1
            the_sentence(printed)
            reason = (
                r"\d+ (of \d+ clips|clips in a row) could not be read|holds neither"
            )
            assert re.search(reason, printed), printed[-3000:]
        shutil.copytree(data, own, dirs_exist_ok=True)
        process = command.start(own, output)
        printed = process.wait()
        assert process.poll() == 0, printed[-3000:]
    figures(f"{named} named", f"{tries - named} were over", "all end")
