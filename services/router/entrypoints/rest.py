"""The HTTP door: OpenAI's routes, probes and figures, inside the edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from services.common.inference_keys import CallerRing
from services.common.tracing import Tracer
from services.router.entrypoints import access
from services.router.entrypoints.error_answers import install_error_handlers
from services.router.entrypoints.http_edge import HttpEdge
from services.router.entrypoints.openai.descriptions import JsonObject
from services.router.entrypoints.router_metrics import RouterMetrics
from services.router.readiness import Readiness


def build_rest_app(
    *,
    routes: Sequence[APIRouter],
    metrics: RouterMetrics,
    readiness: Callable[[], Readiness],
    callers: CallerRing,
    max_body_bytes: int,
    cors_origins: Sequence[str] = (),
    tracer: Tracer | None = None,
) -> ASGIApp:
    """The ASGI application.

    Args:
        routes: OpenAI's routes over their use cases.
        metrics: counted at the edge, shown at `/metrics`.
        readiness: looked at by `/readyz`.
        callers: who may ask.
        max_body_bytes: longest request body; a longer one is answered 413.
        cors_origins: whose pages may call from a browser.
        tracer: makes a span of each request; None makes none.
    """
    app = FastAPI(
        title="HiLoRA router",
        summary="OpenAI's completions over a pool of LoRA adapters, chosen per request.",
        version=version("hilora-serve"),
        # The interactive pages load scripts from a public network; the schema itself is served.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for some in (*routes, _operations(metrics, readiness)):
        access.include(app, some)
    install_error_handlers(app)
    guarded: ASGIApp = access.AccessGate(app, callers=callers)
    if cors_origins:
        # Outside the gate: a browser asks first, and without the key.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return HttpEdge(guarded, metrics=metrics, max_body_bytes=max_body_bytes, tracer=tracer)


def _operations(metrics: RouterMetrics, readiness: Callable[[], Readiness]) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> JsonObject:  # pyright: ignore[reportUnusedFunction]
        """The process lives. Says nothing of what it depends on: a restart would not mend that."""
        return {"status": "ok"}

    @routes.get("/readyz", response_model=None)
    async def readyz() -> Response:  # pyright: ignore[reportUnusedFunction]
        """200 once a request can be answered; 503 names the parts that are missing."""
        state = readiness()
        return JSONResponse(
            {
                "status": "ready" if state.can_generate else "not_ready",
                "missing": list(state.missing),
                "parts": state.parts,
            },
            status_code=200 if state.can_generate else 503,
        )

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Prometheus text exposition."""
        content, content_type = metrics.render()
        return Response(content, headers={"Content-Type": content_type})

    return routes
