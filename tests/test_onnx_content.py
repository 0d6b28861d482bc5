"""Exported files from strangers: other files that they refer to are never opened."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from exported_models import content_of, random_weights, source_of
from onnx import TensorProto, helper, numpy_helper

from efficientat_plugin.cli import main
from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.onnx_content import FIELDS, check_content
from efficientat_plugin.students.mn import MN

RATE = 32000


@pytest.fixture(scope="module")
def content():
    """Of an exported file."""
    torch.manual_seed(0)
    student = random_weights(MN(2, width=0.1))
    return content_of(source_of(student, clip_seconds=0.5), front_end="out")


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
