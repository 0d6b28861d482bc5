"""Lengthens clips that are shorter than a model expects."""

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import SHORT_CLIPS


def lengthened(
    samples: NDArray[np.float32], num_samples: int, how: str
) -> NDArray[np.float32]:
    """Lengthens a short sound; one that is long enough stays as it is.

    Arguments
    ---------
    samples : NDArray
        [N], at least one.
    num_samples : int
        Length to reach.
    how : str
        "repeat" repeats the sound, "zero_pad" appends silence, "as_is" leaves it
        short.

    Returns
    -------
    NDArray
        [max(N, num_samples)], or [N] with "as_is".

    Raises
    ------
    ValueError
        For any other ``how``.

    Example
    -------
    >>> lengthened(np.array([1.0, 2.0], np.float32), 5, "repeat")
    array([1., 2., 1., 2., 1.], dtype=float32)
    """
    if how not in SHORT_CLIPS:
        raise ValueError(f"short_clips={how!r}; choose one of {', '.join(SHORT_CLIPS)}")
    missing = num_samples - len(samples)
    if missing <= 0 or how == "as_is":
        return samples
    if how == "repeat":
        return np.resize(samples, num_samples)
    return np.pad(samples, (0, missing))
