from __future__ import annotations

import numpy as np
import pytest

from hilora.gaussian import CovarianceFamily, fit_gaussian
from hilora.stacked_gaussians import StackedGaussians


@pytest.mark.parametrize("family", [CovarianceFamily.FULL, CovarianceFamily.DIAGONAL, CovarianceFamily.SPHERICAL])
def test_each_is_asked_as_if_alone(family):
    rng = np.random.default_rng(7)
    # One sample has no directions, and a large pool has adapters of every size.
    blocks = [rng.normal(size=(num, 24)) + 3 * rng.normal(size=24) for num in (5, 1, 20, 2, 1)]
    gaussians = [fit_gaussian(block, family=family) for block in blocks]
    stacked = StackedGaussians(gaussians)
    for z_E in (blocks[2][0], rng.normal(size=24).astype(np.float32)):
        expected = [gaussian.log_likelihood(z_E) for gaussian in gaussians]
        np.testing.assert_allclose(stacked.log_likelihood(z_E), expected, rtol=1e-10)


def test_adapters_without_any_direction():
    gaussians = [fit_gaussian(np.full((1, 4), value), family=CovarianceFamily.FULL) for value in (0.0, 1.0)]
    found = StackedGaussians(gaussians).log_likelihood(np.zeros(4))
    np.testing.assert_allclose(found, [gaussian.log_likelihood(np.zeros(4)) for gaussian in gaussians])
    assert found[0] > found[1]
