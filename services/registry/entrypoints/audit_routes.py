"""`/v1/audit`: who changed what."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from services.common.auth import Scope
from services.registry.entrypoints import access
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.schemas import AuditEventView, AuditList


def audit_routes(dependencies: RestDependencies) -> APIRouter:
    """The route of the audit log."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/audit", dependencies=[access.require(Scope.READ)])
    async def list_audit_events(
        *,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[str | None, Query(max_length=32)] = None,
    ) -> AuditList:
        page = await asyncio.to_thread(dependencies.audit.page, before=before, limit=limit)
        return AuditList(data=[AuditEventView.of(event) for event in page.events], next_before=page.next_cursor)

    return routes
