"""Limits counted in this process's memory."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from services.router.limits import DAY_SLOTS, MINUTE_SLOTS, SECONDS_PER_DAY_SLOT, Ask, Grant, Standing, refusal

_MAX_CALLERS = 100_000
_CONCURRENCY_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class SlidingCount:
    """A sum over the last slots of time."""

    seconds_per_slot: float
    num_slots: int
    _counts: OrderedDict[int, int] = field(default_factory=OrderedDict[int, int])
    _sum: int = 0

    def total(self, now: float) -> int:
        """The sum over the window that ends now."""
        oldest = self._slot(now) - self.num_slots
        while self._counts:
            slot, count = next(iter(self._counts.items()))
            if slot >= oldest:
                break
            del self._counts[slot]
            self._sum -= count
        return self._sum

    def add(self, count: int, *, at: float, now: float) -> None:
        """Count something that happened at a time; what is older than the window is nothing any more."""
        slot = self._slot(at)
        if slot < self._slot(now) - self.num_slots:
            return
        is_new = slot not in self._counts
        self._counts[slot] = self._counts.get(slot, 0) + count
        self._sum += count
        if is_new and len(self._counts) > 1:
            self._counts = OrderedDict(sorted(self._counts.items()))

    def seconds_until(self, room: int, *, limit: int, now: float) -> float:
        """When so much fits below the limit."""
        left = self.total(now)
        for slot, count in self._counts.items():
            left -= count
            if left + room <= limit:
                return (slot + self.num_slots + 1) * self.seconds_per_slot - now
        return self.seconds_per_slot

    def _slot(self, moment: float) -> int:
        return int(moment // self.seconds_per_slot)


@dataclass(slots=True)
class _Counts:
    requests: SlidingCount = field(default_factory=lambda: SlidingCount(1.0, MINUTE_SLOTS))
    tokens: SlidingCount = field(default_factory=lambda: SlidingCount(1.0, MINUTE_SLOTS))
    day_tokens: SlidingCount = field(default_factory=lambda: SlidingCount(SECONDS_PER_DAY_SLOT, DAY_SLOTS))
    leases: dict[str, float] = field(default_factory=dict[str, float])
    """When each running request stops counting, by its lease."""


class LocalRateLimiter:
    """Implements `RateLimiter` for one router alone.

    Args:
        unix_time: the clock.
    """

    def __init__(self, *, unix_time: Callable[[], float] = time.time) -> None:
        self._unix_time = unix_time
        self._counts: OrderedDict[str, _Counts] = OrderedDict()

    async def admit(self, ask: Ask) -> Grant:
        """See `RateLimiter.admit`."""
        now = self._unix_time()
        counts = self._of(ask.caller)
        limits = ask.limits
        for lease_id in [lease_id for lease_id, end in counts.leases.items() if end <= now]:
            del counts.leases[lease_id]
        if limits.max_concurrent is not None and len(counts.leases) >= limits.max_concurrent:
            raise refusal("max_concurrent", limits.max_concurrent, retry_after_seconds=_CONCURRENCY_RETRY_SECONDS)
        checks = (
            ("requests_per_minute", counts.requests, limits.requests_per_minute, 1),
            ("tokens_per_minute", counts.tokens, limits.tokens_per_minute, ask.num_tokens),
            ("tokens_per_day", counts.day_tokens, limits.tokens_per_day, ask.num_tokens),
        )
        for what, count, limit, wanted in checks:
            # Who asks for more than the whole limit is let in when nothing else was.
            if limit is not None and count.total(now) + min(wanted, limit) > limit:
                seconds = count.seconds_until(min(wanted, limit), limit=limit, now=now)
                raise refusal(what, limit, retry_after_seconds=seconds)
        counts.requests.add(1, at=now, now=now)
        counts.tokens.add(ask.num_tokens, at=now, now=now)
        counts.day_tokens.add(ask.num_tokens, at=now, now=now)
        lease_id = uuid.uuid4().hex
        counts.leases[lease_id] = now + ask.lease_seconds
        standing = Standing(
            remaining_requests=_left(limits.requests_per_minute, counts.requests.total(now)),
            remaining_tokens=_left(limits.tokens_per_minute, counts.tokens.total(now)),
        )
        return Grant(ask=ask, lease_id=lease_id, admitted_at=now, standing=standing)

    async def settle(self, grant: Grant, *, num_tokens: int) -> None:
        """See `RateLimiter.settle`."""
        counts = self._of(grant.ask.caller)
        counts.leases.pop(grant.lease_id, None)
        now = self._unix_time()
        for count in (counts.tokens, counts.day_tokens):
            count.add(num_tokens - grant.ask.num_tokens, at=grant.admitted_at, now=now)

    def _of(self, caller: str) -> _Counts:
        counts = self._counts.setdefault(caller, _Counts())
        self._counts.move_to_end(caller)
        while len(self._counts) > _MAX_CALLERS:
            self._counts.popitem(last=False)
        return counts


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)
