"""One promise of a search, kept by every index: what scoring everything in float64 would say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.gaussian_index import ExtendedGaussianIndex, GaussianIndex, log_sum_exp
from hilora.pooled_gaussian import WhitenedGaussians
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from services.router.infra import _native, byte_scores
from services.router.infra.byte_scores import ByteScores
from services.router.infra.cell_index import CellIndex
from services.router.infra.index_kinds import build_index
from services.router.pool_index import IndexKind, IndexRules, build_pool_index
from tests.builders.profiles import clustered_profiles, clustered_samples

WIDTH = 24
COUNTS = [20, 20, 7, 20, 1, 12, 20, 3] * 12
FITTED = fit_pooled_eb(clustered_samples(num_samples=COUNTS, dimension=WIDTH, spread=1.2))
EVERY_KIND = {kind.value: partial(build_index, kind=kind) for kind in IndexKind}
EXACT_KINDS = {name: EVERY_KIND[name] for name in ("dense", "exact", "byte")}


@pytest.fixture(params=EVERY_KIND)
def index(request) -> GaussianIndex:
    return EVERY_KIND[request.param](FITTED.gaussians)


@pytest.fixture(params=EXACT_KINDS)
def exact_index(request) -> GaussianIndex:
    return EXACT_KINDS[request.param](FITTED.gaussians)


def located(seed: int, model: PooledEmpiricalBayes = FITTED) -> tuple[np.ndarray, float]:
    z_E = np.random.default_rng(seed).normal(size=WIDTH)
    y_K, rest = model.space.locate(z_E / np.linalg.norm(z_E))
    return y_K, float(rest)


def all_scores(y_K: np.ndarray, rest: float, gaussians: WhitenedGaussians = FITTED.gaussians) -> np.ndarray:
    return gaussians.log_density(y_K, np.asarray(rest))


class TestSearch:
    def test_it_says_whom_it_holds(self, index):
        assert index.num_adapters == len(COUNTS)
        assert index.kind in set(IndexKind)
        assert 0.9 < index.recall <= 1.0

    @pytest.mark.parametrize("num_results", [1, 8, 95, 96, 200])
    def test_it_finds_the_best_by_falling_score(self, index, num_results):
        y_K, rest = located(1)
        expected = np.argsort(-all_scores(y_K, rest), kind="stable")[:num_results]
        found = index.search(y_K, rest, num_results=num_results, temperature=6.0)
        np.testing.assert_array_equal(found.idx_C, expected)
        np.testing.assert_allclose(found.log_density_C, all_scores(y_K, rest)[expected], atol=1e-9)

    def test_the_partition_covers_the_whole_pool(self, index):
        y_K, rest = located(2)
        found = index.search(y_K, rest, num_results=3, temperature=6.0)
        assert found.log_partition == pytest.approx(log_sum_exp(all_scores(y_K, rest) / 6.0), abs=1e-6)

    @pytest.mark.parametrize("num_excluded", [1, 40, 95])
    def test_the_excluded_are_neither_found_nor_counted(self, index, num_excluded):
        y_K, rest = located(3)
        scores = all_scores(y_K, rest)
        excluded = np.sort(np.argsort(-scores)[:num_excluded])
        scores[excluded] = -np.inf
        found = index.search(y_K, rest, num_results=5, temperature=2.0, excluded=excluded)
        expected = np.argsort(-scores, kind="stable")[: min(5, 96 - num_excluded)]
        np.testing.assert_array_equal(found.idx_C, expected)
        assert found.log_partition == pytest.approx(log_sum_exp(scores / 2.0), abs=1e-6)

    def test_with_everybody_excluded_nobody_is_found(self, index):
        found = index.search(*located(4), num_results=5, temperature=2.0, excluded=np.arange(96))
        assert not len(found.idx_C)
        assert found.log_partition == -np.inf

    def test_among_equal_adapters_the_lower_place_comes_first(self, exact_index):
        twins = fit_pooled_eb(
            clustered_samples(num_samples=[9], dimension=WIDTH) * 30
            + clustered_samples(num_samples=[9] * 9, dimension=WIDTH, seed=5)
        )
        index = build_index(twins.gaussians, IndexKind(exact_index.kind))
        y_K, rest = twins.space.locate(clustered_samples(num_samples=[9], dimension=WIDTH)[0][0])
        found = index.search(y_K, float(rest), num_results=5, temperature=3.0)
        assert found.idx_C.tolist() == [0, 1, 2, 3, 4]


class TestExactness:
    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 10_000), data=st.data())
    def test_every_exact_index_makes_the_plans_of_the_dense_one(self, seed, data):
        rng = np.random.default_rng(seed)
        counts = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=60))
        profiles = clustered_profiles(num_samples=counts, dimension=WIDTH, spread=1.5, seed=seed)
        exclude = frozenset(profile.adapter_name for profile in profiles if rng.random() < 0.2)
        z_E = rng.normal(size=WIDTH)
        first, *others = [
            SequenceRouter(profiles, catalog_generation=1, build_index=build).decide(
                z_E / np.linalg.norm(z_E), settings=RoutingSettings(), exclude=exclude
            )
            for build in EXACT_KINDS.values()
        ]
        for other in others:
            assert other.plan.num_rocs == first.plan.num_rocs
            assert [b.adapter_id for b in other.plan.budgets] == [b.adapter_id for b in first.plan.budgets]
            assert [b.num_rocs for b in other.plan.budgets] == [b.num_rocs for b in first.plan.budgets]
            assert [b.weight for b in other.plan.budgets] == pytest.approx([b.weight for b in first.plan.budgets])
            assert other.is_out_of_distribution == first.is_out_of_distribution
            assert [c.posterior for c in other.candidates] == pytest.approx(
                [c.posterior for c in first.candidates], abs=1e-5
            )

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
    def test_bytes_are_exact_at_any_scale(self, scale):
        gaussians = WhitenedGaussians(
            num_rest=0,
            means_LK=scale * FITTED.gaussians.means_LK,
            group_L=FITTED.gaussians.group_L,
            variances_GK=FITTED.gaussians.variances_GK,
            rest_variance_G=FITTED.gaussians.rest_variance_G,
        )
        index = build_index(gaussians, IndexKind.BYTE)
        for seed in range(20):
            y_K, rest = located(seed)
            found = index.search(scale * y_K, rest, num_results=8, temperature=3.0)
            scores = gaussians.log_density(scale * y_K, np.asarray(rest))
            np.testing.assert_allclose(found.log_density_C, np.sort(scores)[::-1][:8], rtol=1e-9)


class TestLargePools:
    """Larger than the shortlists and samples, so that every kind does what it is for."""

    NUM = 6000

    @pytest.fixture(scope="class")
    def pool(self) -> WhitenedGaussians:
        rng = np.random.default_rng(0)
        axes = np.linspace(1.5, 0.2, WIDTH)
        centers = rng.standard_normal((60, WIDTH)) * axes
        means = 0.8 * centers[rng.integers(60, size=self.NUM)] + 0.6 * rng.standard_normal((self.NUM, WIDTH)) * axes
        return WhitenedGaussians(
            num_rest=3,
            means_LK=means,
            group_L=rng.integers(3, size=self.NUM),
            variances_GK=np.array([[1.02], [1.05], [1.2]]) * np.ones(WIDTH),
            rest_variance_G=np.array([1.02, 1.05, 1.2]),
        )

    @pytest.mark.parametrize("kind", [IndexKind.EXACT, IndexKind.BYTE])
    def test_no_adapter_of_the_first_ten_is_missed(self, pool, kind):
        index = build_index(pool, kind)
        for seed in range(40):
            y_K = 1.5 * np.random.default_rng(seed).normal(size=WIDTH)
            expected = np.argsort(-all_scores(y_K, 2.0, pool), kind="stable")[:10]
            found = index.search(y_K, 2.0, num_results=10, temperature=4.0)
            np.testing.assert_array_equal(found.idx_C, expected)

    @pytest.mark.parametrize("kind", [IndexKind.BYTE, IndexKind.IVF])
    def test_an_estimated_partition_is_near_the_exact_one(self, pool, kind):
        index = build_index(pool, kind)
        gaps = []
        for seed in range(40):
            y_K = 1.5 * np.random.default_rng(seed).normal(size=WIDTH)
            found = index.search(y_K, 2.0, num_results=10, temperature=4.0, excluded=np.arange(0, 1800, 2))
            scores = all_scores(y_K, 2.0, pool)
            scores[np.arange(0, 1800, 2)] = -np.inf
            gaps.append(found.log_partition - log_sum_exp(scores / 4.0))
        assert np.abs(gaps).max() < 0.05
        assert abs(np.mean(gaps)) < 0.01

    def test_cells_find_nearly_all_and_say_how_many(self, pool):
        index = CellIndex(pool)
        assert 0.9 < index.recall <= 1.0
        missing = 0
        for seed in range(40):
            y_K = pool.means_LK[100 * seed] + np.random.default_rng(seed).normal(size=WIDTH)
            expected = np.argsort(-all_scores(y_K, 2.0, pool), kind="stable")[:10]
            found = index.search(y_K, 2.0, num_results=10, temperature=4.0)
            missing += len(np.setdiff1d(expected, found.idx_C))
        assert missing <= 40

    def test_where_most_are_invisible_the_visible_are_found_all_the_same(self, pool):
        y_K = pool.means_LK[17]
        for kind in (IndexKind.EXACT, IndexKind.BYTE, IndexKind.IVF):
            index = build_index(pool, kind)
            for num_visible in (50, 5000):
                visible = np.sort(np.random.default_rng(1).choice(self.NUM, size=num_visible, replace=False))
                excluded = np.setdiff1d(np.arange(self.NUM), visible)
                scores = all_scores(y_K, 2.0, pool)
                scores[excluded] = -np.inf
                found = index.search(y_K, 2.0, num_results=3, temperature=4.0, excluded=excluded)
                np.testing.assert_array_equal(found.idx_C, np.argsort(-scores, kind="stable")[:3])

    @pytest.mark.parametrize("kind", [IndexKind.EXACT, IndexKind.BYTE, IndexKind.IVF])
    def test_where_all_that_are_near_are_invisible_the_next_ones_are_found(self, pool, kind):
        index = build_index(pool, kind)
        y_K = pool.means_LK[17]
        scores = all_scores(y_K, 2.0, pool)
        excluded = np.sort(np.argsort(-scores)[:2900])
        scores[excluded] = -np.inf
        found = index.search(y_K, 2.0, num_results=8, temperature=4.0, excluded=excluded)
        np.testing.assert_array_equal(found.idx_C, np.argsort(-scores, kind="stable")[:8])

    def test_an_extended_index_finds_both_parts(self, pool):
        newcomers = WhitenedGaussians(
            num_rest=3,
            means_LK=pool.means_LK[:2] + 0.01,
            group_L=np.zeros(2, dtype=np.intp),
            variances_GK=pool.variances_GK[:1],
            rest_variance_G=pool.rest_variance_G[:1],
        )
        index = ExtendedGaussianIndex(build_index(pool, IndexKind.EXACT), newcomers)
        found = index.search(pool.means_LK[1], 2.0, num_results=2, temperature=4.0)
        assert sorted(found.idx_C.tolist()) == [1, self.NUM + 1]


class TestChoice:
    @pytest.mark.parametrize(
        ("rules", "kind"),
        [
            (IndexRules(), IndexKind.DENSE),
            (IndexRules(dense_up_to=10), IndexKind.EXACT),
            (IndexRules(dense_up_to=10, exact_up_to=20), IndexKind.BYTE),
            (IndexRules(dense_up_to=10, exact_up_to=20, whole_up_to=30, min_recall=0.5), IndexKind.IVF),
        ],
    )
    def test_the_size_of_the_pool_decides(self, rules, kind):
        index = build_pool_index(FITTED.gaussians, rules=rules, build=build_index)
        assert index.kind == kind

    def test_a_search_in_part_that_finds_too_little_is_not_used(self):
        rules = IndexRules(dense_up_to=10, exact_up_to=20, whole_up_to=30, min_recall=1.01)
        index = build_pool_index(FITTED.gaussians, rules=rules, build=build_index)
        assert (index.kind, index.recall) == (IndexKind.BYTE, 1.0)

    def test_a_pool_without_coordinates_needs_no_index(self):
        single = fit_pooled_eb(clustered_samples(num_samples=[20], dimension=WIDTH))
        index = build_pool_index(single.gaussians, rules=IndexRules(dense_up_to=0), build=build_index)
        assert index.kind == IndexKind.DENSE


class TestBytes:
    @pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
    @pytest.mark.parametrize("width", [32, 96, 384, 1024])
    def test_products_are_exact(self, num_rows, width):
        rng = np.random.default_rng(width)
        rows = rng.integers(-128, 128, size=(num_rows, width), dtype=np.int8)
        largest = min(2**15 - 1, (2**31 - 1) // (128 * width))
        asked = rng.integers(-largest, largest + 1, size=width, dtype=np.int16)
        products = np.full(num_rows, 7, dtype=np.int32)
        _native.byte_products(rows, asked, products)
        np.testing.assert_array_equal(products, rows.astype(np.int64) @ asked.astype(np.int64))

    def test_the_largest_numbers_of_all_do_not_overflow(self):
        for width in (32, 384, 512, 1024, 4096):
            gaussians = WhitenedGaussians(
                num_rest=0,
                means_LK=np.ones((3, width)),
                group_L=np.zeros(3, dtype=np.intp),
                variances_GK=np.ones((1, width)),
                rest_variance_G=np.ones(1),
            )
            scores_L = ByteScores(gaussians).of(np.full(width, 5.0), 0.0)
            expected = float(gaussians.log_density(np.full(width, 5.0), np.asarray(0.0))[0])
            np.testing.assert_allclose(scores_L, expected, rtol=1e-3)

    @pytest.mark.parametrize("sizes", [(64, 32, 3), (96, 32, 2), (96, 31, 3)])
    def test_buffers_that_do_not_fit_together_are_refused(self, sizes):
        num_bytes, width, num_rows = sizes
        with pytest.raises(ValueError, match="bytes"):
            _native.byte_products(
                np.zeros(num_bytes, dtype=np.int8), np.zeros(width, dtype=np.int16), np.zeros(num_rows, dtype=np.int32)
            )

    def test_a_result_that_cannot_be_written_is_refused(self):
        products = np.zeros(2, dtype=np.int32)
        products.flags.writeable = False
        with pytest.raises((TypeError, ValueError, BufferError)):
            _native.byte_products(np.zeros(64, dtype=np.int8), np.zeros(32, dtype=np.int16), products)

    def test_no_score_lies_further_from_the_exact_one_than_promised(self):
        scores = ByteScores(FITTED.gaussians)
        for seed in range(50):
            y_K, rest = located(seed)
            gaps_L = np.abs(scores.of(y_K, rest) - all_scores(y_K, rest))
            assert 0.0 < gaps_L.max() <= scores.error(y_K)

    def test_a_text_at_the_center_of_everything_can_be_asked(self):
        y_K = np.zeros(FITTED.gaussians.means_LK.shape[1])
        scores = ByteScores(FITTED.gaussians)
        np.testing.assert_allclose(scores.of(y_K, 1.0), all_scores(y_K, 1.0), atol=1e-9)
        assert scores.error(y_K) == 0.0

    def test_without_the_kernel_a_large_pool_is_looked_at_in_single_precision(self, monkeypatch):
        monkeypatch.setattr(byte_scores, "_native", None)
        index = build_index(FITTED.gaussians, IndexKind.BYTE)
        y_K, rest = located(1)
        assert index.kind == IndexKind.EXACT
        assert index.search(y_K, rest, num_results=1, temperature=1.0).idx_C[0] == all_scores(y_K, rest).argmax()
