from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import DecomposedAdapter, LoRAAdapter, LoRAFactors, RocBasis
from hilora.decomposition import decompose, delta_weight, recompose, roc_energies
from tests.builders.adapters import DOWN_PROJ, Q_PROJ, random_adapter, random_factors

quick = settings(deadline=None, max_examples=30)

factors = st.builds(
    random_factors,
    out_features=st.integers(1, 9),
    in_features=st.integers(1, 9),
    rank=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    scaling=st.sampled_from([0.25, 1.0, -2.0]),
)


def dense(factors: LoRAFactors) -> torch.Tensor:
    return factors.scaling * factors.lora_b.double() @ factors.lora_a.double()


def one_module(factors: LoRAFactors, basis: RocBasis) -> DecomposedAdapter:
    return decompose(LoRAAdapter(base_model=None, modules={Q_PROJ: factors}), basis=basis)


class TestRebuilding:
    @quick
    @given(factors=factors, basis=st.sampled_from(RocBasis))
    def test_the_components_sum_to_the_update(self, factors, basis):
        rocs = one_module(factors, basis).modules[Q_PROJ]
        assert rocs.num_rocs == factors.lora_rank
        assert rocs.a_RD.dtype is rocs.b_RO.dtype is torch.float32
        torch.testing.assert_close(delta_weight(rocs).double(), dense(factors), rtol=1e-4, atol=1e-5)

    @quick
    @given(factors=factors, basis=st.sampled_from(RocBasis))
    def test_recomposing_gives_the_same_update_at_scaling_1(self, factors, basis):
        rebuilt = recompose(one_module(factors, basis)).modules[Q_PROJ]
        assert rebuilt.scaling == 1.0
        torch.testing.assert_close(dense(rebuilt), dense(factors), rtol=1e-4, atol=1e-5)

    def test_the_trained_basis_keeps_the_factors(self):
        adapter = random_adapter(scaling=0.25)
        trained = decompose(adapter, basis=RocBasis.TRAINED)
        assert trained.basis is RocBasis.TRAINED
        for path, rocs in trained.modules.items():
            assert torch.equal(rocs.a_RD, adapter.modules[path].lora_a)
            assert torch.equal(rocs.b_RO, 0.25 * adapter.modules[path].lora_b.T)


class TestSingularBasis:
    @quick
    @given(factors=factors, seed=st.integers(0, 1000))
    def test_the_responses_are_as_long_as_the_change_they_make(self, factors, seed):
        rocs = one_module(factors, RocBasis.SVD).modules[Q_PROJ]
        x_D = torch.randn(factors.lora_a.shape[1], generator=torch.Generator().manual_seed(seed))
        change = dense(factors).float() @ x_D
        torch.testing.assert_close((rocs.a_RD @ x_D).norm(), change.norm(), rtol=1e-4, atol=1e-5)

    def test_rows_of_b_are_orthonormal_and_energies_fall(self):
        rocs = decompose(random_adapter(rank=5), basis=RocBasis.SVD).modules[DOWN_PROJ]
        torch.testing.assert_close(rocs.b_RO @ rocs.b_RO.T, torch.eye(5), rtol=0.0, atol=1e-5)
        energies = roc_energies(rocs)
        assert (energies[:-1] >= energies[1:]).all()

    def test_energies_are_the_singular_values(self):
        factors = random_factors(out_features=9, in_features=7, rank=3, seed=5)
        rocs = one_module(factors, RocBasis.SVD).modules[Q_PROJ]
        torch.testing.assert_close(
            roc_energies(rocs).double(), torch.linalg.svdvals(dense(factors))[:3], rtol=1e-5, atol=1e-6
        )

    def test_the_first_row_is_the_direction_of_greatest_effect(self):
        """The prototype that Arrow routes by, up to its sign."""
        factors = random_factors(out_features=9, in_features=7, rank=3, seed=6)
        first = one_module(factors, RocBasis.SVD).modules[Q_PROJ].a_RD[0]
        direction = torch.linalg.svd(dense(factors)).Vh[0].float()
        assert abs(float(torch.dot(first / first.norm(), direction))) > 1 - 1e-5

    @quick
    @given(factors=factors, scale=st.sampled_from([-3.0, 0.2, 5.0]))
    def test_rescaled_factors_keep_their_update_and_signs_are_fixed(self, factors, scale):
        """`(a, b)` and `(t a, b / t)` are one update; the largest entry of each b is positive."""
        rescaled = LoRAFactors(lora_a=factors.lora_a * scale, lora_b=factors.lora_b / scale, scaling=factors.scaling)
        first, second = (one_module(each, RocBasis.SVD).modules[Q_PROJ] for each in (factors, rescaled))
        torch.testing.assert_close(delta_weight(first), delta_weight(second), rtol=1e-3, atol=1e-4)
        for rocs in (first, second):
            largest = rocs.b_RO.gather(1, rocs.b_RO.abs().argmax(dim=1, keepdim=True))
            assert (largest >= 0).all()

    def test_a_deficient_module_keeps_its_rows(self):
        factors = random_factors(out_features=6, in_features=6, rank=4, seed=1)
        factors.lora_a[3] = factors.lora_a[2]
        rocs = one_module(factors, RocBasis.SVD).modules[Q_PROJ]
        assert rocs.num_rocs == 4
        assert roc_energies(rocs)[3] < 1e-5 < roc_energies(rocs)[2]

    def test_a_rank_beyond_the_layers_width_is_padded_with_zeros(self):
        rocs = one_module(random_factors(out_features=3, in_features=8, rank=5, seed=2), RocBasis.SVD).modules[Q_PROJ]
        assert rocs.num_rocs == 5
        assert not rocs.a_RD[3:].any() and not rocs.b_RO[3:].any()
