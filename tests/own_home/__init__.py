"""Importing this gives the tests an empty home, and watches what they touch outside.

What happens to lie in a user's home must not decide whether a test passes. The workers
of xdist, and all processes that tests start, share the home of the first process.
"""

import atexit
import os
import shutil
import sys
import tempfile

REPORT_VARIABLE = "EFFICIENTAT_TESTS_REPORT"  # file of what was touched outside
VARIABLES = {
    "HOME": "",
    "TORCH_HOME": "torch",
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
}


def move_in() -> None:
    """Sets the environment, once for a process and those that it starts."""
    if report := os.environ.get(REPORT_VARIABLE):
        # Each worker of xdist answers for what it starts.
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        os.environ[REPORT_VARIABLE] = report.removesuffix(worker) + worker
        return
    home = tempfile.mkdtemp(prefix="efficientat-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name, folder in VARIABLES.items():
        os.environ[name] = os.path.join(home, folder)
    os.environ[REPORT_VARIABLE] = os.path.join(home, "touched.txt")
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path.insert(0, here)
    # Other processes import it as they start; this one has started already.
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401


move_in()
