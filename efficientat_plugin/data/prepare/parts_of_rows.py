"""Divides a data set into parts, each of which a process prepares on its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets

from efficientat_plugin.data.prepare.encoding import ClipEncoder
from efficientat_plugin.data.prepare.shards import (
    Record,
    find_damage,
    read_record,
    schema_of,
    write_shard,
)

Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset

STATE = ".preparation"  # folder within the prepared one


class Part(NamedTuple):
    """Rows of a split that become one shard; of a stream, a file for some shards."""

    split: str
    number: int


def columns_of(rows: Rows) -> list[str]:
    """Returns the names of the columns; some streams only show them in a row."""
    return rows.column_names or [name for row in head_of(rows) for name in row]


def head_of(rows: Rows) -> list[dict[str, Any]]:
    """Returns a list of the first row, empty if there is none."""
    return list(rows.take(1))


class Preparation:
    """Lists the parts of a data set, and writes or checks one; picklable.

    Arguments
    ---------
    splits : Mapping[str, datasets.Dataset | datasets.IterableDataset]
        Rows by split, undecoded: from ``load_rows`` or ``read_table``.
    encoder : ClipEncoder
    folder : Path
        Folder of the shards.
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
        """Yields all parts, in the order of the rows."""
        for name, rows in self.splits.items():
            if isinstance(rows, datasets.Dataset):
                num_parts = -(-len(rows) // self.clips_per_shard)
            else:
                num_parts = rows.num_shards
            yield from (Part(name, number) for number in range(num_parts))

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        """Returns the paths of a shard and of its record."""
        return (
            self.folder / "data" / split / f"{name}.parquet",
            self.folder / STATE / split / f"{name}.json",
        )

    def finished(self, part: Part) -> dict[str, Record] | None:
        """Returns the shards of a part by name; None: it is not finished."""
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
        """Writes a part's missing shards; returns it and its number of new clips."""
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
            else:  # a stream has to be read past them
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
        """Deletes the damaged shards of a finished part; returns it and their list."""
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
