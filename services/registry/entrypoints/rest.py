"""The admin REST door: the gate in front, one router a topic behind it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from services.common.auth import KeyRing, Scope
from services.registry.entrypoints import access
from services.registry.entrypoints.access import AccessGate
from services.registry.entrypoints.adapter_routes import adapter_routes
from services.registry.entrypoints.audit_routes import audit_routes
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.error_answers import add_error_answers
from services.registry.entrypoints.job_routes import job_routes
from services.registry.entrypoints.probe_routes import probe_routes
from services.registry.entrypoints.vllm_routes import vllm_routes


def create_rest_app(
    dependencies: RestDependencies, *, keys: KeyRing, more_routes: Sequence[APIRouter] = ()
) -> AccessGate:
    """The ASGI application: `/v1/adapters`, `/v1/jobs`, `/v1/audit`, vLLM's two routes, probes and `/metrics`.

    Args:
        dependencies: what the routes call.
        keys: who may pass.
        more_routes: routers of further topics; each of their routes names its scope, see `access`.
    """
    # The schema is a route like every other: FastAPI's own would know no scope.
    app = FastAPI(title="HiLoRA Serve registry", openapi_url=None, docs_url=None, redoc_url=None)
    routers = (
        adapter_routes(dependencies),
        job_routes(dependencies),
        audit_routes(dependencies),
        vllm_routes(dependencies),
        *more_routes,
        _schema_route(app),
        probe_routes(dependencies),
    )
    for router in routers:
        access.include(app, router)
    add_error_answers(app)
    return AccessGate(app, keys=keys, audit=dependencies.audit)


def _schema_route(app: FastAPI) -> APIRouter:
    routes = APIRouter()

    @routes.get("/openapi.json", include_in_schema=False, dependencies=[access.require(Scope.READ)])
    async def openapi_schema() -> dict[str, object]:
        return app.openapi()

    return routes
