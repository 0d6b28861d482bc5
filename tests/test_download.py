"""Downloads of weights: from faulty servers, by several processes at once, offline."""

import io
import os
import resource
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants as hub
from servers import weight_server
from simultaneous import INTERRUPTED, fetch_weights, in_threads, start

from efficientat_plugin.pretrained import download
from efficientat_plugin.pretrained.download import BASE_URL, TRIES, fetch
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
LOCK = f".{FILE}.lock"
LEFT = [LOCK, FILE, NOTE]  # by a download


@pytest.fixture
def server(monkeypatch):
    """A release server; nothing waits long for it."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    with weight_server() as server:
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


# ---------------------------------------------------------------- what is downloaded


def test_download_happens_once(server, tiny_body, tmp_path):
    server.files[FILE] = tiny_body
    folder = tmp_path / "new" / "folder"
    student = load_student("mn01_as", savedir=folder)
    again = load_student("mn01_as", savedir=folder)
    assert server.asked == [FILE]
    assert names_in(folder) == LEFT
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
    with pytest.raises(FileNotFoundError, match="mn02.* does not exist; try again, or"):
        fetch("mn02_as", tmp_path / "cache", base_url=tmp_path.as_uri())


# ---------------------------------------------------------------- faulty servers


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut_chunked"],
        ["closed", "no_http"],
        ["429", "503"],
        ["silent"],
        ["moved"],
        ["chunked"],
        ["without_length"],
    ],
)
def test_download_survives(faults, server, tiny_body, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    server.files[FILE], server.faults[FILE] = tiny_body, list(faults)
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    assert names_in(tmp_path) == LEFT


@pytest.mark.parametrize(
    "name, faults, error, text",
    [
        (NAME, ["404"], FileNotFoundError, f"answered 404; try again, or put {FILE} "),
        (NAME, ["500"], OSError, "answered 500; try again"),
        (NAME, ["403"], OSError, "answered 403; try again"),
        (NAME, ["cut"], OSError, "cannot be downloaded .*; try again"),
        (NAME, ["closed"], OSError, "cannot be downloaded .*; try again"),
        (NAME, ["no_http"], OSError, "cannot be downloaded .*; try again"),
        (NAME, ["control_characters"], OSError, "; try again"),
        (NAME, ["silent"], OSError, "cannot be downloaded .*; try again"),
        (NAME, ["too_long"], OSError, "sends more than 4194304 bytes"),
        (NAME, ["endless"], OSError, "sends more than 4194304 bytes"),
        (NAME, ["circle"], OSError, "cannot be downloaded .*redirect"),
        (NAME, ["to_a_file"], OSError, "cannot be downloaded .*file://"),
        (NAME, ["login"], ValueError, "is no whole state dict; .*that no proxy answe"),
        (NAME, ["too_short"], ValueError, "is no whole state dict; try again"),
        (NAME, ["cut_without_length"], ValueError, "is no whole state dict; try again"),
        (NAME, ["flipped"], ValueError, "is no whole state dict"),
        ("mn04_as", ["whole"], ValueError, "does not have the SHA-256 of mn04_as"),
    ],
)
def test_failed_download_leaves_nothing(
    name, faults, error, text, server, tiny_body, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "MAX_BYTES", 2**22)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    file, folder = published(name).file, tmp_path / "cache"
    server.files[file], server.faults[file] = tiny_body, faults * TRIES
    with pytest.raises(error, match=text) as refusal:
        load_student(name, savedir=folder)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600
    assert names_in(folder) == [f".{file}.lock"]
    assert names_in(tmp_path) == ["cache"]


@pytest.mark.parametrize(
    "schemes, is_left", [("sp", True), ("ss", False), ("p", False)]
)
def test_no_redirection_leaves_a_safe_connection(schemes, is_left):
    answers = [
        SimpleNamespace(
            url=SimpleNamespace(scheme={"s": "https", "p": "http"}[letter]),
            status_code=200,
        )
        for letter in schemes
    ]
    if is_left:
        with pytest.raises(OSError, match="from https to http, which is not followed"):
            download._refuse_answer("https://one/x", answers)
    else:
        download._refuse_answer("https://one/x", answers)


def test_more_than_was_published_is_not_even_received(server, tmp_path):
    entry = published("mn04_as")
    server.files[entry.file] = bytes(entry.num_bytes + 1)
    with pytest.raises(OSError, match=f"sends more than {entry.num_bytes} bytes"):
        fetch("mn04_as", tmp_path)
    assert len(server.asked) == 1


def test_refusals_that_last_are_not_asked_again(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["403"]
    with pytest.raises(OSError, match="answered 403"):
        fetch(NAME, tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_refused_in_a_sentence(server, tmp_path):
    with pytest.raises(OSError, match="cannot be downloaded .*EFFICIENTAT_BASE_URL"):
        fetch("mn01_as", tmp_path, base_url="http://127.0.0.1:9/")


@pytest.mark.parametrize(
    "base_url", ["release", "ftp://host/", "http://hö/", "http://h/\n", "data:,x"]
)
def test_what_is_no_address_is_refused(base_url, server, tmp_path):
    with pytest.raises(ValueError, match="is not the address of a folder with weights"):
        fetch(NAME, tmp_path, base_url=base_url)


# ---------------------------------------------------------------- the cache


def test_cached_file_with_another_sum_is_refused(tmp_path):
    torch.save(MN(**TINY).state_dict(), tmp_path / "mn04_as_mAP_432.pt")
    with pytest.raises(ValueError, match="mn04_as_mAP_432.pt does not .* delete it"):
        load_student("mn04_as", savedir=tmp_path)


def test_what_is_cached_needs_neither_network_nor_permission(
    server, tiny_body, tmp_path, monkeypatch
):
    (tmp_path / FILE).write_bytes(tiny_body)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(os, "open", None)
    assert fetch(NAME, tmp_path).is_file() and server.asked == []


def test_offline_is_reported_without_a_request(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="does not exist, and HF_HUB_OFFLINE forbids .* put"
    ):
        fetch(NAME, tmp_path)
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_reported(server, tiny_body, tmp_path):
    server.files[FILE] = tiny_body
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/cache cannot be written .*another savedir"):
        fetch(NAME, tmp_path / "file" / "cache")


def test_a_full_disk_is_reported_and_left_as_it_was(server, tiny_body, tmp_path):
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
    assert names_in(tmp_path) == [LOCK]


def test_proxy_of_the_environment_is_asked(server, tiny_body, tmp_path):
    """In a process of its own: the client of a process keeps its proxies."""
    server.files[f"http://weights.example/v1/{FILE}"] = tiny_body
    address = "http://weights.example/v1/"
    variables = {"http_proxy": server.address, "EFFICIENTAT_BASE_URL": address}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        process = start(fetch_weights, NAME, tmp_path)
    process.join()
    assert (process.exitcode, server.paths) == (0, [address + FILE])
    assert (tmp_path / FILE).read_bytes() == tiny_body


# ---------------------------------------------------------------- digests


def test_another_file_than_the_first_is_refused(server, tiny_body, tmp_path):
    """Nobody has published its SHA-256, so that of the first download counts."""
    server.files[FILE] = tiny_body
    path = fetch(NAME, tmp_path)
    checks = ["sha256sum", "--check", NOTE]
    assert subprocess.run(checks, cwd=tmp_path, capture_output=True).returncode == 0
    assert fetch(NAME, tmp_path) == path
    torch.save(MN(**TINY).state_dict(), tmp_path / "other.pt")
    other = (tmp_path / "other.pt").read_bytes()
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


def test_published_files_come_by_https_unless_asked_otherwise():
    addresses = [RELEASES + entry.release for entry in TEACHERS.values()]
    addresses += [BASE_URL, *(entry.base_url for entry in PUBLISHED.values())]
    assert all(address.startswith("https://") for address in addresses)


def test_sizes_are_known_where_sums_are():
    for entry in PUBLISHED.values():
        assert (entry.sha256 is None) == (entry.num_bytes is None)


# ---------------------------------------------------------------- several at once


def test_processes_download_a_file_once(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut"] * 2
    processes = [start(fetch_weights, NAME, tmp_path) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.asked) == 3  # by one of them
    assert names_in(tmp_path) == LEFT


def test_threads_download_a_file_once(server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["cut"] * 2
    in_threads(lambda _: fetch(NAME, tmp_path), 4)
    assert len(server.asked) == 3
    assert names_in(tmp_path) == LEFT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_download_that_was_ended_is_begun_anew(number, server, tiny_body, tmp_path):
    server.files[FILE], server.faults[FILE] = tiny_body, ["silent"]
    process = start(fetch_weights, NAME, tmp_path)
    while not server.asked:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (INTERRUPTED if number == signal.SIGINT else -number)
    assert len(list(tmp_path.glob("*.part"))) == (number == signal.SIGKILL)
    assert fetch(NAME, tmp_path).read_bytes() == tiny_body
    assert names_in(tmp_path) == LEFT
