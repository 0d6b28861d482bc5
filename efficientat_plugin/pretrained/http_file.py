"""Downloads a file: complete, of bounded size, resumed after interruptions."""

import email.utils
import http.client
import logging
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from tqdm import tqdm

from efficientat_plugin.support.plain_text import shown

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0  # a server may be silent for this long
STALL_SECONDS, STALL_BYTES = 60.0, 2**16  # a slower download counts as stalled
TRIES = 5  # tries in a row with less progress than this
PROGRESS_BYTES = 2**20
FIRST_WAIT_SECONDS = 1.0  # before another try; doubles each time
LONGEST_WAIT_SECONDS = 120.0  # a server may ask for at most this
CHUNK_BYTES = 2**18
SCHEMES = ("http", "https")
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # temporary errors
RANGE_REFUSED = 416


class _TryAgain(Exception):
    """A temporary failure; ``wait``: seconds that the server asks to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def receive(address: str, file: BinaryIO, max_bytes: int) -> None:
    """Downloads a URL into an empty file.

    An interrupted download is resumed if the server supports it, else restarted. The
    environment's proxies are used (``https_proxy``, ``no_proxy``).

    Arguments
    ---------
    address : str
        URL that begins with http://, https:// or file://.
    file : BinaryIO
        Open for writing, and empty.
    max_bytes : int
        A larger file is refused.

    Raises
    ------
    FileNotFoundError
        If the server does not have the file.
    OSError
        If the server does not answer, refuses, sends too much or too slowly, or drops
        the connection repeatedly; the caller completes the message with what to do.
        With an ``errno`` if the file cannot be written.
    """
    download, furthest, failures = _Download(address, file, max_bytes), 0, 0
    while True:
        try:
            download.go_on()
            return
        except _TryAgain as reason:
            gained = file.tell() - furthest
            furthest = max(furthest, file.tell())
            failures = 0 if gained >= PROGRESS_BYTES else failures + 1
            wait = FIRST_WAIT_SECONDS * 2 ** max(0, failures - 1)
            wait = wait if reason.wait is None else reason.wait
            if failures == TRIES:
                raise OSError(str(reason)) from reason
            if wait > LONGEST_WAIT_SECONDS:
                raise OSError(f"{reason} and asks to wait {wait:.0f} s") from reason
            logger.warning("%s; trying again in %.0f s", reason, wait)
            time.sleep(wait)


class _Download:
    """The state of a download across tries.

    Arguments
    ---------
    address : str
    file : BinaryIO
    max_bytes : int
    """

    def __init__(self, address: str, file: BinaryIO, max_bytes: int) -> None:
        self.address, self.file, self.max_bytes = address, file, max_bytes
        self.version = ""  # the server's ETag of what is in the file; "": none

    def go_on(self) -> None:
        """Downloads what is missing.

        Raises
        ------
        _TryAgain
            After a temporary failure; the file keeps what was received.
        OSError
            As in ``receive``.
        """
        if not self.version:
            self._begin_again()
        start = self.file.tell()
        request = urllib.request.Request(self.address)
        if start:
            request.add_header("Range", f"bytes={start}-")
            request.add_header("If-Range", self.version)
        with self._open(request) as response:
            total = self._told_total(response, start)
            self.version = _version(response.headers)
            self._refuse_too_many(total or 0)
            with tqdm(
                initial=self.file.tell(),
                total=total,
                unit="B",
                unit_scale=True,
                desc=self.address.rsplit("/", 1)[-1],
                disable=None,
            ) as progress:
                self._read(response, progress)
        received = self.file.tell()
        if not received or total not in (None, received):
            of_all = "" if total is None else f" of {total}"
            raise _TryAgain(f"{self.address} ended after {received}{of_all} bytes")

    def _told_total(self, response: Any, start: int) -> int | None:
        """Returns the size of the file, bytes; None: unknown. Discards what was
        received if the response is the whole file."""
        if start and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            told = response.headers.get("Content-Range", "")
            rest = re.fullmatch(rf"bytes {start}-\d+/(\d{{1,18}})", told)
            if rest is None:
                self.version = ""
                part = _told(told) or "some part"
                raise _TryAgain(f"{self.address} sent {part} of it")
            return int(rest[1])
        self._begin_again()
        # http.client has parsed it; file:// has none.
        length: int | None = getattr(response, "length", None)
        return length

    def _begin_again(self) -> None:
        self.file.seek(0)
        self.file.truncate()

    def _open(self, request: urllib.request.Request) -> Any:
        start = self.file.tell()
        try:
            # Built anew each time, to use the current proxies.
            opener = urllib.request.build_opener(_Redirects)
            return opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            answer = f"{self.address} answered {error.code} {_told(error.reason)}"
            if error.code in TRY_AGAIN:
                raise _TryAgain(answer, _seconds_to_wait(error.headers)) from error
            if error.code == RANGE_REFUSED and start:
                self._begin_again()
                raise _TryAgain(answer) from error
            is_absent = error.code == http.HTTPStatus.NOT_FOUND
            raise (FileNotFoundError if is_absent else OSError)(answer) from error
        except urllib.error.URLError as error:
            answer = f"{self.address} cannot be reached ({_told(error.reason)})"
            # Fails at once without a network, but retries during a download.
            raise (_TryAgain if start else OSError)(answer) from error
        except (http.client.InvalidURL, ValueError) as error:
            answer = f"{self.address} is not a valid address, or redirects to such"
            raise OSError(f"{answer} ({_told(error)})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(self._broken_off(error)) from error

    def _read(self, response: Any, progress: Any) -> None:
        """Reads the body until it ends or breaks off."""
        since, seen = time.monotonic(), 0
        while True:
            try:
                # Returns what has arrived; a full chunk might never come.
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _TryAgain(self._broken_off(error)) from error
            if not chunk:
                return
            self._refuse_too_many(self.file.tell() + len(chunk))
            self.file.write(chunk)
            progress.update(len(chunk))
            seen += len(chunk)
            seconds = time.monotonic() - since
            if seconds > STALL_SECONDS:
                if seen < STALL_BYTES:
                    raise _TryAgain(
                        f"{self.address} sent {seen} bytes in {seconds:.0f} s"
                    )
                since, seen = time.monotonic(), 0

    def _broken_off(self, error: Exception) -> str:
        return f"{self.address} broke off ({_told(repr(error))})"

    def _refuse_too_many(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise OSError(
                f"{self.address} sends {num_bytes} bytes or more, and the file has at "
                f"most {self.max_bytes}, so it is another file"
            )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other servers, but not from https to http."""

    def http_error_302(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any
    ) -> Any:
        """Like the parent's, but always closes the response."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        finally:
            fp.close()

    http_error_301 = http_error_303 = http_error_307 = http_error_302
    http_error_308 = http_error_302

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Like the parent's, but does not read the body of a redirect."""
        fp.close()
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in SCHEMES or (old, new) == ("https", "http"):
            reason = f"{msg}, to {newurl}, which is not followed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _told(text: object) -> str:
    """Shortens a server's text to half a line."""
    return shown(" ".join(str(text).split()))[:200]


def _version(headers: Any) -> str:
    """Returns the ETag needed to resume a download; "": the server cannot resume."""
    if headers.get("Accept-Ranges", "bytes") != "bytes":
        return ""
    etag = headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag  # weak: not the same bytes


def _seconds_to_wait(headers: Any) -> float | None:
    """Parses ``Retry-After``, seconds or a date, into seconds; None: not given."""
    told = headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        moment = email.utils.parsedate_to_datetime(told).timestamp()
    except (ValueError, OverflowError):  # not a date, or an impossible one
        return None
    return max(0.0, moment - time.time())
