from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.errors import UnknownAdapter
from hilora.routing_plan import GateParameters, GateRule, PlanPreparation, PreparationMethod, RoutingMode
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies import STRATEGY_NAMES, RoutingQuestion, strategy_named
from tests.builders.profiles import clustered_profiles

PROFILES = clustered_profiles(num_samples=[20, 20, 5, 20, 1, 20], lora_ranks=[8, 4, 8, 16, 8, 8])
ROUTER = SequenceRouter(PROFILES, catalog_generation=7)
NAMES = [profile.adapter_name for profile in PROFILES]


def text_of(place: int) -> np.ndarray:
    z_E = PROFILES[place].samples_ME.mean(axis=0)
    return z_E / np.linalg.norm(z_E)


def random_text(seed: int) -> np.ndarray:
    z_E = np.random.default_rng(seed).normal(size=24)
    return z_E / np.linalg.norm(z_E)


def decide(name, z_E, *, router=ROUTER, exclude=(), num_runners_up=5, request_seed=0, **changes):
    strategy = strategy_named(name)
    question = RoutingQuestion(
        z_E=z_E,
        settings=replace(strategy.settings, **changes),
        request_seed=request_seed,
        exclude=frozenset(exclude),
        num_runners_up=num_runners_up,
        # Named first of those that may be chosen: the oracle has no other way to know.
        own_adapter=next((name for name in NAMES if name not in exclude), None),
        gate_ids={"ramole": "ramole@1", "phatgoose": "phatgoose@1"},
        learned_weights={name: 0.3 * place - 0.7 for place, name in enumerate(NAMES)},
    )
    return strategy.decide(router, question)


def chosen(decision):
    return [budget.adapter_name for budget in decision.plan.budgets]


def by_cosine(z_E):
    """Names by falling cosine with the mean of the samples, written out."""
    cosines = {}
    for profile in PROFILES:
        mean = np.mean(profile.samples_ME.astype(np.float64), axis=0)
        cosines[profile.adapter_name] = float(mean @ z_E / np.linalg.norm(mean) / np.linalg.norm(z_E))
    return sorted(NAMES, key=lambda name: -cosines[name])


class TestTable:
    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(UnknownAdapter) as raised:
            strategy_named("magic")
        assert raised.value.code == "unknown_strategy"
        assert all(name in raised.value.remedy for name in STRATEGY_NAMES)

    @pytest.mark.parametrize("name", STRATEGY_NAMES)
    def test_names_are_their_own(self, name):
        assert strategy_named(name).name == name


class TestLikelihood:
    @pytest.mark.parametrize(
        ("name", "mode"), [("hilora", RoutingMode.CALIBRATED), ("hilora-paper", RoutingMode.PAPER)]
    )
    def test_it_is_the_router_s_own_decision(self, name, mode):
        z_E = random_text(5)
        assert decide(name, z_E) == ROUTER.decide(z_E, settings=RoutingSettings.for_mode(mode))


class TestRetriever:
    @pytest.mark.parametrize("seed", range(6))
    def test_selection_is_the_nearest_alone_whatever_k(self, seed):
        z_E = random_text(seed)
        decision = decide("retriever-selection", z_E, max_candidates=5)
        assert chosen(decision) == by_cosine(z_E)[:1]
        (budget,) = decision.plan.budgets
        assert (budget.num_rocs, budget.weight) == (budget.lora_rank, 1.0)
        assert decision.plan.gate == GateParameters()

    @pytest.mark.parametrize("k", [1, 2, 3, 6])
    def test_mixture_is_the_k_nearest_in_equal_parts(self, k):
        z_E = random_text(11)
        decision = decide("retriever-mixture", z_E, max_candidates=k)
        assert chosen(decision) == by_cosine(z_E)[:k]
        assert [budget.weight for budget in decision.plan.budgets] == pytest.approx([1 / k] * k)
        assert all(budget.num_rocs == budget.lora_rank for budget in decision.plan.budgets)

    def test_three_are_mixed_by_default(self):
        assert len(chosen(decide("retriever-mixture", text_of(0)))) == 3

    def test_what_came_after_the_fit_is_found_too(self):
        router = SequenceRouter(PROFILES[:3], catalog_generation=1).extended(PROFILES[3:], catalog_generation=2)
        z_E = random_text(4)
        assert chosen(decide("retriever-mixture", z_E, router=router)) == by_cosine(z_E)[:3]


class TestUniform:
    def test_everybody_takes_part_in_equal_parts_whatever_the_text(self):
        plans = {decide("uniform", random_text(seed)).plan.digest for seed in range(4)}
        assert len(plans) == 1
        decision = decide("uniform", text_of(2))
        assert sorted(chosen(decision)) == sorted(NAMES)
        assert sum(budget.weight for budget in decision.plan.budgets) == pytest.approx(1.0)

    def test_a_limit_takes_the_first_by_identity(self):
        assert chosen(decide("uniform", text_of(5), max_candidates=2)) == ["task-00", "task-01"]


class TestTokenChoice:
    @pytest.mark.parametrize(
        ("name", "rule", "top_k"),
        [("arrow", GateRule.ARROW, 3), ("spectr", GateRule.SPECTR, 0), ("seqr", GateRule.SEQR, 0)],
    )
    def test_the_likeliest_compete_as_wholes_under_the_rule(self, name, rule, top_k):
        decision = decide(name, text_of(3), max_candidates=4)
        gate = decision.plan.gate
        assert (gate.rule, gate.top_k, gate.eta) == (rule, top_k, 1.0)
        assert all(budget.num_rocs == budget.lora_rank and budget.weight == 1 for budget in decision.plan.budgets)
        likeliest = sorted(decision.candidates, key=lambda candidate: -candidate.posterior)[:4]
        assert chosen(decision) == [candidate.adapter_name for candidate in likeliest]
        assert chosen(decision)[0] == "task-03"


class TestLorauter:
    def test_weights_are_the_softmax_of_the_cosines(self):
        z_E = random_text(7)
        nearest = by_cosine(z_E)[:3]
        means = {profile.adapter_name: profile.samples_ME.astype(np.float64).mean(axis=0) for profile in PROFILES}
        cosines = np.array([means[name] @ z_E / np.linalg.norm(means[name]) for name in nearest])
        expected = np.exp(cosines / 0.2) / np.exp(cosines / 0.2).sum()
        decision = decide("lorauter", z_E)
        assert chosen(decision) == nearest
        assert [budget.weight for budget in decision.plan.budgets] == pytest.approx(list(expected), rel=1e-5)


class TestTaskVdb:
    def test_a_stray_sample_is_seen(self):
        # One adapter has a single sample: the text is that sample.
        decision = decide("task-vdb", PROFILES[4].samples_ME[0].astype(np.float64))
        assert chosen(decision)[0] == "task-04"

    def test_what_came_after_the_fit_counts_the_same(self):
        router = SequenceRouter(PROFILES[3:], catalog_generation=1).extended(PROFILES[:3], catalog_generation=2)
        for seed in range(5):
            ours, theirs = decide("task-vdb", random_text(seed)), decide("task-vdb", random_text(seed), router=router)
            assert chosen(ours) == chosen(theirs)
            assert [budget.weight for budget in ours.plan.budgets] == pytest.approx(
                [budget.weight for budget in theirs.plan.budgets]
            )

    def test_the_nucleus_is_a_setting(self):
        z_E = random_text(3)
        assert len(chosen(decide("task-vdb", z_E, candidate_mass=0.01))) == 1
        assert len(chosen(decide("task-vdb", z_E, candidate_mass=1.0))) > 1


class TestPreparedPlans:
    def test_fusion_and_clusters_are_of_trained_factors(self):
        fusion = decide("retriever-fusion", random_text(1)).plan
        assert fusion.preparation == PlanPreparation(method=PreparationMethod.FUSION)
        lego = decide("lego", random_text(1), candidate_mass=1.0).plan
        assert lego.preparation == PlanPreparation(method=PreparationMethod.LEGO)
        assert {fusion.gate.basis, lego.gate.basis} == {RocBasis.TRAINED}
        assert fusion.digest != decide("retriever-mixture", random_text(1)).plan.digest

    def test_logo_asks_many_and_keeps_few(self):
        plan = decide("logo", random_text(1)).plan
        assert len(plan.budgets) == len(NAMES)
        assert plan.preparation == PlanPreparation(method=PreparationMethod.LOGO, num_kept=3)


class TestLearned:
    def test_gates_are_named_by_the_strategy(self):
        ramole = decide("ramole", random_text(2))
        assert chosen(ramole) == by_cosine(random_text(2))[:3]
        assert (ramole.plan.gate.rule, ramole.plan.gate.gate_id) == (GateRule.RAMOLE, "ramole@1")
        phatgoose = decide("phatgoose", random_text(2)).plan.gate
        assert (phatgoose.rule, phatgoose.top_k, phatgoose.gate_id) == (GateRule.PHATGOOSE, 2, "phatgoose@1")

    def test_lorahub_takes_the_largest_factors_of_either_sign(self):
        plan = decide("lorahub", random_text(2), max_candidates=3).plan
        assert [budget.adapter_name for budget in plan.budgets] == ["task-05", "task-00", "task-04"]
        assert [budget.weight for budget in plan.budgets] == pytest.approx([0.8, -0.7, 0.5])


class TestOracle:
    def test_who_may_choose_nobody_need_not_say_whom(self):
        decision = decide("oracle", random_text(1), exclude=NAMES)
        assert decision.plan.is_base_only
        assert decision.is_out_of_distribution


class TestBase:
    def test_it_needs_neither_text_nor_pool(self):
        empty = SequenceRouter([], catalog_generation=3)
        decision = decide("base", None, router=empty)
        assert decision.plan.is_base_only
        assert decision.plan.catalog_generation == 3
        assert not strategy_named("base").reads_text


CHOOSING = [name for name in STRATEGY_NAMES if name != "base"]


class TestAll:
    @given(name=st.sampled_from(STRATEGY_NAMES), order=st.permutations(range(6)), seed=st.integers(0, 50))
    @settings(max_examples=60, deadline=None)
    def test_the_order_of_registration_never_matters(self, name, order, seed):
        shuffled = SequenceRouter([PROFILES[place] for place in order], catalog_generation=7)
        ours, theirs = decide(name, random_text(seed)), decide(name, random_text(seed), router=shuffled)
        assert ours.plan.digest == theirs.plan.digest
        assert chosen(ours) == chosen(theirs)

    @pytest.mark.parametrize("name", STRATEGY_NAMES)
    def test_a_pool_turned_around_is_the_same_pool(self, name):
        turned = SequenceRouter(PROFILES[::-1], catalog_generation=7)
        for seed in range(3):
            assert decide(name, random_text(seed)) == decide(name, random_text(seed), router=turned)

    @pytest.mark.parametrize("name", STRATEGY_NAMES)
    def test_a_seed_decides_everything(self, name):
        for seed in range(3):
            z_E = random_text(seed)
            again = SequenceRouter(PROFILES, catalog_generation=7)
            once, twice = (decide(name, z_E, router=router, request_seed=seed) for router in (ROUTER, again))
            assert once == twice

    @given(name=st.sampled_from(CHOOSING), excluded=st.sets(st.sampled_from(NAMES)), seed=st.integers(0, 50))
    @settings(max_examples=60, deadline=None)
    def test_who_is_excluded_is_neither_chosen_nor_reported(self, name, excluded, seed):
        decision = decide(name, random_text(seed), exclude=excluded)
        told = {candidate.adapter_name for candidate in decision.candidates}
        assert not (told | set(chosen(decision))) & excluded
        assert decision.plan.is_base_only == (len(excluded) == len(NAMES))

    @given(name=st.sampled_from(CHOOSING), seed=st.integers(0, 50), k=st.integers(1, 8))
    @settings(max_examples=60, deadline=None)
    def test_no_plan_has_more_candidates_than_it_may(self, name, seed, k):
        decision = decide(name, random_text(seed), max_candidates=k)
        assert 1 <= len(decision.plan.budgets) <= k
        assert len(set(chosen(decision))) == len(chosen(decision))

    @pytest.mark.parametrize("name", CHOOSING)
    def test_chosen_ones_are_reported_first_and_with_their_scores(self, name):
        decision = decide(name, random_text(8), num_runners_up=2)
        num_chosen = len(decision.plan.budgets)
        first = decision.candidates[:num_chosen]
        assert {candidate.adapter_id for candidate in first} == {budget.adapter_id for budget in decision.plan.budgets}
        assert all(candidate.num_rocs > 0 for candidate in first)
        assert all(candidate.num_rocs == 0 for candidate in decision.candidates[num_chosen:])
        assert len(decision.candidates) == min(num_chosen + 2, len(NAMES))

    @pytest.mark.parametrize("name", CHOOSING)
    def test_the_posterior_is_the_calibrated_one_whoever_chose(self, name):
        z_E = random_text(9)
        expected = {
            candidate.adapter_name: candidate.posterior
            for candidate in decide("hilora", z_E, num_runners_up=6).candidates
        }
        told = decide(name, z_E, num_runners_up=6).candidates
        assert {candidate.adapter_name: candidate.posterior for candidate in told} == pytest.approx(expected)

    @pytest.mark.parametrize("name", CHOOSING)
    def test_an_empty_pool_leaves_the_base_alone(self, name):
        decision = decide(name, random_text(1), router=SequenceRouter([], catalog_generation=1))
        assert decision.plan.is_base_only
        assert decision.is_out_of_distribution

    @pytest.mark.parametrize("name", CHOOSING)
    def test_a_question_without_a_text_is_a_mistake(self, name):
        with pytest.raises(ValueError, match="embedding"):
            decide(name, None)
