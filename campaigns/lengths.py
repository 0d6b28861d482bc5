"""Each campaign in two lengths, of which the short one is the default."""

import pytest


def short_and_full(short: int, full: int):
    """Gives a test the number of its ``tries``."""
    long = pytest.param(full, marks=pytest.mark.campaign, id="full")
    return pytest.mark.parametrize("tries", [pytest.param(short, id="short"), long])
