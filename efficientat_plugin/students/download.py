"""Files of weights: downloaded whole and verified, read without running code."""

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from efficientat_plugin.students.published import PublishedStudent, published

BASE_URL = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
BASE_URL_VARIABLE = "EFFICIENTAT_BASE_URL"
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without running code that the file may hold.

    Arguments
    ---------
    path : Path

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ValueError
        For a file that is no state dict.
    """
    try:
        _refuse_packed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PackedArchive):
        raise
    except Exception as error:  # garbage makes the unpickler raise just about anything
        raise ValueError(
            f"{path} holds no weights that torch can load; delete it and download or "
            "save it anew"
        ) from error
    is_state = (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )
    if not is_state:
        what = (
            f"a mapping with {sorted(map(str, content))[:5]}"
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
                f"{path} has an entry {name} that is no plain array of numbers; save "
                "student.state_dict() as it is"
            )
    return dict(content)


class PackedArchive(ValueError):
    """What torch would unpack, to any size, though it never packs."""


def _refuse_packed(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type for entry in archive.infolist()):
            raise PackedArchive(
                f"{path} is a packed archive, and torch.save packs nothing; save the "
                "weights with it"
            )


def _is_plain(value: Tensor) -> bool:
    """Whether every number stands in the file; repeated ones may be any many."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        return False
    size = value.numel() * value.element_size()
    return not value.is_complex() and size <= value.untyped_storage().nbytes()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _stream(address: str, part: Path) -> None:
    """One body into one file; refuses a body that ends early."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
        header = response.headers.get("Content-Length")
        length = None if header is None else int(header)
        with (
            part.open("xb") as file,
            tqdm(
                total=length,
                unit="B",
                unit_scale=True,
                desc=address.rsplit("/", 1)[-1],
                disable=None,
            ) as progress,
        ):
            received = 0
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress.update(len(chunk))
    if length is not None and received != length:
        raise OSError(f"{address} ended after {received} of {length} bytes; try again")


def _try_addresses(addresses: list[str], part: Path, target: Path) -> str:
    """The address that had the file; each failure is one sentence."""
    for address in addresses:
        try:
            _stream(address, part)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404 and address != addresses[-1]:
                continue
            raise OSError(
                f"{address} answered {error.code} {error.reason}; check "
                f"{BASE_URL_VARIABLE}, or put {target.name} into {target.parent}"
            ) from error
        except urllib.error.URLError as error:
            raise OSError(
                f"{address} cannot be reached ({error.reason}); put {target.name} into "
                f"{target.parent}, or set {BASE_URL_VARIABLE}"
            ) from error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise OSError(f"{address} broke off ({error!r}); try again") from error
    return address


def download_weights(entry: PublishedStudent, target: Path, base_url: str) -> None:
    """Whole and verified, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    addresses = [
        base_url.rstrip("/") + "/" + urllib.parse.quote(file, safe="()")
        for file in (entry.file, *entry.other_files)
    ]
    try:
        address = _try_addresses(addresses, part, target)
        if entry.sha256 is not None and _sha256(part) != entry.sha256:
            raise ValueError(
                f"{address} has not the SHA-256 of {entry.name}, so it is another "
                "file; check the address"
            )
        try:
            read_state(part)
        except ValueError as error:
            raise ValueError(
                f"{address} is no state dict; check the address"
            ) from error
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def fetch(
    name: str, savedir: str | Path | None = None, base_url: str | None = None
) -> Path:
    """The file of a published student, downloaded where it is not there yet.

    Arguments
    ---------
    name : str
    savedir : str or Path or None
        Folder of the file; None: "efficientat_plugin" in torch.hub's folder.
    base_url : str or None
        Where the files are; None: the environment's EFFICIENTAT_BASE_URL, or the
        published release.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        Where the server does not answer, has no such file, or stops in between.
    ValueError
        For an unknown name, and for a file that is not what was published.
    """
    entry = published(name)
    folder = Path(savedir or Path(torch.hub.get_dir()) / "efficientat_plugin")
    path = folder / entry.file
    if not path.is_file():
        address = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
        download_weights(entry, path, address)
    elif entry.sha256 is not None and _sha256(path) != entry.sha256:
        raise ValueError(
            f"{path} has not the SHA-256 of {name}; delete it to download it anew"
        )
    return path
