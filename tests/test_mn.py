"""MN and its blocks: widths, gates, refusals."""

import pytest
import torch

from efficientat_plugin.students.blocks import ConcurrentSqueezeExcite, round_channels
from efficientat_plugin.students.mn import MN


@pytest.mark.parametrize("width, parameters", [(0.2, 324_695), (0.5, 1_431_239)])
def test_parameters_are_as_published(width, parameters):
    assert sum(p.numel() for p in MN(width=width).parameters()) == parameters


@pytest.mark.parametrize(
    "channels, rounded", [(1, 8), (11, 16), (12, 16), (16, 16), (19, 24), (3.2, 8)]
)
def test_round_channels_is_near_and_divisible(channels, rounded):
    assert round_channels(channels) == rounded


@pytest.mark.parametrize("se_agg", ["max", "avg", "add", "min"])
def test_squeeze_excite_fuses_its_gated_maps(se_agg):
    squeeze_excite = ConcurrentSqueezeExcite({"f": 6, "c": 5, "t": 7}, se_agg, 4)
    maps = torch.randn(2, 5, 6, 7)
    gated = torch.stack([maps * gate(maps) for gate in squeeze_excite.conc_se_layers])
    expected = {
        "max": gated.amax(0),
        "min": gated.amin(0),
        "add": gated.sum(0),
        "avg": gated.mean(0),
    }[se_agg]
    torch.testing.assert_close(squeeze_excite(maps), expected)


def test_squeeze_excite_layers_stand_in_the_order_given():
    state = MN(width=0.1, se_dims="fc", n_mels=128).state_dict()
    # Block 4 has 16 bands for 128 mels, and 8 channels
    assert state["features.4.block.1.conc_se_layers.0.fc1.weight"].shape == (8, 16)
    assert state["features.4.block.1.conc_se_layers.1.fc1.weight"].shape == (8, 8)


@pytest.mark.parametrize(
    "option, text",
    [
        ({"se_dims": "cc"}, "se_dims='cc' .*at most once"),
        ({"se_dims": "x"}, "se_dims='x' .*'cft'"),
        ({"se_dims": ""}, "se_dims='' .*'none'"),
        ({"se_dims": None}, "se_dims=None .*'none'"),
        ({"se_agg": "mean"}, "se_agg='mean' .*'avg'"),
        ({"se_r": 0}, "se_r=0 "),
        ({"attention_heads": 0}, "attention_heads=0 "),
        ({"n_mels": 0}, "n_mels=0 "),
        ({"n_frames": True}, "n_frames=True "),
        ({"dilated": True, "se_dims": "cf"}, "dilated=True leaves 8 .*'f'.* for 4"),
        ({"dilated": True, "se_dims": "t"}, "dilated=True leaves 63 .* for 32"),
    ],
)
def test_mn_refuses_illegal_options(option, text):
    with pytest.raises(ValueError, match=text):
        MN(width=0.1, **option)


@pytest.mark.parametrize(
    "se_dims, shape, text",
    [
        ("f", (1, 1, 64, 30), "64 bands, .*n_mels=40"),
        ("ct", (1, 1, 40, 29), "29 frames, .*n_frames=30"),
    ],
)
def test_mn_refuses_sizes_other_than_its_gates_are_built_for(se_dims, shape, text):
    student = MN(3, width=0.1, n_mels=40, n_frames=30, se_dims=se_dims)
    with pytest.raises(ValueError, match=text):
        student(torch.zeros(shape))


def test_dilated_gates_are_legal_where_nothing_strides():
    options = {"strides": (2, 2, 2, 1), "dilated": True, "se_dims": "ft"}
    student = MN(3, width=0.1, n_mels=40, n_frames=30, **options).eval()
    assert student(torch.zeros(1, 1, 40, 30)).logits.shape == (1, 3)
