"""Workers are killed again and again under load: every request ends, and no token is lost or comes twice.

Three real worker processes with the testbed's base, found through Redis; one is killed every ten seconds, or
as soon as two are live again. Runs for 40 seconds, or for HILORA_CHAOS_SECONDS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager

import httpx
import pytest

from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.builders.redis_server import redis_server
from tests.builders.system import ROOT, TESTBED, free_port, task_lines
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually

SECONDS = float(os.environ.get("HILORA_CHAOS_SECONDS", "40"))
SECONDS_BETWEEN_KILLS = 10.0
NUM_WORKERS = 3
NUM_CLIENTS = 4
MAX_TOKENS = 48
HANG_SECONDS = 60.0

pytestmark = [
    pytest.mark.timeout(SECONDS + 400),
    pytest.mark.skipif(
        "HILORA_CHAOS_SECONDS" not in os.environ,
        reason="workers are killed for HILORA_CHAOS_SECONDS (say 180) on a machine that has nothing else to do",
    ),
]


class WorkerProcess:
    """One worker that comes back, on another port, when it is killed."""

    def __init__(self, *, registry_address, redis_url, log) -> None:
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HILORA_")},
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HILORA_WORKER_REGISTRY_ADDRESS": registry_address,
            "HILORA_WORKER_BASE_MODEL": str(TESTBED / "base"),
            "HILORA_WORKER_DEVICE": "cpu",
            "HILORA_WORKER_REDIS_URL": redis_url,
        }
        self._log = log
        self._process = None

    def start(self) -> None:
        port = free_port()
        address = {"HILORA_WORKER_RPC_PORT": str(port), "HILORA_WORKER_ADVERTISE_ADDRESS": f"127.0.0.1:{port}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.worker"],
            env={**self._environment, **address},
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def running_pool(folder):
    """The router's HTTP address and its workers, once all of them are live."""
    registry = FakeRegistry()
    await registry.start()
    with redis_server(folder / "redis") as redis_url, (folder / "workers.log").open("wb") as log:
        workers = [
            WorkerProcess(registry_address=registry.address, redis_url=redis_url, log=log) for _ in range(NUM_WORKERS)
        ]
        settings = RouterSettings(
            rpc_port=0,
            rest_port=0,
            registry_address=registry.address,
            worker_addresses=("redis",),
            redis_url=redis_url,
            worker_lookup_seconds=1.0,
            worker_stall_seconds=30.0,
        )
        router = build_router(settings, load_encoder=HashEncoder)
        try:
            for worker in workers:
                worker.start()
            await router.start()
            await eventually(lambda: router._workers.fleet().num_live == NUM_WORKERS, timeout_seconds=60)
            yield router, workers
        finally:
            await router.stop(grace_seconds=0)
            for worker in workers:
                worker.kill()
            await registry.stop()


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


async def test_every_request_ends_and_every_token_comes_once(tmp_path):
    prompts = [line["prompt"] for line in task_lines()[:16]]
    rng = random.Random(0)
    outcomes = Counter()
    codes = Counter()
    wrong = []

    async with running_pool(tmp_path) as (router, workers):  # noqa: SIM117  (the client needs the router's address)
        async with httpx.AsyncClient(base_url=f"http://{router.rest_address}", timeout=patient(HANG_SECONDS)) as client:
            models = (await client.get("/v1/models")).json()["data"]
            model = next(entry["id"] for entry in models if entry["id"] != "auto")
            expected = {prompt: (await ask(client, prompt, model))[0] for prompt in prompts}
            assert all(expected.values())
            loop = asyncio.get_running_loop()
            ends_at = loop.time() + SECONDS
            num_kills = 0

            async def load(number):
                for turn in itertools.count(number):
                    if loop.time() >= ends_at:
                        return
                    prompt = rng.choice(prompts)
                    kind, send = (("stream", listen), ("whole", ask))[turn % 2]
                    try:
                        text, code = await send(client, prompt, model)
                    except httpx.TimeoutException:
                        text, code = None, "hang"
                    outcomes[kind, code is None] += 1
                    if code is not None:
                        codes[code] += 1
                    elif text != expected[prompt]:
                        wrong.append((kind, prompt, text, expected[prompt]))

            async def kill():
                nonlocal num_kills
                for victim in itertools.cycle(workers):
                    await asyncio.sleep(SECONDS_BETWEEN_KILLS)
                    # What is tested is the loss of one; a slow machine may not have the last one back yet.
                    while router._workers.fleet().num_live < 2 and loop.time() < ends_at:  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                    if loop.time() >= ends_at:
                        return
                    await asyncio.to_thread(victim.kill)
                    victim.start()
                    num_kills += 1

            await asyncio.gather(kill(), *(load(number) for number in range(NUM_CLIENTS)))

    whole, whole_ok = outcomes["whole", True] + outcomes["whole", False], outcomes["whole", True]
    streams, streams_ok = outcomes["stream", True] + outcomes["stream", False], outcomes["stream", True]
    print(  # noqa: T201  (the numbers are what it is run for)
        f"chaos: {SECONDS:g} s, {num_kills} kills, whole {whole_ok}/{whole}, streams {streams_ok}/{streams}, "
        f"wrong {len(wrong)}, errors {dict(codes)}"
    )
    assert num_kills >= 1
    assert not wrong
    assert not {"hang", "cut"} & codes.keys()
    assert whole_ok >= 0.99 * whole > 0
    assert streams_ok > 0
