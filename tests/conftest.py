"""Shared fixtures: real material where it is at hand, and nothing global touched."""

import own_home  # before anything that looks for its home

# isort: split
import functools
import gc
import os
import sys
from collections import Counter
from pathlib import Path

# Before any import of numpy: test runs beside each other, and what they start, do not
# spin for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any import of datasets: tests never look for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch
from command_line import five, mixed_folder, model, run, tagger  # noqa: F401
from detect_runs import (  # noqa: F401
    detect,
    frame_detector,
    frame_folder,
    middle_thresholds,
    three_sounds,
)
from exported_models import (  # noqa: F401
    any_int8,
    calibration_sounds,
    dymn,
    mn,
    model_folder,
    weights_file,
)
from own_teachers import OWN
from small_rows import (
    CLIP_SECONDS,
    LABELS,
    SAMPLE_RATE,
    TRAIN_IDS,
    rows_of,
    write_parquet,
)

from efficientat_plugin.cost.complexity import measure
from efficientat_plugin.data.decoding import ClipReader
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.pretrained import card
from efficientat_plugin.students.mn import MN

# Doctest would import both by one name.
collect_ignore = ["conftest.py", "own_home"]

REPOSITORY = Path(__file__).resolve().parents[1]


# Small networks gain nothing by more.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What is imported and collected stays, and is not searched for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material that may stand beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip(
            f"needs the published weights or real clips of {folder}, which is not there"
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory):
    """What `datasets` caches goes with the tests."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf_datasets")


@pytest.fixture(scope="session", autouse=True)
def _one_cost():
    """To measure a student is the slow part of its card; runs of recipes measure it."""
    cost = functools.cache(lambda: measure(MN(3, width=0.1), n_frames=50, rounds=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "measure_once", lambda *_: cost())
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def touched() -> Path:
    """The file of what processes touched that they should not."""
    return Path(os.environ[own_home.REPORT_VARIABLE])


@pytest.fixture(autouse=True)
def _keeps_to_its_places(touched):
    """Nothing is read or written outside the clone, its own home and Python."""
    before = touched.read_text() if touched.exists() else ""
    yield
    after = touched.read_text() if touched.exists() else ""
    assert after == before, f"touched outside: {after[len(before) :]}"


@pytest.fixture(scope="session")
def train_rows():
    return rows_of(TRAIN_IDS)


@pytest.fixture(scope="session")
def rows(train_rows, tmp_path_factory):
    """Eight rows in two files, map-style."""
    folder = tmp_path_factory.mktemp("rows")
    write_parquet(folder / "train-0.parquet", train_rows[:5])
    write_parquet(folder / "train-1.parquet", train_rows[5:])
    return load_rows(str(folder), "train")


@pytest.fixture
def reader():
    return ClipReader(LABELS, CLIP_SECONDS, SAMPLE_RATE)


@pytest.fixture
def close_folders(monkeypatch):
    """Folders of a name cannot be read; to a superuser all could."""
    original = os.scandir

    def close(name: str) -> None:
        def scandir(path):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return close


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The name of a module of teachers, `own_teachers.OWN`, in the current folder."""
    (tmp_path / "my_teachers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "my_teachers"
