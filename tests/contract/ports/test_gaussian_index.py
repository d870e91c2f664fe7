"""One promise of a search, kept by every index: what scoring everything in float64 would say."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.gaussian_index import DenseGaussianIndex, ExtendedGaussianIndex, GaussianIndex, log_sum_exp
from hilora.pooled_gaussian import WhitenedGaussians
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from services.router.infra import faiss_index
from services.router.infra.exact_index import ExactIndex
from services.router.infra.faiss_index import ByteFaissIndex, CellFaissIndex, _byte_index, _size_that_is_right
from services.router.infra.index_kinds import build_index
from services.router.pool_index import IndexKind, IndexRules, build_pool_index
from tests.builders.profiles import clustered_profiles, clustered_samples

WIDTH = 24
COUNTS = [20, 20, 7, 20, 1, 12, 20, 3] * 12
FITTED = fit_pooled_eb(clustered_samples(num_samples=COUNTS, dimension=WIDTH, spread=1.2))
EVERY_KIND = {
    "dense": DenseGaussianIndex,
    "exact": ExactIndex,
    "byte": ByteFaissIndex,
    "ivf": CellFaissIndex,
}
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
        index = type(exact_index)(twins.gaussians)
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
        index = ByteFaissIndex(gaussians)
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
        index = CellFaissIndex(pool)
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


class TestSizes:
    """FAISS has a kernel that rounds questions at sizes that suit it; which these are depends on the processor."""

    @pytest.mark.parametrize("size", [16, 32, 48, 64, 400, 416])
    def test_the_size_taken_multiplies_right(self, size):
        taken = _size_that_is_right(size)
        rng = np.random.default_rng(1)
        stored_LV = rng.integers(-127, 128, size=(300, taken)).astype(np.float32)
        index = _byte_index(taken)
        index.add(stored_LV)

        assert size <= taken <= size + 16
        for scale in (1.0, 300.0):
            question_V = (scale * rng.standard_normal(taken)).astype(np.float32)
            values, places = index.search(question_V[None], 300)
            np.testing.assert_allclose(values[0], (stored_LV @ question_V)[places[0]], rtol=0, atol=0.05 * scale)

    def test_a_size_that_is_wrong_is_passed_over(self, monkeypatch):
        class Rounding:
            def __init__(self, size):
                self._index = _byte_index(size)

            def add(self, stored_LV):
                self._index.add(stored_LV)

            def search(self, questions, num):
                return self._index.search(np.rint(questions), num)

        monkeypatch.setattr(
            faiss_index, "_byte_index", lambda size: Rounding(size) if size in (40, 56) else faiss.IndexFlatIP(size)
        )
        _size_that_is_right.cache_clear()
        try:
            assert _size_that_is_right(40) == 48
            monkeypatch.setattr(faiss_index, "_byte_index", Rounding)
            with pytest.raises(RuntimeError, match="another index kind"):
                _size_that_is_right(72)
        finally:
            _size_that_is_right.cache_clear()
