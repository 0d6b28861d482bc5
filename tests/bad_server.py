"""A server of weights that does wrong what it is told to do wrong."""

import http.server
import re
import threading
import time
import urllib.parse
from contextlib import contextmanager

LOGIN = b"<!doctype html><title>Log in to this network</title>"
PAUSE_SECONDS = 0.01


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        name = urllib.parse.unquote(self.path).removeprefix("/release/")
        server.asked.append(name)
        server.seen.append((self.path, self.headers))
        faults = server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        body = server.files.get(name.removeprefix("moved/"))
        if body is None:
            return self.send_error(404)
        if fault.isdigit():
            return self.head(int(fault), **server.more_headers)
        getattr(self, fault or "whole")(body)

    def head(self, status=200, **headers):
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), str(value))
        self.end_headers()

    # --- right answers ---------------------------------------------------------------

    def whole(self, body, end=None):
        """All of it, or from where it is asked for; cut at ``end``."""
        headers, start = {}, 0
        if self.server.has_ranges:
            headers = {"ETag": self.server.version, "Accept_Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            is_same = self.headers.get("If-Range") == self.server.version
            start = int(asked[1]) if asked and is_same else 0
        if start:
            part = f"bytes {start}-{len(body) - 1}/{len(body)}"
            headers |= {"Content_Range": part}
        length = len(body) - start
        self.head(206 if start else 200, Content_Length=length, **headers)
        self.wfile.write(body[start:end])

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

    def renewed(self, body):
        """Another version, as of now."""
        self.server.version += "+"
        self.whole(body)

    def moved(self, body):
        self.head(302, Location="/release/moved/" + self.path.rsplit("/", 1)[-1])

    # --- wrong ones ------------------------------------------------------------------

    def cut(self, body):
        self.whole(body, len(body) * 2 // 3)

    def cut_chunked(self, body):
        self.chunked(body, len(body) // 2)

    def cut_without_length(self, body):
        self.without_length(body[: len(body) // 2])

    def cut_header(self, body):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Le")

    def closed(self, body):
        """No answer at all."""

    def no_http(self, body):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def too_short(self, body):
        self.head(Content_Length=len(body) // 2)
        self.wfile.write(body)

    def too_long(self, body):
        self.head(Content_Length=2**50)
        self.wfile.write(body)

    def no_number(self, body):
        self.head(Content_Length="many")
        self.wfile.write(body)

    def other_part(self, body):
        length = len(body)
        self.head(206, Content_Range=f"bytes 0-{length - 1}/{length}")
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

    def trickle(self, body):
        self.head(Content_Length=len(body))
        for place in range(len(body)):
            if self.server.is_closing.is_set():
                break
            self.wfile.write(body[place : place + 1])
            time.sleep(PAUSE_SECONDS)

    def slow(self, body):
        """Right, in half a second: time to be killed in."""
        self.head(Content_Length=len(body))
        for start in range(0, len(body), len(body) // 50 + 1):
            self.wfile.write(body[start : start + len(body) // 50 + 1])
            time.sleep(PAUSE_SECONDS)

    def endless(self, body):
        self.head()
        while not self.server.is_closing.is_set():
            self.wfile.write(body)

    def circle(self, body):
        self.server.faults[self.server.asked[-1]] = ["circle"]
        self.head(302, Location=self.path)

    def to_a_file(self, body):
        self.head(302, Location="file:///etc/hostname")

    def to_ftp(self, body):
        self.head(302, Location="ftp://127.0.0.1/mn01.pt")

    def log_message(self, *_):
        pass


class BadServer(http.server.ThreadingHTTPServer):
    """``files`` are its bodies, ``faults`` what it does wrong with each, in turn."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.asked, self.seen = {}, {}, [], []
        self.has_ranges, self.version, self.more_headers = True, '"1"', {}
        self.is_closing = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/release/"

    def handle_error(self, request, client_address):
        """A client that hangs up is none of ours."""


@contextmanager
def bad_server():
    """One that runs."""
    with BadServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.is_closing.set()
            server.shutdown()
            thread.join()
