"""The metadata of an exported file: what is written, and what is refused."""

import json
import math

import onnx
import pytest
from exported_models import small_content

from efficientat_plugin.runtime import Tagger
from efficientat_plugin.runtime.model_file import read_facts


def test_metadata_is_json_that_others_can_read():
    model = onnx.load_from_string(small_content("in"))
    texts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert texts["front_end"]["hop_length"] == 320
    assert len(texts["labels"]) == len(texts["mids"]) == 7
    assert texts["sha256"] == "0" * 64
    assert len(small_content("in")) < 2**20


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": "2"}, "has format 2, but this version reads 1"),
        ({"format_version": None}, "was not written by `efficientat export`"),
        ({"mids": "[]"}, "has metadata that cannot be read"),
        ({"front_end": "{}"}, "has metadata that cannot be read"),
        ({"labels": "no JSON"}, "has metadata that cannot be read"),
        ({"target": '"any"'}, r"cannot be read \(target='any'\)"),
        ({"short_clips": '"any"'}, r"cannot be read \(short_clips='any'\)"),
        ({"clip_seconds": "0"}, r"cannot be read \(clip_seconds=0 must be"),
        ({"num_frames": "0"}, r"cannot be read \(num_frames=0\)"),
        ({"num_frames": '"any"'}, "has metadata that cannot be read"),
        ({"labels": '["a"]', "mids": '["a"]'}, "of 7 classes, .* of 1 classes; export"),
        ({"has_front_end": "true"}, "has a graph from log_mel to logits, embedding"),
    ],
    ids=str,
)
def test_files_of_others_are_refused(tmp_path, change, reason, backend):
    model = onnx.load_from_string(small_content("out"))
    texts = {prop.key: prop.value for prop in model.metadata_props} | change
    texts = {name: text for name, text in texts.items() if text is not None}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, texts)
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=reason):
        Tagger(path, backend)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_fft": 10**12}, "front end sizes .* must be"),
        ({"hop_length": 0}, "front end sizes .* must be"),
        ({"n_mels": "128"}, "front end sizes .* must be"),
        ({"win_length": 2048}, "win_length=2048, n_fft=1024"),
        ({"f_max": 99999.0}, r"f_max=99999\.0 Hz"),
        ({"sample_rate": 32000.5}, r"sample_rate=32000\.5 Hz"),
        ({"sample_rate": 10**30}, r"=10+ Hz must be within \(1000, 768000\)"),
        ({"n_mels": 1 << 14, "n_fft": 1 << 16}, "n_mels=16384, n_fft=65536"),
        ({"pre_emphasis": None}, "pre_emphasis=None"),
        ({"offset": float("nan")}, "offset=nan"),
        ({"log_floor": -1}, "log_floor=-1"),
        ({"scale": 0}, "scale=0"),
        ({"log_floor_mode": "\x1b[2J"}, r"log_floor_mode='\\x1b\[2J'"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused(change, reason):
    facts = Tagger(small_content("out")).facts
    texts = facts._replace(front_end=facts.front_end._replace(**change)).as_texts()
    with pytest.raises(ValueError, match=rf"^x\.onnx has metadata .*{reason}"):
        read_facts(texts, "x.onnx")
    with pytest.raises(ValueError, match=r"^x\.onnx has metadata"):
        read_facts(facts.as_texts() | {"source": "[" * 100_000}, "x.onnx")
    assert read_facts(facts.as_texts(), "x.onnx").front_end == facts.front_end


@pytest.mark.parametrize("seconds", [20000.0, 1e300, 1e-300, math.inf, math.nan])
def test_a_length_that_no_clip_has_is_refused(seconds):
    texts = Tagger(small_content("out")).facts._replace(clip_seconds=seconds).as_texts()
    with pytest.raises(ValueError, match=r"seconds=.* must be from 0\.0161 to 3600"):
        read_facts(texts, "x.onnx")
