from __future__ import annotations

import numpy as np
import pytest

from hilora import held_out_samples
from hilora.empirical_bayes import fit_pooled_eb
from hilora.held_out_samples import choose_calibration
from hilora.pool_statistics import PoolStatistics
from tests.builders.profiles import clustered_samples

BLOCKS = clustered_samples(num_samples=[20, 7, 1, 20, 12, 20, 2, 20], dimension=12)


@pytest.fixture
def few_are_chosen(monkeypatch):
    monkeypatch.setattr(held_out_samples, "_MAX_ADAPTERS", 5)


def the_same(found: PoolStatistics, expected: PoolStatistics) -> None:
    np.testing.assert_allclose(found.means_LE, expected.means_LE, atol=1e-12)
    np.testing.assert_array_equal(found.num_samples_L, expected.num_samples_L)
    np.testing.assert_allclose(found.residuals.scatter_EE, expected.residuals.scatter_EE, atol=1e-12)
    assert found.residuals.num_residuals == expected.residuals.num_residuals
    assert found.residuals.fourth_powers == pytest.approx(expected.residuals.fourth_powers)


class TestWholePool:
    def test_it_is_the_sum_over_all_adapters_however_it_is_divided(self, few_are_chosen):
        calibration = choose_calibration(BLOCKS)
        assert len(calibration.chosen_C) == 5
        the_same(calibration.whole_pool(), PoolStatistics.of(BLOCKS))

    def test_batches_add_up(self, monkeypatch):
        whole = PoolStatistics.of(BLOCKS)
        monkeypatch.setattr("hilora.pool_statistics._BATCH_ROWS", 25)
        the_same(PoolStatistics.of(BLOCKS), whole)

    @pytest.mark.parametrize("blocks", [[], [np.ones((0, 3))], [np.ones((30, 3)), np.ones((1, 4))]])
    def test_what_cannot_be_summed_is_refused(self, blocks, monkeypatch):
        monkeypatch.setattr("hilora.pool_statistics._BATCH_ROWS", 25)
        with pytest.raises(ValueError, match=r"at least one|dimensions"):
            PoolStatistics.of(blocks)


class TestFolds:
    def test_a_fold_is_the_pool_without_the_texts_of_the_fold(self, few_are_chosen):
        calibration = choose_calibration(BLOCKS)
        for number, fold in enumerate(calibration.folds()):
            kept = [
                block[[place % 5 != number or len(block) == 1 for place in range(len(block))]]
                if idx in calibration.chosen_C
                else block
                for idx, block in enumerate(BLOCKS)
            ]
            the_same(fold.statistics, PoolStatistics.of(kept))
            for row, idx in zip(fold.held_out_NE, fold.true_idx_N, strict=True):
                assert (np.abs(BLOCKS[idx] - row).sum(axis=1) < 1e-6).any()

    def test_the_choice_is_the_same_every_time(self, few_are_chosen):
        first, second = choose_calibration(BLOCKS), choose_calibration(BLOCKS)
        np.testing.assert_array_equal(first.chosen_C, second.chosen_C)

    def test_a_part_of_the_adapters_gives_nearly_the_temperature_of_all(self, monkeypatch):
        blocks = clustered_samples(num_samples=[20] * 60, dimension=24, spread=1.5)
        of_all = fit_pooled_eb(blocks).temperature
        monkeypatch.setattr(held_out_samples, "_MAX_ADAPTERS", 30)
        assert fit_pooled_eb(blocks).temperature == pytest.approx(of_all, rel=0.15)
