"""`/v1/adapters/audit` and `/v1/adapters/{name}/confusability`: which adapters are hard to tell apart."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from services.common.auth import Scope
from services.registry.confusability_audit import ConfusabilityAudit
from services.registry.entrypoints import access
from services.registry.entrypoints.confusability_schemas import Confusability, ConfusabilityList

_MAX_PAGE = 500


def confusability_routes(audit: ConfusabilityAudit) -> APIRouter:
    """The two routes; include them before `/v1/adapters/{name}`."""
    routes = APIRouter(prefix="/v1/adapters")

    @routes.get("/audit", dependencies=[access.require(Scope.READ)])
    async def audit_adapters(
        offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100
    ) -> ConfusabilityList:
        return ConfusabilityList.of(await audit.page(offset=offset, limit=limit), offset=offset)

    @routes.get("/{name}/confusability", dependencies=[access.require(Scope.READ)])
    async def show_confusability(name: str) -> Confusability:
        return Confusability.of(await audit.adapter(name))

    return routes
