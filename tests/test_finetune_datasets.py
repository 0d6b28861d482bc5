"""The YAML of each data set, from a small copy of its schema to a model folder."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from recipe_runs import REPOSITORY, arguments_of, run_recipe

from efficientat_plugin.pretrained.folder import read_model_folder
from efficientat_plugin.students.mn import MN

HPARAMS = REPOSITORY / "hparams"
RATE = 16000

pytestmark = pytest.mark.slow


def _classes(name):
    with open(HPARAMS / "data" / f"{name}.yaml", encoding="utf-8") as file:
        return load_hyperpyyaml(file)["classes"]


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


def _csv(path, header, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def esc50(folder):
    classes, rows = _classes("esc50")[:2], []
    for number in range(12):
        name = f"{1 + number % 3}-{100 + number // 2}-A-{number % 2}.wav"
        _wav(folder / "audio" / name, number)
        rows.append([name, 1 + number // 2 % 3, classes[number % 2], 100 + number // 2])
    _csv(
        folder / "meta" / "esc50.csv",
        ["filename", "fold", "category", "src_file"],
        rows,
    )
    return {"dataset": folder, "fold": 2}


def fsd50k(folder):
    """MP3 as lists of bytes; some clips are longer than those of training."""
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
    header, rows = ["fname", "labels", "mids", "split"], []
    for number in range(10):
        split, labels = "val" if number > 7 else "train", "Bark,Dog"
        _wav(folder / "FSD50K.dev_audio" / f"{number}.wav", number)
        rows.append([number, labels if number % 2 else "Rain", "", split])
    truth = folder / "FSD50K.ground_truth"
    _csv(truth / "dev.csv", header, rows)
    for number in range(10, 14):
        _wav(folder / "FSD50K.eval_audio" / f"{number}.wav", number, 1.2)
    rows = [[n, "Bark,Dog" if n % 2 else "Rain", ""] for n in range(10, 14)]
    _csv(truth / "eval.csv", header[:3], rows)
    return {"dataset": folder}


def openmic(folder):
    classes = _classes("openmic")
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
    _csv(folder / "meta.csv", header, rows, "\t")
    for part, some in {"train": rows[:6], "evaluate": rows[6:]}.items():
        path = folder / "evaluation_setup" / f"fold1_{part}.csv"
        _csv(path, header[:2], [row[:2] for row in some], "\t")
    return {"dataset": folder}


COPIES = {
    "esc50": ("esc50", esc50),
    "fsd50k": ("fsd50k", fsd50k),
    "fsd50k_folder": ("fsd50k", fsd50k_folder),
    "openmic": ("openmic", openmic),
    "tau2020": ("tau2020", tau2020),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the run of each copy is."""
    parent = tmp_path_factory.mktemp("runs")
    weights = parent / "weights.pt"
    torch.manual_seed(0)
    torch.save(MN(7, width=0.1).state_dict(), weights)
    calls = []
    for name, (yaml, make) in COPIES.items():
        (parent / "data" / name).mkdir(parents=True)
        options = make(parent / "data" / name) | {
            "pretrained": weights,
            "log_mel": "{n_mels: 128, hop_length: 320}",
            "output_folder": parent / name,
            "dataset_cache": parent / "cache",
            "clip_seconds": 0.5,
            "number_of_epochs": 1,
            "batch_size": 4,
            "num_workers": 0,
            "device": "cpu",
        }
        calls.append(arguments_of(yaml, **options))
    run_recipe("finetune", calls)
    return parent


def _metrics(folder):
    return json.loads((folder / "model" / "metrics.json").read_text())


CUT = "test, the first 0.5 s of each clip alone"


def test_esc50_tests_its_fold(runs):
    metrics = _metrics(runs / "esc50" / "fold2")
    assert set(metrics) == {"test, 4 clips", CUT}
    model = read_model_folder(runs / "esc50" / "fold2" / "model")
    assert list(model.labels.names) == _classes("esc50")  # all, in the official order


@pytest.mark.parametrize(("name", "clips"), [("fsd50k", 6), ("fsd50k_folder", 4)])
def test_fsd50k_is_tested_cut_and_whole(runs, name, clips):
    metrics = _metrics(runs / name)
    whole, cut = metrics[f"test, {clips} clips"], metrics[CUT]
    assert whole["num_clips"] == clips == cut["num_clips"]
    assert whole != cut  # something was heard beyond the cut
    history = (runs / name / "train_log.txt").read_text()
    assert history.splitlines()[0].startswith("epoch loaded: 0 - valid loss: ")
    assert "valid num_clips: 2" in history  # the official ones choose the epoch
    assert len(read_model_folder(runs / name / "model").labels) == 200


def test_openmic_scores_what_was_judged(runs):
    with open(runs / "openmic" / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["name"] for row in rows]
    assert names == _classes("openmic")[:3]  # nobody judged the others
    assert _metrics(runs / "openmic")["test, 6 clips"]["num_clips"] == 6


def test_tau2020_is_scored_by_device(runs):
    metrics = _metrics(runs / "tau2020")
    devices = {name: found["num_clips"] for name, found in metrics.items()}
    assert devices == {
        "test, 6 clips": 6,
        CUT: 6,
        "device a": 2,
        "device s1": 2,
        "device s4": 2,
    }
