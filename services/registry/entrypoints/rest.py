"""The admin REST door. Every route but the probes needs the admin key where one is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import SecretStr, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hilora.errors import HiloraError, InvalidInput, UnknownAdapter
from services.common.auth import require_bearer_key
from services.common.errors import http_headers, mapping_of, openai_body
from services.registry.audit import ConfusabilityAudit
from services.registry.catalog import Catalog
from services.registry.entrypoints.audit_routes import audit_routes
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.multipart import MultipartUpload, too_large
from services.registry.entrypoints.schemas import (
    AdapterDetails,
    AdapterList,
    AdapterView,
    AddAdapterBody,
    JobList,
    JobView,
    Retired,
)
from services.registry.intake import Intake
from services.registry.job import IngestJob, is_job_id
from services.registry.ports import ComponentReader, JobStore

_MAX_JSON_BYTES = 64 * 1024 * 1024
_UPLOAD_TOO_LARGE = "upload_too_large"


@dataclass(frozen=True, kw_only=True, slots=True)
class RestDependencies:
    """What the routes call."""

    intake: Intake
    catalog: Catalog
    jobs: JobStore
    metrics: RegistryMetrics
    is_ready: Callable[[], bool]
    max_upload_bytes: int
    audit: ConfusabilityAudit
    components: ComponentReader


def create_rest_app(dependencies: RestDependencies, *, admin_api_key: SecretStr | None) -> FastAPI:
    """The application: `/v1/adapters`, `/v1/jobs`, `/healthz`, `/readyz`, `/metrics`."""
    app = FastAPI(title="HiLoRA Serve registry", docs_url=None, redoc_url=None)
    app.include_router(audit_routes(dependencies.audit), dependencies=[Depends(require_bearer_key(admin_api_key))])
    app.include_router(_admin_routes(dependencies), dependencies=[Depends(require_bearer_key(admin_api_key))])
    app.include_router(_probe_routes(dependencies))
    app.add_exception_handler(HiloraError, _answer_hilora_error)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RequestValidationError, _answer_validation_error)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(HTTPException, _answer_http_error)  # pyright: ignore[reportArgumentType]
    return app


def _probe_routes(dependencies: RestDependencies) -> APIRouter:
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


def _admin_routes(dependencies: RestDependencies) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.post("/adapters", status_code=202)
    async def add_adapter(
        request: Request, response: Response, *, replace: Annotated[bool, Query()] = False
    ) -> JobView:
        started_at = time.monotonic()
        try:
            job = await _add(request, dependencies, is_replacement=replace)
        except HiloraError as error:
            dependencies.metrics.uploads.labels(outcome=mapping_of(error).openai_type).inc()
            raise
        dependencies.metrics.uploads.labels(outcome="accepted").inc()
        dependencies.metrics.upload_seconds.observe(time.monotonic() - started_at)
        response.headers["Location"] = f"/v1/jobs/{job.job_id}"
        return JobView.of(job)

    @routes.get("/adapters")
    async def list_adapters() -> AdapterList:
        snapshot = await dependencies.catalog.snapshot()
        return AdapterList(
            catalog_generation=snapshot.catalog_generation,
            data=[AdapterView.of(entry) for entry in snapshot.entries.values()],
        )

    @routes.get("/adapters/{name}")
    async def show_adapter(name: str) -> AdapterDetails:
        entry = await dependencies.catalog.entry(name)
        manifest = await dependencies.catalog.manifest(entry)
        statistics = await asyncio.to_thread(dependencies.components.statistics, entry.revision)
        return AdapterDetails.with_manifest(entry, manifest, statistics)

    @routes.delete("/adapters/{name}")
    async def retire_adapter(name: str) -> Retired:
        return Retired(name=name, catalog_generation=await dependencies.catalog.retire(name))

    @routes.get("/jobs")
    async def list_jobs() -> JobList:
        return JobList(data=[JobView.of(job) for job in await dependencies.jobs.all()])

    @routes.get("/jobs/{job_id}")
    async def show_job(job_id: str) -> JobView:
        job = await dependencies.jobs.get(job_id) if is_job_id(job_id) else None
        if job is None:
            raise UnknownAdapter(
                f"There is no job {job_id[:64]!r}.",
                code="unknown_job",
                remedy="GET /v1/jobs lists those that are known; old finished ones are forgotten.",
                place="job_id",
            )
        return JobView.of(job)

    return routes


async def _add(request: Request, dependencies: RestDependencies, *, is_replacement: bool) -> IngestJob:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "application/json":
        return await _add_reference(request, dependencies, is_replacement=is_replacement)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > dependencies.max_upload_bytes:
        raise too_large(dependencies.max_upload_bytes)
    job_id, folder = await dependencies.intake.open_folder()
    try:
        upload = MultipartUpload(
            content_type=content_type, job_id=job_id, folder=folder, max_bytes=dependencies.max_upload_bytes
        )
        received = await upload.receive(request.stream())
    except ClientDisconnect as error:
        await dependencies.intake.abandon(job_id)
        raise InvalidInput("The client went away during the upload.", code="malformed_upload") from error
    except BaseException:
        await dependencies.intake.abandon(job_id)
        raise
    return await dependencies.intake.submit_upload(
        received, adapter_name=upload.adapter_name, is_replacement=is_replacement or upload.is_replacement
    )


async def _add_reference(request: Request, dependencies: RestDependencies, *, is_replacement: bool) -> IngestJob:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MAX_JSON_BYTES:
            raise too_large(_MAX_JSON_BYTES)
    try:
        body = AddAdapterBody.model_validate_json(bytes(content))
    except ValidationError as error:
        raise _invalid_fields([(item["loc"], item["msg"]) for item in error.errors()]) from error
    return await dependencies.intake.submit_reference(
        body.source.reference,
        kind=body.source.kind,
        adapter_name=body.name,
        texts=body.samples,
        is_replacement=is_replacement or body.replace,
    )


def _invalid_fields(findings: list[tuple[tuple[int | str, ...], str]]) -> InvalidInput:
    place = ".".join(str(part) for part in findings[0][0]) or "body"
    return InvalidInput(
        f"The request is malformed: {place}: {findings[0][1]}.",
        code="invalid_request",
        remedy='Send {"name": ..., "source": {"hub": "owner/name"}, "samples": [...]}, or multipart/form-data.',
        place=place,
    )


async def _answer_hilora_error(_: Request, error: HiloraError) -> JSONResponse:
    # RFC 9110, 15.5.14: the one refusal that is about the size of the body alone.
    status = 413 if error.code == _UPLOAD_TOO_LARGE else mapping_of(error).http_status
    return JSONResponse(openai_body(error), status_code=status, headers=http_headers(error))


async def _answer_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    findings = [(tuple(item["loc"]), str(item["msg"])) for item in error.errors()]
    return await _answer_hilora_error(request, _invalid_fields(findings))


async def _answer_http_error(_: Request, error: HTTPException) -> JSONResponse:
    """Errors of the framework and of the key check, in the same shape."""
    code = {401: "invalid_api_key", 404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code)
    body = {
        "message": str(error.detail),
        "type": "authentication_error" if error.status_code == 401 else "invalid_request_error",
        "param": None,
        "code": code,
        "remedy": None,
    }
    return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)
