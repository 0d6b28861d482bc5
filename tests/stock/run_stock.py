"""Runs SpeechBrain's ESC-50 and UrbanSound8k scripts, unchanged, with our YAMLs.

A few clips and epochs on the CPU, everything in a temporary folder; the scripts come
straight from a checkout of SpeechBrain, the library is the installed one::

    python tests/stock/run_stock.py PATH/TO/speechbrain [--clips ESC50] [--pretrained X]

Without ``--clips`` the five clips of ESC-50 in the checkout's own tests are taken.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import soundfile

REPOSITORY = Path(__file__).resolve().parents[2]
HPARAMS = REPOSITORY / "hparams" / "speechbrain"
MAX_CLASSES = 4
# Where a class's first, second, ... clip goes: folds 1 to 3 train, 4 validates, 5 tests
ESC50_FOLDS = (1, 4, 5, 2, 3)
URBANSOUND8K_FOLDS = {1: 1, 2: 2, 3: 3, 4: 9, 5: 10}


class StockClip(NamedTuple):
    """A clip and where it stands in the small data sets made of it."""

    path: Path
    category: str
    target: int
    fold: int  # of ESC-50


def choose_clips(folder: Path) -> list[StockClip]:
    """At most five clips each of the most frequent classes, a fold each."""
    tables = [folder / "meta" / "esc50.csv", folder / "esc50.csv"]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise SystemExit(f"{folder} has no esc50.csv; give a folder in ESC-50's layout")
    rows = [
        row
        for row in csv.DictReader(table.open(encoding="utf-8"))
        if (folder / "audio" / row["filename"]).is_file()
    ]
    classes = Counter(row["category"] for row in rows).most_common(MAX_CLASSES)
    by_class = defaultdict(list)
    for row in rows:
        by_class[row["category"]].append(row)
    return [
        StockClip(folder / "audio" / row["filename"], name, int(row["target"]), fold)
        for name, _ in classes
        for row, fold in zip(by_class[name], ESC50_FOLDS, strict=False)
    ]


def make_esc50(folder: Path, clips: list[StockClip]) -> None:
    """ESC-50's layout: `audio` and `meta/esc50.csv`."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    with (folder / "meta" / "esc50.csv").open("w", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["filename", "fold", "target", "category"])
        for clip in clips:
            (folder / "audio" / clip.path.name).symlink_to(clip.path.resolve())
            writer.writerow([clip.path.name, clip.fold, clip.target, clip.category])


def make_urbansound8k(folder: Path, clips: list[StockClip]) -> None:
    """UrbanSound8K's layout, clips of 2 to 4 s, and the manifests of its script.

    The script's own preparation writes empty manifests: it asks for a part of
    torchaudio that is gone, and takes every clip for unreadable.
    """
    manifests: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    for index, clip in enumerate(clips):
        fold = URBANSOUND8K_FOLDS[clip.fold]
        seconds = 2 + index % 5 / 2
        samples, sample_rate = soundfile.read(clip.path)
        path = folder / "audio" / f"fold{fold}" / f"{clip.path.stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples[: int(seconds * sample_rate)], sample_rate)
        split = {9: "valid", 10: "test"}.get(fold, "train")
        manifests[split][path.stem] = {
            "wav": path.name,
            "classID": clip.target,
            "class_string": clip.category,
            "salience": 1,
            "fold": str(fold),
            "duration": seconds,
        }
    for split, manifest in manifests.items():
        (folder / f"{split}.json").write_text(json.dumps(manifest), encoding="utf-8")


def make_torchvision(folder: Path) -> None:
    """What a script imports for transformers from another hub, and does not use."""
    folder.mkdir(parents=True)
    text = (
        "from types import SimpleNamespace\n\nutils = SimpleNamespace(save_image=None)"
    )
    (folder / "torchvision.py").write_text(text + "\n", encoding="utf-8")


def run(script: Path, hparams: Path, options: dict[str, object], scratch: Path) -> str:
    """Runs a script; returns its log of training."""
    if not script.is_file():
        raise SystemExit(f"{script} is not there; give a checkout of SpeechBrain")
    output = scratch / f"results_{hparams.stem}"
    options = {
        "output_folder": output,
        "batch_size": 4,
        "num_workers": 1,
        **options,
    }
    command = [sys.executable, str(script), str(hparams), "--device", "cpu"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = dict(os.environ)
    if importlib.util.find_spec("torchvision") is None:
        print("torchvision is not installed: an empty stand-in takes its place")
        stand_in = scratch / f"stand_in_{hparams.stem}"
        make_torchvision(stand_in)
        environment["PYTHONPATH"] = str(stand_in)
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=scratch, env=environment)
    log = (output / "train_log.txt").read_text(encoding="utf-8")
    if f"epoch: {options['number_of_epochs']}," not in log or "test loss" not in log:
        raise SystemExit(f"{script} did not train and test; its log says:\n{log}")
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speechbrain", type=Path, help="a checkout with `recipes`")
    parser.add_argument("--clips", type=Path, help="a folder in ESC-50's layout")
    parser.add_argument("--pretrained", help="a published name or a file")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    checkout = arguments.speechbrain.resolve()
    clips = choose_clips(arguments.clips or checkout / "tests" / "samples" / "ESC50")
    options: dict[str, object] = {
        "number_of_epochs": arguments.epochs,
        "out_n_neurons": len({clip.category for clip in clips}),
        "pretrained": arguments.pretrained or "null",
    }
    if arguments.pretrained is None:
        options["width"] = 0.1
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        esc50, urbansound8k = scratch / "ESC-50-master", scratch / "UrbanSound8K"
        make_esc50(esc50, clips)
        make_urbansound8k(urbansound8k, clips)
        recipes = checkout / "recipes"
        esc50_log = run(
            recipes / "ESC50" / "classification" / "train.py",
            HPARAMS / "esc50.yaml",
            {"data_folder": esc50, **options},
            scratch,
        )
        manifests = {
            f"{split}_annotation": urbansound8k / f"{split}.json"
            for split in ("train", "valid", "test")
        }
        urbansound8k_log = run(
            recipes / "UrbanSound8k" / "SoundClassification" / "train.py",
            HPARAMS / "urbansound8k.yaml",
            {
                "data_folder": urbansound8k,
                "skip_manifest_creation": True,
                **manifests,
                **options,
            },
            scratch,
        )
    print(
        f"\n{len(clips)} clips, ESC-50:\n{esc50_log}\nUrbanSound8k:\n{urbansound8k_log}"
    )


if __name__ == "__main__":
    main()
