"""Connections to workers that become a black hole, or break."""

from __future__ import annotations

import asyncio
import json
import time

from tests.builders.faulty_stack import ANSWER, CLEAR_CODES, PROMPT, ended_clearly, faulty_stack, until
from tests.builders.patience import patient
from tests.fakes.router_stack import eventually


async def where_it_runs(stack):
    """The place of the worker that has the only request."""
    await eventually(lambda: sum(stack.num_running()) == 1)
    return stack.num_running().index(1)


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
            for worker in stack.workers:
                worker.service.seconds_per_token = 30.0
            waiting = asyncio.create_task(stack.ask())
            place = await where_it_runs(stack)
            stack.workers[1 - place].service.seconds_per_token = 0.0

            await stack.lines[place].refuse()

            answer = await waiting
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == ANSWER
            later = await asyncio.gather(*(stack.ask() for _ in range(4)))
            assert [answer.status_code for answer in later] == [200] * 4

    async def test_a_stream_in_flight_goes_on_at_another_worker_with_every_token_once(self):
        async with faulty_stack() as stack:
            for worker in stack.workers:
                worker.service.seconds_per_token = 0.3
            body = {"model": "auto", "prompt": PROMPT, "stream": True}

            async with stack.client.stream("POST", "/v1/completions", json=body) as answer:
                events = []
                async for event in answer.aiter_lines():
                    if event:
                        events.append(event.removeprefix("data: "))
                    if "Paris" in event:
                        await stack.lines[await where_it_runs(stack)].refuse()

            assert events.pop() == "[DONE]"
            texts = [choice["text"] for event in map(json.loads, events) for choice in event["choices"]]
            assert "".join(texts) == ANSWER
            assert [len(worker.service.finished) for worker in stack.workers].count(1) == 1

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
            await until(stack.succeeds, what="the worker is used again")
