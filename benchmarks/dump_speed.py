"""How fast teachers are stored, from files of sound to committed logits.

> python benchmarks/dump_speed.py PATH_IN_AUDIOSET_SCHEMA --teacher mn04_as

Decoding, front end, teacher and store in one process, ``num_workers=0``. A PaSST with
untrained weights is timed beside the teacher: it takes as long as a trained one. On a
machine with other work the last column tells more. Prints a Markdown table.
"""

import argparse
import time
from tempfile import TemporaryDirectory

import datasets
import torch

from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.features import LogMel
from efficientat_plugin.students.ensemble import Ensemble, WaveformStudent
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.teachers.load import load_teacher
from efficientat_plugin.teachers.store.dump import store_logits
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.writer import StoreWriter


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="eval")
    parser.add_argument("--teacher", default="mn04_as")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clips", type=int, nargs=2, default=[128, 16], metavar="N")
    parser.add_argument("--cache", default=None)
    arguments = parser.parse_args()
    rows = load_rows(arguments.dataset, arguments.split, cache_dir=arguments.cache)
    teachers = {
        arguments.teacher: load_teacher(arguments.teacher),
        "PaSST-S, stride 10": WaveformStudent(LogMel(), PaSST()).eval(),
    }
    print("| teacher | threads | clips | clips per second | CPU seconds per clip |")
    print("|---" * 5 + "|")
    for (name, teacher), count in zip(teachers.items(), arguments.clips, strict=True):
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            seconds, busy = time_dump(Ensemble([teacher]), rows.select(range(count)))
            print(
                f"| {name} | {threads} | {count} | {count / seconds:.2f} | "
                f"{busy / count:.3f} |",
                flush=True,
            )


def time_dump(teacher: Ensemble, rows: datasets.Dataset) -> tuple[float, float]:
    """Of 10-second clips, 8 at once: seconds, and those that the CPUs were busy."""
    labels = audioset_labels()
    reader = ClipReader(labels, 10.0, teacher.sample_rate)
    with torch.inference_mode():
        teacher(torch.zeros(8, reader.num_samples))
    with TemporaryDirectory() as folder:
        with StoreWriter(
            f"{folder}/store",
            teacher="teacher",
            labels_sha256=labels.sha256,
            num_classes=len(labels),
            sample_rate=teacher.sample_rate,
            clip_seconds=10.0,
        ) as writer:
            start, busy = time.perf_counter(), time.process_time()
            stored = LogitsStore(writer.path)
            store_logits(writer, teacher, rows, reader, stored=stored, batch_size=8)
            return time.perf_counter() - start, time.process_time() - busy


if __name__ == "__main__":
    main()
