"""The pool against workers that lag, drain, die and come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest

from hilora.errors import GenerationFailed, NoWorkerAvailable, QueueFull, Unavailable
from services.router.answer import GenerationFinished, GenerationStarted, TextDelta
from services.router.infra.workers import client as worker_client
from services.router.request import TextPrompt
from tests.builders.worker_pool import order, run, running
from tests.fakes.router_stack import eventually


class TestOneWorker:
    async def test_events_arrive_in_order_with_what_really_ran(self):
        async with running(1) as (pool, _):
            work = order()
            events = await run(pool, work)
        assert isinstance(events[0], GenerationStarted)
        assert [event.text for event in events[1:-1] if isinstance(event, TextDelta)] == [
            "Paris",
            " is",
            " the",
            " capital.",
        ]
        assert isinstance(events[-1], GenerationFinished)
        assert events[-1].budgets_used == work.plan.budgets

    async def test_the_fleet_is_known_after_start(self):
        async with running(1) as (pool, _):
            fleet = pool.fleet()
        assert (fleet.num_configured, fleet.num_live) == (1, 1)
        assert fleet.base_model == "/models/tiny-base"
        assert fleet.max_model_len == 512

    async def test_closing_the_stream_aborts_the_request(self):
        async with running(1) as (pool, workers):
            workers[0].service.seconds_per_token = 30
            async with aclosing(pool.generate(order(request_id="gone"))) as events:
                await anext(events)
            await eventually(lambda: workers[0].service.aborted == ["gone"])

    async def test_a_deadline_ends_the_request_and_keeps_the_worker(self):
        async with running(1) as (pool, workers):
            workers[0].service.seconds_per_token = 30
            with pytest.raises(Unavailable) as raised:
                await run(pool, order(timeout_seconds=0.2))
            assert raised.value.code == "request_timeout"
            assert pool.fleet().num_live == 1
            await eventually(lambda: len(workers[0].service.aborted) == 1)

    async def test_a_worker_s_own_error_arrives_as_it_was_raised(self):
        async with running(1) as (pool, workers):
            workers[0].service.fails_with = QueueFull("full", retry_after_seconds=3)
            with pytest.raises(QueueFull) as raised:
                await run(pool, order())
            assert raised.value.retry_after_seconds == 3


class TestCatalogGeneration:
    async def test_a_worker_at_an_old_generation_is_not_used(self):
        async with running(2) as (pool, (old, new)):
            new.service.catalog_generation = 5
            # The old one is idle, the new one is loaded: only the generation speaks for it.
            new.service.num_running = 7
            for number in range(6):
                await run(pool, order(catalog_generation=5, request_id=str(number)))
            assert len(new.service.requests) == 6
            assert not old.service.requests

    async def test_a_request_waits_for_a_worker_that_catches_up(self):
        async with running(1, catch_up_seconds=5) as (pool, (worker,)):
            asyncio.get_running_loop().call_later(0.2, setattr, worker.service, "catalog_generation", 9)
            started = asyncio.get_running_loop().time()
            await run(pool, order(catalog_generation=9))
            # Polling follows at the pace of those who wait, not once a second.
            assert 0.15 < asyncio.get_running_loop().time() - started < 0.9

    async def test_it_does_not_wait_for_ever(self):
        async with running(1) as (pool, _):
            with pytest.raises(NoWorkerAvailable, match="generation 9"):
                await run(pool, order(catalog_generation=9))


class TestPlacement:
    async def test_the_least_loaded_gets_the_request(self):
        async with running(3) as (pool, workers):
            for worker, num_running in zip(workers, (5, 1, 7), strict=True):
                worker.service.num_running = num_running
            await asyncio.gather(*(client.poll() for client in pool.roster))
            await run(pool, order())
            assert [len(worker.service.requests) for worker in workers] == [0, 1, 0]

    async def test_what_was_sent_since_the_last_poll_counts(self):
        async with running(2) as (pool, workers):
            for worker in workers:
                worker.service.seconds_per_token = 0.05
            await asyncio.gather(*(run(pool, order(request_id=str(number))) for number in range(8)))
            assert [len(worker.service.requests) for worker in workers] == [4, 4]

    async def test_idle_workers_share(self):
        async with running(2) as (pool, workers):
            for number in range(24):
                await run(pool, order(request_id=str(number), adapter=f"a{number}", text=f"text {number}"))
            assert min(len(worker.service.requests) for worker in workers) >= 1

    async def test_an_adapter_stays_where_its_components_are(self):
        async with running(3) as (pool, workers):
            for number in range(12):
                await run(pool, order(request_id=str(number), text=f"text {number}"))
            assert sorted(len(worker.service.requests) for worker in workers) == [0, 0, 12]

    @pytest.mark.parametrize("state", ["is_draining", "is_stuck", "is_device_lost"])
    async def test_a_worker_that_takes_no_requests_gets_none(self, state):
        async with running(2) as (pool, (away, other)):
            setattr(away.service, state, True)
            await asyncio.gather(*(client.poll() for client in pool.roster))
            for number in range(6):
                await run(pool, order(request_id=str(number)))
            assert not away.service.requests
            assert len(other.service.requests) == 6


class TestFailure:
    async def test_a_dead_worker_s_request_is_run_on_another_once(self):
        async with running(2) as (pool, (dead, alive)):
            alive.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            await dead.stop()
            events = await run(pool, order())
            assert isinstance(events[-1], GenerationFinished)
            assert len(alive.service.requests) == 1
            assert pool.fleet().num_live == 1

    async def test_three_failures_are_not_tried_a_fourth_time(self):
        async with running(4) as (pool, workers):
            for worker in workers:
                worker.service.fails_with = Unavailable("no", code="worker_draining", remedy="later")
            with pytest.raises(Unavailable, match="no"):
                await run(pool, order())
            assert sum(len(worker.service.requests) for worker in workers) == 3

    async def test_what_a_living_worker_lacks_does_not_count_against_it(self):
        async with running(1) as (pool, (worker,)):
            worker.service.fails_with = Unavailable("no registry", code="registry_unavailable", remedy="later")
            with pytest.raises(Unavailable, match="no registry"):
                await run(pool, order())
            assert pool.fleet().num_live == 1

    async def test_what_has_streamed_is_never_run_twice(self):
        async with running(2) as (pool, workers):
            for worker in workers:
                worker.service.fails_with = Unavailable("no", remedy="later")
                worker.service.fails_after_tokens = 2
            texts = []
            with pytest.raises(Unavailable):
                async for event in pool.generate(order()):
                    texts.append(getattr(event, "text", None))
            assert texts == [None, "Paris", " is"]
            assert Counter(len(worker.service.requests) for worker in workers) == {1: 1, 0: 1}

    async def test_a_failing_request_is_not_the_worker_s_end(self):
        async with running(2) as (pool, workers):
            for worker in workers:
                worker.service.fails_with = GenerationFailed("broken")
            with pytest.raises(GenerationFailed):
                await run(pool, order())
            assert sum(len(worker.service.requests) for worker in workers) == 1
            assert pool.fleet().num_live == 2

    async def test_without_a_live_worker_it_says_so_at_once(self):
        async with running(1, catch_up_seconds=30) as (pool, (worker,)):
            await worker.stop()
            await eventually(lambda: pool.fleet().num_live == 0)
            with pytest.raises(NoWorkerAvailable):
                await run(pool, order())

    async def test_a_late_worker_is_used_until_it_is_late_several_times(self, monkeypatch):
        monkeypatch.setattr(worker_client, "_STATS_TIMEOUT_SECONDS", 0.05)
        async with running(1) as (pool, (worker,)):
            client = next(iter(pool.roster))
            worker.service.seconds_per_stats = 1
            await client.poll()
            await client.poll()
            assert client.is_live
            await client.poll()
            assert not client.is_live
            worker.service.seconds_per_stats = 0
            await client.poll()
            assert client.is_live

    async def test_a_worker_that_came_back_is_used_again(self):
        async with running(1) as (pool, (worker,)):
            await worker.stop()
            await eventually(lambda: pool.fleet().num_live == 0)
            await worker.start()
            await eventually(lambda: pool.fleet().num_live == 1)
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)


class TestSurvival:
    async def test_a_lost_stream_goes_on_elsewhere_without_a_missing_or_repeated_token(self):
        async with running(2) as (pool, workers):
            first, second = workers
            second.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            first.service.fails_with = Unavailable("no", code="device_lost", remedy="later")
            first.service.fails_after_tokens = 2
            events = await run(pool, order())
        assert [type(event) for event in events].count(GenerationStarted) == 1
        deltas = [event for event in events if isinstance(event, TextDelta)]
        assert "".join(delta.text for delta in deltas) == "Paris is the capital."
        assert [token for delta in deltas for token in delta.token_ids] == [0, 1, 2, 3]
        assert isinstance(events[-1], GenerationFinished)
        seeds = [worker.service.requests[0].sampling.seed for worker in workers]
        assert seeds[0] == seeds[1] != 0

    async def test_a_second_worker_that_answers_differently_ends_the_stream(self):
        async with running(2) as (pool, (first, second)):
            second.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            first.service.fails_with = Unavailable("no", code="device_lost", remedy="later")
            first.service.fails_after_tokens = 2
            second.service.words = ("Paris", " was", " it")
            texts = []
            with pytest.raises(Unavailable) as raised:
                async for event in pool.generate(order()):
                    texts.append(getattr(event, "text", None))
            assert raised.value.code == "worker_lost"
            assert texts == [None, "Paris", " is"]

    async def test_a_full_worker_s_request_is_run_elsewhere(self):
        async with running(2) as (pool, (full, roomy)):
            roomy.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            full.service.fails_with = QueueFull("full", retry_after_seconds=9)
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
            assert len(full.service.requests) == len(roomy.service.requests) == 1
            assert pool.fleet().num_live == 2

    async def test_where_all_are_full_the_shortest_wait_is_told(self):
        async with running(3) as (pool, workers):
            for worker, seconds in zip(workers, (9, 2, 5), strict=True):
                worker.service.fails_with = QueueFull("full", retry_after_seconds=seconds)
            with pytest.raises(QueueFull) as raised:
                await run(pool, order())
            assert raised.value.retry_after_seconds == 2

    async def test_tokens_are_counted_by_another_worker_where_one_is_gone(self):
        async with running(2) as (pool, (dead, alive)):
            alive.service.num_running = 7
            await asyncio.gather(*(client.poll() for client in pool.roster))
            await dead.stop()
            told = await pool.tokenize(TextPrompt(text="one two"), omits_special_tokens=True)
            assert told.token_ids == (0, 1)
