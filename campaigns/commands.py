"""The commands that take long, on data so small that each ends within seconds."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from recipe_runs import REPOSITORY, RecipeProcess, arguments_of
from small_rows import rows_of, write_parquet

from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.files import sha256_of

RATE = 16000
TONES = {"high": 3000.0, "low": 300.0, "noise": 0.0}  # Hz
CLIP = {"clip_seconds": 0.5, "device": "cpu"}


class Command(NamedTuple):
    """One of the recipes, and how its outcome is read."""

    name: str
    recipe: str
    options: Callable[[Path, Path, int], dict]  # of data, output and workers
    results: tuple[str, ...]  # files of the output that are compared
    saving: tuple[str, ...]  # what is there while something is being saved

    def words(self, data: Path, output: Path, workers: int = 0) -> list[str]:
        """What comes after ``python``."""
        yaml = "quickstart" if self.recipe == "audioset_kd" else self.recipe
        options = self.options(data, output, workers)
        path = REPOSITORY / "recipes" / f"{self.recipe}.py"
        return [str(path), *arguments_of(yaml, **options)]

    def start(self, data: Path, output: Path, workers: int = 0) -> RecipeProcess:
        """In a process of its own, whose clips' order of sets is that of others."""
        return RecipeProcess(self.words(data, output, workers), data)

    def outcome(self, output: Path) -> dict[str, str]:
        """Digests of all that a run is for, by file; of checkpoints, the newest."""
        newest = max(output.glob("save/CKPT*"), default=None)
        found = {}
        for pattern in self.results:
            for path in output.glob(pattern):
                is_old = path.match("CKPT*/*") and path.parent != newest
                if path.is_file() and not is_old:
                    name = re.sub("CKPT[^/]*", "newest", str(path.relative_to(output)))
                    found[name] = sha256_of(path)
        return found

    def is_saving(self, output: Path) -> bool:
        """Whether something is half written there, now or for ever."""
        folders = (output, output.with_name(f"{output.name}.partial"))
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):  # renamed just then
                if any(any(folder.glob(pattern)) for pattern in self.saving):
                    return True
        return False


def write_data(folder: Path) -> None:
    """Sounds, rows and weights that the commands work on."""
    rng = np.random.default_rng(0)
    for name, frequency in TONES.items():
        (folder / "sounds" / name).mkdir(parents=True)
        for number in range(10):
            phase = 2 * np.pi * frequency * np.arange(RATE // 2) / RATE
            sound = 0.3 * np.sin(phase) + 0.05 * rng.standard_normal(RATE // 2)
            path = folder / "sounds" / name / f"{name}{number}.wav"
            soundfile.write(path, sound, RATE)
    rows = rows_of([f"clip-{number:06d}" for number in range(60)])
    write_parquet(folder / "rows" / "train.parquet", rows)
    torch.manual_seed(0)
    for num_classes in (7, 527):
        state = MN(num_classes, width=0.1).state_dict()
        torch.save(state, folder / f"{num_classes}.pt")


def _distil(data: Path, output: Path, workers: int) -> dict:
    return CLIP | {
        "sample_folder": data / "sample",
        "dataset_cache": data / "cache",
        "num_labelled": 12,
        "num_seeds": 1,
        "num_unlabelled": 20,
        "num_eval": 8,
        "clips_per_epoch": 32,
        "number_of_epochs": 3,
        "batch_size": 8,
        "eval_batch_size": 8,
        "compare_without_teacher": False,
        "width": 0.1,
        "ckpt_interval_minutes": 0,
        "ckpt_interval_steps": 1,
        "num_workers": workers,
        "output_folder": output,
    }


def _finetune(data: Path, output: Path, workers: int) -> dict:
    return CLIP | {
        "dataset": data / "sounds",
        "pretrained": data / "7.pt",
        "log_mel": "{n_mels: 128, hop_length: 320}",
        "batch_size": 8,
        "number_of_epochs": 6,
        "mixup": None,
        "waveform_mix": None,
        "num_workers": workers,
        "output_folder": output,
    }


def _dump(data: Path, output: Path, workers: int) -> dict:
    return CLIP | {
        "dataset": data / "sounds",
        "teachers": data / "527.pt",
        "teacher_options": "{n_mels: 128, hop_length: 320}",
        "batch_size": 1,
        "num_workers": workers,
        "store": output,
    }


def _prepare(data: Path, output: Path, workers: int) -> dict:
    return {
        "dataset": data / "rows",
        "dataset_cache": data / "cache",
        "split": "train",
        "codec": "mp3",
        "clips_per_shard": 2,
        "num_proc": max(workers, 1),
        "folder": output,
    }


TRAINED = (
    "scores.json",
    "per_class.csv",
    "save/CKPT*/*.ckpt",
    "model/[!R]*",
)  # the card has a latency
COMMANDS = [
    Command("distil", "audioset_kd", _distil, TRAINED, ("save/UNFINISHED*",)),
    Command("finetune", "finetune", _finetune, TRAINED, ("save/UNFINISHED*",)),
    Command("dump", "dump_teacher_logits", _dump, ("**/*",), ("**/*.part",)),
    Command(
        "prepare",
        "prepare_data",
        _prepare,
        ("data/**/*",),
        ("**/*.part", ".*/**/*.parquet"),
    ),
]
