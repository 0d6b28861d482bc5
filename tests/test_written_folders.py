"""A model folder that is written is the model."""

import csv

import numpy as np
import pytest
import torch
from speechbrain.inference.interfaces import Pretrained

from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.evaluation.metrics import classification_scores
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    read_model_folder,
    write_model_folder,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.tagging.torch_tagger import AudioTagger


def _model(names=("dog", "cat"), **options):
    path_free = {"num_classes": len(names), "width": 0.1} | options
    student = MN(**path_free).eval()
    student.options = path_free
    student.front_end = {"sample_rate": 32000, "n_mels": 128, "hop_length": 640}
    return TrainedModel(student, LabelTable(names, names), "multiclass", 1.0)


def _provenance(**changes):
    scores = classification_scores(np.eye(2), np.eye(2))
    given = Provenance("pets", "mn10_as", "2 clips", "CC0", {"test": scores})
    return given._replace(**changes)


@pytest.mark.parametrize(
    "options", [{}, {"head": "linear"}, {"strides": [2, 2, 2, 1]}, {"se_dims": "none"}]
)
def test_a_model_folder_is_the_model(tmp_path, options):
    model = _model(**options)
    folder = write_model_folder(tmp_path / "model", model, _provenance())
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "hyperparams.yaml",
        "labels.csv",
        "metrics.json",
        "student.ckpt",
    }
    sound = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    log_mel = tagger_input = torch.from_numpy(sound)[None]
    again = read_model_folder(folder)
    assert again[1].names == ("dog", "cat") and again[2:] == model[2:]
    assert again.student.front_end == model.student.front_end
    tagger = AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    log_mel = tagger.mods.log_mel(tagger_input).unsqueeze(1)
    assert log_mel.shape[-1] == 50  # its own hop
    expected = model.student(log_mel).logits
    torch.testing.assert_close(again.student(log_mel).logits, expected)
    torch.testing.assert_close(tagger(tagger_input), expected.softmax(-1))
    plain = Pretrained.from_hparams(str(folder), run_opts={"device": "cpu"})
    torch.testing.assert_close(plain.mods.student(log_mel).logits, expected)
    assert plain.audio_normalizer.sample_rate == 32000
    assert list(tmp_path.iterdir()) == [folder]


def test_a_dymn_keeps_the_temperature_it_ended_with(tmp_path):
    options = {"num_classes": 2, "width": 0.1, "temperature": 30.0}
    student = DyMN(**options).eval()
    student.options, student.front_end = options, {"sample_rate": 32000}
    student.set_temperature(1.0)
    model = _model()._replace(student=student)
    folder = write_model_folder(tmp_path / "model", model, _provenance())
    tagger = AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    for found in (read_model_folder(folder).student, tagger.mods.student):
        assert float(found.temperature) == 1.0


def test_a_card_says_what_a_model_is_and_no_markup_gets_in(tmp_path):
    names = ("<script>alert(1)</script>", "a\nb # `c`")
    provenance = _provenance(name="[x](http://evil)")
    folder = write_model_folder(tmp_path / "model", _model(names), provenance)
    card = (folder / "README.md").read_text()
    for part in ("library_name: speechbrain", "multiply-accumulates", "CC0", "mn10"):
        assert part in card
    assert "<script>" not in card and "a\nb" not in card and "[x](" not in card
    assert read_model_folder(folder).labels.names == names
    with open(folder / "labels.csv", newline="") as file:
        found = [row["display_name"] for row in csv.DictReader(file)]
    assert found == [names[0], r"a\nb # `c`"]  # on a line of its own


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = write_model_folder(tmp_path / "model", _model(), _provenance())
    before = (folder / "student.ckpt").read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(torch, "save", full_disk)
        write_model_folder(folder, _model(("bird", "cow")), _provenance())
    assert (folder / "student.ckpt").read_bytes() == before
    write_model_folder(folder, _model(("bird", "cow")), _provenance())
    assert read_model_folder(folder).labels.names == ("bird", "cow")
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is not a model folder"):
        write_model_folder(tmp_path / "mine", _model(), _provenance())


def test_weights_of_another_width_are_refused(tmp_path):
    folder = write_model_folder(tmp_path / "model", _model(), _provenance())
    torch.save(MN(2, width=0.2).state_dict(), folder / "student.ckpt")
    with pytest.raises(ValueError, match="it is of MN of width 0.2"):
        AudioTagger.from_hparams(str(folder), run_opts={"device": "cpu"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        read_model_folder(tmp_path / "empty")
