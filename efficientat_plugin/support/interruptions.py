"""Makes SIGTERM interrupt a process as Ctrl-C does, but not within a library's call."""

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


class _Calls:
    """Calls of this process's main thread that no signal may interrupt."""

    depth = 0
    signal_waits = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays the ``KeyboardInterrupt`` of `interruptible` to the end of the block.

    Libraries that call Python back, as libsndfile does to read and write bytes, take
    what is raised there for the end of a file: a sound would seem to be corrupt.

    Example
    -------
    >>> with uninterrupted():
    ...     pass
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Calls.depth += 1
    try:
        yield
    finally:
        _Calls.depth -= 1
        if _Calls.signal_waits and not _Calls.depth:
            _Calls.signal_waits = False
            raise KeyboardInterrupt


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
    sent_again: list[threading.Timer] = []
    process = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:
            arrived.append(number)
            if _Calls.depth:
                _Calls.signal_waits = True
                return
            sys.unraisablehook = dropped
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            os._exit(128 + number)

    def dropped(unraisable: Any) -> None:
        _log(unraisable)
        if unraisable.exc_type is KeyboardInterrupt and arrived and handlers:
            again = threading.Timer(0.05, os.kill, (process, arrived[-1]))
            again.daemon = True
            sent_again.append(again)
            again.start()

    handlers = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as of a job behind `&`
    }
    try:
        yield arrived
    finally:
        for again in sent_again:  # else it would find the handlers of before
            again.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        handlers.clear()


def _log(unraisable: Any) -> None:
    """Logs the errors of destructors whose workers were interrupted too."""
    error = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
    logger.debug("After an interruption:", exc_info=error)  # in log.txt only
