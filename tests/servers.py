"""HTTP servers for tests: of weights, with faults, and of the Hugging Face hub."""

import functools
import http.server
import json
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOGIN = b"<!doctype html><title>Log in to this network</title>"
PAUSE_SECONDS = 0.01
COMMIT = "0" * 40
DATASET = "someone/sounds"
ABOUT = re.compile(rf"/api/datasets/{DATASET}(/revision/\w+)?")
TREE = re.compile(rf"/api/datasets/{DATASET}/tree/\w+/(.+)")
FILE = re.compile(rf"/datasets/{DATASET}/resolve/\w+/(.+)")
FILE_OF_MODEL = re.compile(r"/someone/(\w+/)resolve/main/([\w.]+)")


class _Handler(http.server.BaseHTTPRequestHandler):
    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format, *args):
        pass


class WeightServer(http.server.ThreadingHTTPServer):
    """``files`` are its bodies, ``faults`` what it does wrong with each, in turn."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Weights)
        self.files, self.faults, self.asked, self.paths = {}, {}, [], []
        self.is_closing = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/release/"

    def handle_error(self, request, client_address):
        """Ignores clients that hang up."""


class _Weights(_Handler):
    def do_GET(self):
        server = self.server
        name = unquote(self.path).removeprefix("/release/")
        server.asked.append(name)
        server.paths.append(self.path)
        faults = server.faults.get(name, [])
        fault = faults.pop(0) if faults else "whole"
        body = server.files.get(name.removeprefix("moved/"))
        if body is None:
            self.send_error(404)
        elif fault.isdigit():
            self.head(int(fault))
        else:
            getattr(self, fault)(body)

    # --- right answers ---------------------------------------------------------------

    def whole(self, body, end=None):
        self.head(Content_Length=len(body))
        self.wfile.write(body[:end])

    def chunked(self, body, end=None):
        self.protocol_version = "HTTP/1.1"
        self.head(Transfer_Encoding="chunked")
        for start in range(0, len(body[:end]), 4096):
            part = body[start : start + 4096]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if end is None:
            self.wfile.write(b"0\r\n\r\n")

    def without_length(self, body):
        self.head()
        self.wfile.write(body)

    def moved(self, body):
        self.head(302, Location="/release/moved/" + self.path.rsplit("/", 1)[-1])

    def slow(self, body):
        """Takes half a second: time to be killed in."""
        self.head(Content_Length=len(body))
        for start in range(0, len(body), len(body) // 50 + 1):
            self.wfile.write(body[start : start + len(body) // 50 + 1])
            time.sleep(PAUSE_SECONDS)

    # --- wrong ones ------------------------------------------------------------------

    def cut(self, body):
        self.whole(body, len(body) * 2 // 3)

    def cut_chunked(self, body):
        self.chunked(body, len(body) // 2)

    def cut_without_length(self, body):
        self.without_length(body[: len(body) // 2])

    def closed(self, body):
        """No answer at all."""

    def no_http(self, body):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def control_characters(self, body):
        self.wfile.write(b"HTTP/1.1 503 \x1b[2J\x9b31m" + b"x" * 9999 + b"\r\n\r\n")

    def too_short(self, body):
        self.head(Content_Length=len(body) // 2)
        self.wfile.write(body)

    def too_long(self, body):
        self.head(Content_Length=2**50)
        self.wfile.write(body)

    def flipped(self, body):
        place = len(body) // 2
        self.whole(body[:place] + bytes([body[place] ^ 64]) + body[place + 1 :])

    def login(self, body):
        self.whole(LOGIN)

    def silent(self, body):
        self.head(Content_Length=len(body))
        self.wfile.write(body[: len(body) // 2])
        self.server.is_closing.wait()

    def endless(self, body):
        self.head()
        while not self.server.is_closing.is_set():
            self.wfile.write(body)

    def circle(self, body):
        self.server.faults[self.server.asked[-1]] = ["circle"]
        self.head(302, Location=self.path)

    def to_a_file(self, body):
        self.head(302, Location="file:///etc/hostname")


class _Hub(_Handler):
    """Answers for one data set and for models as the hub does for public files.

    Arguments
    ---------
    folder : Path
        The files of "someone/sounds"; its folders are the models "someone/FOLDER".
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        tree = TREE.fullmatch(path)
        file = FILE.fullmatch(path) or FILE_OF_MODEL.fullmatch(path)
        if ABOUT.fullmatch(path):
            self._answer(json.dumps({"id": DATASET, "sha": COMMIT}).encode())
        elif tree and (self.folder / tree[1]).is_dir():
            entries = [self._entry(path) for path in (self.folder / tree[1]).iterdir()]
            self._answer(json.dumps(entries).encode())
        elif file and (found := self.folder / "".join(file.groups())).is_file():
            self._answer_part(found.read_bytes())
        else:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")

    def _entry(self, path):
        kind = "file" if path.is_file() else "directory"
        name = str(path.relative_to(self.folder))
        size = path.stat().st_size
        return {"type": kind, "path": name, "size": size, "oid": COMMIT}

    def _answer_part(self, content):
        """Sends all of a file, or the range of bytes that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        tag = f'"{abs(hash(self.path)):x}"'
        headers = {"X_Repo_Commit": COMMIT, "ETag": tag}
        if asked is None:
            self._answer(content, **headers)
            return
        first, last = int(asked[1]), int(asked[2])
        part = content[first : last + 1]
        last = first + len(part) - 1
        of_all = f"bytes {first}-{last}/{len(content)}"
        self._answer(part, 206, Content_Range=of_all, **headers)

    def _answer(self, content, status=200, **headers):
        self.head(status, Content_Length=len(content), **headers)
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def _running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    with server:
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def weight_server():
    """Yields a running `WeightServer`."""
    with _running(WeightServer()) as server:
        try:
            yield server
        finally:
            server.is_closing.set()


@contextmanager
def local_hub(folder: Path):
    """Serves files as the hub does; yields the variables that lead a process there."""
    handler = functools.partial(_Hub, folder)
    with _running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
