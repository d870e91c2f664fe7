"""Which adapter leaves the device when room is needed: the least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_KeyT = TypeVar("_KeyT", bound=Hashable)


class LruEviction(Generic[_KeyT]):
    """Keys ordered by their last use. Not thread-safe: its owner holds the lock."""

    def __init__(self) -> None:
        self._order: OrderedDict[_KeyT, None] = OrderedDict()

    def mark_used(self, key: _KeyT) -> None:
        """Make a key the most recently used, adding it if it is new."""
        self._order[key] = None
        self._order.move_to_end(key)

    def forget(self, key: _KeyT) -> None:
        """Drop a key that left by another way; unknown keys are fine."""
        self._order.pop(key, None)

    def select_victim(self, is_evictable: Callable[[_KeyT], bool]) -> _KeyT | None:
        """The least recently used key that may go, or None."""
        return next((key for key in self._order if is_evictable(key)), None)
