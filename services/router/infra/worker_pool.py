"""A fixed list of workers: who lives, who is where, who is least loaded; one retry while nothing has streamed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hilora.errors import NoWorkerAvailable, Unavailable
from services.common.log import get_logger
from services.common.tls import TlsIdentity
from services.router.answer import TokenizedPrompt, WorkerEvent
from services.router.infra.worker_client import WorkerClient
from services.router.ports import WorkerFleet
from services.router.request import Prompt, WorkOrder

_log = get_logger(__name__)

_LOST_CODES = frozenset({"worker_lost", "worker_draining", "worker_starting", "engine_stuck", "device_lost"})
"""What a worker that cannot serve anybody now answers, or leaves behind."""
_POLL_SECONDS = 1.0
_TOKENIZE_SECONDS = 30.0
# While a request waits for a worker to catch up, a second of polling would be a second of its latency.
_POLL_SECONDS_WHILE_WAITED_FOR = 0.05


class StaticWorkerPool:
    """Implements `Workers` over a list of addresses.

    Args:
        addresses: `host:port` of each worker.
        request_timeout_seconds: longest time one generation may take.
        catch_up_seconds: how long a request waits for a live worker to reach its plan's catalogue generation.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        request_timeout_seconds: float,
        catch_up_seconds: float = 5.0,
        identity: TlsIdentity | None = None,
    ) -> None:
        self._identity = identity
        self._addresses = tuple(addresses)
        self._request_timeout_seconds = request_timeout_seconds
        self._catch_up_seconds = catch_up_seconds
        self._clients: tuple[WorkerClient, ...] = ()
        self._pollers: list[asyncio.Task[None]] = []
        self._polled = asyncio.Condition()
        self._poll_now = asyncio.Event()
        self._num_waiting = 0

    async def start(self) -> None:
        """Connect and ask each worker once; a worker that is away is asked again for ever."""
        self._clients = tuple(WorkerClient(address, identity=self._identity) for address in self._addresses)
        await asyncio.gather(*(client.poll() for client in self._clients))
        self._pollers = [
            asyncio.create_task(self._poll_for_ever(client), name=f"poll {client.address}") for client in self._clients
        ]

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (the doors drain; nothing is left here)
        """Let go of every connection."""
        for poller in self._pollers:
            poller.cancel()
        if self._pollers:
            await asyncio.wait(self._pollers)
        self._pollers = []
        for client in self._clients:
            client.state = None
            await client.close()

    def fleet(self) -> WorkerFleet:
        """See `Workers.fleet`."""
        states = [client.state for client in self._clients if client.state is not None]
        live = [state for state in states if not state.is_draining]
        return WorkerFleet(
            num_configured=len(self._addresses),
            num_live=len(live),
            highest_catalog_generation=max((state.catalog_generation for state in live), default=0),
            base_model=next((state.base_model for state in states if state.base_model), None),
            max_model_len=min((state.max_model_len for state in live), default=None),
        )

    async def generate(self, order: WorkOrder) -> AsyncGenerator[WorkerEvent]:
        """See `Workers.generate`."""
        limit = order.request.timeout_seconds
        timeout_seconds = min(limit, self._request_timeout_seconds) if limit else self._request_timeout_seconds
        tried: frozenset[str] = frozenset()
        while True:
            client = await self._pick(order.plan.catalog_generation, tried=tried)
            has_begun = False
            try:
                async with aclosing(client.generate(order, timeout_seconds=timeout_seconds)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except Unavailable as error:
                if error.code not in _LOST_CODES:
                    # The worker lives and says why: others may well be answered by it.
                    raise
                self._suspect(client, error)
                if has_begun or tried or not any(other.is_live for other in self._clients):
                    raise
                tried = frozenset({client.address})

    async def tokenize(self, prompt: Prompt, *, omits_special_tokens: bool = False) -> TokenizedPrompt:
        """See `Workers.tokenize`."""
        client = await self._pick(0, tried=frozenset())
        return await client.tokenize(
            prompt, omits_special_tokens=omits_special_tokens, timeout_seconds=_TOKENIZE_SECONDS
        )

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Workers.detokenize`."""
        client = await self._pick(0, tried=frozenset())
        return await client.detokenize(token_ids, timeout_seconds=_TOKENIZE_SECONDS)

    def _suspect(self, client: WorkerClient, error: Unavailable) -> None:
        """Use a worker again only after it answered a poll, which is made at once."""
        _log.warning("worker_failed", worker=client.address, code=error.code, message=error.message)
        client.state = None
        self._poll_now.set()

    async def _pick(self, catalog_generation: int, *, tried: frozenset[str]) -> WorkerClient:
        """The least loaded live worker at a generation, waiting for one that is on its way."""
        deadline = asyncio.get_running_loop().time() + self._catch_up_seconds
        while True:
            live = [client for client in self._clients if client.is_live and client.address not in tried]
            ready = [
                client for client in live if client.state and client.state.catalog_generation >= catalog_generation
            ]
            if ready:
                # Equal loads are the rule when idle: chance spreads them.
                return min(ready, key=lambda client: (client.load, random.random()))  # noqa: S311
            if not live:
                raise NoWorkerAvailable(
                    f"None of the {len(self._clients)} workers answers.",
                    remedy="Start a worker, or check HILORA_ROUTER_WORKER_ADDRESSES.",
                )
            if not await self._wait_for_poll(deadline):
                raise NoWorkerAvailable(
                    f"No worker reached catalogue generation {catalog_generation} "
                    f"within {self._catch_up_seconds:g} seconds.",
                    remedy="Try again; if it stays so, look whether the workers reach the registry.",
                )

    async def _wait_for_poll(self, deadline: float) -> bool:
        """Whether news of a worker came before the deadline."""
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            return False
        self._num_waiting += 1
        self._poll_now.set()
        try:
            async with asyncio.timeout(remaining), self._polled:
                await self._polled.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._num_waiting -= 1

    async def _poll_for_ever(self, client: WorkerClient) -> None:
        was_live = client.is_live
        while True:
            pause = _POLL_SECONDS_WHILE_WAITED_FOR if self._num_waiting else _POLL_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._poll_now.wait()
            except TimeoutError:
                pass
            else:
                self._poll_now.clear()
            await client.poll()
            if client.is_live != was_live:
                was_live = client.is_live
                _log.info("worker_live" if was_live else "worker_away", worker=client.address)
            async with self._polled:
                self._polled.notify_all()
