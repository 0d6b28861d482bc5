"""Makes SIGTERM interrupt a process as Ctrl-C does."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Raises ``KeyboardInterrupt`` in this process on SIGINT and SIGTERM.

    Forked processes leave SIGINT to this one, which ends them. Python drops what is
    raised in a destructor or in the hooks of a fork; there, the signal is sent again.

    Yields
    ------
    list of int
        The signals that have arrived.

    Example
    -------
    >>> with interruptible() as arrived:
    ...     print(arrived)
    []
    """
    arrived: list[int] = []
    process = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:
            arrived.append(number)
            sys.unraisablehook = dropped
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            os._exit(128 + number)

    def dropped(unraisable: Any) -> None:
        _log(unraisable)
        if unraisable.exc_type is KeyboardInterrupt and arrived and handlers:
            again = threading.Timer(0.05, os.kill, (process, arrived.pop()))
            again.daemon = True
            again.start()

    handlers = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as of a job behind `&`
    }
    try:
        yield arrived
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        handlers.clear()


def _log(unraisable: Any) -> None:
    """Logs the errors of destructors whose workers were interrupted too."""
    error = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    logger.debug("After an interruption:", exc_info=error)  # in log.txt only
