"""What the registry reports to Prometheus; states are read when somebody asks."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import LATENCY_BUCKETS_SECONDS, render_metrics
from services.registry.catalog import Catalog
from services.registry.job import IngestState
from services.registry.ports import JobStore


class RegistryMetrics:
    """Metrics of one registry.

    Args:
        catalog: for the number of adapters and the generation.
        jobs: for the number of ingests by state.
    """

    def __init__(self, *, catalog: Catalog, jobs: JobStore) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._registry = CollectorRegistry()
        self._adapters = Gauge("hilora_registry_adapters", "Adapters in the catalogue.", registry=self._registry)
        self._generation = Gauge(
            "hilora_registry_catalog_generation", "Published catalogue generation.", registry=self._registry
        )
        self._ingests = Gauge(
            "hilora_registry_ingest_jobs", "Known ingest jobs by state.", ["state"], registry=self._registry
        )
        self.uploads = Counter(
            "hilora_registry_uploads", "Adapters offered over REST, by outcome.", ["outcome"], registry=self._registry
        )
        self.upload_seconds = Histogram(
            "hilora_registry_upload_seconds",
            "Time from the head of an upload to its answer.",
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self._registry,
        )

    async def render(self) -> tuple[bytes, str]:
        """The text exposition and its content type. Raises RegistryUnavailable."""
        snapshot = await self._catalog.snapshot()
        self._adapters.set(len(snapshot.entries))
        self._generation.set(snapshot.catalog_generation)
        by_state = Tally(job.state for job in await self._jobs.all())
        for state in IngestState:
            self._ingests.labels(state=state.value).set(by_state[state])
        return render_metrics(self._registry)
