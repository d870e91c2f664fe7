"""The workers that a router knows: who joined, who leaves, how each is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from hilora.errors import Unavailable
from services.common.log import get_logger
from services.common.tasks import end_tasks
from services.common.tls import TlsIdentity
from services.router.infra.workers.client import Silence, WorkerClient
from services.router.ports import WorkerDirectory

_log = get_logger(__name__)

_POLL_SECONDS = 1.0
# While a request waits for a worker to catch up, a second of polling would be a second of its latency.
_POLL_SECONDS_WHILE_WAITED_FOR = 0.05
_LOOKUPS_UNTIL_GONE = 3
"""A worker leaves once so many lookups in a row did not name it: a Redis that was started anew fills up again within a
heartbeat, and would otherwise drain the fleet."""


class WorkerRoster:
    """Follows a directory and polls each worker.

    Args:
        directory: where the workers are.
        lookup_seconds: time between lookups.
        silence: how long a worker's stream may say nothing.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(
        self,
        directory: WorkerDirectory,
        *,
        lookup_seconds: float,
        silence: Silence,
        identity: TlsIdentity | None,
    ) -> None:
        self._directory = directory
        self._lookup_seconds = lookup_seconds
        self._silence = silence
        self._identity = identity
        self._clients: dict[str, WorkerClient] = {}
        self._leaving: set[WorkerClient] = set()
        self._num_missed: dict[str, int] = {}
        self._pollers: dict[WorkerClient, asyncio.Task[None]] = {}
        self._follower: asyncio.Task[None] | None = None
        self._polled = asyncio.Condition()
        self._poll_now = asyncio.Event()
        self._num_waiting = 0
        self._is_directory_away = False

    def __iter__(self) -> Iterator[WorkerClient]:
        """Workers that may be sent requests, as far as the directory knows."""
        return iter(tuple(self._clients.values()))

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def leaving(self) -> tuple[WorkerClient, ...]:
        """Workers that the directory does not name any more, and that still answer requests of ours."""
        return tuple(self._leaving)

    async def start(self) -> None:
        """Look up and ask each worker once; a worker that is away is asked again for ever."""
        await self._look_up()
        self._follower = asyncio.create_task(self._follow(), name="follow workers")

    async def stop(self) -> None:
        """Let go of every connection."""
        tasks = [*self._pollers.values(), *([self._follower] if self._follower else [])]
        await end_tasks(*tasks)
        self._pollers = {}
        self._follower = None
        for client in (*self, *self._leaving):
            client.state = None
            await client.close()
        self._leaving.clear()

    def poll_soon(self) -> None:
        """Ask every worker at once."""
        self._poll_now.set()

    async def wait_for_news(self, deadline: float) -> bool:
        """Whether news of a worker came before the deadline, on the loop's clock."""
        remaining = deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            return False
        self._num_waiting += 1
        self.poll_soon()
        try:
            async with asyncio.timeout(remaining), self._polled:
                await self._polled.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._num_waiting -= 1

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._lookup_seconds)
            await self._look_up()
            for client in [client for client in self._leaving if client.num_in_flight == 0]:
                self._leaving.discard(client)
                await self._stop_polling(client)
                await client.close()
                _log.info("worker_left", worker=client.address)

    async def _look_up(self) -> None:
        try:
            named = await self._directory.addresses()
        except Unavailable as error:
            if not self._is_directory_away:
                _log.warning("worker_directory_away", message=error.message)
            self._is_directory_away = True
            return
        self._is_directory_away = False
        await asyncio.gather(*(self._join(address) for address in sorted(named - self._clients.keys())))
        for address in list(self._clients):
            missed = 0 if address in named else self._num_missed.get(address, 0) + 1
            self._num_missed[address] = missed
            if missed >= _LOOKUPS_UNTIL_GONE:
                self._retire(address)

    async def _join(self, address: str) -> None:
        client = WorkerClient(address, silence=self._silence, identity=self._identity)
        self._clients[address] = client
        await client.poll()
        self._pollers[client] = asyncio.create_task(self._poll_for_ever(client), name=f"poll {address}")
        _log.info("worker_joined", worker=address)

    def _retire(self, address: str) -> None:
        """Send nothing new; what is in flight finishes. Polls go on: requests in its queue live by them."""
        client = self._clients.pop(address)
        del self._num_missed[address]
        self._leaving.add(client)
        _log.info("worker_leaving", worker=address, num_in_flight=client.num_in_flight)

    async def _stop_polling(self, client: WorkerClient) -> None:
        await end_tasks(self._pollers.pop(client))

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
