"""A limit of memory, for tests of what must not be read whole."""

import resource
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit(num_bytes):
    """Limits what the process may take beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
