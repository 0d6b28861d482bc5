"""Files that a runtime cannot run are refused, with the reason."""

import importlib.util

import onnx
import pytest
from exported_models import small_content

from efficientat_plugin.runtime import Tagger


def other_graph(operator, kind=onnx.TensorProto.FLOAT, opset=18):
    """One operator, as nothing that was exported here."""
    value, result = (
        onnx.helper.make_tensor_value_info(name, kind, ["a", "b"]) for name in "xy"
    )
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", [value], [result])
    version = onnx.helper.make_opsetid("", opset)
    return onnx.helper.make_model(graph, opset_imports=[version], ir_version=9)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_cut_short_is_refused(tmp_path, backend):
    content = small_content("in")
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path = tmp_path / f"{length}.onnx"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"\.onnx.*(export|copy)"):
            Tagger(path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_of_others_is_refused(tmp_path, backend):
    """Without our metadata, and with it."""
    path = tmp_path / "relu.onnx"
    onnx.save(other_graph("Relu"), path)
    with pytest.raises(ValueError, match="was not written by `efficientat export`"):
        Tagger(path, backend)
    ours = onnx.load_from_string(small_content("in"))
    texts = {prop.key: prop.value for prop in ours.metadata_props}
    other = other_graph("Relu")
    onnx.helper.set_model_props(other, texts)
    onnx.save(other, path)
    with pytest.raises(ValueError, match="relu.onnx has a graph from .* of None class"):
        Tagger(path, backend)
    other.graph.node[0].output[0] = other.graph.output[0].name = "logits"
    onnx.save(other, path)
    with pytest.raises(ValueError, match="relu.onnx has a graph from .* to logits of"):
        Tagger(path, backend)


@pytest.mark.parametrize(
    ("graph", "backend"),
    [
        (("Strange",), "onnxruntime"),
        (("Strange",), "openvino"),
        (("Gelu", onnx.TensorProto.DOUBLE, 20), "onnxruntime"),
    ],
)
def test_an_operator_or_number_format_that_the_runtime_lacks_is_named(graph, backend):
    content = other_graph(*graph).SerializeToString()
    with pytest.raises(
        ValueError, match="lacks an operator of the model; export it in"
    ):
        Tagger(content, backend)


@pytest.mark.parametrize("part", ["file format", "opset"])
def test_a_newer_model_is_refused(tmp_path, part):
    model = onnx.load_from_string(small_content("out"))
    if part == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"too old for the opset of .*new\.onnx"):
        Tagger(path, "onnxruntime")


def test_a_damaged_file_is_not_judged_by_its_name(tmp_path):
    path = tmp_path / "opset18.onnx"
    path.write_bytes(small_content("in")[:-1000])
    with pytest.raises(ValueError, match="damaged or no model"):
        Tagger(path, "onnxruntime")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_metadata_that_are_no_text_are_refused(tmp_path, backend):
    path = tmp_path / "bytes.onnx"
    path.write_bytes(small_content("out").replace(b"class 3", b"class \xda"))
    with pytest.raises(
        ValueError, match=r"cannot read .*bytes\.onnx, so it is damaged"
    ):
        Tagger(path, backend)


def test_settings_that_cannot_be_are_refused(monkeypatch):
    content = small_content("in")
    with pytest.raises(ValueError, match="it is one of onnxruntime, openvino"):
        Tagger(content, "tensorflow")
    with pytest.raises(ValueError, match="threads=0 must be 1 or more"):
        Tagger(content, threads=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install openvino"):
        Tagger(content, "openvino")
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Tagger(content)
