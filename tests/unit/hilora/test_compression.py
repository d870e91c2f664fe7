from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.compression import Squeeze, squeeze
from hilora.errors import InvalidInput
from tests.builders.adapters import random_adapter, random_factors

SIZES = st.integers(1, 12)
quick = settings(max_examples=40, deadline=None)


def adapter_of(factors: LoRAFactors) -> LoRAAdapter:
    return LoRAAdapter(base_model=None, modules={"q": factors})


def dense(factors: LoRAFactors) -> torch.Tensor:
    return factors.scaling * factors.lora_b.double() @ factors.lora_a.double()


@st.composite
def factors(draw: st.DrawFn) -> LoRAFactors:
    return random_factors(
        out_features=draw(SIZES),
        in_features=draw(SIZES),
        rank=draw(st.integers(1, 8)),
        seed=draw(st.integers(0, 10_000)),
        scaling=draw(st.sampled_from([0.25, 1.0, 3.0])),
    )


class TestRank:
    @quick
    @given(factors=factors(), target=st.integers(1, 10))
    def test_the_error_is_the_energy_of_the_tail(self, factors, target):
        squeezed = squeeze(adapter_of(factors), Squeeze(rank=target))
        values_R = torch.linalg.svdvals(dense(factors))
        error = torch.linalg.matrix_norm(dense(factors) - dense(squeezed.adapter.modules["q"]))
        assert float(error) == pytest.approx(float(values_R[target:].square().sum().sqrt()), abs=1e-5)
        energy = float(values_R.square().sum())
        assert squeezed.energy_kept["q"] == pytest.approx(float(values_R[:target].square().sum()) / energy, abs=1e-9)

    @quick
    @given(factors=factors())
    def test_at_the_source_rank_it_is_the_identity_bit_for_bit(self, factors):
        kept = squeeze(adapter_of(factors), Squeeze(rank=factors.lora_rank))
        assert kept.adapter.modules["q"] is factors
        assert kept.total_energy_kept == pytest.approx(1.0)

    @quick
    @given(factors=factors(), target=st.integers(1, 7), seed=st.integers(0, 99))
    def test_no_other_update_of_that_rank_is_closer(self, factors, target, seed):
        best = dense(squeeze(adapter_of(factors), Squeeze(rank=target)).adapter.modules["q"])
        generator = torch.Generator().manual_seed(seed)
        step = torch.randn(best.shape, generator=generator, dtype=torch.float64) * 0.05
        # Any neighbour of rank at most `target`: the best one disturbed, and truncated again.
        u, s, vh = torch.linalg.svd(best + step)
        width = min(target, len(s))
        rival = u[:, :width] @ torch.diag(s[:width]) @ vh[:width]
        whole = dense(factors)
        assert torch.linalg.matrix_norm(whole - best) <= torch.linalg.matrix_norm(whole - rival) + 1e-6

    def test_a_rank_above_the_layer_s_width_leaves_no_more_than_there_is(self):
        wide = random_factors(out_features=3, in_features=4, rank=9, seed=1)
        squeezed = squeeze(adapter_of(wide), Squeeze(rank=5)).adapter.modules["q"]
        assert squeezed.lora_rank == 3
        torch.testing.assert_close(dense(squeezed), dense(wide), rtol=1e-5, atol=1e-5)

    def test_modules_of_other_ranks_are_left_alone(self):
        low, high = (random_factors(out_features=8, in_features=8, rank=rank, seed=rank) for rank in (2, 6))
        squeezed = squeeze(LoRAAdapter(base_model="b", modules={"low": low, "high": high}), Squeeze(rank=3)).adapter
        assert squeezed.modules["low"] is low
        assert squeezed.modules["high"].lora_rank == 3
        assert squeezed.base_model == "b"


class TestEnergy:
    @quick
    @given(factors=factors(), share=st.floats(0.05, 1.0))
    def test_the_rank_is_the_smallest_that_keeps_the_share(self, factors, share):
        squeezed = squeeze(adapter_of(factors), Squeeze(energy=share))
        rank = squeezed.adapter.modules["q"].lora_rank
        energies_R = torch.linalg.svdvals(dense(factors)).square()
        kept = energies_R.cumsum(dim=0) / energies_R.sum()
        assert squeezed.energy_kept["q"] >= share - 1e-9
        assert rank in {1, factors.lora_rank} or float(kept[rank - 2]) < share

    def test_all_of_it_drops_components_that_add_nothing(self):
        plain = random_factors(out_features=6, in_features=5, rank=4, seed=0)
        lora_b = plain.lora_b.clone()
        lora_b[:, 1] = 0.0
        dead = LoRAFactors(lora_a=plain.lora_a, lora_b=lora_b, scaling=2.0)
        squeezed = squeeze(adapter_of(dead), Squeeze(energy=1.0)).adapter.modules["q"]
        assert squeezed.lora_rank == 3
        torch.testing.assert_close(dense(squeezed), dense(dead), rtol=1e-5, atol=1e-5)

    def test_an_update_of_zero_keeps_one_component(self):
        zero = LoRAFactors(lora_a=torch.zeros(3, 4), lora_b=torch.zeros(5, 3), scaling=1.0)
        squeezed = squeeze(adapter_of(zero), Squeeze(energy=0.9))
        assert squeezed.adapter.modules["q"].lora_rank == 1
        assert squeezed.total_energy_kept == 1.0

    def test_the_total_weighs_modules_by_their_energy(self):
        squeezed = squeeze(random_adapter(rank=6), Squeeze(rank=2))
        energies = {
            path: float(torch.linalg.svdvals(dense(f)).square().sum())
            for path, f in random_adapter(rank=6).modules.items()
        }
        expected = sum(squeezed.energy_kept[path] * energy for path, energy in energies.items()) / sum(
            energies.values()
        )
        assert squeezed.total_energy_kept == pytest.approx(expected, rel=1e-6)


class TestTarget:
    @pytest.mark.parametrize(
        "fields",
        [{}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"rank": True}, {"energy": 0.0}, {"energy": 1.5}],
    )
    def test_it_is_one_sound_number(self, fields):
        with pytest.raises(InvalidInput) as caught:
            Squeeze(**fields)
        assert caught.value.code == "invalid_squeeze"
