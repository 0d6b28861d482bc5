"""Stores what a student, or an ensemble of students, says of every clip of a data set.

> python recipes/dump_teacher_logits.py hparams/dump_teacher_logits.yaml \
      --dataset PATH --split bal_train --teachers mn40_as_ext

Interrupted, the same command goes on where it stopped; another split or data set is
appended to the same store by naming it.
"""

import sys
from typing import Any

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.rows import summarize_rows
from efficientat_plugin.data.targets import audioset_labels
from efficientat_plugin.students.ensemble import Ensemble, load_ensemble
from efficientat_plugin.teachers.dump import store_logits
from efficientat_plugin.teachers.store import LogitsStore
from efficientat_plugin.teachers.verify import verify
from efficientat_plugin.teachers.writer import StoreWriter


def main(argv: list[str]) -> None:
    """Fills the store that the YAML names, then verifies it."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    try:
        rows = hparams["load_rows"]()
    except FileNotFoundError as error:
        sys.exit(f"--dataset PATH and --split NAME are needed: {error}")
    device = run_opts.device or sb.utils.distributed.infer_device()
    teacher = load_ensemble(
        hparams["teachers"].split(","), hparams["pretrained_folder"]
    )
    fill(hparams, rows, teacher.to(device), device)
    check(hparams["store"], rows)


def fill(hparams: dict[str, Any], rows: Any, teacher: Ensemble, device: str) -> None:
    """Appends the logits of all clips that the store does not know yet."""
    labels = audioset_labels()
    with StoreWriter(
        hparams["store"],
        teacher=hparams["teachers"],
        teacher_sha256=teacher.sha256(),
        labels_sha256=labels.sha256,
        num_classes=len(labels),
        sample_rate=hparams["sample_rate"],
        clip_seconds=hparams["clip_seconds"],
    ) as writer:
        store_logits(
            writer,
            teacher,
            rows,
            ClipReader(labels, hparams["clip_seconds"], hparams["sample_rate"]),
            device,
            hparams["max_unreadable_share"],
            batch_size=hparams["batch_size"],
            num_workers=hparams["num_workers"],
        )


def check(path: str, rows: Any) -> None:
    """Refuses a store that does not fit the data it was made of."""
    summary = summarize_rows(rows, audioset_labels())
    store = LogitsStore(path)
    print(f"{path}: {len(store)} clips")
    clips = zip(summary.clip_ids, summary.indices, strict=True)
    report = verify(store, clips, labels_sha256=audioset_labels().sha256)
    print(report)
    report.raise_if_bad()


if __name__ == "__main__":
    main(sys.argv[1:])
