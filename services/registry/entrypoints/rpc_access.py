"""Keys and the audit log at the gRPC door: what `access` is at the REST door."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from hilora.errors import HiloraError, PermissionDenied, RegistryUnavailable
from services.common.auth import KeyRing, Principal, Scope
from services.common.errors import mapping_of
from services.common.log import get_logger
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.job import Origin
from services.registry.ports import AuditLog

_log = get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RpcChange:
    """One attempt at a change, while it is made."""

    def __init__(self, origin: Origin, *, action: str) -> None:
        self.origin = origin
        self._action = action
        self._adapter: str | None = None
        self._job_id: str | None = None
        self._is_accepted = False

    def concerns(
        self, *, adapter: str | None = None, job_id: str | None = None, is_accepted: bool | None = None
    ) -> None:
        """Say what the change is about, and whether a job goes on with it."""
        self._adapter = adapter or self._adapter
        self._job_id = job_id or self._job_id
        self._is_accepted = self._is_accepted if is_accepted is None else is_accepted

    def event(self, error: HiloraError | None) -> AuditEvent:
        """The line of the audit log."""
        if error is not None:
            outcome = AuditOutcome.FAILED if mapping_of(error).http_status >= 500 else AuditOutcome.REFUSED
        else:
            outcome = AuditOutcome.ACCEPTED if self._is_accepted else AuditOutcome.DONE
        return AuditEvent(
            principal=self.origin.principal,
            request_id=self.origin.request_id,
            action=self._action,
            outcome=outcome,
            door="grpc",
            adapter=self._adapter[:160] if self._adapter else None,
            job_id=self._job_id[:160] if self._job_id else None,
            code=error.code if error else None,
        )


class RpcAccess:
    """Who may call what.

    Args:
        keys: who may pass.
        audit: gets a line for every attempt at a change by a known key.
    """

    def __init__(self, *, keys: KeyRing, audit: AuditLog) -> None:
        self._keys = keys
        self._audit = audit

    def require(self, context: _Context, scope: Scope) -> Principal:
        """Who calls. Raises Unauthenticated or PermissionDenied."""
        principal = self._keys.authenticate(_metadata(context, "authorization"))
        _check(principal, scope)
        return principal

    @asynccontextmanager
    async def change(self, context: _Context, scope: Scope, *, action: str) -> AsyncGenerator[RpcChange]:
        """Make a change within a block; its line is on the disk before the block is left.

        Raises:
            Unauthenticated: without a line: anybody could fill the disk.
            PermissionDenied: the key lacks the scope.
            RegistryUnavailable: `audit_unavailable`; the change may have been made.
        """
        principal = self._keys.authenticate(_metadata(context, "authorization"))
        presented = _metadata(context, "x-request-id")
        request_id = presented if _REQUEST_ID.fullmatch(presented) else f"req-{uuid.uuid4().hex}"
        change = RpcChange(Origin(principal=principal.name, request_id=request_id), action=action)
        try:
            _check(principal, scope)
            yield change
        except HiloraError as error:
            await self._record(change.event(error))
            raise
        await self._record(change.event(None))

    async def _record(self, event: AuditEvent) -> None:
        try:
            await asyncio.to_thread(self._audit.append, event)
        except OSError as error:
            _log.exception("audit_failed", action=event.action)
            raise RegistryUnavailable(
                "The answer is held back because the audit log cannot be written; the change may have been made.",
                code="audit_unavailable",
                remedy="Make room on the disk of the data folder, then look at what is there.",
            ) from error


def _check(principal: Principal, scope: Scope) -> None:
    if scope not in principal.scopes:
        raise PermissionDenied(
            f"The key {principal.name!r} lacks the scope {scope.value!r}.",
            remedy="Use a key that has it, or have the operator add it to this one.",
        )


def _metadata(context: _Context, wanted: str) -> str:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == wanted), "")
