"""Rows of a store: all logits of a clip, or the highest ones and a word on the rest."""

import numpy as np

MAX_CLASSES = 1 << 16  # indices are uint16


def row_type(num_classes: int, top_k: int | None) -> np.dtype:
    """How a row stands on the disk.

    Arguments
    ---------
    num_classes : int
        K.
    top_k : int or None
        Classes kept; None: all.

    Raises
    ------
    ValueError
        If so many classes cannot be kept.

    Example
    -------
    >>> row_type(527, None).itemsize, row_type(527, 20).itemsize
    (1054, 82)
    """
    if top_k is None:
        return np.dtype(("<f2", (num_classes,)))
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"top_k={top_k!r} of {num_classes} classes cannot be kept, as there are "
            f"more than {MAX_CLASSES}; null keeps all of them"
        )
    if type(top_k) is not int or not 0 < top_k < num_classes:
        raise ValueError(
            f"top_k={top_k!r} must be an int from 1 to {num_classes - 1}, one less "
            "than the classes; null keeps all of them"
        )
    return np.dtype(
        [("values", "<f2", (top_k,)), ("classes", "<u2", (top_k,)), ("rest", "<f2")]
    )


def pack(logits: np.ndarray, top_k: int | None) -> np.ndarray:
    """[B, K] float16 as B rows of ``row_type``.

    Of classes with one logit the first is kept. What is left out is told by the logit
    of its mean probability (sigmoid), so that the sum of all probabilities stays.
    """
    if top_k is None:
        return logits
    order = np.argsort(-logits, axis=1, kind="stable")
    rows = np.empty(len(logits), row_type(logits.shape[1], top_k))
    rows["classes"] = order[:, :top_k]
    rows["values"] = np.take_along_axis(logits, order[:, :top_k], axis=1)
    others = np.take_along_axis(logits, order[:, top_k:], axis=1).astype(np.float64)
    # Sums of sigmoids and of their complements, by logarithms: none becomes 0.
    odds = [-np.logaddexp(0, -sign * others) for sign in (1.0, -1.0)]
    there, absent = (np.logaddexp.reduce(log, axis=1) for log in odds)
    rows["rest"] = there - absent
    return rows


def unpack(rows: np.ndarray, num_classes: int) -> np.ndarray:
    """B rows of ``row_type`` as [B, K] float32; ``pack`` says what fills the rest.

    Raises
    ------
    ValueError
        For a class beyond the last.

    Example
    -------
    >>> logits = np.array([[3.0, -4.0, -2.0, 1.0]], np.float16)
    >>> unpack(pack(logits, None), 4)
    array([[ 3., -4., -2.,  1.]], dtype=float32)
    >>> unpack(pack(logits, 2), 4).round(2)
    array([[ 3.  , -2.61, -2.61,  1.  ]], dtype=float32)
    """
    if rows.dtype.names is None:
        return rows.astype(np.float32).reshape(len(rows), num_classes)
    logits = np.repeat(rows["rest"].astype(np.float32)[:, None], num_classes, axis=1)
    classes = rows["classes"].astype(np.int64)
    if classes.size and classes.max() >= num_classes:
        raise ValueError(
            f"a row has class {classes.max()} of {num_classes}, so it was damaged; "
            "make the store anew"
        )
    np.put_along_axis(logits, classes, rows["values"].astype(np.float32), axis=1)
    return logits
