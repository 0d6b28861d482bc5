"""The package imports light, and its names are where they are said to be."""

import subprocess
import sys
from pathlib import Path

import pytest

import efficientat_plugin

REPOSITORY = Path(__file__).resolve().parents[1]


def test_importing_the_package_is_light():
    code = (
        "import sys, efficientat_plugin;"
        "dir(efficientat_plugin);"
        "print([name for name in ('torch', 'datasets', 'numpy', 'matplotlib')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", efficientat_plugin.__all__)
def test_public_names_resolve(name):
    assert getattr(efficientat_plugin, name).__name__ == name


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efficientat_plugin.nothing


def test_what_only_reports_need_is_imported_for_them():
    """matplotlib where a figure is drawn, Triton where a student's work is counted."""
    code = (
        "import sys, efficientat_plugin.report, efficientat_plugin.complexity;"
        "print([name for name in ('matplotlib', 'triton') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_file_is_small():
    """Nothing over 1 MB goes in."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        assert (REPOSITORY / name).stat().st_size <= 2**20, name
