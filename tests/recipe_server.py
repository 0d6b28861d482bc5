"""Starts recipes from a process that has imported what they import.

Importing takes longer than a short run. Each recipe gets a process of its own, forked
from this one, which did nothing but import, and runs in it as `python RECIPE` does.
A request is a line of JSON, the answer the id of the process; a file tells its end.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import random
import runpy
import signal
import sys
import threading
import warnings
from pathlib import Path

import datasets
import numpy as np
import speechbrain as sb

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# What recipes import as they run.
LATER = [
    "efficientat_plugin.training.schedules",
    "efficientat_plugin.training.train_log",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "PIL.JpegImagePlugin",
    "scipy.io.wavfile",
    "speechbrain.utils.train_logger",
    "torch._dynamo",  # with the first optimizer
    "torch.utils.flop_counter",
]


def main() -> None:
    """Forks until nobody can ask any more; returns in none but the first process."""
    for recipe in sorted(RECIPES.glob("*.py")):
        spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for name in LATER:
        importlib.import_module(name)
    # Each run otherwise asks pip for all packages, which takes as long as the run.
    sb.utils.logger.get_environment_description = str
    # The end of a stream otherwise waits for 5 s, for threads that read large files.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2
    gc.freeze()
    for line in sys.stdin:
        if _fork() == 0:
            _start(**json.loads(line))
        _bury_the_ended()


def _bury_the_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork() -> int:
    """Some libraries have a thread that sleeps, and can be forked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _start(
    arguments: list, folder: str, environment: dict, output: str, at_once: bool
) -> None:
    """Runs a recipe in a child, and waits for its end."""
    child = _fork()
    if child:
        os.write(sys.stdout.fileno(), f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(f"{output}.part").write_text(str(status))
        os.replace(f"{output}.part", f"{output}.status")
        os._exit(0)
    os.setsid()
    # As in a terminal, though these tests may run in the background, where Ctrl-C is
    # ignored by all that is started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _redirect(os.devnull, os.O_RDONLY, sys.stdin)
    for stream in (sys.stdout, sys.stderr):
        _redirect(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed()
    np.random.seed()
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    except SystemExit as end:
        if not at_once:
            raise
        code = end.code
    _end(code)


def _end(code) -> None:
    """Ends as Python does, but for taking each module apart.

    To do so touches, and hence copies, most of the memory of the first process.
    """
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _redirect(path: str, flags: int, stream) -> None:
    file = os.open(path, flags, 0o600)
    os.dup2(file, stream.fileno())
    os.close(file)


if __name__ == "__main__":
    main()
