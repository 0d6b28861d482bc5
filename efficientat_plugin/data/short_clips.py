"""Clips that are shorter than a model is used to."""

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.contracts import SHORT_CLIPS


def lengthened(
    samples: NDArray[np.float32], num_samples: int, how: str
) -> NDArray[np.float32]:
    """A short sound made as long as a model is used to; longer ones are left alone.

    Arguments
    ---------
    samples : NDArray
        [N], at least one.
    num_samples : int
        To reach.
    how : str
        "repeat" plays it again and again, "zero_pad" adds silence behind it,
        "as_is" leaves it short.

    Returns
    -------
    NDArray
        [max(N, num_samples)], or [N] with "as_is".

    Raises
    ------
    ValueError
        For another ``how``.

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
