"""How fast and how large: this project beside the published code.

> make bench REFERENCE=/a/checkout/of/EfficientAT EVENTS_REFERENCE=/one/of/EfficientSED
> python benchmarks/speed.py --reference /a/checkout --torchvision FOLDER

Each side works in a process of its own, in rounds that alternate; a ratio is the median
over the rounds of published over ours. The published side has the allocator as the
system comes; ours has what the recipe sets by itself. Without a checkout, ours alone is
measured. Writes `benchmarks/RESULTS.md`.

On a machine that also does other work, `--clock cpu` compares the processor time of
both, and the fastest round of each.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import frame_sides
import numpy as np
import torch
from frame_sides import DETECTORS
from sides import SAMPLE_RATE, WIDTHS

from efficientat_plugin import MN, DyMN, LogMel
from efficientat_plugin.export.comparison_clips import synthesised

HERE = Path(__file__).parent
MODELS = list(WIDTHS)
PROFILE_ROWS = 14


class Case(NamedTuple):
    """What both sides do, and by how much ours should be faster."""

    task: str
    model: str
    batch: int
    target: float | None = None
    keep_memory: bool = True  # as the recipe has it, in training
    run_opts: str = "{}"  # of our Brain, as JSON


NETWORK_TARGETS = {("mn", 1): 2.2, ("mn", 16): 5.0, ("dymn", 1): 2.2, ("dymn", 16): 3.5}
CASES = [
    Case("mel", "mn04", 1, 3.0),
    Case("mel", "mn04", 16, 6.0),
    *(
        Case("network", model, batch, NETWORK_TARGETS[model[:-2], batch])
        for model in MODELS
        for batch in (1, 16)
    ),
    *(
        Case("train", model, 16, 2.2 if model.startswith("dymn") else 3.0)
        for model in MODELS
    ),
    *(Case("train", model, 16, keep_memory=False) for model in MODELS),
    *(Case("network_openvino", model, 1, 3.5) for model in MODELS),
    Case("scan", "mn04", 1, 5.0),
    Case("scan_onnxruntime", "mn04", 1, 8.0),
    Case("scan_openvino", "mn04", 1, 8.0),
]
FRAME_MODELS = ["fmn04", "fmn04_tf", "fmn10", "fmn10_tf"]
CASES += [
    *(
        Case("network", model, batch, 2.0 if batch == 1 else 4.0)
        for model in FRAME_MODELS
        for batch in (1, 16)
    ),
    *(Case("train", model, 16, 2.5) for model in FRAME_MODELS),
    *(
        Case(task, "fmn04_tf", 1)
        for task in ("events", "events_onnxruntime", "events_openvino")
    ),
]
TITLES = {
    "mel": "log-mel",
    "train": "training step",
    "network_openvino": "network in OpenVINO",
    "scan": "10 minutes",
    "scan_onnxruntime": "10 minutes, ONNX Runtime",
    "scan_openvino": "10 minutes, OpenVINO",
    "events": "events of 10 minutes",
    "events_onnxruntime": "events of 10 minutes, ONNX Runtime",
    "events_openvino": "events of 10 minutes, OpenVINO",
}


class Side:
    """A process that works on request."""

    def __init__(self, name: str, case: Case, folder: Path, options: Any) -> None:
        self.result = folder / f"{name}.npy"
        script = "frame_sides.py" if case.model in DETECTORS else "sides.py"
        command = [sys.executable, str(HERE / script), name, case.task, case.model]
        command += [str(case.batch), "--threads", str(options.threads)]
        command += ["--weights", str(folder / f"{case.model}.pt")]
        command += ["--result", str(self.result)]
        paths = [str(HERE.parent)]
        if name == "published":
            command += ["--checkout", reference_of(case, options)]
            paths.append(options.torchvision)
        else:
            command += ["--run_opts", case.run_opts]
            command += ["--keep_memory"] * case.keep_memory
        inherited = os.environ.get("PYTHONPATH")
        paths += [inherited] if inherited else []
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )
        while (line := self._line()) != "ready":
            if not line:
                raise RuntimeError(f"{' '.join(command)} ended; try --verbose")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def work(self, times: int = 1) -> dict[str, float]:
        """Does the work so often; the seconds are those of once."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def reference_of(case: Case, options: Any) -> str | None:
    """The checkout that a case is measured beside, if there is one."""
    return options.events_reference if case.model in DETECTORS else options.reference


class Measured(NamedTuple):
    """Of one case: seconds of each round and side, and the largest difference."""

    case: Case
    seconds: dict[str, list[float]]
    peak_mb: dict[str, float]
    difference: float | None
    summary: Callable[[list[float]], float] = statistics.median  # of the rounds

    def row(self) -> str:
        """A line of the table."""
        case, milliseconds = self.case, []
        for side in ("published", "ours"):
            found = self.seconds.get(side)
            milliseconds.append(f"{1e3 * self.summary(found):.1f}" if found else "")
        title = TITLES.get(case.task, case.task)
        title += "" if case.keep_memory else ", freed memory returned"
        cells = [title, case.model, str(case.batch), *milliseconds]
        if "published" in self.seconds:
            pairs = zip(self.seconds["published"], self.seconds["ours"], strict=True)
            ratios = sorted(published / ours for published, ours in pairs)
            ratio = statistics.median(ratios)
            if self.summary is min:
                ratio = min(self.seconds["published"]) / min(self.seconds["ours"])
            cells.append(f"**{ratio:.2f}**")
            quarter = len(ratios) // 4
            cells.append(f"{ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}")
            cells.append("" if case.target is None else f"{case.target:g}")
            peaks = [f"{self.peak_mb[side]:.0f}" for side in ("published", "ours")]
            cells.append(" / ".join(peaks))
            cells.append("" if self.difference is None else f"{self.difference:.1e}")
        return "| " + " | ".join(cells) + " |"


def make_weights(folder: Path) -> None:
    """One state dict for both sides: untrained, its batch norms made for sounds."""
    torch.manual_seed(0)
    sounds = [synthesised(10 * SAMPLE_RATE, SAMPLE_RATE, each) for each in range(8)]
    log_mel = LogMel().eval()(torch.from_numpy(np.stack(sounds))).unsqueeze(1)
    for name, width in WIDTHS.items():
        student = (DyMN if name.startswith("dymn") else MN)(width=width).train()
        norms = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the plain average of its batches
        with torch.no_grad():
            student(log_mel)
        torch.save(student.state_dict(), folder / f"{name}.pt")
    make_frame_weights(folder)


def make_frame_weights(folder: Path) -> None:
    """The same for detectors."""
    rate = frame_sides.SAMPLE_RATE
    sounds = [synthesised(10 * rate, rate, each) for each in range(4)]
    log_mel = LogMel(**frame_sides.STATED).eval()(torch.from_numpy(np.stack(sounds)))
    for name in DETECTORS:
        student = frame_sides.new_student(name).train()
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            student(log_mel.unsqueeze(1))
            student.strong_head.bias.sub_(4.0)  # most classes are absent
        torch.save(student.state_dict(), folder / f"{name}.pt")


def measure(case: Case, folder: Path, options: Any) -> Measured:
    """Alternating rounds of both sides, the first of which warms up."""
    names = ["published", "ours"] if reference_of(case, options) else ["ours"]
    sides = {name: Side(name, case, folder, options) for name in names}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    is_short = case.batch == 1 and not case.task.startswith(("scan", "events"))
    times = 10 if is_short else 1
    for _ in range(1 + options.rounds):
        for name, side in sides.items():
            rounds[name].append(side.work(times))
    for side in sides.values():
        side.end()
    difference = None
    if len(names) == 2 and case.task != "train" and not case.task.startswith("events"):
        results = [np.load(side.result).astype(np.float64) for side in sides.values()]
        difference = float(np.abs(results[0] - results[1]).max())
    clock = "cpu_seconds" if options.clock == "cpu" else "seconds"
    return Measured(
        case,
        {name: [answer[clock] for answer in rounds[name][1:]] for name in names},
        {name: rounds[name][-1]["peak_mb"] for name in names},
        difference,
        min if options.clock == "cpu" else statistics.median,
    )


def curves(folder: Path, options: Any) -> Iterable[str]:
    """How far the losses of both sides are apart, a line for each model."""
    for model in MODELS:
        case = Case("curve", model, 8)
        losses = []
        for name in ("published", "ours"):
            side = Side(name, case, folder, options)
            side.work()
            side.end()
            losses.append(np.load(side.result))
        apart = np.abs(losses[0] / losses[1] - 1).max()
        yield f"| {model} | {losses[0][0]:.6f} | {losses[0][-1]:.6f} | {apart:.1e} |"


def profiles(folder: Path, options: Any) -> Iterable[str]:
    """Where the time of our training steps goes, a line for each operation."""
    shares: dict[str, dict[str, float]] = {}
    for model in MODELS:
        side = Side("ours", Case("profile", model, 16), folder, options)
        side.work(2)
        side.end()
        times = {name: float(time) for name, time in np.load(side.result)}
        total = sum(times.values())
        for name, time in times.items():
            shares.setdefault(name, {})[model] = time / total
    largest = sorted(shares.items(), key=lambda item: -max(item[1].values()))
    for name, share in largest[:PROFILE_ROWS]:
        cells = [f"{share.get(model, 0):.1%}" for model in MODELS]
        yield "| " + " | ".join([f"`{name}`", *cells]) + " |"


def report(
    measured: list[Measured],
    curve_rows: list[str],
    profile_rows: list[str],
    options: Any,
) -> str:
    """The Markdown that is written."""
    import speechbrain

    capability = torch.backends.cpu.get_cpu_capability()
    how = "medians"
    if options.clock == "cpu":
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        how = f"load averages {load}; processor time, the least"
    lines = [
        "# Speed",
        "",
        f"Written by `make bench` on {date.today()}: {processor()}, {options.threads} "
        f"threads, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, SpeechBrain {speechbrain.__version__}; {how} of "
        f"{options.rounds} alternating rounds, clips of 10 s. Weights are untrained, "
        f"which takes as long; torch computes in {capability}.",
        "",
    ]
    head = ["task", "model", "batch", "published, ms", "ours, ms"]
    if options.reference or options.events_reference:
        head += [
            "ratio",
            "interquartile range",
            "target",
            "peak MB",
            "largest difference",
        ]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [each.row() for each in measured]
    if curve_rows:
        lines += ["", "Ten steps from the same weights, without randomness:", ""]
        lines += ["| model | first loss | last loss | largest relative difference |"]
        lines += ["|---" * 4 + "|", *curve_rows]
    if profile_rows:
        lines += [
            "",
            "Time of our training step by operation, from torch's profiler:",
            "",
        ]
        lines += ["| operation | " + " | ".join(MODELS) + " |"]
        lines += ["|---" * (1 + len(MODELS)) + "|", *profile_rows]
    return "\n".join(lines) + "\n"


def processor() -> str:
    """What the machine calls its processor."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = [line for line in described.splitlines() if line.startswith("model name")]
    return f"{len(found)} x {found[0].split(':')[1].strip()}" if found else "CPU"


def main() -> None:
    """Measures all cases, or those asked for, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help="a checkout of EfficientAT")
    parser.add_argument("--events_reference", help="a checkout of EfficientSED")
    parser.add_argument(
        "--torchvision", default="", help="folder of what the checkouts import"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--output", default=str(HERE / "RESULTS.md"))
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    cases = [
        case
        for case in CASES
        if case.task in (options.tasks or [case.task])
        and case.model in (options.models or [case.model])
    ]
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_weights(folder)
        measured = []
        for case in cases:
            measured.append(measure(case, folder, options))
            print(measured[-1].row(), flush=True)
        with_curves = options.reference and "curve" in (options.tasks or ["curve"])
        curve_rows = list(curves(folder, options)) if with_curves else []
        with_profile = "profile" in (options.tasks or ["profile"])
        profile_rows = list(profiles(folder, options)) if with_profile else []
    text = report(measured, curve_rows, profile_rows, options)
    Path(options.output).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
