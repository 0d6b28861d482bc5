"""From scores over time to events: smoothing and thresholds.

What labels, evaluation and detection have to do alike stands here, in numpy alone. An
event is ``(start, end, label)`` with times in seconds from the start of its clip.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

TimedLabel = tuple[float, float, str]  # start, end, class

FRAME_SECONDS = 0.04  # between the frames of scores that sound event detectors return


def median_filter(scores: NDArray, width: int) -> NDArray:
    """Replaces each score by the median of those around it in time.

    Both ends are reflected, with the first and the last frame doubled, as by "reflect"
    in ``scipy.ndimage``: d c b a | a b c d | d c b a.

    Arguments
    ---------
    scores : array
        Probabilities or logits, [T', K]. The filter commutes with the sigmoid.
    width : int
        Frames that a median is over: odd, at least 1.

    Returns
    -------
    array
        [T', K], of the same type.

    Raises
    ------
    ValueError
        If the width is even or not positive, or the scores are not [T', K].

    Source
    ------
    EfficientSED and PretrainedSED filter with 9 frames of 40 ms before evaluation.

    Example
    -------
    >>> median_filter(np.array([[0.0], [1.0], [0.0], [1.0], [1.0]]), width=3)[:, 0]
    array([0., 0., 1., 1., 1.])
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(
            f"a median filter of {width} frames has no middle frame; choose an odd "
            f"width of at least 1"
        )
    if scores.ndim != 2:
        raise ValueError(
            f"scores have the shape {scores.shape}; give [frames, classes]"
        )
    if width == 1 or not len(scores):
        return scores.copy()
    half = width // 2
    exact = scores.astype(np.float32) if scores.dtype == np.float16 else scores
    padded = np.pad(exact, ((half, half), (0, 0)), mode="symmetric")
    # Frame t of row i is i - half frames later. Exchanging rows until the upper half is
    # sorted is several times as fast as sorting each window.
    rows = [padded[i : i + len(scores)] for i in range(width)]
    for last in range(width - 1, half - 1, -1):
        for i in range(last):
            one, next_one = rows[i], rows[i + 1]
            rows[i], rows[i + 1] = np.minimum(one, next_one), np.maximum(one, next_one)
    return rows[half].astype(scores.dtype, copy=False)


def frame_times(
    num_frames: int, clip_seconds: float, frame_seconds: float = FRAME_SECONDS
) -> NDArray[np.float64]:
    """Returns the starts of the frames of a clip and the end of the last: [T' + 1].

    Frame k starts at ``k * frame_seconds``. Times end with the clip, so that frames
    behind its end have no length.

    Example
    -------
    >>> frame_times(4, clip_seconds=0.1)
    array([0.  , 0.04, 0.08, 0.1 , 0.1 ])
    """
    # 0.04 * 3 is 0.12 plus a rounding error, which would leave a frame of that length.
    times = np.round(np.arange(num_frames + 1) * frame_seconds, 9)
    return np.minimum(times, clip_seconds)


def events_above(
    scores: NDArray,
    threshold: ArrayLike,
    classes: Sequence[str],
    times: NDArray[np.float64],
) -> list[TimedLabel]:
    """Returns the events of a clip: where the scores of a class exceed a threshold.

    Arguments
    ---------
    scores : array
        [T', K].
    threshold : float or array
        One for all classes, or [K]. A score that equals it does not exceed it.
    classes : sequence of str
        Names of the K classes.
    times : array
        [T' + 1] seconds: ``frame_times``. Frames without a length are left out.

    Returns
    -------
    list[TimedLabel]
        Sorted by start, then by end and label.

    Example
    -------
    >>> scores = np.array([[0.2, 0.9], [0.8, 0.9], [0.7, 0.1]])
    >>> events_above(scores, 0.5, ["dog", "car"], frame_times(3, clip_seconds=10.0))
    [(0.0, 0.08, 'car'), (0.04, 0.12, 'dog')]
    """
    active = (np.asarray(scores) > threshold) & (np.diff(times) > 0)[:, None]
    edges = np.diff(active.T.astype(np.int8), axis=1, prepend=0, append=0)
    label, first = np.nonzero(edges > 0)
    _, end = np.nonzero(edges < 0)
    starts, ends = times[first].tolist(), times[end].tolist()
    names = (classes[k] for k in label.tolist())
    return sorted(zip(starts, ends, names, strict=True))
