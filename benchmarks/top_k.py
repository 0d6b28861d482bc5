"""What is lost, and what is saved, when a store keeps the top k logits of each clip.

> python benchmarks/top_k.py PATH_IN_AUDIOSET_SCHEMA --split eval --teacher mn04_as

The teacher hears the clips once; its logits are stored whole and by the top k. Prints a
Markdown table: bytes of a clip's logits, macro mAP of what the store gives back, and
how far its probabilities are from those of all logits in float32.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from efficientat_plugin.data.clips import Clips
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.labels import audioset_labels
from efficientat_plugin.data.loading import read_batches
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.evaluation.metrics import tagging_scores
from efficientat_plugin.students.ensemble import Ensemble
from efficientat_plugin.teachers.load import load_teacher
from efficientat_plugin.teachers.store.dump import hear
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.manifest import LOGITS
from efficientat_plugin.teachers.store.writer import StoreWriter

TOP_K = (10, 20, 50, 100, None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="eval")
    parser.add_argument("--teacher", default="mn04_as")
    parser.add_argument("--clip-seconds", type=float, default=10.0)
    parser.add_argument("--cache", default=None)
    arguments = parser.parse_args()
    rows = load_rows(arguments.dataset, arguments.split, cache_dir=arguments.cache)
    teacher = Ensemble([load_teacher(arguments.teacher)]).eval()
    reader = ClipReader(audioset_labels(), arguments.clip_seconds, teacher.sample_rate)
    ids: list[str] = []
    found, expected = [], []
    with torch.inference_mode():
        for batch in read_batches(Clips(rows, reader), "teacher", batch_size=8):
            ids += batch.clip_id
            found.append(hear(teacher, batch.waveform, "cpu", "fp32"))
            expected.append(batch.labels)
    logits, labels = torch.cat(found), torch.cat(expected).numpy()
    print("| k | bytes per clip | of all | mAP | mean error | largest error |")
    print("|---" * 6 + "|")
    for top_k in TOP_K:
        print(row_of_table(top_k, ids, logits, labels), flush=True)
    precision = tagging_scores(logits.sigmoid().numpy(), labels).mAP
    print(f"\nIn float32, mAP {precision:.4f}; N = {len(ids)} clips.")


def row_of_table(
    top_k: int | None, ids: list[str], logits: torch.Tensor, labels: np.ndarray
) -> str:
    """Stores the logits and holds what comes back against them."""
    with TemporaryDirectory() as folder:
        with StoreWriter(
            Path(folder) / "store",
            teacher="teacher",
            labels_sha256=audioset_labels().sha256,
            num_classes=logits.shape[1],
            sample_rate=32000,
            clip_seconds=10.0,
            top_k=top_k,
        ) as writer:
            writer.append(ids, logits)
        store = LogitsStore(Path(folder) / "store")
        size = (store.path / LOGITS).stat().st_size / len(ids)
        scores = store.lookup(ids).logits.sigmoid().numpy()
    error = np.abs(scores - logits.sigmoid().numpy())
    return (
        f"| {top_k or 'all'} | {size:.0f} | {size / (2 * logits.shape[1]):.1%} | "
        f"{tagging_scores(scores, labels).mAP:.4f} | {error.mean():.1e} | "
        f"{error.max():.1e} |"
    )


if __name__ == "__main__":
    main()
