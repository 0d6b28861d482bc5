"""What every campaign has: a seed that is printed, and figures at its end."""

import os
import random
import sys

import pytest


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
