"""Files that somebody else made, to ask for what they are not meant to give."""

import os
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import onnx
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of
from onnx import TensorProto, helper, numpy_helper

from efficientat_plugin import AudioTagger
from efficientat_plugin.cli import main
from efficientat_plugin.data.decoding import UnreadableClip, decode
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.summary import _read_headers
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.data.targets import LabelTable
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.described import describe
from efficientat_plugin.files import write_aside, written_aside
from efficientat_plugin.launch import load_hparams
from efficientat_plugin.model_folder import (
    Provenance,
    TrainedModel,
    load_trained_model,
    write_model_folder,
)
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.onnx_content import FIELDS, check_content
from efficientat_plugin.students.download import read_state
from efficientat_plugin.students.mn import MN
from efficientat_plugin.yaml_text import Refused

RATE = 32000
SPARSE_BYTES = 10**9  # of files that take no room


@pytest.fixture(scope="module")
def content():
    """Of an exported file."""
    torch.manual_seed(0)
    student = random_weights(MN(2, width=0.1))
    return content_of(source_of(student, clip_seconds=0.5), front_end="out")


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


@pytest.fixture
def most_memory():
    """Limits what the process may take beyond what it has."""

    @contextmanager
    def limited(num_bytes):
        before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited


def sparse(path, begin=b""):
    """A file that says nothing after its beginning, and takes no room."""
    path.write_bytes(begin)
    os.truncate(path, SPARSE_BYTES)
    return path


# ---------------------------------------------------------------- external data of ONNX


def elsewhere(name):
    """A tensor whose numbers are in another file, or at an address of the process."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": name, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _graph(*nodes, **more):
    return helper.make_graph(list(nodes), "graph", [], [], **more)


def _constant(**attributes):
    return helper.make_node("Constant", [], ["y"], **attributes)


def _sparse_tensor(tensor):
    indices = numpy_helper.from_array(np.arange(4), "indices")
    return helper.make_sparse_tensor(tensor, indices, [4])


PLACES = {
    "initializer": lambda model, t: model.graph.initializer.append(t),
    "attribute": lambda model, t: model.graph.node.append(_constant(value=t)),
    "tensors": lambda model, t: model.graph.node.append(_constant(values=[t])),
    "sparse attribute": lambda model, t: model.graph.node.append(
        _constant(sparse_value=_sparse_tensor(t))
    ),
    "sparse initializer": lambda model, t: model.graph.sparse_initializer.append(
        _sparse_tensor(t)
    ),
    "graph of an operator": lambda model, t: model.graph.node.append(
        helper.make_node("If", [], ["y"], then_branch=_graph(_constant(value=t)))
    ),
    "graphs of an operator": lambda model, t: model.graph.node.append(
        helper.make_node("If", [], ["y"], branches=[_graph(initializer=[t])])
    ),
    "function": lambda model, t: model.functions.append(
        helper.make_function("d", "f", [], ["y"], [_constant(value=t)], [])
    ),
    "default of a function": lambda model, t: model.functions.append(
        helper.make_function(
            "d", "f", [], ["y"], [], [],
            attribute_protos=[helper.make_attribute("value", t)],
        )
    ),
    "training": lambda model, t: model.training_info.add().algorithm.CopyFrom(
        _graph(initializer=[t])
    ),
    "deep down": lambda model, t: model.graph.node.append(
        helper.make_node(
            "If", [], ["y"],
            then_branch=_graph(
                helper.make_node(
                    "Loop", [], ["y"], body=_graph(_constant(value=t))
                )
            ),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["/etc/passwd", "*/_ORT_MEM_ADDR_/*", "weights.bin"])
@pytest.mark.parametrize("place", PLACES)
def test_external_data_are_refused_wherever_they_are(content, place, name):
    model = onnx.load_model_from_string(content)
    PLACES[place](model, elsewhere(name))
    with pytest.raises(ValueError, match=r"^x\.onnx refers to other files"):
        check_content(model.SerializeToString(), "x.onnx")
    check_content(content, "x.onnx")


def test_external_data_without_their_mark_are_refused(content):
    """Which of the two fields a runtime goes by is its own affair."""
    for field in ("data_location", "external_data"):
        model, tensor = onnx.load_model_from_string(content), elsewhere("a")
        tensor.ClearField(field)
        model.graph.initializer.append(tensor)
        with pytest.raises(ValueError, match="refers to other files"):
            check_content(model.SerializeToString(), "x.onnx")


def test_no_message_that_may_hold_a_tensor_is_passed_over():
    """The walker's table of fields is that of `onnx`."""

    def holds_tensors(message, above=()):
        if message.name == "TensorProto":
            return True
        inner = [field.message_type for field in message.fields if field.message_type]
        return any(
            holds_tensors(each, (*above, message.name))
            for each in inner
            if each.name not in above and each.name != message.name
        )

    waiting, found = [onnx.ModelProto.DESCRIPTOR], {}
    while waiting:
        message = waiting.pop()
        fields = [f for f in message.fields if f.message_type]
        kept = [f for f in fields if holds_tensors(f.message_type)]
        found[message.name] = {f.number: f.message_type.name for f in kept}
        waiting += [f.message_type for f in kept if f.message_type.name not in found]
    assert found == FIELDS


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("is_file", [True, False])
def test_external_data_reach_no_runtime(
    content, backend, is_file, tmp_path, monkeypatch
):
    model = onnx.load_model_from_string(content)
    model.graph.initializer.append(elsewhere("weights.bin"))
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, backend, None)  # importing it raises
    monkeypatch.setattr(
        "efficientat_plugin.runtime.sessions.installed_backends", lambda: [backend]
    )
    with pytest.raises(ValueError, match="refers to other files"):
        Tagger(path if is_file else path.read_bytes(), backend)


@pytest.mark.parametrize("command", ["tag", "scan", "embed", "info", "evaluate"])
def test_external_data_are_refused_by_every_command(
    content, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    model = onnx.load_model_from_string(content)
    model.graph.initializer.append(elsewhere("*/_ORT_MEM_ADDR_/*"))
    Path("x.onnx").write_bytes(model.SerializeToString())
    for name in ("dog", "cat"):
        Path(name).mkdir()
        soundfile.write(f"{name}/1.wav", np.zeros(RATE), RATE)
    arguments = {
        "tag": ["dog", "--model", "x.onnx"],
        "scan": ["dog/1.wav", "--model", "x.onnx"],
        "embed": ["dog", "--model", "x.onnx", "--output", "e.npz"],
        "info": ["x.onnx"],
        "evaluate": ["x.onnx", ".", "--output", "scores"],
    }[command]
    assert main([command, *arguments]) == 2
    assert "x.onnx refers to other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damaged",
    [b"", b"<html>", b"ORTM" * 9, b"\x08\x0a", b"\x3a\x7f", b"\x3a" + b"\xff" * 11]
    + [b"\x3b\x3c", b"\x00\x00"],
)
def test_what_is_no_onnx_reaches_no_runtime(damaged):
    with pytest.raises(ValueError, match="the model is damaged or no model"):
        Tagger(damaged)


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
TOLD = (OSError, ValueError, SystemExit)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_or_a_device_is_not_waited_for(reader, tmp_path):
    pipe = tmp_path / f"pipe{SUFFIXES.get(reader, '.bin')}"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/tty")):
        with pytest.raises(TOLD) as told:
            READERS[reader](path)
        assert len(str(told.value).splitlines()) == 1
        assert "pipe or a device" in str(told.value) or "no file" in str(told.value)


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
def test_a_table_that_is_a_pipe_is_told(name, tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / name)
    for dataset in (tmp_path, tmp_path / name):
        with pytest.raises((OSError, ValueError), match=r"is a pipe or a device"):
            read_table(dataset)


@pytest.mark.parametrize("begin", [b"", b"file,label\na.wav,dog\n"])
@pytest.mark.parametrize("reader", [*SUFFIXES, "labels", "YAML of a recipe"])
def test_a_file_that_takes_no_room_is_not_read_whole(
    reader, begin, tmp_path, most_memory
):
    path = sparse(tmp_path / f"clips{SUFFIXES.get(reader, '.bin')}", begin)
    with most_memory(SPARSE_BYTES // 4), pytest.raises(TOLD) as told:
        READERS[reader](path)
    assert len(str(told.value).splitlines()) == 1
    assert path.name in str(told.value)


@pytest.mark.parametrize("name", ["hyperparams.yaml", "student.ckpt"])
def test_a_model_folder_that_takes_no_room_is_not_read_whole(name, folder, most_memory):
    sparse(folder / name, (folder / name).read_bytes()[:10])
    for load in (load_trained_model, AudioTagger.from_hparams):
        with most_memory(SPARSE_BYTES // 4), pytest.raises(ValueError, match=name):
            load(str(folder))


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
    with pytest.raises(FileExistsError):
        write_aside(target, lambda file: file.write("theirs"))
    monkeypatch.undo()
    write_aside(target, lambda file: file.write("new"))
    with written_aside(target) as unfinished:
        assert not unfinished.is_symlink()
        assert unfinished.stat().st_size == 0
    assert mine.read_text() == "mine"


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


@pytest.mark.parametrize(
    "name",
    ["csv", "pandas", "a/b/c", "./a/b", "~/a", "/a/b", "../a", "a b/c", "http://a"],
)
def test_only_user_and_name_are_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    monkeypatch.setattr("datasets.load_dataset", asked)
    monkeypatch.setattr("efficientat_plugin.inference.fetch", asked)
    for load in (read_table, lambda name: load_rows(name, "train")):
        with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
            load(name)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
        AudioTagger.from_hparams(name)


def test_the_hub_is_not_asked_without_a_word(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efficientat_plugin.hub.constants.HF_HUB_OFFLINE", False)

    def unreachable(*_, **__):
        assert "the Hugging Face hub is asked" in caplog.text
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("efficientat_plugin.inference.fetch", unreachable)
    with pytest.raises(FileNotFoundError):
        read_table("data/clients")
    caplog.clear()
    with pytest.raises(ConnectionError):
        AudioTagger.from_hparams("models/mine")
