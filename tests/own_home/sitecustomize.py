"""Python imports this as it starts: a process of the tests keeps to its places.

Every process that the tests start finds this folder in PYTHONPATH, and so writes down
each file that it opens, lists or changes where tests have no business: a user's home,
and whatever else is neither the clone, Python, the system nor a temporary folder.
Libraries that open files by themselves, in C, are not seen.
"""

import os
import sys
import sysconfig
import tempfile
from functools import lru_cache

REPORT_VARIABLE = "EFFICIENTAT_TESTS_REPORT"  # file of what was touched
# Where the system keeps what belongs to every program
SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sys")
SYSTEM += ("/usr", "/var/lib")
LISTS = ("os.listdir", "os.scandir")
CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _places() -> tuple[list[str], list[str]]:
    """Where a process may read and write, and where it may only read."""
    clone = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    python += [path for path in sys.path if path]
    shared = os.path.join(os.path.dirname(clone), "shared")
    read = [*python, *SYSTEM, shared]
    write = [clone, tempfile.gettempdir(), os.environ["HOME"], "/dev", "/proc"]
    return [
        sorted({p for path in paths for p in (path, os.path.realpath(path))})
        for paths in (write, [*write, *read])
    ]


def watch() -> None:
    """Appends a line to the report for each file that a process should not touch."""
    may_write, may_read = _places()

    @lru_cache(maxsize=10_000)
    def is_within(path: str, writes: bool) -> bool:
        places = may_write if writes else may_read
        return any(
            name == place or name.startswith(place + os.sep)
            for name in (os.path.abspath(path), os.path.realpath(path))
            for place in places
        )

    def note(event: str, arguments: tuple) -> None:
        if event == "open":
            paths, writes = arguments[:1], bool((arguments[2] or 0) & WRITES)
        elif event in LISTS:
            paths, writes = arguments[:1], False
        elif event == "os.symlink":  # where the link is; it may lead anywhere
            paths, writes = arguments[1:2], True
        elif event in CHANGES:
            paths, writes = arguments[:2], True
        else:
            return
        for path in paths:
            if not isinstance(path, str | bytes | os.PathLike) or not path:
                continue
            path = os.fsdecode(path)
            if not is_within(path, writes):
                line = f"{event} {os.path.abspath(path)}\n"
                report = os.environ.get(REPORT_VARIABLE, os.devnull)
                file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.write(file, line.encode("utf-8", "backslashreplace"))
                os.close(file)

    sys.addaudithook(note)


if REPORT_VARIABLE in os.environ:
    watch()
