"""What each architecture's exported files say beside PyTorch: the whole product.

    OMP_NUM_THREADS=1 python benchmarks/export_parity.py --checkpoints FOLDER
    OMP_NUM_THREADS=1 python benchmarks/export_parity.py mn04_as dymn04_as

Every published architecture at its width, every option of both families, and model
folders; in every precision, with the front end in the graph and without, in both
runtimes, batches of 1 and of 3, of two lengths. Prints a Markdown table.

Nothing is downloaded: weights that are not in FOLDER, under their published names,
are random, and the same in every run.
"""

import argparse
import copy
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import sigmoid
from tqdm import tqdm

from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.onnx_file import FRONT_ENDS, PRECISIONS
from efficientat_plugin.export.parity import Parity, compared, worst_of
from efficientat_plugin.export.quantize import observe
from efficientat_plugin.export.source import Source, find_source
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.pretrained.published import PUBLISHED, PublishedStudent
from efficientat_plugin.pretrained.weights import FAMILIES
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.sessions import SESSIONS
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from exported_models import random_weights, source_of

CLIP_SECONDS = 4.0
SHORT_SAMPLES = 41111  # of no whole number of hops
BATCH_SIZES = (1, 3)
NUM_CALIBRATED = 4
FIXED_FRAMES = 400  # of students that take no other number: CLIP_SECONDS

OPTIONS: dict[str, dict[str, Any]] = {
    "MN, head linear": {"head": "linear"},
    "MN, head multihead_attention_pooling": {"head": "multihead_attention_pooling"},
    "MN, dilated, reduced_tail": {"dilated": True, "reduced_tail": True},
    "MN, se_dims none": {"se_dims": "none"},
    "MN, se_dims f": {"se_dims": "f"},
    "MN, se_dims t": {"se_dims": "t"},
    "MN, se_dims cf, se_agg avg": {"se_dims": "cf", "se_agg": "avg"},
    "MN, se_dims tc, se_agg min": {"se_dims": "tc", "se_agg": "min"},
    "MN, se_dims cft, se_agg add": {"se_dims": "cft", "se_agg": "add"},
    "DyMN, head linear, dilated": {"head": "linear", "dilated": True},
    "DyMN, head fully_convolutional": {"head": "fully_convolutional"},
    "DyMN, strides 2221": {"strides": (2, 2, 2, 1)},
    "DyMN, no dynamic convolution, dyrelu_k 3": {"use_dyconv": False, "dyrelu_k": 3},
    "DyMN, no dynamic ReLU, dyconv_k 2": {"use_dyrelu": False, "dyconv_k": 2},
    "DyMN, no coordinate attention, dyrelu_k 1": {
        "use_coordinate_attention": False,
        "dyrelu_k": 1,
    },
}


class Architecture(NamedTuple):
    """A row: what it is called, where its weights come from, and how it is built."""

    name: str
    weights: str  # "published" or "random"
    source: Callable[[], Source]


def published_source(entry: PublishedStudent, checkpoints: Path | None) -> Architecture:
    """A published architecture, with its weights where they are at hand."""
    if checkpoints is not None and (checkpoints / entry.file).is_file():
        path = checkpoints / entry.file
        weights = f"published ({entry.name})"
        return Architecture(entry.name, weights, lambda: find_source(path))

    def built() -> Source:
        front_end, options = entry.front_end(), entry.options()
        if entry.family == "mn":
            options["n_mels"] = entry.n_mels
        student = random_weights(FAMILIES[entry.family](**options), entry.hop_length)
        return source_of(student, clip_seconds=CLIP_SECONDS, **front_end)

    return Architecture(entry.name, "random", built)


def published_architectures(checkpoints: Path | None) -> Iterator[Architecture]:
    """One for those that are built alike, with the names of all."""
    alike: dict[str, list[PublishedStudent]] = {}
    for entry in PUBLISHED.values():
        if entry.family not in FAMILIES:  # only taggers are exported
            continue
        kind = repr((entry.family, entry.options(), entry.front_end()))
        alike.setdefault(kind, []).append(entry)
    for entries in alike.values():
        found = published_source(entries[0], checkpoints)
        yield found._replace(name=", ".join(entry.name for entry in entries))


def optional_architecture(name: str, options: dict[str, Any]) -> Architecture:
    """An option that no published student has, at width 1."""
    family = FAMILIES[name.split(",")[0].lower()]

    def built() -> Source:
        fixed = {"n_frames": FIXED_FRAMES} if family is MN else {}
        student = random_weights(family(**fixed, **options))
        return source_of(student, clip_seconds=CLIP_SECONDS)

    return Architecture(name, "random", built)


def model_folder(family: type[MN | DyMN]) -> Architecture:
    """What fine-tuning leaves: classes of its own, one to a sound."""
    options = {"num_classes": 50, "width": 0.4}
    front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}

    def built() -> Source:
        student = random_weights(family(**options), front_end["hop_length"])
        labels = source_of(student).model.labels
        student.options, student.front_end = options, front_end
        model = TrainedModel(student, labels, "multiclass", CLIP_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            write_model_folder(path, model, Provenance("a", None, "b", "c", {}))
            return find_source(path)

    return Architecture(
        f"model folder, {family.__name__} of width 0.4", "random", built
    )


def parities(
    source: Source, calibration: list[Path], bar: tqdm
) -> dict[tuple[str, str], Parity]:
    """Of each precision and runtime, the worse of both front ends."""
    lengths = [round(CLIP_SECONDS * source.log_mel.sample_rate)]
    if source.num_frames is None:
        lengths.append(SHORT_SAMPLES)
    batches = [
        np.stack([synthesised(length, 32000, number) for number in range(size)])
        for length in lengths
        for size in BATCH_SIZES
    ]
    expected = [source.outputs(waveforms) for waveforms in batches]
    levels = observe(source, calibration).levels()
    found: defaultdict[tuple[str, str], list[Parity]] = defaultdict(list)
    for precision in PRECISIONS:
        for front_end in FRONT_ENDS:
            _, model = build_model(
                source,
                precision,
                front_end,
                OLDEST_OPSET,
                levels if precision == "int8" else None,
            )
            content = model.SerializeToString()
            for backend in SESSIONS:
                bar.set_postfix_str(f"{precision}, {front_end}, {backend}", False)
                tagger = Tagger(content, backend, threads=1)
                outputs = [tagger.outputs(waveforms) for waveforms in batches]
                found[precision, backend].append(compared(expected, outputs))
    return {kind: worst_of(both) for kind, both in found.items()}


def sensitivity(source: Source) -> float:
    """By how much probabilities change, in float64, with log-mels moved by 1e-6.

    What a student makes of that, it makes of any rounding of the front end.
    """
    length = round(CLIP_SECONDS * source.log_mel.sample_rate)
    clips = np.stack([synthesised(length, 32000, number) for number in range(3)])
    log_mel = source.log_mel(torch.from_numpy(clips)).unsqueeze(1).double()
    student = copy.deepcopy(source.model.student).double()
    as_probabilities = sigmoid if source.model.target == "multilabel" else softmax
    with torch.no_grad():
        scored, moved = (
            as_probabilities(student(each).logits)
            for each in (log_mel, log_mel * (1 + 1e-6 * torch.randn(log_mel.shape)))
        )
    return float((scored - moved).abs().max())


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over classes: [B, K]"""
    return logits.softmax(1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows that begin so; none: all")
    parser.add_argument("--checkpoints", type=Path, help="a folder of published files")
    arguments = parser.parse_args()
    rows = [
        *published_architectures(arguments.checkpoints),
        *(optional_architecture(*option) for option in OPTIONS.items()),
        *map(model_folder, (MN, DyMN)),
    ]
    wanted = tuple(arguments.names) or ("",)
    rows = [row for row in rows if row.name.startswith(wanted)]
    if not rows:
        parser.error(f"no row begins with {' or '.join(wanted)}")
    columns = [
        f"{precision}, {backend}" for precision in PRECISIONS for backend in SESSIONS
    ]
    columns.insert(0, "PyTorch, moved")
    print(f"| architecture | weights | {' | '.join(columns)} | int8, dB |")
    print("|---|---" + "|---:" * (len(columns) + 1) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder, tqdm(rows, mininterval=10) as bar:
        calibration = [Path(folder) / f"{k}.wav" for k in range(NUM_CALIBRATED)]
        for number, path in enumerate(calibration, start=len(BATCH_SIZES) + 1):
            clip = synthesised(round(CLIP_SECONDS * 32000), 32000, number)
            soundfile.write(path, clip, 32000)
        for row in bar:
            bar.set_description(row.name)
            torch.manual_seed(0)  # or weights depended on the rows before
            source = row.source()
            found = parities(source, calibration, bar)
            changes = [sensitivity(source)]
            changes += [parity.probability_error for parity in found.values()]
            cells = [f"{change:.0e}" for change in changes]
            decibels = min(
                found["int8", backend].logits_decibels for backend in SESSIONS
            )
            cells = [row.name, row.weights, *cells, f"{decibels:.0f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
