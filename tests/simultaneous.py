"""Threads and processes that do one thing at once, and are killed."""

import itertools
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, RLock

from huggingface_hub import constants as hub
from tqdm import tqdm

from efficientat_plugin.pretrained import download
from efficientat_plugin.support.launch import occupy_folder

REFUSED, INTERRUPTED = 3, 130
# Each is forked from one that has imported torch.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"efficientat_plugin.{name}" for name in ("support.launch", "pretrained.weights")]
)


def in_threads(work, number):
    """What ``work`` gives of 0, 1 and so on, each in a thread, beginning at once."""
    beginning = Barrier(number)

    def begin(each):
        beginning.wait()
        return work(each)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begin, range(number)))


def start(work, *arguments, dies_at=0):
    """A process that does ``work``, which is to be found in a module.

    Arguments
    ---------
    work : callable
    *arguments
        Of it.
    dies_at : int
        The line of this package, counted as they are run, at which it is killed.
    """
    of_process = (work, os.environ.copy(), arguments, dies_at)
    process = FORKS.Process(target=_run, args=of_process)
    process.start()
    return process


def _run(work, environment, arguments, dies_at):
    os.environ.update(environment)
    # Which a shell without job control takes from those in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tqdm.set_lock(RLock())  # its own is of processes, and outlives those killed
    if dies_at:
        sys.settrace(_killed_at(dies_at))
    work(*arguments)


def _killed_at(line):
    """Traces until a line of this package is run, counted from 1: the last."""
    lines = itertools.count(1)

    def trace(frame, event, _):
        if "efficientat_plugin" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def some_line(draw):
    """For ``dies_at``: as often within the first ten lines as in thousands later."""
    return round(10 ** draw.uniform(0, 4))


def fetch_weights(name, folder):
    """Downloads, as the environment says, and waits for nobody long.

    Ends with REFUSED after a sentence, INTERRUPTED after Ctrl-C.
    """
    hub.HF_HUB_OFFLINE = False
    download.WAIT_SECONDS, download.TIMEOUT_SECONDS = 0.0, 0.5
    download.MAX_BYTES = 2**22
    try:
        download.fetch(name, folder)
    except (OSError, ValueError):
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def hold(folder, sign):
    """Is at work in a folder until it is killed, which its worker outlives.

    ``sign`` is a file that then names the worker.
    """
    occupy_folder(folder)
    worker = os.fork()
    if worker:
        Path(f"{sign}.part").write_text(str(worker))
        os.replace(f"{sign}.part", sign)
    signal.pause()
