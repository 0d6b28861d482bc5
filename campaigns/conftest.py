"""What every campaign has: a seed that is printed, and figures at its end."""

import os
import random
import sys
import time
from typing import NamedTuple

import pytest

# The same home and watch as for the tests
from tests.conftest import (  # noqa: F401
    _datasets_cache,
    _keeps_to_its_places,
    _one_cost,
    _seed,
    shared,
    touched,
)

# isort: split
from commands import write_data
from recipe_runs import launch

collect_ignore = ["conftest.py"]


class Alone(NamedTuple):
    """What a command comes to that nobody disturbs."""

    outcome: dict[str, str]
    seconds: float  # of one that need not import
    num_bytes: int  # of what it leaves


@pytest.fixture
def seed(request) -> int:
    """What a campaign draws from; ``CAMPAIGN_SEED`` repeats one that failed.

    Short forms draw the same each time.
    """
    is_full = request.node.get_closest_marker("campaign") is not None
    drawn = random.SystemRandom().randrange(2**31) if is_full else 0
    number = int(os.environ.get("CAMPAIGN_SEED", drawn))
    print(f"\n{request.node.name}: CAMPAIGN_SEED={number}")
    return number


@pytest.fixture
def figures(request):
    """Prints what a campaign counted, as a row of docs/reliability.md."""

    def row(*cells) -> None:
        line = " | ".join(map(str, cells))
        print(f"| {request.node.name} | {line} |", file=sys.stderr)

    return row


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """What the commands work on."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory, request):
    """Runs a command undisturbed, once.

    In campaigns it is also started anew, with sets of another order; short forms have
    no time to import.
    """
    known = {}
    is_full = "not campaign" not in request.config.getoption("-m")

    def outcome_of(command):
        if command not in known:
            folder = tmp_path_factory.mktemp(f"alone-{command.name}")
            process = command.start(data, folder / "run")
            started = time.monotonic()
            printed = process.wait()
            seconds = time.monotonic() - started
            assert process.poll() == 0, printed[-3000:]
            outcome = command.outcome(folder / "run")
            files = [path for path in folder.rglob("*") if path.is_file()]
            num_bytes = sum(path.stat().st_size for path in files)
            if is_full:
                launch(*command.words(data, folder / "launched"))
                assert command.outcome(folder / "launched") == outcome
            known[command] = Alone(outcome, seconds, num_bytes)
        return known[command]

    return outcome_of
