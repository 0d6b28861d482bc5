"""The tutorials run as they stand, on real sound."""

import sys
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docs" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "fetch_sound")


@pytest.fixture
def folder(shared, tmp_path, monkeypatch):
    """A copy of the folder that the tutorials run in, with sound and weights."""
    monkeypatch.syspath_prepend(FOLDER)
    from fetch_sound import fetch

    for name in ("recipes", "hparams"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    esc50 = tmp_path / "esc50"
    (esc50 / "meta").mkdir(parents=True)
    (esc50 / "meta" / "esc50.csv").symlink_to(shared / "data" / "esc50" / "esc50.csv")
    (esc50 / "audio").symlink_to(shared / "data" / "esc50" / "audio")
    folder = tmp_path / "docs" / "tutorials"
    metro = (shared / "audio" / "metro_station-paris.wav").as_uri()
    fetch(folder / "sound", 6, metro, esc50.as_uri())
    monkeypatch.setenv("EFFICIENTAT_BASE_URL", f"{(shared / 'checkpoints').as_uri()}/")
    commands = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", commands, prepend=":")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run on the other cores
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs(name, folder):
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("!"):
            cell.source += "\nassert _exit_code == 0"
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]
