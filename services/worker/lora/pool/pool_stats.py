"""What the tiers of components say about themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class FreedBytes(NamedTuple):
    """What giving up an adapter frees."""

    now: int
    """Bytes that are free already."""
    later: int
    """Bytes that running requests still hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RocPoolStats:
    """The device tier."""

    capacity_bytes: int
    used_bytes: int
    """Of adapters that are there, or are being written."""
    reserved_bytes: int
    """Memory that is really spent: used rows, and free rows that are kept for the next adapter."""
    pinned_bytes: int
    table_bytes: int
    """Main memory of the tables of their rows; not of the capacity."""
    num_adapters: int
    num_hits: int
    """Adapters that a new request found there, or being written."""
    num_misses: int
    num_loads: int
    """Adapters that were written since the start."""
    num_evictions: int
