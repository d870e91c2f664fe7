"""One public port for two applications: the registry's paths go to the registry, everything else to the router."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

_REGISTRY_PATHS = ("/v1/adapters", "/v1/jobs")


class FrontDoor:
    """An ASGI application in front of two others.

    Args:
        registry_app: answers `/v1/adapters` and `/v1/jobs`, and what lies below them.
        router_app: answers everything else.
    """

    def __init__(self, *, registry_app: ASGIApp, router_app: ASGIApp) -> None:
        self._registry_app = registry_app
        self._router_app = router_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        app = self._registry_app if is_registry_path(scope["path"]) else self._router_app
        await app(scope, receive, send)


def is_registry_path(path: str) -> bool:
    """Whether a path is the registry's: `/v1/adapters` is, `/v1/adapters-of-mine` is not."""
    return any(path == root or path.startswith(f"{root}/") for root in _REGISTRY_PATHS)


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """Neither application starts or stops anything itself: their components do, see bootstrap."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
