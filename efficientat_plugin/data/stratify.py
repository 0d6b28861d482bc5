"""Assigns groups of labelled clips to sides, with each class in proportion."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MAX_PASSES = 10  # over the groups to move; two or three are usually enough

# Clips that each side still lacks: of each class and, under the key None, of all.
Lacking = dict[str | None, np.ndarray]


class Unit(NamedTuple):
    """Holds clips that stay together, and how many of them have each class."""

    name: tuple[str, str]
    rows: list[int]
    counts: Counter[str]


def total_counts(units: Iterable[Unit]) -> Counter[str]:
    total: Counter[str] = Counter()
    for unit in units:
        total.update(unit.counts)
    return total


def _quotas(
    counts: Counter[str], num_rows: int, shares: np.ndarray, rng: np.random.Generator
) -> Lacking:
    """Computes how many clips of each class, and of all (None), each side should get.

    Quotas are whole numbers next to the exact share, rounded so that the sum of each
    side stays near its share, too; otherwise all small classes would be rounded alike.
    """
    quotas: Lacking = {None: shares * num_rows}
    owed = np.zeros(len(shares))
    labels = sorted(counts)
    for place in rng.permutation(len(labels)):
        exact = shares * counts[labels[place]]
        quota = np.floor(exact + 1e-9)
        owed += exact - quota
        spare = round(counts[labels[place]] - quota.sum())
        # A class that is not trained cannot be tested: the first side has priority.
        ranking = owed + np.where((quota == 0) & (np.arange(len(shares)) == 0), 1e6, 0)
        # At most one for each side, and none where the exact share is whole.
        ranking[exact - quota < 1e-9] = -np.inf
        for side in np.argsort(-ranking, kind="stable")[:spare]:
            quota[side] += 1
            owed[side] -= 1
        quotas[labels[place]] = quota
    return quotas


def _deal(units: Sequence[Unit], lacking: Lacking) -> list[int]:
    """Assigns units to sides; leaves in ``lacking`` what the sides still lack.

    The rarest class comes first, and goes to the side that lacks most of it.
    """
    bare = {label: quota > 0 for label, quota in lacking.items()}  # sides without any
    left = total_counts(units)
    holders: dict[str, list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        for label in unit.counts:
            holders[label].append(place)
    side_of: dict[int, int] = {}

    def put(place: int, label: str | None, num_free: int) -> None:
        lack = lacking[label]
        # The last groups of a class go to sides with none of it, however large.
        if 0 < num_free <= bare[label].sum():
            lack = np.where(bare[label], lack, -np.inf)
        most = np.flatnonzero(lack == lack.max())
        side = int(most[np.argmax(lacking[None][most])])
        side_of[place] = side
        lacking[None][side] -= len(units[place].rows)
        for name, count in units[place].counts.items():
            lacking[name][side] -= count
            bare[name][side] = False
            left[name] -= count

    while holders:
        label = min(holders, key=lambda name: (left[name], name))
        free = [place for place in holders.pop(label) if place not in side_of]
        # Large groups first: small ones can compensate for them.
        free.sort(key=lambda place: -units[place].counts[label])
        for number, place in enumerate(free):
            put(place, label, len(free) - number)
    for place in range(len(units)):
        if place not in side_of:  # clips without labels
            put(place, None, 0)
    return [side_of[place] for place in range(len(units))]


def _move_groups(
    units: Sequence[Unit], side_of: list[int], lacking: Lacking, wanted: Lacking
) -> None:
    """Moves groups as long as this brings the sides closer to their quotas.

    A group is assigned by one class but brings clips of others, and a side may get too
    many of these. Single clips are not moved: their sides cannot be improved.
    """
    total = {name: max(quota.sum(), 1.0) for name, quota in wanted.items()}
    groups = [place for place, unit in enumerate(units) if len(unit.rows) > 1]
    for _ in range(MAX_PASSES):
        moved = False
        for place in groups:
            sizes: dict[str | None, int] = {None: len(units[place].rows)}
            sizes.update(units[place].counts)
            here = side_of[place]
            held = {name: (wanted[name] - lacking[name])[here] for name in sizes}
            if any(
                held[name] <= size and wanted[name][here] > 0
                for name, size in sizes.items()
            ):
                continue  # the last of a class on its side
            # Growth of the squared distance, each class relative to its size.
            growth = sum(
                size / total[name] * (lacking[name][here] - lacking[name] + size)
                for name, size in sizes.items()
            )
            growth[here] = 0.0
            there = int(np.argmin(growth))
            if growth[there] < -1e-9:
                moved = True
                side_of[place] = there
                for name, size in sizes.items():
                    lacking[name][here] += size
                    lacking[name][there] -= size
        if not moved:
            return


def stratify(
    units: Sequence[Unit], shares: Sequence[float], rng: np.random.Generator
) -> list[int]:
    """Assigns each unit to a side; returns the index of its side.

    Arguments
    ---------
    units : Sequence[Unit]
        Similar ones are assigned in this order.
    shares : Sequence[float]
        Share of the clips for each side; sum to 1. A class too small for all sides goes
        to the first.
    rng : np.random.Generator
        Decides which classes are rounded up on which side.

    Source
    ------
    The order is that of Sechidis, Tsoumakas and Vlahavas, "On the Stratification of
    Multi-Label Data", ECML PKDD 2011; differs from it in assigning groups, in quotas
    that are whole numbers of clips, and in moving groups afterwards.

    Example
    -------
    >>> units = [Unit(("clip", str(n)), [n], Counter(["x"])) for n in range(4)]
    >>> sorted(stratify(units, [0.75, 0.25], np.random.default_rng(0)))
    [0, 0, 0, 1]
    """
    num_rows = sum(len(unit.rows) for unit in units)
    wanted = _quotas(total_counts(units), num_rows, np.asarray(shares), rng)
    lacking = {name: quota.copy() for name, quota in wanted.items()}
    side_of = _deal(units, lacking)
    _move_groups(units, side_of, lacking, wanted)
    return side_of
