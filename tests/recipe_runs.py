"""Runs of recipes, each in a process of its own that need not import anything.

``launch`` starts one as a user does. Forked processes agree in the order of their sets,
so that a law of two runs that end alike has one of them launched.
"""

import atexit
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "default",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
PATIENCE_SECONDS = 300
_numbers = itertools.count()


@functools.cache
def _server() -> tuple[subprocess.Popen, tempfile.TemporaryDirectory]:
    """Where processes come from, and the folder of what they print."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("recipe_server.py")],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for those who ask it
    )
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server, tempfile.TemporaryDirectory()


class RecipeProcess:
    """``python`` with a list of arguments, of which the first is a recipe.

    Arguments
    ---------
    arguments : list
    folder : str or Path, optional
        To run in; the present one if not given.
    at_once : bool
        Whether Python need not take itself apart at the end of the recipe, which takes
        half a second. Where something is killed or interrupted, it does.
    environment
        Variables besides those of this process.
    """

    def __init__(self, arguments, folder=None, at_once=False, **environment):
        server, output = _server()
        self.output = Path(output.name, str(next(_numbers)))
        request = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder or Path.cwd()),
            "environment": os.environ | ENVIRONMENT | environment,
            "output": str(self.output),
            "at_once": at_once,
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, "the process that recipes are forked from has ended"
        self.pid = int(answer)

    def poll(self):
        """The exit status, as of ``subprocess``; None: it runs."""
        status = self.output.with_suffix(".status")
        return int(status.read_text()) if status.exists() else None

    def wait(self):
        """What the process printed, once it has ended."""
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while self.poll() is None:
                assert time.monotonic() < end, "the recipe takes too long"
                time.sleep(0.01)
        except BaseException:
            self.kill()
            raise
        return self.output.read_text(errors="replace")

    def kill(self):
        """Ends the process, and those that it started, as nothing else does."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.01)


def run_to_end(arguments, expect=0, folder=None, **environment):
    """What a recipe printed that ended with status ``expect``."""
    process = RecipeProcess(arguments, folder, at_once=True, **environment)
    text = process.wait()
    assert process.poll() == expect, text[-3000:]
    return text


def launch(*arguments, **environment):
    """What ``python`` printed, started anew."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    return text


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_both(arguments, **environment):
    """The two processes of a recipe that ``torchrun`` starts."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    group |= {"LOCAL_WORLD_SIZE": "2"} | environment
    return [
        RecipeProcess(arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"
    ]


def arguments_of(yaml, **options):
    """What a recipe's ``main`` is called with."""
    arguments = [str(REPOSITORY / "hparams" / f"{yaml}.yaml"), "--noprogressbar"]
    for name, value in options.items():
        arguments += [f"--{name}", "null" if value is None else str(value)]
    return arguments


def run_recipe(recipe, calls, folder=None, expect=0):
    """Runs ``recipes/{recipe}.py`` with each list of arguments; what it printed.

    ``expect`` is the highest of the exit statuses.
    """
    path = REPOSITORY / "recipes" / f"{recipe}.py"
    texts, highest = [], 0
    for call in calls:
        process = RecipeProcess([path, *call], folder, at_once=True)
        texts.append(process.wait())
        highest = max(highest, abs(process.poll()))
    printed = "".join(texts)
    assert highest == expect, printed[-3000:]
    return printed
