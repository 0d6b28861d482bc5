"""An exported model against PyTorch: start, memory, time per clip, a long recording.

> efficientat export mn04_as --output in.onnx
> efficientat export mn04_as --frontend out --output out.onnx
> python benchmarks/runtime.py mn04_as SOUND in.onnx out.onnx

Start and memory are those of a fresh process that tags SOUND once. Times are medians of
rounds in which all take turns, with --threads threads. Prints Markdown tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from efficientat_plugin.data.decoding import decode
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.sessions import SESSIONS
from efficientat_plugin.tagging.torch_tagger import AudioTagger

RATE = 32000  # Hz
START = """
import json, sys, time
model, sound, backend, threads = sys.argv[1:]
began = time.perf_counter()
if backend == "pytorch":
    import torch
    torch.set_num_threads(int(threads))
    from efficientat_plugin import AudioTagger
    tagger = AudioTagger.from_student(model, run_opts={"device": "cpu"})
else:
    from efficientat_plugin.runtime import Tagger
    tagger = Tagger(model, backend, int(threads))
loaded = time.perf_counter()
tagger.tag(sound)
tagged = time.perf_counter()
with open("/proc/self/status") as file:  # getrusage counts the parent's, too
    status = dict(line.split(":", 1) for line in file)
memory = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps([loaded - began, tagged - began, memory]))
"""


def start(model: str, sound: Path, backend: str, threads: int) -> list[float]:
    """Seconds until it is loaded and has tagged; MiB at the most."""
    command = [sys.executable, "-W", "ignore", "-c", START, model, str(sound), backend]
    done = subprocess.run(
        [*command, str(threads)], capture_output=True, text=True, check=True
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds, after a first call that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in trange(rounds + 1, leave=False):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("sound", type=Path)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    ways = {"PyTorch": (arguments.student, "pytorch")} | {
        f"{backend}, {Path(file).name}": (file, backend)
        for backend in SESSIONS
        for file in arguments.files
    }

    print("| | loaded after | first tag after | peak memory |\n|---|---|---|---|")
    starts: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(3):
        for name, (model, backend) in ways.items():
            starts[name].append(start(model, arguments.sound, backend, threads))
    for name, rows in starts.items():
        loaded, tagged, memory = (statistics.median(c) for c in zip(*rows, strict=True))
        print(f"| {name} | {loaded:.2f} s | {tagged:.2f} s | {memory:.0f} MiB |")

    reference = AudioTagger.from_student(arguments.student, run_opts={"device": "cpu"})
    taggers = {
        name: reference if backend == "pytorch" else Tagger(model, backend, threads)
        for name, (model, backend) in ways.items()
    }
    clip = decode(arguments.sound, RATE, round(10 * RATE))[None]
    long = np.tile(clip[0], round(6 * arguments.minutes))
    clips = medians(
        {n: lambda t=t: t.score(clip) for n, t in taggers.items()}, arguments.rounds
    )
    scans = medians(
        {
            n: lambda t=t: list(t.scan(long, RATE, 10.0, 2.5))
            for n, t in taggers.items()
        },
        max(7, arguments.rounds // 3),
    )
    print("\n| | a clip of 10 s | times PyTorch's | a scan | times PyTorch's |")
    print("|---" * 5 + "|")
    for name in taggers:
        print(
            f"| {name} | {1000 * clips[name]:.1f} ms | "
            f"{clips['PyTorch'] / clips[name]:.2f} | {scans[name]:.2f} s | "
            f"{scans['PyTorch'] / scans[name]:.2f} |"
        )
    print(
        f"\n{threads} threads; the scan is of {arguments.minutes:g} minutes in windows "
        "of 10 s, 2.5 s apart."
    )


if __name__ == "__main__":
    main()
