"""What is logged reaches people: on the console from the start, and in log.txt.

SpeechBrain sets logging up together with the folder of a run. By then the data was
read, and what there was to say about it had reached nobody.
"""

import io
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from efficientat_plugin.support.plain_text import shown

PACKAGE = "efficientat_plugin"
OURS = (PACKAGE, "__main__")  # whose DEBUG lines log.txt keeps
SHELL = "speechbrain.utils.superpowers"  # `pip freeze`, before `keep_log` is called
KEPT = 1000  # records, at most, that wait for a log.txt

_early: deque[logging.LogRecord] = deque(maxlen=KEPT)


class ConsoleHandler(logging.Handler):
    """Prints what is logged, in plain sentences, above a progress bar if there is one.

    Arguments
    ---------
    stream : str
        "stdout" or "stderr", whatever that is when a line is printed.
    prefix : str
        Before each line.

    Example
    -------
    >>> log = logging.getLogger("a_log_of_its_own")
    >>> log.addHandler(ConsoleHandler("stdout"))
    >>> log.warning("3 files are left out")
    Warning: 3 files are left out
    """

    def __init__(self, stream: str, prefix: str = "") -> None:
        super().__init__(level=logging.INFO)
        self.stream = stream
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record without its traceback, which log.txt has."""
        from tqdm import tqdm  # here, so that `efficientat --help` answers at once

        level = "" if record.levelno < logging.WARNING else "Warning: "
        try:
            text = "\n".join(map(shown, record.getMessage().split("\n")))
            file = getattr(sys, self.stream)
            tqdm.write(f"{self.prefix}{level}{text}", file=file)
        except Exception:
            self.handleError(record)


class _Waiting(logging.Handler):
    """Keeps what is logged for the log.txt to come."""

    def emit(self, record: logging.LogRecord) -> None:
        _early.append(record)


@contextmanager
def logging_to_console(stream: str, prefix: str = "") -> Iterator[None]:
    """Lets people see what this package logs, until SpeechBrain sees to it.

    Arguments
    ---------
    stream : str
        "stdout" or "stderr".
    prefix : str
        Before each line.

    Example
    -------
    >>> with logging_to_console("stdout", prefix="efficientat: "):
    ...     logging.getLogger("efficientat_plugin.data").info("labels in column sound")
    efficientat: labels in column sound
    """
    root, package = logging.getLogger(), logging.getLogger(PACKAGE)
    shell = logging.getLogger(SHELL)
    level = package.level
    handlers = [ConsoleHandler(stream, prefix), _Waiting()]
    handlers[0].addFilter(_is_for_people)
    package.setLevel(logging.DEBUG)
    shell.addFilter(_is_of_interest)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(level)
        shell.removeFilter(_is_of_interest)
        for handler in handlers:
            root.removeHandler(handler)
        _early.clear()


def escape_what_stdout_lacks() -> None:
    """Lets stdout show as an escape what its encoding has no character for.

    Example
    -------
    >>> escape_what_stdout_lacks()  # from here on an é is \\xe9 on an ASCII terminal
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def keep_log() -> None:
    """Adds to log.txt, once SpeechBrain has opened it, what was logged before.

    From then on it keeps no DEBUG lines of other packages: the fonts that matplotlib
    looks at were nine in ten of its lines.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_of_interest)
            for record in _early:
                if _is_of_interest(record):
                    handler.handle(record)


def _is_for_people(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.name.split(".")[0] in OURS


def _is_of_interest(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG or record.name.split(".")[0] in OURS
