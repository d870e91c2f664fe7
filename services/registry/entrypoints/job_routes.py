"""`/v1/jobs`: list, show, follow and cancel ingests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.common.auth import Scope
from services.registry.cancellation import known_job
from services.registry.entrypoints import access
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.event_stream import ServerEvent
from services.registry.entrypoints.schemas import JobList, JobView
from services.registry.job import IngestState
from services.registry.ports import JobStore


def job_routes(dependencies: RestDependencies) -> APIRouter:
    """The routes below `/v1/jobs`."""
    routes = APIRouter(prefix="/v1")
    jobs = dependencies.jobs

    @routes.get("/jobs", dependencies=[access.require(Scope.READ)])
    async def list_jobs(
        *,
        state: Annotated[IngestState | None, Query()] = None,
        adapter: Annotated[str | None, Query(max_length=128)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> JobList:
        wanted = [
            job
            for job in await jobs.all()
            if (state is None or job.state is state) and (adapter is None or job.adapter_name == adapter)
        ]
        return JobList(data=[JobView.of(job) for job in wanted[:limit]])

    @routes.get("/jobs/{job_id}", dependencies=[access.require(Scope.READ)])
    async def show_job(job_id: str) -> JobView:
        job = await known_job(jobs, job_id)
        return JobView.of(job, is_cancel_requested=await jobs.is_cancel_requested(job_id))

    @routes.get("/jobs/{job_id}/events", dependencies=[access.require(Scope.READ)])
    async def follow_job(job_id: str) -> Response:
        await known_job(jobs, job_id)
        return dependencies.streams.answer(_job_events(jobs, job_id, heartbeat_seconds=dependencies.heartbeat_seconds))

    @routes.delete("/jobs/{job_id}", dependencies=[access.require(Scope.WRITE)])
    async def cancel_job(request: Request, response: Response, job_id: str) -> JobView:
        job = await dependencies.cancellation.cancel(job_id)
        access.concerns(request, adapter=job.adapter_name)
        is_over = job.state is IngestState.CANCELLED
        response.status_code = 200 if is_over else 202
        return JobView.of(job, is_cancel_requested=not is_over)

    return routes


async def _job_events(jobs: JobStore, job_id: str, *, heartbeat_seconds: float) -> AsyncGenerator[ServerEvent | None]:
    """One event a state, the last of them terminal. Each is the whole job: a client that comes back misses nothing."""
    async for job in jobs.follow(job_id, heartbeat_seconds=heartbeat_seconds):
        if job is None:
            yield None
            continue
        yield ServerEvent(event="job", event_id=repr(job.updated_at), data=JobView.of(job).model_dump(mode="json"))
