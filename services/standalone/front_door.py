"""One public port for two applications: the registry's paths go to the registry, everything else to the router.

One path is its own: `/metrics` shows the figures of all parts. Their names differ, so that they can follow one another.

The port opens before the applications are there; until then every path is answered 503, except the probe that only asks
whether the process lives.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from hilora.errors import Unavailable
from services.common.errors import mapping_of, openai_body
from services.common.metrics import METRICS_CONTENT_TYPE

_REGISTRY_PATHS = (
    "/v1/adapters",
    "/v1/aliases",
    "/v1/audit",
    "/v1/collections",
    "/v1/jobs",
    "/v1/load_lora_adapter",
    "/v1/quarantine",
    "/v1/unload_lora_adapter",
)
_METRICS_PATH = "/metrics"
_RETRY_AFTER_SECONDS = b"2"

FigureSource = Callable[[], Awaitable[bytes]]
"""Renders the figures of one part in Prometheus' text format."""


class FrontDoor:
    """An ASGI application in front of two others."""

    def __init__(self) -> None:
        self._registry_app: ASGIApp = _answer_starting
        self._router_app: ASGIApp = _answer_starting
        self._figures: Sequence[FigureSource] = ()

    def attach(self, *, registry_app: ASGIApp, router_app: ASGIApp, figures: Sequence[FigureSource] = ()) -> None:
        """Begin to pass requests on.

        Args:
            registry_app: answers the admin routes, `/v1/adapters` and the like, and what lies below them.
            router_app: answers everything else.
            figures: render what `/metrics` shows; without any, the path is the router's.
        """
        self._figures = tuple(figures)
        self._registry_app = registry_app
        self._router_app = router_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        if self._figures and scope["type"] == "http" and (scope["path"], scope["method"]) == (_METRICS_PATH, "GET"):
            await self._show_figures(send)
            return
        app = self._registry_app if is_registry_path(scope["path"]) else self._router_app
        await app(scope, receive, send)

    async def _show_figures(self, send: Send) -> None:
        body = b"".join([await render() for render in self._figures])
        headers = [(b"content-type", METRICS_CONTENT_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_registry_path(path: str) -> bool:
    """Whether a path is the registry's: `/v1/adapters` is, `/v1/adapters-of-mine` is not."""
    return any(path == root or path.startswith(f"{root}/") for root in _REGISTRY_PATHS)


async def _answer_starting(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  (ASGI's signature)
    if scope["path"] == "/healthz":
        status, body = 200, {"status": "ok"}
    elif scope["path"] == "/readyz":
        status, body = 503, {"status": "starting"}
    else:
        error = Unavailable("The system is starting.", code="starting", remedy="Try again in a few seconds.")
        status, body = mapping_of(error).http_status, openai_body(error)
    headers = [(b"content-type", b"application/json"), (b"retry-after", _RETRY_AFTER_SECONDS)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """Neither application starts or stops anything itself: their components do, see bootstrap."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
