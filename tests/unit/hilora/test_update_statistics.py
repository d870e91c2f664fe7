from __future__ import annotations

import pytest
import torch

from hilora.adapter import DecomposedAdapter, LoRAAdapter, LoRAFactors, RankOneComponents, RocBasis
from hilora.decomposition import decompose, delta_weight
from hilora.update_statistics import UpdateStatistics, update_statistics
from tests.builders.adapters import Q_PROJ, random_adapter


def dense(adapter: LoRAAdapter) -> dict[str, torch.Tensor]:
    decomposed = decompose(adapter, basis=RocBasis.TRAINED)
    return {path: delta_weight(rocs).double() for path, rocs in decomposed.modules.items()}


class TestAgainstADenseSvd:
    @pytest.mark.parametrize("rank", [1, 4, 16])
    def test_every_module(self, rank):
        adapter = random_adapter(rank=rank, seed=3)
        statistics = update_statistics(decompose(adapter, basis=RocBasis.SVD))
        for path, weight in dense(adapter).items():
            module = statistics.modules[path]
            singular = torch.linalg.svdvals(weight)
            num = min(rank, *weight.shape)
            assert module.singular_values[:num] == pytest.approx(singular[:num].tolist(), rel=1e-4)
            assert len(module.singular_values) == rank
            assert module.frobenius_norm == pytest.approx(float(torch.linalg.matrix_norm(weight)), rel=1e-4)
            assert module.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(weight, ord=2)), rel=1e-4)
            assert module.stable_rank == pytest.approx(float((singular**2).sum() / singular[0] ** 2), rel=1e-4)

    def test_the_whole_is_the_block_diagonal_update(self):
        adapter = random_adapter(seed=5)
        statistics = update_statistics(decompose(adapter, basis=RocBasis.SVD))
        whole = torch.block_diag(*dense(adapter).values())
        assert statistics.frobenius_norm == pytest.approx(float(torch.linalg.matrix_norm(whole)), rel=1e-4)
        assert statistics.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(whole, ord=2)), rel=1e-4)
        singular = torch.linalg.svdvals(whole)
        assert statistics.stable_rank == pytest.approx(float((singular**2).sum() / singular[0] ** 2), rel=1e-4)


class TestBorders:
    def test_an_update_of_nothing(self):
        factors = LoRAFactors(lora_a=torch.randn(2, 6), lora_b=torch.zeros(5, 2), scaling=1.0)
        adapter = LoRAAdapter(base_model=None, modules={Q_PROJ: factors})
        statistics = update_statistics(decompose(adapter, basis=RocBasis.SVD))
        assert (statistics.frobenius_norm, statistics.spectral_norm, statistics.stable_rank) == (0.0, 0.0, 0.0)
        assert UpdateStatistics(modules={}).stable_rank == 0.0

    def test_another_basis_has_no_singular_values(self):
        with pytest.raises(ValueError, match="basis"):
            update_statistics(decompose(random_adapter(), basis=RocBasis.TRAINED))

    def test_the_largest_update_that_can_be_stored_has_finite_sizes(self):
        rocs = RankOneComponents(a_RD=torch.full((2, 4), 3e38), b_RO=torch.full((2, 4), 3e38))
        statistics = update_statistics(DecomposedAdapter(basis=RocBasis.SVD, modules={Q_PROJ: rocs}))
        assert statistics.frobenius_norm == pytest.approx(2**0.5 * 3.6e77)
        assert statistics.stable_rank == pytest.approx(2.0)
