"""Students: published outputs and shapes, laws of every member, refusals."""

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
from fill_weights import fill_
from golden_vectors import GOLDEN

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.student import Student

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
SMALL = {"width": 0.1, "num_classes": 3}
FIXED = {"n_mels": 40, "n_frames": 30}
MEMBERS = {
    "mn": (MN, {}),
    "mn_fc": (MN, {"head": "fully_convolutional"}),
    "mn_mhap": (MN, {"head": "multihead_attention_pooling"}),
    "mn_no_se": (MN, {"se_dims": "none"}),
    "mn_se_fct_max": (MN, FIXED | {"se_dims": "fct"}),
    "mn_se_ct_avg": (MN, FIXED | {"se_dims": "ct", "se_agg": "avg"}),
    "mn_strides": (MN, {"strides": [2, 1, 2, 1]}),
    "mn_dilated": (MN, {"dilated": True}),
    "mn_reduced_tail": (MN, {"reduced_tail": True}),
    "dymn": (DyMN, {}),
    "dymn_fc": (DyMN, {"head": "fully_convolutional"}),
    "dymn_replace_se": (DyMN, {"dynamic_blocks": "replace_se"}),
    "dymn_dilated": (DyMN, {"dilated": True}),
    "dymn_static_parts": (
        DyMN,
        {"use_dyconv": False, "use_coordinate_attention": False},
    ),
    "dymn_k": (DyMN, {"dyrelu_k": 3, "dyconv_k": 2}),
}


def built(member, **options):
    """A member with its initial weights."""
    build, own = MEMBERS[member]
    return build(**SMALL | own | options)


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
        return randomise_(built(member)).eval()


def own_member(member):
    """A copy of the shared member, to be changed."""
    return copy.deepcopy(shared_member(member))


# ---------------------------------------------------------------- published networks


GOLDEN_NETWORKS = {"networks": NETWORKS, "networks_batch_statistics": BATCH_NETWORKS}


@pytest.mark.parametrize(
    "file, name",
    [(file, name) for file, names in GOLDEN_NETWORKS.items() for name in names],
)
def test_network_scores_as_published(file, name):
    entry, x, logits, embedding = read_golden(file, name)
    in_training = file == "networks_batch_statistics"
    options = {"dropout": 0.0} if in_training else {}
    student = fill_(build_golden(name, entry, **options)).train(in_training)
    with torch.no_grad():
        output = student(x)
    assert isinstance(output, StudentOutput)
    assert relative_error(output.logits, logits) <= 1e-4
    assert relative_error(output.embedding, embedding) <= 1e-4
    assert sum(p.numel() for p in student.parameters()) == entry["params"]
    found = shapes(student)
    assert entry["keys"] == (found if in_training else len(found))


@pytest.mark.parametrize("file", GOLDEN_NETWORKS)
def test_golden_entries_are_all_tested(file):
    entries = json.loads((GOLDEN / f"{file}.json").read_text())
    assert set(GOLDEN_NETWORKS[file]) == set(entries)


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
    student = built(member, num_classes=1).eval()
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
    student, other = shared_member(member), built(member).eval()
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


def test_bare_student_has_no_maps():
    with pytest.raises(NotImplementedError):
        Student(1).maps(torch.zeros(1, 1, 8, 8))
