"""What the registry reports to Prometheus; states are read when somebody asks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from hilora.errors import RegistryUnavailable
from services.common.metrics import LATENCY_BUCKETS_SECONDS, render_metrics, show_certificate
from services.registry.catalog import Catalog
from services.registry.job import IngestState
from services.registry.job_durations import JobDurations
from services.registry.ports import IngestQueue, JobStore, StoreCleaner

_REDIS_SECONDS = 5.0
"""A Redis that hangs for longer counts as away: a scrape must end before its own time does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    """What all processes of the registry know together, in Redis."""

    num_adapters: int
    catalog_generation: int
    jobs_by_state: Mapping[IngestState, int]
    queue_length: int
    queue_age_seconds: float
    outcomes: Mapping[str, int]
    durations: JobDurations


class RegistryMetrics:
    """Metrics of one registry.

    Args:
        catalog: for the number of adapters and the generation.
        jobs: for the number of ingests by state, how they ended, and how long they took.
        queue: for the number of messages that no ingest process has taken.
        stores: whose content is measured, by the name it is shown under.
        free_bytes: tells the room that is left where they lie.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        jobs: JobStore,
        queue: IngestQueue,
        stores: Mapping[str, StoreCleaner],
        free_bytes: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._queue = queue
        self._registry = CollectorRegistry()
        self._figures = _SharedFigures()
        self._registry.register(self._figures)
        self._registry.register(_StoreFigures(stores, free_bytes=free_bytes))
        self.uploads = Counter(
            "hilora_registry_uploads", "Adapters offered over REST, by outcome.", ["outcome"], registry=self._registry
        )
        self.upload_seconds = Histogram(
            "hilora_registry_upload_seconds",
            "Time from the head of an upload to its answer.",
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self._registry,
        )

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Show when the registry's certificate ends, in Unix seconds."""
        show_certificate(self._registry, service="registry", expires_at=expires_at)

    async def render(self) -> tuple[bytes, str]:
        """The text exposition and its content type. Without Redis, what only Redis knows is left out."""
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                self._figures.now = await self._read()
        except (RegistryUnavailable, TimeoutError):
            self._figures.now = None
        # Sizes are read from the disk.
        return await asyncio.to_thread(render_metrics, self._registry)

    async def _read(self) -> _Shared:
        snapshot = await self._catalog.snapshot()
        jobs = await self._jobs.all()
        waiting_since = min((job.updated_at for job in jobs if job.state is IngestState.PENDING), default=None)
        return _Shared(
            num_adapters=len(snapshot.entries),
            catalog_generation=snapshot.catalog_generation,
            jobs_by_state=Tally(job.state for job in jobs),
            queue_length=await self._queue.waiting(),
            queue_age_seconds=0.0 if waiting_since is None else max(0.0, time.time() - waiting_since),
            outcomes=await self._jobs.outcomes(),
            durations=await self._jobs.durations(),
        )


class _SharedFigures(Collector):
    """Figures out of Redis; jobs end in other processes, which keep their counts there.

    Codes are those of the error tree, and the store bounds how many it tells apart.
    """

    def __init__(self) -> None:
        self.now: _Shared | None = None

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        now = self.now
        yield _gauge("redis_up", "1 while Redis answers; without it most other figures are missing.", now is not None)
        if now is None:
            return
        yield _gauge("adapters", "Adapters in the catalogue.", now.num_adapters)
        yield _gauge("catalog_generation", "Published catalogue generation.", now.catalog_generation)
        jobs = GaugeMetricFamily("hilora_registry_ingest_jobs", "Known ingest jobs by state.", labels=["state"])
        for state in IngestState:
            jobs.add_metric([state.value], now.jobs_by_state.get(state, 0))
        yield jobs
        yield _gauge("ingest_queue_length", "Messages that no ingest process has taken yet.", now.queue_length)
        yield _gauge(
            "ingest_queue_age_seconds",
            "How long the oldest waiting ingest has been waiting; 0 if none waits.",
            now.queue_age_seconds,
        )
        outcomes = CounterMetricFamily(
            "hilora_registry_ingest_outcomes", "Finished ingests by state and error code.", labels=["state", "code"]
        )
        for outcome, number in sorted(now.outcomes.items()):
            state, _, code = outcome.partition(":")
            outcomes.add_metric([state, code], number)
        yield outcomes
        yield HistogramMetricFamily(
            "hilora_registry_ingest_seconds",
            "From an ingest's acceptance to its end, waiting included.",
            buckets=[(floatToGoString(bound), number) for bound, number in now.durations.cumulative()],
            sum_value=now.durations.total_seconds,
        )


class _StoreFigures(Collector):
    """Sizes of what is kept on the disk. Content is written once, so that each piece is measured once."""

    def __init__(self, stores: Mapping[str, StoreCleaner], *, free_bytes: Callable[[], int]) -> None:
        self._stores = stores
        self._free_bytes = free_bytes
        self._sizes: dict[str, dict[str, int]] = {name: {} for name in stores}

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        used = GaugeMetricFamily("hilora_registry_store_bytes", "Bytes of what is stored.", labels=["store"])
        pieces = GaugeMetricFamily(
            "hilora_registry_store_items", "Adapter versions, or their profiles, that are stored.", labels=["store"]
        )
        for name, store in self._stores.items():
            known = self._sizes[name]
            sizes = {key: known[key] if key in known else store.size_bytes(key) for key in store.stored()}
            self._sizes[name] = sizes
            used.add_metric([name], sum(sizes.values()))
            pieces.add_metric([name], len(sizes))
        yield used
        yield pieces
        yield _gauge("store_free_bytes", "Room that is left on the disk of the store.", self._free_bytes())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"hilora_registry_{name}", text, value=float(value))
