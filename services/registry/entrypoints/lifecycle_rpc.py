"""The gRPC door to an adapter's life after its ingest."""

from __future__ import annotations

from typing import Any, cast

import grpc

from hilora_rpc.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from services.common.auth import Scope
from services.registry.entrypoints.rpc_access import RpcAccess
from services.registry.lifecycle import AdapterLifecycle
from services.registry.publication import Published
from services.registry.registration import VersionState

LIFECYCLE_SERVICE_NAME = lifecycle_pb2.DESCRIPTOR.services_by_name["AdapterLifecycleService"].full_name
"""Name of the service, for health checks."""

_STATES = {
    VersionState.READY: lifecycle_pb2.VERSION_STATE_READY,
    VersionState.QUARANTINED: lifecycle_pb2.VERSION_STATE_QUARANTINED,
    VersionState.REJECTED: lifecycle_pb2.VERSION_STATE_REJECTED,
    VersionState.COLLECTED: lifecycle_pb2.VERSION_STATE_COLLECTED,
}

_Context = grpc.aio.ServicerContext[Any, Any]


class LifecycleServicer(lifecycle_pb2_grpc.AdapterLifecycleServiceServicer):
    """See `AdapterLifecycleService` in lifecycle.proto.

    Args:
        lifecycle: the use cases.
        access: who may call what.
    """

    def __init__(self, *, lifecycle: AdapterLifecycle, access: RpcAccess) -> None:
        self._lifecycle = lifecycle
        self._access = access

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        lifecycle_pb2_grpc.add_AdapterLifecycleServiceServicer_to_server(cast("Any", self), server)

    async def ListVersions(
        self, request: lifecycle_pb2.ListVersionsRequest, context: _Context
    ) -> lifecycle_pb2.ListVersionsResponse:
        """See lifecycle.proto."""
        self._access.require(context, Scope.READ)
        registration = await self._lifecycle.registration(request.adapter_name)
        versions = [
            lifecycle_pb2.AdapterVersion(
                version=version.version,
                adapter_id=registration.adapter_id(version),
                revision=version.revision,
                state=_STATES[version.state],
                is_current=version.version == registration.current and not registration.is_retired,
                created_at=version.created_at,
                reviewer=version.review.reviewer if version.review else "",
                reason=version.review.reason if version.review else "",
            )
            for version in registration.versions
        ]
        return lifecycle_pb2.ListVersionsResponse(versions=versions, is_retired=registration.is_retired)

    async def RollBackAdapter(
        self, request: lifecycle_pb2.RollBackAdapterRequest, context: _Context
    ) -> lifecycle_pb2.AdapterStateResponse:
        """See lifecycle.proto."""
        async with self._access.change(context, Scope.WRITE, action="roll_back_adapter") as change:
            change.concerns(adapter=request.adapter_name)
            return _state(await self._lifecycle.roll_back(request.adapter_name, selector=request.version or None))

    async def ApproveAdapter(
        self, request: lifecycle_pb2.ReviewAdapterRequest, context: _Context
    ) -> lifecycle_pb2.AdapterStateResponse:
        """See lifecycle.proto."""
        return await self._review(request, context, is_approval=True)

    async def RejectAdapter(
        self, request: lifecycle_pb2.ReviewAdapterRequest, context: _Context
    ) -> lifecycle_pb2.AdapterStateResponse:
        """See lifecycle.proto."""
        return await self._review(request, context, is_approval=False)

    async def _review(
        self, request: lifecycle_pb2.ReviewAdapterRequest, context: _Context, *, is_approval: bool
    ) -> lifecycle_pb2.AdapterStateResponse:
        action = "approve_adapter" if is_approval else "reject_adapter"
        async with self._access.change(context, Scope.APPROVE, action=action) as change:
            change.concerns(adapter=request.adapter_name)
            published = await self._lifecycle.review(
                request.adapter_name,
                is_approval=is_approval,
                reviewer=request.reviewer or change.origin.principal,
                reason=request.reason,
                selector=request.version or None,
            )
            return _state(published)


def _state(published: Published) -> lifecycle_pb2.AdapterStateResponse:
    registration = published.registration
    current = registration.current_version
    return lifecycle_pb2.AdapterStateResponse(
        catalog_generation=published.catalog_generation,
        adapter_id=registration.adapter_id(current) if current else "",
        version=current.version if current else 0,
    )
