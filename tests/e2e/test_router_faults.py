"""What the router does while the network or a part behind it is broken, seen through its HTTP door.

The table in docs/operations.md names these tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.builders.system import (
    RunningSystem,
    chosen_adapters,
    lines_of,
    planned_adapters,
    task_lines,
    upload,
    wait_until,
)
from tests.e2e.test_supervision import child
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import TASK_WORDS, eventually, task_texts
from tests.fakes.worker_service import FakeWorker

CLEAR_CODES = {"worker_lost", "request_timeout", "no_worker_available", "worker_stalled"}
"""How a request may end that a broken worker kept from its answer."""
PROMPT = f"{TASK_WORDS['capitals']} of somewhere"
ANSWER = "Paris is the capital."


@dataclass(frozen=True, kw_only=True)
class FaultyStack:
    """A router whose every connection goes through a proxy."""

    url: str
    registry: FakeRegistry
    registry_line: FaultProxy
    workers: list[FakeWorker]
    lines: list[FaultProxy]
    encoder: HashEncoder
    client: httpx.AsyncClient

    async def ask(self, **fields):
        """A completion, streamed or not, with what the fields say."""
        body = {"model": "auto", "prompt": PROMPT, **fields}
        return await self.client.post("/v1/completions", json=body)

    async def plans(self, task):
        """Whether a text of a task is routed to its adapter."""
        answer = await self.client.post("/v1/route", json={"prompt": TASK_WORDS[task], "model": "auto"})
        return answer.is_success and task in planned_adapters(answer.json())

    def upsert(self, task):
        """Have the registry announce an adapter; the workers have it already."""
        self.registry.service.upsert(catalog_entry(task, task_texts(task), encoder=self.encoder))
        for worker in self.workers:
            worker.service.catalog_generation = self.registry.service.generation

    def num_answered(self):
        """Requests that each worker finished."""
        return [len(worker.service.finished) for worker in self.workers]


@asynccontextmanager
async def faulty_stack(*, num_workers=2, tasks=("capitals", "sums"), **settings):
    encoder, registry = HashEncoder(), FakeRegistry()
    workers = [FakeWorker(name=f"worker-{number}") for number in range(num_workers)]
    async with AsyncExitStack() as stack:
        for part in (registry, *workers):
            await part.start()
            stack.push_async_callback(part.stop)
        registry_line = await stack.enter_async_context(FaultProxy(registry.address))
        lines = [await stack.enter_async_context(FaultProxy(worker.address)) for worker in workers]
        router = build_router(
            RouterSettings(
                rpc_port=0,
                rest_port=0,
                registry_address=registry_line.address,
                worker_addresses=tuple(line.address for line in lines),
                **settings,
            ),
            load_encoder=lambda: encoder,
        )
        await router.start()
        stack.push_async_callback(router.stop, grace_seconds=0)
        url = f"http://{router.rest_address}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=patient(60), trust_env=False))
        faulty = FaultyStack(
            url=url,
            registry=registry,
            registry_line=registry_line,
            workers=workers,
            lines=lines,
            encoder=encoder,
            client=client,
        )
        for task in tasks:
            faulty.upsert(task)
        await eventually(lambda: router.readiness().can_generate)
        await until(lambda: faulty.plans(tasks[-1]), what="the pool is known")
        yield faulty


async def until(check, *, what, seconds=10.0):
    """Return once an asynchronous check holds."""
    try:
        async with asyncio.timeout(patient(seconds)):
            while not await check():  # noqa: ASYNC110  (what is waited for has no event)
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{what}: not within {seconds:g} seconds")


def ended_clearly(answer):
    """Whether an answer is whole, or an error that says what was wrong."""
    if answer.status_code == 200:
        return answer.json()["choices"][0]["text"] == ANSWER
    return answer.status_code in {502, 503, 504} and answer.json()["error"]["code"] in CLEAR_CODES


class TestRegistryAway:
    @pytest.mark.parametrize("fault", ["refused", "black hole"])
    async def test_requests_go_on_from_the_last_picture_and_changes_arrive_afterwards(self, fault):
        async with faulty_stack() as stack:
            if fault == "refused":
                await stack.registry_line.refuse()
            else:
                stack.registry_line.swallow()
            stack.upsert("poems")
            until_when = time.monotonic() + 3.0
            while time.monotonic() < until_when:
                answer = await stack.ask()
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["text"] == ANSWER
                assert chosen_adapters(answer.json()) == ["capitals"]
            assert not await stack.plans("poems")

            await stack.registry_line.accept()
            stack.registry_line.heal()

            await until(lambda: stack.plans("poems"), what="the adapter that came meanwhile is chosen", seconds=40)

    async def test_a_router_that_starts_without_it_says_so_and_begins_when_it_is_there(self):
        encoder, registry, worker = HashEncoder(), FakeRegistry(), FakeWorker()
        registry.service.upsert(catalog_entry("capitals", task_texts("capitals"), encoder=encoder))
        worker.service.catalog_generation = registry.service.generation
        await registry.start()
        await worker.start()
        async with FaultProxy(registry.address) as line:
            await line.refuse()
            settings = RouterSettings(
                rpc_port=0, rest_port=0, registry_address=line.address, worker_addresses=(worker.address,)
            )
            router = build_router(settings, load_encoder=lambda: encoder)
            await router.start()
            async with httpx.AsyncClient(base_url=f"http://{router.rest_address}", trust_env=False) as client:
                ready = await client.get("/readyz")
                refused = await client.post("/v1/completions", json={"model": "auto", "prompt": PROMPT})
                assert ready.status_code == 503
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "catalog_not_loaded"

                await line.accept()

                await eventually(lambda: router.readiness().can_generate, timeout_seconds=20)
                answer = await client.post("/v1/completions", json={"model": "auto", "prompt": PROMPT})
                assert answer.status_code == 200
            await router.stop(grace_seconds=0)
        await worker.stop()
        await registry.stop()


class TestOldGeneration:
    async def test_a_worker_is_not_used_until_it_catches_up(self):
        async with faulty_stack() as stack:
            late, current = stack.workers
            stack.upsert("poems")
            late.service.catalog_generation = stack.registry.service.generation - 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            # What the pool knows of a worker may be a second old.
            await asyncio.sleep(1.5)
            before = stack.num_answered()

            answers = await asyncio.gather(*(stack.ask() for _ in range(12)))

            assert [answer.status_code for answer in answers] == [200] * 12
            assert [now - then for now, then in zip(stack.num_answered(), before, strict=True)] == [0, 12]
            late.service.catalog_generation = current.service.catalog_generation

            async def is_used():
                await asyncio.gather(*(stack.ask() for _ in range(4)))
                return stack.num_answered()[0] > before[0]

            await until(is_used, what="the worker that caught up is used")

    async def test_a_request_waits_for_a_worker_that_is_about_to_catch_up(self):
        async with faulty_stack(num_workers=1) as stack:
            worker = stack.workers[0].service
            stack.upsert("poems")
            worker.catalog_generation -= 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            await asyncio.sleep(1.5)

            waiting = asyncio.create_task(stack.ask())
            await asyncio.sleep(0.5)
            assert not waiting.done()
            worker.catalog_generation += 1

            assert (await waiting).status_code == 200

    async def test_it_is_refused_clearly_where_none_does(self):
        async with faulty_stack(num_workers=1) as stack:
            stack.upsert("poems")
            stack.workers[0].service.catalog_generation -= 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            await asyncio.sleep(1.5)

            answer = await stack.ask()

            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "no_worker_available"


class TestSlowWorker:
    async def test_the_others_are_preferred(self):
        async with faulty_stack() as stack:
            stack.workers[0].service.seconds_per_token = 0.3
            to_do = iter(range(48))

            async def client():
                for _ in to_do:
                    answer = await stack.ask()
                    assert answer.status_code == 200, answer.text

            await asyncio.gather(*(client() for _ in range(6)))

            slow, fast = stack.num_answered()
            assert slow + fast == 48
            assert fast >= 3 * slow

    async def test_a_slow_line_delays_its_answers_and_breaks_none(self):
        async with faulty_stack(num_workers=1) as stack:
            stack.lines[0].throttle(2_000)

            answers = await asyncio.gather(*(stack.ask() for _ in range(4)))

            assert [answer.status_code for answer in answers] == [200] * 4


class TestBlackHole:
    async def test_requests_end_within_their_time_and_soon_all_are_answered_elsewhere(self):
        async with faulty_stack(request_timeout_seconds=3.0) as stack:
            stack.lines[0].swallow()
            started = time.monotonic()

            answers = await asyncio.gather(*(stack.ask() for _ in range(8)))

            assert time.monotonic() - started < patient(3.0 + 2.0)
            assert all(ended_clearly(answer) for answer in answers), [answer.text for answer in answers]

            async def are_all_answered():
                again = await asyncio.gather(*(stack.ask() for _ in range(4)))
                return all(answer.status_code == 200 for answer in again)

            await until(are_all_answered, what="the other worker answers everything", seconds=20)

    async def test_a_stream_in_flight_ends_with_an_error_and_without_done(self):
        async with faulty_stack(num_workers=1, request_timeout_seconds=3.0) as stack:
            stack.workers[0].service.seconds_per_token = 0.3
            body = {"model": "auto", "prompt": PROMPT, "stream": True}
            started = time.monotonic()

            async with stack.client.stream("POST", "/v1/completions", json=body) as answer:
                events = []
                async for event in answer.aiter_lines():
                    if not event:
                        continue
                    events.append(event.removeprefix("data: "))
                    if "Paris" in event:
                        stack.lines[0].swallow()

            assert time.monotonic() - started < patient(3.0 + 2.0)
            assert events[-1] != "[DONE]"
            assert json.loads(events[-1])["error"]["code"] in CLEAR_CODES

    async def test_the_client_s_own_time_out_holds_too(self):
        async with faulty_stack(num_workers=1) as stack:
            stack.lines[0].swallow()
            started = time.monotonic()

            answer = await stack.client.post(
                "/v1/completions", json={"model": "auto", "prompt": PROMPT}, headers={"X-Request-Timeout": "1.5"}
            )

            assert time.monotonic() - started < patient(1.5 + 2.0)
            assert answer.status_code != 200
            assert ended_clearly(answer), answer.text


class TestCut:
    async def test_what_has_not_streamed_is_answered_by_another_worker(self):
        async with faulty_stack() as stack:
            stack.workers[0].service.seconds_per_token = 5.0
            waiting = asyncio.gather(*(stack.ask() for _ in range(4)))
            await eventually(lambda: stack.workers[0].service.num_running > 0)

            await stack.lines[0].refuse()

            answers = await waiting
            assert all(ended_clearly(answer) for answer in answers), [answer.text for answer in answers]
            later = await asyncio.gather(*(stack.ask() for _ in range(4)))
            assert [answer.status_code for answer in later] == [200] * 4

    async def test_a_stream_in_flight_ends_with_an_error_and_without_done(self):
        async with faulty_stack(num_workers=1) as stack:
            stack.workers[0].service.seconds_per_token = 0.3
            body = {"model": "auto", "prompt": PROMPT, "stream": True}

            async with stack.client.stream("POST", "/v1/completions", json=body) as answer:
                events = []
                async for event in answer.aiter_lines():
                    if event:
                        events.append(event.removeprefix("data: "))
                    if "Paris" in event:
                        stack.lines[0].cut()

            assert events[-1] != "[DONE]"
            assert json.loads(events[-1])["error"]["code"] == "worker_lost"
            # The worker itself never was away.
            await until(lambda: _succeeds(stack), what="the worker is used again")


class TestSlowClient:
    async def test_it_holds_nobody_else_up_and_its_work_ends_when_it_leaves(self):
        async with faulty_stack(num_workers=1) as stack:
            service = stack.workers[0].service
            # More than sockets and flow control can hold between the worker and somebody who does not read.
            service.words = ("x" * 65536,) * 400
            host, _, port = stack.url.removeprefix("http://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            body = json.dumps({"model": "auto", "prompt": PROMPT, "stream": True, "max_tokens": 400}).encode()
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            writer.transport.pause_reading()
            await eventually(lambda: service.num_running == 1)
            await asyncio.sleep(1.0)
            assert service.num_running == 1, "the worker waits for its reader"

            started = time.monotonic()
            answer = await stack.ask(max_tokens=1)
            assert answer.status_code == 200
            assert time.monotonic() - started < patient(2.0)

            writer.transport.abort()
            await eventually(lambda: len(service.aborted) == 1)
            assert service.num_running == 0

    async def test_one_that_leaves_aborts_its_work(self):
        async with faulty_stack(num_workers=1) as stack:
            service = stack.workers[0].service
            service.seconds_per_token = 0.3
            body = {"model": "auto", "prompt": PROMPT, "stream": True}

            async with stack.client.stream("POST", "/v1/completions", json=body) as answer:
                await anext(answer.aiter_lines())

            await eventually(lambda: len(service.aborted) == 1)


class TestRedisKilled:
    def test_requests_go_on_and_uploads_work_after_its_return(self, system: RunningSystem, tmp_path):
        line = lines_of(task_lines("fit")[0]["task"])[0]
        killed = child(system, "redis-server")
        os.kill(killed, signal.SIGKILL)

        answers = [system.complete(line["prompt"]) for _ in range(5)]

        assert [chosen_adapters(answer) for answer in answers] == [[line["task"]]] * 5
        wait_until(
            lambda: child(system, "redis-server") not in {None, killed}, timeout_seconds=30, what="another Redis runs"
        )
        wait_until(
            lambda: httpx.get(f"{system.url}/v1/adapters", timeout=patient(30)).status_code == 200,
            timeout_seconds=30,
            what="the registry answers",
        )
        status, job = upload(system, name="after-the-fault", task=line["task"], scratch=tmp_path)
        assert status == 202, job
        wait_until(
            lambda: system.get(f"/v1/jobs/{job['job_id']}")["state"] == "READY",
            timeout_seconds=60,
            what="the upload is READY",
        )
        httpx.delete(f"{system.url}/v1/adapters/after-the-fault", timeout=patient(30)).raise_for_status()


async def _succeeds(stack):
    return (await stack.ask()).status_code == 200
