"""What bfloat16 and `torch.compile` make of a training step.

> python benchmarks/step_options.py
> python benchmarks/step_options.py --models mn04 dymn04 --rounds 9
> python benchmarks/step_options.py --models dymn04 --ways "as it is" compiled

The options are SpeechBrain's own, `--precision bf16` and `--compile
--compile_module_keys student`. Each way of a step works in a process of its own, in
rounds that alternate; the first named is what the others are compared with. Prints a
Markdown table.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from speed import MODELS, Case, Side, make_weights
from tqdm import trange

COMPILED = {"compile": True, "compile_module_keys": ["student"]}
WAYS: dict[str, dict[str, object]] = {
    "as it is": {},
    "bf16": {"precision": "bf16"},
    "compiled": COMPILED,
    "compiled, bf16": COMPILED | {"precision": "bf16"},
}


def rows(model: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """One line for each way."""
    sides, first, rounds, peaks = {}, {}, {}, {}
    for name in options.ways:
        run_opts = WAYS[name]
        case = Case("train", model, options.batch, run_opts=json.dumps(run_opts))
        sides[name] = Side("ours", case, folder, options)
        started = time.perf_counter()
        sides[name].work()
        first[name], rounds[name] = time.perf_counter() - started, []
    for _ in trange(options.rounds, desc=model, leave=False):
        for name, side in sides.items():
            answer = side.work()
            rounds[name].append(answer["seconds"])
            peaks[name] = answer["peak_mb"]
    for side in sides.values():
        side.end()
    lines = []
    for name, seconds in rounds.items():
        pairs = zip(rounds[options.ways[0]], seconds, strict=True)
        cells = [
            model,
            name,
            f"{1e3 * statistics.median(seconds):.0f}",
            f"{statistics.median(plain / own for plain, own in pairs):.2f}",
            f"{first[name]:.0f}",
            f"{peaks[name]:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    print("| model | step | ms | times as fast | first step, s | peak MB |")
    print("|---" * 6 + "|")
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_weights(folder)
        for model in options.models:
            print("\n".join(rows(model, folder, options)), flush=True)


if __name__ == "__main__":
    main()
