"""From a teacher to its stored logits: every clip once, whatever interrupts."""

from typing import Any

import datasets
import torch

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.parquet import waveform_digest
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.writer import StoreWriter


@torch.inference_mode()
def store_logits(
    writer: StoreWriter,
    teacher: Ensemble,
    rows: datasets.Dataset,
    reader: ClipReader,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    **loader_options: Any,
) -> None:
    """Appends what a teacher says of all clips that the store does not know yet.

    Arguments
    ---------
    writer : StoreWriter
        Open, of this teacher.
    teacher : Ensemble
        On ``device``.
    rows : datasets.Dataset
        From ``load_rows`` or ``read_table``; of rows with one ``video_id`` the first
        is heard.
    reader : ClipReader
        Makes clips of rows.
    device : str or torch.device
    max_unreadable_share : float
        More than this is an error.
    **loader_options
        Of ``torch.utils.data.DataLoader``.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read; what was heard is stored.
    """
    ids = rows.select_columns(["video_id"])["video_id"]
    first_row = {str(clip_id): row for row, clip_id in reversed(list(enumerate(ids)))}
    if len(first_row) < len(ids):
        print(
            f"{len(ids) - len(first_row)} rows repeat the video_id of another; the "
            "first of each is heard"
        )
    remaining = sorted(row for name, row in first_row.items() if name not in writer)
    stored = len(first_row) - len(remaining)
    print(f"{stored} of {len(first_row)} clips are stored already")
    clips = Clips(rows.select(remaining), reader)
    for batch in read_batches(clips, "teacher", max_unreadable_share, **loader_options):
        logits = teacher(batch.waveform.to(device)).logits.float().cpu()
        digests = [waveform_digest(clip.numpy()) for clip in batch.waveform]
        writer.append(batch.clip_id, logits, digests)
