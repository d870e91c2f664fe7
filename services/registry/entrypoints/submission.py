"""`POST /v1/adapters` as it arrives: a reference as JSON, or files as multipart, once for each idempotency key."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
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
from services.registry.entrypoints.schemas import AddAdapterBody
from services.registry.job import IngestJob

_MAX_JSON_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024

Submit = Callable[[], Awaitable[IngestJob]]


class Submission:
    """The way from a request to a job.

    Args:
        dependencies: what the door calls.
    """

    def __init__(self, dependencies: RestDependencies) -> None:
        self._dependencies = dependencies
        self._intake = dependencies.intake
        self._idempotency = dependencies.idempotency

    async def receive(self, request: Request, *, is_replacement: bool, idempotency_key: str | None) -> IngestJob:
        """Read the body and submit it.

        Args:
            request: its body has not been read.
            is_replacement: whether another version of the name may be replaced; the body can say so, too.
            idempotency_key: with an equal key and body, the job of the first time is the answer.

        Raises:
            HiloraError: see `Intake.submit_upload`, `Intake.submit_reference` and `IdempotencyStore.begin`.
        """
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() == "application/json":
            return await self._receive_reference(
                request, is_replacement=is_replacement, idempotency_key=idempotency_key
            )
        return await self._receive_upload(request, is_replacement=is_replacement, idempotency_key=idempotency_key)

    async def _receive_reference(
        self, request: Request, *, is_replacement: bool, idempotency_key: str | None
    ) -> IngestJob:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > _MAX_JSON_BYTES:
                raise too_large(_MAX_JSON_BYTES)
        try:
            body = AddAdapterBody.model_validate_json(bytes(content))
        except ValidationError as error:
            raise invalid_fields([(item["loc"], item["msg"]) for item in error.errors()]) from error
        is_replacement = is_replacement or body.replace

        async def submit() -> IngestJob:
            return await self._intake.submit_reference(
                body.source.reference,
                kind=body.source.kind,
                adapter_name=body.name,
                texts=body.samples,
                is_replacement=is_replacement,
                origin=access.origin_of(request),
            )

        key = _scoped(request, idempotency_key)
        if key is None:
            return await submit()
        digest = hashlib.sha256(f"{body.model_dump_json(exclude={'replace'})}{is_replacement}".encode()).hexdigest()
        known = await self._known(key, digest)
        return known or await self._first(key, digest, submit)

    async def _receive_upload(
        self, request: Request, *, is_replacement: bool, idempotency_key: str | None
    ) -> IngestJob:
        max_bytes = self._dependencies.max_upload_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        job_id, folder = await self._intake.open_folder()
        try:
            upload = MultipartUpload(
                content_type=request.headers.get("content-type", ""),
                job_id=job_id,
                folder=folder,
                max_bytes=max_bytes,
            )
            received = await upload.receive(request.stream())
            is_replacement = is_replacement or upload.is_replacement
            key = _scoped(request, idempotency_key)
            digest = ""
            if key is not None:
                # The parts, not the bytes: clients choose a new boundary each time.
                options = f"{upload.adapter_name}\n{received.archive_name}\n{is_replacement}"
                digest = await asyncio.to_thread(_digest_of_parts, folder, options)
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
                adapter_name=upload.adapter_name,
                is_replacement=is_replacement,
                origin=access.origin_of(request),
            )

        return await submit() if key is None else await self._first(key, digest, submit)

    async def _known(self, key: str, digest: str) -> IngestJob | None:
        job_id = await self._idempotency.begin(key, body_digest=digest)
        if job_id is None:
            return None
        return await known_job(self._dependencies.jobs, job_id)

    async def _first(self, key: str, digest: str, submit: Submit) -> IngestJob:
        try:
            job = await submit()
        except BaseException:
            await self._idempotency.abandon(key)
            raise
        await self._idempotency.finish(key, body_digest=digest, job_id=job.job_id)
        return job


def _scoped(request: Request, idempotency_key: str | None) -> str | None:
    """The client's key, apart from equal ones of other clients."""
    return None if idempotency_key is None else f"{access.principal_of(request).name}\n{idempotency_key}"


def _digest_of_parts(folder: Path, options: str) -> str:
    digest = hashlib.sha256(options.encode())
    for path in sorted(folder.iterdir()):
        content = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                content.update(block)
        digest.update(f"\n{path.name} {content.hexdigest()}".encode())
    return digest.hexdigest()
