"""EfficientAT's published logits of an ensemble of PaSST, as a store."""

import os
import pickle
import re
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from efficientat_plugin.data.clip_ids import youtube_id
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
    """Convert the published file of logits and its index to a store.

    An index once published was wrong, and training with it bad without an error:
    ``verify`` the store against the labels of AudioSet before use. Rows without an
    id are left out.

    Arguments
    ---------
    logits_npy : str or Path
        ``passt_enemble_logits_mAP_495.npy``: [rows, K], float16 or float32.
    index_pickle : str or Path
        ``fname_to_index.pkl``: a dict of YouTube id to row. Read without importing
        or calling anything that it names.
    path : str or Path
        Folder of the store, which must not exist. It appears when all is done; what
        a killed import leaves is beside it, with ``.partial`` in the name.
    labels_sha256 : str
        Digest of the table of the K class names.
    num_classes : int or None
        How many there are; None does not compare.
    teacher : str
        Name of the teacher.
    teacher_sha256 : str or None
        Digest of its weights.
    sample_rate : int
        Of what it heard, Hz.
    clip_seconds : float
        The window it heard.
    rows_per_append : int
        Rows in memory at once.

    Returns
    -------
    store : LogitsStore

    Raises
    ------
    FileNotFoundError
        When either file is missing.
    ValueError
        When ``path`` exists, or either file is not what is published: for another
        number of classes, and for probabilities in place of logits.
    """
    if rows_per_append < 1:
        raise ValueError(f"rows_per_append={rows_per_append} must be 1 or more")
    path = Path(os.path.abspath(path))
    if path.exists():
        raise ValueError(f"{path} exists; name a folder that does not, or remove it")
    logits = _open_logits(Path(logits_npy))
    _refuse_unlike(Path(logits_npy), logits, num_classes)
    rows, clip_ids = _read_index(Path(index_pickle), len(logits))
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with (
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
        os.rename(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, ValueError):
            raise ValueError(f"{logits_npy} and {index_pickle}: {error}") from error
        raise
    return LogitsStore(path)


def _open_logits(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; download the published logits")
    try:
        logits = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a crafted header, nearly anything
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
            f"{path} must hold a float16 or float32 array [rows, classes] and holds "
            f"{getattr(logits, 'dtype', type(logits))} "
            f"{list(getattr(logits, 'shape', []))}; is it the published file?"
        )
    return logits


def _refuse_unlike(path: Path, logits: np.ndarray, num_classes: int | None) -> None:
    """Refuses what has the form of logits, and cannot be those of the classes."""
    rows, columns = logits.shape
    if num_classes not in (None, columns):
        raise ValueError(
            f"{path} holds [{rows}, {columns}], and the label table has {num_classes} "
            "classes; "
            + (
                "it is transposed, so save it again as [rows, classes]"
                if rows == num_classes
                else "give logits of all of them, in the order of the table"
            )
        )
    if look_like_probabilities(logits[:: max(1, rows // LOOKED_AT)]):
        raise ValueError(
            f"{path} holds numbers from 0 to 1 alone, which are probabilities; save "
            "the logits, log(p / (1 - p)) of each"
        )


def _read_index(path: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Rows in ascending order, and the clip id of each."""
    index = _read_plain_pickle(path)
    if not isinstance(index, dict) or not index:
        raise ValueError(
            f"{path} must hold a dict of clip id to row and holds "
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
    """For messages: what is neither a string nor a usual number may be any long."""
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
    """Stands for ``numpy.dtype`` of an integer, and for the state it is given.

    numpy's own ``dtype`` and ``scalar`` parse what they are given in C, and with
    object types hand through anything; these know integers and call nothing.
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
    """Stands for ``numpy.core.multiarray.scalar``."""
    if type(kind) is not _Integer or type(raw) is not bytes or len(raw) != kind.size:
        raise pickle.UnpicklingError("a numpy scalar of another size than its type")
    order: Literal["big", "little"] = "big" if kind.byteorder == ">" else "little"
    return int.from_bytes(raw, order, signed=kind.signed)


class _PlainUnpickler(pickle.Unpickler):
    """Containers, strings and numbers; never what the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Integer
        if name == "scalar" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _integer_scalar
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
