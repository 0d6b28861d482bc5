"""Several runs of a recipe in one interpreter: importing takes longer than a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DRIVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("recipe", sys.argv[1])
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
refused = False
for arguments in json.loads(sys.argv[2]):
    try:
        recipe.main(arguments)
    except SystemExit as stop:
        print(stop.code)
        refused = True
sys.exit(refused)
"""


def arguments_of(yaml, **options):
    """What a recipe's ``main`` is called with."""
    arguments = [str(REPOSITORY / "hparams" / f"{yaml}.yaml"), "--noprogressbar"]
    for name, value in options.items():
        arguments += [f"--{name}", "null" if value is None else str(value)]
    return arguments


def run_recipe(recipe, calls, folder=None, expect=0):
    """Runs ``recipes/{recipe}.py`` for each list of arguments; what it printed."""
    path = str(REPOSITORY / "recipes" / f"{recipe}.py")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, path, json.dumps(calls)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == expect, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr
