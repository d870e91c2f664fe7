"""The gate of the REST door: nothing passes without a key, and nothing changes without a line in the audit log.

Both are done here and not in the routes, so that a route somebody adds cannot forget them: the gate asks for a key
before the application sees the path, and `include` refuses to start with a route that names no scope.

    routes = APIRouter(prefix="/v1")

    @routes.post("/adapters/{name}/approve", dependencies=[access.require(Scope.APPROVE)])
    async def approve_adapter(request: Request, name: str) -> ...:
        who = access.origin_of(request)
"""

from __future__ import annotations

import asyncio
import re
import uuid
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from hilora.errors import HiloraError, PermissionDenied, RegistryUnavailable, Unauthenticated
from services.common.auth import KeyRing, Principal, Scope, is_loopback
from services.common.log import get_logger
from services.registry.audit import AuditEvent, AuditOutcome
from services.registry.entrypoints.error_answers import answer_hilora_error
from services.registry.job import Origin
from services.registry.ports import AuditLog

_log = get_logger(__name__)

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""What probes and scrapers ask for without a key: no adapter's name, only numbers with bounded labels."""

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class ScopeCheck:
    """A dependency that lets pass who has a scope; made by `require`."""

    scope: Scope

    def __call__(self, request: Request) -> Principal:
        """Who asks. Raises PermissionDenied."""
        principal = principal_of(request)
        if self.scope not in principal.scopes:
            raise PermissionDenied(
                f"The key {principal.name!r} lacks the scope {self.scope.value!r}.",
                remedy="Use a key that has it, or have the operator add it to this one.",
            )
        return principal


def require(scope: Scope) -> Any:
    """What a route puts into its `dependencies`, or annotates a `Principal` parameter with, to need a scope."""
    return Depends(ScopeCheck(scope))


def principal_of(request: Request) -> Principal:
    """Who sent a request that passed the gate."""
    return cast("Principal", request.scope["state"]["principal"])


def origin_of(request: Request) -> Origin:
    """Who sent a request, as jobs and the audit log keep it."""
    return Origin(principal=principal_of(request).name, request_id=request.scope["state"]["request_id"])


def concerns(request: Request, *, adapter: str | None = None, job_id: str | None = None) -> None:
    """Say what a change is about, where its path does not: the audit log names it."""
    subject = request.scope["state"].setdefault("subject", {})
    subject.update({key: value for key, value in {"adapter": adapter, "job_id": job_id}.items() if value})


def include(app: FastAPI, routes: APIRouter) -> None:
    """Add routes to the application.

    Raises:
        ValueError: one of them is neither public nor names the scope it takes.
    """
    for route in routes.routes:
        if not isinstance(route, APIRoute):
            raise ValueError(f"{route} has no dependencies that could guard it")  # noqa: TRY004  (about its content)
        checks = [item for item in route.dependant.dependencies if isinstance(item.call, ScopeCheck)]
        if not checks and route.path not in PUBLIC_PATHS:
            raise ValueError(f"the route {route.path} names no scope: give it access.require(...)")
    app.include_router(routes)


class AccessGate:
    """An ASGI application in front of another.

    Args:
        app: what answers requests that pass.
        keys: who may pass.
        audit: gets a line for every request that could change something, before its answer leaves.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, audit: AuditLog) -> None:
        self.app = app
        self._keys = keys
        self._audit = audit

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"this door does not speak {scope['type']}")
        headers = Headers(scope=scope)
        presented = headers.get(REQUEST_ID_HEADER, "")
        request_id = presented if _REQUEST_ID.fullmatch(presented) else f"req-{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            # The path that routing uses, never one rebuilt from a URL: a `Host` header could bend that.
            if scope["path"] in PUBLIC_PATHS:
                await self.app(scope, receive, send_marked)
                return
            try:
                state["principal"] = self._authenticate(headers)
            except Unauthenticated as error:
                _log.info("refused_at_the_gate", code=error.code)
                await answer_hilora_error(Request(scope), error)(scope, receive, send_marked)
                return
            if scope["method"] in _READING_METHODS:
                await self.app(scope, receive, send_marked)
                return
            await self._answer_audited(scope, receive, send_marked)

    def _authenticate(self, headers: Headers) -> Principal:
        if self._keys.admits_anyone:
            _refuse_strangers(headers)
        return self._keys.authenticate(headers.get("authorization", ""))

    async def _answer_audited(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Let the application answer, and write the line between its decision and its answer."""
        has_failed_to_record = False

        async def send_recorded(message: Message) -> None:
            nonlocal has_failed_to_record
            if message["type"] == "http.response.start":
                try:
                    await asyncio.to_thread(self._audit.append, _event_of(scope, message["status"]))
                except OSError:
                    # Whoever relies on the log must learn that it has a hole; the change itself cannot be taken back.
                    _log.exception("audit_failed", path=scope["path"], status=message["status"])
                    has_failed_to_record = True
                    await answer_hilora_error(Request(scope), _unrecorded())(scope, receive, send)
            if not has_failed_to_record:
                await send(message)

        await self.app(scope, receive, send_recorded)


def _refuse_strangers(headers: Headers) -> None:
    """Where nobody needs a key, a web page in the operator's browser must not be the one who asks.

    Raises:
        Unauthenticated: the request was made for another host, or comes from a page of another origin.
    """
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    origin = headers.get("origin")
    is_foreign = origin is not None and not is_loopback(urlsplit(origin).hostname or "")
    if is_foreign or not is_loopback(host):
        raise Unauthenticated(
            "Without an admin key this door answers local programs only.",
            remedy="Call it as 127.0.0.1 or localhost, or set an admin key.",
        )


def _event_of(scope: AsgiScope, status: int) -> AuditEvent:
    state = scope["state"]
    origin = origin_of(Request(scope))
    subject: dict[str, str] = state.get("subject", {})
    path: dict[str, Any] = scope.get("path_params", {})
    route = scope.get("route")
    error: HiloraError | None = state.get("error")
    if status >= 500:
        outcome = AuditOutcome.FAILED
    elif status >= 400:
        outcome = AuditOutcome.REFUSED
    else:
        outcome = AuditOutcome.ACCEPTED if status == 202 else AuditOutcome.DONE
    return AuditEvent(
        principal=origin.principal,
        request_id=origin.request_id,
        action=str(getattr(route, "name", None) or "unknown_route")[:64],
        outcome=outcome,
        door="rest",
        adapter=_bounded(subject.get("adapter") or path.get("name")),
        job_id=_bounded(subject.get("job_id") or path.get("job_id")),
        code=error.code if error else (f"http_{status}" if status >= 400 else None),
    )


def _bounded(text: object) -> str | None:
    return str(text)[:160] if text else None


def _unrecorded() -> RegistryUnavailable:
    return RegistryUnavailable(
        "The answer is held back because the audit log cannot be written; the change may have been made.",
        code="audit_unavailable",
        remedy="Make room on the disk of the data folder, then look at what is there.",
    )
