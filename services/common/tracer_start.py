"""Opens a service's tracer, if anybody wants to see its traces."""

from __future__ import annotations

from services.common.tracing import Tracer


def open_tracer(*, service: str, endpoint: str | None, sample_ratio: float) -> Tracer | None:
    """The tracer of a service, or None if nobody wants to see its traces.

    Args:
        service: `service.name` of its spans.
        endpoint: URL of an OTLP/HTTP receiver; without a path, `/v1/traces` is added.
        sample_ratio: share of the traces that begin here which are recorded; one that a caller began follows its flag.

    Raises:
        InvalidInput: `missing_package`, without OpenTelemetry; `invalid_endpoint`.
    """
    if endpoint is None:
        return None
    from services.common.otel_tracer import open_otel_tracer  # only whoever wants traces needs the packages

    return open_otel_tracer(service=service, endpoint=endpoint, sample_ratio=sample_ratio)
