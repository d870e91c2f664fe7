from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import LoRAAdapter, LoRAFactors, RocBasis
from hilora.decomposition import decompose, recompose
from hilora.fingerprint import (
    NUM_PROJECTIONS,
    SAME_UPDATE_TOLERANCE,
    fingerprint,
    may_be_same,
    norms_by_kind,
    relative_distance,
    traits_of,
    update_norms,
)
from tests.builders.adapters import Q_PROJ, random_adapter

quick = settings(max_examples=25, deadline=None)


def dense(adapter: LoRAAdapter) -> dict[str, torch.Tensor]:
    return {path: f.scaling * f.lora_b.double() @ f.lora_a.double() for path, f in adapter.modules.items()}


def in_another_basis(adapter: LoRAAdapter, *, seed: int) -> LoRAAdapter:
    """The same update: factors mixed by a random invertible matrix, and the scaling moved into B."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, factors in adapter.modules.items():
        rank = factors.lora_rank
        mix = torch.randn(rank, rank, generator=generator, dtype=torch.float64) + 3.0 * torch.eye(rank)
        modules[path] = LoRAFactors(
            lora_a=torch.linalg.solve(mix, factors.lora_a.double()),
            lora_b=factors.scaling * factors.lora_b.double() @ mix,
            scaling=1.0,
        )
    return LoRAAdapter(base_model="other", modules=modules)


class TestFingerprint:
    @quick
    @given(seed=st.integers(0, 1000), rank=st.integers(1, 6))
    def test_the_basis_does_not_matter(self, seed, rank):
        adapter = random_adapter(rank=rank, seed=seed)
        for other in (in_another_basis(adapter, seed=seed), recompose(decompose(adapter, basis=RocBasis.SVD))):
            assert fingerprint(other) == pytest.approx(fingerprint(adapter), abs=1e-4)
            assert may_be_same(fingerprint(adapter), fingerprint(other), norm=traits_of(adapter).update_norm)
            assert relative_distance(adapter, other) < 1e-4

    @quick
    @given(seed=st.integers(0, 1000))
    def test_another_update_is_told_apart(self, seed):
        one, other = random_adapter(seed=seed), random_adapter(seed=seed + 1)
        assert not may_be_same(fingerprint(one), fingerprint(other), norm=traits_of(one).update_norm)

    def test_what_bfloat16_rounds_is_no_difference(self):
        adapter = random_adapter()
        rounded = LoRAAdapter(
            base_model=None,
            modules={
                path: LoRAFactors(lora_a=f.lora_a.bfloat16(), lora_b=f.lora_b.bfloat16(), scaling=f.scaling)
                for path, f in adapter.modules.items()
            },
        )
        assert 0.0 < relative_distance(adapter, rounded) < SAME_UPDATE_TOLERANCE
        assert may_be_same(fingerprint(adapter), fingerprint(rounded), norm=traits_of(adapter).update_norm)

    def test_it_is_a_projection_of_the_dense_update_that_never_changes(self):
        one = LoRAFactors(lora_a=torch.ones(1, 1), lora_b=torch.ones(1, 1), scaling=2.0)
        values = fingerprint(LoRAAdapter(base_model=None, modules={"q": one}))
        signs = "".join("+" if value > 0 else "-" for value in values)
        assert {abs(value) for value in values} == {2.0}
        assert len(values) == NUM_PROJECTIONS
        assert signs == SIGNS_OF_Q

    def test_other_numbers_of_projections_are_another_fingerprint(self):
        assert not may_be_same((1.0,), (1.0, 1.0), norm=1.0)
        assert not may_be_same((), (), norm=1.0)


SIGNS_OF_Q = "+-+---++++++++-+"
"""Manifests hold fingerprints: the signs of a path may never change."""


class TestDistance:
    @quick
    @given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
    def test_it_is_that_of_the_dense_updates(self, seed, share):
        one, other = random_adapter(seed=seed), random_adapter(seed=seed + 1)
        blended = LoRAAdapter(
            base_model=None,
            modules={
                path: LoRAFactors(
                    lora_a=torch.cat([f.lora_a, other.modules[path].lora_a]),
                    lora_b=torch.cat([f.lora_b, share * other.modules[path].lora_b], dim=1),
                    scaling=f.scaling,
                )
                for path, f in one.modules.items()
            },
        )
        squared = sum(float((dense(one)[path] - delta).square().sum()) for path, delta in dense(blended).items())
        norms = [sum(float(delta.square().sum()) for delta in dense(item).values()) for item in (one, blended)]
        assert relative_distance(one, blended) == pytest.approx((squared / max(norms)) ** 0.5, abs=1e-6)

    def test_a_module_that_one_lacks_counts_as_zero(self):
        adapter = random_adapter()
        without = LoRAAdapter(base_model=None, modules={p: f for p, f in adapter.modules.items() if p != Q_PROJ})
        share = update_norms(adapter)[Q_PROJ] / traits_of(adapter).update_norm
        assert relative_distance(adapter, without) == pytest.approx(share, rel=1e-6)

    def test_two_updates_of_zero_are_one(self):
        zero = LoRAFactors(lora_a=torch.zeros(1, 3), lora_b=torch.zeros(2, 1), scaling=1.0)
        adapter = LoRAAdapter(base_model=None, modules={"q": zero})
        assert relative_distance(adapter, adapter) == 0.0


class TestNorms:
    def test_they_are_those_of_the_dense_updates(self):
        adapter = random_adapter()
        for path, norm in update_norms(adapter).items():
            assert norm == pytest.approx(float(torch.linalg.matrix_norm(dense(adapter)[path])), rel=1e-6)

    def test_kinds_are_the_last_part_of_a_path(self):
        norms = norms_by_kind({"layers.0.q_proj": 3.0, "layers.1.q_proj": 4.0, "layers.0.v_proj": 2.0})
        assert norms == pytest.approx({"q_proj": (25 / 2) ** 0.5, "v_proj": 2.0})
