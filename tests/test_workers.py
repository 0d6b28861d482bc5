"""Work of several processes ends when it should, however one of them dies."""

import os
import signal
import threading

import pytest

from efficientat_plugin.data.prepare import workers
from efficientat_plugin.data.prepare.workers import Workers


def _die_while_counting(argument, report_done):
    """As the want of memory may have it, in the middle of ``report_done``."""
    if argument == 3:
        workers._own.progress.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    report_done()
    return argument


def test_a_worker_that_dies_takes_nobody_with_it():
    refused = []

    def work():
        with pytest.raises(OSError, match="was killed, perhaps") as raised:
            list(Workers(_die_while_counting, 2).run(range(8), lambda count: None))
        refused.append(raised.value)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert refused, "the first process waits for what the dead one holds"
