"""What can be exported, and what is refused."""

import shutil

import pytest
import torch
from exported_models import STATED, random_weights

from efficientat_plugin.data.labels import LabelTable, audioset_labels
from efficientat_plugin.export.onnx_file import export_onnx
from efficientat_plugin.export.source import find_source
from efficientat_plugin.pretrained.folder import (
    Provenance,
    TrainedModel,
    write_model_folder,
)
from efficientat_plugin.students.mn import MN


def test_clips_that_a_fixed_student_cannot_take_are_refused(tmp_path):
    student = random_weights(MN(3, width=0.1, se_dims="t", n_frames=70))
    student.options = {"num_classes": 3, "width": 0.1, "se_dims": "t", "n_frames": 70}
    student.front_end = {"sample_rate": 32000}
    labels = LabelTable("abc", "abc")
    model = TrainedModel(student, labels, "multiclass", 0.7)
    folder = tmp_path / "model"
    write_model_folder(folder, model, Provenance("a", None, "b", "c", {}))
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("clip_seconds: 0.7", "clip_seconds: 0.9"))
    with pytest.raises(ValueError, match="takes 70 frames only, but its clips"):
        find_source(folder)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("target: multiclass", "target: any", "has target='any', not one of multi"),
        ("short_clips: repeat", "short_clips: cut", "short_clips='cut', not one of"),
        ("clip_seconds: 0.5", "clip_seconds: .nan", "clip_seconds=nan; it must be 0.0"),
        ("clip_seconds: 0.5", "clip_seconds: 0.01", "the shortest sound"),
        ("labels:", "a: [", "is not YAML; copy the folder again"),
        ("labels:", "names:", "has no 'labels'"),
        ("labels: ", "labels: 3\nothers: ", "is not a tagger's"),
    ],
)
def test_a_folder_that_was_changed_is_refused(
    model_folder, tmp_path, before, after, reason
):
    changed = shutil.copytree(model_folder, tmp_path / "model")
    yaml = changed / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=reason):
        export_onnx(changed, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_cut_short_is_refused(model_folder, tmp_path):
    changed = shutil.copytree(model_folder, tmp_path / "model")
    yaml = changed / "hyperparams.yaml"
    yaml.write_text("")
    with pytest.raises(ValueError, match="has no settings; copy the folder again"):
        find_source(changed)
    shutil.copy(model_folder / "hyperparams.yaml", yaml)
    weights = changed / "student.ckpt"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(ValueError, match="as torch.save writes it, or is truncated"):
        find_source(changed)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="student.ckpt is not a file"):
        find_source(changed)


def test_weights_that_are_not_finite_are_refused(weights_file, tmp_path):
    path, labels = weights_file
    state = torch.load(path)
    state["classifier.5.bias"][0] = torch.nan
    torch.save(state, tmp_path / "student.pt")
    with pytest.raises(ValueError, match=r"in classifier\.5\.bias that are not finite"):
        find_source(tmp_path / "student.pt", labels, **STATED)


def test_a_folder_has_its_labels(model_folder):
    with pytest.raises(ValueError, match="leave out labels"):
        find_source(model_folder, labels=audioset_labels())
