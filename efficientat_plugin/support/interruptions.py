"""Handles Ctrl-C and SIGTERM: none is lost, and each is reported once, at the end."""

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import soundfile

logger = logging.getLogger(__name__)


def _is_called_by_libsndfile(frame: FrameType | None) -> bool:
    """Whether soundfile is just reading or writing a file-like object."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == soundfile.__file__ and code.co_name.startswith("vio_"):
            return True
        frame = frame.f_back
    return False


def _log_what_follows(*error: Any) -> None:
    """Logs the errors of threads and destructors whose workers were interrupted too."""
    logger.debug("After an interruption:", exc_info=error)  # in log.txt only


def _log_lost_connections(kind: type[BaseException], *error: Any) -> None:
    """Logs the errors of a worker's threads if the main process ended before it."""
    if issubclass(kind, ConnectionError | EOFError):
        logger.debug("A worker outlived its run:", exc_info=(kind, *error))
    else:
        sys.__excepthook__(kind, *error)


class Interruptions:
    """While entered, SIGINT and SIGTERM interrupt the process, wherever they arrive.

    ``told`` lists the signals that arrived. Forked processes leave them to this one,
    which ends them.
    """

    def __init__(self) -> None:
        self.told: list[int] = []
        self.is_entered = False
        self.timers: list[threading.Timer] = []

    def __enter__(self) -> "Interruptions":
        self.is_entered = True
        self.handlers = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) != signal.SIG_IGN  # as of a job behind `&`
        }
        self.report, sys.unraisablehook = sys.unraisablehook, self._interrupt_again
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)
        return self

    def __exit__(self, *_error: object) -> None:
        self.is_entered = False
        for timer in self.timers:  # or one would fire after the last message
            timer.cancel()
            timer.join()
        if not self.told:
            sys.unraisablehook = self.report
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.is_entered:
            return
        self.told.append(number)
        sys.excepthook = _log_what_follows
        if _is_called_by_libsndfile(frame):
            self._once_more(number)  # raised here, it would be lost and cut a clip
        else:
            raise KeyboardInterrupt

    def _interrupt_again(self, unraisable: Any) -> None:
        # Python drops exceptions that nobody can catch, as in a destructor or between
        # the locks of `logging` in a fork. Raised here, it would be dropped as well.
        error = unraisable.exc_value
        if self.is_entered and isinstance(error, KeyboardInterrupt):
            self._once_more(self.told[-1] if self.told else signal.SIGINT)
        elif self.told:
            _log_what_follows(unraisable.exc_type, error, unraisable.exc_traceback)
        else:
            self.report(unraisable)

    def _once_more(self, number: int) -> None:
        timer = threading.Timer(0.05, os.kill, [os.getpid(), number])
        self.timers.append(timer)
        timer.start()

    def _leave_to_parent(self) -> None:
        if self.is_entered:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.excepthook = _log_lost_connections
