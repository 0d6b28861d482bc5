"""Writes constants and reference vectors for ports to C++, Kotlin or firmware.

``NAME.golden.npz`` contains a waveform with its log-mel, logits, embedding and
probabilities, as computed by PyTorch. ``NAME.front_end.json`` and ``NAME.front_end.h``
contain the front end's settings, its window, and its mel bank without the zeros.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.log_mel import front_end_settings
from efficientat_plugin.export.source import Source
from efficientat_plugin.features import LogMel

GOLDEN_SECONDS = 2.0
NUMBERS_OF_A_LINE = 6


def golden_vectors(source: Source) -> dict[str, NDArray[np.float32]]:
    """Computes the reference vectors: a waveform and PyTorch's results for it."""
    rate = source.log_mel.sample_rate
    num_samples = round(GOLDEN_SECONDS * rate)
    if source.num_frames is not None:
        num_samples = source.clip_samples
    waveform = synthesised(num_samples, rate)[None]
    return {"waveform": waveform} | source.outputs(waveform)


def front_end_constants(log_mel: LogMel) -> dict[str, Any]:
    """Returns the settings, window and mel bank that a port needs.

    Example
    -------
    >>> constants = front_end_constants(LogMel())
    >>> constants["band_start"][:3], constants["band_length"][:3]
    ([1, 1, 2], [1, 1, 1])
    """
    settings = front_end_settings(log_mel)
    left = (log_mel.n_fft - log_mel.win_length) // 2
    window = log_mel.window[left : left + log_mel.win_length]
    starts, lengths = [], []
    weights: list[float] = []
    for band in log_mel.mel_bank.numpy(force=True):
        used = np.flatnonzero(band)
        start, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        starts.append(start)
        lengths.append(end - start)
        weights.extend(float(weight) for weight in band[start:end])
    return settings._asdict() | {
        "window": [float(value) for value in window],
        "band_start": starts,
        "band_length": lengths,
        "band_weights": weights,
    }


def write_golden(folder: Path, stem: str, source: Source) -> list[Path]:
    """Writes the three files and returns their paths."""
    constants = front_end_constants(source.log_mel)
    paths = [
        folder / f"{stem}.{ending}"
        for ending in ("golden.npz", "front_end.json", "front_end.h")
    ]
    np.savez_compressed(paths[0], **golden_vectors(source))  # type: ignore[arg-type]
    paths[1].write_text(json.dumps(constants) + "\n", encoding="utf-8")
    paths[2].write_text(header(constants), encoding="utf-8")
    return paths


def header(constants: dict[str, Any]) -> str:
    """Formats the constants as a C99 header.

    Example
    -------
    >>> print(header(front_end_constants(LogMel())).splitlines()[9])
    #define EFFICIENTAT_SAMPLE_RATE 32000
    """
    lines = [
        "/* The log-mel front end, written by efficientat export.",
        " *   y[n] = x[n + 1] - PRE_EMPHASIS * x[n], N - 1 samples, both ends mirrored",
        " *   (without the outermost sample) by N_FFT / 2;",
        " *   frame t is y[t * HOP_LENGTH ...], N_FFT samples, of which the middle",
        " *   WIN_LENGTH are windowed, the others 0; T = 1 + (N - 1) / HOP_LENGTH;",
        " *   power[k] = |DFT(frame)[k]|^2; band b = the sum of BAND_LENGTH[b] weights",
        " *   times power from BAND_START[b] on; log_mel = (log(band + LOG_FLOOR)",
        " *   + OFFSET) / SCALE, or log(max(band, LOG_FLOOR)) unless it is added. */",
        "#pragma once",
    ]
    plain = dict(constants)
    plain["log_floor_is_added"] = plain.pop("log_floor_mode") == "add"
    for name, value in plain.items():
        label = f"EFFICIENTAT_{name.upper()}"
        if isinstance(value, list):
            kind = "float" if isinstance(value[0], float) else "int"
            lines += [f"static const {kind} {label}[{len(value)}] = {{"]
            for start in range(0, len(value), NUMBERS_OF_A_LINE):
                row = value[start : start + NUMBERS_OF_A_LINE]
                lines.append("  " + " ".join(f"{_literal(each)}," for each in row))
            lines.append("};")
        else:
            lines.append(f"#define {label} {_literal(value)}")
    return "\n".join(lines) + "\n"


def _literal(value: float | int | bool) -> str:
    if not isinstance(value, float):
        return str(int(value))
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
