"""A few short rows of noise, for tests of what reads them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.parquet import SCHEMA, audioset_row

SAMPLE_RATE = 32000
CLIP_SECONDS = 0.5
LABELS = LabelTable(["/m/a", "/m/b", "/m/c"], ["A", "B", "C"])
MIDS = [["/m/a"], ["/m/b", "/m/a"], ["/m/c"], []]  # labels of rows 0, 4, ...; 1, 5, ...
NUM_ROWS = 8
TRAIN_IDS = [
    f"-_train-00{number}" for number in range(NUM_ROWS)
]  # as long as YouTube's
EVAL_IDS = ["-_eval--000", "-_eval--001"]


def noise(seed, num_samples=16000):
    return 0.2 * np.random.default_rng(seed).standard_normal(num_samples)


def rows_of(ids):
    return [
        audioset_row(clip_id, noise(number), SAMPLE_RATE, MIDS[number % len(MIDS)])
        for number, clip_id in enumerate(ids)
    ]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def damaged(row):
    return {**row, "audio": {"bytes": b"this is no sound", "path": "a.wav"}}


def assert_equal(one, other):
    """Clips or batches, field by field."""
    for field, value in one._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, field)), field
        else:
            assert value == getattr(other, field), field
