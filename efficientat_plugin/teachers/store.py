"""A teacher's logits, made beforehand and kept on disk, found again by clip.

A store is a folder of three files: ``manifest.json`` says whose logits they are and
how much of the other two counts, ``logits.f16`` is raw little-endian ``[count, K]``,
and ``clips.tsv`` names the clip of each row and, after a tab, the digest of the
samples that the teacher heard (may be empty). Whatever lies beyond the lengths in
the manifest was never committed, so a job killed at any byte loses its last append
and nothing else.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efficientat_plugin.contracts import TeacherTarget

try:
    import fcntl
except ImportError:  # Windows: there, two writers at once go unnoticed
    fcntl = None  # type: ignore[assignment]

FORMAT, VERSION = "logits store", 1
MANIFEST, LOGITS, CLIPS = "manifest.json", "logits.f16", "clips.tsv"
MAX_ID_BYTES = 255  # the index is as wide as the longest id
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Manifest:  # no named tuple: those have a method called count
    """Whose logits a store holds, and how much of its files is committed.

    Raises
    ------
    ValueError
        Naming the first field that is not legal.
    """

    teacher: str  # its name
    teacher_sha256: str | None  # digest of its weights
    labels_sha256: str  # digest of the table of class names, in order
    num_classes: int  # K
    sample_rate: int  # of what the teacher heard, Hz
    clip_seconds: float  # the window it heard
    count: int = 0  # rows committed
    logits_bytes: int = 0
    clips_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("teacher", "labels_sha256"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name}={value!r} must be a string, not empty")
        if not isinstance(self.teacher_sha256, str | None):
            raise ValueError(
                f"teacher_sha256={self.teacher_sha256!r} must be a string or None"
            )
        for name, least in [
            ("num_classes", 1),
            ("sample_rate", 1),
            ("count", 0),
            ("logits_bytes", 0),
            ("clips_bytes", 0),
        ]:
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} must be an int of {least} or more")
        seconds = self.clip_seconds
        if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
            raise ValueError(f"clip_seconds={seconds!r} must be above 0 and finite")
        if self.logits_bytes != self.count * self.num_classes * 2:
            raise ValueError(
                f"logits_bytes={self.logits_bytes} is not count={self.count} rows of "
                f"{self.num_classes} classes of 2 bytes"
            )


class LogitsStore:
    """The logits of a teacher, read-only and mapped into memory.

    Opening reads the clip ids into a sorted array of bytes and leaves the logits on
    disk. It pickles as its path: a worker process opens the files anew.

    Arguments
    ---------
    path : str or Path
        Folder of the store.

    Raises
    ------
    FileNotFoundError
        When there is no store.
    ValueError
        When there is one that cannot be relied upon.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> about = {"teacher": "passt", "labels_sha256": "0" * 64, "num_classes": 2}
    >>> heard = {"sample_rate": 32000, "clip_seconds": 10.0}
    >>> with TemporaryDirectory() as folder:
    ...     with StoreWriter(f"{folder}/passt", **about, **heard) as writer:
    ...         writer.append(["a", "b"], torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    ...     store = LogitsStore(f"{folder}/passt")
    ...     store.lookup(["b", "unheard"])
    TeacherTarget(logits=tensor([[ 3., -4.],
            [ 0.,  0.]]), known=tensor([ True, False]))
    """

    def __init__(self, path: str | os.PathLike) -> None:
        # A worker may run in another folder.
        self.path = Path(os.path.abspath(path))
        self.manifest = _read_manifest(self.path)
        self._sorted_ids, self._order, self._line_starts = self._index_clips()
        shape = (self.manifest.count, self.manifest.num_classes)
        self._logits = (
            np.memmap(self.path / LOGITS, dtype="<f2", mode="r", shape=shape)
            if shape[0]  # an empty file cannot be mapped
            else np.empty(shape, dtype="<f2")
        )

    @classmethod
    def open_or_none(cls, path: str | None) -> "LogitsStore | None":
        """The store at ``path``, or None for None: what a YAML's ``null`` means.

        Arguments
        ---------
        path : str or None
            Folder of the store.

        Returns
        -------
        store : LogitsStore or None
        """
        return None if path is None else cls(path)

    def _index_clips(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids sorted, the row of each, and where each row's line starts, bytes."""
        count, length = self.manifest.count, self.manifest.clips_bytes
        if not count:
            return np.empty(0, "S1"), np.empty(0, np.int64), np.empty(0, np.int64)
        text = np.memmap(self.path / CLIPS, dtype=np.uint8, mode="r", shape=(length,))
        ends = np.flatnonzero(text == ord("\n"))
        tabs = np.flatnonzero(text == ord("\t"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        if not (
            len(ends) == len(tabs) == count
            and ends[-1] == length - 1
            and (starts < tabs).all()
            and (tabs < ends).all()
            and (tabs - starts).max() <= MAX_ID_BYTES
        ):
            raise ValueError(
                f"{self.path / CLIPS} must have {count} lines of a clip id, a tab and "
                "a digest, and has not; it was damaged, so make the store anew"
            )
        # Column by column: no Python string per clip, of which there are millions.
        widths = tabs - starts
        letters = np.zeros((count, widths.max()), np.uint8)
        for column in range(letters.shape[1]):
            rows = np.flatnonzero(widths > column)
            letters[rows, column] = text[starts[rows] + column]
        ids = letters.view(f"S{letters.shape[1]}")[:, 0]
        order = np.argsort(ids)
        ids = ids[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            raise ValueError(
                f"{self.path / CLIPS} has clip {ids[twice[0]].decode()!r} twice; a "
                "clip has one row, so make the store anew"
            )
        return ids, order, starts

    def __len__(self) -> int:
        return self.manifest.count

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and bool(self.rows([clip_id])[0] >= 0)

    def __repr__(self) -> str:
        return f"LogitsStore({str(self.path)!r}), {len(self)} clips"

    def __reduce__(self) -> tuple:
        return type(self), (str(self.path),)

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """The row of each clip.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B of them, known or not, the same one several times if need be.

        Returns
        -------
        rows : np.ndarray
            [B], int64; -1 where the clip is unknown.
        """
        if isinstance(clip_ids, str) or not all(isinstance(i, str) for i in clip_ids):
            raise ValueError(
                f"clip_ids={str(clip_ids)[:80]!r} must be a list of strings; "
                "convert the ids of the clips to str"
            )
        rows = np.full(len(clip_ids), -1, np.int64)
        if not len(clip_ids) or not len(self):
            return rows
        # What is too long or ends in NUL would be cut to fit, and then found; no id
        # is empty, so the empty one never is.
        width = self._sorted_ids.dtype.itemsize
        queries = [clip_id.encode(errors="surrogatepass") for clip_id in clip_ids]
        queries = [q if len(q) <= width and b"\0" not in q else b"" for q in queries]
        wanted = np.array(queries, dtype=self._sorted_ids.dtype)
        places = np.searchsorted(self._sorted_ids, wanted)
        places = np.minimum(places, len(self) - 1)
        found = self._sorted_ids[places] == wanted
        rows[found] = self._order[places[found]]
        return rows

    def lookup(self, clip_ids: Sequence[str]) -> TeacherTarget:
        """What the teacher says of a batch of clips.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B of them, known or not.

        Returns
        -------
        target : TeacherTarget
            On the CPU, logits in float32.
        """
        rows = self.rows(clip_ids)
        known = rows >= 0
        logits = np.zeros((len(rows), self.manifest.num_classes), np.float32)
        logits[known] = self._logits[rows[known]]
        return TeacherTarget(torch.from_numpy(logits), torch.from_numpy(known))

    def clip(self, row: int) -> tuple[str, str]:
        """Whose row this is.

        Arguments
        ---------
        row : int
            From 0 to ``len(store) - 1``.

        Returns
        -------
        clip_id : str
        digest : str
            Of the samples that the teacher heard; may be empty.
        """
        if not 0 <= row < len(self):
            raise ValueError(f"row={row} must be from 0 to {len(self) - 1}")
        with open(self.path / CLIPS, "rb") as clips:
            clips.seek(self._line_starts[row])
            clip_id, digest = clips.readline().decode().rstrip("\n").split("\t")
        return clip_id, digest

    def digest(self, clip_id: str) -> str:
        """Digest of the samples that the teacher heard of a clip.

        Arguments
        ---------
        clip_id : str
            A clip of the store.

        Returns
        -------
        digest : str
            Empty when none was kept.

        Raises
        ------
        ValueError
            When the clip is unknown.
        """
        row = int(self.rows([clip_id])[0])
        if row < 0:
            raise ValueError(
                f"clip {clip_id!r} is not in {self.path}; ask `clip_id in store` first"
            )
        return self.clip(row)[1]


class StoreWriter:
    """Makes a store, or goes on with one, an append at a time.

    Each append is committed before it returns: the data is on disk first, then the
    manifest that counts it replaces the old one. Opening a store for writing cuts
    off what a killed writer left uncommitted.

    Arguments
    ---------
    path : str or Path
        Folder of the store; made when it does not exist.
    teacher : str
        Name of the teacher.
    labels_sha256 : str
        Digest of the table of class names.
    num_classes : int
        K.
    sample_rate : int
        Of what the teacher hears, Hz.
    clip_seconds : float
        The window it hears.
    teacher_sha256 : str or None
        Digest of its weights.

    Raises
    ------
    ValueError
        When the store at ``path`` is another teacher's, is being written already, or
        is no store and not empty.

    Example
    -------
    See ``LogitsStore``.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        teacher: str,
        labels_sha256: str,
        num_classes: int,
        sample_rate: int,
        clip_seconds: float,
        teacher_sha256: str | None = None,
    ) -> None:
        wanted = Manifest(
            teacher,
            teacher_sha256,
            labels_sha256,
            num_classes,
            sample_rate,
            clip_seconds,
        )
        self.path = Path(os.path.abspath(path))
        _prepare_folder(self.path)
        self._files: tuple[FileIO, ...] = ()
        try:
            for name in (LOGITS, CLIPS):
                # Unbuffered: a failed write leaves nothing to be written later.
                self._files += (open(self.path / name, "ab", buffering=0),)
            self._lock()
            if not (self.path / MANIFEST).exists():
                self._commit(wanted)
            self.manifest = _read_manifest(self.path)
            _refuse_other_teacher(self.path, self.manifest, wanted)
            lengths = self.manifest.logits_bytes, self.manifest.clips_bytes
            for file, length in zip(self._files, lengths, strict=True):
                file.truncate(length)
            self._ids = set(_read_ids(self.path, self.manifest))
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Two jobs that append to one store would mix their rows."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.path} is being written by another process; a store has one "
                "writer at a time, so wait for it or end it"
            ) from None

    def _commit(self, manifest: Manifest) -> None:
        for file in self._files:
            os.fsync(file.fileno())
        aside = self.path / f"{MANIFEST}.partial"
        with open(aside, "w", encoding="utf-8") as text:
            json.dump(
                {"format": FORMAT, "version": VERSION, **asdict(manifest)},
                text,
                indent=2,
            )
            text.flush()
            os.fsync(text.fileno())
        os.replace(aside, self.path / MANIFEST)
        _sync_folder(self.path)
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.count

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._ids

    def append(
        self,
        clip_ids: Sequence[str],
        logits: Tensor | np.ndarray,
        digests: Sequence[str] | None = None,
    ) -> None:
        """Add rows and commit them.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B new ones; ask ``clip_id in writer`` to skip those already there.
        logits : torch.Tensor or np.ndarray
            [B, K], finite numbers. Kept in float16; what is beyond its range is
            set to +-65504.
        digests : Sequence[str] or None
            B digests of the samples that the teacher heard; an empty one says
            nothing.

        Raises
        ------
        ValueError
            For what cannot be stored; nothing is then written.
        """
        if not self._files:
            raise ValueError(
                f"the writer of {self.path} is closed; open another StoreWriter"
            )
        digests = [""] * len(clip_ids) if digests is None else digests
        self._refuse_bad_names(clip_ids, digests)
        rows = self._as_float16(logits, len(clip_ids))
        if not len(clip_ids):
            return
        lines = "".join(f"{i}\t{d}\n" for i, d in zip(clip_ids, digests, strict=True))
        payloads = rows.tobytes(), lines.encode()
        try:
            for file, payload in zip(self._files, payloads, strict=True):
                _write_all(file, payload)
            self._commit(
                replace(
                    self.manifest,
                    count=self.manifest.count + len(clip_ids),
                    logits_bytes=self.manifest.logits_bytes + len(payloads[0]),
                    clips_bytes=self.manifest.clips_bytes + len(payloads[1]),
                )
            )
            self._ids.update(clip_ids)
        except BaseException:
            # Disk full, or interrupted: only opening anew tells what was committed.
            self.close()
            raise

    def _refuse_bad_names(
        self, clip_ids: Sequence[str], digests: Sequence[str]
    ) -> None:
        if isinstance(clip_ids, str) or len(digests) != len(clip_ids):
            raise ValueError(
                f"{len(clip_ids)} clip_ids and {len(digests)} digests: both must be "
                "lists of the same length; give '' where there is no digest"
            )
        for name in [*clip_ids, *digests]:
            if not isinstance(name, str) or not _is_clean(name):
                raise ValueError(
                    f"clip id or digest {name!r} must be a string without tabs, "
                    "newlines or other control characters; rename the clip"
                )
        seen: set[str] = set()
        for clip_id in clip_ids:
            if not 0 < len(clip_id.encode()) <= MAX_ID_BYTES:
                raise ValueError(
                    f"clip id {clip_id[:40]!r} must be from 1 to {MAX_ID_BYTES} bytes "
                    f"long and is {len(clip_id.encode())}; name the clip differently"
                )
            if clip_id in self._ids or clip_id in seen:
                raise ValueError(
                    f"clip {clip_id!r} is in {self.path} or in this append already; a "
                    "clip has one row, so skip those for which `clip_id in writer`"
                )
            seen.add(clip_id)

    def _as_float16(self, logits: Tensor | np.ndarray, count: int) -> np.ndarray:
        if isinstance(logits, Tensor):
            # numpy has no bfloat16, and float32 would make 1e39 infinite.
            logits = logits.detach().cpu().double().numpy()
        rows = np.asarray(logits)
        if (
            rows.shape != (count, self.manifest.num_classes)
            or rows.dtype.kind not in "fiu"
        ):
            raise ValueError(
                f"logits of shape {list(rows.shape)} and type {rows.dtype} must be "
                f"numbers of shape [{count}, {self.manifest.num_classes}]: a row per "
                "clip, a column per class"
            )
        finite = np.isfinite(rows)
        if not finite.all():
            bad = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise ValueError(
                f"row {bad} of the logits is not finite; all must be, so look at what "
                "the teacher made of that clip"
            )
        return np.clip(rows, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2")

    def close(self) -> None:
        """Let go of the files; what was appended is committed already."""
        for file in self._files:
            file.close()
        self._files = ()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _prepare_folder(path: Path) -> None:
    """Make the folder, and leave alone what is somebody else's."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a store is a folder, so name another path")
    path.mkdir(parents=True, exist_ok=True)
    # Created and killed before the first manifest, the files are still empty.
    ours = {f"{MANIFEST}.partial", LOGITS, CLIPS}
    if not (path / MANIFEST).exists() and any(
        entry.name not in ours or (entry.name in (LOGITS, CLIPS) and _size(entry))
        for entry in path.iterdir()
    ):
        raise ValueError(
            f"{path} is not empty and has no {MANIFEST}, so it is not a store; name a "
            "folder that is empty or does not exist"
        )


def _read_manifest(path: Path) -> Manifest:
    """The manifest of the store at ``path``, and its files at least as long."""
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no logits store at {path}: it must be a folder with {MANIFEST}; make "
            "one with StoreWriter, or set the path to null to do without"
        ) from None
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise ValueError(
            f"{path / MANIFEST} is not the manifest of a logits store, which is JSON "
            f'with "format": "{FORMAT}"; check the path'
        )
    if entries.get("version") != VERSION:
        raise ValueError(
            f"{path} is a store of version {entries.get('version')!r} and only "
            f"version {VERSION} is read here; make it anew or use the release that "
            "wrote it"
        )
    names = [field.name for field in fields(Manifest)]
    missing = [name for name in names if name not in entries]
    if missing:
        raise ValueError(
            f"{path / MANIFEST} lacks {', '.join(missing)}; make the store anew"
        )
    try:
        manifest = Manifest(**{name: entries[name] for name in names})
    except ValueError as error:
        raise ValueError(
            f"{path / MANIFEST} was damaged: {error}; make the store anew"
        ) from None
    for name, length in [
        (LOGITS, manifest.logits_bytes),
        (CLIPS, manifest.clips_bytes),
    ]:
        if _size(path / name) < length:
            raise ValueError(
                f"{path / name} has {_size(path / name)} bytes and the manifest "
                f"promises {length}; the copy is incomplete, so copy the store again"
            )
    return manifest


def _refuse_other_teacher(path: Path, stored: Manifest, wanted: Manifest) -> None:
    for name in [field.name for field in fields(Manifest)][:6]:
        here, given = getattr(stored, name), getattr(wanted, name)
        if here != given:
            raise ValueError(
                f"{name}={given!r} differs from {name}={here!r} of the store at "
                f"{path}; logits of one store are of one kind, so write to another"
            )


def _read_ids(path: Path, manifest: Manifest) -> Iterator[str]:
    if manifest.count:
        with open(path / CLIPS, encoding="utf-8", newline="\n") as clips:
            for line in clips:
                yield line.split("\t")[0]


def _is_clean(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(letter < " " for letter in name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write_all(file: FileIO, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]


def _sync_folder(path: Path) -> None:
    """A rename is on disk when its folder is."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
