"""SpeechBrain's classifier slot, its labels, and how it reads files."""

import io

import numpy as np
import pytest
import soundfile
import torch

from efficientat_plugin.data.decoding import decode_blocks
from efficientat_plugin.data.labels import LabelTable
from efficientat_plugin.interfaces.classifiers import (
    SoxrNormalizer,
    StudentClassifier,
    label_encoder,
)
from efficientat_plugin.interfaces.encoders import StudentEncoder
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.heads import HEADS
from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.finetuning import batch_norms

FRAMES = "multihead_attention_pooling"


def _lively(student):
    """With statistics of a batch: without them the maps are nearly zero."""
    for norm in batch_norms(student):
        norm.momentum = None  # statistics are averages
    with torch.no_grad():
        student.train()(torch.randn(4, 1, 128, 50))
        for layer in student.classifier.class_layers:
            torch.nn.init.normal_(student.classifier.get_submodule(layer).weight)
    return student.eval()


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
@pytest.mark.parametrize("family", [MN, DyMN])
@pytest.mark.parametrize("head", sorted(HEADS.keys() - {FRAMES}))
def test_encoder_and_classifier_are_the_student(family, head, target):
    student = _lively(family(3, width=0.1, head=head))
    log_mel = torch.randn(2, 1, 128, 60)
    logits = student(log_mel).logits
    assert (logits[0] - logits[1]).abs().max() > 0.1
    embedding = StudentEncoder(student)(log_mel[:, 0].transpose(1, 2))
    given = StudentClassifier(student, target)(embedding)
    assert given.shape == (2, 1, 3)
    expected = logits.sigmoid() if target == "multilabel" else logits.softmax(-1)
    torch.testing.assert_close(given.exp().squeeze(1), expected)


def test_a_head_that_needs_frames_is_refused():
    with pytest.raises(ValueError, match="MultiheadAttentionPooling head needs frames"):
        StudentClassifier(MN(3, width=0.1, head=FRAMES), "multiclass")
    with pytest.raises(ValueError, match="target='softmax' is not known"):
        StudentClassifier(MN(3, width=0.1), "softmax")


def test_labels_are_names_or_where_these_are_not_unique_ids():
    index = torch.tensor([2, 0])
    mids = ["/m/a", "/m/b", "/m/c"]
    named = label_encoder(LabelTable(mids, ["x => 1", "y", "z\n"]))
    assert named.decode_torch(index) == ["z\n", "x => 1"]
    shared = label_encoder(LabelTable(mids, ["x", "y", "x"]))
    assert shared.decode_torch(index) == ["/m/c", "/m/a"]


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_are_read_as_the_tagger_reads_them(rate, channels):
    samples = np.random.default_rng(0).uniform(-1, 1, (rate // 2, channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    file.seek(0)
    audio, _ = soundfile.read(file, dtype="float32", always_2d=channels > 1)
    given = SoxrNormalizer(32000)(torch.from_numpy(audio), rate)
    expected = np.concatenate(list(decode_blocks(file.getvalue(), 32000)))
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-6)
