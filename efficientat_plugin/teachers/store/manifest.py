"""The manifest of a store: describes its logits and how much is committed."""

import json
import math
import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "logits store", 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_NUMBERS = 1 << 24  # of a row, which limits the memory of a lookup
MANIFEST, LOGITS, CLIPS = "manifest.json", "logits.f16", "clips.tsv"
ROW_TYPE = np.dtype("<f2")
AMOUNTS = ("count", "logits_bytes", "clips_bytes")
OF_FRAMES = ("num_frames", "frame_seconds", "has_weak")


@dataclass(frozen=True)
class Manifest:  # no named tuple: those have a method called count
    """Describes the logits of a store, and how much of its files is committed.

    Raises
    ------
    ValueError
        Names the first illegal field.
    """

    teacher: str  # its name
    teacher_sha256: str | None  # digest of its weights
    labels_sha256: str  # digest of the table of class names, in order
    num_classes: int  # K
    sample_rate: int  # of the teacher's input, Hz
    clip_seconds: float  # length of the clips, s
    count: int = 0  # rows committed
    logits_bytes: int = 0
    clips_bytes: int = 0
    short_clips: str = "zero_pad"  # how shorter sound was lengthened
    precision: str = "fp32"  # of the teacher
    num_frames: int | None = None  # T', if frames were scored; None: clips were
    frame_seconds: float | None = None  # from one frame to the next, s
    has_weak: bool = False  # whether logits of the clip follow those of its frames

    def __post_init__(self) -> None:
        for name in ("teacher", "labels_sha256", "short_clips", "precision"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name}={value!r:.80} must be a string, not empty")
        if not isinstance(self.teacher_sha256, str | None):
            raise ValueError(
                f"teacher_sha256={self.teacher_sha256!r:.80} must be a string or None"
            )
        frames = () if self.num_frames is None else ("num_frames",)
        for name in ("num_classes", "sample_rate", *frames, *AMOUNTS):
            value, least = getattr(self, name), int(name not in AMOUNTS)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"{name}={value!r:.80} must be an int of {least} or more"
                )
        _check_seconds("clip_seconds", self.clip_seconds)
        if self.num_frames is not None:
            _check_seconds("frame_seconds", self.frame_seconds)
        elif self.frame_seconds is not None or self.has_weak is not False:
            raise ValueError(
                f"frame_seconds={self.frame_seconds!r:.80} and has_weak="
                f"{self.has_weak!r:.80} are of frames, so they need num_frames"
            )
        if type(self.has_weak) is not bool:
            raise ValueError(f"has_weak={self.has_weak!r:.80} must be true or false")
        if self.row_numbers > MAX_NUMBERS:
            raise ValueError(
                f"num_classes={self.num_classes!r:.80} and num_frames="
                f"{self.num_frames!r:.80} are more than {MAX_NUMBERS} numbers a clip"
            )
        if self.logits_bytes != self.count * self.row_numbers * ROW_TYPE.itemsize:
            raise ValueError(
                f"logits_bytes={self.logits_bytes} is not count={self.count} rows of "
                f"{self.row_in_words} in float16"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes of the logits of one clip: [K], or [K, T'] of frames."""
        if self.num_frames is None:
            return (self.num_classes,)
        return self.num_classes, self.num_frames

    @property
    def row_numbers(self) -> int:
        """The numbers in a row: K; K T' of frames, and K more of the clip."""
        return math.prod(self.shape) + self.num_classes * self.has_weak

    @property
    def row_in_words(self) -> str:
        """What a row holds."""
        if self.num_frames is None:
            return f"{self.num_classes} classes"
        more = " and the whole clip" if self.has_weak else ""
        return f"{self.num_classes} classes in {self.num_frames} frames{more}"

    @property
    def kind(self) -> dict[str, Any]:
        """The fields that all logits of a store have in common."""
        left_out = AMOUNTS if self.num_frames is not None else AMOUNTS + OF_FRAMES
        return {name: v for name, v in asdict(self).items() if name not in left_out}

    def to_json(self) -> str:
        """Returns the text of the file."""
        amounts = {name: getattr(self, name) for name in AMOUNTS}
        about = {"format": FORMAT, "version": VERSION, **self.kind, **amounts}
        return json.dumps(about, indent=2)


def _check_seconds(name: str, seconds: Any) -> None:
    if type(seconds) not in (int, float) or not 0 < seconds < math.inf:
        raise ValueError(f"{name}={seconds!r:.80} must be above 0 and finite")


def file_size(path: Path) -> int:
    """Returns the size of a file, bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def read_manifest(path: Path) -> Manifest:
    """Reads the manifest of a store and checks the lengths of its files.

    Arguments
    ---------
    path : Path
        Folder of the store.

    Returns
    -------
    manifest : Manifest

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If the manifest is corrupt or of another version, or a file is too short.
    """
    _refuse_special_files(path)
    entries = _read_entries(path)
    given = {f.name: entries.get(f.name, f.default) for f in fields(Manifest)}
    if missing := [name for name, value in given.items() if value is MISSING]:
        raise ValueError(
            f"{path / MANIFEST} lacks {', '.join(missing)}; rebuild the store"
        )
    try:
        manifest = Manifest(**given)
    except ValueError as error:
        raise ValueError(
            f"{path / MANIFEST} is corrupt: {error}; rebuild the store"
        ) from None
    for name, length in [
        (LOGITS, manifest.logits_bytes),
        (CLIPS, manifest.clips_bytes),
    ]:
        if file_size(path / name) < length:
            raise ValueError(
                f"{path / name} has {file_size(path / name)} bytes, not the {length} "
                "in the manifest; the copy is incomplete, so copy the store again"
            )
    return manifest


def _refuse_special_files(path: Path) -> None:
    """Refuses pipes and devices, which may never end; links to files are allowed."""
    for name in (MANIFEST, LOGITS, CLIPS):
        try:
            if (path / name).is_file() or not os.path.lexists(path / name):
                continue
        except OSError:  # a loop of links
            pass
        raise ValueError(
            f"{path / name} is neither a file nor a link to one; copy the store again"
        )
    if file_size(path / MANIFEST) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"{path / MANIFEST} has {file_size(path / MANIFEST)} bytes; a manifest has "
            f"at most {MAX_MANIFEST_BYTES}, so check the path"
        )


def _read_entries(path: Path) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no logits store at {path}: it must be a folder with {MANIFEST}; make "
            "one with StoreWriter, or set the path to null to train without it"
        ) from None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise ValueError(
            f"{path / MANIFEST} is not the manifest of a logits store, which is JSON "
            f'with "format": "{FORMAT}"; check the path'
        )
    if entries.get("version") != VERSION:
        raise ValueError(
            f"{path} is a store of version {entries.get('version')!r:.80}, and only "
            f"version {VERSION}, which keeps all logits of a clip, is supported; "
            "rebuild it, or use the release that wrote it"
        )
    return entries


def map_rows(path: Path, manifest: Manifest) -> np.ndarray:
    """Maps the rows of a store into memory, as they are on disk."""
    shape = (manifest.count, manifest.row_numbers)
    if not manifest.count:  # an empty file cannot be mapped
        return np.empty(shape, ROW_TYPE)
    return np.memmap(path / LOGITS, dtype=ROW_TYPE, mode="r", shape=shape)
