"""The recipe that dumps logits: kills, streams, ensembles and refusals."""

import json
import time
from pathlib import Path

import pytest
import soundfile
from recipe_runs import TORCHRUN, RecipeProcess, launch, run_to_end, start_both
from small_rows import noise

from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.teachers.store.logits_store import LogitsStore

REPOSITORY = Path(__file__).resolve().parents[1]


def write_audio(folder, count):
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}" / f"clip{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(number, 4000), 16000)
    (folder / "notes.txt").write_text("no sound")
    return folder


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_a_folder_of_audio_needs_neither_labels_nor_split(tmp_path, reader, streaming):
    folder = write_audio(tmp_path / "audio", 3)
    rows = list(load_rows(str(folder), None, streaming))
    assert [row["video_id"] for row in rows] == ["a/clip00", "a/clip02", "b/clip01"]
    assert [row["labels"] for row in rows] == [[], [], []]
    assert reader.read(rows[0]).waveform.abs().max() > 0


def test_a_folder_without_audio_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder with audio files"):
        load_rows(str(tmp_path), None)


def command(store, **more):
    options = {
        "dataset": "audio",
        "teachers": "my_teachers:make",
        "clip_seconds": 0.25,
        "num_workers": 0,
        "batch_size": 2,
        "device": "cpu",
        "store": store,
    }
    words = [str(REPOSITORY / "recipes" / "dump_teacher_logits.py")]
    words += [str(REPOSITORY / "hparams" / "dump_teacher_logits.yaml")]
    for name, value in (options | more).items():
        words += [f"--{name}", str(value)]
    return words


def clips_written(store):
    manifest = store / "manifest.json"
    return json.loads(manifest.read_text())["count"] if manifest.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_dump_ends_like_an_undisturbed_one(own_module, tmp_path, processes):
    write_audio(tmp_path / "audio", 16)
    text = launch(*command("whole"))
    assert "whole: 16 clips" in text and "\nunjudged: 100.0% of 16 clips" in text
    killed, slow = tmp_path / "killed", {"SLOW_TEACHER": "0.5"}
    if processes == 1:
        children = [RecipeProcess(command(killed), **slow)]
    else:
        children = start_both(command(killed), **slow)
    patience = time.monotonic() + 120
    while clips_written(killed) < 4 and time.monotonic() < patience:
        time.sleep(0.01)
    for child in children:
        child.kill()
    done = clips_written(killed)
    assert 4 <= done < 16
    again = command(killed)
    text = run_to_end(again) if processes == 1 else launch(*TORCHRUN, *again)
    assert f"{done} of 16 clips are stored already" in text
    for file in Path("whole").iterdir():
        assert file.read_bytes() == Path("killed", file.name).read_bytes()


@pytest.mark.slow
def test_the_recipe_streams_and_weighs(own_module, tmp_path):
    write_audio(tmp_path / "audio", 4)
    options = {
        "teachers": "my_teachers:make,my_teachers:make",
        "teacher_weights": "2,1",
        "sample_rate": 32000,
        "streaming": True,
        "precision": "bf16",
    }
    text = run_to_end(command("s", **options))
    store = LogitsStore("s")
    assert len(store) == 4 and "s: 4 clips\nunjudged" in text
    assert store.manifest.sample_rate == 32000
    assert "Not verified: no clip of the stream" in run_to_end(command("s", **options))
    refused = run_to_end(command("s"), expect=1)
    assert "holds other logits (teacher my_teachers:make," in refused.splitlines()[-1]
    assert "precision bf16 there, fp32 here" in refused.splitlines()[-1]


@pytest.mark.slow
def test_the_recipe_refuses_in_a_sentence(own_module, tmp_path):
    write_audio(tmp_path / "audio", 2)
    for options, text in [
        ({"dataset": "nowhere"}, "--dataset PATH and --split NAME are needed"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"labels": "three.csv"}, "No such file"),
        ({"teachers": "my_teachers:none"}, "cannot be imported"),
    ]:
        found = run_to_end(command("s", **options), expect=1)
        assert text in found.splitlines()[-1]
