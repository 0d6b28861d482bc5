"""Fills a store with all processes of a run, each scoring a share of the clips."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from speechbrain.utils.distributed import get_rank, if_main_process

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.support.files import told_if_not_writable
from efficientat_plugin.support.launch import world_size
from efficientat_plugin.teachers.store.dump import refuse_another_answer, store_logits
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.merge import merge_parts, part_path
from efficientat_plugin.teachers.store.writer import StoreWriter

LONGEST_WAIT = timedelta(days=30)  # for the slowest process


def fill_store(
    path: str | Path,
    name: str,
    teacher: Ensemble,
    labels: LabelTable,
    rows: datasets.Dataset | datasets.IterableDataset,
    clip_seconds: float,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    short_clips: str = "zero_pad",
    **options: Any,
) -> list[tuple[str, list[int]]]:
    """Computes and appends the logits of all clips that are not stored yet.

    Every process of a run must call it. Each writes a part of its own, and the first
    one merges the parts, including those of a killed run. If logits are stored already,
    the teacher scores some of their clips again, in case it has changed.

    Arguments
    ---------
    path : str or Path
        Folder of the store; created if it does not exist.
    name : str
        Name of the teacher.
    teacher : Ensemble
        On ``device``; clips are read at its sample rate.
    labels : LabelTable
        Its classes.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``.
    clip_seconds : float
        Length of each clip, s.
    device : str or torch.device
    max_unreadable_share : float
        A larger share of unreadable clips is an error.
    short_clips : str
        How shorter sound is lengthened: "zero_pad" or "repeat".
    **options
        Options of ``store_logits``, e.g. ``batch_size=32``.

    Returns
    -------
    list of (str, list of int)
        As in ``store_logits``, for this process.

    Raises
    ------
    OSError, ValueError, TooManyUnreadable
        As ``StoreWriter`` and ``store_logits``; logits computed before are stored.
    """
    precision = options.get("precision", "fp32")
    about: dict[str, Any] = {
        "teacher": name,
        "teacher_sha256": teacher.sha256(),
        "labels_sha256": labels.sha256,
        "num_classes": len(labels),
        "sample_rate": teacher.sample_rate,
        "clip_seconds": clip_seconds,
        "short_clips": short_clips,
        "precision": precision,
    }
    everyone = _group_of_processes()
    if if_main_process():
        merge_parts(path, **about)  # those of a killed run
    _wait_for(everyone)
    reader = ClipReader(labels, clip_seconds, teacher.sample_rate, short_clips)
    stored = LogitsStore(path)
    if isinstance(rows, datasets.Dataset):  # a stream can be read only once
        refuse_another_answer(teacher, rows, stored, reader, device, precision)
    rank = get_rank() or 0
    own_path = path if everyone is None else part_path(path, rank)
    with told_if_not_writable(own_path), StoreWriter(own_path, **about) as writer:
        heard = store_logits(
            writer,
            teacher,
            rows,
            reader,
            device,
            max_unreadable_share,
            stored=stored,
            rank=rank,
            world_size=world_size(),
            **options,
        )
    _wait_for(everyone)
    if if_main_process():
        with told_if_not_writable(path):
            merge_parts(path, **about)
    _wait_for(everyone)
    return heard


def _group_of_processes() -> Any:
    """Returns the group of all processes of a `torchrun`; None for a single one."""
    if world_size() == 1:
        return None
    # The default group times out after two hours of waiting.
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def _wait_for(everyone: Any) -> None:
    """Waits until all processes have called this."""
    if everyone is not None:
        torch.distributed.barrier(group=everyone)
