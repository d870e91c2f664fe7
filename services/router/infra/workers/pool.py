"""Orders to workers: which one, which next where that failed, and how an answer survives its worker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from hilora.errors import Exhausted, HiloraError, NoWorkerAvailable, Unavailable
from hilora.routing_plan import RoutingPlan
from services.common.log import get_logger
from services.common.tls import TlsIdentity
from services.router.answer import TokenizedPrompt, WorkerEvent
from services.router.infra.workers.affinity import PrefixAffinity, prefix_keys
from services.router.infra.workers.client import LEAVING_CODES, LOST_CODES, Silence, WorkerClient
from services.router.infra.workers.replay import Transcript, repeatable
from services.router.infra.workers.retry_budget import RetryBudget
from services.router.infra.workers.roster import WorkerRoster
from services.router.placement import PlacementWeights, choose_worker
from services.router.ports import WorkerDirectory, WorkerFleet
from services.router.request import Prompt, WorkOrder

_log = get_logger(__name__)
_AnswerT = TypeVar("_AnswerT")

_MAX_WORKERS_TRIED = 3
_TOKENIZE_SECONDS = 30.0
_POLL_HINT_SECONDS = 1.0
_BASE_ALONE = RoutingPlan(budgets=(), catalog_generation=0)


class WorkerPool:
    """Implements `Workers` over whatever workers a directory names.

    Args:
        directory: where the workers are.
        request_timeout_seconds: longest time one generation may take, its retries included.
        catch_up_seconds: how long a request waits for a live worker to reach its plan's catalogue generation.
        lookup_seconds: time between lookups in the directory.
        silence: how long a worker's stream may say nothing.
        weights: what counts how much in placement.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(
        self,
        directory: WorkerDirectory,
        *,
        request_timeout_seconds: float,
        catch_up_seconds: float = 5.0,
        lookup_seconds: float = 2.0,
        silence: Silence | None = None,
        weights: PlacementWeights | None = None,
        identity: TlsIdentity | None = None,
    ) -> None:
        self._request_timeout_seconds = request_timeout_seconds
        self._catch_up_seconds = catch_up_seconds
        self._weights = weights or PlacementWeights()
        self._affinity = PrefixAffinity()
        self._budget = RetryBudget(monotonic=time.monotonic)
        self._rng = random.Random()  # noqa: S311  (spreads load)
        self.roster = WorkerRoster(
            directory, lookup_seconds=lookup_seconds, silence=silence or Silence(), identity=identity
        )

    async def start(self) -> None:
        """Look up the workers and ask each once."""
        await self.roster.start()

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (the doors drain; nothing is left here)
        """Let go of every connection."""
        await self.roster.stop()

    def fleet(self) -> WorkerFleet:
        """See `Workers.fleet`."""
        states = [client.state for client in self.roster if client.state is not None]
        live = [client.state for client in self.roster if client.state is not None and client.is_live]
        return WorkerFleet(
            num_configured=len(self.roster),
            num_live=len(live),
            highest_catalog_generation=max((state.catalog_generation for state in live), default=0),
            base_model=next((state.base_model for state in states if state.base_model), None),
            max_model_len=min((state.max_model_len for state in live), default=None),
            workers=tuple(
                client.status(is_leaving=is_leaving)
                for is_leaving, clients in ((False, self.roster), (True, self.roster.leaving))
                for client in clients
            ),
        )

    async def generate(self, order: WorkOrder) -> AsyncGenerator[WorkerEvent]:
        """See `Workers.generate`."""
        loop = asyncio.get_running_loop()
        limit = order.request.timeout_seconds
        ends_at = loop.time() + (min(limit, self._request_timeout_seconds) if limit else self._request_timeout_seconds)
        order = repeatable(order)
        keys = prefix_keys(order)
        transcript = Transcript()
        tried: frozenset[str] = frozenset()
        errors: list[HiloraError] = []
        self._budget.request()
        while True:
            try:
                client = await self._pick(order.plan, keys, tried=tried)
            except NoWorkerAvailable:
                if errors:
                    raise _most_hopeful(errors) from None
                raise
            self._affinity.remember(keys, client.address)
            try:
                events = client.generate(order, timeout_seconds=max(0.001, ends_at - loop.time()))
                async with aclosing(events):
                    async for event in events:
                        new = transcript.new_part(event)
                        if new is not None:
                            yield new
                return
            except (Unavailable, Exhausted) as error:
                errors.append(error)
                if not self._may_try_elsewhere(client, error, has_begun=transcript.has_begun):
                    raise _most_hopeful(errors) from error
                tried |= {client.address}
                if not self._has_another(tried):
                    raise _most_hopeful(errors) from error
                _log.info(
                    "request_moved",
                    request_id=order.request.request_id,
                    away_from=client.address,
                    code=error.code,
                    was_streaming=transcript.has_begun,
                )
                transcript.begin_again()

    async def tokenize(self, prompt: Prompt, *, omits_special_tokens: bool = False) -> TokenizedPrompt:
        """See `Workers.tokenize`."""
        return await self._asked(
            lambda client: client.tokenize(
                prompt, omits_special_tokens=omits_special_tokens, timeout_seconds=_TOKENIZE_SECONDS
            )
        )

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Workers.detokenize`."""
        return await self._asked(lambda client: client.detokenize(token_ids, timeout_seconds=_TOKENIZE_SECONDS))

    async def _asked(self, ask: Callable[[WorkerClient], Awaitable[_AnswerT]]) -> _AnswerT:
        """What a worker answers; another one is asked if it is lost meanwhile."""
        tried: frozenset[str] = frozenset()
        self._budget.request()
        while True:
            client = await self._pick(_BASE_ALONE, (), tried=tried)
            try:
                return await ask(client)
            except Unavailable as error:
                tried |= {client.address}
                if not self._may_try_elsewhere(client, error, has_begun=False) or not self._has_another(tried):
                    raise

    def _has_another(self, tried: frozenset[str]) -> bool:
        """Whether a request may visit one more worker; if so, the visit is paid for."""
        others = any(client.is_live and client.address not in tried for client in self.roster)
        return others and len(tried) < _MAX_WORKERS_TRIED and self._budget.take()

    def _may_try_elsewhere(self, client: WorkerClient, error: HiloraError, *, has_begun: bool) -> bool:
        """Whether an error speaks of its worker alone; one that lost us is used again only after it answered a poll."""
        if isinstance(error, Exhausted):
            return not has_begun
        if error.code not in LOST_CODES:
            # The worker lives and says why: others may well be answered by it.
            return False
        _log.warning("worker_failed", worker=client.address, code=error.code, message=error.message)
        if error.code not in LEAVING_CODES:
            self._affinity.forget(client.address)
        client.state = None
        self.roster.poll_soon()
        return True

    async def _pick(self, plan: RoutingPlan, keys: tuple[bytes, ...], *, tried: frozenset[str]) -> WorkerClient:
        """The live worker that a plan suits best, waiting for one that is on its way."""
        deadline = asyncio.get_running_loop().time() + self._catch_up_seconds
        while True:
            live = [client for client in self.roster if client.is_live and client.address not in tried]
            ready = {
                client.address: client
                for client in live
                if client.state is not None and client.state.catalog_generation >= plan.catalog_generation
            }
            if ready:
                shares = self._affinity.shares(keys)
                views = [client.view(prefix_share=shares.get(client.address, 0.0)) for client in ready.values()]
                return ready[choose_worker(views, plan, weights=self._weights, rng=self._rng).address]
            if not live:
                raise self._nobody()
            if not await self.roster.wait_for_news(deadline):
                raise NoWorkerAvailable(
                    f"No worker reached catalogue generation {plan.catalog_generation} "
                    f"within {self._catch_up_seconds:g} seconds.",
                    remedy="Try again; if it stays so, look whether the workers reach the registry.",
                )

    def _nobody(self) -> NoWorkerAvailable:
        waits = [client.circuit.seconds_until_probe for client in self.roster if client.state is not None]
        return NoWorkerAvailable(
            f"None of the {len(self.roster)} workers answers.",
            remedy="Start a worker, or check HILORA_ROUTER_WORKER_ADDRESSES.",
            retry_after_seconds=max(_POLL_HINT_SECONDS, min(waits, default=_POLL_HINT_SECONDS)),
        )


def _most_hopeful(errors: Sequence[HiloraError]) -> HiloraError:
    """The error to tell of several workers': of those that name a time, the one with the shortest; else the last.

    Where one worker was full and another one was lost, being full is the better news.
    """
    full = [error for error in errors if isinstance(error, Exhausted)]
    return min(full, key=lambda error: error.retry_after_seconds) if full else errors[-1]
