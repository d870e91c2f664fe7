"""Prometheus conventions of every service: prefix `hilora_`, base units, no unbounded label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Histogram bounds for everything from a cached embedding to a long answer."""


def render_metrics(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text exposition of a registry and its content type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
