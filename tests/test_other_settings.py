"""Every recipe refuses other settings with both values, and then touches nothing."""

import pickle
import shutil

import numpy as np
import pytest
import soundfile
import torch
from recipe_runs import REPOSITORY, arguments_of, run_recipe
from small_rows import rows_of, write_parquet

from efficientat_plugin.students.mn import MN

RATE = 16000
TONES = {"high": 3000.0, "low": 300.0, "noise": 0.0}  # Hz
CLIP = {"clip_seconds": 0.5, "device": "cpu", "num_workers": 0}
FRONT_END = "{n_mels: 128, hop_length: 320}"  # which no file of weights tells
OPTIONS = {
    "finetune": CLIP
    | {"dataset": "sounds", "pretrained": "7.pt", "batch_size": 4}
    | {"number_of_epochs": 1, "lr": 0.001, "log_mel": FRONT_END},
    "distil": CLIP
    | {"dataset": "sounds", "form": "sounds", "teacher": "527.pt", "batch_size": 4}
    | {"number_of_epochs": 1, "valid_share": 0, "teacher_options": FRONT_END},
    "dump_teacher_logits": CLIP
    | {"dataset": "sounds", "teachers": "527.pt", "teacher_options": FRONT_END},
    "prepare_data": {"dataset": "sounds", "num_proc": 1},
    "make_transfer_set": {"dataset": "rows", "split": "train", "num_clips": 2}
    | {"clip_seconds": 0.5},
}
FOLDER = {"prepare_data": "folder", "make_transfer_set": "folder"}
FOLDER |= {"dump_teacher_logits": "store"}
# What is given beside the options above, and the message about it
OTHERS = {
    "finetune": [
        ({"seed": 7}, "seed 1234 there, 7 here; train "),
        ({"lr": 0.5}, "lr 0.001 there, 0.5 here"),
        ({"clip_seconds": 0.25}, "clip_seconds 0.5 there, 0.25 here"),
        ({"precision": "bf16"}, "precision not set there, bf16 here"),
        ({"number_of_epochs": 2}, "number_of_epochs 1 there, 2 here"),
        ({"pretrained": "other7.pt"}, "pretrained a file (digest "),
        ({"dataset": "other_labels"}, "train 11 clips (ids "),
        ({"dataset": "other_sounds"}, ", sound "),
    ],
    "distil": [
        ({"kd_temperature": 2.0}, "kd_temperature 1.0 there, 2.0 here"),
        ({"teacher": "other527.pt"}, "teacher of weights with digest "),
        ({"dataset": "other_sounds"}, ", sound "),
        ({"number_of_epochs": 2}, "number_of_epochs 1 there, 2 here"),
    ],
    "dump_teacher_logits": [
        ({"clip_seconds": 0.25}, "clip_seconds 0.5 there, 0.25 here"),
        ({"precision": "bf16"}, "precision fp32 there, bf16 here"),
        ({"teachers": "other527.pt"}, "weights of digest "),
        ({"sample_rate": 16000}, "sample_rate 32000 there, 16000 here"),
    ],
    "prepare_data": [
        ({"codec": "vorbis"}, "codec flac there, vorbis here"),
        ({"sample_rate": 16000}, "sample_rate 32000 there, 16000 here"),
        ({"clips_per_shard": 3}, "clips_per_shard 1000 there, 3 here"),
        ({"dataset": "other_labels"}, "clips of all "),
        ({"dataset": "other_sounds"}, ", sound "),
    ],
    "make_transfer_set": [
        ({"seed": 7}, "seed 0 there, 7 here"),
        ({"num_clips": 3}, "num_clips 2 there, 3 here"),
        ({"max_sources": 1}, "max_sources 3 there, 1 here"),
        ({"clip_seconds": 0.25}, "clip_seconds 0.5 there, 0.25 here"),
        ({"dataset": "other_rows"}, "clips 8 clips (ids "),
    ],
}
# What may differ: the same data and weights elsewhere, workers, batches to look at
SAME = {
    "finetune": {"dataset": "moved", "pretrained": "moved7.pt", "eval_batch_size": 3},
    "distil": {"dataset": "moved", "teacher": "moved527.pt", "num_workers": 1},
    "dump_teacher_logits": {"dataset": "moved", "batch_size": 3, "verify": False},
    "prepare_data": {"dataset": "moved", "num_proc": 2, "verify": False},
}


def _write_sounds(folder, seed=0):
    rng = np.random.default_rng(seed)
    for name, frequency in TONES.items():
        (folder / name).mkdir(parents=True)
        for number in range(6):
            phase = 2 * np.pi * frequency * np.arange(RATE // 2) / RATE
            sound = 0.3 * np.sin(phase) + 0.05 * rng.standard_normal(RATE // 2)
            soundfile.write(folder / name / f"{name}{number}.wav", sound, RATE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data and weights, others of the same names, and the same ones elsewhere."""
    place = tmp_path_factory.mktemp("place")
    for name, seed in (("sounds", 0), ("moved", 0), ("other_sounds", 1)):
        _write_sounds(place / name, seed)
    shutil.copytree(place / "sounds", place / "other_labels")
    (place / "other_labels" / "low").rename(place / "other_labels" / "deep")
    ids = [f"clip-{number}" for number in range(8)]
    write_parquet(place / "rows" / "train.parquet", rows_of(ids))
    write_parquet(place / "other_rows" / "train.parquet", rows_of(ids[::-1]))
    for name in ("", "other"):
        for classes in (7, 527):
            state = MN(classes, width=0.1).state_dict()
            torch.save(state, place / f"{name}{classes}.pt")
            if not name:
                shutil.copy(place / f"{classes}.pt", place / f"moved{classes}.pt")
    return place


def _call(recipe, **options):
    own = {FOLDER.get(recipe, "output_folder"): f"out/{recipe}"}
    own |= {} if recipe == "prepare_data" else {"dataset_cache": "cache"}
    return arguments_of(recipe, **(OPTIONS[recipe] | own | options))


def _listing(folder):
    """All of it: when it was written, and what it holds."""
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OPTIONS)
def test_other_settings_are_refused_and_touch_nothing(recipe, place):
    folder = place / "out" / recipe
    run_recipe(recipe, [_call(recipe)], place)
    before = _listing(folder)
    option = f"another --{FOLDER.get(recipe, 'output_folder')}"
    if recipe == "dump_teacher_logits":
        option = "--store or --teacher_logits"
    for options, message in OTHERS[recipe]:
        printed = run_recipe(recipe, [_call(recipe, **options)], place, expect=1)
        assert "Traceback" not in printed
        sentence = printed.strip().splitlines()[-1]
        assert message in sentence and " there, " in sentence, sentence
        assert option in sentence
        assert _listing(folder) == before, options
    if recipe in SAME:
        run_recipe(recipe, [_call(recipe, **SAME[recipe])], place)


@pytest.mark.slow
def test_no_fold_is_trained_where_one_is_of_another_run(place, tmp_path):
    lines = ["file,label,fold"]
    for number in range(12):
        kind = ("high", "low")[number % 2]
        name = f"{place}/sounds/{kind}/{kind}{number // 2}.wav"
        lines.append(f"{name},{kind},{number // 2 % 3 + 1}")
    (place / "folds.csv").write_text("\n".join(lines))
    output = {"dataset": "folds.csv", "output_folder": tmp_path, "valid_share": 0}
    run_recipe("finetune", [_call("finetune", **output, fold=3)], place)
    before = _listing(tmp_path)
    call = _call("finetune", **output, seed=7)
    printed = run_recipe("finetune", [call], place, expect=1)
    assert "seed 1234 there, 7 here" in printed
    assert _listing(tmp_path) == before


@pytest.mark.slow
def test_a_store_is_not_imported_over_another(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 527), np.float32))
    np.save(tmp_path / "b.npy", np.ones((1, 527), np.float32))
    (tmp_path / "index.pkl").write_bytes(pickle.dumps({"Y0123456789a.mp3": 0}))
    call = [tmp_path / "a.npy", tmp_path / "index.pkl", tmp_path / "store"]
    run_recipe("import_teacher_logits", [call])
    before = _listing(tmp_path / "store")
    call[0] = tmp_path / "b.npy"
    printed = run_recipe("import_teacher_logits", [call], expect=1)
    assert "exists; name another folder" in printed
    assert _listing(tmp_path / "store") == before


def test_every_recipe_is_tested_here_or_where_it_is_trained():
    recipes = {path.stem for path in (REPOSITORY / "recipes").glob("*.py")}
    trained = {"audioset_kd", "audioset_strong"}
    assert recipes == {*OPTIONS, "import_teacher_logits", "make_soundscapes", *trained}
