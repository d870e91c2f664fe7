"""What the registry reports to Prometheus; states are read when somebody asks."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from services.common.metrics import LATENCY_BUCKETS_SECONDS, render_metrics
from services.registry.catalog import Catalog
from services.registry.job import IngestState
from services.registry.ports import IngestQueue, JobStore


class RegistryMetrics:
    """Metrics of one registry.

    Args:
        catalog: for the number of adapters and the generation.
        jobs: for the number of ingests by state, and how they ended.
        queue: for the number of messages that no ingest process has taken.
    """

    def __init__(self, *, catalog: Catalog, jobs: JobStore, queue: IngestQueue) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._queue = queue
        self._registry = CollectorRegistry()
        self._adapters = Gauge("hilora_registry_adapters", "Adapters in the catalogue.", registry=self._registry)
        self._generation = Gauge(
            "hilora_registry_catalog_generation", "Published catalogue generation.", registry=self._registry
        )
        self._ingests = Gauge(
            "hilora_registry_ingest_jobs", "Known ingest jobs by state.", ["state"], registry=self._registry
        )
        self._queue_length = Gauge(
            "hilora_registry_ingest_queue_length",
            "Messages that no ingest process has taken yet.",
            registry=self._registry,
        )
        self._queue_age = Gauge(
            "hilora_registry_ingest_queue_age_seconds",
            "How long the oldest waiting ingest has been waiting; 0 if none waits.",
            registry=self._registry,
        )
        self._outcomes = _OutcomeCollector()
        self._registry.register(self._outcomes)
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
        jobs = await self._jobs.all()
        by_state = Tally(job.state for job in jobs)
        for state in IngestState:
            self._ingests.labels(state=state.value).set(by_state[state])
        waiting_since = min((job.updated_at for job in jobs if job.state is IngestState.PENDING), default=None)
        self._queue_age.set(0.0 if waiting_since is None else max(0.0, time.time() - waiting_since))
        self._queue_length.set(await self._queue.waiting())
        self._outcomes.counts = await self._jobs.outcomes()
        return render_metrics(self._registry)


class _OutcomeCollector(Collector):
    """Counts that the ingest processes keep in Redis: jobs end there, not here.

    The codes are those of the error tree, and the store bounds how many it tells apart.
    """

    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        family = CounterMetricFamily(
            "hilora_registry_ingest_outcomes", "Finished ingests by state and error code.", labels=["state", "code"]
        )
        for outcome, number in sorted(self.counts.items()):
            state, _, code = outcome.partition(":")
            family.add_metric([state, code], number)
        yield family
