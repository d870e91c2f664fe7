"""What a worker writes into Redis about itself, and where a router looks for it."""

from __future__ import annotations

import json
from typing import cast

KEY_PREFIX = "hilora:workers:"
"""Key of a worker's entry: this and the worker's id."""
ENTRY_SECONDS = 10
"""Time to live of an entry."""
HEARTBEAT_SECONDS = 3.0
"""An entry is written again after this time; three may fail before it is gone."""


def encode_entry(*, worker_id: str, address: str) -> str:
    """A worker's entry.

    Args:
        worker_id: unique for each start of a process.
        address: `host:port` where routers reach it.
    """
    return json.dumps({"worker_id": worker_id, "address": address})


def address_in(entry: str | bytes) -> str | None:
    """The address of an entry; None if it is not one that this version understands."""
    try:
        fields: object = json.loads(entry)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    address = cast("dict[str, object]", fields).get("address")
    return address if isinstance(address, str) and address else None
