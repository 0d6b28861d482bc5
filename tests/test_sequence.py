"""Sequence models: modules over frames; the scan of minGRU is its recurrence."""

import pytest
import torch

from efficientat_plugin.students.sequence import SEQUENCE_MODELS, build_sequence_model
from efficientat_plugin.students.sequence.attention import GatedAttention
from efficientat_plugin.students.sequence.convolution import DILATIONS, TemporalConvNet
from efficientat_plugin.students.sequence.layers import RMSNorm, SequenceOptions
from efficientat_plugin.students.sequence.recurrent import SCANNED, scan

WITH_LAYERS = [name for name in SEQUENCE_MODELS if name != "none"]
OPTIONS = SequenceOptions(dim=32, layers=2, dropout=0.5)


def built(name, in_channels=24, options=OPTIONS):
    """A member in evaluation, in double precision, whose parts all matter."""
    torch.manual_seed(0)
    model, channels = build_sequence_model(name, in_channels, options)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim > 1 and "weight_g" not in key:
                value.normal_(0, value[0].numel() ** -0.5)
    return model.eval().double(), channels


def frames_of(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_member_gives_the_channels_that_it_says(name):
    model, channels = built(name)
    assert model(frames_of(2, 7, 24)).shape == (2, 7, channels)


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_member_has_as_many_layers_as_asked(name):
    sizes = [
        sum(
            p.numel()
            for p in built(name, 64, OPTIONS._replace(layers=n))[0].parameters()
        )
        for n in (1, 2, 3)
    ]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0 or name == "gru"
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("name", ["tf", "attn", "tcn", "hybrid"])
def test_member_needs_no_projection_where_channels_agree(name):
    model, _ = built(name, in_channels=32)
    assert not [key for key in model.state_dict() if key.startswith("0.")]
    assert [key for key in built(name)[0].state_dict() if key.startswith("0.")]


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_only_the_convolutions_are_causal(name):
    model, _ = built(name)
    frames = frames_of(1, 30, 24)
    changed = frames.clone()
    changed[:, 20:] = frames_of(1, 10, 24)
    with torch.no_grad():
        moved = (model(frames) - model(changed)).abs().amax((0, 2))
    assert moved[20:].min() > 1e-6
    assert (moved[:20].max() < 1e-12) == (name == "tcn")


@pytest.mark.parametrize("name", ["hybrid", "gru"])
def test_recurrence_knows_the_order_of_frames(name):
    model, _ = built(name)
    frames = frames_of(1, 9, 24)
    order = torch.tensor([0, 2, 1, *range(3, 9)])
    with torch.no_grad():
        difference = model(frames)[:, order] - model(frames[:, order])
    assert difference.abs().max() > 1e-6


def test_convolutions_see_124_frames_back():
    stack = TemporalConvNet(4, dropout=0.0).eval()
    frames = torch.randn(1, 200, 4, requires_grad=True)
    with torch.no_grad():  # so that no ReLU closes
        for name, value in stack.named_parameters():
            value.fill_(1.0 if name.endswith("weight_v") else value.mean().abs())
    stack(frames.square())[0, 199].sum().backward()
    reached = frames.grad.abs().sum(2)[0].nonzero()
    assert 199 - reached.min() == 2 * 2 * sum(DILATIONS) == 124


def test_attention_is_closed_by_its_gates():
    attention = GatedAttention("tf", 32)
    torch.nn.init.zeros_(attention.to_gates.weight)
    torch.nn.init.constant_(attention.to_gates.bias, -100.0)
    assert attention(torch.randn(1, 5, 32)).abs().max() < 1e-12


def test_norm_ignores_loudness():
    norm, frames = RMSNorm(8), torch.randn(2, 5, 8)
    torch.testing.assert_close(norm(1000 * frames), norm(frames))
    assert torch.equal(norm(torch.zeros(1, 1, 8)), torch.zeros(1, 1, 8))


# ---------------------------------------------------------------- the scan of minGRU


def recurrence(candidates, gates):
    """minGRU frame by frame."""
    state, states = torch.zeros_like(candidates[:, 0]), []
    for candidate, gate in zip(candidates.unbind(1), gates.unbind(1), strict=True):
        new = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        opened = gate.sigmoid()
        state = (1 - opened) * state + opened * new
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("frames", [1, 2, SCANNED, SCANNED + 1, 3 * SCANNED])
def test_scan_is_the_recurrence(frames):
    candidates, gates = frames_of(2, frames, 5), 3 * frames_of(2, frames, 5)
    torch.testing.assert_close(scan(candidates, gates), recurrence(candidates, gates))


@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
def test_scan_of_minutes_stays_exact_in_single_precision(level):
    candidates, gates = torch.randn(1, 6000, 3), torch.randn(1, 6000, 3) + level
    expected = recurrence(candidates.double(), gates.double())
    error = (scan(candidates, gates) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


def test_scan_has_gradients_for_extreme_gates():
    candidates = torch.tensor([[[-90.0], [0.0], [90.0]]], requires_grad=True)
    gates = torch.tensor([[[90.0], [-90.0], [90.0]]], requires_grad=True)
    scan(candidates, gates).sum().backward()
    assert candidates.grad.isfinite().all() and gates.grad.isfinite().all()


def test_scan_is_in_single_precision_under_autocast():
    half = torch.randn(1, 9, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scan(half, half).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "dim", "heads"),
    [("tf", 64, 4), ("tf", 112, 4), ("tf", 128, 8), ("attn", 64, 8), ("attn", 128, 8)],
)
def test_heads_are_as_published(name, dim, heads):
    """The published code takes fewer heads in a narrow transformer alone."""
    model, _ = build_sequence_model(name, 32, SequenceOptions(dim, 1, 0.0))
    gates = [part for key, part in model.state_dict().items() if "to_gates.bias" in key]
    assert [len(gate) for gate in gates] == [heads]
