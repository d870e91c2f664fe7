"""REST routes of an adapter's life after its ingest: profiles, versions, reviews, access, aliases, collection."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from hilora.access import AdapterAccess, check_tenant
from services.common.auth import Scope
from services.registry.collection import Collector
from services.registry.entrypoints import access
from services.registry.entrypoints.lifecycle_schemas import (
    AccessBody,
    AdapterStateView,
    AliasBody,
    AliasList,
    AliasView,
    CollectBody,
    CollectionView,
    History,
    HistoryList,
    ProfileBody,
    ReviewBody,
    RollBackBody,
    SamplesBody,
    TagsBody,
    VersionView,
)
from services.registry.entrypoints.schemas import JobView
from services.registry.intake import Intake
from services.registry.lifecycle import AdapterLifecycle
from services.registry.profile_orders import ProfileOrders, ProfileSource
from services.registry.registration import VersionState


@dataclass(frozen=True, kw_only=True, slots=True)
class LifecycleDependencies:
    """What the routes call."""

    lifecycle: AdapterLifecycle
    intake: Intake
    collector: Collector
    orders: ProfileOrders


def lifecycle_routes(dependencies: LifecycleDependencies) -> APIRouter:
    """All of them."""
    routes = APIRouter(prefix="/v1")
    _add_version_routes(routes, dependencies)
    _add_review_routes(routes, dependencies)
    _add_alias_routes(routes, dependencies)

    @routes.post("/adapters/{name}/samples", status_code=202, dependencies=[access.require(Scope.WRITE)])
    async def add_samples(request: Request, name: str, body: SamplesBody, response: Response) -> JobView:
        job = await dependencies.intake.submit_samples(name, body.samples, origin=access.origin_of(request))
        access.concerns(request, job_id=job.job_id)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        return JobView.of(job)

    @routes.post("/adapters/{name}/profile", status_code=202, dependencies=[access.require(Scope.WRITE)])
    async def make_profile(request: Request, name: str, response: Response, body: ProfileBody | None = None) -> JobView:
        wanted = body.source if body else ProfileSource.AUTO
        job = await dependencies.orders.order(name, wanted, origin=access.origin_of(request))
        access.concerns(request, job_id=job.job_id)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        return JobView.of(job)

    @routes.post("/collections", dependencies=[access.require(Scope.WRITE)])
    async def collect(body: CollectBody | None = None) -> CollectionView:
        is_dry_run = body is not None and body.dry_run
        return CollectionView.of(await dependencies.collector.collect(dry_run=is_dry_run), is_dry_run=is_dry_run)

    return routes


def _add_version_routes(routes: APIRouter, dependencies: LifecycleDependencies) -> None:
    lifecycle = dependencies.lifecycle

    @routes.get("/adapters/{name}/versions", dependencies=[access.require(Scope.READ)])
    async def list_versions(name: str) -> History:
        return History.of(await lifecycle.registration(name))

    @routes.get("/adapters/{name}/versions/{version}", dependencies=[access.require(Scope.READ)])
    async def show_version(name: str, version: str) -> VersionView:
        registration = await lifecycle.registration(name)
        return VersionView.of(registration, registration.selected(version))

    @routes.post("/adapters/{name}/rollback", dependencies=[access.require(Scope.WRITE)])
    async def roll_back_adapter(name: str, body: RollBackBody | None = None) -> AdapterStateView:
        return AdapterStateView.of(await lifecycle.roll_back(name, selector=body.version if body else None))

    @routes.put("/adapters/{name}/access", dependencies=[access.require(Scope.WRITE)])
    async def set_access(name: str, body: AccessBody) -> AdapterStateView:
        tenants = {check_tenant(tenant) for tenant in body.visible_to}
        wanted = AdapterAccess(trust_tier=body.trust_tier, visible_to=tuple(sorted(tenants)))
        return AdapterStateView.of(await lifecycle.set_access(name, wanted))

    @routes.put("/adapters/{name}/tags", dependencies=[access.require(Scope.WRITE)])
    async def set_tags(name: str, body: TagsBody) -> AdapterStateView:
        return AdapterStateView.of(await lifecycle.set_tags(name, body.tags))


def _add_review_routes(routes: APIRouter, dependencies: LifecycleDependencies) -> None:
    lifecycle = dependencies.lifecycle

    @routes.get("/quarantine", dependencies=[access.require(Scope.READ)])
    async def list_quarantined() -> HistoryList:
        waiting = [
            registration
            for registration in await lifecycle.registrations()
            if any(version.state is VersionState.QUARANTINED for version in registration.versions)
        ]
        return HistoryList(data=[History.of(registration) for registration in waiting])

    @routes.post("/adapters/{name}/approve", dependencies=[access.require(Scope.APPROVE)])
    async def approve_adapter(request: Request, name: str, body: ReviewBody | None = None) -> AdapterStateView:
        return await decide(request, name, body or ReviewBody(), is_approval=True)

    @routes.post("/adapters/{name}/reject", dependencies=[access.require(Scope.APPROVE)])
    async def reject_adapter(request: Request, name: str, body: ReviewBody | None = None) -> AdapterStateView:
        return await decide(request, name, body or ReviewBody(), is_approval=False)

    async def decide(request: Request, name: str, body: ReviewBody, *, is_approval: bool) -> AdapterStateView:
        published = await lifecycle.review(
            name,
            is_approval=is_approval,
            reviewer=body.reviewer or access.principal_of(request).name,
            reason=body.reason,
            selector=body.version,
        )
        return AdapterStateView.of(published)


def _add_alias_routes(routes: APIRouter, dependencies: LifecycleDependencies) -> None:
    lifecycle = dependencies.lifecycle

    @routes.get("/aliases", dependencies=[access.require(Scope.READ)])
    async def list_aliases() -> AliasList:
        aliases = await lifecycle.aliases()
        return AliasList(data=[AliasView(alias=alias, target=aliases[alias]) for alias in sorted(aliases)])

    @routes.put("/aliases/{alias}", dependencies=[access.require(Scope.WRITE)])
    async def put_alias(request: Request, alias: str, body: AliasBody) -> AliasView:
        access.concerns(request, adapter=alias)
        generation = await lifecycle.put_alias(alias, body.target)
        target = (await lifecycle.aliases()).get(alias)
        return AliasView(alias=alias, target=target, catalog_generation=generation)

    @routes.delete("/aliases/{alias}", dependencies=[access.require(Scope.WRITE)])
    async def delete_alias(request: Request, alias: str) -> AliasView:
        access.concerns(request, adapter=alias)
        return AliasView(alias=alias, target=None, catalog_generation=await lifecycle.delete_alias(alias))
