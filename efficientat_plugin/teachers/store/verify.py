"""Checks that the logits of a store belong to the clips in its index.

With a wrong index, training runs without an error and the student learns nothing. So
the store is compared with the labels of the data set, which cost nothing to read.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from efficientat_plugin.support.plain_text import some_of
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.manifest import Manifest

MIN_LABELLED = 20  # labelled clips; fewer give no verdict
MIN_SIGMAS = 6.0  # above shuffled, for the store as a whole
MIN_EFFECT = 0.1  # sigmas per square root of clips, so that large samples need more
BLOCK_SIGMAS = 4.0  # above shuffled, for a block
# Sigmas that each of the many blocks of a large set should have; a correct block then
# hardly ever falls to 4.
EXPECTED_BLOCK_SIGMAS = 9.0
MIN_BLOCK, MAX_BLOCKS = 100, 100  # clips; blocks
MAX_SAMPLE = 20000  # clips whose logits are read
LOOKED_AT = 500  # rows checked for probabilities instead of logits
FRAMES_LOOKED_AT = 50  # of frames, whose rows are larger
MIN_NUMBERS = 20  # fewer could be logits from 0 to 1 by chance
MIN_PAIRS_RIGHT = 0.9  # real teachers exceed this; chance is 0.5
DRAWS = 16  # other clips that each clip is compared with
MIN_DEVIATION = 1e-2  # of a sum of scores; less is rounding
Z_LIMIT = 5.0  # keeps one row of a rare class from deciding over a block


class EvenSample:
    """Holds all items that are added, or 10 000 to 20 000 of them, evenly spread."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._count, self._step = 0, 1  # one in this many is kept

    def add(self, item: Any) -> None:
        """Adds the next item."""
        if self._count % self._step == 0:
            self.items.append(item)
        self._count += 1
        if len(self.items) > MAX_SAMPLE:
            self.items, self._step = self.items[::2], 2 * self._step


class Stretch(NamedTuple):
    """Consecutive clips whose logits seem to belong to other clips."""

    first: str  # clip id
    last: str  # clip id
    order: str  # "data set" or "store": the order in which they are consecutive
    sigmas: float  # above shuffled


class StoreReport(NamedTuple):
    """Result of ``verify``; ``str`` makes one line of it."""

    store: str  # its folder
    clips: int  # in the data set
    coverage: float  # share of them that are in the store, 0 to 1
    minimum_coverage: float
    labels_match: bool | None  # None: no digest was given
    labelled: int  # clips in the store with labels, used to judge the alignment
    sigmas: float  # of the teacher's scores on labelled classes above shuffled ones
    aligned: bool | None  # None: too few labels for a verdict
    blocks: int  # judged one by one, in the order of the data set and of the store
    bad_stretch: Stretch | None  # the first misaligned block
    classes_match: bool = True  # as many classes as in the data set's label table
    are_probabilities: bool = False  # the store holds them instead of logits
    pairs_right: float = 1.0  # share of pairs where a clip's own labels fit better
    frames: str | None = None  # which ones the store has; None: logits of clips
    not_finite: tuple[str, ...] = ()  # clips with a logit that is none

    @property
    def fault(self) -> str | None:
        """What is wrong, in a sentence; None: nothing."""
        if self.labels_match is False:
            return (
                "the label tables of the store and the data set differ by digest; use "
                "the label table that the teacher was trained with"
            )
        if not self.classes_match:
            return (
                "the store has another number of classes than the data set's label "
                "table; rebuild it with the table that the teacher was trained with"
            )
        if self.not_finite:
            some = some_of(self.not_finite)
            return (
                f"{len(self.not_finite)} of the rows read are not finite, those of "
                f"{some}, so the file is corrupt; rebuild the store, or copy it again"
            )
        if self.are_probabilities:
            return (
                "all its numbers are from 0 to 1, so they are probabilities, not "
                "logits; rebuild the store from log(p / (1 - p)), or from what the "
                "teacher computes before its sigmoid"
            )
        if self.coverage < self.minimum_coverage:
            return (
                f"the store has {self.coverage:.1%} of {self.clips} clips, less than "
                f"minimum_coverage={self.minimum_coverage:g}; store the logits of the "
                "others, compare the clip ids, or lower minimum_coverage"
            )
        if self.bad_stretch is not None:
            bad = self.bad_stretch
            return (
                f"the logits from clip {bad.first!r} to clip {bad.last!r}, in the "
                f"order of the {bad.order}, seem to be of other clips: the teacher's "
                f"scores on the labels are {bad.sigmas:.1f} standard deviations above "
                "shuffled ones, which is too few; rebuild the store, or correct its "
                "index"
            )
        if self.aligned is False:
            return (
                "the logits seem to be of other clips: the teacher's scores on the "
                f"labels of {self.labelled} clips are {self.sigmas:.1f} standard "
                f"deviations above shuffled ones, and must be at least {MIN_SIGMAS:g} "
                f"and {MIN_EFFECT:g} times the square root of the number of clips; "
                "rebuild the store, or correct its index or the order of its classes"
            )
        return None

    def raise_if_bad(self) -> None:
        """Refuses a store that would mislead a student.

        Raises
        ------
        ValueError
            With the store and its ``fault``.
        """
        if self.fault is not None:
            raise ValueError(f"{self.store}: {self.fault}")

    def __str__(self) -> str:
        labels = {True: "equal", False: "different", None: "not compared"}
        frames = "" if self.frames is None else f"{self.frames}, "
        known = (
            f"{self.coverage:.1%} of {self.clips} clips stored, {frames}label tables "
            f"{labels[self.labels_match]}, "
        )
        if self.fault is not None:
            return f"bad: {known}{self.fault}"
        if self.aligned is None:
            return (
                f"unjudged: {known}but only {self.labelled} clips have labels that "
                f"distinguish them, and {MIN_LABELLED} are needed to check whether the "
                "logits belong to the right clips"
            )
        if self.pairs_right < MIN_PAIRS_RIGHT:
            return (
                f"doubtful: {known}in only {self.pairs_right:.0%} of pairs do a clip's "
                "logits fit its own labels better than another clip's; the teacher is "
                f"weak at these classes, or up to {2 * (1 - self.pairs_right):.0%} of "
                "the rows belong to other clips"
            )
        return (
            f"ok: {known}scores on the labels of {self.labelled} clips "
            f"{self.sigmas:.1f} standard deviations above shuffled, "
            f"{self.blocks} {'block' if self.blocks == 1 else 'blocks'} judged"
        )


def verify(
    store: LogitsStore,
    clips: Iterable[tuple[str, Sequence[int]]],
    labels_sha256: str | None = None,
    minimum_coverage: float = 0.9,
    num_classes: int | None = None,
) -> StoreReport:
    """Compares a store with the labels of a data set.

    Logits are standardised per class; of frames, the largest counts. A clip's score is
    the sum over its labels, compared with what it would be if the rows were shuffled
    among the clips. The whole store is judged, and so are consecutive blocks (at least
    100 clips and a hundredth of all; the halves of a small set), so a stretch of wrong
    rows is found if it is as long as two blocks. Labels cannot reveal rows exchanged
    between clips with the same labels. If the data set is sorted by class, a block may
    also be refused because the teacher does not know its class.

    Source: mean and variance under shuffling are exact, by Hoeffding, "A
    Combinatorial Central Limit Theorem", 1951, theorem 2; no shuffle is drawn.

    Arguments
    ---------
    store : LogitsStore
        The store to check.
    clips : Iterable[tuple[str, Sequence[int]]]
        Clip id and class indices of each clip of the data set, in its order. A clip
        without indices counts for the coverage only.
    labels_sha256 : str or None
        Digest of the data set's label table; None: not compared.
    minimum_coverage : float
        Smallest share of the clips that must be in the store, 0 to 1.
    num_classes : int or None
        Number of classes in the data set's label table; None: not compared.

    Returns
    -------
    report : StoreReport
        Call its ``raise_if_bad()``.

    Raises
    ------
    ValueError
        If there are no clips, or a label has no column in the store.
    """
    if not 0 <= minimum_coverage <= 1:
        raise ValueError(f"minimum_coverage={minimum_coverage} must be from 0 to 1")
    count = known = 0
    sample = EvenSample()
    remaining = iter(clips)
    while batch := list(itertools.islice(remaining, 4096)):
        found = store.rows([clip_id for clip_id, _ in batch]).tolist()
        count += len(batch)
        known += sum(row >= 0 for row in found)
        for row, (clip_id, classes) in zip(found, batch, strict=True):
            if _has_labels(store, clip_id, classes) and row >= 0:
                sample.add((row, list(classes)))
    if not count:
        raise ValueError("clips is empty; give a pair of id and classes for each clip")
    rows = np.array([row for row, _ in sample.items], dtype=np.int64)
    scores = store.clip_logits(rows)
    report = StoreReport(
        store=str(store.path),
        clips=count,
        coverage=known / count,
        minimum_coverage=minimum_coverage,
        labels_match=(
            None
            if labels_sha256 is None
            else labels_sha256 == store.manifest.labels_sha256
        ),
        labelled=len(rows),
        sigmas=0.0,
        aligned=None,
        blocks=0,
        bad_stretch=None,
        classes_match=num_classes in (None, store.manifest.num_classes),
        are_probabilities=_are_probabilities(store),
        frames=frames_in_words(store.manifest),
        not_finite=_not_finite(store, rows, scores),
    )
    if report.not_finite:
        return report
    if len(rows) < MIN_LABELLED:
        return report
    marks = np.zeros((len(rows), store.manifest.num_classes), np.float32)
    for mark, (_, classes) in zip(marks, sample.items, strict=True):
        mark[classes] = 1.0
    shuffled = _Shuffled(_standardise(scores), marks)
    everything = np.arange(len(rows))
    if shuffled.deviation(everything) < MIN_DEVIATION:  # the same labels everywhere
        return report._replace(labelled=0)
    sigmas = shuffled.sigmas(everything)
    blocks = _block_count(len(rows), sigmas)
    bad = _first_bad_stretch(store, rows, shuffled, blocks, sigmas)
    enough = max(MIN_SIGMAS, MIN_EFFECT * math.sqrt(len(rows)))
    return report._replace(
        sigmas=sigmas,
        aligned=sigmas >= enough and bad is None,
        blocks=blocks,
        bad_stretch=bad if sigmas >= enough else None,
        pairs_right=shuffled.pairs_right(),
    )


def look_like_probabilities(numbers: np.ndarray) -> bool:
    """Whether all numbers are from 0 to 1, which many logits never are.

    If all numbers are the same, as an untrained network's may be, returns False.

    Example
    -------
    >>> look_like_probabilities(np.linspace(0.0, 1.0, 20))
    True
    >>> look_like_probabilities(np.zeros(20))
    False
    """
    if numbers.size < MIN_NUMBERS:
        return False
    lowest, highest = numbers.min(), numbers.max()
    return bool(0 <= lowest < highest <= 1)


def _looked_at(store: LogitsStore) -> np.ndarray:
    """Returns rows that are spread over the store; of frames, fewer."""
    if not len(store):
        return np.empty(0, np.int64)
    number = LOOKED_AT if store.manifest.num_frames is None else FRAMES_LOOKED_AT
    return np.unique(np.linspace(0, len(store) - 1, number).astype(int))


def _are_probabilities(store: LogitsStore) -> bool:
    return look_like_probabilities(store.logits(_looked_at(store)))


def _not_finite(
    store: LogitsStore, rows: np.ndarray, scores: np.ndarray
) -> tuple[str, ...]:
    """Returns the clips with logits that are not finite, of all rows that are read."""
    bad = {*rows[~np.isfinite(scores).all(axis=1)].tolist()}
    spread = _looked_at(store)
    bad |= {*spread[~np.isfinite(store.clip_logits(spread)).all(axis=1)].tolist()}
    return tuple(store.clip(row)[0] for row in sorted(bad))


def frames_in_words(manifest: Manifest) -> str | None:
    """Says which frames a store has; None: logits of clips.

    Example
    -------
    >>> about = {"teacher_sha256": None, "labels_sha256": "0", "num_classes": 447}
    >>> about |= {"sample_rate": 16000, "clip_seconds": 10.0, "num_frames": 250}
    >>> frames_in_words(Manifest("fmn10", frame_seconds=0.04, **about))
    '447 classes in 250 frames of 0.04 s'
    """
    if manifest.num_frames is None:
        return None
    weak = " and in the whole clip" if manifest.has_weak else ""
    return (
        f"{manifest.num_classes} classes in {manifest.num_frames} frames of "
        f"{manifest.frame_seconds:g} s{weak}"
    )


class _Shuffled:
    """Scores of clips, and their distribution if the rows were shuffled."""

    def __init__(self, scores: np.ndarray, marks: np.ndarray) -> None:
        # For 2 x 10^4 clips and 527 classes, each of these takes 42 MB.
        self.scores = scores - scores.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.marks = marks  # [B, K], 1 where labelled
        self.covariance = self.scores.T @ self.scores / (len(scores) - 1)  # [K, K]
        self.clip_scores = (marks * self.scores).sum(axis=1)
        self.clip_variances = (marks @ self.covariance * marks).sum(axis=1)

    def deviation(self, chosen: np.ndarray) -> float:
        """Computes the standard deviation of the summed scores of the chosen clips if
        their rows were drawn at random from all; the mean is 0."""
        total = self.marks[chosen].sum(axis=0, dtype=np.float64)
        shared = total @ self.covariance @ total / len(self.marks)
        variance = self.clip_variances[chosen].sum(dtype=np.float64) - shared
        return math.sqrt(max(float(variance), 0.0))

    def sigmas(self, chosen: np.ndarray) -> float:
        """Computes by how many sigmas the chosen clips exceed rows drawn from all."""
        score = float(self.clip_scores[chosen].sum(dtype=np.float64))
        deviation = self.deviation(chosen)
        return score / deviation if deviation > MIN_DEVIATION else 0.0

    def pairs_right(self) -> float:
        """Computes how often a clip's own labels score higher than another clip's.

        Counts pairs without a common label; returns 1 if there are none.
        """
        draws = np.random.default_rng(0)
        shares = self.marks / self.marks.sum(axis=1, keepdims=True)
        own = (shares * self.scores).sum(axis=1)
        right = total = 0.0
        for _ in range(DRAWS):
            other = draws.permutation(len(own))
            apart = ~(self.marks * self.marks[other]).any(axis=1)
            margin = (own - (shares[other] * self.scores).sum(axis=1))[apart]
            right += float((margin > 0).sum() + 0.5 * (margin == 0).sum())
            total += len(margin)
        return right / total if total else 1.0

    def sigmas_within(self, chosen: np.ndarray) -> float:
        """Computes by how many sigmas the chosen clips exceed their own rows shuffled:
        0 for clips of one class, and more than ``sigmas`` where one class prevails."""
        inside = _Shuffled(self.scores[chosen], self.marks[chosen])
        return inside.sigmas(np.arange(len(chosen)))


def _standardise(logits: np.ndarray) -> np.ndarray:
    scores = np.array(logits, np.float32)
    scores -= scores.mean(axis=0, dtype=np.float64)
    spread = scores.std(axis=0, dtype=np.float64)
    # A class with the same logit for every clip carries no information.
    scores /= np.where(spread > 1e-6, spread, np.inf)
    return np.clip(scores, -Z_LIMIT, Z_LIMIT, out=scores)


def _has_labels(store: LogitsStore, clip_id: str, classes: Sequence[int]) -> bool:
    """Whether a clip has labels; refuses those that are no columns of the store."""
    num_classes = store.manifest.num_classes
    try:
        legal = all(0 <= operator.index(index) < num_classes for index in classes)
    except TypeError:
        legal = False
    if not legal:
        raise ValueError(
            f"clip {clip_id!r} has classes {str(classes)[:80]}; they must be integers "
            f"from 0 to {num_classes - 1}, so give the indices of the teacher's label "
            "table"
        )
    return len(classes) > 0


def _block_count(clips: int, sigmas: float) -> int:
    """Returns the number of blocks, limited by the clips and the teacher's strength."""
    # Sigmas grow with the square root of the number of clips.
    by_strength = int((max(sigmas, 0.0) / EXPECTED_BLOCK_SIGMAS) ** 2)
    if sigmas >= MIN_SIGMAS:
        by_strength = max(by_strength, 2)
    return max(1, min(max(clips // MIN_BLOCK, 2), MAX_BLOCKS, by_strength))


def _first_bad_stretch(
    store: LogitsStore,
    rows: np.ndarray,
    shuffled: _Shuffled,
    blocks: int,
    sigmas: float,
) -> Stretch | None:
    # The halves of a small set are judged by the sigmas that each should have: a
    # misaligned half has 0, a correct one has these, each within about 1.
    needed = min(BLOCK_SIGMAS, 0.4 * sigmas / math.sqrt(blocks))
    # A wrong index shows in the order of the rows, a wrong data set in its own order.
    orders = {"data set": np.arange(len(rows)), "store": np.argsort(rows)}
    for name, order in orders.items():
        for block in np.array_split(order, blocks):
            found = shuffled.sigmas(block)
            if blocks > 1 and found < needed:
                found = max(found, shuffled.sigmas_within(block))
            if blocks > 1 and found < needed:
                first, last = (store.clip(int(rows[i]))[0] for i in block[[0, -1]])
                return Stretch(first, last, name, found)
    return None
