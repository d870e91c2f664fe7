"""What the engine holds for a running request's keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class KvHandle:
    """A request's place in the KV cache, from `allocate` to `free`."""

    owner: str
    """The request's id."""
    num_cached_tokens: int = 0
    """Leading tokens of the request that are in the cache already; always fewer than it has."""
