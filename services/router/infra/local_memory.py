"""Records in this process's memory: bounded, each for some time. Implements `PlanStore` and `SessionStore`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_R = TypeVar("_R")


class LocalMemory(Generic[_R]):
    """Remembers the records that were put last.

    Args:
        ttl_seconds: how long after its last `put` a record is remembered.
        max_records: beyond that the one goes whose `put` is longest ago.
        monotonic: seconds, never going back.
    """

    def __init__(
        self, *, ttl_seconds: float, max_records: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_seconds = ttl_seconds
        self._max_records = max_records
        self._monotonic = monotonic
        self._records: OrderedDict[str, tuple[float, _R]] = OrderedDict()

    def __len__(self) -> int:
        """How many are held, those included whose time is over and that nobody met."""
        return len(self._records)

    async def get(self, key: str, /) -> _R | None:
        """The record; None if it is not remembered."""
        found = self._records.get(key)
        if found is None:
            return None
        if self.age_seconds(key) > self.ttl_seconds:
            del self._records[key]
            return None
        return found[1]

    async def put(self, key: str, record: _R, /) -> None:
        """Remember a record."""
        self._records[key] = (self._monotonic(), record)
        self._records.move_to_end(key)
        while len(self._records) > self._max_records:
            self._records.popitem(last=False)

    def age_seconds(self, key: str) -> float:
        """Since when a record is held as it is; infinite for one that is not."""
        found = self._records.get(key)
        return float("inf") if found is None else self._monotonic() - found[0]
