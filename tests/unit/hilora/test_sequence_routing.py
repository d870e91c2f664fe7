from __future__ import annotations

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.gaussian import CovarianceFamily
from hilora.routing_plan import GateScope, RoutingDecision, RoutingMode
from hilora.routing_settings import RoutingSettings, UnknownTaskRule, WeightRule
from hilora.sequence_routing import AdapterProfile, SequenceRouter, base_decision, explicit_decision
from tests.builders.profiles import clustered_profiles

CALIBRATED = RoutingSettings.for_mode(RoutingMode.CALIBRATED)
PAPER = RoutingSettings.for_mode(RoutingMode.PAPER)
MODES = [CALIBRATED, PAPER]

PROFILES = clustered_profiles(num_samples=[20, 20, 5, 20, 1, 20], lora_ranks=[8, 4, 8, 16, 8, 8])
ROUTER = SequenceRouter(PROFILES, catalog_generation=7)


def text_of(place: int, *, towards: int | None = None) -> np.ndarray:
    """A text of a task, or halfway to another one."""
    z_E = PROFILES[place].samples_ME.mean(axis=0)
    if towards is not None:
        z_E = z_E + PROFILES[towards].samples_ME.mean(axis=0)
    return z_E / np.linalg.norm(z_E)


def strange_text(seed: int = 3) -> np.ndarray:
    z_E = np.random.default_rng(seed).normal(size=24)
    return z_E / np.linalg.norm(z_E)


def chosen(decision: RoutingDecision) -> list[str]:
    return [budget.adapter_name for budget in decision.plan.budgets]


class TestCalibrated:
    def test_a_sure_request_behaves_like_its_one_adapter(self):
        decision = ROUTER.decide(text_of(3), settings=CALIBRATED)
        (budget,) = decision.plan.budgets
        assert (budget.adapter_name, budget.num_rocs, budget.lora_rank, budget.weight) == ("task-03", 16, 16, 1.0)
        assert decision.plan.gate.eta == 1.0
        assert not decision.is_out_of_distribution
        assert "task-03" in decision.reason

    def test_a_doubtful_one_mixes_with_weights_that_sum_to_1(self):
        decision = ROUTER.decide(text_of(0, towards=3), settings=CALIBRATED)
        assert set(chosen(decision)) == {"task-00", "task-03"}
        weights = [budget.weight for budget in decision.plan.budgets]
        assert sum(weights) == pytest.approx(1.0)
        assert decision.plan.num_rocs == 12
        assert all(budget.num_rocs >= 1 for budget in decision.plan.budgets)
        assert decision.plan.gate.scope is GateScope.GLOBAL

    def test_a_text_that_nothing_explains_is_said_to_be_one(self):
        decision = ROUTER.decide(strange_text(), settings=CALIBRATED)
        assert decision.is_out_of_distribution
        assert all(score.log_likelihood_ratio < 0 for score in decision.candidates)
        assert 1 <= len(decision.plan.budgets) <= 3
        assert "None of 6" in decision.reason

    def test_the_unknown_branch_can_take_the_best_k(self):
        rule = replace(CALIBRATED, unknown_task_rule=UnknownTaskRule.TOP_K, min_candidates=2)
        assert len(ROUTER.decide(strange_text(), settings=rule).plan.budgets) == 2

    def test_gamma_rules_where_confidence_does_not(self):
        thrifty = replace(CALIBRATED, confidence_following=False, gamma=0.25)
        assert ROUTER.decide(text_of(3), settings=thrifty).plan.num_rocs == 4

    def test_the_seed_does_not_matter(self):
        z_E = text_of(0, towards=1)
        plans = {ROUTER.decide(z_E, settings=CALIBRATED, request_seed=seed).plan.digest for seed in range(5)}
        assert len(plans) == 1


class TestPaper:
    def test_plans_are_taken_literally(self):
        decision = ROUTER.decide(text_of(3), settings=PAPER, request_seed=1)
        gate = decision.plan.gate
        assert (gate.basis, gate.scope) == (RocBasis.TRAINED, GateScope.PER_ADAPTER)
        assert all(budget.weight == 1.0 for budget in decision.plan.budgets)

    def test_candidates_follow_the_sign_of_the_score(self):
        decision = ROUTER.decide(text_of(3), settings=PAPER, num_runners_up=6)
        positive = {score.adapter_name for score in decision.candidates if score.log_likelihood > 0}
        assert "task-03" in positive
        assert set(chosen(decision)) <= positive

    def test_eta_keeps_the_variance_of_an_average_adapter(self):
        settings_ = replace(PAPER, gamma=1.0)
        decision = ROUTER.decide(strange_text(), settings=settings_)
        ranks = [budget.lora_rank for budget in decision.plan.budgets]
        assert len(ranks) == 3
        assert decision.plan.num_rocs == sum(ranks)
        assert decision.plan.gate.eta == pytest.approx((1 / len(ranks)) ** 0.5)

    def test_the_seed_decides_the_counts(self):
        z_E = strange_text()
        plans = [ROUTER.decide(z_E, settings=PAPER, request_seed=seed).plan.digest for seed in range(12)]
        assert len(set(plans)) > 1
        assert plans == [ROUTER.decide(z_E, settings=PAPER, request_seed=seed).plan.digest for seed in range(12)]

    @pytest.mark.parametrize("family", CovarianceFamily)
    def test_every_family_scores(self, family):
        decision = ROUTER.decide(text_of(3), settings=replace(PAPER, covariance_family=family))
        best = max(decision.candidates, key=lambda score: score.log_likelihood)
        assert best.adapter_name == "task-03"


class TestEveryMode:
    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 10_000), mode=st.sampled_from(MODES), request_seed=st.integers(0, 3))
    def test_limits_hold_and_the_pools_order_never_matters(self, seed, mode, request_seed):
        shuffled = PROFILES.copy()
        random.Random(seed).shuffle(shuffled)
        z_E = strange_text(seed)
        first, second = (
            router.decide(z_E, settings=mode, request_seed=request_seed)
            for router in (ROUTER, SequenceRouter(shuffled, catalog_generation=7))
        )
        assert first == second
        assert all(1 <= budget.num_rocs <= budget.lora_rank for budget in first.plan.budgets)
        assert len(first.plan.budgets) <= mode.max_candidates
        assert first.plan.catalog_generation == 7

    @pytest.mark.parametrize("mode", MODES)
    def test_the_chosen_come_first_then_the_best_of_the_others(self, mode):
        decision = ROUTER.decide(text_of(0, towards=3), settings=mode, num_runners_up=2)
        num_chosen = len(decision.plan.budgets)
        assert [score.adapter_name for score in decision.candidates[:num_chosen]] == sorted(
            chosen(decision), key=lambda name: -next(s.posterior for s in decision.candidates if s.adapter_name == name)
        )
        assert all(score.num_rocs > 0 for score in decision.candidates[:num_chosen])
        assert all(score.num_rocs == 0 and score.weight == 0 for score in decision.candidates[num_chosen:])
        assert len(decision.candidates) == min(num_chosen + 2, 6)

    @pytest.mark.parametrize("mode", MODES)
    def test_an_excluded_adapter_takes_no_part(self, mode):
        decision = ROUTER.decide(text_of(3), settings=mode, exclude=frozenset({"task-03"}), num_runners_up=9)
        assert "task-03" not in {score.adapter_name for score in decision.candidates}
        assert sum(score.posterior for score in decision.candidates) == pytest.approx(1.0)
        assert decision.plan.budgets

    @pytest.mark.parametrize("mode", MODES)
    def test_the_limit_on_candidates_holds(self, mode):
        narrow = replace(mode, max_candidates=1)
        assert len(ROUTER.decide(text_of(0, towards=1), settings=narrow).plan.budgets) == 1

    @pytest.mark.parametrize("mode", MODES)
    def test_an_empty_pool_leaves_the_base(self, mode):
        for router, exclude in (
            (SequenceRouter([], catalog_generation=2), frozenset()),
            (ROUTER, frozenset(profile.adapter_name for profile in PROFILES)),
        ):
            decision = router.decide(strange_text(), settings=mode, exclude=exclude)
            assert decision.plan.is_base_only
            assert decision.plan.catalog_generation == router.catalog_generation
            assert decision.candidates == ()
            assert "base model" in decision.reason

    def test_threads_share_one_router(self):
        router = SequenceRouter(PROFILES, catalog_generation=7)
        digests: list[str] = []

        def ask():
            digests.append(router.decide(text_of(3), settings=PAPER).plan.digest)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(digests) == 8 and len(set(digests)) == 1


class TestMisuse:
    @pytest.mark.parametrize("z_E", [np.ones(3), np.ones((1, 24)), np.full(24, np.nan)])
    def test_an_embedding_that_does_not_fit(self, z_E):
        with pytest.raises(ValueError, match="the embedding"):
            ROUTER.decide(z_E, settings=CALIBRATED)

    def test_an_adapter_twice(self):
        with pytest.raises(ValueError, match="twice"):
            SequenceRouter([PROFILES[0], PROFILES[0]], catalog_generation=0)

    def test_an_adapter_without_ranks(self):
        profile = AdapterProfile(
            adapter_id="a@1", adapter_name="a", lora_rank=0, samples_ME=np.ones((1, 4), dtype=np.float32)
        )
        with pytest.raises(ValueError, match="rank"):
            SequenceRouter([profile], catalog_generation=0)


class TestNamedModels:
    def test_a_named_adapter_runs_in_full(self):
        decision = explicit_decision(adapter_id="a@1", adapter_name="a", lora_rank=8, catalog_generation=4)
        (budget,) = decision.plan.budgets
        assert (budget.num_rocs, budget.weight, decision.plan.gate.eta) == (8, 1.0, 1.0)
        assert decision.mode is RoutingMode.EXPLICIT
        assert decision.plan.catalog_generation == 4
        assert [score.adapter_name for score in decision.candidates] == ["a"]

    def test_the_named_base_runs_alone(self):
        decision = base_decision(catalog_generation=4)
        assert decision.plan.is_base_only and decision.mode is RoutingMode.EXPLICIT
        assert not decision.is_out_of_distribution


class TestSettings:
    @pytest.mark.parametrize(
        "change",
        [
            {"gamma": 0.0},
            {"gamma": 1.1},
            {"candidate_mass": 0.0},
            {"min_candidates": 0},
            {"max_candidates": 0},
            {"mode": RoutingMode.EXPLICIT},
            {"covariance_family": CovarianceFamily.FULL},
            {"covariance_shrinkage": 0.0},
        ],
    )
    def test_values_out_of_range(self, change):
        with pytest.raises(ValueError):
            RoutingSettings(**change)

    def test_the_default_is_the_calibrated_mode(self):
        assert RoutingSettings() == CALIBRATED
        assert CALIBRATED.weight_rule is WeightRule.SHARPENED and CALIBRATED.basis is RocBasis.SVD


class TestExtension:
    def test_a_newcomer_is_chosen_for_its_own_texts(self):
        router = SequenceRouter(PROFILES[:4], catalog_generation=7)
        extended = router.extended(PROFILES[5:], catalog_generation=8)
        decision = extended.decide(text_of(5), settings=CALIBRATED)
        assert chosen(decision) == ["task-05"]
        assert decision.plan.catalog_generation == 8
        assert (extended.num_adapters, extended.num_newcomers) == (5, 1)
        assert (router.num_adapters, router.num_newcomers) == (4, 0)

    def test_a_new_version_takes_the_place_of_the_old_one(self):
        old, new = PROFILES[3], replace(PROFILES[3], adapter_id="task-03@ffffffffffff", lora_rank=4)
        extended = ROUTER.extended([new], catalog_generation=8)
        decision = extended.decide(text_of(3), settings=CALIBRATED, num_runners_up=9)
        (budget,) = decision.plan.budgets
        assert (budget.adapter_id, budget.num_rocs) == (new.adapter_id, 4)
        assert old.adapter_id not in {score.adapter_id for score in decision.candidates}
        assert sum(score.posterior for score in decision.candidates) == pytest.approx(1.0)
        assert extended.num_adapters == 6

    def test_more_samples_of_an_adapter_replace_those_of_the_fit(self):
        moved = replace(PROFILES[3], samples_ME=strange_text()[None].astype(np.float32))
        extended = ROUTER.extended([moved], catalog_generation=8)
        assert extended.num_adapters == 6
        assert chosen(extended.decide(strange_text(), settings=CALIBRATED))[0] == "task-03"

    def test_an_extension_replaces_the_one_before(self):
        router = SequenceRouter(PROFILES[:3], catalog_generation=7)
        first = router.extended(PROFILES[3:5], catalog_generation=8)
        assert first.extended(PROFILES[5:], catalog_generation=9).num_adapters == 4
        assert first.extended([], catalog_generation=9).num_newcomers == 0

    def test_the_papers_mode_waits_for_the_next_fit(self):
        extended = SequenceRouter(PROFILES[:4], catalog_generation=7).extended(PROFILES[5:], catalog_generation=8)
        decision = extended.decide(text_of(5), settings=PAPER, num_runners_up=9)
        assert "task-05" not in {score.adapter_name for score in decision.candidates}

    def test_misuse(self):
        with pytest.raises(ValueError, match="empty"):
            SequenceRouter([], catalog_generation=7).extended(PROFILES, catalog_generation=8)
        with pytest.raises(ValueError, match="twice"):
            ROUTER.extended([PROFILES[0]] * 2, catalog_generation=8)
