from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.gaussian_index import NOBODY
from hilora.sequence_routing import SequenceRouter
from hilora.topic_watch import TopicRules, watch_topic
from tests.builders.profiles import clustered_profiles

PROFILES = clustered_profiles(num_samples=[20, 20, 20, 20, 20])
POOL = SequenceRouter(PROFILES, catalog_generation=1).pool


def text_of(*places):
    z_E = sum(PROFILES[place].samples_ME.mean(axis=0) for place in places)
    return z_E / np.linalg.norm(z_E)


def watch(z_E, kept, *, excluded=NOBODY, pool=POOL, **rules):
    kept_places = np.array(kept, dtype=np.intp)
    return watch_topic(pool, z_E, kept_places=kept_places, excluded=excluded, rules=TopicRules(**rules))


class TestWatch:
    def test_a_text_of_the_plan_s_own_task_leaves_it(self):
        verdict = watch(text_of(0), [0])
        assert not verdict.has_moved
        assert verdict.kept_posterior > 0.9

    def test_a_text_of_another_task_moves_it(self):
        verdict = watch(text_of(1), [0])
        assert verdict.has_moved
        assert verdict.challenger == "task-01"
        assert verdict.challenger_ratio > 0

    def test_of_several_kept_ones_one_that_explains_is_enough(self):
        assert not watch(text_of(1), [0, 1]).has_moved

    def test_an_undecided_text_leaves_it(self):
        halfway = text_of(0, 1)
        assert not watch(halfway, [0]).has_moved
        assert not watch(halfway, [1]).has_moved

    def test_a_text_that_no_adapter_explains_leaves_it(self):
        z_E = np.random.default_rng(1).normal(size=24)
        verdict = watch(z_E / np.linalg.norm(z_E), [0])
        assert verdict.challenger_ratio < 0
        assert not verdict.has_moved

    def test_a_plan_without_adapters_ends_with_the_first_text_that_one_explains(self):
        assert watch(text_of(2), []).has_moved
        z_E = np.random.default_rng(1).normal(size=24)
        assert not watch(z_E / np.linalg.norm(z_E), []).has_moved

    def test_who_is_excluded_challenges_nobody(self):
        verdict = watch(text_of(1), [0], excluded=np.array([1]))
        assert verdict.challenger != "task-01"

    def test_a_plan_of_everybody_has_no_challenger(self):
        verdict = watch(text_of(1), range(5))
        assert (verdict.has_moved, verdict.challenger) == (False, None)
        assert verdict.kept_posterior == pytest.approx(1.0)

    def test_another_wording_of_another_task_moves_it_although_nobody_explains_it(self):
        # Near to task 1, but further away than any text of its own.
        away = np.random.default_rng(2).normal(size=24)
        z_E = text_of(1) + away / np.linalg.norm(away)
        z_E = z_E / np.linalg.norm(z_E)
        verdict = watch(z_E, [0])
        assert verdict.challenger_ratio < 0
        assert verdict.has_moved
        assert not watch(z_E, [0], share=1.0).has_moved
        assert not watch(z_E, []).has_moved

    def test_rules_out_of_range_are_mistakes(self):
        for rules in ({"odds": 0.9}, {"share": -0.1}, {"share": 1.1}, {"odds": float("nan")}):
            with pytest.raises(ValueError, match=next(iter(rules))):
                TopicRules(**rules)

    @given(
        seed=st.integers(0, 500),
        kept=st.sets(st.integers(0, 4)),
        odds=st.floats(1.0, 1e6),
        share=st.floats(0.0, 1.0),
    )
    @settings(max_examples=80, deadline=None)
    def test_stricter_rules_never_move_what_looser_ones_leave(self, seed, kept, odds, share):
        rng = np.random.default_rng(seed)
        z_E = text_of(int(rng.integers(5))) + 0.3 * rng.normal(size=24) / 5
        z_E = z_E / np.linalg.norm(z_E)
        if watch(z_E, sorted(kept), odds=odds, share=share).has_moved:
            assert watch(z_E, sorted(kept), odds=1.0, share=0.0).has_moved

    @given(order=st.permutations(range(5)), seed=st.integers(0, 100))
    @settings(max_examples=30, deadline=None)
    def test_the_order_of_the_pool_never_matters(self, order, seed):
        shuffled = SequenceRouter([PROFILES[place] for place in order], catalog_generation=1).pool
        z_E = text_of(seed % 5, (seed // 5) % 5)
        kept = [POOL.place_of("task-00@0123456789ab", "task-00"), POOL.place_of("task-03@0123456789ab", "task-03")]
        theirs = [
            shuffled.place_of(POOL.profiles[place].adapter_id, POOL.profiles[place].adapter_name) for place in kept
        ]
        one, other = watch(z_E, kept), watch(z_E, theirs, pool=shuffled)
        assert (one.has_moved, one.challenger) == (other.has_moved, other.challenger)
        assert one.kept_posterior == pytest.approx(other.kept_posterior)


class TestPlaces:
    def test_a_newcomer_takes_the_place_of_its_name(self):
        router = SequenceRouter(PROFILES, catalog_generation=1)
        newcomer = clustered_profiles(num_samples=[4])[0].__class__(
            adapter_id="task-00@new", adapter_name="task-00", lora_rank=8, samples_ME=PROFILES[1].samples_ME[:4]
        )
        pool = router.extended([newcomer], catalog_generation=2).pool
        assert pool.place_of("task-00@0123456789ab", "task-00") is None
        assert pool.profiles[pool.place_of("task-00@new", "task-00")] is newcomer
        assert pool.place_of("task-00@other", "task-00") is None
        assert pool.place_of("x@1", "x") is None

    def test_newcomers_are_scored_as_a_search_scores_them(self):
        pool = SequenceRouter(PROFILES[:3], catalog_generation=1).extended(PROFILES[3:], catalog_generation=2).pool
        z_E = pool.checked(text_of(4, 1))
        everybody = pool.score_nearest(z_E, num_results=5, excluded=NOBODY)
        some = pool.score_nearest(z_E, num_results=1, excluded=NOBODY, also=np.arange(5))
        assert some.idx_C.tolist() == everybody.idx_C.tolist()
        np.testing.assert_allclose(some.posterior_C, everybody.posterior_C, rtol=1e-9)
        np.testing.assert_allclose(some.ratios_C, everybody.ratios_C, rtol=1e-9, atol=1e-9)
