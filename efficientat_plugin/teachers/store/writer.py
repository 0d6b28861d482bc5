"""Writes a logits store; a job killed at any byte loses one append at most."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from efficientat_plugin.support.differences import differences_of
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.locks import lock_folder
from efficientat_plugin.teachers.store.logits_store import MAX_ID_BYTES, LogitsStore
from efficientat_plugin.teachers.store.manifest import (
    CLIPS,
    LOGITS,
    MANIFEST,
    ROW_TYPE,
    Manifest,
    file_size,
    read_manifest,
)

FLOAT16_MAX = 65504.0
DIGESTS = {"teacher_sha256": "weights", "labels_sha256": "classes"}


def _prepare_folder(path: Path) -> None:
    """Makes the folder; refuses one that holds anything but a store."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a store is a folder, so name another path")
    path.mkdir(parents=True, exist_ok=True)
    # A writer that was killed before its first manifest leaves empty and hidden files.
    if not (path / MANIFEST).exists() and any(
        entry.name not in (LOGITS, CLIPS) or file_size(entry)
        for entry in path.iterdir()
        if not entry.name.startswith(".")
    ):
        raise ValueError(
            f"{path} is not empty and has no {MANIFEST}, so it is not a store; name a "
            "folder that is empty or does not exist"
        )


def _refuse_other_teacher(path: Path, stored: Manifest, wanted: Manifest) -> None:
    other = differences_of(_in_words(stored), _in_words(wanted))
    if stored.teacher_sha256 and stored.teacher_sha256 == wanted.teacher_sha256:
        other = [each for each in other if each.name != "teacher"]  # just renamed
    if other:
        listed = "; ".join(str(each) for each in other)
        raise ValueError(
            f"the store at {path} holds other logits ({listed}); a store holds logits "
            "of one kind, so name another --output_folder, --store or "
            "--teacher_logits"
        )


def _in_words(manifest: Manifest) -> dict[str, Any]:
    """Describes what all logits of a store have in common, for messages."""
    kind = dict(manifest.kind)
    for name, what in DIGESTS.items():
        digest = kind.pop(name)
        kind[what] = None if digest is None else f"of digest {digest[:8]}"
    return kind


def _is_clean(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(letter < " " for letter in name)


def _write_all(file: FileIO, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]


class StoreWriter:
    """Creates a store or appends to one.

    Each append is committed before it returns: first the data reaches the disk, then a
    new manifest that counts it replaces the old one. Opening a store for writing
    discards what a killed writer left uncommitted.

    Arguments
    ---------
    path : str or Path
        Folder of the store; created if it does not exist.
    teacher : str
        Name of the teacher.
    labels_sha256 : str
        Digest of the table of class names.
    num_classes : int
        K.
    sample_rate : int
        Sample rate of the teacher's input, Hz.
    clip_seconds : float
        Length of the clips, s.
    teacher_sha256 : str or None
        Digest of the teacher's weights.
    precision : str
        Precision of the teacher: "fp32", "bf16" or "fp16".
    num_frames : int or None
        T', if logits of frames are stored; None: those of clips.
    frame_seconds : float or None
        From one frame to the next, s; needed with ``num_frames``.
    has_weak : bool
        Whether logits of whole clips are stored beside those of their frames.

    Raises
    ------
    ValueError
        If the store at ``path`` is another teacher's or already being written, or if
        the folder is neither a store nor empty.

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
        short_clips: str = "zero_pad",
        precision: str = "fp32",
        num_frames: int | None = None,
        frame_seconds: float | None = None,
        has_weak: bool = False,
    ) -> None:
        wanted = Manifest(
            teacher,
            teacher_sha256,
            labels_sha256,
            num_classes,
            sample_rate,
            clip_seconds,
            short_clips=short_clips,
            precision=precision,
            num_frames=num_frames,
            frame_seconds=frame_seconds,
            has_weak=has_weak,
        )
        self.path = Path(os.path.abspath(path))
        _prepare_folder(self.path)
        self._files: tuple[FileIO, ...] = ()
        # Two writers would mix their rows.
        self._lock = lock_folder(self.path, "name another store")
        try:
            for name in (LOGITS, CLIPS):
                # Unbuffered, so that a failed write leaves nothing to flush later.
                self._files += (open(self.path / name, "ab", buffering=0),)
            if not (self.path / MANIFEST).exists():
                self._commit(wanted)
            self.manifest = read_manifest(self.path)
            _refuse_other_teacher(self.path, self.manifest, wanted)
            lengths = self.manifest.logits_bytes, self.manifest.clips_bytes
            for file, length in zip(self._files, lengths, strict=True):
                file.truncate(length)
            self._known = set(LogitsStore(self.path).clip_ids())
        except BaseException:
            self.close()
            raise

    def _commit(self, manifest: Manifest) -> None:
        for file in self._files:
            os.fsync(file.fileno())
        with atomic_file(self.path / MANIFEST) as text:
            text.write(manifest.to_json())
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.count

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._known

    def append(
        self,
        clip_ids: Sequence[str],
        logits: Tensor | np.ndarray,
        digests: Sequence[str] | None = None,
        weak: Tensor | np.ndarray | None = None,
    ) -> None:
        """Appends rows and commits them.

        Arguments
        ---------
        clip_ids : Sequence[str]
            B new ids; skip those for which ``clip_id in writer``.
        logits : torch.Tensor or np.ndarray
            [B, K], or [B, K, T'] of frames; finite. Stored in float16, clamped to its
            range, +-65504.
        digests : Sequence[str] or None
            B digests of the samples that were scored; may be empty.
        weak : torch.Tensor, np.ndarray or None
            [B, K], likewise, of the clips of a store that ``has_weak``.

        Raises
        ------
        ValueError
            For input that cannot be stored; nothing is written then.
        """
        if not self._files:
            raise ValueError(
                f"the writer of {self.path} is closed; open another StoreWriter"
            )
        digests = [""] * len(clip_ids) if digests is None else digests
        self._refuse_bad_names(clip_ids, digests)
        shape = self.manifest.shape
        rows = self._as_float16(logits, clip_ids, shape)
        if self.manifest.has_weak != (weak is not None):
            raise ValueError(
                f"has_weak={self.manifest.has_weak} of {self.path}: give weak logits "
                "with every append, or with none"
            )
        if weak is not None:
            of_clips = self._as_float16(weak, clip_ids, shape[:1])
            flat = rows.reshape(len(rows), math.prod(shape))
            rows = np.concatenate([flat, of_clips], axis=1)
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
            self._known.update(clip_ids)
        except BaseException:
            # Disk full or interrupted: reopen the store to see what is committed.
            self.close()
            raise

    def _refuse_bad_names(
        self, clip_ids: Sequence[str], digests: Sequence[str]
    ) -> None:
        if isinstance(clip_ids, str) or len(digests) != len(clip_ids):
            raise ValueError(
                f"{len(clip_ids)} clip_ids and {len(digests)} digests: both must be "
                "lists of the same length; give '' for a missing digest"
            )
        for name in [*clip_ids, *digests]:
            if not isinstance(name, str) or not _is_clean(name):
                raise ValueError(
                    f"clip id or digest {name!r} must be a string without tabs, "
                    "newlines or other control characters; rename the clip"
                )
        seen: set[str] = set()
        for clip_id, digest in zip(clip_ids, digests, strict=True):
            longest = max(len(clip_id.encode()), len(digest.encode()) + 1)
            if not clip_id or longest > MAX_ID_BYTES:
                raise ValueError(
                    f"clip id {clip_id[:40]!r} must be from 1 to {MAX_ID_BYTES} bytes "
                    f"long and is {len(clip_id.encode())}; name the clip differently"
                )
            if clip_id in self._known or clip_id in seen:
                raise ValueError(
                    f"clip {clip_id!r} is in {self.path} or in this append already; a "
                    "clip has one row, so skip those for which `clip_id in writer`"
                )
            seen.add(clip_id)

    def _as_float16(
        self,
        logits: Tensor | np.ndarray,
        clip_ids: Sequence[str],
        shape: tuple[int, ...],
    ) -> np.ndarray:
        if isinstance(logits, Tensor):
            # numpy has no bfloat16, and float32 would make 1e39 infinite.
            logits = logits.detach().cpu().double().numpy()
        rows = np.asarray(logits)
        wanted = (len(clip_ids), *shape)
        if rows.shape != wanted or rows.dtype.kind not in "fiu":
            frames = ", a frame on the last axis" if len(shape) > 1 else ""
            raise ValueError(
                f"logits of shape {list(rows.shape)} and type {rows.dtype} must be "
                f"numbers of shape {list(wanted)}: a row per clip, a column per class"
                f"{frames}"
            )
        finite = np.isfinite(rows)
        if not finite.all():
            bad = int(np.argwhere(~finite)[0, 0])
            raise ValueError(
                f"row {bad} of the logits, clip {clip_ids[bad]!r}, is not finite; all "
                "must be, so check the teacher's output for that clip, or let it "
                "compute in float32"
            )
        return np.clip(rows, -FLOAT16_MAX, FLOAT16_MAX).astype(ROW_TYPE)

    def close(self) -> None:
        """Closes the files; all appends are already committed."""
        for file in self._files:
            file.close()
        self._files = ()
        self._lock.release()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
