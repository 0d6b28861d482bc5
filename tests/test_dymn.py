"""DyMN and its dynamic blocks: mixtures, temperature, refusals."""

import math

import pytest
import torch

from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import DynamicConv, DynamicReLU


def test_coordinate_attention_keeps_its_entries_where_it_is_not_used():
    without = DyMN(width=0.1, use_coordinate_attention=False)
    assert without.state_dict().keys() == DyMN(width=0.1).state_dict().keys()


@pytest.mark.parametrize("kernel, channels", [(1, 12), (3, 8), (5, 8)])
def test_dynamic_convolution_is_the_mixture_of_its_kernels(kernel, channels):
    conv = DynamicConv(8, channels, 4, kernel, stride=1 if kernel == 1 else 2)
    maps, context = torch.randn(2, 8, 9, 7), torch.randn(2, 4)
    attention = torch.softmax(conv.residuals(context) / 3.0, dim=1)
    kernels = conv.weight.view(4, channels, -1, kernel, kernel)
    expected = [
        torch.nn.functional.conv2d(
            maps[index : index + 1],
            torch.einsum("k,koihw->oihw", attention[index], kernels),
            stride=conv.stride,
            padding=kernel // 2,
            groups=1 if kernel == 1 else 8,
        )
        for index in range(2)
    ]
    scored = conv(maps, context, torch.tensor(3.0))
    torch.testing.assert_close(scored, torch.cat(expected))


def test_dynamic_relu_without_context_is_half_slopes_of_relu():
    relu = DynamicReLU(3, context_size=4)
    torch.nn.init.zeros_(relu.coef_net[0].weight)
    torch.nn.init.zeros_(relu.coef_net[0].bias)
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(relu(maps, torch.randn(2, 4)), maps.relu())


def test_temperature_is_one_entry_of_the_state_dict():
    student = DyMN(width=0.1, num_classes=2, temperature=30.0)
    state = student.state_dict()
    assert [name for name in state if "temperature" in name] == ["temperature"]
    assert state["temperature"].dtype == torch.float32
    assert state["temperature"].shape == ()
    restored = DyMN(width=0.1, num_classes=2)
    restored.load_state_dict(state)
    assert restored.temperature.item() == 30.0


def test_temperature_stays_where_a_state_dict_has_none():
    student = DyMN(width=0.1, num_classes=2, temperature=7.0)
    state = student.state_dict()
    del state["temperature"]
    student.load_state_dict(state, strict=True)
    torch.nn.ModuleDict({"student": student}).load_state_dict(
        {f"student.{name}": value for name, value in state.items()}
    )
    assert student.temperature.item() == 7.0


def test_other_missing_entries_are_refused():
    student = DyMN(width=0.1, num_classes=2)
    state = student.state_dict()
    del state["layers.3.depth_conv.weight"]
    with pytest.raises(RuntimeError, match="layers.3.depth_conv.weight"):
        student.load_state_dict(state)


def test_temperature_is_set_in_place_and_changes_scores():
    student = DyMN(3, width=0.1, dropout=0.0).train()
    buffer, clip = student.temperature, torch.randn(2, 1, 40, 30)
    cold = student(clip).logits
    student.set_temperature(30.0)
    assert student.temperature is buffer
    assert not torch.allclose(student(clip).logits, cold)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1"])
def test_set_temperature_refuses_what_is_not_positive(value):
    with pytest.raises(ValueError, match="temperature=.*greater than 0"):
        DyMN(3, width=0.1).set_temperature(value)


@pytest.mark.parametrize(
    "option, text",
    [
        ({"dynamic_blocks": "some"}, "dynamic_blocks='some' .*'replace_se'"),
        ({"head": "multihead_attention_pooling"}, "head='multihead.* not known"),
        ({"context_ratio": 0}, "context_ratio=0 "),
        ({"min_context_size": 0}, "min_context_size=0 "),
        ({"max_context_size": 0}, "max_context_size=0 "),
        ({"dyrelu_k": 0}, "dyrelu_k=0 "),
        ({"dyconv_k": 0}, "dyconv_k=0 "),
        ({"temperature": 0.0}, "temperature=0.0 "),
    ],
)
def test_dymn_refuses_illegal_options(option, text):
    with pytest.raises(ValueError, match=text):
        DyMN(width=0.1, **option)
