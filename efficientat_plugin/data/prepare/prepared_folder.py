"""Checks what a folder of prepared data holds, and locks it for one writer."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets

from efficientat_plugin.data.digests import sounds_of
from efficientat_plugin.data.prepare.parts_of_rows import (
    STATE,
    Preparation,
    Rows,
    head_of,
)
from efficientat_plugin.data.prepare.shards import write_json
from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.locks import LOCK_FILE, lock_folder

OPTIONS = "options.json"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Locks and yields the folder to work in: the partial one until it is complete."""
    while True:
        work = _place_of_work(folder)
        lock = lock_folder(work / STATE, "give another --folder")
        try:
            if work == _place_of_work(folder):
                yield work
                return
            # Another process has just completed it: nothing is left in `work`.
            with suppress(OSError):
                (work / STATE / LOCK_FILE).unlink()
                (work / STATE).rmdir()
                work.rmdir()
        finally:
            lock.release()


def is_claimed(folder: Path) -> bool:
    """Whether a folder records what it was prepared from."""
    return (folder / STATE / OPTIONS).is_file()


def _place_of_work(folder: Path) -> Path:
    if is_claimed(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} already exists and is not a prepared data set; delete it or "
            "pass another folder"
        )
    return folder.with_name(f"{folder.name}.partial")


def refuse_another(work: Path, job: Preparation) -> None:
    """Refuses a folder that holds another source or was made with other options."""
    encoder = job.encoder
    wanted: dict[str, Any] = {
        "codec": encoder.codec,
        "sample_rate": encoder.sample_rate,
        "quality": encoder.quality,
        "max_seconds": encoder.max_seconds,
        "clips_per_shard": job.clips_per_shard,
        "splits": "+".join(job.splits),
    }
    for name, rows in job.splits.items():
        wanted[f"clips of {name}"] = _fingerprint(rows)
    path = work / STATE / OPTIONS
    if not path.exists():
        write_json(path, wanted)
    other = differences_of(json.loads(path.read_text(encoding="utf-8")), wanted)
    if other:
        listed = "; ".join(str(each) for each in other)
        raise ValueError(
            f"{work} holds other data ({listed}); give the same data and options as "
            "then, or pass another --folder"
        )


def _fingerprint(rows: Rows) -> str:
    """Describes rows by a digest, a stream by its number of files and first clip."""
    if not isinstance(rows, datasets.Dataset):
        first = [row["video_id"] for row in head_of(rows)]
        return f"{rows.num_shards} files from clip {first} on"
    heard = hashlib.sha256(b"".join(sounds_of(rows))).hexdigest()[:8]
    digest = hashlib.sha256()
    columns = [name for name in rows.column_names if name != "audio"]
    for batch in rows.select_columns(columns).iter(batch_size=10_000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(rows)} (digest {digest.hexdigest()[:16]}, sound {heard})"
