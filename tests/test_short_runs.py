"""How a student is prepared for a short run, and what cannot be."""

import pytest

from efficientat_plugin.students.mn import MN
from efficientat_plugin.training.short_runs import prepare_for_short_run


def test_a_short_run_needs_the_bias_of_an_mlp_head():
    with pytest.raises(
        ValueError, match="FullyConvolutional head has no .* with head='mlp'"
    ):
        prepare_for_short_run(MN(2, width=0.1, head="fully_convolutional"), prior=0.1)
    with pytest.raises(ValueError, match="prior=1 must be between 0 and 1"):
        prepare_for_short_run(MN(2, width=0.1), prior=1)
