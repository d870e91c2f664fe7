from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hilora.character_grams import SampleGrams
from hilora.errors import InvalidInput, RegistryUnavailable, Unavailable, UnknownAdapter
from hilora.routing_plan import RoutingMode
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from services.router.decision_cache import DecisionCache
from services.router.models import ModelDirectory
from services.router.routing_options import LowConfidencePolicy, RoutingOptions
from tests.builders.skills import skill_profiles, worded
from tests.fakes.router_ports import FakeEmbedder, FakeWorkers, InMemoryCatalog, catalog_view, route_text

_TEXTS = {
    "capitals": [f"country capital city {n}" for n in range(6)],
    "sums": [f"add numbers total {n}" for n in range(6)],
    "poems": [f"rhyme verse stanza {n}" for n in range(6)],
}
_CAPITAL = "country capital city x"


class Case:
    def __init__(self, **defaults):
        self.catalog = InMemoryCatalog(catalog_view(_TEXTS, catalog_generation=4))
        self.embedder = FakeEmbedder()
        models = ModelDirectory(catalog=self.catalog, workers=FakeWorkers(), base_model_name="tiny")
        self.use_case = route_text(self.catalog, models=models, embedder=self.embedder, **defaults)

    async def plan(self, text=_CAPITAL, **options):
        return (await self.use_case.route(text, RoutingOptions(**options))).decision.plan


def _names(plan):
    return [budget.adapter_name for budget in plan.budgets]


class TestAuto:
    async def test_the_fitted_model_decides(self):
        route = await Case().use_case.route(_CAPITAL, RoutingOptions())
        assert _names(route.decision.plan) == ["capitals"]
        assert route.decision.mode is RoutingMode.CALIBRATED
        assert route.catalog_generation == 4
        assert route.encoder_id == "hash:1"
        assert route.encode_seconds > 0
        assert route.decide_seconds > 0

    async def test_excluded_and_gone_adapters_are_not_chosen(self):
        case = Case()
        assert "capitals" not in _names(await case.plan(exclude_adapters=frozenset({"capitals"})))
        case.catalog.current = catalog_view(_TEXTS, gone=["capitals"], catalog_generation=5, router_generation=4)
        plan = await case.plan()
        assert "capitals" not in _names(plan)
        # The plan stands on the fit: a worker at 4 can run it.
        assert plan.catalog_generation == 4

    async def test_an_adapter_that_goes_while_the_text_is_embedded_is_not_chosen(self):
        case = Case()
        embed = case.embedder.embed

        async def embed_and_retire(text):
            case.catalog.current = catalog_view(_TEXTS, gone=["capitals"])
            return await embed(text)

        case.embedder.embed = embed_and_retire
        assert "capitals" not in _names(await case.plan())

    async def test_only_the_beginning_of_a_long_text_is_looked_at(self):
        case = Case(max_routed_chars=7)
        await case.plan("country capital")
        assert case.embedder.texts == ["country"]

    async def test_the_client_s_options_win_over_the_settings(self):
        case = Case(strategy="hilora-paper", gamma=0.1, max_candidates=1)
        by_setting = await case.use_case.route("x", RoutingOptions())
        assert by_setting.decision.mode is RoutingMode.PAPER
        assert len(by_setting.decision.plan.budgets) == 1
        wide = await case.plan("x", gamma=1.0, max_candidates=3)
        assert len(wide.budgets) == 3
        assert wide.num_rocs == 24
        by_option = await case.use_case.route("x", RoutingOptions(mode=RoutingMode.CALIBRATED))
        assert by_option.decision.mode is RoutingMode.CALIBRATED

    async def test_the_seed_decides_the_paper_s_draw(self):
        case = Case(strategy="hilora-paper", gamma=0.4)
        digests = {(await case.plan("rhyme city add", seed=seed)).digest for seed in range(20)}
        assert len(digests) > 1
        again = [(await case.plan("rhyme city add", seed=7)).digest for _ in range(3)]
        assert len(set(again)) == 1

    async def test_runners_up_are_reported_up_to_a_number(self):
        route = await Case().use_case.route(_CAPITAL, RoutingOptions(), num_runners_up=1)
        assert len(route.decision.candidates) == 2


class TestNamed:
    async def test_an_adapter_runs_with_all_its_rocs_and_nothing_is_embedded(self):
        case = Case()
        route = await case.use_case.route(_CAPITAL, RoutingOptions(model="sums"))
        budget = route.decision.plan.budgets[0]
        assert (budget.adapter_name, budget.num_rocs) == ("sums", 8)
        assert route.decision.mode is RoutingMode.EXPLICIT
        assert route.decision.plan.catalog_generation == 4
        assert case.embedder.texts == []
        assert route.encode_seconds == 0

    @pytest.mark.parametrize("name", ["base", "tiny"])
    async def test_the_base_runs_alone(self, name):
        plan = await Case().plan(model=name)
        assert plan.is_base_only
        assert plan.catalog_generation == 4

    async def test_an_unknown_name_is_an_error(self):
        with pytest.raises(UnknownAdapter):
            await Case().plan(model="nobody")

    async def test_naming_and_excluding_contradict(self):
        with pytest.raises(InvalidInput) as raised:
            await Case().plan(model="sums", exclude_adapters=frozenset({"sums"}))
        assert raised.value.code == "excluded_model"


class TestMissingParts:
    async def test_without_a_catalogue_nothing_is_decided(self):
        case = Case()
        case.catalog.current = None
        with pytest.raises(RegistryUnavailable):
            await case.plan()

    async def test_without_an_encoder_only_names_work(self):
        case = Case()
        case.embedder.is_loaded = False
        with pytest.raises(Unavailable):
            await case.plan()
        assert _names(await case.plan(model="sums")) == ["sums"]


class TestWording:
    """Adapters whose embeddings say nothing, so that only how a text is written tells them apart."""

    def case(self, **defaults) -> Case:
        case = Case(**defaults)
        rng = np.random.default_rng(0)
        profiles = []
        for verb in ("translate", "summarise", "order"):
            vectors = rng.standard_normal((12, 32)).astype(np.float32)
            texts = [f"{verb} this item {number * 37 % 101}" for number in range(12)]
            profiles.append(
                AdapterProfile(
                    adapter_id=f"{verb}@1",
                    adapter_name=verb,
                    lora_rank=8,
                    samples_ME=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
                    grams=SampleGrams.of(texts),
                )
            )
        view = catalog_view({profile.adapter_name: ["x"] for profile in profiles})
        router = SequenceRouter(profiles, catalog_generation=1)
        assert router.counts_grams
        case.catalog.current = replace(view, router=router)
        return case

    @pytest.mark.parametrize("verb", ["translate", "summarise", "order"])
    async def test_the_text_s_own_wording_decides(self, verb):
        candidates = (await self.case().use_case.route(f"{verb} this item 55", RoutingOptions())).decision.candidates
        assert max(candidates, key=lambda candidate: candidate.posterior).adapter_name == verb

    async def test_the_operator_can_leave_it_out(self):
        case = self.case(score_rule=ScoreRule.GAUSSIAN)
        text = "order this item 55"
        decision = (await case.use_case.route(text, RoutingOptions())).decision
        z_E = await case.embedder.embed(text)
        alone = case.catalog.view().router.decide(z_E, settings=RoutingSettings())
        assert decision.candidates == alone.candidates


class TestTwoSkills:
    """A text that no adapter explains and two do together."""

    TEXT = worded("reverse the letters and write them backwards and then replace each by its successor", 1)

    def case(self, **defaults) -> Case:
        case = Case(**defaults)
        profiles = skill_profiles()
        view = catalog_view({profile.adapter_name: ["x"] for profile in profiles})
        case.catalog.current = replace(view, router=SequenceRouter(profiles, catalog_generation=1))
        return case

    async def test_both_read_it_and_the_first_answers(self):
        decision = (await self.case().use_case.route(self.TEXT, RoutingOptions())).decision
        weights = [(one.adapter_name, one.weight, one.reading_weight) for one in decision.plan.budgets]
        assert weights == [("reverse", 1.0, 1.0), ("next", 0.0, 1.0)]

    async def test_the_operator_can_leave_it_out(self):
        decision = (await self.case(combine_skills=False).use_case.route(self.TEXT, RoutingOptions())).decision
        assert decision.is_out_of_distribution
        assert not decision.plan.has_phases

    async def test_a_policy_against_texts_that_nobody_explains_comes_first(self):
        options = RoutingOptions(low_confidence=LowConfidencePolicy.BASE)
        assert (await self.case().use_case.route(self.TEXT, options)).decision.plan.is_base_only

    async def test_a_plan_that_is_asked_for_again_has_both_phases(self):
        case = self.case()
        first = await case.use_case.route(self.TEXT, RoutingOptions())
        again = await case.use_case.route(self.TEXT, RoutingOptions(plan_id=first.plan_id))
        assert again.decision.plan == first.decision.plan


class TestRememberedDecisions:
    """A text that comes again is not thought about again, and never answered by what held for something else."""

    def case(self, **defaults):
        self.cache = DecisionCache(max_entries=3)
        return Case(decisions=self.cache, **defaults)

    async def test_the_same_text_gets_the_same_decision_without_being_scored(self):
        case = self.case()
        first = await case.use_case.route(_CAPITAL, RoutingOptions())
        again = await case.use_case.route(_CAPITAL, RoutingOptions())
        assert again.decision is first.decision
        assert self.cache.num_hits == 1
        unremembered = await Case().use_case.route(_CAPITAL, RoutingOptions())
        assert again.decision.plan == unremembered.decision.plan

    @pytest.mark.parametrize(
        "other",
        [
            {"gamma": 0.1},
            {"model": "auto:uniform"},
            {"exclude_adapters": frozenset({"capitals"})},
            {"max_candidates": 1},
            {"seed": 7},
        ],
    )
    async def test_another_wish_is_another_question(self, other):
        case = self.case()
        await case.plan()
        assert await case.plan(**other) == await Case().plan(**other)
        assert self.cache.num_hits == 0

    async def test_another_number_of_runners_up_is_another_question(self):
        case = self.case()
        few, many = [await case.use_case.route(_CAPITAL, RoutingOptions(), num_runners_up=number) for number in (0, 2)]
        assert len(many.decision.candidates) == len(few.decision.candidates) + 2

    async def test_what_is_gone_is_not_chosen_from_memory(self):
        case = self.case()
        assert _names(await case.plan()) == ["capitals"]
        case.catalog.current = replace(case.catalog.current, gone=frozenset({"capitals"}))
        assert "capitals" not in _names(await case.plan())

    async def test_a_new_fit_decides_anew(self):
        case = self.case()
        await case.plan()
        case.catalog.current = catalog_view(_TEXTS, catalog_generation=9)
        assert (await case.plan()).catalog_generation == 9
        assert (self.cache.num_hits, len(self.cache)) == (0, 1)

    async def test_what_was_decided_for_a_pool_that_is_replaced_meanwhile_is_not_kept(self):
        old, new = (SequenceRouter([], catalog_generation=generation) for generation in (1, 2))
        decision = (await Case().use_case.route(_CAPITAL, RoutingOptions())).decision
        cache = DecisionCache(max_entries=3)
        assert cache.get(old, "text") is None
        assert cache.get(new, "text") is None
        cache.put(old, "text", decision)
        assert cache.get(new, "text") is None

    async def test_no_more_are_kept_than_may_be(self):
        case = self.case()
        for number in range(5):
            await case.plan(f"rhyme {number}")
        assert len(self.cache) == 3
        await case.plan("rhyme 4")
        await case.plan("rhyme 0")
        assert self.cache.num_hits == 1

    async def test_nothing_is_kept_where_nothing_may_be(self):
        case = Case()
        first, again = [await case.use_case.route(_CAPITAL, RoutingOptions()) for _ in range(2)]
        assert first.decision is not again.decision
