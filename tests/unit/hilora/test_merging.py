from __future__ import annotations

import math

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.decomposition import delta_weight
from hilora.merging import cluster_components, fuse

PATH = "layer"


def adapter(rank: int, *, seed: int, paths: tuple[str, ...] = (PATH,), num_in: int = 7, num_out: int = 5):
    generator = torch.Generator().manual_seed(seed)
    modules = {
        path: RankOneComponents(
            a_RD=torch.randn(rank, num_in, generator=generator), b_RO=torch.randn(rank, num_out, generator=generator)
        )
        for path in paths
    }
    return DecomposedAdapter(basis=RocBasis.TRAINED, modules=modules)


def update(merged: DecomposedAdapter, path: str = PATH) -> torch.Tensor:
    return delta_weight(merged.modules[path]).double()


class TestFusion:
    def test_one_adapter_at_weight_1_is_itself(self):
        only = adapter(3, seed=0)
        torch.testing.assert_close(update(fuse([only], weights=[1.0])), update(only))

    def test_equal_adapters_in_equal_parts_are_one(self):
        only = adapter(3, seed=0)
        torch.testing.assert_close(update(fuse([only] * 4, weights=[0.25] * 4)), update(only))

    def test_the_order_changes_nothing_and_cross_terms_are_there(self):
        one, other = adapter(2, seed=0), adapter(4, seed=1)
        fused = update(fuse([one, other], weights=[0.5, 0.5]))
        torch.testing.assert_close(fused, update(fuse([other, one], weights=[0.5, 0.5])))
        assert (fused - 0.25 * (update(one) + update(other))).abs().max() > 0.1

    def test_an_adapter_that_does_not_touch_a_layer_counts_as_zero(self):
        one, other = adapter(2, seed=0, paths=("x", "y")), adapter(2, seed=1, paths=("x",))
        fused = fuse([one, other], weights=[0.5, 0.5])
        torch.testing.assert_close(update(fused, "y"), 0.25 * update(one, "y"))


class TestClusters:
    def test_a_component_and_its_negative_are_one(self):
        only = adapter(2, seed=3)
        rocs = only.modules[PATH]
        turned = RankOneComponents(a_RD=-rocs.a_RD, b_RO=-rocs.b_RO)
        twins = DecomposedAdapter(basis=RocBasis.TRAINED, modules={PATH: turned})
        merged = cluster_components([only, twins], weights=[1.0, 1.0], num_rocs=2, reweights=False)
        torch.testing.assert_close(update(merged), update(only), rtol=1e-5, atol=1e-5)

    def test_how_a_component_shares_its_norm_does_not_matter(self):
        one, other = adapter(3, seed=3), adapter(3, seed=4)
        rocs = other.modules[PATH]
        stretched = DecomposedAdapter(
            basis=RocBasis.TRAINED, modules={PATH: RankOneComponents(a_RD=rocs.a_RD * 50, b_RO=rocs.b_RO / 50)}
        )
        found = [
            update(cluster_components([one, second], weights=[1.0, 1.0], num_rocs=3)) for second in (other, stretched)
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    def test_the_order_of_components_within_an_adapter_changes_nothing(self):
        one, other = adapter(4, seed=5), adapter(4, seed=6)
        rocs = one.modules[PATH]
        order = torch.tensor([2, 0, 3, 1])
        shuffled = DecomposedAdapter(
            basis=RocBasis.TRAINED, modules={PATH: RankOneComponents(a_RD=rocs.a_RD[order], b_RO=rocs.b_RO[order])}
        )
        found = [
            update(cluster_components([first, other], weights=[1.0, 1.0], num_rocs=3)) for first in (one, shuffled)
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    def test_centres_get_their_members_norms_and_outputs_their_variance(self):
        one = adapter(1, seed=7)
        merged = cluster_components([one, one, one], weights=[1.0] * 3, num_rocs=1)
        # One cluster of three equal members: itself; r / k = 1 / 1.
        torch.testing.assert_close(update(merged), update(one), rtol=1e-5, atol=1e-5)
        two = cluster_components([adapter(4, seed=8)], weights=[1.0], num_rocs=2)
        plain = cluster_components([adapter(4, seed=8)], weights=[1.0], num_rocs=2, reweights=False)
        ratios = torch.linalg.matrix_norm(update(two)) / torch.linalg.matrix_norm(update(plain))
        assert ratios > math.sqrt(4 / 2)

    def test_weights_scale_updates(self):
        only = adapter(3, seed=9)
        merged = cluster_components([only], weights=[0.25], num_rocs=3, reweights=False)
        torch.testing.assert_close(update(merged), 0.25 * update(only), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("num_rocs", range(1, 9))
    def test_no_layer_gets_more_than_k(self, num_rocs):
        merged = cluster_components([adapter(4, seed=1), adapter(4, seed=2)], weights=[1.0, 1.0], num_rocs=num_rocs)
        assert 1 <= merged.modules[PATH].num_rocs <= num_rocs
        assert torch.isfinite(update(merged)).all()

    def test_components_without_energy_are_harmless(self):
        nothing = DecomposedAdapter(
            basis=RocBasis.TRAINED, modules={PATH: RankOneComponents(a_RD=torch.zeros(2, 7), b_RO=torch.zeros(2, 5))}
        )
        merged = cluster_components([nothing, adapter(2, seed=1)], weights=[1.0, 1.0], num_rocs=3)
        assert torch.isfinite(update(merged)).all()
        assert torch.isfinite(update(cluster_components([nothing], weights=[1.0], num_rocs=1))).all()


class TestMisuse:
    @pytest.mark.parametrize("merge", [fuse, lambda *args, **kw: cluster_components(*args, num_rocs=1, **kw)])
    def test_what_cannot_be_merged(self, merge):
        svd = DecomposedAdapter(basis=RocBasis.SVD, modules=adapter(2, seed=0).modules)
        for adapters, weights in (
            ([], []),
            ([adapter(2, seed=0)], [0.5, 0.5]),
            ([svd], [1.0]),
            ([adapter(2, seed=0), adapter(2, seed=0, num_in=8)], [0.5, 0.5]),
        ):
            with pytest.raises(ValueError):
                merge(adapters, weights=weights)

    @pytest.mark.parametrize(("num_rocs", "weight"), [(0, 1.0), (2, -1.0)])
    def test_clusters_of_nothing(self, num_rocs, weight):
        with pytest.raises(ValueError, match="clusters"):
            cluster_components([adapter(2, seed=0)], weights=[weight], num_rocs=num_rocs)
