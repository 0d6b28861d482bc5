"""What is said of a sound, as a whole and window by window."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.data.targets import LabelTable


class Tag(NamedTuple):
    """A class that a sound may have."""

    name: str
    mid: str  # AudioSet's id of it; of other classes the name again
    probability: float


class ScanWindow(NamedTuple):
    """What a window of a long sound sounds like."""

    start_seconds: float
    end_seconds: float
    probabilities: NDArray[np.float32]  # [K]


def likeliest(
    labels: LabelTable,
    probabilities: NDArray[np.float32],
    top_k: int | None,
    threshold: float,
) -> list[Tag]:
    """Classes of [K] probabilities, the likeliest first.

    Arguments
    ---------
    labels : LabelTable
        What the classes are.
    probabilities : NDArray
        [K]
    top_k : int or None
        Classes to give, at most; None: all.
    threshold : float
        Only those at least as probable.

    Returns
    -------
    list of Tag

    Example
    -------
    >>> labels = LabelTable(["/m/a", "/m/b"], ["A", "B"])
    >>> [tag.name for tag in likeliest(labels, np.array([0.25, 0.5]), 2, 0.0)]
    ['B', 'A']
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [
        Tag(labels.names[k], labels.mids[k], float(probabilities[k]))
        for k in order
        if probabilities[k] >= threshold
    ]
