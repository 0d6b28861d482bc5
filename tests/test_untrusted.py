"""Files that somebody else made, to ask for what they are not meant to give."""

import csv
import io
import os
import re
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of
from onnx import TensorProto, helper, numpy_helper

from efficientat_plugin import AudioTagger
from efficientat_plugin.cli import main
from efficientat_plugin.data import packed
from efficientat_plugin.data.decoding import UnreadableClip, decode
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.data.rows import load_rows
from efficientat_plugin.data.sample.sample_set import write_sample
from efficientat_plugin.data.summary import _read_headers
from efficientat_plugin.data.tables import read_table
from efficientat_plugin.data.text_tables import read_text_table
from efficientat_plugin.pretrained.described import describe
from efficientat_plugin.pretrained.download import read_state
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    load_trained_model,
    write_model_folder,
)
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.onnx_content import FIELDS, check_content
from efficientat_plugin.students.mn import MN
from efficientat_plugin.support.files import atomic_file
from efficientat_plugin.support.launch import load_hparams
from efficientat_plugin.support.yaml_text import Refused

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
        kinds = ("pipe or a device", "no file", "not a file")
        assert any(kind in str(told.value) for kind in kinds)


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


# ---------------------------------------------------------------- tables that swell

LONG = "y" * 10**6


def repeated(value, count):
    """A column of one value; in a file it takes a few bytes."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [value])


def _in_lists(column):
    places = pa.array(range(len(column) + 1), pa.int32())
    return pa.ListArray.from_arrays(places, column)


def _as_audio(column):
    names = pa.array([f"{k}.wav" for k in range(len(column))])
    return pa.StructArray.from_arrays([column, names], ["bytes", "path"])


PACKED = {
    "text": lambda: {"labels": repeated(LONG, 2000)},
    "lists of text": lambda: {"labels": _in_lists(repeated(LONG, 2000))},
    "sound": lambda: {"audio": _as_audio(repeated(LONG.encode(), 2000))},
    "many columns": lambda: {f"c{k}": repeated(LONG[:-k], 200) for k in range(1, 11)},
    "few rows": lambda: {"labels": repeated(LONG * 40, 50)},
}


def write_packed(path, columns, **options):
    table = pa.table(columns)
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)
    return path


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("read", [read_table, lambda path: load_rows(str(path), "x")])
def test_parquet_that_swells_is_refused_before_it_is_decoded(
    name, read, tmp_path, monkeypatch, most_memory
):
    path = write_packed(tmp_path / "x.parquet", PACKED[name]())
    assert path.stat().st_size < 10**5

    def load_dataset(*_, **__):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    said = r"x\.parquet takes more than 1000000000 bytes of memory"
    with most_memory(5 * 10**8), pytest.raises(ValueError, match=said):
        read(path)


def test_a_folder_of_parquet_that_swells_is_refused(tmp_path, most_memory):
    """Each file by itself would do."""
    for split in ("train", "test", "more"):
        write_packed(tmp_path / f"{split}.parquet", {"labels": repeated(LONG, 500)})
    with most_memory(5 * 10**8), pytest.raises(ValueError, match="takes more than"):
        read_table(tmp_path)


def test_parquet_of_more_rows_than_any_table_is_refused(tmp_path):
    nothing = pa.nulls(2 * 10**7 + 1)
    path = write_packed(tmp_path / "x.parquet", {"n": nothing})
    with pytest.raises(ValueError, match="has 20000001 rows .* at most 20000000 rows"):
        read_table(path)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("row_group_size", [2000, 64])
def test_parquet_as_people_have_it_is_not_refused(
    compression, use_dictionary, row_group_size, tmp_path, monkeypatch
):
    """Nor would it be if the limit were a thousandth, for a table of a thousandth."""
    monkeypatch.setattr(packed, "MAX_TABLE_BYTES", 10**6)
    random = np.random.default_rng(0)
    table = {
        "video_id": [f"Y{number:011d}" for number in range(2000)],
        "audio": [{"bytes": random.bytes(9000 + k), "path": "a"} for k in range(2000)],
        "labels": [["Speech", "Music"]] * 2000,
        "zero": [0] * 2000,
    }
    path = tmp_path / "x.parquet"
    options = {"use_dictionary": use_dictionary, "row_group_size": row_group_size}
    pq.write_table(pa.table(table), path, compression=compression, **options)
    packed.refuse_packed([path])
    monkeypatch.setattr(packed, "MAX_COUNTED", 10**6)  # or the sound is not read
    packed.refuse_packed([path])
    del table["audio"]
    packed.refuse_packed([write_packed(path, table, **options)])


def test_what_is_partly_encoded_by_a_dictionary_is_counted(tmp_path, monkeypatch):
    """As pyarrow writes many different values: in lists, in a struct, by themselves."""
    monkeypatch.setattr(packed, "MAX_TABLE_BYTES", 10**6)
    names = [f"number {row} {'y' * 20}" for row in range(100_000)]
    columns = {
        "tags": [names[row : row + 5] for row in range(0, len(names), 5)],
        "audio": [{"bytes": name.encode()} for name in names[:20_000]],
        "video_id": names[:20_000],
    }
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path, dictionary_pagesize_limit=10**4)
    packed.refuse_packed([path])
    counted = [packed._counted_bytes(path, column, 10**9) for column in range(3)]
    by_hand = [sum(map(len, names)), *[sum(map(len, names[:20_000]))] * 2]
    assert counted == by_hand


def test_the_embedded_sample_is_not_refused(tmp_path):
    """The demo's: its sounds are all in dictionaries, in three groups of rows."""
    folder = write_sample(tmp_path, num_labelled=1, num_unlabelled=1, num_eval=150)
    packed.refuse_packed(sorted(Path(folder).glob("**/*.parquet")))


SAVED = {
    "video_id": [f"{number}" for number in range(100)],
    "audio": [{"bytes": b"1", "path": None}] * 100,
    "labels": [["dog"], ["cat"]] * 50,
}


def _beyond_its_end(count):
    """Text whose places in its own memory lead out of it, and back."""
    places = np.array([0] + [10**6, 0] * (count // 2), np.int32)
    buffers = [None, pa.py_buffer(places.tobytes()), pa.py_buffer(b"y")]
    return pa.Array.from_buffers(pa.string(), count, buffers)


ODD = {
    "compressed": (lambda text: text, {"compression": "zstd"}, "it is compressed"),
    "dictionary": (lambda text: text.dictionary_encode(), {}, "it has a dictionary"),
    "views": (lambda text: text.cast(pa.string_view()), {}, "column of string_view"),
    "beyond": (lambda text: _beyond_its_end(len(text)), {}, "[Oo]ffset"),
    "cut": (None, {}, "Expected to be able to read"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("read", [read_table, lambda path: load_rows(str(path), "x")])
def test_a_saved_folder_that_was_made_otherwise_is_refused(name, read, tmp_path):
    change, options, said = ODD[name]
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(SAVED).save_to_disk(folder)
    assert len(read(folder)) == 100
    [path] = folder.glob("*.arrow")
    if change is None:
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        text = pa.array(["y" * 100] * 100)
        table = pa.table(SAVED).set_column(0, "video_id", change(text))
        how = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_stream(path, table.schema, options=how) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=rf"arrow is damaged, or not .*{said}"):
        read(folder)


BESIDE = {  # what other files a data folder may have, and who reads it
    "train_segments.csv": lambda folder: load_rows(str(folder), "train"),
    "testing_list.txt": read_table,
    "README.md": read_table,
    "labels/vocabulary.csv": lambda folder: read_table(folder, form="fsd50k_folder"),
    "saved/state.json": lambda folder: read_table(folder / "saved"),
    "saved/data.arrow": lambda folder: read_table(folder / "saved"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_files_of_a_data_folder_are_neither_waited_for_nor_read_whole(
    name, kind, tmp_path, most_memory
):
    for label in ("dog", "cat"):
        (tmp_path / label).mkdir()
        soundfile.write(tmp_path / label / "1.wav", np.zeros(100), RATE)
    for folder in ("labels", "saved"):
        (tmp_path / folder).mkdir()
    for part in ("dev", "eval"):
        table = "fname,labels,split\na,dog,train\n"
        (tmp_path / "labels" / f"{part}.csv").write_text(table)
    if name == "README.md":
        for split in ("train", "test"):
            pq.write_table(pa.table(SAVED), tmp_path / f"{split}.parquet")
    if name == "saved/data.arrow":
        state = '{"_data_files": [{"filename": "data.arrow"}]}'
        (tmp_path / "saved" / "state.json").write_text(state)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        sparse(tmp_path / name)
    try:
        with most_memory(SPARSE_BYTES // 2):
            found = BESIDE[name](tmp_path)
    except TOLD as told:
        assert len(str(told).splitlines()) == 1
    else:  # a pipe that is passed over
        assert kind == "pipe"
        assert len(found)


def test_a_new_key_a_line_does_not_take_memory_with_the_square(tmp_path, most_memory):
    path = tmp_path / "x.jsonl"
    lines = [f'{{"file": "a", "k{number}": 1}}\n' for number in range(20_000)]
    path.write_text("".join(lines))
    said = r"x\.jsonl has \d+ rows and 10001 columns; a table has at most"
    with most_memory(3 * 10**8), pytest.raises(ValueError, match=said):
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
    monkeypatch.setattr("efficientat_plugin.tagging.torch_tagger.fetch", asked)
    for load in (read_table, lambda name: load_rows(name, "train")):
        with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
            load(name)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
        AudioTagger.from_hparams(name)


def test_the_hub_is_not_asked_without_a_word(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "efficientat_plugin.support.hub.constants.HF_HUB_OFFLINE", False
    )

    def unreachable(*_, **__):
        assert "looking on the Hugging Face hub" in caplog.text
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileNotFoundError):
        read_table("data/clients")
    caplog.clear()
    with pytest.raises(
        FileNotFoundError, match="not found on the hub \\(.*\\): no network"
    ):
        AudioTagger.from_hparams("models/mine")
