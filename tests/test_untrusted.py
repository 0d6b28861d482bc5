"""Files that somebody else made, to ask for what they are not meant to give."""

import csv
import io
import os
import re
import signal
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from memory_limit import memory_limit

from efficientat_plugin import AudioTagger
from efficientat_plugin.cli import main
from efficientat_plugin.data.decoding import UnreadableClip, decode
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.summary import _read_headers
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.pretrained.description import describe
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    load_trained_model,
    write_model_folder,
)
from efficientat_plugin.pretrained.state_dicts import read_state
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.support.yaml_text import Refused

RATE = 32000
SPARSE_BYTES = 10**9  # of files that take no room


@pytest.fixture
def folder(tmp_path):
    """A model folder."""
    torch.manual_seed(0)
    options = {"num_classes": 2, "width": 0.1}
    student = MN(**options).eval()
    student.options, student.front_end = options, {"sample_rate": RATE}
    model = TrainedModel(student, LabelTable("ab", ["dog", "cat"]), "multiclass", 0.5)
    return write_model_folder(
        tmp_path / "model", model, Provenance("m", None, "", "", {})
    )


@pytest.fixture(autouse=True)
def _never_waits():
    """A reader that waits for a pipe fails, and does not stop all tests."""

    def fail(*_):
        raise AssertionError("it takes more than 60 s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sparse(path, begin=b""):
    """A file that says nothing after its beginning, and takes no room."""
    path.write_bytes(begin)
    os.truncate(path, SPARSE_BYTES)
    return path


# ---------------------------------------------------------------- pipes, devices, sizes


def _saved(path):
    return path.write_text("{}")


READERS = {
    "sound": lambda path: decode(path, RATE, 100),
    "CSV": read_text_table,
    "JSONL": read_text_table,
    "labels": LabelTable.from_csv,
    "weights": read_state,
    "weights described": describe,
    "ONNX": Tagger,
    "YAML of a recipe": lambda path: load_hparams(path, {}),
}
SUFFIXES = {"JSONL": ".jsonl", "CSV": ".csv", "ONNX": ".onnx"}
REFUSALS = (OSError, ValueError, SystemExit)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_or_a_device_is_not_waited_for(reader, tmp_path):
    pipe = tmp_path / f"pipe{SUFFIXES.get(reader, '.bin')}"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/tty")):
        with pytest.raises(REFUSALS) as refusal:
            READERS[reader](path)
        assert len(str(refusal.value).splitlines()) == 1
        kinds = ("pipe or a device", "no file", "not a file")
        assert any(kind in str(refusal.value) for kind in kinds)


def test_a_sound_called_like_standard_input_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableClip, match="not decodable"):
        decode("-", RATE, 100)
    soundfile.write("x.wav", np.full(RATE, 0.5), RATE)
    os.rename("x.wav", "-")
    assert decode("-", RATE, 100)[50] == 0.5
    rows = datasets.Dataset.from_list(
        [{"video_id": "a", "audio": {"bytes": None, "path": "-"}, "labels": ["a"]}]
    )
    assert _read_headers(rows, 1)[0] == [1.0]


@pytest.mark.parametrize("name", ["clips.csv", "data/clips.jsonl", "a.parquet"])
def test_a_table_that_is_a_pipe_is_refused(name, tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / name)
    for dataset in (tmp_path, tmp_path / name):
        with pytest.raises((OSError, ValueError), match=r"is a pipe or a device"):
            read_table(dataset)


@pytest.mark.parametrize("begin", [b"", b"file,label\na.wav,dog\n"])
@pytest.mark.parametrize("reader", [*SUFFIXES, "labels", "YAML of a recipe"])
def test_a_file_that_takes_no_room_is_not_read_whole(reader, begin, tmp_path):
    path = sparse(tmp_path / f"clips{SUFFIXES.get(reader, '.bin')}", begin)
    with memory_limit(SPARSE_BYTES // 4), pytest.raises(REFUSALS) as refusal:
        READERS[reader](path)
    assert len(str(refusal.value).splitlines()) == 1
    assert path.name in str(refusal.value)


@pytest.mark.parametrize("name", ["hyperparams.yaml", "student.ckpt"])
def test_a_model_folder_that_takes_no_room_is_not_read_whole(name, folder):
    sparse(folder / name, (folder / name).read_bytes()[:10])
    for load in (load_trained_model, AudioTagger.from_hparams):
        with memory_limit(SPARSE_BYTES // 4), pytest.raises(ValueError, match=name):
            load(str(folder))


# ---------------------------------------------------------------- data folders

SAVED = {
    "video_id": [f"{number}" for number in range(100)],
    "audio": [{"bytes": b"1", "path": None}] * 100,
    "labels": [["dog"], ["cat"]] * 50,
}

BESIDE = {  # what other files a data folder may have, and who reads it
    "train_segments.csv": lambda folder: load_rows(str(folder), "train"),
    "testing_list.txt": read_table,
    "saved/state.json": lambda folder: read_table(folder / "saved"),
    "saved/data.arrow": lambda folder: read_table(folder / "saved"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_files_of_a_data_folder_are_neither_waited_for_nor_read_whole(
    name, kind, tmp_path
):
    for label in ("dog", "cat"):
        (tmp_path / label).mkdir()
        soundfile.write(tmp_path / label / "1.wav", np.zeros(100), RATE)
    (tmp_path / "saved").mkdir()
    if name == "saved/data.arrow":
        state = '{"_data_files": [{"filename": "data.arrow"}]}'
        (tmp_path / "saved" / "state.json").write_text(state)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        sparse(tmp_path / name)
    try:
        with memory_limit(SPARSE_BYTES // 2):
            found = BESIDE[name](tmp_path)
    except REFUSALS as refusal:
        assert len(str(refusal).splitlines()) == 1
    else:  # a pipe that is passed over
        assert kind == "pipe"
        assert len(found)


def test_a_new_key_a_line_does_not_take_memory_with_the_square(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [f'{{"file": "a", "k{number}": 1}}\n' for number in range(20_000)]
    path.write_text("".join(lines))
    message = r"x\.jsonl has \d+ rows and 10001 columns; a table has at most"
    with memory_limit(3 * 10**8), pytest.raises(ValueError, match=message):
        read_text_table(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_more_cells_than_any_table_has_are_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("efficientat_plugin.data.text_tables.MAX_CELLS", 102)
    rows = pa.table({"file": [f"{k}.wav" for k in range(52)], "label": ["a"] * 52})
    for count, is_taken in ((50, True), (52, False)):
        some, path = rows.slice(0, count).to_pandas(), tmp_path / f"x{suffix}"
        if suffix == ".csv":
            some.to_csv(path, index=False)
        else:
            some.to_json(path, orient="records", lines=True)
        if is_taken:
            assert len(read_text_table(path)["file"]) == count
        else:
            with pytest.raises(ValueError, match="and 102 cells"):
                read_text_table(path)


# ---------------------------------------------------------------- names of classes

HOSTILE = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "\x1b[2Jdog", "a\tb\r\nc"]


@pytest.fixture
def hostile_folder(tmp_path):
    """A model folder whose classes command a spreadsheet or a terminal."""
    torch.manual_seed(0)
    options = {"num_classes": len(HOSTILE), "width": 0.1}
    student = MN(**options).eval()
    student.options, student.front_end = options, {"sample_rate": RATE}
    model = TrainedModel(student, LabelTable(HOSTILE, HOSTILE), "multilabel", 0.5)
    provenance = Provenance("m", None, "", "", {})
    return write_model_folder(tmp_path / "model", model, provenance)


def plain_cells(text):
    """Every cell of a CSV, of which none commands anything."""
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    commands = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert all(re.fullmatch(r"[+-]\d+", cell) for cell in commands)  # numbers
    assert all(cell.isprintable() for cell in cells)
    return cells


def test_labels_of_a_model_folder_are_no_formulas_and_commands(hostile_folder):
    text = (hostile_folder / "labels.csv").read_text()
    assert len(plain_cells(text)) == 3 * (len(HOSTILE) + 1)
    labels = LabelTable.from_csv(hostile_folder / "labels.csv")
    assert labels.names[:4] == (*HOSTILE[:4],)
    assert load_trained_model(hostile_folder).labels.names == (*HOSTILE,)


@pytest.mark.parametrize(
    ("command", "form"),
    [("tag", form) for form in ("table", "csv", "jsonl")]
    + [("scan", form) for form in ("table", "csv", "jsonl", "audacity")],
)
def test_what_commands_print_of_hostile_names_is_plain(
    hostile_folder, command, form, tmp_path, capsys
):
    sound = tmp_path / "=1+1.wav"
    soundfile.write(sound, np.zeros(RATE), RATE)
    arguments = [command, str(sound), "--model", str(hostile_folder)]
    assert main([*arguments, "--format", form, "--threshold", "0"]) == 0
    text = capsys.readouterr().out
    assert all(line.replace("\t", "").isprintable() for line in text.split("\n"))
    assert "cmd|" in text
    if form == "csv":
        plain_cells(text)


# ---------------------------------------------------------------- links


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(
    tmp_path, monkeypatch
):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    monkeypatch.setattr("uuid.UUID.hex", "0" * 32)  # which somebody has guessed
    target = tmp_path / "scores.csv"
    (tmp_path / ".scores.csv-00000000.part").symlink_to(mine)
    (tmp_path / "scores.csv.part").symlink_to(mine)
    with pytest.raises(FileExistsError), atomic_file(target) as file:
        file.write("theirs")
    monkeypatch.undo()
    with atomic_file(target) as file:
        file.write("new")
    assert mine.read_text() == "mine" and target.read_text() == "new"


@pytest.mark.parametrize("name", ["student.ckpt", "hyperparams.yaml"])
def test_a_model_folder_does_not_lead_out_of_itself(folder, name):
    elsewhere = folder.with_name("elsewhere")
    os.rename(folder / name, elsewhere)
    (folder / name).symlink_to("../elsewhere")
    from_student, from_hparams = AudioTagger.from_student, AudioTagger.from_hparams
    for load in (load_trained_model, from_student, from_hparams):
        with pytest.raises(Refused, match=rf"{name} is a link .* out of its folder"):
            load(str(folder))
    tagger = AudioTagger.from_hparams(
        str(folder), trust=True, run_opts={"device": "cpu"}
    )
    assert len(tagger.labels) == 2
    os.rename(elsewhere, folder / "inside")  # where a link may lead
    (folder / name).unlink()
    (folder / name).symlink_to("inside")
    assert load_trained_model(folder).labels.names == ("dog", "cat")


def test_a_snapshot_in_the_cache_of_the_hub_loads(folder, tmp_path):
    """Its files are links to ``blobs``, and so may be the folder itself."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        os.rename(path, repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    (tmp_path / "mine").symlink_to(snapshot)
    for place in (snapshot, tmp_path / "mine"):
        assert load_trained_model(place).labels.names == ("dog", "cat")
        tagger = AudioTagger.from_hparams(str(place), run_opts={"device": "cpu"})
        assert len(tagger.labels) == 2


# ---------------------------------------------------------------- names of another


@pytest.mark.parametrize("name", ["parquet", "csv", "json", "pandas", "arrow", "text"])
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_folder_called_like_a_loader_is_the_folder(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stray in ("stray.csv", "stray.json", "stray.txt"):
        Path(stray).write_text('{"file": "stray"}\n')
    columns = {
        "video_id": ["a", "b"],
        "audio": [{"bytes": b"1", "path": None}] * 2,
        "labels": [["dog"], ["cat"]],
    }
    rows = datasets.Dataset.from_dict(columns)
    Path(name).mkdir()
    if form == "saved":
        rows.save_to_disk(name)
    else:
        rows.to_parquet(f"{name}/train-0.parquet")
        others = datasets.Dataset.from_dict(columns | {"video_id": ["c", "d"]})
        others.to_parquet(f"{name}/test-0.parquet")
    found = read_table(name, label_column="labels", cache_dir=str(tmp_path / "cache"))
    assert {*found["video_id"]} == ({*"abcd"} if form == "parquet" else {*"ab"})
    if form == "parquet":
        found = load_rows(name, "train", cache_dir=str(tmp_path / "cache"))
        assert found["video_id"][:] == ["a", "b"]
