"""The worker as its clients see it: over gRPC, with a registry at the other side."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hilora.errors import (
    AdapterShapeMismatch,
    InvalidAdapter,
    InvalidInput,
    InvalidSamplingParams,
    RequestAborted,
    StaleCatalogGeneration,
    Unavailable,
)
from hilora_rpc.v1 import registry_pb2, worker_pb2, worker_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors
from services.worker.bootstrap import build_worker
from tests.builders.models import make_adapter

_GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}


def _request(request_id="r", plan=None, prompt="hello there", **sampling) -> worker_pb2.GenerateRequest:
    return worker_pb2.GenerateRequest(
        request_id=request_id,
        prompt=prompt,
        plan=plan,
        sampling=worker_pb2.SamplingParams(**{**_GREEDY, **sampling}),
    )


async def _generate(stack, request: worker_pb2.GenerateRequest) -> list[worker_pb2.GenerateEvent]:
    with translated_errors("worker"):
        return [event async for event in stack.stub.Generate(request)]


async def _health(address: str) -> int:
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status


async def _eventually(predicate, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not await predicate():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


def _tokens(events) -> list[int]:
    return [token for event in events for token in event.delta.token_ids]


class TestGenerate:
    async def test_streams_started_then_deltas_then_finished(self, stack) -> None:
        events = await _generate(stack, _request(plan=stack.plan("a", "b", num_rocs=2)))
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[0] == "started" and kinds[-1] == "finished"
        assert set(kinds[1:-1]) == {"delta"}
        finished = events[-1].finished
        assert finished.finish_reason == worker_pb2.FINISH_REASON_LENGTH
        assert finished.num_prompt_tokens == events[0].started.num_prompt_tokens == len("hello there")
        assert finished.num_completion_tokens == len(_tokens(events)) == 8
        assert [(used.adapter_name, used.num_rocs) for used in finished.budgets_used] == [("a", 2), ("b", 2)]
        assert 0 < finished.ttft_seconds <= finished.e2e_latency_seconds

    async def test_tells_which_components_acted_if_asked(self, stack) -> None:
        request = _request(plan=stack.plan("a", "b", num_rocs=2))
        plain = (await _generate(stack, request))[-1].finished
        request.explains_gating = True
        finished = (await _generate(stack, request))[-1].finished
        assert (len(plain.gating), plain.num_gated_tokens) == (0, 0)
        # No step reads the last token.
        assert finished.num_gated_tokens == finished.num_prompt_tokens + finished.num_completion_tokens - 1
        assert len({module.module_path for module in finished.gating}) == len(finished.gating) > 0
        for module in finished.gating:
            assert [one.adapter_id for one in module.adapters] == [stack.adapter_ids[name] for name in "ab"]
            for adapter in module.adapters:
                assert max(adapter.num_tokens_fired) <= finished.num_gated_tokens
                # Two of four at every token.
                assert sum(adapter.num_tokens_fired) == 2 * finished.num_gated_tokens

    async def test_base_and_adapters_answer_differently_and_repeatably(self, stack) -> None:
        base = _tokens(await _generate(stack, _request()))
        with_a = _tokens(await _generate(stack, _request(plan=stack.plan("a"))))
        with_b = _tokens(await _generate(stack, _request(plan=stack.plan("b"))))
        assert base != with_a != with_b
        assert with_a == _tokens(await _generate(stack, _request(plan=stack.plan("a"))))

    async def test_renders_chats_with_the_models_template(self, stack) -> None:
        chat = worker_pb2.ChatInput(
            messages=[
                worker_pb2.ChatMessage(role=worker_pb2.CHAT_ROLE_SYSTEM, content="be brief"),
                worker_pb2.ChatMessage(role=worker_pb2.CHAT_ROLE_USER, content="hi"),
            ]
        )
        sampling = worker_pb2.SamplingParams(**_GREEDY)
        as_chat = worker_pb2.GenerateRequest(request_id="c", chat=chat, sampling=sampling)
        as_text = _request("t", prompt="[system]be brief[user]hi>")
        assert _tokens(await _generate(stack, as_chat)) == _tokens(await _generate(stack, as_text))

    async def test_takes_token_ids(self, stack) -> None:
        tokens = worker_pb2.TokenInput(token_ids=[5, 6, 7])
        events = await _generate(stack, worker_pb2.GenerateRequest(request_id="t", tokens=tokens))
        assert events[-1].finished.num_prompt_tokens == 3

    async def test_many_plans_at_once_equal_each_alone(self, stack) -> None:
        plans = [None, stack.plan("a"), stack.plan("b", num_rocs=1), stack.plan("a", "b", "c", num_rocs=2)]
        alone = [_tokens(await _generate(stack, _request(f"x{i}", plan))) for i, plan in enumerate(plans)]
        together = await asyncio.gather(*(_generate(stack, _request(f"y{i}", plan)) for i, plan in enumerate(plans)))
        assert [_tokens(events) for events in together] == alone


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "error", "code"),
        [
            ({"prompt": ""}, InvalidInput, "empty_prompt"),
            ({"prompt": "x" * 64}, InvalidInput, "prompt_too_long"),
            ({"request_id": ""}, InvalidInput, "missing_request_id"),
            ({"temperature": -1.0}, InvalidSamplingParams, "invalid_sampling_params"),
        ],
    )
    async def test_bad_requests(self, stack, change, error, code) -> None:
        with pytest.raises(error) as caught:
            await _generate(stack, _request(**change))
        assert caught.value.code == code

    async def test_no_input(self, stack) -> None:
        with pytest.raises(InvalidInput) as caught:
            await _generate(stack, worker_pb2.GenerateRequest(request_id="r"))
        assert caught.value.code == "missing_input"

    async def test_a_gate_without_eta(self, stack) -> None:
        plan = stack.plan("a")
        plan.gate.eta = 0
        with pytest.raises(InvalidInput) as caught:
            await _generate(stack, _request(plan=plan))
        assert caught.value.code == "invalid_plan"

    async def test_a_plan_from_a_catalogue_that_never_comes(self, stack) -> None:
        started = time.monotonic()
        with pytest.raises(StaleCatalogGeneration) as caught:
            await _generate(stack, _request(plan=stack.plan("a", generation=99)))
        assert caught.value.code == "stale_catalog_generation"
        assert 1.5 < time.monotonic() - started < 4

    async def test_components_that_differ_from_the_catalogue_fail_that_request_alone(self, stack) -> None:
        stack.adapter_ids["bad"] = stack.registry.publish("bad", make_adapter(stack.shapes), content=b"not the same")
        outcomes = await asyncio.gather(
            _generate(stack, _request("bad", stack.plan("bad"))),
            _generate(stack, _request("good", stack.plan("a"))),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], InvalidAdapter) and outcomes[0].code == "component_checksum_mismatch"
        assert len(_tokens(outcomes[1])) == 8

    async def test_an_adapter_of_another_model(self, stack) -> None:
        wide = {path: (num_in + 1, num_out) for path, (num_in, num_out) in stack.shapes.items()}
        stack.adapter_ids["wide"] = stack.registry.publish("wide", make_adapter(wide))
        with pytest.raises(AdapterShapeMismatch):
            await _generate(stack, _request(plan=stack.plan("wide")))


class TestCatalogue:
    async def test_an_adapter_published_later_is_used_without_restart(self, stack) -> None:
        stack.adapter_ids["d"] = stack.registry.publish("d", make_adapter(stack.shapes, seed=9))
        events = await _generate(stack, _request(plan=stack.plan("d")))
        assert events[-1].finished.budgets_used[0].adapter_name == "d"

    async def test_a_retired_adapter_finishes_what_runs_and_refuses_what_is_new(self, stack) -> None:
        plan = stack.plan("a")
        running = stack.stub.Generate(_request("long", plan, max_tokens=50))
        first = await anext(aiter(running))
        assert first.WhichOneof("event") == "started"
        stack.registry.retire("a")
        events = [event async for event in running]
        assert events[-1].finished.num_completion_tokens == 50
        with pytest.raises(StaleCatalogGeneration) as caught:
            await _generate(stack, _request(plan=stack.plan("a")))
        assert caught.value.code == "adapter_gone"

        async def is_freed() -> bool:
            stats = await stack.stub.Stats(worker_pb2.StatsRequest())
            return stats.roc_pool_used_bytes == 0 and not stats.resident_adapter_ids

        await _eventually(is_freed)

    async def test_components_are_fetched_once(self, stack) -> None:
        for idx in range(3):
            await _generate(stack, _request(f"r{idx}", stack.plan("a")))
        assert stack.registry.num_fetches == 1

    async def test_resync_takes_a_new_snapshot(self, stack) -> None:
        adapter_id = stack.adapter_ids["a"]
        del stack.registry.entries["a"]
        # The registry forgot its past and starts again at a lower generation.
        stack.registry.generation = 1
        stack.registry.tell(registry_pb2.CatalogEvent(kind=registry_pb2.CatalogEvent.KIND_RESYNC))

        async def is_taken() -> bool:
            return (await stack.stub.Stats(worker_pb2.StatsRequest())).catalog_generation == 1

        await _eventually(is_taken)
        with pytest.raises(StaleCatalogGeneration) as caught:
            await _generate(stack, _request(plan=stack.plan("a")))
        assert adapter_id in caught.value.message

        async def is_watching_once() -> bool:
            return stack.registry.num_watchers == 1

        await _eventually(is_watching_once)


class TestAbort:
    async def test_by_id_from_another_call(self, stack) -> None:
        # Held back at the registry, so that it cannot finish by itself meanwhile.
        stack.registry.may_fetch.clear()
        running = stack.stub.Generate(_request("cold", stack.plan("a")))

        async def is_waiting() -> bool:
            return (await stack.stub.Stats(worker_pb2.StatsRequest())).num_waiting == 1

        await _eventually(is_waiting)
        assert (await stack.stub.Abort(worker_pb2.AbortRequest(request_id="cold"))).was_running
        events = [event async for event in running]
        assert [event.finished.finish_reason for event in events] == [worker_pb2.FINISH_REASON_ABORT]
        assert not (await stack.stub.Abort(worker_pb2.AbortRequest(request_id="cold"))).was_running
        stack.registry.may_fetch.set()

    async def test_cancelling_the_call_frees_everything(self, stack) -> None:
        running = stack.stub.Generate(_request("gone", stack.plan("a"), max_tokens=50))
        await anext(aiter(running))
        running.cancel()

        async def is_over() -> bool:
            stats = await stack.stub.Stats(worker_pb2.StatsRequest())
            return stats.num_running == 0 and stats.kv_cache_usage == 0

        await _eventually(is_over)


class TestLifecycle:
    async def test_stats_tell_what_placement_needs(self, stack) -> None:
        await _generate(stack, _request(plan=stack.plan("a")))
        stats = await stack.stub.Stats(worker_pb2.StatsRequest())
        assert stats.base_model == "tiny-base"
        assert stats.catalog_generation == stack.registry.generation
        assert list(stats.resident_adapter_ids) == [stack.adapter_ids["a"]]
        assert 0 < stats.roc_pool_used_bytes <= stats.roc_pool_capacity_bytes
        assert (stats.num_generation_tokens_total, stats.num_requests_finished_total) == (8, 1)

    async def test_stats_tell_what_lies_below_the_device(self, settings_of, stack, tmp_path) -> None:
        folder = tmp_path / "disk"
        worker = build_worker(
            settings_of(
                stack.registry_server.address,
                disk_cache_dir=folder,
                disk_cache_bytes=1 << 20,
                host_cache_bytes=1 << 19,
            )
        )
        await worker.start()
        try:
            async with open_channel(worker.rpc_address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                for name in "ab":
                    [event async for event in stub.Generate(_request(name, stack.plan(name)))]
                stats = await stub.Stats(worker_pb2.StatsRequest())
                host, disk = stats.host_tier, stats.disk_tier
                assert (host.num_adapters, host.num_misses_total, host.num_hits_total) == (2, 2, 0)
                assert 0 < host.used_bytes <= host.capacity_bytes == 1 << 19
                assert (disk.num_adapters, disk.num_misses_total, disk.num_hits_total) == (2, 2, 0)
                assert disk.used_bytes == sum(file.stat().st_size for file in folder.iterdir())
                assert disk.capacity_bytes == 1 << 20
                assert host.num_evictions_total == disk.num_evictions_total == disk.num_damaged_total == 0
        finally:
            await worker.stop(grace_seconds=0)
        again = build_worker(settings_of(stack.registry_server.address, disk_cache_dir=folder))
        await again.start()
        try:
            async with open_channel(again.rpc_address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                [event async for event in stub.Generate(_request("a", stack.plan("a")))]
                disk = (await stub.Stats(worker_pb2.StatsRequest())).disk_tier
                assert (disk.num_adapters, disk.num_misses_total, disk.num_hits_total) == (2, 0, 1)
        finally:
            await again.stop(grace_seconds=0)

    async def test_a_worker_without_a_disk_tier_tells_of_none(self, stack) -> None:
        await _generate(stack, _request(plan=stack.plan("a")))
        stats = await stack.stub.Stats(worker_pb2.StatsRequest())
        assert not stats.HasField("disk_tier")
        assert stats.host_tier.num_adapters == 1

    async def test_serving_only_once_the_registry_was_seen(self, settings_of, start_registry, stack) -> None:
        port = int(stack.registry_server.address.rpartition(":")[2])
        await stack.registry_server.stop(grace_seconds=0)
        worker = build_worker(settings_of(f"127.0.0.1:{port}"))
        await worker.start()
        try:
            assert await _health(worker.rpc_address) == health_pb2.HealthCheckResponse.NOT_SERVING
            server = await start_registry(stack.registry, port=port)

            async def is_serving() -> bool:
                return await _health(worker.rpc_address) == health_pb2.HealthCheckResponse.SERVING

            await _eventually(is_serving)
            await server.stop(grace_seconds=0)
        finally:
            await worker.stop(grace_seconds=0)

    async def test_drain_lets_running_requests_finish_and_refuses_new_ones(self, stack) -> None:
        running = stack.stub.Generate(_request("long", max_tokens=50))
        await anext(aiter(running))
        stopping = asyncio.create_task(stack.worker.stop(grace_seconds=10))
        events = [event async for event in running]
        assert events[-1].finished.num_completion_tokens == 50
        # Aborted, if it meets the server between the last answer and its end: for routers either is a lost connection.
        with pytest.raises((Unavailable, RequestAborted)):
            await _generate(stack, _request("late"))
        await stopping

    async def test_an_unloadable_base_is_refused_with_its_reason(self, settings_of, tmp_path) -> None:
        worker = build_worker(settings_of("127.0.0.1:1", base_model=str(tmp_path)))
        with pytest.raises(InvalidInput) as caught:
            await worker.start()
        assert caught.value.code == "base_model_not_loadable"


class TestTokens:
    async def test_there_and_back(self, stack) -> None:
        with translated_errors("worker"):
            told = await stack.stub.Tokenize(worker_pb2.TokenizeRequest(prompt="héllo", omits_special_tokens=True))
            text = (await stack.stub.Detokenize(worker_pb2.DetokenizeRequest(token_ids=told.token_ids))).text
        assert text == "héllo"
        assert len(told.tokens) == len(told.token_ids) == len("héllo".encode())
        assert told.max_model_len > 0

    async def test_a_conversation_has_the_tokens_that_it_runs_with(self, stack) -> None:
        turn = worker_pb2.ChatMessage(role=worker_pb2.CHAT_ROLE_TOOL, content="hi", tool_call_id="c1")
        chat = worker_pb2.ChatInput(messages=[turn])
        with translated_errors("worker"):
            told = await stack.stub.Tokenize(worker_pb2.TokenizeRequest(chat=chat))
        request = _request()
        request.chat.CopyFrom(chat)
        events = await _generate(stack, request)
        assert events[0].started.num_prompt_tokens == len(told.token_ids)
        # This template does not know tools: their results are words of the user.
        assert "".join(told.tokens).startswith("[user]<tool_response>")

    async def test_a_token_that_there_is_not_is_refused(self, stack) -> None:
        with pytest.raises(InvalidInput) as raised, translated_errors("worker"):
            await stack.stub.Detokenize(worker_pb2.DetokenizeRequest(token_ids=[2**31]))
        assert raised.value.code == "invalid_token_id"
