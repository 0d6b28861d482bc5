"""A student against its teacher, without a label."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from efficientat_plugin.contracts import TeacherTarget
from efficientat_plugin.evaluation.agreement import AgreementStats

IDS = ["a", "b", "c", "d"]


def stats_of(theirs, known=None, target="multilabel"):
    known = torch.ones(len(theirs), dtype=torch.bool) if known is None else known
    rows = {clip: row for row, clip in enumerate(IDS)}

    def look_up(ids):
        places = [rows[clip] for clip in ids]
        return TeacherTarget(theirs[places], known[places])

    return AgreementStats(look_up, target)


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_equal_logits_agree_fully(target):
    theirs = torch.randn(4, 5)
    stats = stats_of(theirs, target=target)
    stats.append(IDS, theirs)
    scores = stats.summarize()
    assert (scores.agreement, scores.divergence, scores.difference) == (1.0, 0.0, 0.0)
    assert scores.explained == 1.0


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_the_divergence_is_that_of_torch(target):
    theirs, ours = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    stats = stats_of(theirs, target=target)
    stats.append(IDS[:3], ours[:3])
    stats.append(IDS[3:], ours[3:])
    scores = stats.summarize()
    if target == "multiclass":
        expected = functional.kl_div(
            ours.log_softmax(1), theirs.softmax(1), reduction="batchmean"
        )
    else:
        cost = functional.binary_cross_entropy_with_logits
        each = cost(ours, theirs.sigmoid(), reduction="sum")
        expected = (each - cost(theirs, theirs.sigmoid(), reduction="sum")) / 4
    assert scores.divergence == pytest.approx(float(expected), rel=1e-5)
    assert scores.agreement == float(
        (theirs.argmax(1) == ours.argmax(1)).double().mean()
    )
    np.testing.assert_allclose(scores.difference_by_class.mean(), scores.difference)


@pytest.mark.parametrize("target", ["multilabel", "multiclass"])
def test_the_average_output_explains_nothing(target):
    theirs = torch.randn(4, 5).double()
    likely = theirs.sigmoid() if target == "multilabel" else theirs.softmax(1)
    average = likely.mean(0)
    ours = average.logit() if target == "multilabel" else average.log()
    stats = stats_of(theirs, target=target)
    stats.append(IDS, ours.expand(4, -1))
    assert stats.summarize().explained == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("logit", [0.3, -2000.0])
def test_where_there_is_nothing_to_explain_nothing_explodes(logit):
    theirs = torch.full((4, 5), logit)
    theirs[:, 0] = 1.0
    alike, apart = stats_of(theirs), stats_of(theirs)
    alike.append(IDS, theirs)
    apart.append(IDS, theirs + 1.0)
    assert alike.summarize().explained == 1.0
    assert apart.summarize().explained == 0.0


def test_groups_are_compared_apart():
    stats = stats_of(torch.eye(4))
    stats.append(IDS, torch.eye(4)[[0, 1, 3, 2]])
    found = stats.by_group(dict(zip(IDS, "xxyy", strict=True)))
    assert found["x"].agreement == 1.0 and found["y"].agreement == 0.0


def test_clips_without_teacher_logits_are_left_out():
    theirs = torch.eye(4) * 5
    stats = stats_of(theirs, torch.tensor([True, True, False, False]))
    stats.append(IDS, theirs.flip(0) + theirs * 2 * torch.eye(4)[[0]].T)
    assert stats.summarize().num_clips == 2
    deaf = stats_of(theirs, torch.zeros(4, dtype=torch.bool))
    deaf.append(IDS, theirs)
    with pytest.raises(ValueError, match="no clip was scored"):
        deaf.summarize()


def test_a_student_that_has_diverged_is_refused():
    stats = stats_of(torch.zeros(4, 2))
    stats.append(IDS, torch.full((4, 2), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        stats.summarize()
    with pytest.raises(ValueError, match="target='both' is not known"):
        stats_of(torch.zeros(4, 2), target="both")
