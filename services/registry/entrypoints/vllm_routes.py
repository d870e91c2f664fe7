"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter` as vLLM's clients and operators know them.

Requests, plain-text answers and error objects are vLLM's; what happens is an ingest and a retirement of ours. A load is
answered when its adapter is in the catalogue, so that the next request may name it.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict

from hilora.errors import HiloraError, UnknownAdapter
from services.common.auth import Scope
from services.common.errors import mapping_of
from services.registry.entrypoints import access
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.job import IngestJob, IngestState, SourceKind

_NOT_FOUND_CODES = frozenset(
    {
        "hub_not_found",
        "hub_revision_not_found",
        "missing_file",
        "object_not_found",
        "path_not_found",
        "url_not_found",
    }
)
_PATH_BEGINNINGS = ("/", "~", ".")


class LoadLoraAdapterBody(BaseModel):
    """`POST /v1/load_lora_adapter`."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str = ""
    lora_path: str = ""
    """A folder, `s3://...` or `https://...` that the operator allows, or `owner/name[@revision]` of the hub."""
    load_inplace: bool = False
    """Whether another version of the name may be replaced."""


class UnloadLoraAdapterBody(BaseModel):
    """`POST /v1/unload_lora_adapter`."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str = ""
    lora_int_id: int | None = None
    """Accepted and without effect, as in vLLM: the name decides."""


def vllm_routes(dependencies: RestDependencies) -> APIRouter:
    """The two routes."""
    routes = APIRouter(prefix="/v1")
    loader = _Loader(dependencies)

    @routes.post("/load_lora_adapter", dependencies=[access.require(Scope.WRITE)])
    async def load_lora_adapter(request: Request, body: LoadLoraAdapterBody) -> Response:
        access.concerns(request, adapter=body.lora_name)
        if not body.lora_name or not body.lora_path:
            return _refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        try:
            return await loader.load(request, body)
        except HiloraError as error:
            return _answer(request, error)

    @routes.post("/unload_lora_adapter", dependencies=[access.require(Scope.WRITE)])
    async def unload_lora_adapter(request: Request, body: UnloadLoraAdapterBody) -> Response:
        access.concerns(request, adapter=body.lora_name)
        if not body.lora_name:
            return _refusal(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        try:
            await dependencies.catalog.retire(body.lora_name)
        except UnknownAdapter:
            return _refusal(404, f"The lora adapter '{body.lora_name}' cannot be found.")
        except HiloraError as error:
            return _answer(request, error)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes


class _Loader:
    """Loads one adapter after another's request and waits for each."""

    def __init__(self, dependencies: RestDependencies) -> None:
        self._dependencies = dependencies

    async def load(self, request: Request, body: LoadLoraAdapterBody) -> Response:
        """Ingest an adapter and wait until it is over. Raises HiloraError."""
        name = body.lora_name
        if not body.load_inplace and await self._is_loaded(name):
            return _refusal(
                400,
                f"The lora adapter '{name}' has already been loaded. "
                "If you want to load the adapter in place, set 'load_inplace' to True.",
            )
        job = await self._dependencies.intake.submit_reference(
            body.lora_path,
            kind=_kind_of(body.lora_path),
            adapter_name=name,
            texts=(),
            is_replacement=body.load_inplace,
            origin=access.origin_of(request),
        )
        access.concerns(request, job_id=job.job_id)
        job = await self._finished(job)
        if job.error is not None:
            return _answer(request, job.error)
        if job.state is IngestState.READY:
            return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")
        what = "is not ready yet" if not job.state.is_terminal else f"is {job.state}"
        return _refusal(503, f"The lora adapter '{name}' {what}; see /v1/jobs/{job.job_id}.", kind="ServiceUnavailable")

    async def _is_loaded(self, name: str) -> bool:
        try:
            await self._dependencies.catalog.entry(name)
        except UnknownAdapter:
            return False
        return True

    async def _finished(self, job: IngestJob) -> IngestJob:
        """The job once it is over, or as it is when the time is up."""
        try:
            async with asyncio.timeout(self._dependencies.load_wait_seconds):
                states = self._dependencies.jobs.follow(
                    job.job_id, heartbeat_seconds=self._dependencies.heartbeat_seconds
                )
                async for state in states:
                    job = state or job
        except TimeoutError:
            pass
        return job


def _kind_of(lora_path: str) -> SourceKind:
    scheme, separator, _ = lora_path.partition("://")
    if separator:
        return SourceKind.URL if scheme.lower() in {"http", "https"} else SourceKind.OBJECT
    return SourceKind.PATH if lora_path.startswith(_PATH_BEGINNINGS) else SourceKind.HUB


def _answer(request: Request, error: HiloraError) -> JSONResponse:
    request.scope["state"]["error"] = error
    status = mapping_of(error).http_status
    if error.code in _NOT_FOUND_CODES or status == 404:
        return _refusal(404, str(error))
    if status < 500:
        return _refusal(400, str(error))
    return _refusal(status, str(error), kind="ServiceUnavailable" if status == 503 else "InternalServerError")


def _refusal(status: int, message: str, *, kind: str | None = None) -> JSONResponse:
    """The error object of vLLM: its code is the HTTP status."""
    error_type = kind or ("NotFoundError" if status == 404 else "InvalidUserInput")
    body = {"error": {"message": message, "type": error_type, "param": None, "code": status}}
    return JSONResponse(body, status_code=status)
