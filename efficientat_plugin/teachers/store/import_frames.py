"""Imports logits of frames from HDF5, such as PretrainedSED's published ensemble."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.clip_ids import without_suffix, youtube_id
from efficientat_plugin.support.plain_text import some_of
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import (
    FRAMES_LOOKED_AT,
    look_like_probabilities,
)
from efficientat_plugin.teachers.store.writer import FLOAT16_MAX, StoreWriter

logger = logging.getLogger(__name__)

NAMES, LOGITS = "filenames", "strong_logits"  # of the published file
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
SUFFIX_LETTERS = ".mp3"  # what the published code strips from the ends of file names
WHOLE_NAME = len("Y--PJHxphWEs")
MAX_NAME_BYTES = 4096


class FrameFile(NamedTuple):
    """The clips of an HDF5 file, in its order, and how to read their logits."""

    names: list[str]
    logits: Any  # a dataset [N, K, T'], or a group with one [K, T'] for each name
    shape: tuple[int, int]  # K, T'

    def rows(self, places: list[int]) -> np.ndarray:
        """Reads logits of some clips, in ascending order: -> [B, K, T']."""
        if not hasattr(self.logits, "keys"):
            first, last = places[0], places[-1]  # one piece is read much faster
            piece = self.logits[first : last + 1]
            return piece[np.array(places) - first]
        return np.stack([self.logits[self.names[place]][()] for place in places])


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file has the name of an HDF5 file.

    Example
    -------
    >>> is_hdf5("ensemble.hdf5"), is_hdf5("logits.npy")
    (True, False)
    """
    return Path(path).suffix.lower() in HDF5_SUFFIXES


def import_frame_logits(
    hdf5: str | os.PathLike,
    path: str | os.PathLike,
    *,
    labels_sha256: str,
    num_classes: int,
    clip_ids: Collection[str] | None = None,
    teacher: str = "PretrainedSED_ensemble",
    sample_rate: int = 16000,
    clip_seconds: float = 10.0,
    rows_per_append: int = 128,
) -> LogitsStore:
    """Converts an HDF5 file of logits of frames to a store.

    The file has ``filenames`` [N] and ``strong_logits`` [N, K, T'], or a data set
    [K, T'] for each clip under the name of its file. Clips are stored by their YouTube
    ids. The published code looks clips up by ``name.rstrip(".mp3")``, which also cuts
    the letters m, p and 3 off the ends of ids; ``clip_ids`` completes such names.

    An interrupted import resumes. `verify` the store against labels before use.

    Arguments
    ---------
    hdf5 : str or Path
        The file. Links to other files are refused.
    path : str or Path
        Folder of the store; created if it does not exist.
    labels_sha256 : str
        Digest of the table of the K class names.
    num_classes : int
        K, the number of classes in the table.
    clip_ids : collection of str or None
        Ids of the clips that the file may have, such as those of AudioSet's table of
        strong labels; None: names are taken as they are.
    teacher : str
        Name of the teacher.
    sample_rate : int
        Sample rate of its input, Hz.
    clip_seconds : float
        Length of the clips, s; T' frames fill it.
    rows_per_append : int
        Clips in memory at once.

    Returns
    -------
    store : LogitsStore

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        Without h5py.
    ValueError
        If the file is not as described, has another number of classes or
        probabilities instead of logits, or ``path`` holds other logits.
    """
    if rows_per_append < 1:
        raise ValueError(f"rows_per_append={rows_per_append} must be 1 or more")
    with _opened(Path(hdf5)) as file:
        found = _read_names(Path(hdf5), file)
        _refuse_unlike(Path(hdf5), found, num_classes)
        ids = _ids_of_names(found.names, clip_ids)
        with StoreWriter(
            path,
            teacher=teacher,
            labels_sha256=labels_sha256,
            num_classes=num_classes,
            sample_rate=sample_rate,
            clip_seconds=clip_seconds,
            num_frames=found.shape[1],
            frame_seconds=clip_seconds / found.shape[1],
        ) as writer:
            _refuse_other_file(Path(hdf5), LogitsStore(path), found, ids)
            _append_all(writer, found, ids, rows_per_append)
    return LogitsStore(path)


def _opened(path: Path) -> Any:
    """Opens the file as a context manager."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; download the published logits")
    try:
        import h5py
    except ImportError:
        raise ImportError(
            f"{path} is HDF5, which needs the package h5py; pip install "
            "'efficientat_plugin[hdf5]', or pip install h5py"
        ) from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as HDF5 ({error}); download it again"
        ) from None


def _read_names(path: Path, file: Any) -> FrameFile:
    """Reads the names of the clips, and finds their logits."""
    if NAMES in file and LOGITS in file:
        names, logits = (_dataset(path, file, name) for name in (NAMES, LOGITS))
        if names.ndim != 1 or names.dtype.kind not in "SO":
            raise _unlike(path, f"{NAMES} of type {names.dtype} {list(names.shape)}")
        texts = [_as_text(path, name) for name in names[:]]
        _refuse_types(path, LOGITS, logits, 3)
        if len(texts) != len(logits):
            raise _unlike(path, f"{len(texts)} names and {len(logits)} rows of logits")
        return FrameFile(texts, logits, logits.shape[1:])
    texts = list(file)
    if not texts:
        raise _unlike(path, "nothing")
    shapes = set()
    for name in texts:
        logits = _dataset(path, file, name)
        _refuse_types(path, name, logits, 2)
        shapes.add(logits.shape)
    if len(shapes) > 1:
        raise _unlike(path, f"logits of different shapes, {some_of(sorted(shapes))}")
    return FrameFile(texts, file, shapes.pop())


def _dataset(path: Path, file: Any, name: str) -> Any:
    """Returns a data set that is in the file itself, not in another one."""
    import h5py

    link, item = file.get(name, getlink=True), None
    if isinstance(link, h5py.HardLink):
        item = file[name]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise _unlike(path, f"{name[:80]!r}, which is a group or leads elsewhere")
    return item


def _refuse_types(path: Path, name: str, logits: Any, axes: int) -> None:
    if (
        logits.ndim != axes
        or logits.dtype.newbyteorder("=") not in (np.float16, np.float32)
        or 0 in logits.shape
    ):
        raise _unlike(path, f"{name[:80]} of {logits.dtype} {list(logits.shape)}")


def _unlike(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path} holds {found}; it must hold {NAMES} [clips] and {LOGITS} [clips, "
        "classes, frames], or an array [classes, frames] for each clip, of float16 or "
        "float32"
    )


def _as_text(path: Path, name: Any) -> str:
    try:
        text = name.decode() if isinstance(name, bytes) else name
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str) or not 0 < len(text) <= MAX_NAME_BYTES:
        raise _unlike(path, f"{str(name)[:80]!r} among its {NAMES}")
    return text


def _refuse_unlike(path: Path, found: FrameFile, num_classes: int) -> None:
    """Refuses another number of classes, and probabilities instead of logits."""
    classes, frames = found.shape
    if classes != num_classes:
        transposed = "; it is transposed" if frames == num_classes else ""
        raise ValueError(
            f"{path} holds logits of {classes} classes in {frames} frames, and the "
            f"label table has {num_classes} classes{transposed}; give logits "
            "[classes, frames] of all its classes, in its order"
        )
    number = min(len(found.names), FRAMES_LOOKED_AT)
    spread = np.unique(np.linspace(0, len(found.names) - 1, number).astype(int))
    some = np.stack([found.rows([int(place)])[0] for place in spread])
    if look_like_probabilities(some):
        raise ValueError(
            f"{path} holds only numbers from 0 to 1, which are probabilities; save "
            "logits, log(p / (1 - p)) for each"
        )


def _ids_of_names(names: list[str], known: Collection[str] | None) -> list[str]:
    """Returns the id of each clip; "" for those that cannot be told apart."""
    whole: dict[str, list[str]] = {}
    for clip_id in known or ():
        whole.setdefault(f"Y{clip_id}".rstrip(SUFFIX_LETTERS), []).append(clip_id)
    # As published, every name begins with Y, so one of 11 characters is no whole id.
    prefixed = all(name.startswith("Y") for name in names)
    ids, cut = [], []
    for name in names:
        own, stem = youtube_id(name), without_suffix(name)
        is_cut = prefixed and len(stem) < WHOLE_NAME
        if is_cut:
            own = stem[1:]
        completed = whole.get(stem.rstrip(SUFFIX_LETTERS), [])
        completed = [i for i in completed if f"Y{i}".startswith(stem)]
        if completed and own not in completed:
            own = completed[0] if len(completed) == 1 else ""
        elif is_cut and not completed:
            cut.append(own)
        ids.append(own)
    count = Counter(ids)
    unclear = [n for n, i in zip(names, ids, strict=True) if not i or count[i] > 1]
    _report_names(unclear, cut, len(names))
    return [i if count[i] == 1 else "" for i in ids]


def _report_names(unclear: list[str], cut: list[str], number: int) -> None:
    if unclear:
        logger.warning(
            "%d of %d rows are left out, since two clips or two rows share their name:"
            " %s",
            len(unclear),
            number,
            some_of(unclear),
        )
    if 0 < 2 * len(cut) < number:  # else, they are no names of AudioSet
        logger.warning(
            "%d of %d names are no whole YouTube ids (the published code cuts m, p and "
            "3 off their ends): %s; pass AudioSet's table with --events to complete "
            "them",
            len(cut),
            number,
            some_of(cut),
        )


def _refuse_other_file(
    path: Path, stored: LogitsStore, found: FrameFile, ids: list[str]
) -> None:
    """Refuses to resume a store if the file has other logits of its clips."""
    places = {clip_id: place for place, clip_id in enumerate(ids)}
    for row in sorted({0, len(stored) - 1} if len(stored) else ()):
        clip_id = stored.clip(row)[0]
        place = places.get(clip_id)
        kept = stored.logits(np.array([row]))[0]
        if place is None or not np.array_equal(kept, _as_stored(found, [place])[0]):
            raise ValueError(
                f"{stored.path} holds other logits than {path}, e.g. of clip "
                f"{clip_id!r}; name another folder, or delete this one"
            )


def _as_stored(found: FrameFile, places: list[int]) -> np.ndarray:
    """Reads rows with the precision of a store."""
    rows = np.asarray(found.rows(places), np.float32)
    clipped = np.where(
        np.isfinite(rows), np.clip(rows, -FLOAT16_MAX, FLOAT16_MAX), rows
    )
    return clipped.astype(np.float16).astype(np.float32)


def _append_all(
    writer: StoreWriter, found: FrameFile, ids: list[str], rows_per_append: int
) -> None:
    """Appends the rows that are not stored yet, and reports those left out."""
    remaining = [n for n, i in enumerate(ids) if i and i not in writer]
    bad: list[str] = []
    with tqdm(
        total=len(ids), initial=len(ids) - len(remaining), unit="clip", leave=False
    ) as bar:
        for places in _pieces(remaining, rows_per_append):
            rows = found.rows(places)
            finite = np.isfinite(rows).all(axis=(1, 2))
            bad += [
                found.names[n] for n, on in zip(places, finite, strict=True) if not on
            ]
            kept = [ids[n] for n, on in zip(places, finite, strict=True) if on]
            writer.append(kept, rows[finite])
            bar.update(len(places))
    if bad:
        logger.warning(
            "%d rows are left out, since they are not finite: %s",
            len(bad),
            some_of(bad),
        )


def _pieces(places: list[int], number: int) -> Iterator[list[int]]:
    """Splits places into lists that span at most ``number`` rows of the file."""
    start = 0
    while start < len(places):
        end = start
        while end < len(places) and places[end] < places[start] + number:
            end += 1
        yield places[start:end]
        start = end
