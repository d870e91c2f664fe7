"""The gRPC door has the abilities of the HTTP door."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from hilora.errors import InvalidInput, UnknownAdapter
from hilora_rpc.v1 import router_pb2, router_pb2_grpc, routing_pb2, worker_pb2
from services.common.rpc_client import open_channel, translated_errors
from tests.fakes.router_stack import eventually, running_router, task_texts

_SUMS = task_texts("sums")[0]


@pytest.fixture
async def stack():
    async with running_router() as running:
        yield running


@pytest.fixture
async def stub(stack):
    async with open_channel(stack.router.rpc_address) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


class TestRoute:
    async def test_a_decision_comes_with_its_reasons(self, stub):
        answer = await stub.Route(router_pb2.RouteRequest(text=_SUMS))
        assert answer.decision.mode == routing_pb2.ROUTING_MODE_CALIBRATED
        assert [budget.adapter_name for budget in answer.decision.plan.budgets] == ["sums"]
        assert {candidate.adapter_name for candidate in answer.decision.candidates} == {"sums", "capitals", "poems"}
        assert answer.decision.reason
        assert answer.catalog_generation == 3
        assert answer.encoder_id == "hash:1"
        assert answer.encode_seconds > 0

    async def test_options_count(self, stub):
        options = router_pb2.RoutingOptions(
            mode=routing_pb2.ROUTING_MODE_PAPER, exclude_adapters=["sums"], max_candidates=1, gamma=1.0, seed=3
        )
        answer = await stub.Route(router_pb2.RouteRequest(text=_SUMS, options=options))
        assert answer.decision.mode == routing_pb2.ROUTING_MODE_PAPER
        assert len(answer.decision.plan.budgets) == 1
        assert answer.decision.plan.budgets[0].adapter_name != "sums"
        assert answer.decision.plan.gate.basis == routing_pb2.ROC_BASIS_TRAINED

    async def test_an_unknown_model_is_not_found(self, stub):
        request = router_pb2.RouteRequest(text="x", options=router_pb2.RoutingOptions(model="nobody"))
        with pytest.raises(UnknownAdapter) as raised, translated_errors("router"):
            await stub.Route(request)
        assert raised.value.code == "model_not_found"

    @pytest.mark.parametrize(
        "options",
        [
            router_pb2.RoutingOptions(gamma=0.0),
            router_pb2.RoutingOptions(gamma=float("nan")),
            router_pb2.RoutingOptions(max_candidates=0),
            router_pb2.RoutingOptions(mode=routing_pb2.ROUTING_MODE_EXPLICIT),
        ],
    )
    async def test_options_without_meaning_are_refused(self, stub, options):
        with pytest.raises(InvalidInput), translated_errors("router"):
            await stub.Route(router_pb2.RouteRequest(text="x", options=options))


class TestGenerate:
    async def test_the_decision_comes_first_then_the_worker_s_events(self, stub, stack):
        request = router_pb2.RoutedGenerateRequest(
            request_id="mine", prompt=_SUMS, sampling=worker_pb2.SamplingParams(max_tokens=2, temperature=0.0)
        )
        events = [event async for event in stub.Generate(request)]
        assert events[0].route.decision.plan.budgets[0].adapter_name == "sums"
        kinds = [event.generated.WhichOneof("event") for event in events[1:]]
        assert kinds == ["started", "delta", "delta", "finished"]
        finished = events[-1].generated.finished
        assert finished.finish_reason == worker_pb2.FINISH_REASON_LENGTH
        assert finished.budgets_used[0].adapter_name == "sums"
        sent = stack.worker.service.requests[-1]
        assert sent.request_id.startswith("mine-")
        assert sent.sampling.HasField("temperature")
        assert not sent.sampling.HasField("top_p")

    async def test_a_conversation_is_routed_by_its_last_user_message(self, stub):
        messages = [
            worker_pb2.ChatMessage(role=worker_pb2.CHAT_ROLE_USER, content=task_texts("poems")[0]),
            worker_pb2.ChatMessage(role=worker_pb2.CHAT_ROLE_USER, content=_SUMS),
        ]
        request = router_pb2.RoutedGenerateRequest(chat=worker_pb2.ChatInput(messages=messages))
        first = await anext(aiter(stub.Generate(request)))
        assert first.route.decision.plan.budgets[0].adapter_name == "sums"

    @pytest.mark.parametrize(
        "request_",
        [
            router_pb2.RoutedGenerateRequest(),
            router_pb2.RoutedGenerateRequest(chat=worker_pb2.ChatInput()),
            router_pb2.RoutedGenerateRequest(chat=worker_pb2.ChatInput(messages=[worker_pb2.ChatMessage(content="x")])),
        ],
    )
    async def test_a_request_without_input_is_refused(self, stub, request_):
        with pytest.raises(InvalidInput), translated_errors("router"):
            await anext(aiter(stub.Generate(request_)))

    async def test_cancelling_aborts_on_the_worker(self, stub, stack):
        stack.worker.service.seconds_per_token = 30
        call = stub.Generate(router_pb2.RoutedGenerateRequest(prompt="x"))
        await call.read()
        call.cancel()
        await eventually(lambda: len(stack.worker.service.aborted) == 1)
        assert stack.worker.service.num_running == 0

    async def test_the_client_s_deadline_is_passed_on(self, stub, stack):
        stack.worker.service.seconds_per_token = 30
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.Generate(router_pb2.RoutedGenerateRequest(prompt="x"), timeout=0.3):
                continue
        assert raised.value.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
        await eventually(lambda: len(stack.worker.service.aborted) == 1)

    async def test_several_answers_with_their_probabilities_are_passed_on(self, stub):
        sampling = worker_pb2.SamplingParams(n=2, logprobs=1)
        events = [
            event.generated
            async for event in stub.Generate(router_pb2.RoutedGenerateRequest(prompt="x", sampling=sampling))
        ]
        deltas = [event.delta for event in events if event.HasField("delta")]
        assert {delta.choice_idx for delta in deltas} == {0, 1}
        assert all(len(delta.logprobs[0].top) == 1 for delta in deltas)
        assert sorted(event.finished.choice_idx for event in events if event.HasField("finished")) == [0, 1]


class TestEmbed:
    async def test_vectors_are_those_that_adapters_are_chosen_by(self, stub, stack):
        answer = await stub.Embed(router_pb2.EmbedRequest(texts=["add numbers", "rhyme"]))
        expected = stack.encoder.encode(["add numbers", "rhyme"])
        assert answer.encoder_id == "hash:1"
        np.testing.assert_allclose([vector.values for vector in answer.embeddings], expected, atol=1e-6)

    @pytest.mark.parametrize("texts", [[], ["x"] * 2049])
    async def test_none_and_too_many_are_refused(self, stub, texts):
        with pytest.raises(InvalidInput), translated_errors("router"):
            await stub.Embed(router_pb2.EmbedRequest(texts=texts))


class TestListModels:
    async def test_it_lists_what_rest_lists(self, stub):
        answer = await stub.ListModels(router_pb2.ListModelsRequest())
        models = {model.id: model for model in answer.models}
        assert list(models) == ["auto", "tiny-base", "capitals", "poems", "sums"]
        assert (models["sums"].parent, models["tiny-base"].parent) == ("tiny-base", "")
        assert models["sums"].root == "sums@aaaaaaaaaaaa"
        assert models["sums"].max_model_len == 512


class TestTokens:
    async def test_a_prompt_becomes_tokens(self, stub):
        answer = await stub.Tokenize(worker_pb2.TokenizeRequest(prompt="a b", omits_special_tokens=True))
        assert (list(answer.token_ids), list(answer.tokens), answer.max_model_len) == ([0, 1], ["a", "b"], 512)

    async def test_tokens_become_a_text(self, stub):
        assert (await stub.Detokenize(worker_pb2.DetokenizeRequest(token_ids=[4, 5]))).text == "t4 t5"

    async def test_nothing_to_tokenize_is_refused(self, stub):
        with pytest.raises(InvalidInput), translated_errors("router"):
            await stub.Tokenize(worker_pb2.TokenizeRequest())
