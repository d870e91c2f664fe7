"""Workers are killed again and again under load: every request ends, and no token is lost or comes twice.

Three real worker processes with the testbed's base, found through Redis; one is killed every ten seconds and replaced
within a second or two (`tests/builders/worker_spares.py`). Runs for 25 seconds with two kills, or for
HILORA_CHAOS_SECONDS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest
from structlog.testing import capture_logs

from tests.builders.patience import patient
from tests.builders.system import task_lines
from tests.builders.worker_fleet import RealFleet, real_fleet
from tests.fakes.router_stack import eventually

SECONDS = float(os.environ.get("HILORA_CHAOS_SECONDS", "25"))
SECONDS_BETWEEN_KILLS = 10.0
NUM_WORKERS = 3
NUM_CLIENTS = 6
MAX_TOKENS = 48
HANG_SECONDS = 60.0

pytestmark = pytest.mark.timeout(SECONDS + 400)


def body(prompt, model, *, stream):
    return {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True} | (
        {"stream": True} if stream else {}
    )


async def ask(client, prompt, model):
    """Text of a whole answer, or None and the error's code."""
    answer = (await client.post("/v1/completions", json=body(prompt, model, stream=False))).json()
    if "error" in answer:
        return None, answer["error"]["code"]
    return answer["choices"][0]["text"], None


async def listen(client, prompt, model):
    """The same of a stream; one that ends with neither `[DONE]` nor an error has the code `cut`."""
    text = ""
    async with client.stream("POST", "/v1/completions", json=body(prompt, model, stream=True)) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return text, None
            if line.startswith(("data: ", "{")):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return None, event["error"]["code"]
                text += "".join(choice["text"] for choice in event["choices"])
    return None, "cut"


@dataclass(kw_only=True)
class Load:
    """Clients that ask one after the other, half of the time for a stream, and compare with what is right."""

    client: httpx.AsyncClient
    model: str = ""
    expected: dict[str, str] = field(default_factory=dict)
    outcomes: Counter = field(default_factory=Counter)
    codes: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    is_over: bool = False

    async def learn(self) -> None:
        """Ask for each answer once, while nothing is broken."""
        models = (await self.client.get("/v1/models")).json()["data"]
        self.model = next(entry["id"] for entry in models if entry["id"] != "auto")
        for prompt in [line["prompt"] for line in task_lines()[:16]]:
            text, code = await ask(self.client, prompt, self.model)
            assert text, code
            self.expected[prompt] = text

    async def run(self, number: int) -> None:
        """One client, until it is over."""
        rng = random.Random(number)
        for turn in itertools.count(number):
            if self.is_over:
                return
            prompt = rng.choice(list(self.expected))
            kind, send = (("stream", listen), ("whole", ask))[turn % 2]
            try:
                text, code = await send(self.client, prompt, self.model)
            except httpx.TimeoutException:
                text, code = None, "hang"
            self.outcomes[kind, code is None] += 1
            if code is not None:
                self.codes[code] += 1
            elif text != self.expected[prompt]:
                self.wrong.append((kind, prompt, text, self.expected[prompt]))

    def share(self, kind: str) -> tuple[int, int]:
        """How many requests of a kind were answered, of how many."""
        answered = self.outcomes[kind, True]
        return answered, answered + self.outcomes[kind, False]


@dataclass(kw_only=True)
class Kills:
    """What was killed, and how soon it was replaced."""

    num_lost: list[int] = field(default_factory=list)
    """Requests that each victim had."""
    seconds_until_replaced: list[float] = field(default_factory=list)

    async def run(self, fleet: RealFleet, *, ends_at: float) -> None:
        """Kill one worker after the other until the time is over."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for number in itertools.count(1):
            at = began_at + number * SECONDS_BETWEEN_KILLS
            if at >= ends_at:
                return
            await asyncio.sleep(at - loop.time())
            # The one with most requests: a kill between two of them would show nothing.
            victim = max(fleet.workers, key=fleet.num_in_flight)
            self.num_lost.append(fleet.num_in_flight(victim))
            victim.kill()
            killed_at = loop.time()
            await victim.start()
            await eventually(lambda victim=victim: fleet.is_live(victim), timeout_seconds=30)
            self.seconds_until_replaced.append(loop.time() - killed_at)


async def test_every_request_ends_and_every_token_comes_once(tmp_path):
    async with (
        real_fleet(tmp_path, num_workers=NUM_WORKERS) as fleet,
        httpx.AsyncClient(base_url=fleet.url, timeout=patient(HANG_SECONDS), trust_env=False) as client,
    ):
        load, kills = Load(client=client), Kills()
        await load.learn()
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + SECONDS

        async def break_things():
            await kills.run(fleet, ends_at=ends_at)
            await asyncio.sleep(ends_at - loop.time())
            load.is_over = True

        with capture_logs() as lines:
            await asyncio.gather(break_things(), *(load.run(number) for number in range(NUM_CLIENTS)))

    moved = [line for line in lines if line["event"] == "request_moved"]
    num_moved_streams = sum(line["was_streaming"] for line in moved)
    (whole_ok, whole), (streams_ok, streams) = load.share("whole"), load.share("stream")
    print(  # noqa: T201  (the numbers are what it is run for)
        f"chaos: {SECONDS:g} s, {len(kills.num_lost)} kills that took {sum(kills.num_lost)} requests, replaced within "
        f"{max(kills.seconds_until_replaced):.1f} s; {len(moved)} went on elsewhere, {num_moved_streams} of them with "
        f"words out; whole {whole_ok}/{whole}, streams {streams_ok}/{streams}, "
        f"wrong {len(load.wrong)}, errors {dict(load.codes)}"
    )
    assert len(kills.num_lost) == (SECONDS - 0.001) // SECONDS_BETWEEN_KILLS >= 2
    assert moved
    assert not load.wrong
    assert not {"hang", "cut"} & load.codes.keys()
    assert whole_ok >= 0.99 * whole > 0
    assert streams_ok > 0


async def test_a_worker_that_is_told_to_stop_loses_no_request(tmp_path):
    async with (
        real_fleet(tmp_path, num_workers=2) as fleet,
        httpx.AsyncClient(base_url=fleet.url, timeout=patient(HANG_SECONDS), trust_env=False) as client,
    ):
        load = Load(client=client)
        await load.learn()

        async def stop_one():
            leaving = fleet.workers[0]
            await eventually(lambda: fleet.num_in_flight(leaving) > 0, timeout_seconds=20)
            leaving.drain()
            await eventually(lambda: not leaving.is_alive, timeout_seconds=30)
            await asyncio.sleep(1.0)
            load.is_over = True

        await asyncio.gather(stop_one(), *(load.run(number) for number in range(NUM_CLIENTS)))

    assert not load.wrong
    assert not load.codes
    assert load.share("whole")[0] > 0
    assert load.share("stream")[0] > 0
