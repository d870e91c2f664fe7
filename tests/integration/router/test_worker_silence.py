"""Workers that say nothing: those that are well have a queue, those that are not are left alone for a while."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from hilora.errors import NoWorkerAvailable, Unavailable
from services.router.answer import GenerationFinished, GenerationStarted, TextDelta
from services.router.infra.workers.client import Silence
from tests.builders.worker_pool import order, run, running
from tests.fakes.router_stack import eventually


class TestSilence:
    async def test_a_queue_that_is_longer_than_the_patience_with_silence_loses_no_worker(self):
        silence = Silence(first_event_seconds=1.6, stall_seconds=5)
        async with running(2, silence=silence) as (pool, (full, other)):
            other.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            full.service.seconds_in_queue = 3.5
            answers = await asyncio.gather(*(run(pool, order(request_id=str(number))) for number in range(4)))
            assert all(isinstance(events[-1], GenerationFinished) for events in answers)
            assert (len(full.service.finished), len(other.service.requests)) == (4, 0)
            assert [status.circuit for status in pool.fleet().workers] == ["closed", "closed"]

    async def test_a_request_is_lost_to_a_worker_that_answers_neither_it_nor_polls(self):
        async with running(2, silence=Silence(first_event_seconds=1.6, stall_seconds=5)) as (pool, (silent, other)):
            other.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            silent.service.seconds_in_queue = silent.service.seconds_per_stats = 30
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
            assert len(other.service.requests) == 1

    async def test_a_request_is_lost_to_a_worker_whose_engine_hangs(self):
        async with running(2, silence=Silence(first_event_seconds=1.6, stall_seconds=5)) as (pool, (stuck, other)):
            other.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            stuck.service.seconds_in_queue = 30
            asyncio.get_running_loop().call_later(0.3, setattr, stuck.service, "is_stuck", True)
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
            assert len(other.service.requests) == 1

    @pytest.mark.parametrize("silence", [Silence(first_event_seconds=5, stall_seconds=0.2)])
    async def test_a_stream_that_says_nothing_is_lost_and_run_elsewhere(self, silence):
        async with running(2, silence=silence) as (pool, (silent, other)):
            other.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            silent.service.seconds_per_token = 30
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
            await eventually(lambda: silent.service.aborted == ["r"])


class TestCircuit:
    async def test_a_half_open_circuit_lets_one_through_and_its_first_word_the_others(self):
        async with running(1) as (pool, (worker,)):
            client = next(iter(pool.roster))
            for attempt in [client.circuit.begin() for _ in range(3)]:
                attempt.failed()
            await eventually(lambda: client.circuit.state == "half_open")
            worker.service.seconds_in_queue = 0.4
            worker.service.seconds_per_token = 0.4
            async with aclosing(pool.generate(order(request_id="probe"))) as events:
                assert isinstance(await anext(events), GenerationStarted)
                with pytest.raises(NoWorkerAvailable):
                    await run(pool, order(request_id="too-early"))
                assert isinstance(await anext(events), TextDelta)
                others = await asyncio.gather(*(run(pool, order(request_id=str(number))) for number in range(3)))
                assert all(isinstance(other[-1], GenerationFinished) for other in others)
            assert [request.request_id for request in worker.service.requests] == ["probe", "0", "1", "2"]

    async def test_a_worker_that_only_fails_is_left_alone(self):
        async with running(1) as (pool, (worker,)):
            worker.service.fails_with = Unavailable("no", code="engine_stuck", remedy="later")
            client = next(iter(pool.roster))
            for number in range(3):
                await eventually(lambda: client.state is not None)
                with pytest.raises(Unavailable, match="no"):
                    await run(pool, order(request_id=str(number)))
            await eventually(lambda: client.state is not None)
            assert [status.circuit for status in pool.fleet().workers] == ["open"]
            with pytest.raises(NoWorkerAvailable):
                await run(pool, order())
            worker.service.fails_with = None
            await eventually(lambda: client.is_live)
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
            assert [status.circuit for status in pool.fleet().workers] == ["closed"]
