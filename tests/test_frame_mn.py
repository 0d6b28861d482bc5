"""FrameMN: published outputs, laws of every sequence model and width, refusals."""

import copy
import functools
import json
import math

import numpy as np
import pytest
import torch
from fill_weights import fill_
from golden_vectors import GOLDEN
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from torch.nn import functional

from efficientat_plugin import FrameMN, FrameOutput
from efficientat_plugin.cost.complexity import count_macs
from efficientat_plugin.students.frame_mn import FrameBackbone
from efficientat_plugin.students.frame_student import (
    FRAME_HEADS,
    HeadLayers,
    attention_over_frames,
)
from efficientat_plugin.students.inference_form import inference_form
from efficientat_plugin.students.mn import MN
from efficientat_plugin.students.sequence import SEQUENCE_MODELS
from efficientat_plugin.students.sequence.attention import RotaryPositions

GOLDEN_MODELS = json.loads((GOLDEN / "frame_mn.json").read_text())
# Computed with the initial frequencies of the rotary positions
INITIAL_POSITIONS = ("fmn10_tf256", "fmn04_attn128")
SMALL = {"num_classes": 3, "num_weak_classes": 4, "sequence_dim": 32}
WIDTHS = (0.1, 0.3)
MEMBERS = [(model, width) for model in SEQUENCE_MODELS for width in WIDTHS]
CHANNELS = {0.1: 96, 0.3: 288}

of_all_members = pytest.mark.parametrize("model, width", MEMBERS)


@functools.cache
def shared_member(model, width):
    """A member with random weights, in evaluation; a test leaves it as it is."""
    student = FrameMN(**SMALL, width=width, sequence_model=model)
    return fill_(student).eval()


def own_member(model, width=0.1):
    """A copy of the shared member, to be changed."""
    return copy.deepcopy(shared_member(model, width))


def relative_error(value, truth):
    """The largest error over the largest truth; NaN where anything is NaN."""
    return ((value - truth).abs().max() / truth.abs().max()).item()


# ---------------------------------------------------------------- published networks


def build_golden(name):
    published = GOLDEN_MODELS[name]["kwargs"]
    return FrameMN(
        width=published["width"],
        sequence_model=published["seq_model_type"],
        sequence_dim=published["seq_dim"],
        head=published["head_type"],
    )


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_network_scores_as_published(name):
    golden = np.load(GOLDEN / "frame_mn.npz")
    student = build_golden(name).eval()
    initial = copy.deepcopy(student.state_dict())
    fill_(student)
    if name in INITIAL_POSITIONS:
        rotary = {k: v for k, v in initial.items() if k.endswith("freqs")}
        student.load_state_dict(rotary, strict=False)
    with torch.no_grad():
        strong, weak, embedding = student(torch.from_numpy(golden["log_mel"]))
    assert strong.shape == (1, 447, 250) and embedding.shape[:2] == (1, 250)
    scored = {"strong": strong[:, :, golden["frames"]], "weak": weak}
    for head, logits in scored.items():
        expected = torch.from_numpy(golden[f"{name}/{head}"])
        if student.head == "attention":  # the published one returns probabilities
            logits = logits.sigmoid()
        assert relative_error(logits, expected) <= 1e-5


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_state_dict_has_published_names_and_shapes(name):
    student, entry = build_golden(name), GOLDEN_MODELS[name]
    shapes = {k: list(v.shape) for k, v in student.state_dict().items()}
    if not any(key.startswith("model.") for key in entry["keys"]):
        shapes = {k: v for k, v in shapes.items() if not k.startswith("model.")}
    assert list(shapes.items()) == list(entry["keys"].items())
    assert sum(p.numel() for p in student.parameters()) == entry["params"]


@pytest.mark.parametrize(
    "width, model, dim, millions",
    [
        (0.6, "none", 0, 1.615),
        (1.0, "none", 0, 3.831),
        (2.0, "none", 0, 13.36),
        (0.6, "tf", 160, 1.955),
        (1.0, "gru", 128, 4.335),
        (1.0, "hybrid", 512, 13.37),
        (1.0, "tf", 1024, 30.07),
        (2.0, "hybrid", 512, 22.53),
        (3.0, "gru", 768, 54.82),
        (3.0, "tf", 768, 43.08),
    ],
)
def test_parameters_are_as_published(width, model, dim, millions):
    with torch.device("meta"):
        student = FrameMN(width=width, sequence_model=model, sequence_dim=dim or 256)
    counted = sum(p.numel() for p in student.parameters()) / 1e6
    assert counted == pytest.approx(millions, rel=5e-4)


@pytest.mark.parametrize(
    "width, billions",
    [(0.4, 0.181), (0.6, 0.376), (1.0, 0.947), (2.0, 3.624), (3.0, 8.031)],
)
def test_backbone_costs_what_was_calculated_for_the_published_one(width, billions):
    with torch.device("meta"):
        backbone = FrameBackbone(width)
    assert count_macs(backbone) / 1e9 == pytest.approx(billions, abs=1e-3)


# ---------------------------------------------------------------- laws of all members


@of_all_members
def test_member_scores_a_clip_alone_as_in_a_batch(model, width):
    # In double precision: random weights can magnify the rounding of single.
    student = own_member(model, width).double()
    loudness = torch.tensor([0.3, 3.0]).double().view(2, 1, 1, 1)
    clips = torch.randn(2, 1, 128, 90).double() * loudness
    with torch.no_grad():
        together = student(clips)
        for index in range(2):
            alone = student(clips[index : index + 1])
            for one, many in zip(alone, together, strict=True):
                assert one.shape == (1, *many.shape[1:])
                assert relative_error(one[0], many[index]) <= 1e-9
    assert relative_error(together.strong[0], together.strong[1]) > 1e-3


@of_all_members
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9, 130])
def test_member_scores_a_quarter_of_the_frames(model, width, frames):
    with torch.no_grad():
        output = shared_member(model, width)(torch.randn(2, 1, 128, frames))
    assert isinstance(output, FrameOutput)
    quarter = math.ceil(frames / 4)
    channels = {"none": CHANNELS[width], "gru": 64}.get(model, 32)
    assert output.strong.shape == (2, 3, quarter)
    assert output.weak.shape == (2, 4)
    assert output.embedding.shape == (2, quarter, channels)
    assert all(part.isfinite().all() for part in output)


@of_all_members
@pytest.mark.parametrize("level", [0.0, -2.3, 50.0])
def test_silence_and_noise_have_finite_scores(model, width, level):
    with torch.no_grad():
        output = shared_member(model, width)(torch.full((1, 1, 128, 40), level))
    assert all(part.isfinite().all() for part in output)


@of_all_members
def test_member_trains_every_parameter(model, width):
    student = own_member(model, width).train()
    strong, weak, _ = student(torch.randn(2, 1, 128, 40))
    (strong.square().sum() + weak.square().sum()).backward()
    without = {
        name
        for name, value in student.named_parameters()
        if value.requires_grad
        and (value.grad is None or not value.grad.isfinite().all())
    }
    assert without == set()
    fixed = [n for n, p in student.named_parameters() if not p.requires_grad]
    assert all(name.endswith("pos_encoding.freqs") for name in fixed)
    assert len(fixed) == (2 if model in ("tf", "attn") else 0)


@of_all_members
def test_member_repeats_itself_in_evaluation_alone(model, width):
    student = own_member(model, width)
    clip = torch.randn(2, 1, 128, 40)
    with torch.no_grad():
        assert torch.equal(student(clip).strong, student(clip).strong)
        student.train()
        torch.manual_seed(0)
        first, second = student(clip), student(clip)
    drops_out = model in ("tf", "tcn")
    assert torch.equal(first.strong, second.strong) == (not drops_out)


@of_all_members
def test_member_recovers_from_its_state_dict(model, width):
    other = FrameMN(**SMALL, width=width, sequence_model=model).eval()
    other.load_state_dict(shared_member(model, width).state_dict())
    clip = torch.randn(1, 1, 128, 40)
    with torch.no_grad():
        expected = shared_member(model, width)(clip).strong
        assert torch.equal(other(clip).strong, expected)


@pytest.mark.parametrize("model", SEQUENCE_MODELS)
def test_member_in_half_precision_is_near(model):
    student, clip = shared_member(model, 0.1), torch.randn(1, 1, 128, 400)
    with torch.no_grad():
        expected = student(clip)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scored = student(clip)
    assert relative_error(scored.strong.float(), expected.strong) < 0.2


@pytest.mark.parametrize("model", SEQUENCE_MODELS)
def test_inference_form_scores_alike(model):
    student, clips = shared_member(model, 0.1), torch.randn(6, 1, 128, 40)
    with torch.no_grad():
        expected, scored = student(clips), inference_form(student)(clips)
    assert isinstance(scored, FrameOutput)
    for one, other in zip(scored, expected, strict=True):
        assert relative_error(one, other) <= 1e-3


@pytest.mark.parametrize("model", SEQUENCE_MODELS)
def test_member_learns_a_tiny_batch(model):
    torch.manual_seed(0)
    student = FrameMN(3, width=0.1, sequence_model=model, sequence_dim=32, dropout=0.0)
    clips = torch.randn(4, 1, 32, 48)
    targets = (torch.rand(4, 3, 12) > 0.5).float()
    optimizer = torch.optim.Adam(
        (p for p in student.parameters() if p.requires_grad), lr=3e-3
    )
    losses = []
    for _ in range(60):
        loss = functional.binary_cross_entropy_with_logits(
            student(clips).strong, targets
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ---------------------------------------------------------------- backbone and heads


@pytest.mark.parametrize("bands, left", [(128, 1), (64, 1), (40, 1), (256, 2)])
def test_any_number_of_bands_scores(bands, left):
    student = shared_member("none", 0.1)
    log_mel = torch.randn(1, 1, bands, 41)
    with torch.no_grad():
        assert student.backbone.features(log_mel).shape == (1, 96, left, 11)
        assert student(log_mel).strong.shape == (1, 3, 11)


def test_backbone_has_the_entries_of_mn():
    prefix = "model.fmn."
    ours = {
        name.removeprefix(prefix): value.shape
        for name, value in FrameMN(3, width=0.1).state_dict().items()
        if name.startswith(prefix)
    }
    theirs = MN(width=0.1).state_dict()
    features = [name for name in theirs if name.startswith("features.")]
    assert ours == {name: theirs[name].shape for name in features}


def test_blocks_that_stride_have_no_residual():
    blocks = shared_member("none", 1 / 8).backbone.features[1:-1]
    has_residual = [
        number for number, each in enumerate(blocks, 1) if each.has_residual
    ]
    assert not {2, 3, 6, 8, 11, 15} & set(has_residual)
    assert {5, 9, 10, 12, 14} <= set(has_residual)


def test_weak_scores_are_the_mean_of_those_of_frames():
    student = shared_member("tf", 0.1)
    with torch.no_grad():
        output = student(torch.randn(2, 1, 128, 40))
        by_frame = student.weak_head(output.embedding)
    torch.testing.assert_close(output.weak, by_frame.mean(1))
    assert output.logits is output.weak
    assert student.class_layer() is student.weak_head


def test_attention_averages_probabilities():
    scores = HeadLayers(3 * torch.randn(2, 9, 5), torch.randn(2, 9, 5))
    probabilities, weights = scores.strong.sigmoid(), scores.weak.softmax(2)
    expected = (probabilities * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(attention_over_frames(scores).sigmoid(), expected)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_attention_is_finite_where_probabilities_are_not(logit):
    strong = torch.full((1, 4, 3), logit, requires_grad=True)
    weak = torch.tensor([0.0, 500.0, -500.0]).expand(1, 4, 3)
    scored = attention_over_frames(HeadLayers(strong, weak))
    scored.sum().backward()
    torch.testing.assert_close(scored, torch.full((1, 3), logit))
    assert strong.grad.isfinite().all()


@pytest.mark.parametrize("head", FRAME_HEADS)
def test_heads_share_their_entries(head):
    linear = FrameMN(3, width=0.1)
    other = FrameMN(3, width=0.1, head=head)
    other.load_state_dict(linear.state_dict())


def test_rotary_positions_turn_by_the_distance():
    positions = RotaryPositions(8)
    query, key = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 20, 8)
    products = positions(query) @ positions(key).transpose(2, 3)  # [1, 1, 20, 20]
    torch.testing.assert_close(products[..., 1:, 1:], products[..., :-1, :-1])


# ---------------------------------------------------------------- SpeechBrain


def test_checkpointer_recovers_a_student(tmp_path):
    student, clip = shared_member("hybrid", 0.1), torch.randn(1, 1, 128, 40)
    Checkpointer(tmp_path, {"student": student}).save_checkpoint()
    other = FrameMN(**SMALL, width=0.1, sequence_model="hybrid").eval()
    assert Checkpointer(tmp_path, {"student": other}).recover_if_possible()
    with torch.no_grad():
        assert torch.equal(other(clip).strong, student(clip).strong)


def test_yaml_builds_a_student():
    built = load_hyperpyyaml(
        "student: !new:efficientat_plugin.FrameMN\n"
        "  num_classes: 10\n  width: 0.1\n  sequence_model: gru\n"
    )["student"]
    assert isinstance(built, FrameMN) and built.num_weak_classes == 10
    assert built.options["sequence_model"] == "gru"
    assert built.describe() == "FrameMN of width 0.1 with gru sequence model"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "option, text",
    [
        ({"num_classes": 0}, "num_classes=0 .*at least 1"),
        ({"num_weak_classes": 0}, "num_weak_classes=0 .*at least 1"),
        ({"width": 0}, "width=0 .*greater than 0"),
        ({"dropout": 1.0}, r"dropout=1.0 .*\[0, 1\)"),
        ({"head": "mlp"}, "head='mlp' .*'linear', 'attention'"),
        ({"sequence_dim": 0}, "sequence_dim=0 .*at least 1"),
        ({"sequence_layers": 0}, "sequence_layers=0 .*at least 1"),
        ({"sequence_model": "lstm"}, "sequence_model='lstm' .*'none', 'tf', 'attn'"),
        ({"sequence_model": "mamba"}, "'mamba' .*CUDA.*'hybrid'"),
        (
            {"head": "attention", "num_weak_classes": 5},
            "head='attention' .*447 .*num_weak_classes=5 .*head='linear'",
        ),
        (
            {"sequence_model": "hybrid", "sequence_dim": 20},
            "sequence_dim=20 .*8 heads .*'hybrid'.*multiple of 8",
        ),
        (
            {"sequence_model": "tf", "sequence_dim": 130},
            "sequence_dim=130 .*8 heads .*'tf'.*multiple of 8",
        ),
        (
            {"sequence_model": "attn", "sequence_dim": 136},
            "sequence_dim=136 .*odd number .*multiple of 16",
        ),
    ],
)
def test_student_refuses_illegal_options(option, text):
    with pytest.raises(ValueError, match=text):
        FrameMN(**{"width": 0.1, **option})


@pytest.mark.parametrize("shape", [(2, 128, 100), (2, 3, 128, 100), (0, 1, 128, 9)])
def test_student_refuses_what_is_no_batch_of_log_mels(shape):
    with pytest.raises(ValueError, match="log_mel has shape"):
        shared_member("none", 0.1)(torch.zeros(shape))


def test_stages_are_the_published_ones():
    """Their numbers decide about the learning rates."""
    student = shared_member("tf", 0.1)
    stages = student.stages()
    assert len(stages) == 17
    parameters = {id(each) for stage in stages for each in stage.parameters()}
    assert parameters == {id(each) for each in student.backbone.parameters()}
