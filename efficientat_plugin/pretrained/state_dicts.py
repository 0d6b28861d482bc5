"""Reads files of weights, without executing code in them."""

import io
import logging
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from efficientat_plugin.support.files import EXPORTED, open_file
from efficientat_plugin.support.pickles import check_pickle
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

# Keys or prefixes under which training loops and wrappers save a network
WRAPPINGS = "state_dict model_state_dict model student module net _orig_mod".split()
MAX_WRAPPINGS = 10  # nested
LEGACY_PICKLES = 5  # a magic number, a version, the system, the state, storage keys
STATE_NAMES = re.compile(
    r"collections OrderedDict|torch \w+Storage|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)


def read_state(path: Path, unwrap: bool = True) -> dict[str, Tensor]:
    """Reads a state dict from a file, without executing code in it.

    Training loops may save more than that. A state dict under "model", "state_dict" or
    the like is found, and a common prefix such as "module." is removed, also if they
    are nested; a warning reports it.

    Arguments
    ---------
    path : Path
    unwrap : bool
        False keeps names as they are, e.g. of a module that contains a student, whose
        names begin with "student.".

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ValueError
        For a file that is not a state dict.
    """
    if path.suffix.lower() in EXPORTED:
        raise ValueError(
            f"{path} is an exported model, whose weights cannot be loaded here; use it "
            "with `efficientat tag` or efficientat_plugin.runtime.Tagger (ONNX), or "
            "give the weights it was exported from"
        )
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, NotAsSaved):
        raise
    except Exception as error:  # garbage makes the unpickler raise just about anything
        raise ValueError(
            f"{path} holds no weights that torch can load; delete it and download or "
            "save it again"
        ) from error
    content, wrapping = _unwrapped(content) if unwrap else (content, [])
    is_state = (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )
    if not is_state:
        what = (
            f"a mapping with {sorted(map(_described, content))[:5]}"
            if isinstance(content, Mapping)
            else f"a {type(content).__name__}"
        )
        raise ValueError(
            f"{path} holds {what}, not the names and tensors of a state dict; save "
            "student.state_dict() by itself"
        )
    for name, value in content.items():
        if not _is_plain(value):
            raise ValueError(
                f"{path} has an entry {_described(name)} that is not a plain array of "
                "numbers; save student.state_dict() as it is"
            )
    size, wanted = path.stat().st_size, _storage_bytes(content.values())
    if wanted > size:  # the excess would be uninitialised memory
        raise ValueError(
            f"{path} has {size} bytes, too few for its tensors of {wanted} bytes; save "
            "student.state_dict() again"
        )
    for name, value in content.items():
        if not _is_finite(value):
            raise ValueError(
                f"{path} has numbers in {_described(name)} that are not finite, "
                "perhaps because training diverged; give weights from before that"
            )
    if wrapping:
        logger.warning(
            "%s holds more than a state dict, or wraps it: weights were read from %s",
            path,
            " in ".join(repr(name) for name in reversed(wrapping)),
        )
    return dict(content)


def _unwrapped(content: Any) -> tuple[Any, list[str]]:
    """Returns the state dict in a checkpoint, and the keys and prefixes around it."""
    wrapping: list[str] = []
    while isinstance(content, Mapping) and content and len(wrapping) < MAX_WRAPPINGS:
        if any(isinstance(value, Tensor) for value in content.values()):
            names = [name if isinstance(name, str) else "" for name in content]
            fitting = (
                before
                for before in WRAPPINGS
                if all(name.startswith(f"{before}.") for name in names)
            )
            if (before := next(fitting, None)) is None:
                break
            values = content.values()
            content = {
                name.removeprefix(f"{before}."): value
                for name, value in zip(names, values, strict=True)
            }
            wrapping.append(f"{before}.")
        else:
            found = ((key, content.get(key)) for key in WRAPPINGS)
            keys = (key for key, value in found if isinstance(value, Mapping) and value)
            if (key := next(keys, None)) is None:
                break
            content = content[key]
            wrapping.append(key)
    return content, wrapping


def _described(name: object) -> str:
    """Shortens a name in a file; anything else, of any length, becomes its type."""
    return shown(name)[:80] if isinstance(name, str) else type(name).__name__


class NotAsSaved(ValueError):
    """Raised for a file that torch never saves, since loading it may never end."""


def _check_archive(path: Path) -> None:
    """Refuses an archive that is compressed or was changed after torch.save.

    Raises
    ------
    ValueError
    """
    with open_file(path) as file:
        if file.read(4) != b"PK\3\4":  # saved before torch 1.6, without checksums
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_pickle(path, file)
            return
        start = _directory_start(file)
        if start is None:
            raise _odd_archive(path)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type for entry in entries):
                raise NotAsSaved(
                    f"{path} is a compressed archive, which torch.save never writes; "
                    "save the weights with torch.save"
                )
            within = sum(entry.file_size for entry in entries) <= start
            if archive.start_dir != start or not within:  # one member in another
                raise _odd_archive(path)
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is corrupt")
            for entry in entries:
                if entry.filename.lower().endswith(".pkl"):  # torch ignores case
                    _check_pickle(path, io.BytesIO(archive.read(entry)))


def _check_pickle(path: Path, file: BinaryIO) -> None:
    try:
        check_pickle(file, path.stat().st_size, STATE_NAMES)
    except pickle.UnpicklingError as error:
        raise NotAsSaved(
            f"{path} holds no weights that torch can load, or more than weights "
            f"({error}); delete it and download it again, or save student.state_dict() "
            "by itself"
        ) from error


def _odd_archive(path: Path) -> NotAsSaved:
    return NotAsSaved(
        f"{path} is not an archive as torch.save writes it, or is truncated or "
        "corrupt; download or save it again"
    )


def _directory_start(file: BinaryIO) -> int | None:
    """Returns the start of a zip's directory at the end of a file; None: not found.

    Python and torch search for it in different ways. They find the same directory, and
    the same members, only if nothing follows it and it is where it says it is.

    Source: APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 98))
    wide, locator, end = struct.unpack("<56s20s22s", file.read().rjust(98, b"\0"))
    length, start, comment = struct.unpack("<12xLLH", end)
    stop = size - 22
    whole = end.startswith(b"PK\5\6") and not comment
    if locator.startswith(b"PK\6\7"):  # as torch writes
        stop = size - 98
        length, start = struct.unpack("<40xQQ", wide)
        (place,) = struct.unpack("<8xQ4x", locator)
        whole = whole and wide.startswith(b"PK\6\6") and place == stop
    return start if whole and start + length == stop else None


def _is_plain(value: Tensor) -> bool:
    """Whether the file holds every number; a stride of 0 could repeat one endlessly."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        return False
    size = value.numel() * value.element_size()
    return not value.is_complex() and size <= value.untyped_storage().nbytes()


def _is_finite(value: Tensor) -> bool:
    small = value.float() if value.element_size() == 1 else value  # of 8 bits
    return bool(torch.isfinite(small).all())


def _storage_bytes(values: Iterable[Tensor]) -> int:
    """Returns the memory of tensors, bytes; shared storage counts once."""
    storages = [value.untyped_storage() for value in values]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
