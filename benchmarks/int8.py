"""What int8 costs a fine-tuned student: errors and top-1 agreement, fold by fold.

> python recipes/finetune.py hparams/finetune.yaml --dataset ESC50 \
      --label_column category --group_column src_file --audio_folder audio \
      --pretrained mn04_as --clip_seconds 5.0 --output_folder RUN
> python benchmarks/int8.py ESC50 RUN

Each fold's model is exported in every way, calibrated on the clips of the other folds,
and judged on its own, in ONNX Runtime. Prints a Markdown table over all folds.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from efficientat_plugin.data.decoding import decode
from efficientat_plugin.export.assembly import OLDEST_OPSET, build_model
from efficientat_plugin.export.comparison_clips import read_clips, spread
from efficientat_plugin.export.graph import Levels, Site
from efficientat_plugin.export.quantize import MAX_CLIPS, Recipe, observe
from efficientat_plugin.export.source import Source, find_source
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.model_file import LOG_MEL, LOGITS

BATCH_SIZE = 16


def anywhere(site: Site) -> bool:
    """Every convolution."""
    return True


def behind_stem(site: Site) -> bool:
    """Every convolution but the first."""
    return site.name != "features.0"


PLAIN = Recipe(corrects_means=False, clips_hard_swish=False)
RECIPES = {
    "all convolutions, whole range": PLAIN._replace(is_int8=anywhere, percentile=100),
    "all convolutions, 99.995 %": PLAIN._replace(is_int8=anywhere),
    "all but the stem": PLAIN._replace(is_int8=behind_stem),
    "all but the stem and two blocks": PLAIN,
    "the same, means corrected": PLAIN._replace(corrects_means=True),
    "the same, hard-swish from -3 on: `int8`": Recipe(),
    "the same, 99.99 %": Recipe(percentile=99.99),
    "the same, 99.999 %": Recipe(percentile=99.999),
    "the same, all but the stem": Recipe(is_int8=behind_stem),
}


class Fold(NamedTuple):
    """A model, and what it is calibrated and judged on."""

    source: Source
    calibration: list[Path]
    clips: list[NDArray[np.float32]]
    classes: list[str]


class LogMels(CalibrationDataReader):
    """What ONNX Runtime's own quantisation calibrates on."""

    def __init__(self, fold: Fold) -> None:
        clips = read_clips(fold.source, spread(fold.calibration, MAX_CLIPS))
        self._log_mels = self._computed(fold.source, clips)

    def _computed(
        self, source: Source, clips: Sequence[NDArray[np.float32]]
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        for clip in clips:
            with torch.inference_mode():
                yield {LOG_MEL: source.log_mel(torch.from_numpy(clip)[None]).numpy()}

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next, or None."""
        return next(self._log_mels, None)


def read_folds(dataset: Path, run: Path) -> list[Fold]:
    """The folds of ESC-50's table, with the models of a run."""
    with open(next(dataset.glob("*.csv")), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folds = []
    for number in sorted({row["fold"] for row in rows}):
        source = find_source(run / f"fold{number}" / "model")
        files = [dataset / "audio" / row["filename"] for row in rows]
        own = [row["fold"] == number for row in rows]
        clips = [
            decode(file, source.log_mel.sample_rate, source.clip_samples)
            for file, is_own in zip(files, own, strict=True)
            if is_own
        ]
        others = [f for f, is_own in zip(files, own, strict=True) if not is_own]
        classes = [r["category"] for r, is_own in zip(rows, own, strict=True) if is_own]
        folds.append(Fold(source, others, clips, classes))
    return folds


def built(fold: Fold, precision: str, levels: Levels | None = None) -> bytes:
    """A model without front end."""
    return build_model(fold.source, precision, "out", OLDEST_OPSET, levels)[
        1
    ].SerializeToString()


def quantised_by_ort(fold: Fold, per_channel: bool) -> bytes:
    """By ONNX Runtime's own quantisation, with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("a.onnx", "b.onnx", "c.onnx")]
        Path(paths[0]).write_bytes(built(fold, "fp32"))
        quant_pre_process(paths[0], paths[1])
        quantize_static(
            paths[1],
            paths[2],
            LogMels(fold),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
        )
        quantised, original = onnx.load(paths[2]), onnx.load(paths[0])
        texts = {prop.key: prop.value for prop in original.metadata_props}
        onnx.helper.set_model_props(quantised, texts)
        return quantised.SerializeToString()


def logits_of(content: bytes, clips: Sequence[NDArray[np.float32]]) -> NDArray:
    """[clips, K]"""
    tagger = Tagger(content, "onnxruntime")
    return np.concatenate(
        [
            tagger.outputs(np.stack(clips[start : start + BATCH_SIZE]))[LOGITS]
            for start in range(0, len(clips), BATCH_SIZE)
        ]
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path)
    arguments = parser.parse_args()
    folds = read_folds(arguments.dataset, arguments.run)
    seen = [observe(fold.source, fold.calibration) for fold in tqdm(folds)]
    wanted = [logits_of(built(fold, "fp32"), fold.clips) for fold in folds]
    variants = {
        "float32": lambda number: built(folds[number], "fp32"),
        "`fp16`": lambda number: built(folds[number], "fp16"),
        "`int8_weights`": lambda number: built(folds[number], "int8_weights"),
        "ONNX Runtime's quantize_static": lambda number: quantised_by_ort(
            folds[number], False
        ),
        "the same, per channel": lambda number: quantised_by_ort(folds[number], True),
    } | {
        name: lambda number, recipe=recipe: built(
            folds[number], "int8", seen[number].levels(recipe)
        )
        for name, recipe in RECIPES.items()
    }
    print("| variant | MB | errors | top class as float32 | logits over error |")
    print("|---" * 5 + "|")
    for name, build in variants.items():
        errors, alike, decibels, sizes = 0, 0, [], []
        for number, fold in enumerate(folds):
            content = build(number)
            found = logits_of(content, fold.clips)
            names = np.array(fold.source.model.labels.mids)
            errors += int((names[found.argmax(1)] != np.array(fold.classes)).sum())
            alike += int((found.argmax(1) == wanted[number].argmax(1)).sum())
            power = np.square(found - wanted[number]).mean() / np.square(found).mean()
            decibels.append(-10 * np.log10(max(power, 1e-30)))
            sizes.append(len(content) / 1e6)
        num_clips = sum(len(fold.clips) for fold in folds)
        print(
            f"| {name} | {np.mean(sizes):.2f} | {errors} | {alike / num_clips:.3f} | "
            f"{np.mean(decibels):.1f} dB |",
            flush=True,
        )
    print(f"\nN = {num_clips} clips.")


if __name__ == "__main__":
    main()
