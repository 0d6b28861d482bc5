"""A server that answers for one data set, "someone/sounds", as the hub does."""

import functools
import http.server
import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40
DATASET = "someone/sounds"
ABOUT = re.compile(rf"/api/datasets/{DATASET}(/revision/\w+)?")
TREE = re.compile(rf"/api/datasets/{DATASET}/tree/\w+/(.+)")
FILE = re.compile(rf"/datasets/{DATASET}/resolve/\w+/(.+)")


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        tree, file = TREE.fullmatch(path), FILE.fullmatch(path)
        if ABOUT.fullmatch(path):
            self._answer(json.dumps({"id": DATASET, "sha": COMMIT}).encode())
        elif tree and (self.folder / tree[1]).is_dir():
            entries = [self._entry(path) for path in (self.folder / tree[1]).iterdir()]
            self._answer(json.dumps(entries).encode())
        elif file and (self.folder / file[1]).is_file():
            self._answer_part((self.folder / file[1]).read_bytes())
        else:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")

    def _entry(self, path):
        kind = "file" if path.is_file() else "directory"
        name = str(path.relative_to(self.folder))
        size = path.stat().st_size
        return {"type": kind, "path": name, "size": size, "oid": COMMIT}

    def _answer_part(self, content):
        """All of a file, or the range of bytes that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{COMMIT}"'}
        if asked is None:
            self._answer(content, **headers)
            return
        first, last = int(asked[1]), int(asked[2])
        part = content[first : last + 1]
        last = first + len(part) - 1
        of_all = f"bytes {first}-{last}/{len(content)}"
        self._answer(part, 206, Content_Range=of_all, **headers)

    def _answer(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@contextmanager
def local_hub(folder: Path):
    """Serves the files of a data set; gives what tells a process where they are."""
    handler = functools.partial(_Hub, folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        server.shutdown()
        thread.join()
