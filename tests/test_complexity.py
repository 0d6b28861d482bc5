"""Complexity: the published numbers, and that measuring changes nothing."""

import pytest
import torch

from efficientat_plugin.complexity import (
    Complexity,
    count_macs,
    count_parameters,
    measure,
    measure_latency,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN


@pytest.mark.parametrize(
    "build, options, n_mels, n_frames, gigamacs, digits",
    [
        (MN, {"width": 0.1}, 128, 1000, 0.018, 3),
        (MN, {"width": 0.4}, 128, 1000, 0.111, 3),
        (MN, {}, 128, 1000, 0.541, 3),
        (MN, {}, 128, 500, 0.274, 3),  # hop of 20 ms
        (MN, {}, 40, 1000, 0.208, 3),
        (MN, {"head": "fully_convolutional"}, 128, 1000, 0.604, 3),
        (DyMN, {"width": 0.4}, 128, 1000, 0.12, 2),
        (DyMN, {}, 128, 1000, 0.58, 2),
    ],
)
def test_macs_are_as_published(build, options, n_mels, n_frames, gigamacs, digits):
    # Counting needs shapes alone: no weights are made, nothing is computed.
    with torch.device("meta"):
        student = build(**options)
    assert round(count_macs(student, n_mels, n_frames) / 1e9, digits) == gigamacs


def test_parameters_are_those_that_train():
    student = MN(width=0.1)
    assert count_parameters(student) == 123_783
    student.features.requires_grad_(False)
    assert count_parameters(student) == count_parameters(student.classifier)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_student_as_it_was(training):
    student = DyMN(width=0.1, num_classes=2).train(training)
    student.layers[0].eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = measure(student, n_mels=8, n_frames=9, rounds=2)
    assert isinstance(result, Complexity)
    assert result.parameters == count_parameters(student)
    assert result.macs > 0 and result.milliseconds_per_clip > 0
    assert student.training == training and not student.layers[0].training
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_macs_refuse_an_empty_clip():
    with pytest.raises(ValueError, match="n_frames=0 must be 1 or more"):
        count_macs(MN(width=0.1), n_frames=0)


def test_latency_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds=0"):
        measure_latency(MN(width=0.1), rounds=0)
