from __future__ import annotations

from dataclasses import replace

import pytest

from hilora.errors import InvalidInput, StaleCatalogGeneration
from services.router.answer import GenerationFinished, RouteResult, SessionVerdict
from services.router.generation import GenerateText
from services.router.models import ModelDirectory
from services.router.request import (
    ChatMessage,
    ChatPrompt,
    ChatRole,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    ToolCall,
)
from services.router.routing_options import LowConfidencePolicy, RoutingOptions
from services.router.sessions import SessionMatching
from tests.fakes.router_ports import (
    FakeEmbedder,
    FakeWorkers,
    InMemoryCatalog,
    catalog_view,
    local_sessions,
    route_text,
    traffic_watch,
)

_TEXTS = {
    "capitals": [f"country capital city {n}" for n in range(6)],
    "sums": [f"add numbers total {n}" for n in range(6)],
    "poems": [f"rhyme verse stanza {n}" for n in range(6)],
}
_CAPITAL, _SUM = "country capital city x", "add numbers total y"
_THANKS = "thank you so much"


class Case:
    def __init__(self, *, matching=SessionMatching.PREFIX):
        self.catalog = InMemoryCatalog(catalog_view(_TEXTS))
        self.workers = FakeWorkers()
        models = ModelDirectory(catalog=self.catalog, workers=self.workers, base_model_name=None)
        sessions = local_sessions(matching=matching)
        self.route_text = route_text(self.catalog, models=models, embedder=FakeEmbedder(), sessions=sessions)
        self.use_case = GenerateText(
            route_text=self.route_text,
            workers=self.workers,
            catalog=self.catalog,
            traffic=traffic_watch(self.catalog),
            sessions=sessions,
        )

    async def ask(self, prompt, *, n=None, **options):
        """The whole answer to a prompt, or to a text."""
        request = GenerationRequest(
            request_id="r",
            prompt=TextPrompt(text=prompt) if isinstance(prompt, str) else prompt,
            sampling=SamplingParams(n=n),
            options=RoutingOptions(**options),
        )
        return await self.use_case.complete(request)

    async def session(self, prompt, **options):
        return (await self.ask(prompt, **options)).route.session

    async def plans(self, prompt, **options):
        done = await self.ask(prompt, **options)
        return [budget.adapter_name for budget in done.route.decision.plan.budgets]


def said(*lines, tools="", continues=False):
    """A conversation: the user and the assistant in turn, from the user on."""
    roles = (ChatRole.USER, ChatRole.ASSISTANT)
    return ChatPrompt(
        messages=tuple(
            line if isinstance(line, ChatMessage) else ChatMessage(role=roles[place % 2], content=line)
            for place, line in enumerate(lines)
        ),
        tools=tools,
        continues_final_message=continues,
    )


class TestById:
    async def test_the_plan_stays_while_the_topic_does(self):
        case = Case()
        first = await case.ask(_CAPITAL, session_id="s")
        second = await case.ask("country capital city other", session_id="s")
        third = await case.ask(_THANKS, session_id="s")
        verdicts = [done.route.session.verdict for done in (first, second, third)]
        assert verdicts == [SessionVerdict.NEW, SessionVerdict.KEPT, SessionVerdict.KEPT]
        assert [done.route.session.after.turn for done in (first, second, third)] == [1, 2, 3]
        assert len({done.route.decision.plan.digest for done in (first, second, third)}) == 1
        assert len({done.route.plan_id for done in (first, second, third)}) == 1
        assert third.route.decision.is_out_of_distribution
        assert third.route.session.is_sticky

    async def test_another_topic_ends_it(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        moved = await case.ask(_SUM, session_id="s")
        assert moved.route.session.verdict is SessionVerdict.TOPIC_MOVED
        assert "sums" in moved.route.session.reason
        assert moved.route.decision.plan.budgets[0].adapter_name == "sums"
        assert moved.route.session.after.turn == 2
        assert await case.plans(_THANKS, session_id="s") == ["sums"]

    async def test_without_a_session_nothing_is_kept(self):
        case = Case(matching=SessionMatching.ID)
        await case.ask(_CAPITAL)
        assert await case.session(_CAPITAL) is None

    async def test_sessions_and_tenants_are_apart(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        for other in ({"session_id": "t"}, {"session_id": "s", "tenant": "acme"}):
            assert (await case.session(_THANKS, **other)).verdict is SessionVerdict.NEW

    async def test_other_wishes_end_the_plan(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        changed = await case.session(_THANKS, session_id="s", max_candidates=1)
        assert changed.verdict is SessionVerdict.OPTIONS_CHANGED
        assert "capitals" not in await case.plans(_CAPITAL, session_id="s", exclude_adapters=frozenset({"capitals"}))

    async def test_a_version_that_is_gone_ends_it(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        case.catalog.current = catalog_view(_TEXTS, catalog_generation=2, revision="2")
        done = await case.ask("country capital city again", session_id="s")
        assert done.route.session.verdict is SessionVerdict.ADAPTER_GONE
        assert done.route.decision.plan.budgets[0].adapter_id == "capitals@2"

    async def test_so_does_a_name_that_is_gone(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        case.catalog.current = catalog_view(_TEXTS, catalog_generation=2, router_generation=1, gone=["capitals"])
        done = await case.ask(_CAPITAL, session_id="s")
        assert done.route.session.verdict is SessionVerdict.ADAPTER_GONE
        assert "capitals" not in [budget.adapter_name for budget in done.route.decision.plan.budgets]

    async def test_a_kept_plan_asks_for_the_catalogue_that_still_has_it(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        case.catalog.current = catalog_view(_TEXTS, catalog_generation=6)
        kept = await case.ask(_CAPITAL, session_id="s")
        assert kept.route.session.is_sticky
        assert kept.route.decision.plan.catalog_generation == 6

    async def test_a_worker_that_dropped_it_makes_a_new_one(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        case.workers.errors_before = [StaleCatalogGeneration("gone")]
        case.catalog.next_view = catalog_view(_TEXTS, catalog_generation=2, revision="2")
        done = await case.ask(_CAPITAL, session_id="s")
        assert case.catalog.waits == [1]
        assert done.route.session.verdict is SessionVerdict.ADAPTER_GONE

    async def test_a_base_that_answered_for_want_of_adapters_steps_back_for_one(self):
        case = Case()
        policy = {"session_id": "s", "low_confidence": LowConfidencePolicy.BASE}
        assert await case.plans(_THANKS, **policy) == []
        assert (await case.session(_THANKS, **policy)).verdict is SessionVerdict.KEPT
        moved = await case.ask("add numbers total 3", **policy)
        assert moved.route.session.verdict is SessionVerdict.TOPIC_MOVED
        assert [budget.adapter_name for budget in moved.route.decision.plan.budgets] == ["sums"]

    async def test_what_the_client_chooses_itself_is_no_turn(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        assert await case.session(_SUM, session_id="s", model="sums") is None
        assert (await case.session(_THANKS, session_id="s")).after.turn == 2

    @pytest.mark.parametrize("session_id", ["", "x" * 257, "a\nb"])
    async def test_an_id_that_is_none_is_refused(self, session_id):
        with pytest.raises(InvalidInput) as raised:
            await Case().ask(_CAPITAL, session_id=session_id)
        assert raised.value.code == "invalid_session_id"

    async def test_off_is_off(self):
        case = Case(matching=SessionMatching.OFF)
        for _ in range(2):
            assert await case.session(_CAPITAL, session_id="s") is None
            assert await case.session(said(_CAPITAL, "one two", _CAPITAL)) is None

    async def test_a_dry_run_tells_and_changes_nothing(self):
        case = Case()
        await case.ask(_CAPITAL, session_id="s")
        for _ in range(2):
            dry = await case.route_text.route(_SUM, RoutingOptions(session_id="s"))
            assert dry.session.verdict is SessionVerdict.TOPIC_MOVED
            assert dry.session.after.turn == 2
        assert await case.plans(_THANKS, session_id="s") == ["capitals"]

    async def test_a_turn_that_no_worker_took_is_none(self):
        case = Case()
        case.workers.errors_before = [RuntimeError("no")]
        with pytest.raises(RuntimeError):
            await case.ask(_CAPITAL, session_id="s")
        assert (await case.session(_SUM, session_id="s")).verdict is SessionVerdict.NEW

    async def test_a_stream_that_is_left_early_was_a_turn(self):
        case = Case()
        request = GenerationRequest(
            request_id="r", prompt=TextPrompt(text=_CAPITAL), options=RoutingOptions(session_id="s")
        )
        events = case.use_case.stream(request)
        assert isinstance(await anext(events), RouteResult)
        await events.aclose()
        assert (await case.session(_THANKS, session_id="s")).is_sticky


class TestByConversation:
    """The fake worker answers everything with "one two"."""

    async def test_a_conversation_that_comes_back_is_known(self):
        case = Case()
        first = await case.session(said(_CAPITAL))
        second = await case.session(said(_CAPITAL, "one two", _THANKS))
        third = await case.session(said(_CAPITAL, "one two", _THANKS, "one two", _CAPITAL))
        assert [it.verdict for it in (first, second, third)] == [SessionVerdict.NEW, *[SessionVerdict.KEPT] * 2]
        assert [it.after.turn for it in (first, second, third)] == [1, 2, 3]
        assert len({it.after.session_id for it in (first, second, third)}) == 1

    async def test_another_topic_ends_its_plan(self):
        case = Case()
        await case.ask(said(_CAPITAL))
        moved = await case.ask(said(_CAPITAL, "one two", _SUM))
        assert moved.route.session.verdict is SessionVerdict.TOPIC_MOVED
        kept = await case.session(said(_CAPITAL, "one two", _SUM, "one two", _THANKS))
        assert kept.after.kept.plan.budgets[0].adapter_name == "sums"

    async def test_branches_of_a_conversation_go_their_own_ways(self):
        case = Case()
        await case.ask(said(_CAPITAL))
        await case.ask(said(_CAPITAL, "one two", _SUM))
        again = await case.session(said(_CAPITAL, "one two", _THANKS))
        assert again.is_sticky
        assert again.after.kept.plan.budgets[0].adapter_name == "capitals"
        assert again.after.turn == 2

    async def test_one_that_says_something_else_is_another(self):
        case = Case()
        await case.ask(said(_CAPITAL))
        for other in (
            said(_CAPITAL, "one three", _THANKS),
            said("country capital city z", "one two", _THANKS),
            said(_CAPITAL, ChatMessage(role=ChatRole.SYSTEM, content="one two"), _THANKS),
        ):
            assert (await case.session(other)).verdict is SessionVerdict.NEW

    async def test_tenants_do_not_share_conversations(self):
        case = Case()
        await case.ask(said(_CAPITAL), tenant="acme")
        assert (await case.session(said(_CAPITAL, "one two", _THANKS))).verdict is SessionVerdict.NEW

    async def test_spaces_that_a_client_trims_do_not_matter(self):
        case = Case()
        case.workers.words = ("  one", " two\n")
        await case.ask(said(_CAPITAL))
        assert (await case.session(said(_CAPITAL, "one two", _THANKS))).is_sticky

    async def test_every_answer_may_be_the_one_that_goes_on(self):
        case = Case()
        await case.ask(said(_CAPITAL), n=3)
        assert (await case.session(said(_CAPITAL, "one two", _THANKS))).is_sticky

    async def test_an_answer_that_called_tools_is_known_in_any_form(self):
        case = Case()
        tools = '[{"type": "function"}]'
        await case.ask(said(_CAPITAL, tools=tools))
        call = ToolCall(call_id="c", name="f", arguments="{}")
        called = ChatMessage(role=ChatRole.ASSISTANT, content="", tool_calls=(call,))
        result = ChatMessage(role=ChatRole.TOOL, content="42", tool_call_id="c")
        assert (await case.session(said(_CAPITAL, called, result, tools=tools))).is_sticky
        assert (await case.session(said(_CAPITAL, "one two", _THANKS, tools=tools))).is_sticky

    async def test_an_answer_that_was_continued_is_one_answer(self):
        case = Case()
        await case.ask(said(_CAPITAL, "zero ", continues=True))
        assert (await case.session(said(_CAPITAL, "zero one two", _THANKS))).is_sticky

    async def test_with_an_id_the_id_decides(self):
        case = Case()
        await case.ask(said(_CAPITAL))
        assert (await case.session(said(_CAPITAL, "one two", _THANKS), session_id="s")).verdict is SessionVerdict.NEW

    async def test_it_is_remembered_before_the_client_hears_of_the_end(self):
        case = Case()
        request = GenerationRequest(request_id="r", prompt=said(_CAPITAL))
        async for event in case.use_case.stream(request):
            if isinstance(event, GenerationFinished):
                assert (await case.session(said(_CAPITAL, "one two", _THANKS))).is_sticky
                break

    async def test_nothing_of_the_text_is_kept(self):
        case = Case()
        standing = await case.session(said("country capital city marker"))
        assert "marker" not in repr(replace(standing.after))
