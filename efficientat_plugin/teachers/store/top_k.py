"""Rows of a store: all logits of a clip, or the top k and one logit for the rest."""

import numpy as np

MAX_CLASSES = 1 << 16  # indices are uint16


def row_type(num_classes: int, top_k: int | None) -> np.dtype:
    """Returns the data type of a row on disk.

    Arguments
    ---------
    num_classes : int
        K.
    top_k : int or None
        Classes kept; None: all.

    Raises
    ------
    ValueError
        If that many classes cannot be kept.

    Example
    -------
    >>> row_type(527, None).itemsize, row_type(527, 20).itemsize
    (1054, 82)
    """
    if top_k is None:
        return np.dtype(("<f2", (num_classes,)))
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"top_k={top_k!r} needs at most {MAX_CLASSES} classes, and there are "
            f"{num_classes}; null keeps all of them"
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
    """Packs [B, K] float16 into B rows of ``row_type``.

    Of classes with equal logits the first is kept. The other classes are stored as the
    logit of their mean probability (sigmoid), which preserves the sum of all
    probabilities.
    """
    if top_k is None:
        return logits
    order = np.argsort(-logits, axis=1, kind="stable")
    rows = np.empty(len(logits), row_type(logits.shape[1], top_k))
    rows["classes"] = order[:, :top_k]
    rows["values"] = np.take_along_axis(logits, order[:, :top_k], axis=1)
    others = np.take_along_axis(logits, order[:, top_k:], axis=1).astype(np.float64)
    # Sums of sigmoids and of their complements, as logarithms so that none is 0.
    odds = [-np.logaddexp(0, -sign * others) for sign in (1.0, -1.0)]
    there, absent = (np.logaddexp.reduce(log, axis=1) for log in odds)
    rows["rest"] = there - absent
    return rows


def unpack(rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Unpacks B rows of ``row_type`` into [B, K] float32; see ``pack`` for the rest.

    Raises
    ------
    ValueError
        If a row has a class that does not exist.

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
            f"a row has class {classes.max()} of {num_classes}, so it is corrupt; "
            "rebuild the store"
        )
    np.put_along_axis(logits, classes, rows["values"].astype(np.float32), axis=1)
    return logits
