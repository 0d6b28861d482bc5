"""Stores what a teacher, or an ensemble of teachers, says of every clip of a data set.

> python recipes/dump_teacher_logits.py hparams/dump_teacher_logits.yaml \
      --dataset PATH --split bal_train --teachers mn40_as_ext
> torchrun --nproc_per_node 8 recipes/dump_teacher_logits.py ... (as before)

Interrupted, the same command goes on where it stopped, with as many processes as it
likes; another split or data set is appended to the same store by naming it.
"""

import sys
from datetime import timedelta
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import get_rank, if_main_process

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.rows import labels_of_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.launch import load_hparams, parse_and_join, world_size
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.dump import store_logits
from efficientat_plugin.teachers.members import open_teachers
from efficientat_plugin.teachers.merge import merge_parts, part_path
from efficientat_plugin.teachers.store import LogitsStore
from efficientat_plugin.teachers.verify import verify
from efficientat_plugin.teachers.writer import StoreWriter

LONGEST_WAIT = timedelta(days=30)  # for the process that has most to hear


def main(argv: list[str]) -> None:
    """Fills the store that the YAML names, then verifies it."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    try:
        rows = hparams["load_rows"]()
    except FileNotFoundError as error:
        sys.exit(f"--dataset PATH and --split NAME are needed: {error}")
    device = run_opts.device or sb.utils.distributed.infer_device()
    try:
        teacher, labels = open_teacher(hparams)
        teacher = teacher.to(device)
        heard = fill(hparams, rows, teacher, labels, device, run_opts.precision)
        if if_main_process() and hparams["verify"]:
            check(hparams, rows, labels, heard)
    except (OSError, ValueError, TooManyUnreadable) as error:
        sys.exit(str(error))


def open_teacher(hparams: dict[str, Any]) -> tuple[Ensemble, LabelTable]:
    """The ensemble that the YAML names, and what its classes are."""
    weights = hparams["teacher_weights"]
    if weights is not None:
        weights = [float(weight) for weight in str(weights).split(",")]
    return open_teachers(
        hparams["teachers"],
        hparams["labels"],
        hparams["sample_rate"],
        hparams["teacher_sample_rate"],
        weights,
        hparams["pretrained_folder"],
    )


def fill(
    hparams: dict[str, Any],
    rows: Any,
    teacher: Ensemble,
    labels: LabelTable,
    device: str,
    precision: str,
) -> list[tuple[str, list[int]]]:
    """Appends the logits of all clips that the store does not know yet."""
    path, rank = hparams["store"], get_rank() or 0
    about = {
        "teacher": hparams["teachers"],
        "teacher_sha256": teacher.sha256(),
        "labels_sha256": labels.sha256,
        "num_classes": len(labels),
        "sample_rate": teacher.sample_rate,
        "clip_seconds": hparams["clip_seconds"],
        "top_k": hparams["top_k"],
    }
    everyone = group_of_processes()
    if if_main_process():
        merge_parts(path, **about)  # of a run that was killed
    wait_for(everyone)
    own_path = path if everyone is None else part_path(path, rank)
    with StoreWriter(own_path, **about) as writer:
        heard = store_logits(
            writer,
            teacher,
            rows,
            ClipReader(labels, hparams["clip_seconds"], teacher.sample_rate),
            device,
            hparams["max_unreadable_share"],
            stored=LogitsStore(path),
            batch_size=hparams["batch_size"],
            precision=precision,
            rank=rank,
            world_size=world_size(),
            num_clips=hparams["num_clips"],
            num_workers=hparams["num_workers"],
        )
    wait_for(everyone)
    if if_main_process():
        merge_parts(path, **about)
    return heard


def group_of_processes() -> Any:
    """The processes of a `torchrun`; None where there is one alone."""
    if world_size() == 1:
        return None
    # The group of the launch gives up on those that are slower after two hours.
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def wait_for(everyone: Any) -> None:
    """Until all processes are here."""
    if everyone is not None:
        torch.distributed.barrier(group=everyone)


def check(
    hparams: dict[str, Any],
    rows: Any,
    labels: LabelTable,
    heard: list[tuple[str, list[int]]],
) -> None:
    """Refuses a store that does not fit the data it was made of."""
    store = LogitsStore(hparams["store"])
    print(f"{hparams['store']}: {len(store)} clips")
    if hparams["streaming"] and not heard:
        print("Not verified: no clip of the stream was heard in this run")
        return
    # A stream passes once: of it, what this process has just heard is looked at.
    clips = heard if hparams["streaming"] else labels_of_rows(rows, labels)
    report = verify(store, clips, labels_sha256=labels.sha256)
    print(report)
    report.raise_if_bad()


if __name__ == "__main__":
    main(sys.argv[1:])
