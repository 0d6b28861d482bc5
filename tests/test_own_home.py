"""Tests have an empty home of their own, and a watch tells what they touch outside."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import own_home
import pytest
import torch
from recipe_runs import RecipeProcess

REPOSITORY = Path(__file__).resolve().parents[1]
USERS_HOME = pwd.getpwuid(os.getuid()).pw_dir


def test_caches_lie_in_the_own_home():
    home = Path(os.environ["HOME"])
    assert home != Path(USERS_HOME)
    for name in own_home.VARIABLES:
        assert Path(os.environ[name]).is_relative_to(home), name
    assert Path(torch.hub.get_dir()).is_relative_to(home)


OUTSIDE = [
    "open(HOME + '/efficientat-nothing')",
    "__import__('os').listdir(HOME)",
    "__import__('os').mkdir('/efficientat-nothing/at-all')",
    "open('/usr/efficientat-nothing/at-all', 'w')",
]
INSIDE = [
    "open(os.environ['HOME'] + '/file', 'w')",
    "os.listdir('/usr')",
    "open(REPOSITORY + '/README.md')",
    "import datasets, torch, matplotlib.pyplot, speechbrain",
]


def _attempt(code):
    setting = f"import os; HOME, REPOSITORY = {USERS_HOME!r}, {str(REPOSITORY)!r}"
    guarded = f"{setting}\ntry:\n    {code}\nexcept OSError:\n    pass"
    subprocess.run([sys.executable, "-c", guarded], check=True, capture_output=True)


@pytest.mark.parametrize("code", OUTSIDE)
def test_what_lies_outside_is_seen(code, monkeypatch, tmp_path):
    report = tmp_path / "touched.txt"
    monkeypatch.setenv(own_home.REPORT_VARIABLE, str(report))
    _attempt(code)
    assert USERS_HOME in report.read_text() or "nothing" in report.read_text()


@pytest.mark.parametrize("code", INSIDE)
def test_what_lies_inside_is_not(code, monkeypatch, tmp_path):
    report = tmp_path / "touched.txt"
    monkeypatch.setenv(own_home.REPORT_VARIABLE, str(report))
    _attempt(code)
    assert not report.exists()


def test_recipes_are_watched(tmp_path):
    report, script = tmp_path / "touched.txt", tmp_path / "script.py"
    script.write_text(f"import os\nos.listdir({USERS_HOME!r})")
    process = RecipeProcess([script], **{own_home.REPORT_VARIABLE: str(report)})
    process.wait()
    assert process.poll() == 0
    assert report.read_text() == f"os.listdir {USERS_HOME}\n"
