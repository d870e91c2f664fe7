"""Who may use an adapter: a decision made for a tenant knows no other adapters than that tenant's."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.access import AdapterAccess, Requester, TrustTier
from hilora.errors import UnknownAdapter
from hilora.gaussian_index import DenseGaussianIndex
from hilora.routing_plan import RoutingMode
from services.router.catalog import CatalogAdapter
from services.router.infra.index_kinds import build_index
from services.router.models import ModelDirectory
from services.router.pool_index import IndexKind
from services.router.routing_options import RoutingOptions
from services.router.routing_rules import STRATEGY_OF_MODE
from tests.fakes.router_ports import FakeWorkers, InMemoryCatalog, catalog_view, route_text

_WORDS = {
    "capitals": "country capital city",
    "sums": "add numbers total",
    "poems": "rhyme verse stanza",
    "recipes": "cook oven flour",
}
_TEXTS = {task: [f"{words} {n}" for n in range(5)] for task, words in _WORDS.items()}
_TENANTS = ["a", "b", "c"]

EXACT_INDEXES = {
    "dense": DenseGaussianIndex,
    "exact": partial(build_index, kind=IndexKind.EXACT),
    "byte": partial(build_index, kind=IndexKind.BYTE),
}

accesses = st.builds(
    AdapterAccess,
    trust_tier=st.sampled_from(TrustTier),
    visible_to=st.lists(st.sampled_from(_TENANTS), unique=True).map(lambda tenants: tuple(sorted(tenants))),
)


def directory(view, *, min_trust_tier=TrustTier.UNTRUSTED):
    return ModelDirectory(
        catalog=InMemoryCatalog(view), workers=FakeWorkers(), base_model_name="tiny", min_trust_tier=min_trust_tier
    )


def decide(view, text, *, min_trust_tier=TrustTier.UNTRUSTED, mode=RoutingMode.CALIBRATED, **options):
    models = directory(view, min_trust_tier=min_trust_tier)
    use_case = route_text(InMemoryCatalog(view), models=models, strategy=STRATEGY_OF_MODE[mode])
    return asyncio.run(use_case.route(text, RoutingOptions(**options), num_runners_up=10)).decision


class TestDecisions:
    @pytest.mark.parametrize("index", EXACT_INDEXES)
    @settings(max_examples=40, deadline=None)
    @given(
        access=st.fixed_dictionaries(dict.fromkeys(_TEXTS, accesses)),
        tenant=st.sampled_from([None, *_TENANTS]),
        asked=st.sampled_from(TrustTier),
        words=st.sampled_from(list(_WORDS.values())),
        mode=st.sampled_from([RoutingMode.CALIBRATED, RoutingMode.PAPER]),
    )
    def test_a_tenant_s_never_mentions_what_that_tenant_may_not_use(self, index, access, tenant, asked, words, mode):
        build = EXACT_INDEXES[index]
        view = catalog_view(_TEXTS, access=access, build_index=build)
        requester = Requester(tenant=tenant, min_trust_tier=asked)
        visible = {task for task in _TEXTS if access[task].admits(requester)}

        decision = decide(view, f"{words} x", tenant=tenant, min_trust_tier=asked, mode=mode)

        mentioned = {candidate.adapter_name for candidate in decision.candidates}
        assert {budget.adapter_name for budget in decision.plan.budgets} <= visible
        assert mentioned == visible
        # The fit is shared; what it says is not: with the others excluded by hand, the decision is the same.
        everybodys = catalog_view(_TEXTS, build_index=build)
        by_hand = decide(everybodys, f"{words} x", exclude_adapters=frozenset(_TEXTS) - visible, mode=mode)
        assert decision.plan == by_hand.plan
        assert decision.candidates == by_hand.candidates

    @settings(max_examples=20, deadline=None)
    @given(hidden=st.sets(st.sampled_from(list(_TEXTS))), words=st.sampled_from(list(_WORDS.values())))
    def test_it_names_the_adapter_that_a_pool_of_the_visible_ones_alone_would(self, hidden, words):
        access = dict.fromkeys(hidden, AdapterAccess(visible_to=("other",)))
        alone = {task: texts for task, texts in _TEXTS.items() if task not in hidden}

        shared = decide(catalog_view(_TEXTS, access=access), f"{words} x")
        apart = decide(catalog_view(alone), f"{words} x")

        own_task = next(task for task, task_words in _WORDS.items() if task_words == words)
        if own_task not in hidden:
            assert shared.plan.budgets[0].adapter_name == apart.plan.budgets[0].adapter_name == own_task

    def test_what_is_excluded_by_hand_comes_on_top_of_what_is_hidden(self):
        view = catalog_view(_TEXTS, access={"capitals": AdapterAccess(visible_to=("a",))}, gone=["sums"])

        decision = decide(view, "country capital city x", exclude_adapters=frozenset({"poems"}))

        assert {candidate.adapter_name for candidate in decision.candidates} == {"recipes"}
        again = decide(view, "country capital city x")
        assert {candidate.adapter_name for candidate in again.candidates} == {"recipes", "poems"}

    def test_a_pool_of_hidden_adapters_looks_like_an_empty_one(self):
        access = dict.fromkeys(_TEXTS, AdapterAccess(visible_to=("other",)))

        hidden = decide(catalog_view(_TEXTS, access=access), "country capital city x")
        empty = decide(catalog_view({}), "country capital city x")

        assert hidden == empty

    def test_a_change_of_access_holds_before_the_next_fit(self):
        before = catalog_view(_TEXTS)
        after = catalog_view(_TEXTS, access={"capitals": AdapterAccess(visible_to=("a",))}, catalog_generation=2)
        assert after.router_generation == 2
        assert [budget.adapter_name for budget in decide(before, "country capital city x").plan.budgets] == ["capitals"]
        assert "capitals" not in {
            candidate.adapter_name for candidate in decide(after, "country capital city x").candidates
        }


class TestNames:
    def test_what_is_hidden_does_not_exist(self):
        view = catalog_view(
            _TEXTS,
            access={
                "capitals": AdapterAccess(visible_to=("a",)),
                "sums": AdapterAccess(trust_tier=TrustTier.UNTRUSTED),
            },
            aliases={"prod": "capitals", "other": "poems"},
        )
        models = directory(view, min_trust_tier=TrustTier.COMMUNITY)

        assert [model.model_id for model in models.all_models()][2:] == ["poems", "recipes", "other"]
        assert [model.model_id for model in models.all_models("a")][2:] == [
            "capitals",
            "poems",
            "recipes",
            "other",
            "prod",
        ]
        for name in ("capitals", "prod", "capitals@1", "sums"):
            with pytest.raises(UnknownAdapter) as raised:
                models.model(name, "b")
            assert raised.value.code == "model_not_found"
            with pytest.raises(UnknownAdapter):
                decide(view, "x", model=name, min_trust_tier=TrustTier.COMMUNITY, tenant="b")

    def test_a_request_can_ask_for_more_trust_but_not_for_less(self):
        models = directory(catalog_view(_TEXTS), min_trust_tier=TrustTier.COMMUNITY)
        assert models.requester(RoutingOptions(min_trust_tier=TrustTier.TRUSTED)).min_trust_tier is TrustTier.TRUSTED
        assert (
            models.requester(RoutingOptions(min_trust_tier=TrustTier.UNTRUSTED)).min_trust_tier is TrustTier.COMMUNITY
        )


class TestVersions:
    def view(self, **changes):
        view = catalog_view({"capitals": _TEXTS["capitals"]}, revision="c" * 64, **changes)
        current = view.adapters["capitals"]
        old = CatalogAdapter(
            adapter_id="capitals@bbbbbbbbbbbb",
            adapter_name="capitals",
            revision="b" * 64,
            lora_rank=3,
            created_at=1.0,
            version=1,
        )
        changed = CatalogAdapter(
            adapter_id=current.adapter_id,
            adapter_name="capitals",
            revision=current.revision,
            lora_rank=8,
            created_at=2.0,
            version=2,
            access=current.access,
            other_versions=(old,),
        )
        object.__setattr__(view, "adapters", {"capitals": changed})
        return view

    @pytest.mark.parametrize("model", ["capitals@1", "capitals@bbbbbbbb", "capitals@" + "b" * 64, "first"])
    def test_an_older_version_is_a_model_of_its_own(self, model):
        view = self.view(aliases={"first": "capitals@1"})

        (budget,) = decide(view, "x", model=model).plan.budgets

        assert (budget.adapter_id, budget.num_rocs) == ("capitals@bbbbbbbbbbbb", 3)
        assert directory(view).model(model).root == "capitals@bbbbbbbbbbbb"
        assert directory(view).model(model).model_id == model

    def test_the_bare_name_and_the_current_number_mean_the_same(self):
        view = self.view()
        assert decide(view, "x", model="capitals").plan == decide(view, "x", model="capitals@2").plan

    @pytest.mark.parametrize("model", ["capitals@3", "capitals@", "capitals@1@1", "@1", "capitals@cccc", "nobody@1"])
    def test_what_names_no_version_is_not_found(self, model):
        with pytest.raises(UnknownAdapter):
            decide(self.view(), "x", model=model)

    def test_older_versions_obey_the_access_of_the_name(self):
        view = self.view(access={"capitals": AdapterAccess(visible_to=("a",))})
        assert decide(view, "x", model="capitals@1", tenant="a").plan.budgets
        with pytest.raises(UnknownAdapter):
            decide(view, "x", model="capitals@1")

    def test_an_alias_never_stands_before_a_name(self):
        view = self.view(aliases={"capitals": "capitals@1", "lost": "nobody", "loop": "loop"})
        assert decide(view, "x", model="capitals").plan.budgets[0].lora_rank == 8
        assert [model.model_id for model in directory(view).all_models()][2:] == ["capitals"]
        for model in ("lost", "loop"):
            with pytest.raises(UnknownAdapter):
                decide(view, "x", model=model)
