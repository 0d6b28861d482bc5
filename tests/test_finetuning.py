"""Which parameters learn, how fast, and which epoch is kept."""

import pytest

from efficientat_plugin.students.dymn import DyMN
from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.finetuning import (
    layerwise_groups,
    plan_epochs,
    weights_to_keep,
)
from efficientat_plugin.training.probe import Probe


@pytest.mark.parametrize(
    ("clips_per_class", "num_groups", "share_right", "epochs", "valid_share"),
    [
        (4, None, 0.9, 0, 0.0),
        (4, None, 0.5, 0, 0.0),
        (4, None, 0.49, 80, 0.0),  # each clip is needed to learn from
        (4, None, None, 0, 0.0),
        (12, None, 0.9, 80, 0.25),
        (12, None, 0.49, 80, 0.0),
        (12, None, None, 80, 0.25),
        (40, None, 0.1, 80, 0.15),
        (100, 4, 0.2, 80, 0.0),  # one group of four is too many to hold out
        (100, 20, 0.2, 80, 0.15),
    ],
)
def test_with_few_clips_the_network_learns_what_no_probe_knows(
    clips_per_class, num_groups, share_right, epochs, valid_share
):
    plan = plan_epochs(
        2 * clips_per_class, 2, 32, num_groups, lambda: Probe(10.0, share_right)
    )
    assert plan[:2] == (epochs, valid_share)


@pytest.mark.parametrize(
    ("start", "best", "newest", "kept"),
    [
        (0.5, 1.0, 1.0, "newest"),  # as good as the best, and trained longest
        (0.5, 1.0, 0.995, "newest"),  # within a standard error
        (0.5, 1.0, 0.9, "best"),
        (0.95, 0.95, 0.94, "start"),
        (0.95, 0.955, 0.955, "start"),  # better by chance
        (0.95, 0.99, 0.99, "newest"),
    ],
)
def test_what_is_kept_is_better_beyond_chance(start, best, newest, kept):
    assert weights_to_keep(start, best, newest, num_clips=200) == kept


@pytest.mark.parametrize("family", [MN, DyMN])
def test_groups_hold_every_parameter_once(family):
    student = family(3, width=0.1)
    groups = layerwise_groups(student, layer_decay=0.9)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in student.parameters())
    scales = [group["lr_scale"] for group in groups]
    assert scales == sorted(scales) and scales[-1] == 1.0 and len(scales) == 18
    head = layerwise_groups(student, trainable="head")
    assert (
        len(head) == 1
        and not student.state_dict()[
            "in_c.0.weight" if family is DyMN else "features.0.0.weight"
        ].requires_grad
    )


def test_options_out_of_range_are_refused():
    student = MN(3, width=0.1)
    with pytest.raises(ValueError, match="trainable='tail'"):
        layerwise_groups(student, trainable="tail")
    with pytest.raises(ValueError, match="layer_decay=0 must be above 0"):
        layerwise_groups(student, layer_decay=0)
