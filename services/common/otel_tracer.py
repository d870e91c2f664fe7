"""`Tracer` over OpenTelemetry's SDK, with an OTLP/HTTP exporter. Imported only where traces are switched on.

One provider a service and none that is global: several services share a process in `hilora serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hilora.errors import InvalidInput
from services.common.tracing import AttributeValue, Span, SpanKind

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_NANOSECONDS = 1_000_000_000


def open_otel_tracer(*, service: str, endpoint: str, sample_ratio: float) -> OtelTracer:
    """See `tracer_start.open_tracer`."""
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.netloc:
        raise InvalidInput(
            f"{endpoint!r} is no URL of an OTLP/HTTP receiver.",
            code="invalid_endpoint",
            remedy="Give something like http://collector:4318.",
            place="otlp_endpoint",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidInput(
            "Traces need the OpenTelemetry packages.",
            code="missing_package",
            remedy="Install hilora-serve[tracing], or unset the OTLP_ENDPOINT setting.",
            place="otlp_endpoint",
        ) from error
    target = endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    return OtelTracer(service=service, exporter=OTLPSpanExporter(endpoint=target), sample_ratio=sample_ratio)


class OtelTracer:
    """Makes spans and sends them in batches, from a thread of the SDK's.

    Args:
        service: `service.name`.
        exporter: where spans go.
        sample_ratio: share of the traces begun here that are recorded.
        is_immediate: whether a span is exported when it ends, for tests; otherwise in batches.
    """

    def __init__(
        self, *, service: str, exporter: SpanExporter, sample_ratio: float, is_immediate: bool = False
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service, "service.version": version("hilora-serve")}),
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            shutdown_on_exit=False,
        )
        processor = SimpleSpanProcessor(exporter) if is_immediate else BatchSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("hilora")

    def begin(self, name: str, *, carrier: Mapping[str, str], kind: SpanKind = SpanKind.SERVER) -> Span:
        """See `Tracer.begin`."""
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # An empty context: the process may have a global one that is not ours.
        parent = TraceContextTextMapPropagator().extract(dict(carrier), context=Context())
        return _OtelSpan(self._tracer, self._tracer.start_span(name, context=parent, kind=_kind(kind)))

    async def start(self) -> None:
        """See `Tracer.start`."""

    async def stop(self, *, grace_seconds: float) -> None:
        """See `Tracer.stop`."""
        await asyncio.to_thread(self._provider.force_flush, max(1, round(grace_seconds * 1000)))
        await asyncio.to_thread(self._provider.shutdown)


class _OtelSpan:
    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def headers(self) -> Mapping[str, str]:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context=self._context())
        return carrier

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, error_type: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def child(self, name: str, *, kind: SpanKind, started_at: float, attributes: Mapping[str, AttributeValue]) -> Span:
        span = self._tracer.start_span(
            name,
            context=self._context(),
            kind=_kind(kind),
            start_time=int(started_at * _NANOSECONDS),
            attributes=dict(attributes),
        )
        return _OtelSpan(self._tracer, span)

    def end(self, *, ended_at: float | None = None) -> None:
        self._span.end(end_time=None if ended_at is None else int(ended_at * _NANOSECONDS))

    def _context(self) -> Any:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span, Context())


def _kind(kind: SpanKind) -> Any:
    from opentelemetry.trace import SpanKind as OtelKind

    return OtelKind[kind.name]
