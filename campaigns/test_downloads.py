"""Downloads from a faulty server, by processes that are killed, are right or absent.

Each try is one folder and three processes that download the same file into it; the
server cuts, damages, stalls and misleads at random, and processes are killed at random
moments. Whatever is in the folder at the end is what was published, and a last process
that nothing disturbs downloads it.
"""

import collections
import io
import os
import random
import signal
import time

import pytest
import torch
from lengths import short_and_full
from servers import weight_server
from simultaneous import REFUSED, fetch_weights, some_line, start

from efficientat_plugin.students.mn import MN

NAME, FILE = "mn01_as", "mn01_as_mAP_298.pt"
FAULTS = ["cut", "cut_chunked", "cut_without_length", "closed", "no_http"]
FAULTS += ["too_short", "too_long", "flipped", "login", "control_characters"]
FAULTS += ["circle", "to_a_file", "moved", "silent", "endless", "slow", "slow"]
FAULTS += ["404", "403", "429", "500", "503"]
KINDS = [signal.SIGTERM, signal.SIGINT]
LINES = [some_line, lambda draw: 0]  # at which to be killed; or at none


@pytest.fixture(scope="module")
def body():
    """What was published."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(MN(width=0.1, num_classes=527).state_dict(), file)
    return file.getvalue()


@short_and_full(3, 300)
def test_downloads_are_right_or_none(tries, seed, body, figures, tmp_path, monkeypatch):
    draw, counts = random.Random(seed), collections.Counter()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for number in range(tries):
        folder = tmp_path / str(number)
        with weight_server() as server:
            server.files[FILE] = body
            server.faults[FILE] = draw.choices(FAULTS, k=draw.randrange(12))
            counts["faults"] += len(server.faults[FILE])
            monkeypatch.setenv("EFFICIENTAT_BASE_URL", server.address)
            kills = {}
            processes = [
                start(fetch_weights, NAME, folder, dies_at=draw.choice(LINES)(draw))
                for _ in range(3)
            ]
            if draw.random() < 0.5:
                process = draw.choice(processes)
                time.sleep(draw.uniform(0.2, 1.0))
                if process.is_alive():
                    kills[process] = draw.choice(KINDS)
                    os.kill(process.pid, kills[process])
                    counts["ended"] += 1
            for process in processes:
                process.join()
                counts["refused"] += process.exitcode == REFUSED
                counts["killed"] += process.exitcode == -signal.SIGKILL
                if process not in kills:
                    assert process.exitcode in (0, REFUSED, -signal.SIGKILL)
            if (folder / FILE).exists():
                counts["whole"] += 1
                assert (folder / FILE).read_bytes() == body
            server.faults[FILE] = []
            last = start(fetch_weights, NAME, folder)
            last.join()
            assert last.exitcode == 0
            assert (folder / FILE).read_bytes() == body
            left = {path.name for path in folder.iterdir()}
            assert left == {FILE, f"{FILE}.sha256", f".{FILE}.lock"}
            counts["requests"] += len(server.asked)
    figures(
        f"{3 * tries} downloads",
        f"{counts['faults']} faults, {counts['requests']} requests",
        f"{counts['killed']} processes killed, {counts['ended']} ended by SIGTERM or "
        f"Ctrl-C, {counts['refused']} refused a server",
        f"{counts['whole']} of {tries} files whole before the last try, 0 wrong",
    )
