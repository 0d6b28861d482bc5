"""Stores the logits of a teacher, or of an ensemble, for every clip of a data set.

> python recipes/dump_teacher_logits.py hparams/dump_teacher_logits.yaml \
      --dataset PATH --split bal_train --teachers mn40_as_ext
> torchrun --nproc_per_node 8 recipes/dump_teacher_logits.py ... (as before)

With `--frames True` they are those of every frame, for `audioset_strong.py`.

Rerun the same command to resume an interrupted run, with any number of processes. Run
it with another split or data set to append that to the same store.
"""

import sys
from collections.abc import Iterable
from typing import Any

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process

from efficientat_plugin.data.labels import LabelTable, vocabulary_of
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.skipped import TooManyUnreadable
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.support.launch import load_hparams, parse_and_join, start
from efficientat_plugin.teachers.load import open_teachers
from efficientat_plugin.teachers.store.dump import fill_store
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import verify


def main(argv: list[str]) -> None:
    """Fills the store that the YAML names, then verifies it."""
    hparams_file, run_opts, overrides = parse_and_join(argv)
    hparams = load_hparams(hparams_file, overrides)
    device = run_opts.device or sb.utils.distributed.infer_device()
    try:
        rows = hparams["load_rows"]()
    except FileNotFoundError as error:
        sys.exit(f"--dataset PATH and --split NAME are needed: {error}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    try:
        teacher, labels = open_teacher(hparams)
        labels = vocabulary_of(labels)
        scored = fill_store(
            hparams["store"],
            hparams["teachers"],
            teacher.to(device),
            labels,
            rows,
            hparams["clip_seconds"],
            device,
            hparams["max_unreadable_share"],
            hparams["short_clips"],
            batch_size=hparams["batch_size"],
            precision=run_opts.precision,
            of_frames=hparams["frames"],
            num_clips=hparams["num_clips"],
            num_workers=hparams["num_workers"],
        )
        if if_main_process() and hparams["verify"]:
            check(hparams, rows, labels, scored)
    except (ImportError, OSError, ValueError, TooManyUnreadable) as error:
        sys.exit(str(error))


def open_teacher(hparams: dict[str, Any]) -> tuple[Ensemble, LabelTable]:
    """Opens the ensemble that the YAML names, with its classes."""
    weights = hparams["teacher_weights"]
    if weights is not None:
        weights = [float(weight) for weight in str(weights).split(",")]
    teacher, labels, _ = open_teachers(
        hparams["teachers"],
        hparams["labels"],
        hparams["sample_rate"],
        hparams["teacher_sample_rate"],
        weights,
        hparams["pretrained_folder"],
        hparams["teacher_options"],
    )
    return teacher, labels


def check(
    hparams: dict[str, Any],
    rows: Any,
    labels: LabelTable,
    scored: list[tuple[str, list[int]]],
) -> None:
    """Refuses a store that does not match the data it was computed from."""
    store = LogitsStore(hparams["store"])
    print(f"{hparams['store']}: {len(store)} clips")
    if hparams["streaming"] and not scored:
        print("Not verified: no clip of the stream was scored in this run")
        return
    clips: Iterable[tuple[str, list[int]]] = scored
    # A stream is read once, so only the clips that this process scored are verified.
    if not hparams["streaming"]:
        summary = summarize_rows(rows, labels)
        if summary.unknown:
            print(f"The data's labels: {summary}")
        clips = zip(summary.clip_ids, summary.indices, strict=True)
    report = verify(store, clips, labels_sha256=labels.sha256, num_classes=len(labels))
    print(report)
    report.raise_if_bad()


if __name__ == "__main__":
    start(main)
