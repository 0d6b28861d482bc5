"""Converts any data set to Parquet shards that are fast to read.

Sound becomes mono, at one rate, with one codec. Shards are in AudioSet's schema,
``data/<split>/*.parquet``. Clips keep their ids, so that stored logits still match.
"""

import hashlib
import json
import logging
import multiprocessing.connection
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import pyarrow as pa
import torch
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.digests import sounds_of
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.shards import (
    EncodedRow,
    Summary,
    encode_row,
    read_summary,
    schema_of,
    write_shard,
)
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.files import (
    atomic_file,
    delete_unfinished,
    explain_write_errors,
)
from efficientat_plugin.support.locks import lock_folder

logger = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

STATE = ".preparation"  # folder within the prepared one
OPTIONS = "options.json"
COMPLETE = "shards.json"  # number of shards of each split, once all are written


class Prepared(NamedTuple):
    """The summary of a preparation, over all of its runs."""

    folder: Path
    num_clips: int
    seconds: float  # of sound
    bytes_in: int
    bytes_out: int
    correlation: float  # mean, of clips with their encoded files
    changed: list[str]  # ids of clips with a low correlation
    num_skipped: int
    num_new: int  # clips of this run
    seconds_taken: float  # by this run

    def __str__(self) -> str:
        megabytes_in, megabytes_out = self.bytes_in / 1e6, self.bytes_out / 1e6
        text = (
            f"{self.folder}: {self.num_clips} clips, {self.seconds / 3600:.2f} hours, "
            f"{megabytes_in:.1f} MB became {megabytes_out:.1f} MB"
        )
        if self.seconds:
            text += f" ({8 * self.bytes_out / self.seconds / 1000:.0f} kbit/s)"
        if self.num_new:
            speed = self.num_new / self.seconds_taken
            text += f"; {self.num_new} clips now, {speed:.1f} clips/s"
        else:
            text += "; nothing was left to do"
        if self.correlation < 1:
            text += f"; mean correlation with the source {self.correlation:.4f}"
        return text


def prepare(
    splits: Mapping[str, Rows],
    encoder: ClipEncoder,
    folder: str | Path,
    clips_per_shard: int = 1000,
    num_proc: int = 1,
    max_unreadable_share: float = 0.01,
    verify: bool = True,
) -> Prepared:
    """Converts a data set to shards that are fast to read.

    If it is killed, the same call resumes after the last complete shard, and ends with
    the same clips for any ``num_proc``; but Ogg files have random serial numbers. Until
    it is complete, the data set is in a folder whose name ends with ".partial". Of a
    complete one, only missing and damaged shards are written again.

    Arguments
    ---------
    splits : Mapping[str, datasets.Dataset | datasets.IterableDataset]
        Rows by split, undecoded: from ``load_rows`` or ``read_table``. A stream is
        resumed by reading past what is done.
    encoder : ClipEncoder
        Encodes the clips.
    folder : str | Path
        Folder to create.
    clips_per_shard : int
        Clips in a shard; fewer if some are unreadable.
    num_proc : int
        Number of processes that encode; 1: only this one.
    max_unreadable_share : float
        A larger share of unreadable clips, from 0 to 1, is an error; what is written
        stays, and a later call resumes from it.
    verify : bool
        Whether to read every shard again at the end and compare it with its checksums.
        Each clip was already compared with its source when it was encoded.

    Returns
    -------
    Prepared

    Raises
    ------
    FileExistsError
        If the folder holds something else.
    OSError
        If the folder cannot be written, or one of several processes was killed.
    TooManyUnreadable
        If too many clips cannot be read.
    ValueError
        If the folder has other clips or options, or another process is writing it.

    Example
    -------
    >>> import tempfile
    >>> from efficientat_plugin.data.parquet import audioset_row
    >>> from efficientat_plugin.data.rows import load_rows
    >>> rows = datasets.Dataset.from_list([audioset_row("a", [0.0, 0.1] * 9, 16000)])
    >>> done = prepare({"eval": rows}, ClipEncoder("mp3"), tempfile.mkdtemp())
    >>> load_rows(str(done.folder), "eval")[0]["audio"]["path"]
    'a.mp3'
    """
    start = time.monotonic()
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard={clips_per_shard} must be 1 or more")
    if num_proc < 1:
        raise ValueError(f"num_proc={num_proc} must be 1 or more")
    if not any(_head_of(rows) for rows in splits.values()):
        raise ValueError(f"splits {', '.join(splits)} have no clip to prepare")
    with explain_write_errors(folder), _claimed(folder) as work:
        _refuse_another(work, splits, encoder, clips_per_shard)
        write = _Writing(work, splits, encoder, clips_per_shard, num_proc)
        skipped, num_new = SkippedClips(max_unreadable_share), 0
        found = _read_shards(work, splits)
        for _attempt in range(2):
            num_new += write.missing(found, skipped)
            num_written = len(found)
            found = _read_shards(work, splits, verify)
            if len(found) == num_written:
                break
        else:
            raise OSError(
                f"{num_written - len(found)} shards of {work} differ from what was "
                "written just before; check the disk"
            )
        if not (work / STATE / OPTIONS).is_file():
            raise OSError(
                f"{work} was removed while it was written; rerun the same command"
            )
        if work != folder:
            if folder.exists():
                folder.rmdir()
            os.rename(work, folder)
    return _summed_up(folder, list(found.values()), num_new, time.monotonic() - start)


@dataclass
class _Writing:
    """Encodes what is missing in processes, and writes it in this one."""

    work: Path
    splits: Mapping[str, Rows]
    encoder: ClipEncoder
    clips_per_shard: int
    num_proc: int

    def missing(self, found: dict[Path, Summary], skipped: SkippedClips) -> int:
        """Adds what is missing to the shards found; returns the number of new clips."""
        skipped.already_read = sum(summary.num_clips for summary in found.values())
        for summary in found.values():
            skipped.add([Skipped(*each) for each in summary.skipped], read=())
        num_new = 0
        sizes = [
            len(rows) if isinstance(rows, datasets.Dataset) else None
            for rows in self.splits.values()
        ]
        total = None if None in sizes else sum(filter(None, sizes))
        num_read = sum(summary.num_read for summary in found.values())
        complete = self.work / STATE / COMPLETE
        counts = json.loads(complete.read_text()) if complete.exists() else {}
        with tqdm(desc="Preparing", unit="clip", total=total, initial=num_read) as bar:
            for split, rows in self.splits.items():
                folder = self.work / "data" / split
                done = {int(path.stem) for path in found if path.parent == folder}
                if done and done == {*range(counts.get(split, 0))}:
                    continue
                schema = schema_of(_columns_of(rows))
                encoded = self._encoded(rows, done, schema, skipped, bar)
                for number, shard in groupby(encoded, key=itemgetter(0)):
                    path = folder / f"{number:05d}.parquet"
                    found[path] = write_shard(path, (row for _, row in shard), schema)
                    num_new += found[path].num_clips
        skipped.finish_pass()
        counts = Counter(path.parent.name for path in found)
        _write_json(complete, counts)
        return num_new

    def _encoded(
        self,
        rows: Rows,
        done: set[int],
        schema: pa.Schema,
        skipped: SkippedClips,
        bar: tqdm,
    ) -> Iterator[tuple[int, EncodedRow]]:
        """Yields the rows of missing shards, each with the number of its shard."""
        loader = torch.utils.data.DataLoader(
            _Encoding(self.encoder, schema),
            batch_size=None,
            sampler=_missing_rows(rows, done, self.clips_per_shard),
            num_workers=self.num_proc if self.num_proc > 1 else 0,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_parent,
        )
        try:
            for number, encoded in loader:
                skipped.already_read += encoded.row is not None
                skipped.add(filter(None, [encoded.skipped]), read=())
                bar.update()
                yield number, encoded
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"one of {self.num_proc} processes was killed, perhaps for lack of "
                "memory; rerun the same command, with a lower num_proc if so"
            ) from error


@dataclass
class _Encoding(torch.utils.data.Dataset):
    """Encodes rows in the place of looking them up by an index."""

    encoder: ClipEncoder
    schema: pa.Schema

    def __getitem__(self, numbered: tuple[int, Any]) -> tuple[int, EncodedRow]:
        number, row = numbered
        return number, encode_row(row, self.encoder, self.schema)


def _as_it_is(encoded: Any) -> Any:
    return encoded


def _end_with_parent(_worker: int) -> None:
    """Ends a worker once its parent is gone, even if it waits at a full pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _missing_rows(
    rows: Rows, done: set[int], size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows that are in none of the shards done; a stream is read past others."""
    if isinstance(rows, datasets.Dataset):
        places = [place for place in range(len(rows)) if place // size not in done]
        for place, row in zip(places, rows.select(places), strict=True):
            yield place // size, row
    else:
        for place, row in enumerate(rows):
            if place // size not in done:
                yield place // size, row


def _head_of(rows: Rows) -> list[dict[str, Any]]:
    """Returns a list of the first row, empty if there is none."""
    return list(rows.take(1))


def _columns_of(rows: Rows) -> list[str]:
    """Returns the names of the columns; some streams only show them in a row."""
    return rows.column_names or [name for row in _head_of(rows) for name in row]


def _read_shards(
    work: Path, splits: Mapping[str, Rows], verify: bool = False
) -> dict[Path, Summary]:
    """Reads the summaries of all shards; deletes and reports the damaged ones."""
    found, paths = {}, []
    for name in splits:
        delete_unfinished(work / "data" / name)
        files = sorted((work / "data" / name).glob("*.parquet"))
        paths += [file for file in files if file.stem.isdigit()]
    for path in tqdm(paths, desc="Verifying", unit="shard", disable=not verify):
        try:
            found[path] = read_summary(path, verify)
        except ValueError as error:
            logger.warning("Damaged, will be written again: %s", error)
            path.unlink()
    return found


def _summed_up(
    folder: Path, found: list[Summary], num_new: int, seconds_taken: float
) -> Prepared:
    num_clips = sum(summary.num_clips for summary in found)
    return Prepared(
        folder,
        num_clips,
        seconds=sum(summary.seconds for summary in found),
        bytes_in=sum(summary.bytes_in for summary in found),
        bytes_out=sum(summary.bytes_out for summary in found),
        correlation=sum(s.correlations for s in found) / max(num_clips, 1),
        changed=[clip_id for summary in found for clip_id in summary.changed],
        num_skipped=sum(len(summary.skipped) for summary in found),
        num_new=num_new,
        seconds_taken=seconds_taken,
    )


@contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """Locks and yields the folder to work in: the partial one until it is complete."""
    work = _place_of_work(folder)
    (work / STATE).mkdir(parents=True, exist_ok=True)
    lock = lock_folder(work / STATE, "give another --folder")
    try:
        if work != _place_of_work(folder):
            raise ValueError(f"another process has just prepared {folder}; try again")
        yield work
    finally:
        lock.release()


def _place_of_work(folder: Path) -> Path:
    if (folder / STATE / OPTIONS).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} already exists and is not a prepared data set; delete it or "
            "pass another folder"
        )
    return folder.with_name(f"{folder.name}.partial")


def _refuse_another(
    work: Path, splits: Mapping[str, Rows], encoder: ClipEncoder, clips_per_shard: int
) -> None:
    """Refuses a folder that holds another source or was made with other options."""
    wanted: dict[str, Any] = {
        "codec": encoder.codec,
        "sample_rate": encoder.sample_rate,
        "quality": encoder.quality,
        "max_seconds": encoder.max_seconds,
        "clips_per_shard": clips_per_shard,
        "splits": "+".join(splits),
    }
    for name, rows in splits.items():
        wanted[f"clips of {name}"] = _fingerprint(rows)
    path = work / STATE / OPTIONS
    if not path.exists():
        _write_json(path, wanted)
    other = differences_of(json.loads(path.read_text(encoding="utf-8")), wanted)
    if other:
        listed = "; ".join(str(each) for each in other)
        raise ValueError(
            f"{work} holds other data ({listed}); give the same data and options as "
            "then, or pass another --folder"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        json.dump(content, file, indent=1)


def _fingerprint(rows: Rows) -> str:
    """Describes rows by a digest, a stream by its number of files and first clip."""
    if not isinstance(rows, datasets.Dataset):
        first = [row["video_id"] for row in _head_of(rows)]
        return f"{rows.num_shards} files from clip {first} on"
    sound = hashlib.sha256(b"".join(sounds_of(rows))).hexdigest()[:8]
    digest = hashlib.sha256()
    columns = [name for name in rows.column_names if name != "audio"]
    for batch in rows.select_columns(columns).iter(batch_size=10_000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(rows)} (digest {digest.hexdigest()[:16]}, sound {sound})"
