"""Training steps on a CPU: what is computed another way has torch's own results."""

import copy
import operator

import pytest
import torch
from torch import nn

from efficientat_plugin.students.cpu import depthwise
from efficientat_plugin.students.cpu.batch_norm import BatchNorm, BatchNormOfFewChannels
from efficientat_plugin.students.cpu.depthwise import (
    DepthwiseConv2d,
    DepthwiseConvolution,
    learns_faster,
)
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import DynamicConv
from efficientat_plugin.students.frame_mn import FrameMN
from efficientat_plugin.students.mn import MN

FEW_CHANNELS = [(3, 8, 64, 250), (2, 24, 41, 139)]


def maps_of(shape, seed=0, scale=1.0):
    """Maps of changing mean and deviation: [B, C, F, T], channels last"""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=generator)
    levels = torch.linspace(-2, 2, shape[1])[:, None, None]
    maps = scale * (maps * levels.exp() + levels)
    return maps.to(memory_format=torch.channels_last)


def trained(norm, maps, gradient):
    """Result, gradients and statistics of one step, in double precision."""
    maps = maps.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found = norm(maps)
    found.backward(gradient)
    parts = [found, maps.grad, norm.weight.grad, norm.bias.grad]
    parts += [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [part.detach().double() for part in parts]


def nearest(results, expected):
    """How far each result is from what is expected, relative to its size."""
    return [
        float((result - wanted).abs().max() / wanted.abs().max())
        for result, wanted in zip(results, expected, strict=True)
    ]


@pytest.mark.parametrize("shape", FEW_CHANNELS)
def test_few_channels_are_normalised_nearer_to_double_precision(shape, monkeypatch):
    norm, torchs = BatchNorm(shape[1]), nn.BatchNorm2d(shape[1], 1e-3, 0.01)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    torchs.load_state_dict(norm.state_dict())
    exact = copy.deepcopy(torchs).double()
    maps, gradient = maps_of(shape), maps_of(shape, seed=1, scale=0.1)
    called = []
    apply = BatchNormOfFewChannels.apply
    monkeypatch.setattr(
        BatchNormOfFewChannels,
        "apply",
        lambda *given: called.append(1) or apply(*given),
    )
    found = trained(norm, maps, gradient)
    expected = trained(exact, maps.double(), gradient.double())
    apart = nearest(found, expected)
    apart_by_torch = nearest(trained(torchs, maps, gradient), expected)
    assert called == [1]
    assert max(apart) < 1e-4
    assert all(map(operator.le, apart, apart_by_torch))


@pytest.mark.parametrize("shape", FEW_CHANNELS)
def test_few_channels_keep_their_layout(shape):
    found = BatchNorm(shape[1])(maps_of(shape))
    assert found.is_contiguous(memory_format=torch.channels_last)
    nn.functional.relu(found, inplace=True)  # an activation in place is allowed


def test_gradients_of_few_channels_are_those_of_differences():
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(3, dtype=torch.float64, generator=generator) + 0.5
    bias = torch.randn(3, dtype=torch.float64, generator=generator)

    def normalised(*given):
        return BatchNormOfFewChannels.apply(*given, 1e-3)[0]

    given = (maps, weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(normalised, given)


@pytest.mark.parametrize("change", ["evaluation", "layout", "size", "precision"])
def test_torchs_own_batch_norm_remains_for_the_rest(change, monkeypatch):
    norm, maps = BatchNorm(8), maps_of(FEW_CHANNELS[0])
    monkeypatch.setattr(BatchNormOfFewChannels, "apply", None)  # calling it breaks
    if change == "evaluation":
        norm.eval()
    elif change == "layout":
        maps = maps.contiguous()
    elif change == "size":
        maps = maps[:1, :, :32].contiguous(memory_format=torch.channels_last)
    else:
        norm, maps = norm.double(), maps.double()
    assert norm(maps).shape == maps.shape


@pytest.fixture
def without_avx512(monkeypatch):
    """As on a processor for which oneDNN has no wider kernels."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def gradients(filtered, maps, weight):
    """Of a sum of different parts, by the maps and by the weight."""
    shares = torch.linspace(-1, 1, filtered.numel()).view(filtered.shape)
    return torch.autograd.grad((filtered * shares).sum(), (maps, weight))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(4, 32), (3, 9), (16, 25), (8, 63), (1, 7), (2, 9)])
def test_depthwise_weights_learn_as_torchs_do(size, kernel, stride, layout):
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 16, *size, generator=generator, dtype=torch.float64)
    maps = maps.to(memory_format=layout).requires_grad_()
    weight = torch.randn(16, 1, kernel, kernel, generator=generator).double()
    weight.requires_grad_()
    filtered = DepthwiseConvolution.apply(maps, weight, stride)
    plain = nn.functional.conv2d(maps, weight, None, stride, kernel // 2, groups=16)
    assert torch.equal(filtered, plain)
    for found, expected in zip(
        gradients(filtered, maps, weight), gradients(plain, maps, weight), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("without_avx512")
@pytest.mark.parametrize("stride", [1, 2])
def test_a_module_learns_alike_in_strips_and_as_one(stride, monkeypatch):
    convolution = DepthwiseConv2d(8, 5, stride)
    maps = torch.randn(1, 8, 6, 20, requires_grad=True)
    in_strips = gradients(convolution(maps), maps, convolution.weight)
    monkeypatch.setattr(depthwise, "learns_faster", lambda *_: False)
    as_one = gradients(convolution(maps), maps, convolution.weight)
    for found, expected in zip(in_strips, as_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("without_avx512")
def test_strips_are_only_for_what_they_are_faster_for(monkeypatch):
    maps, weight = torch.randn(1, 8, 6, 20), torch.randn(8, 1, 5, 5, requires_grad=True)
    one, two = (1, 1), (2, 2)
    assert learns_faster(maps, weight, one, 1) and learns_faster(maps, weight, two, 1)
    assert not learns_faster(maps, weight, one, 2)
    assert not learns_faster(maps[..., :4], weight, one, 1)
    assert not learns_faster(maps, weight[..., 1:4, 1:4], one, 1)
    assert not learns_faster(maps, weight.detach(), one, 1)
    assert not learns_faster(maps.double(), weight.double(), one, 1)
    with torch.no_grad():
        assert not learns_faster(maps, weight, one, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not learns_faster(maps, weight, one, 1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not learns_faster(maps, weight, one, 1)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_strips_of_channels_last_are_for_enough_bands(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    weight = torch.randn(8, 1, 5, 5, requires_grad=True)
    clips = torch.randn(2, 8, 6, 20).to(memory_format=torch.channels_last)
    assert learns_faster(clips, weight, (1, 1), 1)
    assert learns_faster(clips, weight, (2, 1), 1)
    assert not learns_faster(clips, weight, (2, 2), 1)
    assert not learns_faster(
        clips[:, :, :2].contiguous(memory_format=torch.channels_last), weight, (1, 1), 1
    )


@pytest.mark.usefixtures("without_avx512")
@pytest.mark.parametrize("family", [MN, DyMN, FrameMN])
def test_a_student_learns_as_with_torchs_own_in_double_precision(family, monkeypatch):
    torch.manual_seed(4)
    student = family(num_classes=3, width=0.1, dropout=0.0).train()
    log_mel = torch.randn(4, 1, 128, 400)

    def learnt():
        student.zero_grad()
        state = copy.deepcopy(student.state_dict())
        logits = student(log_mel.to(next(student.parameters()).dtype))[0]
        shares = torch.arange(12.0).view(4, 3, *[1] * (logits.ndim - 2))
        (logits.sigmoid() * shares).sum().backward()
        student.load_state_dict(state)
        return {
            name: part.grad.clone()
            for name, part in student.named_parameters()
            if part.grad is not None
        }

    ours = learnt()
    for module in student.modules():
        if isinstance(module, BatchNorm):
            monkeypatch.setattr(module, "_is_faster_in_rows", lambda _: False)
        elif isinstance(module, DepthwiseConv2d | DynamicConv):
            monkeypatch.setattr(module, "training", False)
    student.double()  # in single, torch's own may be further away than ours
    exact = learnt()
    assert ours.keys() == exact.keys()
    size = max(float(part.abs().max()) for part in exact.values())
    for name, expected in exact.items():
        found = ours[name].double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * size)
