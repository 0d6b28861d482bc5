"""Reads clips once, in order, as batches, with a progress bar."""

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from efficientat_plugin.contracts import ClipBatch
from efficientat_plugin.data.clips import Clips, ClipStream, collate
from efficientat_plugin.data.skipped import SkippedClips


def read_batches(
    clips: Clips | ClipStream,
    description: str | None = None,
    max_unreadable_share: float = 0.01,
    num_clips: int | None = None,
    already_read: int = 0,
    **loader_options: Any,
) -> Iterator[ClipBatch]:
    """Reads clips once, in order; unreadable ones are reported and left out.

    Arguments
    ---------
    clips : Clips or ClipStream
    description : str or None
        Label of the progress bar; None: no bar.
    max_unreadable_share : float
        A larger share of unreadable clips, from 0 to 1, is an error.
    num_clips : int or None
        Total of the bar; None: all clips, or unknown for a stream.
    already_read : int
        Clips of the same data that an interrupted run has read; they count in the
        share.
    **loader_options
        Options of ``torch.utils.data.DataLoader``, such as ``batch_size=32``.

    Yields
    ------
    ClipBatch
        With at least one clip.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read.

    Example
    -------
    >>> import io, datasets, soundfile
    >>> from efficientat_plugin.data.decoding import ClipReader
    >>> from efficientat_plugin.data.labels import LabelTable
    >>> file = io.BytesIO()
    >>> soundfile.write(file, [0.0, 0.1], 32000, format="WAV")
    >>> row = {"video_id": "a", "audio": {"bytes": file.getvalue()}, "labels": ["x"]}
    >>> rows = datasets.Dataset.from_list([row])
    >>> clips = Clips(rows, ClipReader(LabelTable(["x"], ["X"]), clip_seconds=1.0))
    >>> [tuple(batch.waveform.shape) for batch in read_batches(clips)]
    [(1, 32000)]
    """
    skipped = SkippedClips(max_unreadable_share, already_read)
    loader = torch.utils.data.DataLoader(clips, collate_fn=collate, **loader_options)
    hidden = description is None
    if num_clips is None and isinstance(clips, Clips):
        num_clips = len(clips)
    with tqdm(total=num_clips, desc=description, unit="clip", disable=hidden) as bar:
        for batch in loader:
            # Each clip comes once, so that a count will do; ids would take memory.
            skipped.already_read += len(batch.clip_id)
            skipped.add(batch.skipped, read=())
            if batch.clip_id:
                yield batch
            bar.update(len(batch.clip_id) + len(batch.skipped))
    skipped.finish_pass()
