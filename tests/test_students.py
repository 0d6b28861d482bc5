"""Students: published outputs and shapes, laws of every member, refusals."""

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
from fill import fill_
from golden_vectors import GOLDEN

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.students.blocks import ConcurrentSqueezeExcite, round_channels
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.dynamic import DynamicConv, DynamicReLU
from efficientat_plugin.students.heads import HEADS, HeadOptions
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student
from efficientat_plugin.training.short_runs import prepare_for_short_run

# Published names of options to ours; a "no" switch is the opposite of ours.
RENAMED = {
    "width_mult": "width",
    "head_type": "head",
    "input_dim_t": "n_frames",
    "use_dy_blocks": "dynamic_blocks",
}
SWITCHES = {"no_dyconv": "use_dyconv", "no_dyrelu": "use_dyrelu"}

NETWORKS = (
    "mn01 mn04 mn10 mn10_fc mn04_mhap mn04_se_f mn04_se_none mn04_s2221 mn04_c50 "
    "dymn04 dymn10 dymn04_replace_se"
).split()
BATCH_NETWORKS = (
    "dymn04 dymn04_T30 dymn10 dymn04_replace_se dymn04_nodyconv dymn04_nodyrelu mn04 "
    "mn01_dilated"
).split()
SMALL = {"width": 0.1, "num_classes": 3, "n_mels": 40, "n_frames": 30}
MEMBERS = {
    "mn": lambda **options: MN(**{**SMALL, **options}),
    "mn_fc": lambda **options: MN(
        **{**SMALL, "head": "fully_convolutional", **options}
    ),
    "mn_mhap": lambda **options: MN(
        **{**SMALL, "head": "multihead_attention_pooling", **options}
    ),
    "mn_no_se": lambda **options: MN(**{**SMALL, "se_dims": "none", **options}),
    "mn_se_fct_max": lambda **options: MN(**{**SMALL, "se_dims": "fct", **options}),
    "mn_se_ct_avg": lambda **options: MN(
        **{**SMALL, "se_dims": "ct", "se_agg": "avg", **options}
    ),
    "mn_strides": lambda **options: MN(**{**SMALL, "strides": [2, 1, 2, 1], **options}),
    "mn_dilated": lambda **options: MN(**{**SMALL, "dilated": True, **options}),
    "mn_reduced_tail": lambda **options: MN(
        **{**SMALL, "reduced_tail": True, **options}
    ),
    "dymn": lambda **options: DyMN(**dynamic(options)),
    "dymn_fc": lambda **options: DyMN(**dynamic(options), head="fully_convolutional"),
    "dymn_replace_se": lambda **options: DyMN(
        **dynamic(options), dynamic_blocks="replace_se"
    ),
    "dymn_dilated": lambda **options: DyMN(**dynamic(options), dilated=True),
    "dymn_static_parts": lambda **options: DyMN(
        **dynamic(options), use_dyconv=False, use_coordinate_attention=False
    ),
    "dymn_k": lambda **options: DyMN(**dynamic(options), dyrelu_k=3, dyconv_k=2),
}


def dynamic(options):
    """Small DyMN options: neither bands nor frames are fixed."""
    options = {**SMALL, **options}
    return {k: v for k, v in options.items() if k not in ("n_mels", "n_frames")}


def read_golden(file, name):
    arrays = np.load(GOLDEN / f"{file}.npz")
    entry = json.loads((GOLDEN / f"{file}.json").read_text())[name]
    keys = ("x", f"{name}/logits", f"{name}/embedding")
    return entry, *(torch.from_numpy(arrays[key]) for key in keys)


def build_golden(name, entry, **options):
    for published, value in entry["kwargs"].items():
        if published in SWITCHES:
            options[SWITCHES[published]] = not value
        else:
            options[RENAMED.get(published, published)] = value
    if "temperature" in entry and name.startswith("dymn"):
        options["temperature"] = entry["temperature"]
    return (DyMN if name.startswith("dymn") else MN)(**options)


def relative_error(value, truth):
    """The largest error over the largest truth; NaN where anything is NaN."""
    return ((value - truth).abs().max() / truth.abs().max()).item()


def shapes(student):
    return {
        name: list(value.shape)
        for name, value in student.state_dict().items()
        if name != "temperature"
    }


def randomise_(student):
    """Weights and statistics that let every part matter, unlike the initial ones."""
    with torch.no_grad():
        for name, value in student.named_parameters():
            if value.shape[:2] == (1, 1):  # kernels of a dynamic convolution
                value.normal_(0, 0.3)
            elif value.ndim > 1:
                value.normal_(0, math.sqrt(2 / value[0].numel()))
            elif "weight" not in name:
                value.normal_(0, 0.3)
        for part in student.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        student.train()(torch.randn(4, 1, 40, 30))
    return student


@functools.cache
def shared_member(member):
    """A random member in evaluation; made once, so a test leaves it as it is."""
    with torch.random.fork_rng():  # the same one for whichever test comes first
        torch.manual_seed(0)
        return randomise_(MEMBERS[member]()).eval()


def own_member(member):
    """A copy of the shared member, to be changed."""
    return copy.deepcopy(shared_member(member))


# ---------------------------------------------------------------- published networks


@pytest.mark.parametrize("name", NETWORKS)
def test_network_scores_as_published(name):
    entry, x, logits, embedding = read_golden("networks", name)
    student = fill_(build_golden(name, entry)).eval()
    with torch.no_grad():
        output = student(x)
    assert isinstance(output, StudentOutput)
    assert relative_error(output.logits, logits) <= 1e-4
    assert relative_error(output.embedding, embedding) <= 1e-4
    assert sum(p.numel() for p in student.parameters()) == entry["params"]
    assert len(shapes(student)) == entry["keys"]


@pytest.mark.parametrize("name", BATCH_NETWORKS)
def test_network_with_batch_statistics_scores_as_published(name):
    entry, x, logits, embedding = read_golden("networks_batch_statistics", name)
    student = fill_(build_golden(name, entry, dropout=0.0)).train()
    with torch.no_grad():
        output = student(x)
    assert relative_error(output.logits, logits) <= 1e-4
    assert relative_error(output.embedding, embedding) <= 1e-4
    assert sum(p.numel() for p in student.parameters()) == entry["params"]
    assert shapes(student) == entry["keys"]


@pytest.mark.parametrize("file", ["networks", "networks_batch_statistics"])
def test_golden_entries_are_all_tested(file):
    entries = json.loads((GOLDEN / f"{file}.json").read_text())
    tested = NETWORKS if file == "networks" else BATCH_NETWORKS
    assert set(tested) == set(entries)


@pytest.mark.parametrize(
    "name, student",
    [
        ("mn04", lambda: MN(width=0.4)),
        ("mn04_fc", lambda: MN(width=0.4, head="fully_convolutional")),
        ("mn04_mhap", lambda: MN(width=0.4, head="multihead_attention_pooling")),
        ("dymn04", lambda: DyMN(width=0.4)),
        ("dymn04_replace_se", lambda: DyMN(width=0.4, dynamic_blocks="replace_se")),
    ],
)
def test_state_dict_has_published_names_and_shapes(name, student):
    published = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    assert list(shapes(student()).items()) == list(published[name].items())


def test_coordinate_attention_keeps_its_entries_where_it_is_not_used():
    without = DyMN(width=0.1, use_coordinate_attention=False)
    assert shapes(without) == shapes(DyMN(width=0.1))


@pytest.mark.parametrize("width, parameters", [(0.2, 324_695), (0.5, 1_431_239)])
def test_parameters_are_as_published(width, parameters):
    assert sum(p.numel() for p in MN(width=width).parameters()) == parameters


# ---------------------------------------------------------------- laws of all members


@pytest.mark.parametrize("member", MEMBERS)
def test_member_scores_a_clip_alone_as_in_a_batch(member):
    # In double precision: random weights can magnify the rounding of single.
    student = own_member(member).double()
    loudness = torch.tensor([0.3, 3.0]).double().view(2, 1, 1, 1)
    clips = torch.randn(2, 1, 40, 30) * loudness
    with torch.no_grad():
        together = student(clips)
        for index in range(2):
            alone = student(clips[index : index + 1])
            for one, many in zip(alone, together, strict=True):
                assert one.shape == (1, many.shape[1])
                assert relative_error(one[0], many[index]) <= 1e-9
    assert relative_error(together.logits[0], together.logits[1]) > 1e-3


@pytest.mark.parametrize("member", MEMBERS)
def test_member_keeps_batch_and_a_single_class(member):
    student = MEMBERS[member](num_classes=1).eval()
    for batch in (1, 2):
        output = student(torch.zeros(batch, 1, 40, 30))
        assert output.logits.shape == (batch, 1)
        assert output.embedding.shape == (batch, 48 if "reduced" in member else 96)


@pytest.mark.parametrize("member", MEMBERS)
def test_member_trains_every_parameter(member):
    student = own_member(member).train()
    student(torch.randn(2, 1, 40, 30)).logits.square().sum().backward()
    without = {
        name
        for name, value in student.named_parameters()
        if value.grad is None or not value.grad.isfinite().all()
    }
    if member == "dymn_static_parts":  # as published: there, and unused
        without = {name for name in without if ".context_gen.conv_" not in name}
    assert without == set()


def slope_of_loss(student, clips, direction, step):
    """How fast a loss rises along a direction of all weights, by a difference."""

    def loss_at(distance):
        moved = {
            name: value + distance * direction[name]
            for name, value in student.named_parameters()
        }
        return torch.func.functional_call(student, moved, (clips,)).logits.sin().sum()

    with torch.no_grad():
        return float(loss_at(step) - loss_at(-step)) / (2 * step)


SIZES = {"clips": (40, 30), "one frame": (40, 1), "one band": (1, 30)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("member", MEMBERS)
def test_member_has_the_gradients_of_differences(member, size):
    if "_se_" in member and "no_se" not in member and size != "clips":
        pytest.skip("it takes one size")
    student = own_member(member).double().train()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    clips = torch.randn(3, 1, *SIZES[size]).double()
    student(clips).logits.sin().sum().backward()
    direction, slope = {}, 0.0
    for name, value in student.named_parameters():
        direction[name] = torch.randn_like(value) * value.detach().abs()
        if value.grad is not None:
            slope += float((value.grad * direction[name]).sum())
    # A short step: the statistics of three clips bend the loss strongly.
    expected = slope_of_loss(student, clips, direction, 1e-9)
    assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_member_recovers_from_its_state_dict(member):
    student, other = shared_member(member), MEMBERS[member]().eval()
    other.load_state_dict(student.state_dict())
    clip = torch.randn(1, 1, 40, 30)
    assert torch.equal(student(clip).logits, other(clip).logits)


@pytest.mark.parametrize("member", ["mn", "dymn"])
@pytest.mark.parametrize("bands, frames", [(1, 1), (40, 1), (1, 9), (128, 33)])
def test_any_clip_length_scores(member, bands, frames):
    output = shared_member(member)(torch.randn(1, 1, bands, frames))
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("member", ["mn", "dymn"])
def test_channels_last_scores_alike(member):
    student = own_member(member).double()
    clips = torch.randn(2, 1, 40, 30).double()
    expected = student(clips).logits
    student.to(memory_format=torch.channels_last)
    scored = student(clips.contiguous(memory_format=torch.channels_last)).logits
    assert relative_error(scored, expected) <= 1e-9


# ---------------------------------------------------------------- laws of the parts


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


@pytest.mark.parametrize("head", HEADS)
def test_head_gives_logits(head):
    logits = HEADS[head](HeadOptions(8, 5, hidden=6))(torch.randn(2, 8, 4, 3))
    assert logits.shape == (2, 5)


# ---------------------------------------------------------------- temperature


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
    student = own_member("dymn")
    buffer, clip = student.temperature, torch.randn(1, 1, 40, 30)
    cold = student(clip).logits
    student.set_temperature(30.0)
    assert student.temperature is buffer
    assert not torch.allclose(student(clip).logits, cold)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1"])
def test_set_temperature_refuses_what_is_not_positive(value):
    with pytest.raises(ValueError, match="temperature=.*greater than 0"):
        shared_member("dymn").set_temperature(value)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("build", [MN, DyMN])
@pytest.mark.parametrize(
    "option, text",
    [
        ({"num_classes": 0}, "num_classes=0 .*at least 1"),
        ({"num_classes": 2.5}, "num_classes=2.5 .*integer"),
        ({"width": 0}, "width=0 .*greater than 0"),
        ({"width": "1"}, "width='1' .*number"),
        ({"strides": (2, 2, 2)}, r"strides=\(2, 2, 2\).*four"),
        ({"strides": (2, 2, 3, 1)}, "strides=.*1 or 2"),
        ({"dropout": 1.0}, r"dropout=1.0 .*\[0, 1\)"),
        ({"head": "cubic"}, "head='cubic' .*'mlp', 'linear', 'fully_convolutional'"),
    ],
)
def test_student_refuses_illegal_options(build, option, text):
    with pytest.raises(ValueError, match=text):
        build(**{"width": 0.1, **option})


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


@pytest.mark.parametrize("member", ["mn", "dymn"])
@pytest.mark.parametrize(
    "shape, text",
    [
        ((2, 128, 100), "unsqueeze"),
        ((2, 3, 128, 100), r"\(2, 3, 128, 100\).*\[B, 1, F, T\]"),
        ((0, 1, 128, 100), "at least one clip"),
        ((1, 1, 128, 0), "one frame"),
    ],
)
def test_student_refuses_what_is_no_batch_of_log_mels(member, shape, text):
    with pytest.raises(ValueError, match=text):
        shared_member(member)(torch.zeros(shape))


@pytest.mark.parametrize(
    "se_dims, shape, text",
    [
        ("f", (1, 1, 64, 30), "64 bands, .*n_mels=40"),
        ("ct", (1, 1, 40, 29), "29 frames, .*n_frames=30"),
    ],
)
def test_mn_refuses_sizes_other_than_its_gates_are_built_for(se_dims, shape, text):
    student = MN(**SMALL, se_dims=se_dims)
    with pytest.raises(ValueError, match=text):
        student(torch.zeros(shape))


def test_dilated_gates_are_legal_where_nothing_strides():
    options = {**SMALL, "strides": (2, 2, 2, 1), "dilated": True, "se_dims": "ft"}
    assert MN(**options).eval()(torch.zeros(1, 1, 40, 30)).logits.shape == (1, 3)


def test_bare_student_has_no_maps():
    with pytest.raises(NotImplementedError):
        Student(1).maps(torch.zeros(1, 1, 8, 8))


def test_a_short_run_needs_the_bias_of_an_mlp_head():
    with pytest.raises(
        ValueError, match="FullyConvolutional head has no .* with head='mlp'"
    ):
        prepare_for_short_run(MN(2, width=0.1, head="fully_convolutional"), prior=0.1)
    with pytest.raises(ValueError, match="prior=1 must be between 0 and 1"):
        prepare_for_short_run(MN(2, width=0.1), prior=1)
