"""Spans around the calls that a gRPC server answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from hilora.errors import HiloraError
from services.common.tracing import Span, SpanKind, Tracer, carrier_of, enter_span

_OURS = "/hilora_rpc."


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call of our own services a span, as a part of its caller's trace.

    Args:
        tracer: makes the spans.
        begins_traces: whether a call without a trace begins one; otherwise it gets no span, which spares us those of
            polls and watches.
    """

    def __init__(self, tracer: Tracer, *, begins_traces: bool) -> None:
        self._tracer = tracer
        self._begins_traces = begins_traces

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        carrier = carrier_of(handler_call_details.invocation_metadata)
        is_traced = method.startswith(_OURS) and (bool(carrier) or self._begins_traces)
        if handler is None or handler.request_streaming or not is_traced:
            return handler

        def begin() -> Span:
            service, _, name = method.lstrip("/").partition("/")
            span = self._tracer.begin(f"{service}/{name}", carrier=carrier, kind=SpanKind.SERVER)
            span.set({"rpc.system": "grpc", "rpc.service": service, "rpc.method": name})
            # A call is a task of its own: what is set here is seen by its work alone and ends with it.
            enter_span(span)
            return span

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _traced_stream(handler.unary_stream, begin),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _traced_unary(handler.unary_unary, begin),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _traced_unary(behavior: Callable[..., Awaitable[Any]], begin: Callable[[], Span]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        span = begin()
        try:
            return await behavior(request, context)
        except Exception as error:
            span.fail(_type_of(error))
            raise
        finally:
            span.end()

    return call


def _traced_stream(behavior: Callable[..., Any], begin: Callable[[], Span]) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        span = begin()
        try:
            async for response in behavior(request, context):
                yield response
        except Exception as error:
            span.fail(_type_of(error))
            raise
        finally:
            span.end()

    return call


def _type_of(error: Exception) -> str:
    return error.code if isinstance(error, HiloraError) else type(error).__name__
