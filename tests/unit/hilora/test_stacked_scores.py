from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hilora import fitted_pool
from hilora.character_grams import SampleGrams, gram_ids
from hilora.empirical_bayes import fit_pooled_eb
from hilora.fitted_pool import FittedPool
from hilora.gaussian_index import NOBODY, DenseGaussianIndex
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora.stacked_scores import fit_stacked
from tests.builders.profiles import clustered_profiles

VERBS = ["translate", "classify", "summarise", "count", "rewrite", "explain", "compare", "order"]


def texts_of(place: int, num: int = 10) -> list[str]:
    rng = np.random.default_rng([5, place])
    return [f"{VERBS[place]} this: item {rng.integers(10**6)}" for _ in range(num)]


def worded_profiles(*, num_adapters: int = 8, num_samples: int = 10, spread: float = 3.0) -> list[AdapterProfile]:
    """Adapters whose embeddings hardly differ, but whose texts begin differently."""
    profiles = clustered_profiles(num_samples=[num_samples] * num_adapters, spread=spread)
    return [
        replace(profile, grams=SampleGrams.of(texts_of(place, num_samples))) for place, profile in enumerate(profiles)
    ]


def fit(profiles: list[AdapterProfile]) -> FittedPool:
    return FittedPool.fit(profiles, build_index=DenseGaussianIndex)


def nowhere(pool: FittedPool) -> np.ndarray:
    return pool.model.space.center_E.copy()


class TestFit:
    def test_wording_that_tells_adapters_apart_has_a_weight(self):
        pool = fit(worded_profiles())
        assert pool.stack is not None
        assert pool.stack.weights.lexical_weight > 1.0

    def test_wording_that_is_the_same_for_all_has_none(self):
        profiles = clustered_profiles(num_samples=[10] * 6, spread=0.3)
        same = [replace(profile, grams=SampleGrams.of(["always the same"] * 10)) for profile in profiles]
        assert fit(same).stack is None

    def test_without_grams_it_is_the_gaussian_alone(self):
        profiles = clustered_profiles(num_samples=[6, 9, 6])
        assert fit(profiles).stack is None
        blocks = [profile.samples_ME for profile in profiles]
        assert fit(profiles).model.temperature == fit_pooled_eb(blocks).temperature

    def test_the_gaussian_s_own_temperature_is_what_it_is_without_wording(self):
        profiles = worded_profiles()
        bare = [replace(profile, grams=None) for profile in profiles]
        assert fit(profiles).model.temperature == fit(bare).model.temperature

    def test_grams_of_other_texts_than_the_embeddings_are_not_used(self):
        profiles = [replace(profile, grams=SampleGrams.of(["too", "few"])) for profile in worded_profiles()]
        assert fit(profiles).stack is None

    def test_single_samples_can_be_fitted_and_give_the_wording_no_weight(self):
        assert fit(worded_profiles(num_samples=1)).stack is None

    def test_where_no_text_makes_a_mistake_the_wording_decides_only_what_no_adapter_explains(self):
        pool = fit(worded_profiles(num_samples=20, spread=0.05))
        assert pool.stack is not None
        assert pool.stack.weights.lexical_weight < 0.1
        assert pool.stack.unknown_weights.temperature > 50.0
        assert pool.stack.unknown_weights.lexical_weight > 1.0

    def test_unequal_numbers_of_samples_can_be_fitted(self):
        counts = [2, 20, 5, 40]
        profiles = [
            replace(profile, grams=SampleGrams.of(texts_of(place, counts[place])))
            for place, profile in enumerate(clustered_profiles(num_samples=counts, spread=3.0))
        ]
        pool = fit(profiles)
        found = pool.score_nearest(
            nowhere(pool), num_results=1, excluded=NOBODY, grams=gram_ids("translate this: item 1")
        )
        assert found.idx_C.tolist() == [0]

    def test_the_order_of_adapters_makes_no_difference(self):
        profiles = worded_profiles()
        one, other = fit(profiles), fit(profiles[::-1])
        assert one.stack is not None and other.stack is not None
        assert one.stack.weights == other.stack.weights

    def test_both_parts_are_returned_for_a_pool_of_blocks(self):
        profiles = worded_profiles()
        model, stack = fit_stacked([p.samples_ME for p in profiles], [p.grams for p in profiles])
        assert stack is not None
        assert model.temperature != stack.weights.temperature


class TestSearch:
    def test_an_embedding_that_says_nothing_leaves_it_to_the_wording(self):
        pool = fit(worded_profiles())
        for place, verb in enumerate(VERBS):
            found = pool.score_nearest(
                nowhere(pool), num_results=3, excluded=NOBODY, grams=gram_ids(f"{verb} this: item 99")
            )
            assert found.idx_C[0] == place

    def test_the_posterior_is_that_of_both_scores_together(self):
        pool = fit(worded_profiles())
        assert pool.stack is not None
        z_E = pool.checked(pool.profiles[3].samples_ME[0])
        grams = gram_ids("count this: item 5")
        logits = pool.model.log_likelihood(
            z_E
        ) / pool.stack.weights.temperature + pool.stack.weights.lexical_weight * pool.stack.lexical.scores(
            grams, np.arange(8)
        )
        expected = np.exp(logits - np.logaddexp.reduce(logits))
        found = pool.score_nearest(z_E, num_results=8, excluded=NOBODY, grams=grams)
        assert found.posterior_C == pytest.approx(expected[found.idx_C])
        assert (np.diff(found.posterior_C) <= 0.0).all()
        assert found.posterior_C.sum() == pytest.approx(1.0)

    def test_beyond_the_shortlist_the_gaussian_s_posterior_holds(self, monkeypatch):
        monkeypatch.setattr(fitted_pool, "SHORTLIST", 4)
        pool = fit(worded_profiles())
        z_E = pool.checked(pool.profiles[3].samples_ME[0])
        found = pool.score_nearest(z_E, num_results=2, excluded=NOBODY, grams=gram_ids("order this: item 1"))
        assert len(found.idx_C) == 2
        assert pool.stack is not None
        shares = pool.model.log_likelihood(z_E) / pool.stack.weights.temperature
        shares = np.exp(shares - np.logaddexp.reduce(shares))
        whole = pool.score_nearest(z_E, num_results=4, excluded=NOBODY, grams=gram_ids("order this: item 1"))
        assert whole.posterior_C.sum() == pytest.approx(np.sort(shares)[-4:].sum())

    def test_excluded_adapters_are_not_found_and_others_share_their_posterior(self):
        pool = fit(worded_profiles())
        found = pool.score_nearest(
            nowhere(pool), num_results=8, excluded=np.array([0, 5]), grams=gram_ids("translate this: item 4")
        )
        assert sorted(found.idx_C.tolist()) == [1, 2, 3, 4, 6, 7]
        assert found.posterior_C.sum() == pytest.approx(1.0)

    def test_what_was_asked_for_is_among_the_results(self):
        pool = fit(worded_profiles())
        found = pool.score_nearest(
            nowhere(pool), num_results=1, excluded=NOBODY, also=np.array([6]), grams=gram_ids("order this: item 4")
        )
        assert set(found.idx_C.tolist()) == {6, 7}

    def test_without_grams_the_search_is_the_gaussian_s(self):
        worded = fit(worded_profiles())
        bare = fit([replace(profile, grams=None) for profile in worded_profiles()])
        z_E = worded.checked(worded.profiles[2].samples_ME[1])
        one = worded.score_nearest(z_E, num_results=8, excluded=NOBODY)
        other = bare.score_nearest(z_E, num_results=8, excluded=NOBODY)
        assert one.posterior_C == pytest.approx(other.posterior_C)
        assert one.idx_C.tolist() == other.idx_C.tolist()

    def test_a_newcomer_is_found_by_its_wording(self):
        profiles = worded_profiles()
        pool = fit(profiles[:7]).extended(profiles[7:])
        found = pool.score_nearest(nowhere(pool), num_results=1, excluded=NOBODY, grams=gram_ids("order this: item 77"))
        assert [pool.profiles[place].adapter_name for place in found.idx_C] == [profiles[7].adapter_name]
        assert pool.extended([]).stack is pool.fitted_stack


class TestUnknownTexts:
    def test_wording_decides_far_from_every_adapter(self):
        pool = fit(worded_profiles(num_samples=20, spread=0.05))
        # A little nearer to adapter 2 than to any other, and far from all.
        z_E = nowhere(pool) * 0.5 + 0.1 * pool.profiles[2].samples_ME[0]
        by_meaning = pool.score_nearest(z_E, num_results=1, excluded=NOBODY)
        assert (by_meaning.ratios_C < 0.0).all() and by_meaning.idx_C[0] == 2
        by_both = pool.score_nearest(z_E, num_results=1, excluded=NOBODY, grams=gram_ids("compare this: item 9"))
        assert by_both.idx_C[0] == 6

    def test_wording_does_not_decide_against_an_adapter_that_explains_the_text(self):
        pool = fit(worded_profiles(num_samples=20, spread=0.05))
        z_E = pool.checked(pool.profiles[2].samples_ME[0])
        found = pool.score_nearest(z_E, num_results=1, excluded=NOBODY, grams=gram_ids("compare this: item 9"))
        assert found.ratios_C[0] > 0.0 and found.idx_C[0] == 2

    def test_without_the_adapter_that_explains_it_a_text_is_unknown(self):
        pool = fit(worded_profiles(num_samples=20, spread=0.05))
        z_E = pool.checked(pool.profiles[2].samples_ME[0])
        found = pool.score_nearest(z_E, num_results=1, excluded=np.array([2]), grams=gram_ids("compare this: item 9"))
        assert found.idx_C[0] == 6


class TestRouter:
    def test_the_rules_can_leave_the_wording_out(self):
        router = SequenceRouter(worded_profiles(), catalog_generation=1)
        pool = router.pool
        assert pool is not None and router.counts_grams
        grams = gram_ids("order this: item 5")
        stacked = router.decide(nowhere(pool), settings=RoutingSettings(), grams=grams)
        alone = router.decide(nowhere(pool), settings=RoutingSettings(score_rule=ScoreRule.GAUSSIAN), grams=grams)
        assert stacked.plan.budgets[0].adapter_name == "task-07"
        assert alone.candidates == router.decide(nowhere(pool), settings=RoutingSettings()).candidates

    def test_a_pool_without_weight_for_the_wording_says_so(self):
        assert not SequenceRouter([], catalog_generation=1).counts_grams
        assert not SequenceRouter(clustered_profiles(num_samples=[5, 5]), catalog_generation=1).counts_grams
