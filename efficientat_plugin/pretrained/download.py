"""Downloads and verifies files of weights; reads them without executing code."""

import errno
import io
import logging
import os
import pickle
import re
import stat
import struct
import urllib.parse
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import constants as hub
from torch import Tensor

from efficientat_plugin.pretrained.http_file import receive
from efficientat_plugin.pretrained.published import PublishedStudent, published
from efficientat_plugin.support.files import (
    EXPORTED,
    atomic_file,
    open_file,
    read_text,
    sha256_of,
)
from efficientat_plugin.support.locks import lock
from efficientat_plugin.support.pickles import check_pickle
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

BASE_URL = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
BASE_URL_VARIABLE = "EFFICIENTAT_BASE_URL"
SCHEMES = ("http", "https", "file")
MAX_BYTES = 2**30  # limit for a file of unknown size; the largest has 0.4 times this
CHUNK_BYTES = 2**18
# Keys or prefixes under which training loops and wrappers save a network
WRAPPINGS = "state_dict model_state_dict model student module net _orig_mod".split()
MAX_WRAPPINGS = 10  # nested
NO_FILE = {errno.ELOOP, errno.ENXIO}  # errors of opening a link or a pipe
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
        if not _is_finite(value):
            raise ValueError(
                f"{path} has numbers in {_described(name)} that are not finite, "
                "perhaps because training diverged; give weights from before that"
            )
    size, wanted = path.stat().st_size, _storage_bytes(content.values())
    if wanted > size:  # the excess would be uninitialised memory
        raise ValueError(
            f"{path} has {size} bytes, too few for its tensors of {wanted} bytes; save "
            "student.state_dict() again"
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


def fetch_file(
    entry: PublishedStudent, savedir: str | Path | None, base_url: str
) -> Path:
    """Returns the file of an entry; verifies it, or downloads it if it is missing.

    If no SHA-256 was published for it, that of the first download is saved next to the
    file and used to verify it from then on.
    """
    folder = Path(savedir or Path(torch.hub.get_dir()) / "efficientat_plugin")
    path = folder / entry.file
    if not path.is_file():
        download_weights(entry, path, base_url)
        return path
    wanted = entry.sha256 or _noted_digest(path)
    if wanted is not None and sha256_of(path) != wanted:
        what = f"the SHA-256 of {entry.name}"
        if entry.sha256 is None:
            what = f"the SHA-256 in {_note_of(path).name}, of its first download"
        raise ValueError(f"{path} does not have {what}; delete it to download it again")
    return path


def own_base_url(base_url: str | None) -> str | None:
    """Returns the URL that the user gave, as an argument or in the environment."""
    return base_url or os.environ.get(BASE_URL_VARIABLE)


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted_digest(path: Path) -> str | None:
    """Reads the SHA-256 of the first download of a file; None: not saved."""
    note = _note_of(path)
    if not note.is_file():
        return None
    found = re.match(r"[0-9a-f]{64}\b", read_text(note, 1000))
    if found is None:
        raise ValueError(f"{note} holds no SHA-256; delete it")
    return found[0]


def download_weights(entry: PublishedStudent, target: Path, base_url: str) -> None:
    """Downloads and verifies a file, or leaves nothing; other processes wait."""
    addresses = _addresses(entry, base_url)
    advice = (
        f"try again, or put {target.name} into {target.parent}, or set "
        f"{BASE_URL_VARIABLE}"
    )
    if hub.HF_HUB_OFFLINE and not base_url.startswith("file:"):
        raise OSError(
            f"{target} does not exist, and HF_HUB_OFFLINE forbids downloads; put the "
            "file there, or unset HF_HUB_OFFLINE"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _own_part(target) as part:
            if target.is_file():  # by another process
                return
            with _opened_own(part) as file:
                address = _receive_any(addresses, file, entry.num_bytes or MAX_BYTES)
                file.flush()
                os.fsync(file.fileno())
            _verify(part, entry, address, target)
            os.replace(part, target)
    except OSError as error:
        if error.errno is None:  # an error of the server
            raise type(error)(f"{error}; {advice}") from error
        raise OSError(
            f"{target.parent} cannot be written ({os.strerror(error.errno)}); free "
            "space, make it writable, or pass another savedir"
        ) from error


def _addresses(entry: PublishedStudent, base_url: str) -> list[str]:
    """Returns the URLs at which the file may be."""
    scheme = urllib.parse.urlsplit(base_url).scheme
    if scheme not in SCHEMES or not base_url.isascii() or not base_url.isprintable():
        raise ValueError(
            f"{base_url!r} is not the address of a folder with weights; give one like "
            f"{BASE_URL}, or file:///a/folder/"
        )
    return [
        base_url.rstrip("/") + "/" + urllib.parse.quote(file, safe="()")
        for file in (entry.file, *entry.other_files)
    ]


@contextmanager
def _own_part(target: Path) -> Iterator[Path]:
    """Yields a file next to ``target`` that no other process writes; removes it."""
    part = target.with_name(f".{target.name}.part")
    with ExitStack() as files:
        while True:
            file = files.enter_context(_opened_own(part))
            if not _is_locked(file, target):
                file.close()
                part.unlink(missing_ok=True)
                part = part.with_name(f"{part.name}.{uuid.uuid4().hex}")
                break
            if _is(part, file):
                break
            file.close()  # its previous owner renamed or removed it
        try:
            yield part
        finally:
            if file.closed or _is(part, file):
                part.unlink(missing_ok=True)


def _opened_own(part: Path) -> BinaryIO:
    """Opens a file for writing, without following a link in its place."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    while True:
        try:
            handle = os.open(part, flags, 0o666)
            state = os.fstat(handle)
            if stat.S_ISREG(state.st_mode) and state.st_nlink <= 1:
                return os.fdopen(handle, "r+b")
            os.close(handle)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
        part.unlink(missing_ok=True)  # removes only the link


def _is_locked(file: BinaryIO, target: Path) -> bool:
    try:
        return lock(file)
    except BlockingIOError:
        logger.warning("Waiting for another process to download %s", target)
        return lock(file, wait=True)


def _is(path: Path, file: BinaryIO) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _receive_any(addresses: list[str], file: BinaryIO, max_bytes: int) -> str:
    """Downloads the file from the first address that has it; returns that address."""
    for address in addresses:
        try:
            receive(address, file, max_bytes)
            break
        except FileNotFoundError:
            if address == addresses[-1]:
                raise
    return address


def _verify(part: Path, entry: PublishedStudent, address: str, target: Path) -> None:
    """Refuses a file that is not the published one, as far as that can be checked."""
    digest, noted = sha256_of(part), _noted_digest(target)
    if entry.sha256 is not None and digest != entry.sha256:
        raise ValueError(
            f"{address} does not have the SHA-256 of {entry.name}, so it is another "
            "file; check the address"
        )
    if entry.sha256 is None and noted not in (None, digest):
        raise ValueError(
            f"{address} is not the file that was downloaded first, whose SHA-256 is "
            f"in {_note_of(target)}; check the address, or delete that note if a new "
            "version was published"
        )
    try:
        read_state(part)
    except ValueError as error:
        raise ValueError(
            f"{address} is no state dict; check the address, and that no proxy "
            "answers in its place"
        ) from error
    if entry.sha256 is None and noted is None:  # in the format of sha256sum
        with atomic_file(_note_of(target)) as file:
            file.write(f"{digest}  {target.name}\n")


def fetch(
    name: str, savedir: str | Path | None = None, base_url: str | None = None
) -> Path:
    """Returns the file of a published student; downloads it if it is missing.

    A file that exists is verified without network access; ``HF_HUB_OFFLINE=1`` forbids
    downloads. Interrupted downloads and busy servers are retried a few times.
    Several processes download a file once.

    Arguments
    ---------
    name : str
    savedir : str or Path or None
        Folder of the file; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        URL of the files, https://, http:// or file://; None: the environment variable
        EFFICIENTAT_BASE_URL, else the published release.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If the server does not answer, does not have the file, or drops the connection
        repeatedly; if downloads are forbidden, or the folder cannot be written.
    ValueError
        For an unknown name, or a file that is not the published one.
    """
    return fetch_file(published(name), savedir, own_base_url(base_url) or BASE_URL)
