"""``efficientat list``: lists the published students, without heavy imports."""

import argparse
import json
from typing import Any

from efficientat_plugin.cli.arguments import Commands
from efficientat_plugin.pretrained.published import PUBLISHED, PublishedStudent

COLUMNS = ("name", "width", "mAP", "PSDS1", "front end", "trained on")


def add_parser(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Adds the command and its options."""
    parser = commands.add_parser(
        "list", parents=[common], help="list the published students"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the published students."""
    if arguments.json:
        print(json.dumps([described(entry) for entry in PUBLISHED.values()], indent=1))
        return 0
    rows = [COLUMNS, *(_cells(entry) for entry in PUBLISHED.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def described(entry: PublishedStudent) -> dict[str, Any]:
    """Returns the facts of a published student, for JSON.

    Example
    -------
    >>> described(PUBLISHED["mn04_as"])["mAP"]
    43.2
    """
    return {
        "name": entry.name,
        "family": entry.family,
        "width": entry.width,
        "mAP": entry.mean_ap,
        "PSDS1": entry.psds1,
        "classes": entry.num_classes,
        "front_end": entry.front_end(),
        "trained_on": entry.trained_on,
    }


def _cells(entry: PublishedStudent) -> tuple[str, ...]:
    hop_ms = 1000 * entry.hop_length / entry.sample_rate
    return (
        entry.name,
        "-" if entry.width is None else f"{entry.width:.1f}",
        "-" if entry.mean_ap is None else f"{entry.mean_ap:.1f}",
        "-" if entry.psds1 is None else f"{entry.psds1:.1f}",
        f"{entry.sample_rate} Hz, {entry.n_mels} mel bands, hop {hop_ms:g} ms",
        entry.trained_on,
    )
