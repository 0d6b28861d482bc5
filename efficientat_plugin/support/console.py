"""Shows log messages on the console from the start, and keeps them in log.txt.

SpeechBrain sets up logging together with the run folder. By then the data has been
read, and the messages about it would be lost.
"""

import io
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from efficientat_plugin.support.plain_text import shown

PACKAGE = "efficientat_plugin"
OURS = (PACKAGE, "__main__")  # log.txt keeps the DEBUG lines of these
SHELL = "speechbrain.utils.superpowers"  # logs `pip freeze` before `keep_log`
KEPT = 1000  # records, at most, that wait for log.txt

_early: deque[logging.LogRecord] = deque(maxlen=KEPT)


class ConsoleHandler(logging.Handler):
    """Prints log messages as plain sentences, above a progress bar if there is one.

    Arguments
    ---------
    stream : str
        "stdout" or "stderr", looked up when a line is printed.
    prefix : str
        Printed before each line.

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
        """Prints a record without its traceback, which is in log.txt."""
        from tqdm import tqdm  # here, to keep `efficientat --help` fast

        level = "" if record.levelno < logging.WARNING else "Warning: "
        try:
            text = "\n".join(map(shown, record.getMessage().split("\n")))
            file = getattr(sys, self.stream)
            tqdm.write(f"{self.prefix}{level}{text}", file=file)
        except Exception:
            self.handleError(record)


class _Waiting(logging.Handler):
    """Keeps log records until log.txt is open."""

    def emit(self, record: logging.LogRecord) -> None:
        _early.append(record)


@contextmanager
def logging_to_console(stream: str, prefix: str = "") -> Iterator[None]:
    """Shows what this package logs on the console.

    Arguments
    ---------
    stream : str
        "stdout" or "stderr".
    prefix : str
        Printed before each line.

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
    """Makes stdout print characters that its encoding lacks as escapes.

    Example
    -------
    >>> escape_what_stdout_lacks()  # from here on an é is \\xe9 on an ASCII terminal
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def keep_log() -> None:
    """Adds earlier log records to log.txt, once SpeechBrain has opened it.

    From then on log.txt has no DEBUG lines of other packages: nine of ten lines were
    about the fonts that matplotlib finds.
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
