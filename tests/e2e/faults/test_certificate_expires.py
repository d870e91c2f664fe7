"""A certificate of mutual TLS runs out while the router serves, with and without a new one in time."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from services.common.tls import TlsIdentity
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.builders.certificates import Authority
from tests.builders.faulty_stack import until
from tests.builders.patience import patient
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually
from tests.fakes.worker_service import FakeWorker

DAY_SECONDS = 86400.0
LIFE_SECONDS = patient(5.0)
"""Of the certificate that runs out: long enough for everything to connect."""


@asynccontextmanager
async def encrypted_stack(folder, authority, *, expiring):
    """A router, the relay between it and its worker, and a way to complete; one certificate lives for seconds."""
    lives = {name: LIFE_SECONDS if name == expiring else DAY_SECONDS for name in ("router", "worker", "registry")}
    files = {name: authority.write(folder / name, "hilora", days=life / DAY_SECONDS) for name, life in lives.items()}
    registry = FakeRegistry(identity=TlsIdentity(files["registry"]))
    worker = FakeWorker(identity=TlsIdentity(files["worker"]))
    async with AsyncExitStack() as stack:
        for part in (registry, worker):
            await part.start()
            stack.push_async_callback(part.stop)
        line = await stack.enter_async_context(FaultProxy(worker.address))
        settings = RouterSettings(
            rpc_port=0,
            rest_port=0,
            registry_address=registry.address,
            worker_addresses=(line.address,),
            tls_cert_file=files["router"].certificate,
            tls_key_file=files["router"].key,
            tls_ca_file=files["router"].authorities,
            tls_server_name="hilora",
        )
        router = build_router(settings, load_encoder=HashEncoder)
        await router.start()
        stack.push_async_callback(router.stop, grace_seconds=0)
        await eventually(lambda: router.readiness().can_generate, timeout_seconds=10)
        url = f"http://{router.rest_address}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=patient(30), trust_env=False))

        async def complete():
            return await client.post("/v1/completions", json={"model": "base", "prompt": "x"})

        yield line, complete


def expired_at(started):
    """When a certificate that was made by then has run out; its times are whole seconds."""
    return started + LIFE_SECONDS + 1.0 - time.monotonic()


@pytest.mark.parametrize("expiring", ["router", "worker"])
class TestExpiry:
    async def test_connections_go_on_new_ones_are_refused_and_a_new_certificate_mends_it(self, tmp_path, expiring):
        authority, started = Authority(), time.monotonic()
        async with encrypted_stack(tmp_path, authority, expiring=expiring) as (line, complete):
            assert (await complete()).status_code == 200
            await asyncio.sleep(expired_at(started))
            assert (await complete()).status_code == 200

            line.cut()

            async def is_refused():
                answer = await complete()
                return answer.status_code == 503 and answer.json()["error"]["code"] == "no_worker_available"

            await until(is_refused, what="nobody is believed any more")
            # It does not come back by itself.
            await asyncio.sleep(2.5)
            assert await is_refused()

            authority.write(tmp_path / expiring, "hilora")

            async def is_answered():
                return (await complete()).status_code == 200

            await until(is_answered, what="the new certificate is used", seconds=15)

    async def test_one_that_is_replaced_in_time_costs_no_request(self, tmp_path, expiring):
        authority, started = Authority(), time.monotonic()
        async with encrypted_stack(tmp_path, authority, expiring=expiring) as (line, complete):
            authority.write(tmp_path / expiring, "hilora")
            statuses = set()
            remaining = expired_at(started)
            while remaining > 0:
                statuses.add((await complete()).status_code)
                await asyncio.sleep(min(0.1, remaining))
                remaining = expired_at(started)
            assert statuses == {200}

            line.cut()

            async def is_answered():
                return (await complete()).status_code == 200

            await until(is_answered, what="connections are made with the new one")
