"""What a training run waits for its data, and how its memory grows.

> python benchmarks/loader_wait.py hparams/quickstart.yaml
> python benchmarks/loader_wait.py hparams/quickstart.yaml --clip_seconds 0.5 \
      --batch_size 2 --clips_per_epoch 40000 --number_of_epochs 1 --width 0.1

Takes the arguments of ``recipes/audioset_kd.py`` and trains as it does, without the
second student. Waiting is all the time between two steps. On a machine with other work
the CPU times tell more: workers whose time per batch is far below that of a step have
the next batch ready. Prints two Markdown tables; memory is what a process has for
itself (RssAnon) and in all (VmRSS). Linux alone.
"""

import math
import multiprocessing
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from efficientat_plugin.contracts import ClipBatch
from efficientat_plugin.support.launch import load_hparams, parse_and_join
from efficientat_plugin.training.brain import DistillationBrain

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
import audioset_kd  # noqa: E402

ROWS = 11  # of the table of memory
PREFETCHED = 2  # batches a worker, as torch has it


class Step(NamedTuple):
    """When it began and ended, and the CPU time that was used until then, s."""

    begin: float
    end: float
    main: float
    workers: float


class WatchedBrain(DistillationBrain):
    """Notes when steps begin and end, and what memory is in use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: dict[int, list[Step]] = {}  # by epoch
        self.memory: list[list[str]] = []
        self.num_steps = 0

    def fit_batch(self, batch: ClipBatch) -> Tensor:
        """A step, with the clock in hand."""
        begin = time.perf_counter()
        loss = super().fit_batch(batch)
        self.steps.setdefault(self.epoch, []).append(
            Step(begin, time.perf_counter(), busy_seconds("self"), self._workers_busy())
        )
        self.num_steps += 1
        every = max(self.hparams.steps_in_all // (ROWS - 1), 1)
        if self.num_steps == 100 or self.num_steps % every == 0:
            pids = ["self", *self._workers()]
            self.memory.append([str(self.num_steps), *map(memory_of, pids)])
        return loss

    def _workers(self) -> list[str]:
        return sorted(str(child.pid) for child in multiprocessing.active_children())

    def _workers_busy(self) -> float:
        try:
            return sum(map(busy_seconds, self._workers()))
        except OSError:  # they end with the epoch
            return math.nan


def busy_seconds(pid: str) -> float:
    """CPU time of a process, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: str) -> str:
    """Of a process, MB: its own, and in all."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in status)
    own, whole = (int(found[name].split()[0]) / 1e3 for name in ("RssAnon", "VmRSS"))
    return f"{own:.0f} ({whole:.0f})"


def main(argv: list[str]) -> None:
    """Trains and prints the tables."""
    hparams_file, run_opts, overrides = parse_and_join([*argv, "--noprogressbar"])
    with tempfile.TemporaryDirectory() as folder:
        overrides |= {"output_folder": folder, "compare_without_teacher": False}
        hparams = load_hparams(hparams_file, overrides)
        run = audioset_kd.prepare(hparams_file, overrides, hparams)
        hparams, epochs = run.hparams, hparams["number_of_epochs"]
        clips_per_epoch = hparams["sampling"]["clips_per_epoch"]
        batches = clips_per_epoch // hparams["train_loader"]["batch_size"]
        watched: list[WatchedBrain] = []

        def make(**kwargs: Any) -> WatchedBrain:
            watched.append(WatchedBrain(**kwargs))
            return watched[0]

        hparams["brain_class"], hparams["steps_in_all"] = make, epochs * batches
        audioset_kd.train_and_evaluate(run, run_opts)
    print_waiting(watched[0])
    print_memory(watched[0])


def print_waiting(brain: WatchedBrain) -> None:
    """By epoch: the share of waiting, and how busy the processes were."""
    print("\n| epoch | steps | s | waiting | CPU ms per step | workers' |")
    print("|---" * 6 + "|")
    in_all = [0.0, 0.0]
    for epoch, steps in brain.steps.items():
        waiting = sum(after.begin - step.end for step, after in pairwise(steps))
        whole = steps[-1].end - steps[0].end
        in_all = [in_all[0] + waiting, in_all[1] + whole]
        # Workers are ahead by a few batches, and at the end have nothing to do.
        early = steps[: -1 - PREFETCHED * brain.hparams.train_loader["num_workers"]]
        workers = 1000 * (early[-1].workers - early[0].workers) / (len(early) - 1)
        main = 1000 * (steps[-1].main - steps[0].main) / (len(steps) - 1)
        print(
            f"| {epoch} | {len(steps)} | {whole:.1f} | {waiting / whole:.1%} | "
            f"{main:.0f} | {workers:.0f} |"
        )
    print(f"\nWaiting in all: {in_all[0] / in_all[1]:.1%}, from each first batch on.\n")


def print_memory(brain: WatchedBrain) -> None:
    """By batch: own memory of the processes, and in all."""
    workers = range(1, len(brain.memory[0]) - 1)
    names = "".join(f" worker {number}, MB |" for number in workers)
    print(f"| batches | main process, MB |{names}")
    print("|---" * (len(workers) + 2) + "|")
    for row in brain.memory:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
