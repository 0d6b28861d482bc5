"""Two processes of one run: one of them is killed, or has more clips than the other."""

import json
import random
import time

import pytest
from commands import COMMANDS
from lengths import short_and_full
from recipe_runs import RecipeProcess, start_both

TRAINING = COMMANDS[:2]
PATIENCE_SECONDS = 60
SENTENCE = "Another process of this run has ended"


def wait_for_a_checkpoint(output, processes):
    before = set(output.glob("save/CKPT*"))
    while set(output.glob("save/CKPT*")) <= before:
        assert None in [process.poll() for process in processes]
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _there(data, monkeypatch):
    monkeypatch.chdir(data)  # where processes start


@pytest.mark.slow
@short_and_full(1, 10)
@pytest.mark.parametrize("command", TRAINING, ids=lambda command: command.name)
def test_a_killed_process_ends_the_other_and_the_run_resumes(
    command, tries, data, tmp_path, seed, figures
):
    rng = random.Random(seed)
    for process in start_both(command.words(data, tmp_path / "alone" / "run")):
        printed = process.wait()
        assert process.poll() == 0, printed[-3000:]
    expected = command.outcome(tmp_path / "alone" / "run")
    longest_seconds = 0.0
    for number in range(tries):
        words = command.words(data, tmp_path / str(number) / "run")
        both = start_both(words)
        wait_for_a_checkpoint(tmp_path / str(number) / "run", both)
        time.sleep(rng.uniform(0, 1))
        killed, other = rng.sample(both, 2)
        killed.kill()
        started = time.monotonic()
        printed = other.wait()
        seconds = time.monotonic() - started
        assert seconds < PATIENCE_SECONDS
        if other.poll() != 0:  # else it had nothing left to do
            longest_seconds = max(longest_seconds, seconds)
            assert SENTENCE in printed.splitlines()[-1], printed[-3000:]
            assert "Traceback" not in printed
        for process in start_both(words):
            printed = process.wait()
            assert process.poll() == 0, printed[-3000:]
        assert command.outcome(tmp_path / str(number) / "run") == expected
    figures(f"{tries} kills", f"the other ended within {longest_seconds:.1f} s")


@pytest.mark.slow
@short_and_full(1, 8)
def test_uneven_shares_are_scored_as_by_one_process(
    tries, data, tmp_path, seed, figures
):
    rng = random.Random(seed)
    distil, sizes = COMMANDS[0], []
    for number in range(tries):
        sizes.append(2 * rng.randrange(2, 8) + 1)
        scores = []
        for processes in (1, 2):
            output = tmp_path / f"{number}-{processes}"
            words = distil.words(data, output)
            words += ["--test_only", "--pretrained", str(data / "527.pt")]
            words[words.index("--num_eval") + 1] = str(sizes[-1])
            words[words.index("--sample_folder") + 1] = str(tmp_path / f"{number}")
            words[words.index("--eval_batch_size") + 1] = str(rng.randrange(1, 5))
            both = [RecipeProcess(words)] if processes == 1 else start_both(words)
            for process in both:
                printed = process.wait()
                assert process.poll() == 0, printed[-3000:]
            [found] = output.glob("evaluated/*/scores.json")
            scores.append(json.loads(found.read_text()))
        assert scores[0] == scores[1]
        assert scores[0]["num_clips"] == sizes[-1]
    figures(f"{sizes} clips by one and two processes", "same scores")
