"""Processes that write at once, and are killed: each forked from one with torch."""

import multiprocessing
import os
import signal

from huggingface_hub import constants as hub

from efficientat_plugin.students import http_file
from efficientat_plugin.students.download import fetch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["efficientat_plugin.students.weights"])


def start(work, *arguments):
    """A process that does ``work``, of this module or another that is to be had."""
    process = FORKS.Process(target=_run, args=(work, os.environ.copy(), arguments))
    process.start()
    return process


def _run(work, environment, arguments):
    os.environ.update(environment)
    # Which a shell without job control takes from those in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work(*arguments)


def fetch_weights(name, folder):
    """Downloads, as the environment says, and waits for nobody."""
    hub.HF_HUB_OFFLINE = False
    http_file.FIRST_WAIT_SECONDS = 0.0
    fetch(name, folder)
