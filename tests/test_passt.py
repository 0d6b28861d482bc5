"""PaSST: published outputs and shapes, laws of patchout, short clips, refusals."""

import json

import numpy as np
import pytest
import torch
from fill_weights import fill_
from golden_vectors import GOLDEN

from efficientat_plugin.contracts import StudentOutput
from efficientat_plugin.cost.complexity import count_macs, measure
from efficientat_plugin.students.passt import PaSST
from efficientat_plugin.students.student import Student

# 2 rows of 9 columns of patches
SMALL = {
    "num_classes": 3,
    "n_mels": 32,
    "num_frames": 96,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
}
ROWS, COLUMNS = 2, 9


def small(**options):
    return PaSST(**{"frequency_stride": 16, **SMALL, **options})


def kept_tokens(passt, log_mel):
    """What the first block is given: [B, 2 + L, D]."""
    seen = []
    hook = passt.blocks.register_forward_pre_hook(lambda _, given: seen.append(*given))
    with torch.no_grad():
        passt(log_mel)
    hook.remove()
    return seen[0]


def label_positions_(passt):
    """Every patch is its row and its column, in the first two values of its token."""
    with torch.no_grad():
        for parameter in passt.parameters():
            parameter.zero_()
        passt.freq_new_pos_embed[0, 0, :, 0] = torch.arange(ROWS)
        passt.time_new_pos_embed[0, 1, 0] = torch.arange(COLUMNS)
    return passt


def kept_positions(passt, log_mel):
    """Rows and columns of the patches left, which all clips must have in common."""
    tokens = kept_tokens(passt, log_mel)[:, 2:, :2].int()
    assert all(torch.equal(clip, tokens[0]) for clip in tokens)
    return [tuple(position) for position in tokens[0].tolist()]


# ---------------------------------------------------------------- as published


@pytest.fixture(scope="module")
def golden():
    entry = json.loads((GOLDEN / "passt.json").read_text())["passt_s"]
    return entry, np.load(GOLDEN / "passt.npz")


@pytest.mark.slow
def test_passt_scores_as_published(golden):
    _, arrays = golden
    with torch.device("meta"):  # nothing is drawn that would be overwritten
        passt = PaSST()
    passt = fill_(passt.to_empty(device="cpu")).eval()
    with torch.no_grad():  # of one clip: it takes seconds
        output = passt(torch.from_numpy(arrays["x"][:1]))
    assert isinstance(passt, Student) and isinstance(output, StudentOutput)
    for name, value in output._asdict().items():
        expected = torch.from_numpy(arrays[f"passt_s/{name}"][:1])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


def test_state_dict_has_published_names_and_shapes(golden):
    entry, _ = golden
    with torch.device("meta"):
        passt = PaSST()
    shapes = {name: list(value.shape) for name, value in passt.state_dict().items()}
    assert list(shapes.items()) == list(entry["keys"].items())
    assert sum(p.numel() for p in passt.parameters()) == entry["params"]


@pytest.mark.parametrize(
    "stride, num_frames, grid",
    [
        (10, 998, (12, 99)),
        (12, 998, (10, 83)),
        (14, 998, (9, 71)),
        (16, 998, (8, 62)),
        (20, 998, (6, 50)),
        (10, 2000, (12, 200)),
        (10, 3000, (12, 300)),
        (10, 3200, (12, 320)),
    ],
)
def test_positions_are_as_published(stride, num_frames, grid):
    with torch.device("meta"):
        passt = PaSST(
            num_frames=num_frames,
            frequency_stride=stride,
            time_stride=stride,
            depth=1,
        )
        patches = passt.patch_embed(torch.zeros(1, 1, 128, passt.max_frames))
        positions = passt.freq_new_pos_embed.shape[2], passt.time_new_pos_embed.shape[3]
    assert positions == patches.shape[2:] == grid


# ---------------------------------------------------------------- patchout


@pytest.mark.parametrize(
    "patchout, left",
    [
        ({}, 18),
        ({"patchout_time": 4}, 10),
        ({"patchout_frequency": 1}, 9),
        ({"patchout_unstructured": 7}, 11),
        ({"patchout_time": 4, "patchout_frequency": 1}, 5),
        (
            {"patchout_time": 2, "patchout_frequency": 1, "patchout_unstructured": 3},
            4,
        ),
    ],
)
def test_patchout_leaves_as_many_in_training_and_all_in_evaluation(patchout, left):
    passt, clips = small(**patchout), torch.randn(2, 1, 32, 96)
    assert kept_tokens(passt.train(), clips).shape == (2, 2 + left, 32)
    assert kept_tokens(passt.eval(), clips).shape == (2, 2 + 18, 32)
    whole = small().eval()
    whole.load_state_dict(passt.state_dict())
    assert torch.equal(passt(clips).logits, whole(clips).logits)


def test_patches_keep_their_positions_and_their_order():
    clips = torch.randn(3, 1, 32, 96)
    everything = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    structured = label_positions_(small(patchout_time=4, patchout_frequency=1)).train()
    for _ in range(5):
        left = kept_positions(structured, clips)
        rows = sorted({row for row, _ in left})
        columns = sorted({column for _, column in left})
        assert (len(rows), len(columns)) == (1, 5)
        assert left == [(row, column) for row in rows for column in columns]
    unstructured = label_positions_(small(patchout_unstructured=7)).train()
    for _ in range(5):
        left = kept_positions(unstructured, clips)
        assert len(left) == 11 and left == sorted(left) and set(left) < set(everything)
    assert kept_positions(unstructured.eval(), clips) == everything


def test_patches_that_are_left_are_what_they_were():
    passt = small(patchout_time=4, patchout_unstructured=3)
    clips = torch.randn(2, 1, 32, 96)
    whole = kept_tokens(passt.eval(), clips)
    left = kept_tokens(passt.train(), clips)
    torch.testing.assert_close(left[:, :2], whole[:, :2])
    for token in left[0, 2:]:
        assert (whole[0, 2:] - token).abs().amax(1).min() < 1e-6


def test_every_patch_is_left_alike_often():
    passt = label_positions_(small(depth=1, patchout_unstructured=9)).train()
    clips = torch.randn(1, 1, 32, 96)
    times = torch.zeros(ROWS, COLUMNS)
    for _ in range(200):
        for row, column in kept_positions(passt, clips):
            times[row, column] += 1
    # Half of 200 draws each, and a standard deviation of 7
    assert times.sum() == 200 * 9
    assert (times - 100).abs().max() < 32


def test_seeded_step_repeats():
    passt = small(patchout_time=2, patchout_frequency=1, patchout_unstructured=2)
    clips = torch.randn(2, 1, 32, 60)

    def step(seed):
        torch.manual_seed(seed)
        passt.train().zero_grad()
        loss = passt(clips).logits.square().sum()
        loss.backward()
        return loss.detach(), passt.patch_embed.proj.weight.grad.clone()

    for first, second in zip(step(3), step(3), strict=True):
        assert torch.equal(first, second)
    assert len({step(seed)[0].item() for seed in range(6)}) == 6


# ---------------------------------------------------------------- clips of any length


def test_short_clips_have_the_first_positions_in_evaluation():
    passt = label_positions_(small()).eval()
    left = kept_positions(passt, torch.randn(2, 1, 32, 50))  # 4 columns
    assert left == [(row, column) for row in range(ROWS) for column in range(4)]


def test_short_clips_have_any_stretch_of_positions_in_training():
    passt, clips = label_positions_(small()).train(), torch.randn(2, 1, 32, 50)
    firsts = set()
    for _ in range(60):
        left = kept_positions(passt, clips)
        first = left[0][1]
        assert left == [(row, first + i) for row in range(ROWS) for i in range(4)]
        firsts.add(first)
    assert firsts == set(range(COLUMNS - 4 + 1))


@pytest.mark.parametrize("time_stride", [10, 12, 14, 16, 20])
def test_every_legal_length_scores_and_no_other(time_stride):
    passt = small(time_stride=time_stride).eval()
    longest = passt.max_frames
    assert longest >= 96
    for frames in (16, 17, longest):
        assert passt(torch.randn(1, 1, 32, frames)).logits.isfinite().all()
    for frames in (15, longest + 1):
        with pytest.raises(ValueError, match=f"log_mel has {frames} frames"):
            passt(torch.randn(1, 1, 32, frames))


def test_ten_seconds_are_legal_for_all_published_strides():
    for stride in (10, 12, 14, 16):
        with torch.device("meta"):
            passt = PaSST(time_stride=stride, frequency_stride=stride, depth=1)
        assert passt.max_frames >= 1000


# ---------------------------------------------------------------- laws of a student


def test_passt_scores_a_clip_alone_as_in_a_batch():
    passt, clips = small().double().eval(), torch.randn(2, 1, 32, 96).double()
    together = passt(clips)
    for index in range(2):
        alone = passt(clips[index : index + 1])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[index])


def test_passt_recovers_from_its_state_dict():
    passt, other = small().eval(), small().eval()
    clips = torch.randn(2, 1, 32, 96)
    assert not torch.equal(passt(clips).logits, other(clips).logits)
    other.load_state_dict(passt.state_dict())
    assert torch.equal(passt(clips).logits, other(clips).logits)


def test_gradient_reaches_everything_that_is_used():
    passt = small(patchout_time=2, patchout_unstructured=1).train()
    passt(torch.randn(2, 1, 32, 96)).logits.square().sum().backward()
    for name, value in passt.named_parameters():
        if name.startswith("head_dist."):
            assert value.grad is None and not value.requires_grad
        else:
            assert value.grad.isfinite().all() and value.grad.any(), name


def test_fresh_weights_are_small_and_biases_nothing():
    passt = PaSST(num_classes=200, embed_dim=96, depth=1)
    for name, value in passt.named_parameters():
        if "norm" in name or name.startswith("head.0"):
            expected = torch.full_like(value, float(name.endswith("weight")))
            assert torch.equal(value, expected), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.25), name


def test_passt_overfits_a_handful_of_clips():
    torch.manual_seed(0)
    passt = small(patchout_time=2, patchout_unstructured=1).train()
    clips, labels = torch.randn(6, 1, 32, 96), torch.eye(3).repeat(2, 1)
    optimizer = torch.optim.AdamW(passt.parameters(), lr=2e-3)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(120):
        optimizer.zero_grad()
        bce(passt(clips).logits, labels).backward()
        optimizer.step()
    passt.eval()
    with torch.no_grad():
        assert bce(passt(clips).logits, labels) < 0.1


# ---------------------------------------------------------------- complexity


def test_macs_are_those_of_hand_calculation():
    """Products of patches, linear layers and attention, and a sum for every bias."""
    tokens, size, hidden = 2 + ROWS * COLUMNS, 32, 128
    patches = ROWS * COLUMNS * size * (16 * 16 + 1)
    attention = 2 * tokens * tokens * size
    linear = tokens * sum(
        (inputs + 1) * outputs
        for inputs, outputs in (
            (size, 3 * size),
            (size, size),
            (size, hidden),
            (hidden, size),
        )
    )
    head = (size + 1) * 3
    macs = count_macs(small(), n_mels=32, n_frames=96)
    assert macs == patches + 2 * (attention + linear) + head


def test_complexity_of_passt_is_measured():
    passt = small(patchout_time=4).train()
    result = measure(passt, n_mels=32, n_frames=96, rounds=1)
    assert passt.training
    unused = sum(p.numel() for p in passt.head_dist.parameters())
    assert result.state_values == result.parameters + unused
    assert result.milliseconds_per_clip > 0 and result.peak_memory > 0
    assert result.receptive_field is None  # attention covers the whole clip


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "option, text",
    [
        ({"num_classes": 0}, "num_classes=0 .*at least 1"),
        ({"n_mels": 15}, "n_mels=15 .*at least 16"),
        ({"num_frames": 15}, "num_frames=15 .*at least 16"),
        ({"frequency_stride": 0}, "frequency_stride=0 .*at least 1"),
        ({"time_stride": 1.5}, "time_stride=1.5 .*integer"),
        ({"embed_dim": 0}, "embed_dim=0 "),
        ({"depth": 0}, "depth=0 "),
        ({"num_heads": 0}, "num_heads=0 "),
        ({"embed_dim": 30}, "embed_dim=30 is not a multiple of num_heads=4"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 .*greater than 0"),
        ({"patchout_time": -1}, "patchout_time=-1 .*at least 0"),
        ({"patchout_frequency": True}, "patchout_frequency=True "),
        ({"patchout_unstructured": "4"}, "patchout_unstructured='4' "),
    ],
)
def test_passt_refuses_illegal_options(option, text):
    with pytest.raises(ValueError, match=text):
        small(**option)


@pytest.mark.parametrize(
    "shape, text",
    [
        ((2, 32, 96), "unsqueeze"),
        ((0, 1, 32, 96), "at least one clip"),
        ((1, 1, 64, 96), "64 mel bins, .*n_mels=32; .*n_mels=64"),
        ((1, 1, 32, 9), "9 frames, fewer than the 16 of a patch"),
        (
            (1, 1, 32, 106),
            "num_frames=96 are for 16 to 105; .*num_frames=106, or .*105",
        ),
    ],
)
def test_passt_refuses_what_it_has_no_positions_for(shape, text):
    with pytest.raises(ValueError, match=text):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    "option, present",
    [
        ({"patchout_time": 4}, 4),
        ({"patchout_frequency": 2}, 2),
        ({"patchout_time": 1, "patchout_unstructured": 6}, 6),
    ],
)
def test_patchout_that_leaves_nothing_is_refused(option, present):
    passt, clips = small(**option).train(), torch.zeros(1, 1, 32, 50)
    with pytest.raises(ValueError, match=f"removes all of the {present} that"):
        passt(clips)
    assert passt.eval()(clips).logits.shape == (1, 3)
