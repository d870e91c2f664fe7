"""The REST door of the audit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from services.registry.audit import ConfusabilityAudit
from services.registry.entrypoints.audit_schemas import AuditList, Confusability

_MAX_PAGE = 500


def audit_routes(audit: ConfusabilityAudit) -> APIRouter:
    """`/v1/adapters/audit` and `/v1/adapters/{name}/confusability`; include them before `/v1/adapters/{name}`."""
    routes = APIRouter(prefix="/v1/adapters")

    @routes.get("/audit")
    async def audit_adapters(
        offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100
    ) -> AuditList:
        return AuditList.of(await audit.page(offset=offset, limit=limit), offset=offset)

    @routes.get("/{name}/confusability")
    async def show_confusability(name: str) -> Confusability:
        return Confusability.of(await audit.adapter(name))

    return routes
