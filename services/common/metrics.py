"""Prometheus conventions of every service: prefix `hilora_`, base units, no unbounded label."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Histogram bounds for everything from a cached embedding to a long answer."""


METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of the text format that `render_metrics` makes."""


def render_metrics(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text exposition of a registry and its content type."""
    return generate_latest(registry), METRICS_CONTENT_TYPE


def show_certificate(registry: CollectorRegistry, *, service: str, expires_at: Callable[[], float]) -> None:
    """Show when a service's certificate ends.

    Args:
        registry: where it is shown.
        service: `router`, `worker` or `registry`, as in the names of its other figures.
        expires_at: Unix seconds; asked at every scrape, for certificates are replaced while services run.
    """
    Gauge(
        f"hilora_{service}_certificate_expiration_timestamp_seconds",
        "Unix time at which the service's own certificate ends; missing without TLS.",
        registry=registry,
    ).set_function(expires_at)
