"""A store filled by all processes of a run, each with a share of the clips."""

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

LONGEST_WAIT = timedelta(days=30)  # for the process that has most to hear


def fill_store(
    path: str | Path,
    name: str,
    teacher: Ensemble,
    labels: LabelTable,
    rows: datasets.Dataset | datasets.IterableDataset,
    clip_seconds: float,
    device: str | torch.device = "cpu",
    max_unreadable_share: float = 0.01,
    top_k: int | None = None,
    short_clips: str = "zero_pad",
    **options: Any,
) -> list[tuple[str, list[int]]]:
    """Appends the logits of all clips that a store does not know yet.

    To be called by every process of a run. Each writes a part of its own, and the
    first of them merges the parts, those of a run that was killed too. Where logits are
    stored already, the teacher is asked about some clips again, in case it changed.

    Arguments
    ---------
    path : str or Path
        Of the store; made if need be.
    name : str
        What the teacher is called.
    teacher : Ensemble
        On ``device``; clips are read at its sample rate.
    labels : LabelTable
        What its classes are.
    rows : datasets.Dataset or datasets.IterableDataset
        From ``load_rows`` or ``read_table``.
    clip_seconds : float
        What it hears of each clip.
    device : str or torch.device
    max_unreadable_share : float
        More than this is an error.
    top_k : int or None
        Classes to keep of each clip; None: all.
    short_clips : str
        How shorter sound is lengthened: "zero_pad" or "repeat".
    **options
        Of ``store_logits``, as ``batch_size=32``.

    Returns
    -------
    list of (str, list of int)
        As ``store_logits``, of this process.

    Raises
    ------
    OSError, ValueError, TooManyUnreadable
        As ``StoreWriter`` and ``store_logits``; what was heard is stored.
    """
    precision = options.get("precision", "fp32")
    about: dict[str, Any] = {
        "teacher": name,
        "teacher_sha256": teacher.sha256(),
        "labels_sha256": labels.sha256,
        "num_classes": len(labels),
        "sample_rate": teacher.sample_rate,
        "clip_seconds": clip_seconds,
        "top_k": top_k,
        "short_clips": short_clips,
        "precision": precision,
    }
    everyone = _group_of_processes()
    if if_main_process():
        merge_parts(path, **about)  # of a run that was killed
    _wait_for(everyone)
    reader = ClipReader(labels, clip_seconds, teacher.sample_rate, short_clips)
    stored = LogitsStore(path)
    if isinstance(rows, datasets.Dataset):  # a stream passes once
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
    """The processes of a `torchrun`; None where there is one alone."""
    if world_size() == 1:
        return None
    # The group of the launch gives up on those that are slower after two hours.
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def _wait_for(everyone: Any) -> None:
    """Until all processes are here."""
    if everyone is not None:
        torch.distributed.barrier(group=everyone)
