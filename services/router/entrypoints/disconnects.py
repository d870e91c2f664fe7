"""Stop work for clients that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from hilora.errors import RequestAborted
from services.common.tasks import end_tasks

_ResultT = TypeVar("_ResultT")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """The result of `work`, cancelled as soon as the client closes its connection.

    Args:
        request: whose body has been read completely: its next message can only be the disconnect.
        work: what to do for the client.

    Raises:
        RequestAborted: `client_disconnected`.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestAborted("The client closed the connection.", code="client_disconnected")
    finally:
        # The cancelled work lets go of its worker before the request counts as ended.
        await end_tasks(working, watching)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
