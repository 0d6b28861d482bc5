"""Any source to Parquet shards that are quick to read: mono, at one rate, of one codec.

What is written is in AudioSet's schema, ``data/<split>/*.parquet``, with the ids that
clips had before, so that stored logits go on to fit.
"""

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.encoding import ClipEncoder
from efficientat_plugin.data.shards import (
    Record,
    find_damage,
    read_record,
    schema_of,
    write_json,
    write_shard,
)
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.data.workers import Workers

try:
    import fcntl
except ImportError:  # Windows: there, two runs at once go unnoticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

STATE = ".preparation"  # folder within the prepared one
OPTIONS = "options.json"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class Part(NamedTuple):
    """A stretch of a split that becomes one shard; of a stream, a file of several."""

    split: str
    number: int


class Prepared(NamedTuple):
    """What a preparation came to, all of its runs together."""

    folder: Path
    num_clips: int
    seconds: float  # of sound
    bytes_in: int
    bytes_out: int
    correlation: float  # mean, of clips and what their codec made of them
    changed: list[str]  # clips of a low one
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


class Preparation:
    """Knows the parts of a data set and writes or checks one; picklable.

    Arguments
    ---------
    splits : Mapping[str, datasets.Dataset | datasets.IterableDataset]
        Rows by split, undecoded: from ``load_rows`` or ``read_table``.
    encoder : ClipEncoder
    folder : Path
        Of the shards.
    clips_per_shard : int
    """

    def __init__(
        self,
        splits: Mapping[str, Rows],
        encoder: ClipEncoder,
        folder: Path,
        clips_per_shard: int,
    ) -> None:
        self.splits = dict(splits)
        self.encoder = encoder
        self.folder = folder
        self.clips_per_shard = clips_per_shard
        self.schemas = {
            name: schema_of(columns_of(rows)) for name, rows in self.splits.items()
        }

    def parts(self) -> Iterator[Part]:
        """All of them, in the order of the rows."""
        for name, rows in self.splits.items():
            if isinstance(rows, datasets.Dataset):
                num_parts = -(-len(rows) // self.clips_per_shard)
            else:
                num_parts = rows.num_shards
            yield from (Part(name, number) for number in range(num_parts))

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        """Of a shard and of its record."""
        return (
            self.folder / "data" / split / f"{name}.parquet",
            self.folder / STATE / split / f"{name}.json",
        )

    def finished(self, part: Part) -> dict[str, Record] | None:
        """Its shards by name; None: it is not finished."""
        if isinstance(self.splits[part.split], datasets.Dataset):
            name = f"{part.number:05d}"
            record = read_record(self.paths(part.split, name)[1])
            return None if record is None else {name: record}
        shards: dict[str, Record] = {}
        while True:
            name = f"{part.number:05d}-{len(shards):05d}"
            record = read_record(self.paths(part.split, name)[1])
            if record is None:
                return None
            shards[name] = record
            if record.num_read < self.clips_per_shard:
                return shards

    def write(self, part: Part, say_read: Callable[[], None]) -> tuple[Part, int]:
        """Writes what is missing of a part; returns it and how many clips that were."""
        rows = self.splits[part.split]
        if isinstance(rows, datasets.Dataset):
            start = part.number * self.clips_per_shard
            stop = min(start + self.clips_per_shard, len(rows))
            name = f"{part.number:05d}"
            chosen = rows.select(range(start, stop))
            return part, self._write(part.split, name, chosen, say_read).num_clips
        rows = rows.shard(rows.num_shards, part.number)
        return part, self._write_stream(part, rows, say_read)

    def _write_stream(
        self, part: Part, rows: datasets.IterableDataset, say_read: Callable[[], None]
    ) -> int:
        passing, num_new = iter(rows), 0
        for number in range(10**5):
            name = f"{part.number:05d}-{number:05d}"
            record = read_record(self.paths(part.split, name)[1])
            chosen = islice(passing, self.clips_per_shard)
            if record is None:
                record = self._write(part.split, name, chosen, say_read)
                num_new += record.num_clips
            else:  # of a stream, they have to be passed over
                for _ in chosen:
                    say_read()
            if record.num_read < self.clips_per_shard:
                break
        return num_new

    def _write(
        self,
        split: str,
        name: str,
        rows: Iterable[dict[str, Any]],
        say_read: Callable[[], None],
    ) -> Record:
        path, record_path = self.paths(split, name)
        return write_shard(
            path, record_path, rows, self.encoder, self.schemas[split], say_read
        )

    def mend(self, part: Part, say_done: Callable[[], None]) -> tuple[Part, list[str]]:
        """Forgets the shards of a finished part that are damaged; says which."""
        damaged = []
        for name, record in (self.finished(part) or {}).items():
            path, record_path = self.paths(part.split, name)
            reason = find_damage(path, record)
            say_done()
            if reason is not None:
                damaged.append(f"{path}: {reason}")
                path.unlink(missing_ok=True)
                record_path.unlink()
        return part, damaged


def prepare(
    splits: Mapping[str, Rows],
    encoder: ClipEncoder,
    folder: str | Path,
    clips_per_shard: int = 1000,
    num_proc: int = 1,
    max_unreadable_share: float = 0.01,
    verify: bool = True,
) -> Prepared:
    """Writes a data set anew, for readers that are in a hurry.

    Killed at any time, the same call goes on, and ends with the same files, bit for
    bit, for any ``num_proc``. Until it is whole the data set is in a folder whose name
    ends with ".partial". Of a whole one only what is damaged is written again.

    Arguments
    ---------
    splits : Mapping[str, datasets.Dataset | datasets.IterableDataset]
        Rows by split, undecoded: from ``load_rows`` or ``read_table``. A stream is
        dealt out by its files, and resumed within one by passing over what is done.
    encoder : ClipEncoder
        Says what becomes of a clip.
    folder : str | Path
        To make.
    clips_per_shard : int
        Fewer where clips were unreadable.
    num_proc : int
        Processes.
    max_unreadable_share : float
        More than this is an error; what is written stays, to go on from.
    verify : bool
        Read every shard again at the end. Each clip was decoded and compared with its
        source when it was encoded; here its bytes are held against those.

    Returns
    -------
    Prepared

    Raises
    ------
    FileExistsError
        If something else is in the folder.
    OSError
        If it cannot be written.
    TooManyUnreadable
        If too many clips cannot be read.
    ValueError
        If the folder is of other clips or options, or is being written.

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
    if not any(True for rows in splits.values() for _ in _head(rows)):
        raise ValueError(f"splits {', '.join(splits)} have no clip to prepare")
    with _told_if_not_writable(folder), _claimed(folder) as work:
        job = Preparation(splits, encoder, work, clips_per_shard)
        _refuse_another(work, job)
        skipped = SkippedClips(max_unreadable_share)
        num_new, parts = 0, list(job.parts())
        for _attempt in range(2):
            num_new += _write_missing(job, parts, num_proc, skipped)
            damaged = _mend(job, parts, num_proc) if verify else []
            if not damaged:
                break
            for text in damaged:
                logger.warning("Damaged, to be written again: %s", text)
        else:
            raise OSError(
                f"{len(damaged)} shards differ from what was written just before, the "
                f"first being {damaged[0]}; check the disk"
            )
        result = _summed_up(job, parts, folder)
        if work != folder:
            if folder.exists():
                folder.rmdir()
            os.rename(work, folder)
    taken = time.monotonic() - start
    return result._replace(num_new=num_new, seconds_taken=taken)


def columns_of(rows: Rows) -> list[str]:
    """Names of the columns; of some streams only a row tells them."""
    return rows.column_names or list(_head(rows)[0])


def _head(rows: Rows) -> list[dict[str, Any]]:
    if isinstance(rows, datasets.Dataset):
        return [{}] * min(len(rows), 1)
    return list(rows.take(1))


def _write_missing(
    job: Preparation, parts: list[Part], num_proc: int, skipped: SkippedClips
) -> int:
    missing = []
    num_read = 0
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
        skipped.add([Skipped(*each) for each in record.skipped], record.num_clips)
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


# --- The folder ---------------------------------------------------------------


@contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """Where to work: the folder if it is whole, or else what is there of it."""
    if (folder / STATE / OPTIONS).is_file():
        work = folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} is there already and is no prepared data set; delete it or name "
            "another folder"
        )
    else:
        work = folder.with_name(f"{folder.name}.partial")
    (work / STATE).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield work
        return
    handle = os.open(work / STATE, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work
    except BlockingIOError:
        raise ValueError(
            f"{folder} is being prepared by another process; wait for it or end it"
        ) from None
    finally:
        os.close(handle)


def _refuse_another(work: Path, job: Preparation) -> None:
    """A folder is of one source and one choice of options."""
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
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{name}={value!r} differs from {name}={found.get(name)!r} of what is "
                f"in {work}; give what was given then, or name another folder"
            )


def _fingerprint(rows: Rows) -> str:
    """Of everything but the sound; of a stream, of its number of files."""
    if not isinstance(rows, datasets.Dataset):
        return f"{rows.num_shards} files from clip {_head(rows)[0]['video_id']!r} on"
    digest = hashlib.sha256()
    columns = [name for name in rows.column_names if name != "audio"]
    for batch in rows.select_columns(columns).iter(batch_size=10_000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return f"{len(rows)} of digest {digest.hexdigest()[:16]}"


@contextmanager
def _told_if_not_writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE or isinstance(error, FileExistsError):
            raise
        raise OSError(
            f"{folder} cannot be written ({os.strerror(error.errno)}); make room for "
            "it, or make it writable, and give the same command again"
        ) from error
