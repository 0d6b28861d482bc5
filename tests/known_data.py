"""Small copies of known data sets: their tables and folders, and noise as sound."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from hyperpyyaml import load_hyperpyyaml
from small_tables import write_csv

FACTS = Path(__file__).resolve().parents[1] / "hparams" / "data"
RATE = 16000


def facts_of(name):
    with open(FACTS / f"{name}.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file)


def classes_of(name):
    return facts_of(name)["classes"]


def _sound(seed, seconds=0.5):
    rng = np.random.default_rng(seed)
    return 0.2 * rng.standard_normal(round(seconds * RATE))


def _bytes(seed, form, seconds=0.5):
    file = io.BytesIO()
    soundfile.write(file, _sound(seed, seconds), RATE, format=form)
    return file.getvalue()


def _wav(path, seed, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _sound(seed, seconds), RATE)


def esc50(folder):
    classes, rows = classes_of("esc50")[:2], []
    for number in range(12):
        name = f"{1 + number % 3}-{100 + number // 2}-A-{number % 2}.wav"
        _wav(folder / "audio" / name, number)
        rows.append([name, 1 + number // 2 % 3, classes[number % 2], 100 + number // 2])
    write_csv(
        folder / "meta" / "esc50.csv",
        ["filename", "fold", "category", "src_file"],
        rows,
    )
    return {"dataset": folder, "fold": 2}


def fsd50k(folder):
    """As on the hub: MP3 as lists of bytes, some longer than clips of training."""
    schema = pa.schema(
        [
            ("fname", pa.int64()),
            ("labels", pa.string()),
            ("mp3", pa.list_(pa.uint8())),
        ]
    )
    for split, numbers in {
        "train": range(8),
        "dev": (8, 9),
        "eval": range(10, 16),
    }.items():
        rows = [
            {
                "fname": number,
                "labels": "Bark,Dog" if number % 2 else "Rain",
                "mp3": list(_bytes(number, "MP3", 0.3 + number / 8)),
            }
            for number in numbers
        ]
        path = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return {"dataset": folder}


def fsd50k_folder(folder):
    """As published."""
    header, rows = ["fname", "labels", "mids", "split"], []
    for number in range(10):
        split, labels = "val" if number > 7 else "train", "Bark,Dog"
        _wav(folder / "FSD50K.dev_audio" / f"{number}.wav", number)
        rows.append([number, labels if number % 2 else "Rain", "", split])
    truth = folder / "FSD50K.ground_truth"
    write_csv(truth / "dev.csv", header, rows)
    for number in range(10, 14):
        _wav(folder / "FSD50K.eval_audio" / f"{number}.wav", number, 1.2)
    rows = [[n, "Bark,Dog" if n % 2 else "Rain", ""] for n in range(10, 14)]
    write_csv(truth / "eval.csv", header[:3], rows)
    return {"dataset": folder}


def openmic(folder):
    classes = classes_of("openmic")
    schema = pa.schema(
        [
            ("filename", pa.string()),
            ("true", pa.list_(pa.float32(), len(classes))),
            ("mask", pa.list_(pa.int32(), len(classes))),
            ("mp3_bytes", pa.binary()),
        ]
    )
    for split, numbers in {"train": range(8), "test": range(8, 14)}.items():
        rows = []
        for number in numbers:
            true, mask = [0.5] * len(classes), [0] * len(classes)
            true[number % 3], mask[number % 3] = (0.9 if number % 2 else 0.1), 1
            sound = _bytes(number, "MP3")
            names = (f"clip{number}", true, mask, sound)
            rows.append(dict(zip(schema.names, names, strict=True)))
        path = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return {"dataset": folder}


def tau2020(folder):
    header, rows = ["filename", "scene_label", "identifier", "source_label"], []
    for number in range(12):
        scene, device = ("airport", "bus")[number % 2], ("a", "s1", "s4")[number % 3]
        name = f"audio/{scene}-oslo-{number}-{device}.wav"
        _wav(folder / name, number)
        rows.append([name, scene, f"oslo-{number}", device])
    write_csv(folder / "meta.csv", header, rows, "\t")
    for part, some in {"train": rows[:6], "evaluate": rows[6:]}.items():
        path = folder / "evaluation_setup" / f"fold1_{part}.csv"
        write_csv(path, header[:2], [row[:2] for row in some], "\t")
    return {"dataset": folder}


COPIES = {
    "esc50": ("esc50", esc50),
    "fsd50k": ("fsd50k", fsd50k),
    "fsd50k_folder": ("fsd50k", fsd50k_folder),
    "openmic": ("openmic", openmic),
    "tau2020": ("tau2020", tau2020),
}
