"""Downloads of weights: from servers that do wrong, by several at once, offline."""

import io
import os
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request
from email.utils import formatdate

import pytest
import torch
from at_once import INTERRUPTED, fetch_weights, in_threads, start
from bad_server import LOGIN, bad_server
from huggingface_hub import constants as hub

from efficientat_plugin.pretrained import download, http_file
from efficientat_plugin.pretrained.download import BASE_URL, fetch, read_state
from efficientat_plugin.pretrained.published import PUBLISHED, published
from efficientat_plugin.pretrained.published_passt import (
    RELEASES,
    TEACHERS,
    fetch_teacher,
)
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.mn import MN

TINY = {"width": 0.1, "num_classes": 527}
NAME, FILE = "mn01_as", "mn01_as_mAP_298.pt"
NOTE = f"{FILE}.sha256"  # of what was downloaded first


@pytest.fixture
def server(monkeypatch):
    """A release server, for which nobody waits long."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(http_file, "FIRST_WAIT_SECONDS", 0.0)
    with bad_server() as server:
        monkeypatch.setenv("EFFICIENTAT_BASE_URL", server.address)
        yield server


@pytest.fixture(scope="module")
def tiny_body():
    """What a server sends for mn01: a student's state dict."""
    body = io.BytesIO()
    torch.save(MN(**TINY).state_dict(), body)
    return body.getvalue()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def save(student, path):
    torch.save(student.state_dict(), path)
    return path


# ---------------------------------------------------------------- what is downloaded


def test_download_happens_once(server, tiny_body, tmp_path):
    server.files[FILE] = tiny_body
    folder = tmp_path / "new" / "folder"
    student = load_student("mn01_as", savedir=folder)
    again = load_student("mn01_as", savedir=folder)
    assert server.asked == [FILE]
    assert names_in(folder) == [FILE, NOTE]
    clip = torch.randn(1, 1, 40, 30)
    assert torch.equal(student(clip).logits, again(clip).logits)


def test_download_goes_to_the_folder_of_torch_hub(
    server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    server.files[FILE] = tiny_body
    path = fetch("mn01_as")
    assert path == tmp_path / "hub" / "efficientat_plugin" / FILE


def test_base_url_argument_goes_before_the_environment(
    server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setenv("EFFICIENTAT_BASE_URL", "http://127.0.0.1:9/nowhere/")
    server.files[FILE] = tiny_body
    assert fetch("mn01_as", tmp_path, base_url=server.address).is_file()


@pytest.mark.parametrize(
    "name, file",
    [
        ("dymn10_replace_se_as", "dymn10_replace_se_as.pt"),
        ("dymn10_replace_se_as", " dymn10_replace_se_as.pt"),
        ("mn40_as(3)", "mn40_as_mAP_483(2).pt"),
    ],
)
def test_download_finds_names_with_blanks_and_brackets(
    name, file, server, tiny_body, tmp_path
):
    server.files[file] = tiny_body
    assert fetch(name, tmp_path / "cache").name == file.strip()
    assert server.asked[-1] == file


def test_folder_may_be_the_address(tiny_body, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    (tmp_path / FILE).write_bytes(tiny_body)
    path = fetch(NAME, tmp_path / "cache", base_url=tmp_path.as_uri())
    assert path.read_bytes() == tiny_body


# ---------------------------------------------------------------- servers that do wrong


@pytest.mark.parametrize("has_ranges", [False, True])
@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut"] * 4,
        ["cut_chunked"],
        ["cut_header"],
        ["closed"],
        ["no_http"],
        ["408", "429", "503", "502"],
        ["cut", "500", "cut", "closed"],
        ["cut", "other_part"],
        ["cut", "renewed"],
        ["moved"],
        ["moved", "cut"],
        ["chunked"],
        ["without_length"],
        ["no_number"],
    ],
)
def test_download_survives(faults, has_ranges, server, tiny_body, tmp_path):
    server.files[FILE], server.has_ranges = tiny_body, has_ranges
    server.faults[FILE] = list(faults)
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    assert names_in(tmp_path) == [FILE, NOTE]


def test_download_that_is_cut_goes_on_where_it_was(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut", "cut"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    asked = [headers.get("Range") for _, headers in server.seen]
    first = len(tiny_body) * 2 // 3
    assert asked == [None, f"bytes={first}-", f"bytes={first}-"]


def test_rest_that_is_refused_is_begun_anew(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut", "416"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body


def test_another_version_is_not_put_behind_the_first(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut", "renewed"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body


@pytest.mark.parametrize(
    "name, faults, error, text",
    [
        (NAME, ["404"], OSError, f"answered 404 .*put {FILE} into"),
        (NAME, ["500"], OSError, "answered 500"),
        (NAME, ["403"], OSError, "answered 403"),
        (NAME, ["cut"], OSError, "ended after .* bytes; try again"),
        (NAME, ["closed"], OSError, "broke off .*try again"),
        (NAME, ["no_http"], OSError, "broke off .*try again"),
        (
            NAME,
            ["too_long"],
            OSError,
            "sends 1125899906842624 bytes or more, .* another",
        ),
        (
            NAME,
            ["endless"],
            OSError,
            "sends .* bytes or more, and the file has at most",
        ),
        (NAME, ["circle"], OSError, "answered 302 .*infinite loop"),
        (
            NAME,
            ["to_a_file"],
            OSError,
            "answered 302 .*file:///etc/hostname.*not allow",
        ),
        (NAME, ["to_ftp"], OSError, "answered 302 .*ftp://.*which is not followed"),
        (NAME, ["login"], ValueError, "is no state dict; check the address.*no proxy"),
        (NAME, ["too_short"], ValueError, "is no state dict"),
        (NAME, ["cut_without_length"], ValueError, "is no state dict"),
        (NAME, ["flipped"], ValueError, "is no state dict"),
        ("mn04_as", ["whole"], ValueError, "does not have the SHA-256 of mn04_as"),
    ],
)
def test_failed_download_leaves_nothing(
    name, faults, error, text, server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "MAX_BYTES", 2**22)
    file, folder = published(name).file, tmp_path / "cache"
    server.files[file], server.faults[file] = tiny_body, faults * http_file.TRIES
    with pytest.raises(error, match=text) as refusal:
        load_student(name, savedir=folder)
    assert "\n" not in str(refusal.value)
    assert list(folder.iterdir()) == []


def _status_line(handler, body):
    handler.wfile.write(b"HTTP/1.1 503 \x1b[2J\x9b31m" + b"x" * 9999 + b"\r\n\r\n")


def _no_status_line(handler, body):
    handler.wfile.write(b"\x1b[2J" + b"x" * 9999 + b"\r\n\r\n")


def _range_of(total):
    return lambda handler, body: handler.head(206, ETag='"1"', Content_Range=total)


@pytest.mark.parametrize(
    "answer, first",
    [
        (_status_line, []),
        (_no_status_line, []),
        (_range_of("\x1b[2J"), ["cut"]),
        (_range_of("bytes 1-2/" + "9" * 5000), ["cut"]),
    ],
)
def test_what_a_server_says_is_logged_in_plain_text(
    answer, first, server, tiny_body, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(server.RequestHandlerClass, "says", answer, raising=False)
    server.has_ranges = True
    server.files[FILE], server.faults[FILE] = tiny_body, [*first, "says"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 + len(first)
    assert all(said.isprintable() and len(said) < 400 for said in messages)


def test_rest_of_a_file_that_nothing_could_hold_is_begun_anew(
    server, tiny_body, tmp_path, monkeypatch
):
    def says(handler, body):
        start = int(handler.headers["Range"][6:-1])
        total = f"bytes {start}-{start + 9}/" + "9" * 5000
        handler.head(206, ETag=server.version, Content_Range=total)

    monkeypatch.setattr(server.RequestHandlerClass, "says", says, raising=False)
    server.has_ranges = True
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut", "says"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body


@pytest.mark.parametrize(
    "place", ["http://[::1", f"http://{'a' * 70}.x/", f"http://{'ö' * 70}.x/"]
)
def test_redirection_to_no_address_is_told(
    place, server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        server.RequestHandlerClass,
        "leads",
        lambda handler, body: handler.head(302, Location=place),
        raising=False,
    )
    server.files[FILE], server.faults[FILE] = tiny_body, ["leads"] * http_file.TRIES
    with pytest.raises(OSError, match="or redirects to such") as refusal:
        fetch(NAME, tmp_path)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("scheme, is_followed", [("http", False), ("https", True)])
def test_no_redirection_leaves_a_safe_connection(scheme, is_followed):
    request, to = urllib.request.Request("https://one/x"), f"{scheme}://other/x"
    arguments = (request, io.BytesIO(), 302, "Found", {}, to)
    redirects = http_file._Redirects()
    if is_followed:
        assert redirects.redirect_request(*arguments).full_url == to
    else:
        with pytest.raises(
            urllib.error.HTTPError, match="to http://other.*not followed"
        ):
            redirects.redirect_request(*arguments)


def test_what_is_no_state_dict_is_refused(server, tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    server.files[FILE] = (tmp_path / "list.pt").read_bytes()
    with pytest.raises(ValueError, match="is no state dict; check the address"):
        fetch(NAME, tmp_path / "cache")


def test_more_than_was_published_is_not_even_received(server, tmp_path):
    entry = published("mn04_as")
    server.files[entry.file] = bytes(entry.num_bytes + 1)
    with pytest.raises(OSError, match=f"has at most {entry.num_bytes}, so it is ano"):
        fetch("mn04_as", tmp_path)


def test_refusals_that_last_are_not_asked_again(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["403"]
    with pytest.raises(OSError, match="answered 403"):
        fetch(NAME, tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("is_date", [False, True])
def test_server_is_left_alone_for_as_long_as_it_asks(
    is_date, server, tiny_body, tmp_path, monkeypatch
):
    waited = []
    monkeypatch.setattr(http_file.time, "sleep", waited.append)
    server.files[FILE], server.faults[FILE] = tiny_body, ["429"]
    asked = formatdate(time.time() + 5, usegmt=True) if is_date else "5"
    server.more_headers = {"Retry_After": asked}
    assert fetch(NAME, tmp_path).is_file()
    assert len(waited) == 1 and 0 < waited[0] < 6


@pytest.mark.parametrize(
    "told",
    ["86400", formatdate(time.time() + 1e6, usegmt=True)],
    ids=["seconds", "date"],
)
def test_longer_than_anybody_waits_is_told(told, server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["429"]
    server.more_headers = {"Retry_After": told}
    with pytest.raises(OSError, match=r"answered 429 .* asks to wait \d+ s; try"):
        fetch(NAME, tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "told",
    [
        "soon",
        "",
        "-1",
        "Wed, 99 Nov 9999 00:00:00 GMT",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
    ],
)
def test_unreadable_wishes_are_none(told, server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["429"]
    server.more_headers = {"Retry_After": told}
    assert fetch(NAME, tmp_path).is_file()


def test_tries_are_counted_from_what_was_new(server, tmp_path, monkeypatch):
    """Many cuts of a large file are no reason to give up, unless nothing comes."""
    monkeypatch.setattr(http_file, "PROGRESS_BYTES", 1000)
    body = io.BytesIO()
    torch.save({"weight": torch.randn(300_000)}, body)
    server.files[FILE], server.faults[FILE] = body.getvalue(), ["cut"] * 7
    monkeypatch.setattr(server.RequestHandlerClass, "cut", _a_twentieth)
    assert fetch(NAME, tmp_path).read_bytes() == body.getvalue()
    assert len(server.asked) == 8


def _a_twentieth(handler, body):
    """More of it, from where it is asked for."""
    asked = handler.headers.get("Range", "bytes=0-")
    handler.whole(body, int(asked[6:-1]) + len(body) // 20)


def test_silence_is_not_listened_to_for_ever(server, tiny_body, tmp_path, monkeypatch):
    monkeypatch.setattr(http_file, "TIMEOUT_SECONDS", 0.2)
    server.files[FILE], server.faults[FILE] = tiny_body, ["silent"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    server.faults[FILE] = ["silent"] * http_file.TRIES
    with pytest.raises(OSError, match="broke off .*timed out.*try again"):
        fetch(NAME, tmp_path / "other")


def test_trickle_is_not_listened_to_for_ever(server, tiny_body, tmp_path, monkeypatch):
    monkeypatch.setattr(http_file, "STALL_SECONDS", 0.1)
    server.files[FILE], server.faults[FILE] = tiny_body, ["trickle"]
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    server.faults[FILE] = ["trickle"] * http_file.TRIES
    with pytest.raises(OSError, match=r"sent \d+ bytes in \d s; try again"):
        fetch(NAME, tmp_path / "other")


def test_no_network_is_refused_in_a_sentence(server, tmp_path):
    with pytest.raises(OSError, match="cannot be reached .*EFFICIENTAT_BASE_URL"):
        fetch("mn01_as", tmp_path, base_url="http://127.0.0.1:9/")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "base_url", ["release", "ftp://host/", "http://hö/", "http://h/\n", "data:,x"]
)
def test_what_is_no_address_is_refused(base_url, server, tmp_path):
    with pytest.raises(ValueError, match="is not the address of a folder with weights"):
        fetch(NAME, tmp_path, base_url=base_url)
    with pytest.raises(OSError, match="is not a valid address"):
        fetch(NAME, tmp_path, base_url="http://somebody:secret@127.0.0.1/")


# ---------------------------------------------------------------- the cache


def test_cached_file_with_another_sum_is_refused(tmp_path):
    save(MN(**TINY), tmp_path / "mn04_as_mAP_432.pt")
    with pytest.raises(ValueError, match="mn04_as_mAP_432.pt does not .* delete it"):
        load_student("mn04_as", savedir=tmp_path)


def test_cached_file_that_does_not_load_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match="mn01_as_mAP_298.pt holds no .* delete it"):
        load_student("mn01_as", savedir=tmp_path)


def test_bit_that_flipped_in_the_cache_is_noticed(tiny_body, tmp_path):
    path = tmp_path / FILE
    for place in range(100, len(tiny_body) - 100, len(tiny_body) // 20):
        damaged = bytearray(tiny_body)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            state = read_state(path)
        except ValueError as error:
            assert "holds no weights that torch can load; delete it" in str(error)
        else:  # between two entries, where nobody reads
            path.write_bytes(tiny_body)
            expected = read_state(path)
            assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_weights_saved_by_older_torch_are_read(tmp_path):
    state = MN(**TINY).state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    read = read_state(tmp_path / "old.pt")
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_what_is_cached_needs_neither_network_nor_permission(
    server, tiny_body, tmp_path, monkeypatch
):
    (tmp_path / FILE).write_bytes(tiny_body)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(os, "open", None)
    assert fetch(NAME, tmp_path).is_file() and server.asked == []


def test_offline_is_told_without_asking_anybody(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="does not exist, and HF_HUB_OFFLINE forbids .* put"
    ):
        fetch(NAME, tmp_path)
    assert server.seen == []


def test_folder_that_cannot_be_made_is_told(server, tiny_body, tmp_path):
    server.files[FILE] = tiny_body
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/cache cannot be written .*another savedir"):
        fetch(NAME, tmp_path / "file" / "cache")


def test_full_disk_is_told_and_left_as_it_was(server, tiny_body, tmp_path):
    server.files[FILE] = tiny_body
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(tiny_body) // 2, before[1]))
    try:
        with pytest.raises(
            OSError, match="cannot be written .File too large.; free sp"
        ):
            fetch(NAME, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_proxy_of_the_environment_is_asked(
    variable, server, tiny_body, tmp_path, monkeypatch
):
    server.files[f"http://weights.example/v1/{FILE}"] = tiny_body
    monkeypatch.setenv(variable, server.address)
    path = fetch(NAME, tmp_path, base_url="http://weights.example/v1/")
    assert path.read_bytes() == tiny_body
    assert server.seen[0][0] == f"http://weights.example/v1/{FILE}"


def test_no_proxy_of_the_environment_is_heeded(
    server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    server.files[FILE] = tiny_body
    assert fetch(NAME, tmp_path).is_file()
    monkeypatch.delenv("no_proxy"), monkeypatch.delenv("NO_PROXY")
    with pytest.raises(OSError, match="cannot be reached"):
        fetch(NAME, tmp_path / "other")


def test_login_page_of_a_network_is_no_download(server, tmp_path):
    server.files[FILE] = LOGIN
    with pytest.raises(ValueError, match="that no proxy answers in its place"):
        fetch(NAME, tmp_path)


# ---------------------------------------------------------------- what was there before


def test_another_file_than_the_first_is_refused(server, tiny_body, tmp_path):
    """Nobody has published its SHA-256, so that of the first download counts."""
    server.files[FILE] = tiny_body
    path = fetch(NAME, tmp_path)
    checks = ["sha256sum", "--check", NOTE]
    assert subprocess.run(checks, cwd=tmp_path, capture_output=True).returncode == 0
    assert fetch(NAME, tmp_path) == path
    other = save(MN(**TINY), tmp_path / "other.pt").read_bytes()
    path.write_bytes(other)
    with pytest.raises(ValueError, match=f"{FILE} does not have .* in {NOTE}"):
        fetch(NAME, tmp_path)
    path.unlink()
    server.files[FILE] = other
    with pytest.raises(ValueError, match="is not the file that was downloaded first"):
        fetch(NAME, tmp_path)
    assert not path.exists()
    (tmp_path / NOTE).unlink()
    assert fetch(NAME, tmp_path).read_bytes() == other


def test_teachers_are_compared_with_their_first_download(server, tiny_body, tmp_path):
    entry = TEACHERS["passt_s_swa_p16_128_ap476"]
    server.files[entry.file] = tiny_body
    fetch_teacher(entry, tmp_path, None).write_bytes(b"another")
    with pytest.raises(ValueError, match="of its first download; delete it"):
        fetch_teacher(entry, tmp_path, None)


@pytest.mark.parametrize("text", ["", "no digest", "0" * 63, "0" * 65])
def test_a_note_that_holds_no_digest_is_refused(text, tiny_body, tmp_path):
    (tmp_path / FILE).write_bytes(tiny_body)
    assert fetch(NAME, tmp_path).is_file()  # which nobody has noted
    (tmp_path / NOTE).write_text(text)
    with pytest.raises(ValueError, match=f"{NOTE} holds no SHA-256; delete it"):
        fetch(NAME, tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, part: os.mkfifo(part)])
def test_what_somebody_put_in_the_place_of_a_download_is_not_written(
    make, server, tiny_body, tmp_path
):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    make(mine, tmp_path / f".{FILE}.part")
    server.files[FILE] = tiny_body
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    assert mine.read_text() == "mine"
    assert names_in(tmp_path) == sorted(["mine.txt", FILE, NOTE])


def test_published_files_come_by_https_unless_asked_otherwise():
    addresses = [BASE_URL, *(RELEASES + entry.release for entry in TEACHERS.values())]
    assert all(address.startswith("https://") for address in addresses)


# ---------------------------------------------------------------- several at once


def test_processes_download_a_file_once(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut"] * 2
    processes = [start(fetch_weights, NAME, tmp_path) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.asked) == 3  # by one of them
    assert names_in(tmp_path) == [FILE, NOTE]


def test_threads_download_a_file_once(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut"] * 2
    in_threads(lambda _: fetch(NAME, tmp_path), 4)
    assert len(server.asked) == 3
    assert names_in(tmp_path) == [FILE, NOTE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_download_that_was_ended_is_begun_anew(number, server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["silent"]
    process = start(fetch_weights, NAME, tmp_path)
    part = tmp_path / f".{FILE}.part"
    while not server.asked:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (INTERRUPTED if number == signal.SIGINT else -number)
    assert part.is_file() == (number == signal.SIGKILL)
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    assert names_in(tmp_path) == [FILE, NOTE]


def test_systems_without_locks_download_to_files_of_their_own(
    server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "lock", lambda *_, **__: False)
    server.files[FILE] = tiny_body
    in_threads(lambda _: fetch(NAME, tmp_path), 4)
    assert (tmp_path / FILE).read_bytes() == tiny_body
    assert names_in(tmp_path) == [FILE, NOTE]


def test_sizes_are_known_where_sums_are():
    for entry in PUBLISHED.values():
        assert (entry.sha256 is None) == (entry.num_bytes is None)
