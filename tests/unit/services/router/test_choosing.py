"""What a request can ask of the choice: strategies, composition, tags, plans by id, low confidence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hilora.access import AdapterAccess
from hilora.errors import Conflict, InvalidInput, LowConfidence, UnknownAdapter
from hilora.routing_plan import GateRule, GateScope, PlanPreparation, PreparationMethod, RocScore, RoutingMode
from services.router.models import ModelDirectory
from services.router.request import ChatMessage, ChatPrompt, ChatRole
from services.router.routing_options import ComposedAdapter, LowConfidencePolicy, RoutedPart, RoutingOptions
from tests.fakes.router_ports import FakeEmbedder, FakeWorkers, InMemoryCatalog, catalog_view, local_plans, route_text

_TEXTS = {
    "capitals": [f"country capital city {n}" for n in range(6)],
    "sums": [f"add numbers total {n}" for n in range(6)],
    "poems": [f"rhyme verse stanza {n}" for n in range(6)],
}
_CAPITAL = "country capital city x"
_STRANGE = "zzz qqq"


class Case:
    def __init__(self, *, access=None, aliases=None, **defaults):
        self.view = catalog_view(_TEXTS, catalog_generation=4, access=access, aliases=aliases)
        self.catalog = InMemoryCatalog(self.view)
        self.embedder = FakeEmbedder()
        models = ModelDirectory(catalog=self.catalog, workers=FakeWorkers(), base_model_name="tiny")
        self.use_case = route_text(self.catalog, models=models, embedder=self.embedder, plans=local_plans(), **defaults)

    async def route(self, text=_CAPITAL, **options):
        return await self.use_case.route(text, RoutingOptions(**options))

    async def plan(self, text=_CAPITAL, **options):
        return (await self.route(text, **options)).decision.plan

    def show(self, **changes):
        self.catalog.current = replace(self.view, **changes)


def names(plan):
    return [budget.adapter_name for budget in plan.budgets]


async def refusal(case, kind, text=_CAPITAL, **options):
    with pytest.raises(kind) as raised:
        await case.route(text, **options)
    return raised.value


class TestStrategies:
    async def test_one_is_named_by_the_model_or_by_an_option(self):
        by_model = await Case().route(model="auto:arrow")
        by_option = await Case().route(strategy="arrow")
        assert by_model.decision.plan.gate.rule is GateRule.ARROW
        assert by_model.strategy == by_option.strategy == "arrow"
        assert by_model.decision.plan.digest == by_option.decision.plan.digest

    async def test_the_setting_holds_where_nobody_says(self):
        case = Case(strategy="retriever-mixture")
        assert (await case.route()).strategy == "retriever-mixture"
        assert (await case.route(strategy="hilora")).strategy == "hilora"

    async def test_a_mode_alone_means_hilora(self):
        case = Case(strategy="uniform")
        route = await case.route(mode=RoutingMode.PAPER)
        assert (route.strategy, route.decision.mode) == ("hilora-paper", RoutingMode.PAPER)

    async def test_unknown_ones_are_refused_with_the_list(self):
        for options in ({"strategy": "magic"}, {"model": "auto:magic"}):
            error = await refusal(Case(), UnknownAdapter, **options)
            assert error.code == "unknown_strategy"
            assert "retriever-mixture" in error.remedy

    @pytest.mark.parametrize(
        "options",
        [
            {"model": "auto:arrow", "strategy": "seqr"},
            {"strategy": "arrow", "mode": RoutingMode.CALIBRATED},
            {"model": "sums", "strategy": "arrow"},
            {"model": "sums", "adapters": (ComposedAdapter(model="poems"),)},
            {"plan_id": "plan-1", "adapters": (ComposedAdapter(model="poems"),)},
            {"plan_id": "plan-1", "strategy": "hilora"},
        ],
    )
    async def test_saying_it_twice_is_a_contradiction(self, options):
        assert (await refusal(Case(), InvalidInput, **options)).code == "contradicting_options"

    async def test_a_plan_that_is_to_be_prepared_is_remembered_as_such(self):
        case = Case()
        first = await case.route(strategy="retriever-fusion")
        assert first.decision.plan.preparation == PlanPreparation(method=PreparationMethod.FUSION)
        pinned = await case.route(plan_id=first.plan_id)
        assert pinned.decision.plan == first.decision.plan
        assert first.plan_id != (await case.route(strategy="retriever-mixture")).plan_id

    @pytest.mark.parametrize("strategy", ["ramole", "phatgoose"])
    async def test_learned_gates_come_from_the_settings(self, strategy):
        gate = (await Case(gate_ids={strategy: "mine@1"}).plan(strategy=strategy)).gate
        assert gate.gate_id == "mine@1"
        error = await refusal(Case(), InvalidInput, strategy=strategy)
        assert error.code == "strategy_needs_gate"
        assert f"{strategy}=GATE_ID" in error.remedy

    async def test_so_do_learned_factors(self):
        plan = await Case(learned_weights={"sums": -0.5, "gone": 1.0}).plan(strategy="lorahub")
        assert [(budget.adapter_name, budget.weight) for budget in plan.budgets] == [("sums", -0.5)]
        assert (await refusal(Case(), InvalidInput, strategy="lorahub")).code == "strategy_needs_weights"

    async def test_the_oracle_is_told(self):
        case = Case(access={"poems": AdapterAccess(visible_to=("t",))})
        assert names(await case.plan(strategy="oracle", own_adapter="sums")) == ["sums"]
        assert (await refusal(case, InvalidInput, strategy="oracle")).code == "strategy_needs_own_adapter"
        # One that is hidden is one that does not exist.
        hidden, absent = [
            await refusal(case, UnknownAdapter, strategy="oracle", own_adapter=name) for name in ("poems", "absent")
        ]
        assert hidden.code == absent.code == "unknown_own_adapter"
        assert names(await case.plan(strategy="oracle", own_adapter="poems", tenant="t")) == ["poems"]

    async def test_the_base_reads_nothing(self):
        case = Case()
        route = await case.route(strategy="base")
        assert route.decision.plan.is_base_only
        assert case.embedder.texts == []
        assert route.session is None

    async def test_wishes_change_a_strategy_s_rules(self):
        case = Case()
        plan = await case.plan(strategy="retriever-mixture", max_candidates=2)
        assert len(plan.budgets) == 2
        gate = (await case.plan(roc_score=RocScore.CONTRIBUTION, gate_scope=GateScope.PER_ADAPTER)).gate
        assert (gate.score, gate.scope) == (RocScore.CONTRIBUTION, GateScope.PER_ADAPTER)
        wide = await case.plan(_STRANGE, min_candidates=1)
        assert len(wide.budgets) == 1


class TestComposition:
    async def test_one_whole_adapter_is_the_pinned_adapter(self):
        case = Case()
        composed = await case.route(adapters=(ComposedAdapter(model="sums"),))
        pinned = await case.route(model="sums")
        assert composed.decision.plan == pinned.decision.plan
        assert composed.decision.plan.digest == pinned.decision.plan.digest
        assert composed.decision.mode is RoutingMode.EXPLICIT
        assert composed.strategy is None

    async def test_factors_and_counts_are_the_client_s(self):
        wanted = (ComposedAdapter(model="sums", scale=0.5, num_rocs=3), ComposedAdapter(model="poems", scale=-2.0))
        case = Case()
        plan = await case.plan(adapters=wanted)
        assert [(b.adapter_name, b.weight, b.num_rocs) for b in plan.budgets] == [("sums", 0.5, 3), ("poems", -2.0, 8)]
        assert (plan.gate.eta, plan.gate.scope, plan.gate.rule) == (1.0, GateScope.PER_ADAPTER, GateRule.ROCS)
        assert plan.catalog_generation == 4
        assert case.embedder.texts == []

    async def test_aliases_are_names_too(self):
        plan = await Case(aliases={"add": "sums"}).plan(adapters=(ComposedAdapter(model="add"),))
        assert names(plan) == ["sums"]

    async def test_nothing_that_acts_is_the_base(self):
        assert (await Case().plan(adapters=(ComposedAdapter(model="sums", num_rocs=0),))).is_base_only

    @pytest.mark.parametrize(
        ("adapters", "code"),
        [
            ((ComposedAdapter(model="sums"), ComposedAdapter(model="sums")), "duplicate_adapter"),
            ((ComposedAdapter(model="sums", scale=math.nan),), "invalid_scale"),
            ((ComposedAdapter(model="sums", scale=math.inf),), "invalid_scale"),
            ((ComposedAdapter(model="sums", scale=1001.0),), "invalid_scale"),
            ((ComposedAdapter(model="sums", num_rocs=9),), "invalid_num_rocs"),
            ((ComposedAdapter(model="nobody"),), "model_not_found"),
            (tuple(ComposedAdapter(model="sums") for _ in range(65)), "too_many_adapters"),
        ],
    )
    async def test_what_cannot_be_put_together_is_refused(self, adapters, code):
        assert (await refusal(Case(), InvalidInput, adapters=adapters)).code == code

    async def test_another_tenant_s_adapter_does_not_exist(self):
        case = Case(access={"sums": AdapterAccess(visible_to=("acme",))})
        adapters = (ComposedAdapter(model="sums"),)
        assert (await refusal(case, UnknownAdapter, adapters=adapters)).code == "model_not_found"
        assert names(await case.plan(adapters=adapters, tenant="acme")) == ["sums"]

    async def test_excluding_it_contradicts(self):
        options = {"adapters": (ComposedAdapter(model="sums"),), "exclude_adapters": frozenset({"sums"})}
        assert (await refusal(Case(), InvalidInput, **options)).code == "excluded_model"


class TestTags:
    def tagged(self):
        case = Case()
        adapters = dict(case.view.adapters)
        adapters["sums"] = replace(adapters["sums"], tags=("maths", "beta"))
        adapters["poems"] = replace(adapters["poems"], tags=("beta",))
        case.show(adapters=adapters)
        return case

    async def test_only_adapters_with_all_of_them_are_chosen_among(self):
        case = self.tagged()
        assert names(await case.plan(tags=frozenset({"maths", "beta"}))) == ["sums"]
        told = (await case.route(tags=frozenset({"beta"}))).decision.candidates
        assert {candidate.adapter_name for candidate in told} == {"sums", "poems"}
        assert names(await case.plan()) == ["capitals"]

    async def test_tags_that_nobody_bears_leave_the_base(self):
        route = await self.tagged().route(tags=frozenset({"nothing"}))
        assert route.decision.plan.is_base_only
        assert "tags" in route.decision.reason

    async def test_they_restrict_the_choice_and_not_what_is_named(self):
        assert names(await self.tagged().plan(model="capitals", tags=frozenset({"beta"}))) == ["capitals"]


class TestPlans:
    async def test_an_answer_s_plan_can_be_had_again_without_reading_the_text(self):
        case = Case()
        first = await case.route(strategy="retriever-mixture")
        case.embedder.texts.clear()
        again = await case.route("add numbers total x", plan_id=first.plan_id)
        assert again.decision.plan.digest == first.decision.plan.digest
        assert again.plan_id == first.plan_id
        assert again.decision.mode is RoutingMode.EXPLICIT
        assert case.embedder.texts == []

    async def test_ids_tell_plans_catalogues_and_tenants_apart(self):
        case = Case()
        ids = {(await case.route(model=name)).plan_id for name in ("sums", "poems", "base")}
        ids.add((await case.route(model="sums", tenant="acme")).plan_id)
        case.show(catalog_generation=5)
        ids.add((await case.route(model="sums")).plan_id)
        assert len(ids) == 5
        assert all(plan_id.startswith("plan-") for plan_id in ids)
        assert (await case.route(model="sums")).plan_id in ids

    async def test_it_is_stamped_with_the_catalogue_that_still_has_it(self):
        case = Case()
        plan_id = (await case.route(model="sums")).plan_id
        case.show(catalog_generation=9)
        assert (await case.plan(plan_id=plan_id)).catalog_generation == 9

    async def test_an_earlier_version_will_do_as_long_as_it_can_be_named(self):
        case = Case()
        plan_id = (await case.route(model="sums")).plan_id
        old = case.view.adapters["sums"]
        newer = replace(old, adapter_id="sums@2", revision="2", version=2, other_versions=(old,))
        case.show(adapters={**case.view.adapters, "sums": newer})
        assert (await case.plan(plan_id=plan_id)).budgets[0].adapter_id == old.adapter_id
        case.show(adapters={**case.view.adapters, "sums": replace(newer, other_versions=())})
        error = await refusal(case, Conflict, plan_id=plan_id)
        assert error.code == "plan_gone"

    async def test_one_that_is_not_known_is_not_found(self):
        for plan_id in ("plan-0", "x" * 200):
            assert (await refusal(Case(), UnknownAdapter, plan_id=plan_id)).code == "plan_not_found"

    async def test_a_plan_with_hidden_adapters_is_not_known_to_others(self):
        case = Case(access={"sums": AdapterAccess(visible_to=("acme",))})
        plan_id = (await case.route(model="sums", tenant="acme")).plan_id
        assert names(await case.plan(plan_id=plan_id, tenant="acme")) == ["sums"]
        for tenant in (None, "other"):
            assert (await refusal(case, UnknownAdapter, plan_id=plan_id, tenant=tenant)).code == "plan_not_found"

    async def test_pinning_and_excluding_contradict(self):
        case = Case()
        plan_id = (await case.route(model="sums")).plan_id
        options = {"plan_id": plan_id, "exclude_adapters": frozenset({"sums"})}
        assert (await refusal(case, InvalidInput, **options)).code == "excluded_model"


class TestLowConfidence:
    async def test_the_likeliest_answer_by_default(self):
        route = await Case().route(_STRANGE)
        assert route.decision.is_out_of_distribution
        assert route.decision.plan.budgets

    async def test_the_base_alone_if_that_is_wanted(self):
        route = await Case().route(_STRANGE, low_confidence=LowConfidencePolicy.BASE)
        decision = route.decision
        assert decision.plan.is_base_only
        assert decision.is_out_of_distribution
        assert "base model" in decision.reason
        assert decision.candidates
        assert all(candidate.num_rocs == 0 for candidate in decision.candidates)

    async def test_a_refusal_names_who_came_nearest(self):
        error = await refusal(Case(), LowConfidence, _STRANGE, low_confidence=LowConfidencePolicy.REFUSE)
        assert error.code == "low_confidence"
        assert {item["name"] for item in error.details["candidates"]} == set(_TEXTS)

    async def test_the_setting_holds_where_the_request_does_not_say(self):
        case = Case(low_confidence=LowConfidencePolicy.REFUSE)
        assert (await refusal(case, LowConfidence, _STRANGE)).code == "low_confidence"
        assert (await case.plan(_STRANGE, low_confidence=LowConfidencePolicy.TOP)).budgets

    @pytest.mark.parametrize("policy", LowConfidencePolicy)
    async def test_a_text_that_is_explained_is_answered_under_every_policy(self, policy):
        assert names(await Case().plan(low_confidence=policy)) == ["capitals"]

    async def test_what_a_client_names_is_never_in_doubt(self):
        assert names(await Case().plan(_STRANGE, model="sums", low_confidence=LowConfidencePolicy.REFUSE)) == ["sums"]


class TestRoutedPart:
    PROMPT = ChatPrompt(
        messages=tuple(
            ChatMessage(role=role, content=content)
            for role, content in [
                (ChatRole.SYSTEM, "be kind"),
                (ChatRole.USER, "one"),
                (ChatRole.ASSISTANT, "two"),
                (ChatRole.USER, "three"),
                (ChatRole.ASSISTANT, "four"),
                (ChatRole.USER, "five"),
            ]
        )
    )

    @pytest.mark.parametrize(
        ("part", "expected"),
        [
            (None, "five"),
            (RoutedPart.LAST_USER, "five"),
            (RoutedPart.WINDOW, "five\nthree"),
            (RoutedPart.CONVERSATION, "five\nfour\nthree\ntwo\none"),
        ],
    )
    async def test_the_request_says_what_is_looked_at(self, part, expected):
        case = Case(routed_turns=2)
        await case.use_case.route(self.PROMPT, RoutingOptions(routed_part=part))
        assert case.embedder.texts == [expected]

    async def test_so_does_the_setting(self):
        case = Case(routed_part=RoutedPart.WINDOW, routed_turns=9)
        await case.use_case.route(self.PROMPT, RoutingOptions())
        assert case.embedder.texts == ["five\nthree\none"]

    async def test_what_is_cut_off_is_the_oldest(self):
        case = Case(routed_part=RoutedPart.WINDOW, routed_turns=3, max_routed_chars=8)
        await case.use_case.route(self.PROMPT, RoutingOptions())
        assert case.embedder.texts == ["five\nthr"]

    async def test_where_no_user_spoke_the_last_message_is_looked_at(self):
        prompt = ChatPrompt(messages=(ChatMessage(role=ChatRole.SYSTEM, content="add"),))
        for part in RoutedPart:
            case = Case()
            await case.use_case.route(prompt, RoutingOptions(routed_part=part))
            assert case.embedder.texts == ["add"]
