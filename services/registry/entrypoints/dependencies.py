"""What the routes of the REST door call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.registry.cancellation import JobCancellation
from services.registry.catalog import Catalog
from services.registry.entrypoints.event_stream import EventStreams
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.intake import Intake
from services.registry.ports import AuditLog, IdempotencyStore, JobStore


@dataclass(frozen=True, kw_only=True, slots=True)
class RestDependencies:
    """Use cases, stores and limits of the routes."""

    intake: Intake
    catalog: Catalog
    jobs: JobStore
    cancellation: JobCancellation
    idempotency: IdempotencyStore
    audit: AuditLog
    metrics: RegistryMetrics
    streams: EventStreams
    is_ready: Callable[[], bool]
    max_upload_bytes: int
    heartbeat_seconds: float
    """Time between two signs of life on an event stream."""
    load_wait_seconds: float
    """How long `/v1/load_lora_adapter` waits for its adapter."""
