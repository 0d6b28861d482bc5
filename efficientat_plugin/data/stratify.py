"""Groups of labelled clips dealt out to sides, each class in proportion."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MAX_PASSES = 10  # over groups to move; two or three are what it takes

# Clips that each side still wants: of each class, and, under None, of all.
Lacking = dict[str | None, np.ndarray]


class Unit(NamedTuple):
    """Clips that stay together, and how often each class is among them."""

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
    """Clips of each class, and of all (None), that each side should get.

    Whole numbers next to the exact share, rounded so that the sides' sums stay near
    theirs, too: many small classes would all be rounded alike otherwise.
    """
    quotas: Lacking = {None: shares * num_rows}
    owed = np.zeros(len(shares))
    labels = sorted(counts)
    for place in rng.permutation(len(labels)):
        exact = shares * counts[labels[place]]
        quota = np.floor(exact + 1e-9)
        owed += exact - quota
        spare = round(counts[labels[place]] - quota.sum())
        # What cannot be learnt cannot be tested: the first side comes first.
        ranking = owed + np.where((quota == 0) & (np.arange(len(shares)) == 0), 1e6, 0)
        # One each at most, and none beyond an exact share.
        ranking[exact - quota < 1e-9] = -np.inf
        for side in np.argsort(-ranking, kind="stable")[:spare]:
            quota[side] += 1
            owed[side] -= 1
        quotas[labels[place]] = quota
    return quotas


def _deal(units: Sequence[Unit], lacking: Lacking) -> list[int]:
    """The side of each unit; leaves in ``lacking`` what is wanted yet.

    Rarest class first, to the side that lacks most of it.
    """
    bare = {label: quota > 0 for label, quota in lacking.items()}  # sides without it
    left = total_counts(units)
    holders: dict[str, list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        for label in unit.counts:
            holders[label].append(place)
    side_of: dict[int, int] = {}

    def put(place: int, label: str | None, num_free: int) -> None:
        lack = lacking[label]
        # The last groups of a class go where there is none of it, however large.
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
        # Large groups first: small ones can still make up for them.
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
    """Moves groups as long as the sides come nearer to what they want.

    Dealt out by one class, a group brings clips of others along, and of those too many
    may have come together. Single clips are not moved: they stand as well as can be.
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
            # By how much the squared distance grows, each class relative to its size.
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
    """The side of each unit.

    Arguments
    ---------
    units : Sequence[Unit]
        In the order in which like ones are dealt out.
    shares : Sequence[float]
        Of each side in the clips; sum to 1. A class too small for all goes to the
        first.
    rng : np.random.Generator
        Decides which classes are rounded up on which side.

    Source
    ------
    The order is that of Sechidis, Tsoumakas and Vlahavas, "On the Stratification of
    Multi-Label Data", ECML PKDD 2011; differs from it in dealing out groups, in wanting
    whole numbers of clips, and in moving groups afterwards.

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
