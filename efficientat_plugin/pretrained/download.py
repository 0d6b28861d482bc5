"""Downloads and verifies the published files of weights."""

import logging
import os
import re
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO

import huggingface_hub
import torch
from huggingface_hub import constants as hub
from huggingface_hub.utils import WeakFileLock
from tqdm import tqdm

from efficientat_plugin.pretrained.published import (
    BASE_URL,
    PublishedStudent,
    published,
)
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.support.files import (
    atomic_file,
    read_text,
    sha256_of,
)
from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

BASE_URL_VARIABLE = "EFFICIENTAT_BASE_URL"
SCHEMES = ("http", "https", "file")
MAX_BYTES = 2**30  # limit for a file of unknown size; the largest has 0.4 times this
TIMEOUT_SECONDS = 30.0  # a server may be silent for this long
TRIES = 3
WAIT_SECONDS = 1.0  # before another try; doubles each time
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # temporary errors


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
        _download(entry, path, base_url)
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


def _download(entry: PublishedStudent, target: Path, base_url: str) -> None:
    """Downloads and verifies a file, or leaves nothing; other processes wait."""
    addresses = _addresses(entry, base_url)
    if hub.HF_HUB_OFFLINE and not base_url.startswith("file:"):
        raise OSError(
            f"{target} does not exist, and HF_HUB_OFFLINE forbids downloads; put the "
            "file there, or unset HF_HUB_OFFLINE"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file():  # by another process
                return
            for killed in target.parent.glob(f".{target.name}*.part"):
                killed.unlink()
            with atomic_file(target, "wb") as file:
                address = _receive_any(addresses, file, entry.num_bytes or MAX_BYTES)
                file.flush()
                _verify(Path(file.name), entry, address, target)
    except OSError as error:
        if error.errno is None:  # an error of the server
            absent = isinstance(error, FileNotFoundError)
            raise (FileNotFoundError if absent else OSError)(
                f"{error}; try again, or put {target.name} into {target.parent}, or "
                f"set {BASE_URL_VARIABLE}"
            ) from error
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


def _receive_any(addresses: list[str], file: BinaryIO, max_bytes: int) -> str:
    """Downloads the file from the first address that has it; returns that address."""
    for address in addresses:
        try:
            _receive(address, file, max_bytes)
            break
        except FileNotFoundError:
            if address == addresses[-1]:
                raise
    return address


def _receive(address: str, file: BinaryIO, max_bytes: int) -> None:
    """Downloads a URL into an empty file, in a few tries.

    Raises
    ------
    FileNotFoundError
        If the server does not have the file.
    OSError
        For other errors of the server; with an ``errno`` if the file cannot be written.
    """
    for number in range(TRIES):
        try:
            _receive_once(address, file, max_bytes)
            return
        except _Temporary as error:
            if number == TRIES - 1:
                raise
            wait = WAIT_SECONDS * 2**number
            logger.warning("%s; trying again in %.0f s", error, wait)
            time.sleep(wait)
            file.seek(0)
            file.truncate()


class _Temporary(OSError):
    """An error that may pass, such as a busy server or a connection that was cut."""


def _receive_once(address: str, file: BinaryIO, max_bytes: int) -> None:
    if address.startswith("file:"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(address).path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{address} does not exist")
        with open(path, "rb") as source:
            shutil.copyfileobj(source, file)
        return
    try:
        with huggingface_hub.get_session().stream(
            "GET", address, timeout=TIMEOUT_SECONDS
        ) as response:
            _refuse_answer(address, [*response.history, response])
            total = int(response.headers.get("Content-Length", 0))
            with tqdm(
                total=total or None,
                unit="B",
                unit_scale=True,
                desc=address.rsplit("/", 1)[-1],
                disable=None,
            ) as progress:
                for chunk in response.iter_bytes():  # raises if the end is missing
                    if max(total, file.tell() + len(chunk)) > max_bytes:
                        raise OSError(
                            f"{address} sends more than {max_bytes} bytes, which is "
                            "more than the file has"
                        )
                    file.write(chunk)
                    progress.update(len(chunk))
    except OSError:
        raise
    except Exception as error:  # of the HTTP client
        why = shown(" ".join(str(error).split()))[:200] or type(error).__name__
        raise _Temporary(f"{address} cannot be downloaded ({why})") from error


def _refuse_answer(address: str, answers: list) -> None:
    """Raises an ``OSError`` for an error of the server, or if it leaves https."""
    schemes = [answer.url.scheme for answer in answers]
    if "http" in schemes[1:] and "https" in schemes:
        raise OSError(f"{address} leads from https to http, which is not followed")
    status = answers[-1].status_code
    if status >= 300:
        kind: type[OSError] = _Temporary if status in TRY_AGAIN else OSError
        kind = FileNotFoundError if status == 404 else kind
        raise kind(f"{address} answered {status}")


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
            f"{address} is no whole state dict; try again, or check the address, and "
            "that no proxy answers in its place"
        ) from error
    if entry.sha256 is None and noted is None:  # in the format of sha256sum
        with atomic_file(_note_of(target)) as file:
            file.write(f"{digest}  {target.name}\n")


def fetch(
    name: str, savedir: str | Path | None = None, base_url: str | None = None
) -> Path:
    """Returns the file of a published student; downloads it if it is missing.

    A file that exists is verified without network access; ``HF_HUB_OFFLINE=1`` forbids
    downloads. Interrupted downloads and busy servers are tried three times.
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
    entry = published(name)
    return fetch_file(entry, savedir, own_base_url(base_url) or entry.base_url)
