"""Layers for inference: packed and joined, they compute what their parts compute."""

import copy
import pickle

import pytest
import torch
from torch import nn

from efficientat_plugin import DyMN, FrameMN
from efficientat_plugin.students.cpu import fused as fused_layers
from efficientat_plugin.students.cpu.fused import (
    FusedConv2d,
    PackedLinear,
    Packing,
    is_fused,
)
from efficientat_plugin.students.inference_form import FusedResidual, inference_form
from efficientat_plugin.students.mn import MN

CONVOLUTIONS = {
    "stem": (nn.Conv2d(1, 8, 3, 2, 1), (2, 1, 128, 41)),
    "pointwise": (nn.Conv2d(8, 24, 1), (2, 8, 16, 25)),
    "depthwise": (nn.Conv2d(24, 24, 5, 1, 2, groups=24), (2, 24, 16, 25)),
    "strided over bands": (nn.Conv2d(24, 24, 5, (2, 1), 2, groups=24), (1, 24, 4, 25)),
    "low": (nn.Conv2d(40, 40, 5, (2, 1), 2, groups=40), (3, 40, 2, 9)),
    "dilated": (nn.Conv2d(16, 16, 3, 1, 2, 2, groups=16), (1, 16, 4, 9)),
}


def near(found, expected):
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=2e-6, rtol=0)


@pytest.fixture
def packings(monkeypatch):
    """The layers that were packed, in order."""
    packed = []
    for layer in (FusedConv2d, PackedLinear):
        pack = layer._pack
        monkeypatch.setattr(
            layer,
            "_pack",
            lambda self, maps, pack=pack: packed.append(self) or pack(self, maps),
        )
    return packed


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.Hardswish])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_fused_convolution_computes_its_parts(name, activation, layout, packings):
    layer, shape = CONVOLUTIONS[name]
    fused = FusedConv2d(layer.to(memory_format=layout), activation())
    for seed, number in enumerate((shape[0], 1, 5)):  # packed for the first of them
        torch.manual_seed(seed)
        maps = torch.randn(number, *shape[1:]).to(memory_format=layout)
        with torch.inference_mode():
            near(fused(maps), activation()(layer(maps)))
    assert packings == [fused]


@pytest.mark.parametrize("number", [1, 3])
def test_a_residual_is_added_in_place(number):
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 16, 1).to(memory_format=torch.channels_last)
    maps, added = torch.randn(number, 24, 4, 9), torch.randn(number, 16, 4, 9)
    maps = maps.to(memory_format=torch.channels_last)
    added = added.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = added + layer(maps)
        found = FusedConv2d(layer, nn.Identity()).add_to(added, maps)
    near(found, expected)
    assert found.data_ptr() == added.data_ptr()


def test_a_packed_layer_computes_the_layer(packings):
    torch.manual_seed(0)
    for bias in (True, False):
        layer = nn.Linear(24, 10, bias=bias)
        packed = PackedLinear(layer)
        with torch.inference_mode():
            for shape in ((2, 7, 24), (1, 250, 24), (3, 24)):
                frames = torch.randn(shape)
                near(packed(frames), layer(frames))
    assert len(packings) == 2


def test_gradients_and_other_precisions_are_left_to_torch(packings):
    fused = FusedConv2d(nn.Conv2d(4, 4, 1), nn.ReLU())
    maps = torch.randn(1, 4, 3, 3)
    assert fused(maps).requires_grad  # weights that learn
    fused.requires_grad_(False)
    assert fused(maps.requires_grad_()).requires_grad
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fused(maps)
    fused.double()(maps.double())
    assert packings == []
    with torch.no_grad():
        fused.float()(maps)
    assert packings == [fused]


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_packed_weights_are_neither_copied_nor_outdated(again):
    fused = FusedConv2d(nn.Conv2d(4, 4, 1), nn.Identity())
    maps = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        before = fused(maps)
        copied = again(fused)
        near(copied(maps), before)
        state = {name: 2 * value for name, value in fused.state_dict().items()}
        fused.load_state_dict(state)
        near(fused(maps), 2 * before)
        near(copied(maps), before)
    assert [*state] == ["layer.weight", "layer.bias"]


def test_without_the_operations_everything_is_left_to_torch(monkeypatch, packings):
    monkeypatch.setattr(fused_layers, "HAS_OPERATIONS", False)
    torch.manual_seed(0)
    student = FrameMN(3, width=0.1, sequence_model="tf", sequence_dim=32).eval()
    log_mel = torch.randn(1, 1, 128, 100)
    with torch.inference_mode():
        for found, expected in zip(
            inference_form(student)(log_mel), student(log_mel), strict=True
        ):
            near(found, expected)
    assert packings == []


def test_only_activations_that_are_known_are_fused():
    assert is_fused(nn.Hardswish(inplace=True)) and not is_fused(nn.Hardtanh())
    assert not is_fused(nn.ReLU6())


@pytest.mark.parametrize(
    "student",
    [
        MN(3, width=0.1),
        FrameMN(3, width=0.1),
        FrameMN(3, width=0.1, sequence_model="tf", sequence_dim=32),
    ],
    ids=["mn", "frames", "frames and transformer"],
)
def test_every_convolution_of_an_inference_form_is_fused(student, packings):
    form = inference_form(student)
    convolutions = [part for part in form.modules() if isinstance(part, nn.Conv2d)]
    fused = [part for part in form.modules() if isinstance(part, FusedConv2d)]
    blocks = [part for part in form.modules() if isinstance(part, FusedResidual)]
    assert [part.layer for part in fused] == convolutions and len(blocks) == 15
    with torch.inference_mode():
        form(torch.randn(1, 1, 128, 100))
    packable = [part for part in form.modules() if isinstance(part, Packing)]
    assert set(packings) == set(packable)


@pytest.mark.parametrize("family", [MN, DyMN, FrameMN])
def test_the_input_is_left_alone(family):
    log_mel = torch.randn(2, 1, 128, 100)
    before = log_mel.clone()
    with torch.inference_mode():
        inference_form(family(3, width=0.1))(log_mel)
    assert torch.equal(log_mel, before)


@pytest.mark.parametrize("family", [MN, DyMN, FrameMN])
def test_an_inference_form_scores_a_clip_as_in_a_batch(family):
    torch.manual_seed(0)
    form = inference_form(family(3, width=0.1).eval())
    log_mel = torch.randn(6, 1, 128, 100)
    with torch.inference_mode():
        together = form(log_mel)
        for number in range(6):
            alone = form(log_mel[number : number + 1])
            for one, many in zip(alone, together, strict=True):
                near(one[0], many[number])
