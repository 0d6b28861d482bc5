"""Imports EfficientAT's published logits of a PaSST ensemble into a store."""

import os
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.clip_ids import youtube_id
from efficientat_plugin.support.files import atomic_folder
from efficientat_plugin.support.pickles import check_pickle
from efficientat_plugin.teachers.store.logits_store import LogitsStore
from efficientat_plugin.teachers.store.verify import LOOKED_AT, look_like_probabilities
from efficientat_plugin.teachers.store.writer import StoreWriter

MAX_INDEX_BYTES = 1 << 29  # the published index of 2 million clips has 40 MB


def import_published(
    logits_npy: str | os.PathLike,
    index_pickle: str | os.PathLike,
    path: str | os.PathLike,
    *,
    labels_sha256: str,
    num_classes: int | None = None,
    teacher: str = "passt_ensemble_mAP_495",
    teacher_sha256: str | None = None,
    sample_rate: int = 32000,
    clip_seconds: float = 10.0,
    rows_per_append: int = 8192,
) -> LogitsStore:
    """Converts the published file of logits and its index to a store.

    An early published index was wrong, and training with it failed silently:
    ``verify`` the store against the labels of AudioSet before use. Rows without an
    id are left out.

    Arguments
    ---------
    logits_npy : str or Path
        ``passt_enemble_logits_mAP_495.npy``: [rows, K], float16 or float32.
    index_pickle : str or Path
        ``fname_to_index.pkl``: a dict of YouTube id to row. It is read without
        importing or calling anything that it names.
    path : str or Path
        Folder of the store, which must not exist. It appears when the import is
        complete; a killed import leaves a hidden folder whose name ends in ``.part``.
    labels_sha256 : str
        Digest of the table of the K class names.
    num_classes : int or None
        K, the number of classes in the table; None: not compared.
    teacher : str
        Name of the teacher.
    teacher_sha256 : str or None
        Digest of its weights.
    sample_rate : int
        Sample rate of its input, Hz.
    clip_seconds : float
        Length of the clips, s.
    rows_per_append : int
        Rows in memory at once.

    Returns
    -------
    store : LogitsStore

    Raises
    ------
    FileNotFoundError
        If either file is missing.
    ValueError
        If ``path`` exists, or a file is not as published, e.g. if it has another
        number of classes or probabilities instead of logits.
    """
    if rows_per_append < 1:
        raise ValueError(f"rows_per_append={rows_per_append} must be 1 or more")
    path = Path(os.path.abspath(path))
    if path.exists():
        raise ValueError(f"{path} exists; name another folder, or remove it")
    logits = _open_logits(Path(logits_npy))
    _refuse_unlike(Path(logits_npy), logits, num_classes)
    rows, clip_ids = _read_index(Path(index_pickle), len(logits))
    try:
        with (
            atomic_folder(path) as partial,
            StoreWriter(
                partial,
                teacher=teacher,
                teacher_sha256=teacher_sha256,
                labels_sha256=labels_sha256,
                num_classes=logits.shape[1],
                sample_rate=sample_rate,
                clip_seconds=clip_seconds,
            ) as writer,
            tqdm(total=len(rows), unit="clip", dynamic_ncols=True) as bar,
        ):
            for start in range(0, len(rows), rows_per_append):
                chosen = slice(start, start + rows_per_append)
                writer.append(clip_ids[chosen], logits[rows[chosen]])
                bar.update(len(rows[chosen]))
    except ValueError as error:
        raise ValueError(f"{logits_npy} and {index_pickle}: {error}") from error
    return LogitsStore(path)


def _open_logits(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; download the published logits")
    try:
        logits = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a crafted header can raise nearly anything
        raise ValueError(
            f"{path} cannot be read as a .npy of numbers ({error}); download it again"
        ) from None
    if (
        not isinstance(logits, np.ndarray)
        or logits.ndim != 2
        or logits.dtype.newbyteorder("=") not in (np.float16, np.float32)
        or 0 in logits.shape
    ):
        raise ValueError(
            f"{path} must hold a float16 or float32 array [rows, classes], but holds "
            f"{getattr(logits, 'dtype', type(logits))} "
            f"{list(getattr(logits, 'shape', []))}; is it the published file?"
        )
    return logits


def _refuse_unlike(path: Path, logits: np.ndarray, num_classes: int | None) -> None:
    """Refuses another number of classes, and probabilities instead of logits."""
    rows, columns = logits.shape
    if num_classes not in (None, columns):
        raise ValueError(
            f"{path} holds [{rows}, {columns}], and the label table has {num_classes} "
            "classes; "
            + (
                "it is transposed, so save it again as [rows, classes]"
                if rows == num_classes
                else "give logits of all its classes, in its order"
            )
        )
    if look_like_probabilities(logits[:: max(1, rows // LOOKED_AT)]):
        raise ValueError(
            f"{path} holds only numbers from 0 to 1, which are probabilities; save "
            "logits, log(p / (1 - p)) for each"
        )


def _read_index(path: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the rows in ascending order, and the clip id of each."""
    index = _read_plain_pickle(path)
    if not isinstance(index, dict) or not index:
        raise ValueError(
            f"{path} must hold a dict of clip id to row, but holds "
            f"{type(index).__name__ if index else 'nothing'}; is it the published one?"
        )
    clip_of_row: dict[int, str] = {}
    seen: set[str] = set()
    for name, row in index.items():
        if not isinstance(name, str) or type(row) is not int or not 0 <= row < count:
            raise ValueError(
                f"{path} maps {_cut(name)} to {_cut(row)}; it must map strings to "
                f"rows from 0 to {count - 1}, so index and logits do not belong "
                "together; download both again"
            )
        clip_id = youtube_id(name)
        if row in clip_of_row or clip_id in seen:
            raise ValueError(
                f"{path} gives row {row} or clip {clip_id!r} twice; each row has one "
                "clip and each clip one row, so use the corrected index"
            )
        clip_of_row[row] = clip_id
        seen.add(clip_id)
    rows = sorted(clip_of_row)
    return np.array(rows, dtype=np.int64), [clip_of_row[row] for row in rows]


def _cut(value: object) -> str:
    """Shortens a value for messages; other types could print at any length."""
    if isinstance(value, str):
        return f"{value[:80]!r:.80}"
    usual = type(value) is int and abs(value) < 1 << 64
    return str(value) if usual else f"one of type {type(value).__name__}"


def _read_plain_pickle(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; download the published index")
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes; an index has at most "
            f"{MAX_INDEX_BYTES}, so check the path"
        )
    with open(path, "rb") as file:
        try:
            check_pickle(file, path.stat().st_size, calls_give_numbers=True)
            file.seek(0)
            return _PlainUnpickler(file).load()
        except Exception as error:  # a crafted file can raise nearly anything
            raise ValueError(
                f"{path} is not a pickle of a plain dict of strings and integers "
                f"({type(error).__name__}: {error}); do not trust it, download it again"
            ) from None


class _Integer:
    """Stands in for ``numpy.dtype`` of an integer when unpickling.

    numpy's own ``dtype`` and ``scalar`` parse their arguments in C, and with object
    types pass anything through; these stand-ins accept integers and call nothing.
    """

    __slots__ = ("size", "signed", "byteorder")

    def __init__(self, code: str, _align: object = False, _copy: object = True) -> None:
        match = re.fullmatch("([iu])([1248])", code)
        if match is None:
            raise pickle.UnpicklingError(f"numpy type {code!r:.20} is not an integer")
        self.signed, self.size = match[1] == "i", int(match[2])
        self.byteorder = "|"

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r:.20}")
        self.byteorder = state[1]


def _integer_scalar(kind: _Integer, raw: bytes) -> int:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    if type(kind) is not _Integer or type(raw) is not bytes or len(raw) != kind.size:
        raise pickle.UnpicklingError("a numpy scalar of another size than its type")
    order: Literal["big", "little"] = "big" if kind.byteorder == ">" else "little"
    return int.from_bytes(raw, order, signed=kind.signed)


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, strings and numbers; never an object that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Integer
        if name == "scalar" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _integer_scalar
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
