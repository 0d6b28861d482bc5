"""Clips as they are, batch after batch, with progress: to be scored or listened to."""

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
    """Reads clips once, in order; those that cannot be read are named and left out.

    Arguments
    ---------
    clips : Clips or ClipStream
    description : str or None
        Of the progress bar; None: no bar.
    max_unreadable_share : float
        More than this is an error.
    num_clips : int or None
        To come, for the bar; None: all of them, or nobody knows of a stream.
    already_read : int
        Clips of the same data that were read before, in an interrupted run: the share
        is of all of them.
    **loader_options
        Of ``torch.utils.data.DataLoader``, as ``batch_size=32``.

    Yields
    ------
    ClipBatch
        With one clip at least.

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
            # Each clip comes once: of millions a count takes less than their names.
            skipped.already_read += len(batch.clip_id)
            skipped.add(batch.skipped, read=())
            if batch.clip_id:
                yield batch
            bar.update(len(batch.clip_id) + len(batch.skipped))
    skipped.finish_pass()
