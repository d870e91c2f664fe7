"""Traces over the borders of our services: what a span is here, and which one the work at hand belongs to.

Off by default: then there are no spans, nothing is imported, and each place asks one context variable. Where on, spans
are OpenTelemetry's (`otel_tracer.py`) and travel as W3C Trace Context (https://www.w3.org/TR/trace-context/) in HTTP
headers and in gRPC metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from enum import StrEnum
from typing import Protocol

AttributeValue = str | bool | int | float | Sequence[str]

_TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"
_TRACE_KEYS = frozenset({_TRACEPARENT, _TRACESTATE})


class SpanKind(StrEnum):
    """Whose side of a call a span shows."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span(Protocol):
    """A piece of work with a beginning and an end."""

    @property
    def trace_id(self) -> str:
        """32 hex digits, for logs."""
        ...

    def headers(self) -> Mapping[str, str]:
        """What a callee needs to go on with the trace."""
        ...

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Say more about the work."""
        ...

    def fail(self, error_type: str) -> None:
        """The work failed."""
        ...

    def child(self, name: str, *, kind: SpanKind, started_at: float, attributes: Mapping[str, AttributeValue]) -> Span:
        """A part of the work that began at some Unix time. Whoever asks ends it."""
        ...

    def end(self, *, ended_at: float | None = None) -> None:
        """The work is over, now or at some Unix time. Once."""
        ...


class Tracer(Protocol):
    """Makes the spans of one service. A component: `stop` sends what is left."""

    def begin(self, name: str, *, carrier: Mapping[str, str], kind: SpanKind = SpanKind.SERVER) -> Span:
        """A span that goes on with the trace of its caller, or begins one.

        Args:
            name: of the work, from a bounded set.
            carrier: the caller's HTTP headers or gRPC metadata, with keys in lower case.
            kind: the side of the call.
        """
        ...

    async def start(self) -> None:
        """Nothing to wait for."""
        ...

    async def stop(self, *, grace_seconds: float) -> None:
        """Return when every finished span is sent, or the time is over."""
        ...


_current: ContextVar[Span | None] = ContextVar("hilora_span", default=None)


def current_span() -> Span | None:
    """The span of the call that is being answered, if there is one."""
    return _current.get()


def enter_span(span: Span) -> Token[Span | None]:
    """From here on `current_span` is this one, in this task and those it makes."""
    return _current.set(span)


def leave_span(token: Token[Span | None]) -> None:
    """Undo `enter_span`, in the same task."""
    _current.reset(token)


def outgoing_metadata() -> tuple[tuple[str, str], ...] | None:
    """What to send along with a gRPC call, so that the callee's spans join ours; None if there is no trace."""
    span = _current.get()
    return None if span is None else tuple(span.headers().items())


def carrier_of(metadata: Sequence[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """The trace in the metadata of a gRPC call, empty if there is none."""
    return {key: value for key, value in metadata or () if key in _TRACE_KEYS and isinstance(value, str)}
