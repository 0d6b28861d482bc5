"""How a recipe starts: its arguments, its YAML, its processes."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from speechbrain.utils.distributed import ddp_init_group

from efficientat_plugin.memory import keep_freed_memory


def parse_and_join(argv: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """The YAML's path, SpeechBrain's options and the overrides of a command line.

    The processes of a `torchrun` find each other.

    Arguments
    ---------
    argv : list of str
        Without the program's name.

    Returns
    -------
    str, RunOptions, dict

    Example
    -------
    >>> path, options, overrides = parse_and_join(["a.yaml", "--width", "0.4"])
    >>> path, overrides
    ('a.yaml', {'width': 0.4})
    """
    hparams_file, run_opts, overrides_text = sb.parse_arguments(argv)
    run_opts = on_available_hardware(run_opts)
    ddp_init_group(run_opts)
    overrides = YAML(typ="safe").load(overrides_text) or {}
    return hparams_file, run_opts, dict(overrides)


def on_available_hardware(run_opts: Any) -> Any:
    """Processes of a `torchrun` without GPUs talk by gloo, unless told otherwise."""
    told = run_opts.overridden_args
    on_gpu = torch.cuda.is_available() and run_opts.device != "cpu"
    if on_gpu or "distributed_backend" in told:
        return run_opts
    return dataclasses.replace(
        run_opts,
        distributed_backend="gloo",
        overridden_args=told | {"distributed_backend"},
    )


def load_hparams(hparams_file: str | Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Builds the objects of a YAML; what they hold on to is set up as it says."""
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    if hparams.get("keep_freed_memory"):
        keep_freed_memory()
    return hparams


def world_size() -> int:
    """Processes that `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", 1))
