"""The gate of the router's doors: nothing passes without a key, except what probes and scrapers ask for.

The gate asks for a key before the application sees the path, and `include` refuses to start with a route that names no
scope: a route that somebody adds cannot forget it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import grpc
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hilora.errors import HiloraError, InvalidInput, PermissionDenied
from services.common.inference_keys import Caller, CallerRing, InferenceScope
from services.router.entrypoints.error_answers import answer_hilora
from services.router.entrypoints.tenancy import TENANT_HEADER, tenant_of

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""What probes and scrapers ask for without a key: no adapter's name, only numbers with bounded labels."""


@dataclass(frozen=True, slots=True)
class ScopeCheck:
    """A dependency that lets pass who has a scope; made by `require`."""

    scope: InferenceScope

    async def __call__(self, request: Request) -> Caller:
        """Who asks; not a plain function, for which FastAPI would take a thread. Raises PermissionDenied."""
        caller = caller_of(request)
        check_scope(caller, self.scope)
        return caller


def require(scope: InferenceScope) -> Any:
    """What a route puts into its `dependencies` to need a scope."""
    return Depends(ScopeCheck(scope))


def caller_of(request: Request) -> Caller:
    """Who sent a request that passed the gate."""
    return cast("Caller", request.scope["state"]["caller"])


def check_scope(caller: Caller, scope: InferenceScope) -> None:
    """Refuse whoever lacks a scope. Raises PermissionDenied."""
    if scope not in caller.scopes:
        raise PermissionDenied(
            f"The key {caller.name!r} lacks the scope {scope.value!r}.",
            remedy="Use a key that has it, or have the operator add it to this one.",
        )


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
        callers: who may pass.
    """

    def __init__(self, app: ASGIApp, *, callers: CallerRing) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            try:
                caller = self._callers.authenticate(Headers(scope=scope).get("authorization", ""))
            except HiloraError as error:
                await answer_hilora(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def tenant_for(caller: Caller, presented: str | None, *, is_trusted: bool) -> str | None:
    """The tenant of a request: that of its key; where the key has none, the one its sender may name.

    Args:
        caller: who asks.
        presented: the tenant that the request names, if any.
        is_trusted: whether senders may name one: the setting `trust_tenant_header`.

    Raises:
        InvalidInput: `tenant_mismatch`, if a key of one tenant names another; see `tenant_of`.
    """
    if caller.tenant is None:
        return tenant_of(presented, is_trusted=is_trusted)
    if presented and presented != caller.tenant:
        raise InvalidInput(
            f"This key belongs to the tenant {caller.tenant!r}, and the request names another.",
            code="tenant_mismatch",
            remedy=f"Leave {TENANT_HEADER} out.",
            place=TENANT_HEADER,
        )
    return caller.tenant


class RpcGate:
    """Who may call what over gRPC.

    Args:
        callers: who may pass.
    """

    def __init__(self, callers: CallerRing) -> None:
        self._callers = callers

    def require(self, context: grpc.aio.ServicerContext[Any, Any], scope: InferenceScope) -> Caller:
        """Who calls. Raises Unauthenticated or PermissionDenied."""
        metadata = context.invocation_metadata() or ()
        authorization = next((str(value) for key, value in metadata if key == "authorization"), "")
        caller = self._callers.authenticate(authorization)
        check_scope(caller, scope)
        return caller
