from __future__ import annotations

from dataclasses import replace

import pytest

from hilora.errors import GenerationFailed, NoWorkerAvailable, StaleCatalogGeneration, Unavailable
from services.router.answer import GenerationFinished, GenerationStarted, RouteResult, TextDelta
from services.router.generation import GenerateText
from services.router.models import ModelDirectory
from services.router.request import ChatMessage, ChatPrompt, ChatRole, GenerationRequest, TextPrompt
from services.router.routing_options import RoutingOptions
from tests.fakes.router_ports import (
    FakeEmbedder,
    FakeWorkers,
    InMemoryCatalog,
    catalog_view,
    local_sessions,
    route_text,
    traffic_watch,
)

_TEXTS = {"capitals": ["country capital a", "country capital b"], "sums": ["add numbers a", "add numbers b"]}


class Case:
    def __init__(self):
        self.catalog = InMemoryCatalog(catalog_view(_TEXTS))
        self.workers = FakeWorkers()
        self.embedder = FakeEmbedder()
        models = ModelDirectory(catalog=self.catalog, workers=self.workers, base_model_name=None)
        sessions = local_sessions()
        self.traffic = traffic_watch(self.catalog)
        self.use_case = GenerateText(
            route_text=route_text(self.catalog, models=models, embedder=self.embedder, sessions=sessions),
            workers=self.workers,
            catalog=self.catalog,
            traffic=self.traffic,
            sessions=sessions,
        )

    async def stream(self, **options):
        return [event async for event in self.use_case.stream(self.request(**options))]

    @staticmethod
    def request(prompt=None, **options):
        return GenerationRequest(
            request_id="r", prompt=prompt or TextPrompt(text="country capital x"), options=RoutingOptions(**options)
        )


class TestStream:
    async def test_the_decision_comes_first(self):
        case = Case()
        kinds = [type(event) for event in await case.stream()]
        assert kinds == [RouteResult, GenerationStarted, TextDelta, TextDelta, GenerationFinished]
        assert case.workers.orders[0].plan.budgets[0].adapter_name == "capitals"

    async def test_a_conversation_is_routed_by_its_last_user_message(self):
        case = Case()
        turns = [
            (ChatRole.USER, "country capital"),
            (ChatRole.USER, "add numbers"),
            (ChatRole.ASSISTANT, "country capital"),
        ]
        prompt = ChatPrompt(messages=tuple(ChatMessage(role=role, content=content) for role, content in turns))
        done = await case.use_case.complete(case.request(prompt))
        assert case.embedder.texts == ["add numbers"]
        assert done.budgets_used[0].adapter_name == "sums"
        assert case.workers.orders[0].request.prompt is prompt

    async def test_closing_it_closes_the_worker_s_stream(self):
        case = Case()
        events = case.use_case.stream(case.request())
        await anext(events)
        await anext(events)
        await events.aclose()
        assert case.workers.num_closed_early == 1

    async def test_the_client_s_time_holds_while_adapters_are_chosen(self):
        case = Case()
        case.embedder.seconds = 30.0
        request = replace(case.request(), timeout_seconds=0.05)
        with pytest.raises(Unavailable) as raised:
            await anext(case.use_case.stream(request))
        assert raised.value.code == "request_timeout"
        assert not case.workers.orders

    async def test_what_the_choice_took_is_missing_from_the_worker_s_time(self):
        case = Case()
        case.embedder.seconds = 0.05
        await case.use_case.complete(replace(case.request(), timeout_seconds=10.0))
        assert 0 < case.workers.orders[0].request.timeout_seconds <= 9.96

    async def test_nothing_is_said_before_a_worker_took_the_request(self):
        case = Case()
        case.workers.errors_before = [NoWorkerAvailable("none")]
        with pytest.raises(NoWorkerAvailable):
            await anext(case.use_case.stream(case.request()))


class TestComplete:
    async def test_it_joins_the_pieces(self):
        done = await Case().use_case.complete(Case.request())
        assert done.choices[0].text == "one two"
        assert done.choices[0].finished.num_completion_tokens == 2
        assert done.route.decision.plan.budgets == done.choices[0].finished.budgets_used

    async def test_half_an_answer_is_an_error(self):
        case = Case()
        case.workers.error_in_the_middle = GenerationFailed("broken")
        with pytest.raises(GenerationFailed):
            await case.use_case.complete(case.request())


class TestStalePlans:
    async def test_the_catalogue_is_awaited_and_the_request_planned_again(self):
        case = Case()
        case.workers.errors_before = [StaleCatalogGeneration("gone")]
        case.catalog.next_view = catalog_view(_TEXTS, catalog_generation=2, revision="2")
        done = await case.use_case.complete(case.request())
        assert case.catalog.waits == [1]
        assert done.route.decision.plan.budgets[0].adapter_id == "capitals@2"
        assert [order.plan.catalog_generation for order in case.workers.orders] == [1, 2]

    async def test_only_once(self):
        case = Case()
        case.workers.errors_before = [StaleCatalogGeneration("gone"), StaleCatalogGeneration("gone again")]
        with pytest.raises(StaleCatalogGeneration, match="again"):
            await case.use_case.complete(case.request())
        assert len(case.workers.orders) == 2

    async def test_never_after_the_first_word(self):
        case = Case()
        case.workers.error_in_the_middle = StaleCatalogGeneration("gone")
        with pytest.raises(StaleCatalogGeneration):
            await case.use_case.complete(case.request())
        assert len(case.workers.orders) == 1
