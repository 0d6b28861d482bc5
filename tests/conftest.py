"""Shared fixtures: real material where it is at hand, and nothing global touched."""

import os
from pathlib import Path

# Before any import of datasets: tests never look for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material that may stand beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs reference material in {folder}, which is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory):
    """What `datasets` caches goes with the tests."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf_datasets")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
