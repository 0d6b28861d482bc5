"""Builds the log-mel front end as a graph: [B, N] -> [B, F, T].

Not every runtime has the operators STFT and DFT (OpenVINO does not convert STFT).
Here the transform is two matrix products, which all runtimes have and which are faster:
a Cooley-Tukey step with ``n_fft = rows * columns``. With sample
``n = columns * i + j`` and bin ``k = p + rows * q``, the transform is one of length
``rows`` over ``i``, followed, for each ``p``, by one of length ``columns`` over ``j``.
"""

import math

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.export.graph import TO_THE_END, Graph
from efficientat_plugin.features import (
    LOG_MEL_OFFSET,
    LOG_MEL_SCALE,
    PRE_EMPHASIS,
    LogMel,
)
from efficientat_plugin.runtime.front_end import FrontEndSettings


def factors(n_fft: int) -> tuple[int, int]:
    """Factors ``n_fft`` into rows and columns that are as close as possible.

    Example
    -------
    >>> factors(1024), factors(400)
    ((32, 32), (20, 20))
    """
    rows = next(r for r in range(math.isqrt(n_fft), 0, -1) if n_fft % r == 0)
    return rows, n_fft // rows


def add_log_mel(graph: Graph, waveform: str, log_mel: LogMel) -> str:
    """Adds what ``LogMel`` computes in evaluation mode, always in float32.

    Arguments
    ---------
    graph : Graph
    waveform : str
        Value [B, N].
    log_mel : LogMel

    Returns
    -------
    str
        Value [B, F, T].
    """
    rows, columns = factors(log_mel.n_fft)
    # A window shorter than the transform has zeros at both ends, which are left out:
    # the power does not depend on the position of the sound in the transform.
    full_rows = -(-log_mel.win_length // columns)
    width = full_rows * columns
    left = (log_mel.n_fft - log_mel.win_length) // 2
    window = np.zeros((width, 1), np.float32)
    window[: log_mel.win_length, 0] = log_mel.window[left:][: log_mel.win_length]

    framed = _frames(graph, waveform, log_mel, width)  # [B, width, T]
    framed = graph.op("Mul", framed, graph.constant(window, "window"))
    framed = graph.reshape(framed, 0, full_rows, -1)  # [B, i, j * T]
    first, second = _transforms(rows, columns, full_rows)
    half = graph.op("MatMul", graph.constant(first, "dft_rows"), framed)
    half = graph.reshape(half, 0, len(second), 2 * columns, -1)  # [B, p, (re, im) j, T]
    spectrum = graph.op("MatMul", graph.constant(second, "dft_columns"), half)
    squared = graph.op("Mul", spectrum, spectrum)
    power = graph.op(
        "Add",
        graph.cut(squared, 0, columns, axis=2),
        graph.cut(squared, columns, TO_THE_END, axis=2),
    )
    power = graph.reshape(power, 0, len(second) * columns, -1)  # [B, bins, T]
    bank = _reordered_bank(log_mel, rows, columns)
    mel = graph.op("MatMul", graph.constant(bank, "mel_bank"), power)
    floor = graph.constant(np.float32(log_mel.log_floor))
    mel = graph.op("Add" if log_mel.log_floor_mode == "add" else "Max", mel, floor)
    centred = graph.op(
        "Add", graph.op("Log", mel), graph.constant(np.float32(LOG_MEL_OFFSET))
    )
    return graph.op("Div", centred, graph.constant(np.float32(LOG_MEL_SCALE)))


def _frames(graph: Graph, waveform: str, log_mel: LogMel, width: int) -> str:
    """Applies pre-emphasis and cuts into frames: [B, N] -> [B, width, T].

    The sound is reshaped to lines of one hop; a frame consists of consecutive lines,
    so nothing has to be gathered sample by sample.
    """
    hop, win_length = log_mel.hop_length, log_mel.win_length
    before = log_mel.n_fft // 2 - (log_mel.n_fft - win_length) // 2
    behind = win_length - before
    num_lines = -(-width // hop)  # of a frame
    earlier = graph.op(
        "Mul",
        graph.cut(waveform, 0, -1, axis=1),
        graph.constant(np.float32(PRE_EMPHASIS)),
    )
    sound = graph.op("Sub", graph.cut(waveform, 1, TO_THE_END, axis=1), earlier)
    sound = graph.op("Pad", sound, graph.integers(0, before, 0, behind), mode="reflect")
    # T + num_lines - 1 lines with T = 1 + (N - 1) // hop; the last is zero-padded.
    length = graph.op("Shape", waveform, start=1, end=2)
    length = graph.op("Sub", length, graph.integers(1))
    length = graph.op("Div", length, graph.integers(hop))
    length = graph.op("Add", length, graph.integers(num_lines))
    length = graph.op("Mul", length, graph.integers(hop))
    missing = max(0, num_lines * hop - win_length)
    sound = graph.op("Pad", sound, graph.integers(0, 0, 0, missing))
    sound = graph.op("Slice", sound, graph.integers(0), length, graph.integers(1))
    lines = graph.reshape(sound, 0, -1, hop)
    lines = graph.op("Transpose", lines, perm=[0, 2, 1])  # [B, hop, lines]
    parts = []
    for number in range(num_lines):
        last = number == num_lines - 1
        part = graph.cut(
            lines, number, TO_THE_END if last else number - num_lines + 1, axis=2
        )
        samples = width - number * hop
        parts.append(graph.cut(part, 0, samples, axis=1) if samples < hop else part)
    return graph.op("Concat", *parts, axis=1) if num_lines > 1 else parts[0]


def _transforms(
    rows: int, columns: int, full_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Computes the matrices over rows [(p, re, im), i] and columns [p, 2 q, 2 j].

    The factors 2 are real and imaginary part. Sound is real, so values of p above half
    the rows would be redundant.
    """
    p, q = np.arange(rows // 2 + 1), np.arange(columns)
    over_rows = np.exp(-2j * np.pi * np.outer(p, np.arange(full_rows)) / rows)
    first = np.stack([over_rows.real, over_rows.imag], axis=1)
    bins = p[:, None, None] + rows * q[None, :, None]
    turns = bins * np.arange(columns) / (rows * columns)
    over_columns = np.exp(-2j * np.pi * turns)  # [p, q, j]
    real, imaginary = over_columns.real, over_columns.imag
    second = np.concatenate(
        [
            np.concatenate([real, -imaginary], axis=2),
            np.concatenate([imaginary, real], axis=2),
        ],
        axis=1,
    )
    return (
        first.reshape(-1, full_rows).astype(np.float32),
        second.astype(np.float32),
    )


def _reordered_bank(log_mel: LogMel, rows: int, columns: int) -> NDArray[np.float32]:
    """Returns the mel bank in the transform's order of bins: [F, bins]."""
    bank = log_mel.mel_bank.numpy(force=True)
    reordered = np.zeros((log_mel.n_mels, rows // 2 + 1, columns), np.float32)
    for k in range(bank.shape[1]):
        # The bin itself, or its mirror image, which has the same power.
        found = k if k % rows <= rows // 2 else log_mel.n_fft - k
        reordered[:, found % rows, found // rows] = bank[:, k]
    return reordered.reshape(log_mel.n_mels, -1)


def front_end_settings(log_mel: LogMel) -> FrontEndSettings:
    """Returns the settings for the numpy front end and for other ports."""
    return FrontEndSettings(
        log_mel.sample_rate,
        log_mel.n_mels,
        log_mel.n_fft,
        log_mel.win_length,
        log_mel.hop_length,
        float(log_mel.f_min),
        float(log_mel.f_max),
        PRE_EMPHASIS,
        log_mel.log_floor,
        log_mel.log_floor_mode,
        log_mel.periodic_window,
        LOG_MEL_OFFSET,
        LOG_MEL_SCALE,
    )
