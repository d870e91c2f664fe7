"""`/v1/adapters`: add, list, show, retire, and follow the catalogue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from hilora.errors import HiloraError, InvalidInput
from hilora.tags import MAX_TAGS
from services.common.auth import Scope
from services.common.errors import mapping_of
from services.registry.catalog import Catalog
from services.registry.catalog_entry import CatalogChange, CatalogHeartbeat, CatalogNews
from services.registry.entrypoints import access
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.event_stream import ServerEvent
from services.registry.entrypoints.schemas import AdapterDetails, AdapterList, AdapterView, JobView, Retired
from services.registry.entrypoints.submission import QueryOptions, Submission

DEFAULT_PAGE = 1000
MAX_PAGE = 10_000


def adapter_routes(dependencies: RestDependencies) -> APIRouter:
    """The routes below `/v1/adapters`."""
    routes = APIRouter(prefix="/v1")
    catalog = dependencies.catalog
    submission = Submission(dependencies)

    @routes.put("/adapters", status_code=202, dependencies=[access.require(Scope.WRITE)])
    @routes.post("/adapters", status_code=202, dependencies=[access.require(Scope.WRITE)])
    async def add_adapter(
        request: Request,
        response: Response,
        *,
        name: Annotated[str | None, Query()] = None,
        replace: Annotated[bool, Query()] = False,
        squeeze: Annotated[str, Query(max_length=256)] = "",
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> JobView:
        started_at = time.monotonic()
        options = QueryOptions(
            adapter_name=name, is_replacement=replace, squeeze=squeeze, idempotency_key=idempotency_key
        )
        try:
            job = await submission.receive(request, options)
        except HiloraError as error:
            dependencies.metrics.uploads.labels(outcome=mapping_of(error).openai_type).inc()
            raise
        dependencies.metrics.uploads.labels(outcome="accepted").inc()
        dependencies.metrics.upload_seconds.observe(time.monotonic() - started_at)
        access.concerns(request, adapter=job.adapter_name, job_id=job.job_id)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        return JobView.of(job)

    @routes.get("/adapters", dependencies=[access.require(Scope.READ)])
    async def list_adapters(
        *,
        prefix: Annotated[str, Query(max_length=128)] = "",
        tag: Annotated[list[str] | None, Query(max_length=MAX_TAGS)] = None,
        after: Annotated[str, Query(max_length=128)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> AdapterList:
        snapshot = await catalog.snapshot()
        wanted = set(tag or ())
        names = sorted(
            name
            for name, entry in snapshot.entries.items()
            if name.startswith(prefix) and name > after and wanted.issubset(entry.tags)
        )
        return AdapterList(
            catalog_generation=snapshot.catalog_generation,
            data=[AdapterView.of(snapshot.entries[name]) for name in names[:limit]],
            has_more=len(names) > limit,
            next_after=names[limit - 1] if len(names) > limit else None,
        )

    @routes.get("/adapters/events", dependencies=[access.require(Scope.READ)])
    async def follow_adapters(
        *,
        after: Annotated[int | None, Query(ge=0)] = None,
        last_event_id: Annotated[str | None, Header(max_length=32)] = None,
    ) -> Response:
        if last_event_id is not None and not last_event_id.isdecimal():
            raise InvalidInput(
                f"{last_event_id!r} is no event of the catalogue.",
                code="invalid_request",
                remedy="Send back the id of the last event, a catalogue generation, or none.",
                place="Last-Event-ID",
            )
        position = int(last_event_id) if last_event_id is not None else after
        if position is None:
            position = (await catalog.snapshot()).catalog_generation
        return dependencies.streams.answer(
            _catalog_events(catalog, position, heartbeat_seconds=dependencies.heartbeat_seconds)
        )

    @routes.get("/adapters/{name}", dependencies=[access.require(Scope.READ)])
    async def show_adapter(name: str) -> AdapterDetails:
        entry = await catalog.entry(name)
        return AdapterDetails.with_manifest(
            entry,
            await catalog.manifest(entry),
            await catalog.validation_report(entry),
            await asyncio.to_thread(dependencies.components.statistics, entry.revision),
        )

    @routes.delete("/adapters/{name}", dependencies=[access.require(Scope.WRITE)])
    async def retire_adapter(name: str) -> Retired:
        return Retired(name=name, catalog_generation=await catalog.retire(name))

    return routes


async def _catalog_events(
    catalog: Catalog, position: int, *, heartbeat_seconds: float
) -> AsyncGenerator[ServerEvent | None]:
    """Changes after a generation. After a gap comes `resync`, and then the changes from there on."""
    while True:
        async for news in catalog.follow(position, heartbeat_seconds=heartbeat_seconds):
            position = news.catalog_generation
            yield None if isinstance(news, CatalogHeartbeat) else _event_of(news)


def _event_of(news: CatalogNews) -> ServerEvent:
    generation = news.catalog_generation
    data: dict[str, Any] = {"catalog_generation": generation}
    if not isinstance(news, CatalogChange):
        # What happened in between is not kept: the client has to list the adapters again.
        return ServerEvent(event="resync", event_id=str(generation), data=data)
    data["name"] = news.adapter_name
    if news.entry is None:
        return ServerEvent(event="remove", event_id=str(generation), data=data)
    data["adapter"] = AdapterView.of(news.entry).model_dump(mode="json")
    return ServerEvent(event="upsert", event_id=str(generation), data=data)
