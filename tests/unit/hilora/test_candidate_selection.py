from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hilora.candidate_selection import descending, mass_candidates, threshold_candidates


class TestThreshold:
    """Equation E4, branch by branch."""

    @pytest.mark.parametrize(
        ("scores", "min_candidates", "chosen"),
        [
            ([0.5, -1.0, 2.0], 3, [2, 0]),
            ([0.1], 3, [0]),
            ([1.0, 1.0, 1.0], 1, [0, 1, 2]),
            # Zero is not above zero: the second branch, ceil(0) = 0, so k.
            ([0.0, -5.0, -1.0, -2.0], 3, [0, 2, 3]),
            ([-0.2, -0.1, -0.3, -0.4], 3, [1, 0, 2]),
            ([-3.2, -4.0, -5.0, -6.0, -7.0], 3, [0, 1, 2, 3]),
            ([-4.0, -5.0, -6.0, -7.0, -8.0], 3, [0, 1, 2, 3]),
            ([-9.0, -10.0], 3, [0, 1]),
            ([-0.5, -0.6, -0.7], 1, [0]),
            ([], 3, []),
        ],
    )
    def test_branches(self, scores, min_candidates, chosen):
        assert threshold_candidates(np.array(scores), min_candidates=min_candidates).tolist() == chosen


class TestMass:
    @pytest.mark.parametrize(
        ("posterior", "mass", "chosen"),
        [
            ([0.95, 0.05], 0.9, [0]),
            ([0.05, 0.95], 0.9, [1]),
            ([0.5, 0.4, 0.1], 0.9, [0, 1]),
            ([0.5, 0.39, 0.11], 0.9, [0, 1, 2]),
            ([0.25, 0.25, 0.25, 0.25], 0.5, [0, 1]),
            ([1.0, 0.0], 1.0, [0]),
            ([], 0.9, []),
        ],
    )
    def test_the_fewest_that_hold_it(self, posterior, mass, chosen):
        assert mass_candidates(np.array(posterior), mass=mass).tolist() == chosen

    @given(
        weights=arrays(np.float64, st.integers(1, 12), elements=st.floats(1e-6, 1.0)),
        mass=st.floats(0.05, 1.0),
    )
    def test_no_smaller_set_would_do(self, weights, mass):
        posterior = weights / weights.sum()
        chosen = mass_candidates(posterior, mass=mass)
        assert posterior[chosen].sum() >= mass - 1e-9
        assert len(chosen) == 1 or posterior[chosen[:-1]].sum() < mass


class TestOrder:
    def test_equal_values_keep_their_order(self):
        assert descending(np.array([1.0, 3.0, 1.0, 3.0])).tolist() == [1, 3, 0, 2]
