"""The gRPC door: what routers and workers follow, and ingest by reference."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import grpc

from hilora.errors import InvalidInput, UnknownAdapter
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.auth import Scope
from services.common.log import get_logger
from services.common.rpc_client import CHUNK_BYTES
from services.registry.cancellation import JobCancellation, known_job
from services.registry.catalog import Catalog
from services.registry.catalog_entry import CatalogChange, CatalogEntry, CatalogHeartbeat, CatalogNews, CatalogSnapshot
from services.registry.entrypoints.event_stream import until
from services.registry.entrypoints.messages import (
    basis_of,
    entry_message,
    job_message,
    report_message,
    squeeze_of,
)
from services.registry.entrypoints.rpc_access import RpcAccess
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.ports import JobStore
from services.registry.profile_orders import ProfileOrders, ProfileSource

SERVICE_NAME = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name

_CHUNK_TARGET_BYTES = 1024 * 1024
"""A snapshot's chunk is sent once it is this large; one entry has 1,000 embeddings at most, far below the cap.
Small, because the memory that a follower receives chunks in stays with it."""
_READ_TOGETHER = 32
"""Entries of a snapshot whose samples one visit to a thread reads: the way there takes as long as reading one."""
_READS_AT_ONCE = 2
"""Such visits that are under way at a time: a disk with nothing in memory answers two in the time of one. With more of
them, threads wait for the interpreter."""

_log = get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """See `RegistryService` in registry.proto.

    Args:
        catalog: the adapters.
        jobs: the ingests.
        intake: the way in.
        cancellation: the way out of an ingest.
        orders: the way to a new profile.
        access: who may call what; followers' calls are open.
        heartbeat_seconds: time between two signs of life on a watch stream.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        jobs: JobStore,
        intake: Intake,
        cancellation: JobCancellation,
        orders: ProfileOrders,
        access: RpcAccess,
        heartbeat_seconds: float,
    ) -> None:
        self._access = access
        self._cancellation = cancellation
        self._orders = orders
        self._catalog = catalog
        self._jobs = jobs
        self._intake = intake
        self._heartbeat_seconds = heartbeat_seconds
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every watch stream, so that a stop need not wait for followers to leave."""
        self._closing.set()

    async def GetSnapshot(
        self, request: registry_pb2.GetSnapshotRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.CatalogSnapshotChunk]:
        """See registry.proto."""
        del context
        snapshot = await self._catalog.snapshot()
        chunk = _empty_chunk(snapshot)
        chunk.aliases.update(snapshot.aliases)
        num_bytes = 0
        entries = list(snapshot.entries.values())
        async with aclosing(self._batches(entries, without_samples=request.without_samples)) as batches:
            async for messages in batches:
                for message in messages:
                    chunk.entries.append(message)
                    num_bytes += message.ByteSize()
                    if num_bytes >= _CHUNK_TARGET_BYTES:
                        yield chunk
                        chunk, num_bytes = _empty_chunk(snapshot), 0
        if chunk.entries or not snapshot.entries:
            # An empty catalogue is one chunk, too: it carries the generation.
            yield chunk

    async def Watch(
        self, request: registry_pb2.WatchRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.CatalogEvent]:
        """See registry.proto."""
        del context
        news = self._catalog.follow(request.after_generation, heartbeat_seconds=self._heartbeat_seconds)
        async for item in until(news, self._closing):
            yield await self._event(item, without_samples=request.without_samples)

    async def FetchComponents(
        self, request: registry_pb2.FetchComponentsRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.ComponentChunk]:
        """See registry.proto."""
        del context
        stream = await self._catalog.open_components(request.adapter_id, basis_of(request.basis))
        with stream:
            total_bytes = os.fstat(stream.fileno()).st_size
            offset = 0
            while data := await asyncio.to_thread(stream.read, CHUNK_BYTES):
                yield registry_pb2.ComponentChunk(total_bytes=total_bytes, offset=offset, data=data)
                offset += len(data)

    async def Ingest(self, request: registry_pb2.IngestRequest, context: _Context) -> registry_pb2.IngestJob:
        """See registry.proto."""
        async with self._access.change(context, Scope.WRITE, action="add_adapter") as change:
            kinds = {
                "local_path": (SourceKind.PATH, request.local_path),
                "hub_repo": (SourceKind.HUB, request.hub_repo),
                "object_url": (SourceKind.OBJECT, request.object_url),
                "archive_url": (SourceKind.URL, request.archive_url),
            }
            given = request.WhichOneof("source")
            if given is None:
                raise InvalidInput(
                    "The request names no source.",
                    code="invalid_request",
                    remedy="Set local_path, hub_repo, object_url or archive_url; files are uploaded over REST.",
                    place="source",
                )
            kind, reference = kinds[given]
            job = await self._intake.submit_reference(
                reference,
                kind=kind,
                adapter_name=request.adapter_name or None,
                texts=tuple(request.sample_texts),
                is_replacement=request.replaces,
                how=squeeze_of(request.squeeze),
                origin=change.origin,
            )
            change.concerns(adapter=job.adapter_name, job_id=job.job_id, is_accepted=True)
            return job_message(job)

    async def GetJob(self, request: registry_pb2.GetJobRequest, context: _Context) -> registry_pb2.IngestJob:
        """See registry.proto."""
        self._access.require(context, Scope.READ)
        return job_message(await known_job(self._jobs, request.job_id))

    async def WatchJob(
        self, request: registry_pb2.WatchJobRequest, context: _Context
    ) -> AsyncIterator[registry_pb2.IngestJob]:
        """See registry.proto."""
        self._access.require(context, Scope.READ)
        await known_job(self._jobs, request.job_id)
        states = self._jobs.follow(request.job_id, heartbeat_seconds=self._heartbeat_seconds)
        async for job in until(states, self._closing):
            if job is not None:
                yield job_message(job)

    async def CancelJob(self, request: registry_pb2.CancelJobRequest, context: _Context) -> registry_pb2.IngestJob:
        """See registry.proto."""
        async with self._access.change(context, Scope.WRITE, action="cancel_job") as change:
            change.concerns(job_id=request.job_id)
            job = await self._cancellation.cancel(request.job_id)
            change.concerns(adapter=job.adapter_name, is_accepted=not job.state.is_terminal)
            return job_message(job)

    async def GetAdapter(self, request: registry_pb2.GetAdapterRequest, context: _Context) -> registry_pb2.CatalogEntry:
        """See registry.proto."""
        self._access.require(context, Scope.READ)
        return await self._entry(await self._catalog.entry(request.adapter_name), without_samples=False)

    async def ListAdapters(
        self, request: registry_pb2.ListAdaptersRequest, context: _Context
    ) -> registry_pb2.ListAdaptersResponse:
        """See registry.proto."""
        self._access.require(context, Scope.READ)
        snapshot = await self._catalog.snapshot()
        wanted = set(request.tags)
        return registry_pb2.ListAdaptersResponse(
            catalog_generation=snapshot.catalog_generation,
            entries=[entry_message(entry) for entry in snapshot.entries.values() if wanted.issubset(entry.tags)],
        )

    async def GetValidationReport(
        self, request: registry_pb2.GetValidationReportRequest, context: _Context
    ) -> registry_pb2.ValidationReport:
        """See registry.proto."""
        self._access.require(context, Scope.READ)
        entry = await self._catalog.entry(request.adapter_name)
        return report_message(entry.adapter_id, await self._catalog.validation_report(entry))

    async def ProfileAdapter(
        self, request: registry_pb2.ProfileAdapterRequest, context: _Context
    ) -> registry_pb2.IngestJob:
        """See registry.proto."""
        async with self._access.change(context, Scope.WRITE, action="make_profile") as change:
            change.concerns(adapter=request.adapter_name)
            wanted = _profile_source(request.source)
            job = await self._orders.order(request.adapter_name, wanted, origin=change.origin)
            change.concerns(job_id=job.job_id, is_accepted=True)
            return job_message(job)

    async def RetireAdapter(
        self, request: registry_pb2.RetireAdapterRequest, context: _Context
    ) -> registry_pb2.RetireAdapterResponse:
        """See registry.proto."""
        async with self._access.change(context, Scope.WRITE, action="retire_adapter") as change:
            change.concerns(adapter=request.adapter_name)
            generation = await self._catalog.retire(request.adapter_name)
            return registry_pb2.RetireAdapterResponse(catalog_generation=generation)

    async def _entry(self, entry: CatalogEntry, *, without_samples: bool) -> registry_pb2.CatalogEntry:
        (message,) = await self._messages([entry], without_samples=without_samples)
        return message

    async def _batches(
        self, entries: Sequence[CatalogEntry], *, without_samples: bool
    ) -> AsyncGenerator[list[registry_pb2.CatalogEntry]]:
        """All of them in their order, `_READ_TOGETHER` at a time; the next ones are read while these are used."""
        reads: deque[asyncio.Task[list[registry_pb2.CatalogEntry]]] = deque()
        try:
            for start in range(0, len(entries), _READ_TOGETHER):
                batch = entries[start : start + _READ_TOGETHER]
                reads.append(asyncio.create_task(self._messages(batch, without_samples=without_samples)))
                if len(reads) == _READS_AT_ONCE:
                    yield await reads.popleft()
            while reads:
                yield await reads.popleft()
        finally:
            # Whoever asked may be gone, or one of them failed.
            for read in reads:
                read.cancel()

    async def _messages(
        self, entries: Sequence[CatalogEntry], *, without_samples: bool
    ) -> list[registry_pb2.CatalogEntry]:
        def made() -> list[registry_pb2.CatalogEntry]:
            return [
                entry_message(entry) if without_samples or not entry.num_samples else self._with_samples(entry)
                for entry in entries
            ]

        return await asyncio.to_thread(made)

    def _with_samples(self, entry: CatalogEntry) -> registry_pb2.CatalogEntry:
        try:
            return entry_message(entry, *self._catalog.stored_samples(entry))
        except UnknownAdapter as error:
            # One damaged version must not keep the others from the routers; they pass over an entry without samples.
            _log.error("samples_missing", adapter=entry.adapter_id, reason=error.message)
            return entry_message(replace(entry, num_samples=0, encoder_id=""))

    async def _event(self, news: CatalogNews, *, without_samples: bool) -> registry_pb2.CatalogEvent:
        if isinstance(news, CatalogHeartbeat):
            kind = registry_pb2.CatalogEvent.KIND_HEARTBEAT
        elif not isinstance(news, CatalogChange):
            kind = registry_pb2.CatalogEvent.KIND_RESYNC
        elif news.aliases is not None:
            return registry_pb2.CatalogEvent(
                kind=registry_pb2.CatalogEvent.KIND_ALIASES,
                catalog_generation=news.catalog_generation,
                aliases=news.aliases,
            )
        elif news.entry is None:
            kind = registry_pb2.CatalogEvent.KIND_REMOVE
        else:
            return registry_pb2.CatalogEvent(
                kind=registry_pb2.CatalogEvent.KIND_UPSERT,
                catalog_generation=news.catalog_generation,
                entry=await self._entry(news.entry, without_samples=without_samples),
                adapter_name=news.adapter_name,
            )
        return registry_pb2.CatalogEvent(
            kind=kind,
            catalog_generation=news.catalog_generation,
            adapter_name=news.adapter_name if isinstance(news, CatalogChange) else "",
        )


def _empty_chunk(snapshot: CatalogSnapshot) -> registry_pb2.CatalogSnapshotChunk:
    return registry_pb2.CatalogSnapshotChunk(
        catalog_generation=snapshot.catalog_generation, num_entries=len(snapshot.entries)
    )


def _profile_source(text: str) -> ProfileSource:
    try:
        return ProfileSource(text or ProfileSource.AUTO)
    except ValueError as error:
        raise InvalidInput(
            f"{text[:80]!r} is nothing that a profile is made of.",
            code="invalid_request",
            remedy=f"Name one of {', '.join(ProfileSource)}.",
            place="source",
        ) from error


def register_with(servicer: RegistryServicer, server: grpc.aio.Server) -> None:
    """Add the service to a server."""
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(cast("Any", servicer), server)
