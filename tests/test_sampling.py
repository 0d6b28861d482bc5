"""Which clips an epoch draws: reproducibly, each once before any twice, balanced."""

from collections import Counter

import numpy as np
import pytest
from golden_vectors import GOLDEN
from speechbrain.dataio.sampler import DistributedSamplerWrapper

from efficientat_plugin.data.sampling import (
    Draw,
    Draws,
    PlaceInEpoch,
    class_balanced_weights,
)

HEAVY_FIRST = np.array([10.0] * 10 + [1.0] * 90)
# How the draws are made: of all alike, or by weight.
KINDS = {"alike": None, "weighted": HEAVY_FIRST}


def _epoch(draws, epoch):
    draws.set_epoch(epoch)
    return list(draws)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_carry_their_epoch_and_position(kind):
    drawn = _epoch(Draws(100, 40, KINDS[kind]), epoch=3)
    assert all(isinstance(draw, Draw) and draw.epoch == 3 for draw in drawn)
    assert [draw.position for draw in drawn] == list(range(40))
    assert all(type(draw.row) is int for draw in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_a_function_of_seed_and_epoch(kind):
    def rows(seed, epoch):
        draws = Draws(100, 40, KINDS[kind], seed)
        _epoch(draws, 7)  # what was drawn before must not matter
        return [draw.row for draw in _epoch(draws, epoch)]

    assert rows(seed=1, epoch=2) == rows(seed=1, epoch=2)
    assert rows(seed=1, epoch=2) != rows(seed=1, epoch=3)
    assert rows(seed=1, epoch=2) != rows(seed=9, epoch=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clips_per_epoch", [None, 60])
def test_no_row_is_drawn_twice(kind, clips_per_epoch):
    draws = Draws(100, clips_per_epoch, KINDS[kind])
    assert len(draws) == (clips_per_epoch or 100)
    rows = [draw.row for draw in draws]
    assert len(rows) == len(set(rows)) == len(draws)
    assert set(rows) <= set(range(100))


def test_every_row_is_drawn_once_before_any_twice():
    rows = [draw.row for draw in Draws(5, clips_per_epoch=13)]
    assert len(rows) == 13
    assert set(rows[:5]) == set(rows[5:10]) == set(range(5))
    assert rows[:5] != rows[5:10]  # each time in another order
    assert len(set(rows[10:])) == 3


def test_heavy_rows_are_drawn_more_often():
    draws = Draws(100, 10, HEAVY_FIRST)
    counts = Counter(draw.row for epoch in range(300) for draw in _epoch(draws, epoch))
    heavy = sum(counts[row] for row in range(10)) / 3000
    # Of the first draw 100 / 190 are heavy, and fewer of the later ones.
    assert 0.35 < heavy < 100 / 190
    assert len(counts) == 100  # and the light ones too


@pytest.mark.parametrize(
    ("num_rows", "clips_per_epoch", "weights", "message"),
    [
        (0, None, None, "clips_per_epoch=0 of 0 clips"),
        (10, 0, None, "clips_per_epoch=0 of 10 clips"),
        (10, -1, None, "clips_per_epoch=-1 of 10 clips"),
        (10, 11, [1.0] * 10, "clips_per_epoch=11 cannot be drawn with class balance"),
    ],
)
def test_draws_refuse(num_rows, clips_per_epoch, weights, message):
    with pytest.raises(ValueError, match=message):
        Draws(num_rows, clips_per_epoch, weights)


# --- Class balance --------------------------------------------------------------


def test_weights_are_the_published_ones():
    golden = np.load(GOLDEN / "training_math.npz")
    targets = golden["sampler_targets"]
    assert targets.any(axis=1).all()
    indices = [np.flatnonzero(target) for target in targets]
    weights = class_balanced_weights(indices, targets.shape[1])
    np.testing.assert_allclose(weights, golden["sampler_weights"], rtol=1e-5)


def test_weights_are_the_formula():
    # Class 0 has two clips, class 1 one.
    weights = class_balanced_weights([[0], [0, 1]], num_classes=3)
    assert weights.tolist() == pytest.approx([1000 / 102, 1000 / 102 + 1000 / 101])


def test_unlabelled_clips_weigh_as_the_others_on_average():
    labelled = [[0], [0, 1], [2]]
    expected = class_balanced_weights(labelled, num_classes=3)
    weights = class_balanced_weights([[], *labelled, []], num_classes=3)
    assert weights[1:4].tolist() == expected.tolist()
    assert weights[[0, 4]].tolist() == pytest.approx([expected.mean()] * 2)


def test_clips_weigh_alike_where_none_is_labelled():
    assert class_balanced_weights([[], []], num_classes=3).tolist() == [1, 1]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_rows", [1, 7, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_processes_share_draws_as_speechbrain_deals_them(
    kind, world_size, num_rows, drop_last
):
    weights = KINDS[kind] if kind == "alike" else HEAVY_FIRST[:num_rows]
    for rank in range(world_size):
        ours, theirs = (Draws(num_rows, None, weights) for _ in range(2))
        ours.deal(rank, world_size, drop_last)
        dealt = DistributedSamplerWrapper(
            theirs,
            num_replicas=world_size,
            rank=rank,
            shuffle=False,
            drop_last=drop_last,
        )
        for sampler in (ours, dealt):
            sampler.set_epoch(3)
        assert len(ours) == len(dealt)
        if len(dealt) > 1:  # else SpeechBrain's cannot be iterated
            assert [*ours] == [*dealt]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2), (2, 2)])
def test_other_processes_draw_the_rest_of_an_epoch(before, after):
    """Each clip once, whoever drew the first of them."""
    drawn = []
    for rank in range(before):
        draws = Draws(24, seed=5)
        draws.deal(rank, before, drop_last=True)
        drawn += [*draws][:4]
    place = PlaceInEpoch(Draws(24), clips_per_step=2 * before)
    for rank in range(after):
        draws = Draws(24, seed=5)
        draws.deal(rank, after, drop_last=True)
        draws.start = place.clips_drawn(step=2)
        drawn += [*draws]
    assert sorted(draw.position for draw in drawn) == [*range(24)]
    assert sorted(draw.row for draw in drawn) == [*range(24)]
