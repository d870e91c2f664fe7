from __future__ import annotations

import numpy as np
import pytest

from hilora.confusability import routed_right_bound, whitened_distances, whitened_pairwise_distances
from hilora.empirical_bayes import fit_pooled_eb
from hilora.pool_audit import SAME_TASK_RATIO, audit_pool
from tests.builders.profiles import clustered_samples

COUNTS = [6, 9, 6, 2, 9, 6, 1, 12]
FITTED = fit_pooled_eb(clustered_samples(num_samples=COUNTS, dimension=12, spread=1.5))
NUM_SAMPLES = np.array(COUNTS, dtype=np.intp)


class TestDistances:
    def test_some_rows_are_those_of_all_pairs(self):
        rows = np.array([5, 0, 3])
        some = whitened_distances(FITTED.gaussians, rows)
        expected = whitened_pairwise_distances(FITTED.gaussians)[rows]
        np.testing.assert_allclose(some, expected, atol=1e-9)


class TestAudit:
    @pytest.mark.parametrize("batch", [256, 3])
    def test_bounds_and_rivals_are_those_of_the_whole_matrix(self, batch, monkeypatch):
        monkeypatch.setattr("hilora.pool_audit._ROWS_AT_A_TIME", batch)
        audit = audit_pool(FITTED, NUM_SAMPLES, num_rivals=3)
        distances = whitened_pairwise_distances(FITTED.gaussians)
        np.testing.assert_allclose(audit.routed_right_B, routed_right_bound(distances), atol=1e-9)
        np.fill_diagonal(distances, np.inf)
        np.testing.assert_array_equal(audit.rivals_BR, np.argsort(distances, axis=1)[:, :3])
        np.testing.assert_allclose(audit.distances_BR, np.sort(distances, axis=1)[:, :3], atol=1e-9)

    def test_one_adapter_can_be_audited_alone(self):
        whole = audit_pool(FITTED, NUM_SAMPLES, num_rivals=3)
        one = audit_pool(FITTED, NUM_SAMPLES, num_rivals=3, rows=np.array([4]))
        np.testing.assert_array_equal(one.rivals_BR[0], whole.rivals_BR[4])
        np.testing.assert_allclose(one.same_task_BR[0], whole.same_task_BR[4])

    @pytest.mark.parametrize("counts", [[5], [5, 5]])
    def test_tiny_pools_have_the_rivals_there_are(self, counts):
        fitted = fit_pooled_eb(clustered_samples(num_samples=counts, dimension=12))
        audit = audit_pool(fitted, np.array(counts), num_rivals=5)
        assert audit.rivals_BR.shape == (len(counts), len(counts) - 1)
        assert np.isfinite(audit.routed_right_B).all()


class TestSameTaskRatio:
    def test_two_halves_of_one_task_are_near_1_and_other_tasks_are_not(self):
        blocks = clustered_samples(num_samples=[40] * 30, dimension=24, spread=1.0)
        halves = [block[:20] for block in blocks] + [blocks[0][20:]]
        audit = audit_pool(fit_pooled_eb(halves), np.full(31, 20), num_rivals=2)
        assert audit.rivals_BR[0, 0] == 30 and audit.rivals_BR[30, 0] == 0
        assert 0.4 < audit.same_task_BR[0, 0] < SAME_TASK_RATIO
        assert audit.same_task_BR[0, 1] > SAME_TASK_RATIO
        assert (audit.same_task_BR[1:30] > SAME_TASK_RATIO).all()

    def test_it_is_the_whitened_distance_of_the_means_over_their_noise(self):
        blocks = clustered_samples(num_samples=COUNTS, dimension=12, spread=1.5)
        audit = audit_pool(FITTED, NUM_SAMPLES, num_rivals=1)
        rival = int(audit.rivals_BR[1, 0])
        gap = blocks[1].mean(axis=0, dtype=np.float64) - blocks[rival].mean(axis=0, dtype=np.float64)
        white = FITTED.space.within.whitening_EE @ gap
        expected = (white**2).sum() / (12 * (1 / COUNTS[1] + 1 / COUNTS[rival]))
        assert audit.same_task_BR[1, 0] == pytest.approx(expected, rel=1e-6)
