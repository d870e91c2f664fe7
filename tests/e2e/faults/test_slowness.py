"""Slow workers, slow lines, slow clients, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time

from tests.builders.faulty_stack import PROMPT, faulty_stack
from tests.builders.patience import patient
from tests.fakes.router_stack import eventually


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
