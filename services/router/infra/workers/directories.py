"""Where workers are: in a list, behind a DNS name, in Redis; and several of those together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from hilora.errors import Unavailable
from services.common.worker_entries import KEY_PREFIX, address_in
from services.router.ports import WorkerDirectory

_DNS_SCHEME = "dns:///"
_TIMEOUT_SECONDS = 2.0
REDIS_ENTRY = "redis"
"""The word that stands for Redis in a list of addresses."""


class ListedWorkers:
    """Implements `WorkerDirectory` by a list that never changes."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = frozenset(addresses)

    async def addresses(self) -> frozenset[str]:
        """See `WorkerDirectory.addresses`."""
        return self._addresses


class DnsWorkers:
    """Implements `WorkerDirectory` by all addresses of a name, as a headless service in Kubernetes has them.

    Args:
        target: `dns:///name:port`, as gRPC writes it (grpc/doc/naming.md).
    """

    def __init__(self, target: str) -> None:
        self._host, self._port = host_and_port(target.removeprefix(_DNS_SCHEME))

    async def addresses(self) -> frozenset[str]:
        """See `WorkerDirectory.addresses`. A name that resolves to nothing is an error: it looks the same as a DNS
        server that has just started."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise _away(f"The name {self._host} does not resolve: {error or 'no answer in time'}.") from error
        return frozenset(
            f"[{address[0]}]:{self._port}" if family is socket.AF_INET6 else f"{address[0]}:{self._port}"
            for family, _, _, _, address in found
        )


class RedisWorkers:
    """Implements `WorkerDirectory` by the entries that workers keep in Redis (`services/common/worker_entries.py`).

    Args:
        client: of the Redis that the workers write to; the caller closes it.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def addresses(self) -> frozenset[str]:
        """See `WorkerDirectory.addresses`."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                keys = [key async for key in self._client.scan_iter(match=f"{KEY_PREFIX}*", count=1000)]
                entries = await self._client.mget(keys) if keys else []
        except (RedisError, OSError, TimeoutError) as error:
            raise _away(f"Redis did not tell the workers: {error or 'no answer in time'}.") from error
        values = cast("Sequence[bytes | str | None]", entries)
        return frozenset(address for entry in values if entry and (address := address_in(entry)))


class JoinedDirectories:
    """Implements `WorkerDirectory` by what several say together."""

    def __init__(self, parts: Sequence[WorkerDirectory]) -> None:
        self._parts = tuple(parts)

    async def addresses(self) -> frozenset[str]:
        """See `WorkerDirectory.addresses`. If one part is away, all are: half a list would drain the other half."""
        return frozenset[str]().union(*await asyncio.gather(*(part.addresses() for part in self._parts)))


def directory_of(entries: Sequence[str], *, redis: Redis | None) -> WorkerDirectory:
    """The directory that a list of addresses describes, each by its form: `host:port`, `dns:///name:port`, `redis`.

    Raises:
        ValueError: an entry has no port, or `redis` is there without a Redis.
    """
    listed = [entry for entry in entries if entry != REDIS_ENTRY and not entry.startswith(_DNS_SCHEME)]
    for entry in listed:
        host_and_port(entry)
    parts: list[WorkerDirectory] = [DnsWorkers(entry) for entry in entries if entry.startswith(_DNS_SCHEME)]
    if listed:
        parts.append(ListedWorkers(listed))
    if REDIS_ENTRY in entries:
        if redis is None:
            raise ValueError("The worker address `redis` needs HILORA_ROUTER_REDIS_URL.")
        parts.append(RedisWorkers(redis))
    return parts[0] if len(parts) == 1 else JoinedDirectories(parts)


def host_and_port(address: str) -> tuple[str, int]:
    """The two halves of `host:port`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no worker address: write host:port, dns:///name:port or redis.")
    return host.strip("[]"), int(port)


def _away(message: str) -> Unavailable:
    return Unavailable(message, code="worker_directory_away", remedy="The workers known so far stay in use.")
