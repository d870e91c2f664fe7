from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import LoRAAdapter, LoRAFactors, RocBasis
from hilora.decomposition import decompose, delta_weight
from hilora.update_overlap import update_overlap
from tests.builders.adapters import MODULE_SHAPES, Q_PROJ, UP_PROJ, random_adapter


def svd(adapter: LoRAAdapter):
    return decompose(adapter, basis=RocBasis.SVD)


def changed_basis(adapter: LoRAAdapter, *, factor: float = 1.0) -> LoRAAdapter:
    """The same update, or a multiple of it, as other factors."""
    modules = {}
    for place, (path, factors) in enumerate(adapter.modules.items()):
        mix = torch.randn(factors.lora_rank, factors.lora_rank, generator=torch.Generator().manual_seed(place))
        mix += 3 * torch.eye(factors.lora_rank)
        modules[path] = LoRAFactors(
            lora_a=mix @ factors.lora_a,
            lora_b=factor * factors.lora_b @ torch.linalg.inv(mix),
            scaling=factors.scaling,
        )
    return LoRAAdapter(base_model=None, modules=modules)


class TestCosine:
    @settings(deadline=None, max_examples=15)
    @given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), ranks=st.tuples(*[st.integers(1, 6)] * 2))
    def test_it_is_that_of_the_dense_updates(self, seeds, ranks):
        first, second = (svd(random_adapter(rank=rank, seed=seed)) for rank, seed in zip(ranks, seeds, strict=True))
        overlap = update_overlap(first, second)
        flat = [
            torch.cat([delta_weight(adapter.modules[path]).flatten() for path in MODULE_SHAPES]).double()
            for adapter in (first, second)
        ]
        assert overlap.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-5)
        norms = sorted(float(torch.linalg.vector_norm(vector)) for vector in flat)
        assert overlap.norm_ratio == pytest.approx(norms[0] / norms[1], rel=1e-4)

    def test_a_change_of_basis_changes_nothing(self):
        adapter = random_adapter(seed=2)
        overlap = update_overlap(svd(adapter), svd(changed_basis(adapter)))
        assert overlap.cosine == pytest.approx(1.0, abs=1e-5)
        assert overlap.norm_ratio == pytest.approx(1.0, abs=1e-4)
        assert all(module.input_alignment == pytest.approx(1.0, abs=1e-4) for module in overlap.modules.values())

    def test_a_multiple_points_the_same_way_and_the_negative_the_other(self):
        adapter = random_adapter(seed=2)
        assert update_overlap(svd(adapter), svd(changed_basis(adapter, factor=2.0))).norm_ratio == pytest.approx(
            0.5, abs=1e-4
        )
        assert update_overlap(svd(adapter), svd(changed_basis(adapter, factor=-1.0))).cosine == pytest.approx(
            -1.0, abs=1e-4
        )

    def test_a_module_that_one_lacks_counts_as_unrelated(self):
        adapter = random_adapter(seed=2)
        part = LoRAAdapter(base_model=None, modules={Q_PROJ: adapter.modules[Q_PROJ]})
        overlap = update_overlap(svd(adapter), svd(part))
        assert list(overlap.modules) == [Q_PROJ]
        assert 0.0 < overlap.cosine < 1.0
        other = LoRAAdapter(base_model=None, modules={UP_PROJ: adapter.modules[UP_PROJ]})
        assert update_overlap(svd(part), svd(other)).cosine == 0.0


class TestAlignment:
    def test_spaces_that_share_half_of_their_directions(self):
        eye = torch.eye(8)
        first = LoRAFactors(lora_a=eye[:2], lora_b=eye[:, :2], scaling=1.0)
        second = LoRAFactors(lora_a=eye[1:3], lora_b=eye[:, 4:6], scaling=1.0)
        adapters = [svd(LoRAAdapter(base_model=None, modules={Q_PROJ: factors})) for factors in (first, second)]
        module = update_overlap(*adapters).modules[Q_PROJ]
        assert module.input_alignment == pytest.approx(0.5)
        assert module.output_alignment == pytest.approx(0.0)
        assert module.cosine == pytest.approx(0.0)

    def test_an_update_of_nothing_overlaps_with_nothing(self):
        factors = LoRAFactors(lora_a=torch.randn(2, 12), lora_b=torch.zeros(12, 2), scaling=1.0)
        nothing = svd(LoRAAdapter(base_model=None, modules={Q_PROJ: factors}))
        overlap = update_overlap(nothing, svd(random_adapter()))
        assert (overlap.cosine, overlap.norm_ratio) == (0.0, 0.0)

    def test_the_trained_basis_is_refused(self):
        with pytest.raises(ValueError, match="svd"):
            update_overlap(decompose(random_adapter(), basis=RocBasis.TRAINED), svd(random_adapter()))
