"""A gRPC server as every service runs it: health, reflection, our errors as statuses, graceful stop.

Health follows the gRPC health checking protocol: service "" is the whole process; `NOT_SERVING` until `set_serving`.
Service `liveness` is SERVING from the start, whatever the process waits for, until `set_alive` says that only a restart
would help.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]  (set at run time)
from grpc_reflection.v1alpha import reflection

from hilora.errors import HiloraError, PermissionDenied
from services.common.errors import error_metadata, mapping_of
from services.common.log import get_logger
from services.common.rpc_client import MAX_MESSAGE_BYTES
from services.common.rpc_tracing import TraceInterceptor
from services.common.tls import TlsIdentity
from services.common.tracing import Tracer

_log = get_logger(__name__)

LIVENESS_SERVICE_NAME = "liveness"
"""What a liveness probe asks for: a process that waits for others must not be restarted for it."""

_SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Two processes on one port would share its connections in silence.
    ("grpc.so_reuseport", 0),
)


class _ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a handler raises into a status, once, so that no handler catches errors itself; and refuses callers
    whose certificate has another name than those that may call."""

    def __init__(self, identity: TlsIdentity | None = None) -> None:
        self._identity = identity

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method, self._identity),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, method, self._identity),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guard_unary(
    behavior: Callable[..., Awaitable[Any]], method: str, identity: TlsIdentity | None
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _check_peer(context, identity)
            return await behavior(request, context)
        except HiloraError as error:
            await _abort(context, error, method)

    return call


def _guard_stream(
    behavior: Callable[..., Any], method: str, identity: TlsIdentity | None
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            _check_peer(context, identity)
            responses = behavior(request, context)
            if inspect.isawaitable(responses):
                # The other legal style (health's Watch): a coroutine that writes to the context itself.
                await responses
                return
            async for response in responses:
                yield response
        except HiloraError as error:
            await _abort(context, error, method)

    return call


def _check_peer(context: grpc.aio.ServicerContext[Any, Any], identity: TlsIdentity | None) -> None:
    if identity is None:
        return
    shown = context.auth_context()
    names = [
        name.decode() for key in ("x509_subject_alternative_name", "x509_common_name") for name in shown.get(key, ())
    ]
    if not identity.admits(names):
        raise PermissionDenied(
            "The caller's certificate has none of the names that may call.",
            code="unknown_peer",
            remedy="Give the caller a certificate with such a name, or add its name to the setting TLS_CLIENT_NAMES.",
        )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: HiloraError, method: str) -> None:
    mapping = mapping_of(error)
    if mapping.http_status >= 500:
        _log.warning("rpc_failed", method=method, code=error.code, message=error.message)
    await context.abort(mapping.grpc_status, str(error), trailing_metadata=error_metadata(error))


class RpcServer:
    """One listening gRPC server.

    Args:
        host: address to bind.
        port: port to bind; 0 takes a free one, see `address` after `start`.
        register: functions that add a servicer each (`lambda server: add_XServicer_to_server(x, server)`).
        service_names: full names of those services, for health and reflection.
        identity: the certificate to show, and whose calls are taken; None speaks without TLS.
        health_port: another port, without TLS, for health checks alone; 0 takes a free one, see `health_address`.
        tracer: makes spans of the calls; None makes none.
        begins_traces: whether calls that belong to no trace begin one.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        register: Iterable[Callable[[grpc.aio.Server], None]],
        service_names: Sequence[str],
        identity: TlsIdentity | None = None,
        health_port: int | None = None,
        tracer: Tracer | None = None,
        begins_traces: bool = False,
    ) -> None:
        # Behind the errors' interceptor: it sees what handlers raise themselves.
        self._tracing = [] if tracer is None else [TraceInterceptor(tracer, begins_traces=begins_traces)]
        self._identity = identity
        self._health_port = health_port
        self._health_server: grpc.aio.Server | None = None
        self._host = host
        self._port = port
        self._service_names = tuple(service_names)
        self._register = tuple(register)
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """`host:port` to connect to, valid after `start`."""
        return f"{self._host}:{self._port}"

    @property
    def health_address(self) -> str | None:
        """`host:port` of the port for health checks, valid after `start`; None if there is none."""
        return None if self._health_port is None else f"{self._host}:{self._health_port}"

    async def start(self) -> None:
        """Bind and listen. Raises RuntimeError if the port is taken."""
        self._server = grpc.aio.server(
            interceptors=[_ErrorInterceptor(self._identity), *self._tracing], options=_SERVER_OPTIONS
        )
        for register in self._register:
            register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._service_names, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        if self._identity is None:
            self._port = self._server.add_insecure_port(self.address)
        else:
            self._port = self._server.add_secure_port(self.address, self._identity.server_credentials())
        await self.set_serving(is_serving=False)
        await self.set_alive(is_alive=True)
        await self._server.start()
        await self._start_health()

    async def _start_health(self) -> None:
        if self.health_address is None:
            return
        self._health_server = grpc.aio.server(options=_SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
        self._health_port = self._health_server.add_insecure_port(self.health_address)
        await self._health_server.start()

    async def set_serving(self, *, is_serving: bool) -> None:
        """Report every service of this process as serving or not."""
        for name in ("", *self._service_names):
            await self._health.set(name, _status(is_ok=is_serving))

    async def set_alive(self, *, is_alive: bool) -> None:
        """Report whether the process can go on; if not, whoever watches over it should start it anew."""
        await self._health.set(LIVENESS_SERVICE_NAME, _status(is_ok=is_alive))

    async def stop(self, *, grace_seconds: float) -> None:
        """Refuse new calls, let those in flight finish for at most `grace_seconds`, then cancel them."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
        self._server = None
        if self._health_server is not None:
            await self._health_server.stop(0)
            self._health_server = None


def _status(*, is_ok: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if is_ok else health_pb2.HealthCheckResponse.NOT_SERVING
