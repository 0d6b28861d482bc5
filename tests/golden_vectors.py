"""Where the outputs of the published code are."""

from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
