"""SpeechBrain's loggers of TensorBoard and W&B, without the packages they write for.

What takes the place of those keeps what it is given in a file, and is at least as
strict: a value is a number, and W&B's steps never go back. Name them in a YAML, as
``!new:strict_loggers.TensorboardLogger``.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

from speechbrain.utils.train_logger import TensorboardLogger, WandBLogger

__all__ = ["TensorboardLogger", "WandBLogger", "start_run"]


def _refuse_all_but_numbers(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is no number")


class SummaryWriter:
    """Keeps scalars in FOLDER/scalars.jsonl."""

    def __init__(self, log_dir):
        self.path = Path(log_dir, "scalars.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add_scalar(self, tag, scalar_value, global_step=None):
        _refuse_all_but_numbers(tag, scalar_value)
        _refuse_all_but_numbers("global_step", global_step)
        with self.path.open("a") as file:
            print(json.dumps([tag, scalar_value, global_step]), file=file)


class Run:
    """Keeps what is logged in FOLDER/logged.jsonl."""

    def __init__(self, dir):
        self.path = Path(dir, "logged.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.step = -1

    def log(self, data, step=None):
        step = self.step + 1 if step is None else step
        if step < self.step:
            raise ValueError(f"step {step} is behind {self.step}, and would be dropped")
        self.step = step
        for name, value in data.items():
            parts = value.items() if isinstance(value, dict) else [(name, value)]
            for part, number in parts:
                _refuse_all_but_numbers(part, number)
        with self.path.open("a") as file:
            print(json.dumps(data), file=file)


def start_run(dir, **_options):
    """As ``wandb.init``."""
    return Run(dir)


_tensorboard = ModuleType("torch.utils.tensorboard")
_tensorboard.SummaryWriter = SummaryWriter
sys.modules[_tensorboard.__name__] = _tensorboard
