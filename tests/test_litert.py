"""A LiteRT file computes what PyTorch computes; `make litert` runs this."""

import json

import numpy as np
import pytest
import torch
from exported_models import random_weights, source_of

pytest.importorskip("litert_torch", reason="make litert has an environment for it")

from ai_edge_litert.interpreter import Interpreter

from efficientat_plugin.export import litert_file
from efficientat_plugin.export.comparison_clips import synthesised
from efficientat_plugin.export.litert_file import export_litert
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN


@pytest.mark.parametrize("build", [MN, DyMN])
def test_a_litert_file_computes_what_pytorch_computes(build, tmp_path, monkeypatch):
    source = source_of(random_weights(build(num_classes=3, width=0.1)))
    monkeypatch.setattr(litert_file, "find_source", lambda *_: source)
    written = export_litert("any", tmp_path / "a.tflite")
    facts = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert facts["num_frames"] == 70  # of 0.7 s, 10 ms apart
    assert facts["labels"] == list(source.model.labels.names)

    waveform = torch.from_numpy(synthesised(source.clip_samples, 32000, 5))[None]
    with torch.inference_mode():
        log_mel = source.log_mel(waveform)
        expected = source.model.student(log_mel.unsqueeze(1))
    interpreter = Interpreter(str(written.path))
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    interpreter.set_tensor(entry["index"], log_mel.numpy())
    interpreter.invoke()
    places = interpreter.get_output_details()
    for place, values in zip(places, expected, strict=True):
        found = interpreter.get_tensor(place["index"])
        np.testing.assert_allclose(found, values.numpy(), atol=1e-4)


def test_a_litert_file_that_differs_is_not_written(tmp_path, monkeypatch):
    source = source_of(random_weights(MN(num_classes=3, width=0.1)))
    monkeypatch.setattr(litert_file, "find_source", lambda *_: source)
    of_others = source_of(random_weights(MN(num_classes=3, width=0.1)))
    with torch.no_grad():
        of_others.model.student.classifier[5].bias.add_(torch.tensor([0.0, 0.1, 0.0]))
    convert = litert_file._converted
    monkeypatch.setattr(litert_file, "_converted", lambda _: convert(of_others))
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_litert("any", tmp_path / "a.tflite")
    assert not list(tmp_path.iterdir())
