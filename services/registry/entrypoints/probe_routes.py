"""Probes and metrics: the only routes that need no key."""

from __future__ import annotations

from fastapi import APIRouter, Response

from services.registry.entrypoints.dependencies import RestDependencies


def probe_routes(dependencies: RestDependencies) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz(response: Response) -> dict[str, object]:
        if not dependencies.is_ready():
            response.status_code = 503
            return {"status": "starting"}
        snapshot = await dependencies.catalog.snapshot()
        return {"status": "ready", "catalog_generation": snapshot.catalog_generation}

    @routes.get("/metrics")
    async def metrics() -> Response:
        content, content_type = await dependencies.metrics.render()
        return Response(content, media_type=content_type)

    return routes
