"""A worker whose engine hangs says so, and comes back by itself; one that lost its device says so for good."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hilora.errors import Unavailable
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors
from services.worker.bootstrap import build_worker

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def _request(request_id: str, *, priority: int = 0) -> worker_pb2.GenerateRequest:
    sampling = worker_pb2.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=4)
    return worker_pb2.GenerateRequest(request_id=request_id, prompt="hello", sampling=sampling, priority=priority)


@pytest.fixture
async def hanging(settings_of, start_registry):
    """A worker, and the event without which its engine's passes do not return."""
    from tests.integration.worker.conftest import InMemoryRegistry

    server = await start_registry(InMemoryRegistry())
    worker = build_worker(settings_of(server.address, max_step_seconds=0.3, max_num_seqs=1))
    await worker.start()
    may_go_on = threading.Event()
    may_go_on.set()
    runner = worker._engine._runner
    execute = runner.execute

    def hesitating(batch):
        assert may_go_on.wait(30)
        return execute(batch)

    runner.execute = hesitating
    yield worker, may_go_on
    may_go_on.set()
    await worker.stop(grace_seconds=0)
    await server.stop(grace_seconds=0)


async def _await_health(channel, status: int, *, service: str = "") -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    deadline = time.monotonic() + 20
    while (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status != status:
        assert time.monotonic() < deadline, "health did not change"
        await asyncio.sleep(0.02)


async def _await_stats(stub, predicate: Callable[[worker_pb2.StatsResponse], bool]) -> None:
    deadline = time.monotonic() + 20
    while not predicate(await stub.Stats(worker_pb2.StatsRequest())):
        assert time.monotonic() < deadline, "the load did not change"
        await asyncio.sleep(0.01)


async def _generate(stub, request) -> list[worker_pb2.GenerateEvent]:
    with translated_errors("worker"):
        return [event async for event in stub.Generate(request)]


async def test_health_follows_a_step_that_hangs_and_returns(hanging) -> None:
    worker, may_go_on = hanging
    async with open_channel(worker.rpc_address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        await _await_health(channel, _SERVING)
        assert len(await _generate(stub, _request("before"))) > 0
        may_go_on.clear()
        running = asyncio.create_task(_generate(stub, _request("running")))
        await _await_stats(stub, lambda stats: stats.num_running == 1)
        waiting = asyncio.create_task(_generate(stub, _request("waiting")))
        await _await_health(channel, _NOT_SERVING)
        with pytest.raises(Unavailable) as caught:
            await waiting
        assert caught.value.code == "engine_stuck"
        assert (await stub.Stats(worker_pb2.StatsRequest())).is_stuck
        with pytest.raises(Unavailable) as caught:
            await _generate(stub, _request("late"))
        assert caught.value.code == "engine_stuck"
        may_go_on.set()
        await _await_health(channel, _SERVING)
        assert (await running)[-1].finished.num_completion_tokens == 4
        assert (await _generate(stub, _request("waiting")))[-1].finished.num_completion_tokens == 4
        stats = await stub.Stats(worker_pb2.StatsRequest())
        assert not stats.is_stuck and stats.num_steps_total > 0 and stats.queue_seconds_total > 0


async def test_health_does_not_come_back_after_the_loss_of_the_device(hanging) -> None:
    worker, _ = hanging
    runner = worker._engine._runner
    async with open_channel(worker.rpc_address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        await _await_health(channel, _SERVING)
        execute = runner.execute

        def lost(batch):
            runner.execute = execute
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported late.")

        runner.execute = lost
        for request_id in ("running", "late"):
            with pytest.raises(Unavailable) as caught:
                await _generate(stub, _request(request_id))
            assert caught.value.code == "device_lost"
            await _await_health(channel, _NOT_SERVING)
        # A restart is what would help.
        await _await_health(channel, _NOT_SERVING, service="liveness")
        stats = await stub.Stats(worker_pb2.StatsRequest())
        assert stats.is_device_lost and not stats.is_stuck
        assert stats.num_running == stats.num_waiting == 0


async def test_priority_travels_over_the_wire(hanging) -> None:
    worker, may_go_on = hanging
    async with open_channel(worker.rpc_address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        may_go_on.clear()
        ordinary = asyncio.create_task(_generate(stub, _request("ordinary")))
        await _await_stats(stub, lambda stats: stats.num_running == 1)
        urgent = asyncio.create_task(_generate(stub, _request("urgent", priority=-1)))
        await _await_stats(stub, lambda stats: stats.num_waiting == 1)
        may_go_on.set()
        await asyncio.gather(ordinary, urgent)
        assert (await stub.Stats(worker_pb2.StatsRequest())).num_preemptions_total == 1
