"""Asking again where a server says that it cannot serve now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hilora.errors import Unavailable

_T = TypeVar("_T")

_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
_NOBODY_THERE = "server_unreachable"


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """What a call answers, made again for a quarter of a minute while the server is there and not able to serve.

    Args:
        ask: makes the call; one that changes something has to bear the same idempotency key each time.

    Raises:
        Unavailable: at once where no server listens, else when it did not recover in time.
        HiloraError: whatever else the call raises.
    """
    for pause in _PAUSES_SECONDS:
        try:
            return await ask()
        except Unavailable as error:
            if error.code == _NOBODY_THERE:
                raise
            await asyncio.sleep(pause)
    return await ask()
