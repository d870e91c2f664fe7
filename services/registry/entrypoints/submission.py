"""`POST /v1/adapters` as it arrives: a reference as JSON, files as multipart, or an archive as the body itself.

Each idempotency key makes one job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from hilora.errors import InvalidInput
from services.registry.cancellation import known_job
from services.registry.entrypoints import access
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.error_answers import invalid_fields
from services.registry.entrypoints.multipart import MultipartUpload, too_large
from services.registry.entrypoints.raw_upload import RAW_CONTENT_TYPES, RawUpload
from services.registry.entrypoints.schemas import AddAdapterBody
from services.registry.entrypoints.squeeze_option import parse_squeeze
from services.registry.job import IngestJob

_MAX_JSON_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024

Submit = Callable[[], Awaitable[IngestJob]]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryOptions:
    """What the query and the headers of `POST /v1/adapters` say; a form or a JSON body can say the first three, too."""

    adapter_name: str | None = None
    is_replacement: bool = False
    """Whether another version of the name may be replaced."""
    squeeze: str = ""
    """The compression that is asked for, as JSON; a form or a body that names one wins."""
    idempotency_key: str | None = None
    """With an equal key and body, the job of the first time is the answer."""


class Submission:
    """The way from a request to a job.

    Args:
        dependencies: what the door calls.
    """

    def __init__(self, dependencies: RestDependencies) -> None:
        self._dependencies = dependencies
        self._intake = dependencies.intake
        self._idempotency = dependencies.idempotency

    async def receive(self, request: Request, options: QueryOptions) -> IngestJob:
        """Read the body and submit it.

        Args:
            request: its body has not been read.
            options: what was asked for beside the body.

        Raises:
            HiloraError: see `Intake.submit_upload`, `Intake.submit_reference` and `IdempotencyStore.begin`.
        """
        if _media_type(request) == "application/json":
            return await self._receive_reference(request, options)
        return await self._receive_upload(request, options)

    async def _receive_reference(self, request: Request, options: QueryOptions) -> IngestJob:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > _MAX_JSON_BYTES:
                raise too_large(_MAX_JSON_BYTES)
        try:
            body = AddAdapterBody.model_validate_json(bytes(content))
        except ValidationError as error:
            raise invalid_fields([(item["loc"], item["msg"]) for item in error.errors()]) from error
        adapter_name = body.name or options.adapter_name
        is_replacement = options.is_replacement or body.replace
        how = body.squeeze.to_squeeze() if body.squeeze else parse_squeeze(options.squeeze)

        async def submit() -> IngestJob:
            return await self._intake.submit_reference(
                body.source.reference,
                kind=body.source.kind,
                adapter_name=adapter_name,
                texts=body.samples,
                is_replacement=is_replacement,
                how=how,
                origin=access.origin_of(request),
            )

        key = _scoped(request, options.idempotency_key)
        if key is None:
            return await submit()
        said = body.model_dump_json(exclude={"name", "replace", "squeeze"})
        digest = hashlib.sha256(f"{said}\n{adapter_name}\n{is_replacement}\n{how}".encode()).hexdigest()
        known = await self._known(key, digest)
        return known or await self._first(key, digest, submit)

    async def _receive_upload(self, request: Request, options: QueryOptions) -> IngestJob:
        max_bytes = self._dependencies.max_upload_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        asked = parse_squeeze(options.squeeze)
        job_id, folder = await self._intake.open_folder()
        try:
            upload = (
                RawUpload(
                    adapter_name=options.adapter_name, squeeze=asked, job_id=job_id, folder=folder, max_bytes=max_bytes
                )
                if _media_type(request) in RAW_CONTENT_TYPES
                else MultipartUpload(
                    content_type=request.headers.get("content-type", ""),
                    job_id=job_id,
                    folder=folder,
                    max_bytes=max_bytes,
                )
            )
            received = await upload.receive(request.stream())
            adapter_name = upload.adapter_name or options.adapter_name
            is_replacement = options.is_replacement or upload.is_replacement
            how = upload.squeeze or asked
            key = _scoped(request, options.idempotency_key)
            digest = ""
            if key is not None:
                # The parts, not the bytes: clients choose a new boundary each time.
                said = f"{adapter_name}\n{received.archive_name}\n{is_replacement}\n{how}"
                digest = await asyncio.to_thread(_digest_of_parts, folder, said)
                known = await self._known(key, digest)
                if known is not None:
                    await self._intake.abandon(job_id)
                    return known
        except ClientDisconnect as error:
            await self._intake.abandon(job_id)
            raise InvalidInput("The client went away during the upload.", code="malformed_upload") from error
        except BaseException:
            await self._intake.abandon(job_id)
            raise

        async def submit() -> IngestJob:
            return await self._intake.submit_upload(
                received,
                adapter_name=adapter_name,
                is_replacement=is_replacement,
                how=how,
                origin=access.origin_of(request),
            )

        return await submit() if key is None else await self._first(key, digest, submit)

    async def _known(self, key: str, digest: str) -> IngestJob | None:
        job_id = await self._idempotency.begin(key, body_digest=digest)
        if job_id is None:
            return None
        return await known_job(self._dependencies.jobs, job_id)

    async def _first(self, key: str, digest: str, submit: Submit) -> IngestJob:
        async with self._idempotency.keeping(key, body_digest=digest):
            try:
                job = await submit()
            except BaseException:
                await self._idempotency.abandon(key)
                raise
            await self._idempotency.finish(key, body_digest=digest, job_id=job.job_id)
        return job


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _scoped(request: Request, idempotency_key: str | None) -> str | None:
    """The client's key, apart from equal ones of other clients."""
    return None if idempotency_key is None else f"{access.principal_of(request).name}\n{idempotency_key}"


def _digest_of_parts(folder: Path, said: str) -> str:
    digest = hashlib.sha256(said.encode())
    for path in sorted(folder.iterdir()):
        content = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                content.update(block)
        digest.update(f"\n{path.name} {content.hexdigest()}".encode())
    return digest.hexdigest()
