"""Runs of ``recipes/audioset_kd.py`` on tones, each within seconds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.parquet import audioset_row, write_rows
from efficientat_plugin.teachers.store.writer import StoreWriter

REPOSITORY = Path(__file__).resolve().parents[1]


RECIPE = REPOSITORY / "recipes" / "audioset_kd.py"


TONES = {"/m/01v_m0": 440.0, "/m/0chx_": 0.0, "/m/03kmc9": 1500.0}  # noise is 0 Hz


def tone(frequency: float, rng: np.random.Generator) -> np.ndarray:
    time_seconds = np.arange(16000) / 32000
    noise = rng.standard_normal(16000)
    if frequency == 0:
        return 0.2 * noise
    return 0.5 * np.sin(2 * np.pi * frequency * time_seconds) + 0.01 * noise


def write_tones(folder: Path) -> Path:
    """48 labelled half-second clips of 3 classes, 24 to evaluate; a teacher's store."""
    rng = np.random.default_rng(0)
    labels = audioset_labels()
    ids, logits = [], []
    for split, count in (("bal_train", 48), ("eval", 24)):
        rows = []
        for number in range(count):
            mid = list(TONES)[number % 3]
            clip_id = f"{split}-{number}"
            rows.append(audioset_row(clip_id, tone(TONES[mid], rng), 32000, [mid]))
            ids.append(clip_id)
            logits.append(8 * labels.multi_hot([labels.index[mid]]) - 6)
        write_rows(folder / "data" / split / "00.parquet", rows)
    with StoreWriter(
        folder / "teacher",
        teacher="an oracle",
        labels_sha256=labels.sha256,
        num_classes=len(labels),
        sample_rate=32000,
        clip_seconds=0.5,
    ) as store:
        store.append(ids, torch.stack(logits))
    return folder


def copy_tones(data: Path, folder: Path, change) -> Path:
    """Writes the clips again, with the rows that ``change(split, rows)`` returns."""
    for split in ("bal_train", "eval"):
        rows = pq.read_table(data / "data" / split / "00.parquet").to_pylist()
        (folder / split).mkdir(parents=True)
        table = pa.Table.from_pylist(change(split, rows))
        pq.write_table(table, folder / split / "00.parquet")
    return folder


def kd_command(data: Path, output: Path, recipe="quickstart", **more) -> list[str]:
    """The recipe on the small data; ``more`` are options, True for a flag."""
    options = {
        "dataset": data,
        "dataset_cache": data / "cache",
        "train_split": "bal_train",
        "teacher": data / "teacher",
        "clip_seconds": 0.5,
        "clips_per_epoch": 48,
        "number_of_epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 8,
        "num_workers": 0,
        "output_folder": output,
        "compare_without_teacher": False,
        "width": 0.1,
        "device": "cpu",
        "noprogressbar": True,
    }
    if recipe == "quickstart":
        # The sample is made even where another data set is used: a small one.
        options |= {"sample_folder": data / "sample", "num_seeds": 1}
        options |= dict.fromkeys(("num_labelled", "num_unlabelled", "num_eval"), 1)
    else:
        options["pretrained"] = "null"
    command = [str(RECIPE), str(REPOSITORY / "hparams" / f"{recipe}.yaml")]
    for name, value in (options | more).items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return command
