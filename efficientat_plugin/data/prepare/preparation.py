"""Converts any data set to Parquet shards that are fast to read.

Sound becomes mono, at one rate, with one codec. Shards are in AudioSet's schema,
``data/<split>/*.parquet``. Clips keep their ids, so that stored logits still match.
"""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import datasets
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.parts_of_rows import (
    Part,
    Preparation,
    Rows,
    head_of,
)
from efficientat_plugin.data.prepare.prepared_folder import (
    claimed,
    is_claimed,
    refuse_another,
)
from efficientat_plugin.data.prepare.shards import Record
from efficientat_plugin.data.prepare.workers import Workers
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.support.files import explain_write_errors

logger = logging.getLogger(__name__)


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

    If it is killed, the same call resumes, and ends with the same files, bit for bit,
    for any ``num_proc``. Until it is complete, the data set is in a folder whose name
    ends with ".partial". Of a complete one, only damaged shards are written again.

    Arguments
    ---------
    splits : Mapping[str, datasets.Dataset | datasets.IterableDataset]
        Rows by split, undecoded: from ``load_rows`` or ``read_table``. Processes share
        a stream by its files, and resume a file by reading past what is done.
    encoder : ClipEncoder
        Encodes the clips.
    folder : str | Path
        Folder to create.
    clips_per_shard : int
        Clips in a shard; fewer if some are unreadable.
    num_proc : int
        Number of processes.
    max_unreadable_share : float
        A larger share of unreadable clips, from 0 to 1, is an error; what is written
        stays, and a later call resumes from it.
    verify : bool
        Whether to read every shard again at the end and compare its bytes with those
        written. Each clip was already compared with its source when it was encoded.

    Returns
    -------
    Prepared

    Raises
    ------
    FileExistsError
        If the folder holds something else.
    OSError
        If the folder cannot be written.
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
    if not any(head_of(rows) for rows in splits.values()):
        raise ValueError(f"splits {', '.join(splits)} have no clip to prepare")
    with explain_write_errors(folder), claimed(folder) as work:
        job = Preparation(splits, encoder, work, clips_per_shard)
        refuse_another(work, job)
        skipped = SkippedClips(max_unreadable_share)
        num_new, parts = 0, list(job.parts())
        for _attempt in range(2):
            num_new += _write_missing(job, parts, num_proc, skipped)
            damaged = _mend(job, parts, num_proc) if verify else []
            if not damaged:
                break
            for text in damaged:
                logger.warning("Damaged, will be written again: %s", text)
        else:
            raise OSError(
                f"{len(damaged)} shards differ from what was written just before, the "
                f"first being {damaged[0]}; check the disk"
            )
        result = _summed_up(job, parts, folder)
        if not is_claimed(work):
            raise OSError(
                f"{work} was removed while it was written; rerun the same command"
            )
        if work != folder:
            if folder.exists():
                folder.rmdir()
            os.rename(work, folder)
    taken = time.monotonic() - start
    return result._replace(num_new=num_new, seconds_taken=taken)


def _write_missing(
    job: Preparation, parts: list[Part], num_proc: int, skipped: SkippedClips
) -> int:
    missing = []
    num_read = skipped.already_read = 0
    for part in parts:
        shards = job.finished(part)
        if shards is None:
            missing.append(part)
        else:
            num_read += _count(shards, skipped)
    sizes = [
        len(rows) if isinstance(rows, datasets.Dataset) else None
        for rows in job.splits.values()
    ]
    num_new = 0
    with tqdm(
        desc="Preparing",
        unit="clip",
        total=None if None in sizes else sum(filter(None, sizes)),
        initial=num_read,
        disable=not missing,
    ) as bar:
        with closing(Workers(job.write, num_proc).run(missing, bar.update)) as results:
            for part, num_clips in results:
                num_new += num_clips
                _count(job.finished(part) or {}, skipped)
    skipped.finish_pass()
    return num_new


def _count(shards: Mapping[str, Record], skipped: SkippedClips) -> int:
    for record in shards.values():
        skipped.already_read += record.num_clips
        skipped.add([Skipped(*each) for each in record.skipped], read=())
    return sum(record.num_read for record in shards.values())


def _mend(job: Preparation, parts: list[Part], num_proc: int) -> list[str]:
    with tqdm(desc="Verifying", unit="shard") as bar:
        with closing(Workers(job.mend, num_proc).run(parts, bar.update)) as results:
            return sorted(chain.from_iterable(damaged for _, damaged in results))


def _summed_up(job: Preparation, parts: list[Part], folder: Path) -> Prepared:
    found = [record for part in parts for record in (job.finished(part) or {}).values()]
    num_clips = sum(record.num_clips for record in found)
    return Prepared(
        folder,
        num_clips,
        seconds=sum(record.seconds for record in found),
        bytes_in=sum(record.bytes_in for record in found),
        bytes_out=sum(record.bytes_out for record in found),
        correlation=sum(r.correlations for r in found) / max(num_clips, 1),
        changed=[clip_id for record in found for clip_id in record.changed],
        num_skipped=sum(len(record.skipped) for record in found),
        num_new=0,
        seconds_taken=0.0,
    )
