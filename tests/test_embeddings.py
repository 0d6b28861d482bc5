"""Embeddings: published sizes and values, laws of sources and poolings, refusals."""

import copy

import numpy as np
import pytest
import torch
from golden_vectors import GOLDEN

from efficientat_plugin.features import LogMel
from efficientat_plugin.pretrained.published import PUBLISHED
from efficientat_plugin.pretrained.weights import load_student
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.embeddings import (
    POOLINGS,
    LayerEmbedding,
    known_sources,
)
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

STUDENTS = {
    "mn": lambda: MN(num_classes=3, width=0.1),
    "mn_fc": lambda: MN(num_classes=3, width=0.1, head="fully_convolutional"),
    "mn_no_se": lambda: MN(num_classes=3, width=0.1, se_dims="none"),
    "mn_se_fc": lambda: MN(num_classes=3, width=0.1, se_dims="fc", n_mels=40),
    "mn_reduced": lambda: MN(num_classes=3, width=0.1, reduced_tail=True, n_mels=41),
    "mn_strides": lambda: MN(num_classes=3, width=0.1, strides=(1, 2, 1, 1)),
    "mn_dilated": lambda: MN(num_classes=3, width=0.1, dilated=True),
    "dymn": lambda: DyMN(num_classes=3, width=0.1, temperature=3.0),
    "dymn_replace_se": lambda: DyMN(
        num_classes=3, width=0.1, dynamic_blocks="replace_se"
    ),
    "dymn_static": lambda: DyMN(num_classes=3, width=0.1, use_dyconv=False),
}
PUBLISHED_SIZES = {
    "mn01_as": 184,
    "mn02_as": 224,
    "mn04_as": 320,
    "mn05_as": 368,
    "mn10_as": 600,
    "mn20_as": 1072,
    "mn30_as": 1544,
    "mn40_as": 2016,
    "mn10_as_mels_40": 512,
}
BLOCKS = ("b5", "b11", "b13", "b15")
# Computed with the published code: norms, by source, of mn04_as on a clip of noise.
PUBLISHED_NORMS = {
    "mel": 12.7370,
    "clf1": 4.9963,
    "clf2": 10.9764,
    "logits": 204.2805,
    "se5": 2.6150,
    "se11": 4.6655,
    "se13": 3.6237,
    "se15": 7.4890,
}
PUBLISHED_BLOCK_NORMS = {
    "avg": (2.2876, 1.9722, 2.0001, 3.2565),
    "max": (11.4898, 10.1648, 7.1608, 10.9848),
    "avg_plus_max": (12.0783, 10.5997, 8.0046, 12.9954),
    "avg_and_max": (11.7153, 10.3543, 7.4349, 11.4574),
    "time_avg": (13.4987, 9.9674, 6.3988, 9.7634),
    "time_avg_plus_max": (34.7817, 24.7717, 14.5263, 23.1366),
}


@pytest.fixture(params=STUDENTS)
def student(request) -> Student:
    return STUDENTS[request.param]().eval()


def log_mels(student: Student, frames: int = 20) -> torch.Tensor:
    return torch.randn(2, 1, getattr(student, "n_mels", 128), frames)


def test_dimension_has_the_published_values():
    with torch.device("meta"):  # shapes only: the widest student is large
        for name, size in PUBLISHED_SIZES.items():
            student = MN(**PUBLISHED[name].options())
            n_mels = PUBLISHED[name].n_mels
            assert LayerEmbedding(student, n_mels=n_mels).dimension == size, name


@pytest.mark.parametrize(
    ("sources", "pooling", "size"),
    [
        (BLOCKS, "avg", 472),
        (["clf1"], "avg", 960),
        (["clf2"], "avg", 1280),
        (["logits"], "avg", 527),
        (["se"], "avg", 560),
        (["b0", "b1", "b2", "b3"], "avg", 80),
        (BLOCKS, "time_avg", 2816),
        (("mel", *BLOCKS), "time_avg", 2944),
        (BLOCKS, "time_avg_plus_max", 2816),
        (("mel", *BLOCKS), "avg_and_max", 1072),
    ],
)
def test_dimension_of_mn10_has_the_published_values(sources, pooling, size):
    with torch.device("meta"):
        assert LayerEmbedding(MN(), sources, pooling).dimension == size


def test_embedding_has_the_published_order_of_sources(student):
    log_mel, known = log_mels(student), known_sources(student)
    embedding = LayerEmbedding(student, known[::-1])
    assert list(embedding.sources) == known
    for name, part in embedding.split(embedding(log_mel)).items():
        alone = LayerEmbedding(student, [name])(log_mel)
        torch.testing.assert_close(alone, part)


def test_embedding_has_its_dimension_with_every_pooling(student):
    log_mel = log_mels(student)
    for pooling in POOLINGS:
        embedding = LayerEmbedding(student, known_sources(student), pooling)
        found = embedding(log_mel)
        assert found.shape == (2, embedding.dimension)
        torch.testing.assert_close(embedding.split(found)["mel"], log_mel.mean((1, 3)))


def test_published_values_are_met(shared):
    golden = np.load(GOLDEN / "front_end.npz")
    log_mel = LogMel().eval()(torch.from_numpy(golden["wave"])).unsqueeze(1)
    student = load_student(shared / "checkpoints" / "mn04_as_mAP_432.pt")
    sources = ["mel", "clf1", "clf2", "logits", "se", *BLOCKS]
    for pooling, norms in PUBLISHED_BLOCK_NORMS.items():
        embedding = LayerEmbedding(student, sources, pooling)
        found = embedding.split(embedding(log_mel))
        expected = PUBLISHED_NORMS | dict(zip(BLOCKS, norms, strict=True))
        assert list(found) == list(expected)
        norms_found = {name: part[0].norm().item() for name, part in found.items()}
        assert norms_found == pytest.approx(expected, rel=1e-4)


def test_a_loaded_student_brings_its_bands(shared, tmp_path):
    student = load_student(shared / "checkpoints" / "mn04_as_mAP_432.pt")
    assert LayerEmbedding(student).dimension == 320
    path = tmp_path / "mn10_as_mels_40_mAP_453.pt"
    torch.save(MN(**PUBLISHED["mn10_as_mels_40"].options()).state_dict(), path)
    assert LayerEmbedding(load_student(path)).dimension == 512


def test_head_sources_are_what_the_student_returns(student):
    log_mel = log_mels(student)
    output = student(log_mel)
    gates = [name for name in known_sources(student) if name.startswith("se")]
    embedding = LayerEmbedding(student, ["clf1", "logits", *gates])
    parts = embedding.split(embedding(log_mel))
    assert torch.equal(parts["clf1"], output.embedding)
    assert torch.equal(parts["logits"], output.logits)


def test_clf2_and_se_are_what_the_layers_compute():
    student = MN(num_classes=3, width=0.1).eval()
    log_mel = log_mels(student)
    embedding = LayerEmbedding(student, ["clf2", "se"])
    found = embedding.split(embedding(log_mel))
    seen = {}
    for number in (5, 11, 13, 15):
        for name, part in student.features[number].named_modules():
            if name.endswith("fc1"):
                part.register_forward_hook(
                    lambda _layer, _input, output, number=number: seen.update(
                        {f"se{number}": output.clone()}
                    )
                )
    student.classifier[3].register_forward_hook(
        lambda _layer, _input, output: seen.update({"clf2": output.clone()})
    )
    student(log_mel)
    assert found.keys() == seen.keys()
    for name, values in seen.items():
        torch.testing.assert_close(found[name], values)


def test_poolings_agree_with_each_other():
    student = MN(num_classes=3, width=0.1).eval()
    log_mel = log_mels(student)
    avg, largest, both_added, both, time_avg, time_both = (
        LayerEmbedding(student, ["b5"], pooling)(log_mel)
        for pooling in (
            "avg",
            "max",
            "avg_plus_max",
            "avg_and_max",
            "time_avg",
            "time_avg_plus_max",
        )
    )
    by_band = time_avg.unflatten(1, (avg.shape[1], -1))  # [B, C, F]
    torch.testing.assert_close(by_band.mean(2), avg)
    torch.testing.assert_close(both_added, avg + largest)
    torch.testing.assert_close(both, torch.cat([avg, largest], 1))
    time_max = (time_both - time_avg).unflatten(1, (avg.shape[1], -1))
    torch.testing.assert_close(time_max.amax(2), largest)


def test_a_clip_is_embedded_alone_as_in_a_batch(student):
    embedding = LayerEmbedding(student, known_sources(student))
    log_mel = log_mels(student)
    alone = torch.cat([embedding(clip[None]) for clip in log_mel])
    torch.testing.assert_close(embedding(log_mel), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_training", [False, True])
def test_the_student_stays_as_it_was(student, is_training):
    student.train(is_training)
    for part in student.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    log_mel, plain = log_mels(student), copy.deepcopy(student)
    embedding = LayerEmbedding(student, known_sources(student))
    embedding(log_mel)
    assert all(part.training == is_training for part in student.modules())
    assert not any(part._forward_hooks for part in student.modules())
    plain(log_mel)  # in training one forward moves the norms' statistics: once
    torch.testing.assert_close(dict(student.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(student(log_mel).logits, plain(log_mel).logits)


def test_gradients_reach_log_mel_and_weights(student):
    log_mel = log_mels(student).requires_grad_()
    LayerEmbedding(student, known_sources(student))(log_mel).square().sum().backward()
    assert log_mel.grad is not None and log_mel.grad.abs().sum() > 0
    stem = next(part for part in student.modules() if isinstance(part, torch.nn.Conv2d))
    assert stem.weight.grad is not None and stem.weight.grad.isfinite().all()


def test_layers_behind_the_last_source_are_not_computed():
    student = MN(num_classes=3, width=0.1).eval()
    for part in student.features[6:]:
        part.forward = None  # calling it fails
    embedding = LayerEmbedding(student, ["mel", "b5", "se5"])
    assert embedding(log_mels(student)).shape == (2, embedding.dimension)


@pytest.mark.parametrize(
    ("name", "sources", "message"),
    [
        (
            "mn",
            ["b16"],
            "'b16' is not a source of this student; choose from mel, clf1, clf2",
        ),
        ("mn", ["se3"], "'se3' is not a source of"),
        ("mn", [], "there is no source"),
        ("mn", ["b5", "b5"], "a source appears twice"),
        ("mn", ["se", "se5"], "a source appears twice"),
        ("mn_fc", ["clf2"], "'clf2' is not a source of this student"),
        ("mn_no_se", ["se"], "'se5' is not a source of this student"),
        ("dymn", ["se"], "illegal for this DyMN: 'se5' is not a source of"),
    ],
)
def test_unknown_sources_are_refused(name, sources, message):
    with pytest.raises(ValueError, match=message):
        LayerEmbedding(STUDENTS[name](), sources)


def test_other_illegal_arguments_are_refused():
    student = STUDENTS["mn"]()
    with pytest.raises(ValueError, match="pooling='median' is not known"):
        LayerEmbedding(student, pooling="median")
    with pytest.raises(ValueError, match="n_mels=0 is illegal"):
        LayerEmbedding(student, n_mels=0)
    with pytest.raises(
        ValueError, match="a Student has no stages of .*; give an MN or a"
    ):
        LayerEmbedding(Student(3))
    with pytest.raises(ValueError, match="log_mel has 40 bands, but the embedding is"):
        LayerEmbedding(student)(torch.zeros(1, 1, 40, 50))
    with pytest.raises(ValueError, match=r"a student takes\s+\[B, 1, F, T\]"):
        LayerEmbedding(student)(torch.zeros(1, 128, 50))
