"""Writes clips as Parquet in AudioSet's schema, with their sound as FLAC."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from numpy.typing import ArrayLike, NDArray

from efficientat_plugin.support.interruptions import uninterrupted

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("labels", pa.list_(pa.string())),
        ("human_labels", pa.list_(pa.string())),
    ]
)

# 64 clips of 5 s are about 15 MB, which a reader holds at a time.
ROWS_PER_GROUP = 64
GROUP_BYTES = 32 * 2**20  # of sound that end a row group, however few its clips


def to_pcm(waveform: NDArray[Any]) -> NDArray[np.int16]:
    """Inverts the decoding of int16: multiplies by 32768, rounds and clips."""
    steps = np.rint(np.asarray(waveform, dtype=np.float64) * 32768)
    return np.clip(steps, -32768, 32767).astype("<i2")


def waveform_digest(waveform: ArrayLike) -> str:
    """Computes the digest of a waveform, the same before and after writing it to disk.

    Arguments
    ---------
    waveform : array-like
        [N], floating point, in [-1, 1).

    Returns
    -------
    digest : str
        The first 16 hexadecimal digits of the SHA-256 of its int16 samples.

    Raises
    ------
    ValueError
        If the waveform is not one row of floating-point samples.

    Example
    -------
    >>> waveform_digest([0.0, 0.5, -1.0])
    'b66c70b0be777700'
    """
    array = np.asarray(waveform)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"waveform_digest was given {array.dtype} of shape {array.shape}; it takes "
            "one waveform [N] of floating point in [-1, 1): divide int16 by 32768"
        )
    return hashlib.sha256(to_pcm(array).tobytes()).hexdigest()[:16]


def audioset_row(
    clip_id: str,
    waveform: ArrayLike,
    sample_rate: int,
    labels: Sequence[str] = (),
    human_labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a clip [N] as a row of ``SCHEMA``; without labels it is unlabelled."""
    flac = io.BytesIO()
    pcm = to_pcm(np.asarray(waveform))
    with uninterrupted():
        soundfile.write(flac, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    return {
        "video_id": clip_id,
        "audio": {"bytes": flac.getvalue(), "path": f"{clip_id}.flac"},
        "labels": list(labels),
        "human_labels": list(human_labels),
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows of ``SCHEMA``, a row group at a time; creates the folder."""
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for group in row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))


def row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of each row group, which a reader holds at a time."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row["audio"]["bytes"])
        if len(group) == ROWS_PER_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
