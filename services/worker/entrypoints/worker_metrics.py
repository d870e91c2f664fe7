"""What a worker reports to Prometheus, on a port of its own. States are read when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.common.metrics import LATENCY_BUCKETS_SECONDS, show_certificate
from services.worker.engine.output.events import Finished
from services.worker.engine.stats import EngineStats

if TYPE_CHECKING:
    from threading import Thread

_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "running": ("Requests that hold a slot.", lambda now: now.num_running),
    "waiting": ("Requests in the queue.", lambda now: now.num_waiting),
    "slots": ("Requests that can run at the same time.", lambda now: now.max_num_seqs),
    "kv_cache_usage_ratio": ("Share of the KV cache in use.", lambda now: now.kv_cache_usage),
    "resident_adapters": ("Adapter versions on the device.", lambda now: len(now.resident_adapter_ids)),
    "roc_pool_used_bytes": ("Device memory of components.", lambda now: now.roc_pool_used_bytes),
    "roc_pool_capacity_bytes": ("Limit of that memory.", lambda now: now.roc_pool_capacity_bytes),
    "roc_pool_pinned_bytes": ("Device memory of components that never leave.", lambda now: now.roc_pool.pinned_bytes),
    "draining": ("1 while no new requests are taken.", lambda now: now.is_draining),
    "stuck": ("1 while a step does not return.", lambda now: now.is_stuck),
    "device_lost": ("1 once the device is gone.", lambda now: now.is_device_lost),
}
_COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prompt_tokens": ("Prompt tokens read.", lambda now: now.counters.num_prompt_tokens),
    "cached_tokens": ("Prompt tokens from the prefix cache.", lambda now: now.counters.num_cached_tokens),
    "generation_tokens": ("Tokens written.", lambda now: now.counters.num_generation_tokens),
    "steps": ("Forward passes.", lambda now: now.counters.num_steps),
    "preemptions": ("Requests that gave their memory back.", lambda now: now.counters.num_preemptions),
    "queue_timeouts": ("Requests that waited for too long.", lambda now: now.counters.num_queue_timeouts),
    "roc_pool_hits": ("Adapters that a request found on the device.", lambda now: now.roc_pool.num_hits),
    "roc_pool_misses": ("Adapters that a request had to wait for.", lambda now: now.roc_pool.num_misses),
    "roc_pool_loads": ("Adapters that were written to the device.", lambda now: now.roc_pool.num_loads),
    "roc_pool_evictions": ("Adapters that had to leave the device.", lambda now: now.roc_pool.num_evictions),
    "queue_seconds": ("What all requests together waited.", lambda now: now.counters.queue_seconds),
}


class WorkerMetrics:
    """Figures of one worker.

    Args:
        as_vllm: whether the figures that schedulers for vLLM read are shown, too, under vLLM's names.
    """

    def __init__(self, *, as_vllm: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._as_vllm = as_vllm
        self._ttft = self._histogram("ttft", "From a request's arrival to its first token.")
        self._e2e = self._histogram("e2e_latency", "From a request's arrival to the end of an answer.")

    def attach(self, stats: Callable[[], EngineStats], *, catalog_generation: Callable[[], int]) -> None:
        """The engine is there: show it. Both may be called from any thread."""
        self.registry.register(_EngineCollector(stats, catalog_generation=catalog_generation, as_vllm=self._as_vllm))

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Show when the worker's certificate ends, in Unix seconds."""
        show_certificate(self.registry, service="worker", expires_at=expires_at)

    def observe(self, event: Finished) -> None:
        """An answer has ended."""
        if event.num_completion_tokens > 0:
            self._ttft.observe(event.ttft_seconds)
        self._e2e.observe(event.e2e_latency_seconds)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"hilora_worker_{name}_seconds", text, registry=self.registry, buckets=LATENCY_BUCKETS_SECONDS)


class MetricsPort:
    """`GET /metrics` on a port, served by threads of its own.

    Args:
        registry: what is shown.
        host: address to bind.
        port: port to bind; 0 takes a free one, see `address` after `start`.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._server: Any = None
        self._thread: Thread | None = None

    @property
    def address(self) -> str:
        """`host:port`, valid after `start`."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Bind and serve. Raises OSError if the port is taken."""
        self._server, self._thread = start_http_server(self._port, addr=self._host, registry=self._registry)
        self._port = self._server.server_port

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (a scrape takes no time)
        """Close the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


class _EngineCollector(Collector):
    def __init__(
        self, stats: Callable[[], EngineStats], *, catalog_generation: Callable[[], int], as_vllm: bool
    ) -> None:
        self._stats = stats
        self._catalog_generation = catalog_generation
        self._as_vllm = as_vllm

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        now = self._stats()
        for name, (text, read) in _GAUGES.items():
            yield GaugeMetricFamily(f"hilora_worker_{name}", text, value=float(read(now)))
        for name, (text, read) in _COUNTERS.items():
            yield CounterMetricFamily(f"hilora_worker_{name}", text, value=float(read(now)))
        yield GaugeMetricFamily(
            "hilora_worker_catalog_generation", "Catalogue reached.", value=float(self._catalog_generation())
        )
        requests = CounterMetricFamily("hilora_worker_requests", "Requests by end.", labels=["outcome"])
        counters = now.counters
        requests.add_metric(["ok"], counters.num_requests_finished)
        requests.add_metric(["failed"], counters.num_requests_failed)
        requests.add_metric(["aborted"], counters.num_requests_aborted)
        yield requests
        if self._as_vllm:
            yield from _as_vllm(now)


def _as_vllm(now: EngineStats) -> Iterator[Metric]:
    """What the Gateway API inference extension's model server protocol asks of vLLM.

    Source: kubernetes-sigs/gateway-api-inference-extension, docs/proposals/003-model-server-protocol.
    """
    yield GaugeMetricFamily("vllm:num_requests_running", "Requests that run.", value=now.num_running)
    yield GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", value=now.num_waiting)
    yield GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", value=now.kv_cache_usage
    )
    info = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "When it was asked; the labels say which adapters are on the device.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )
    names = sorted({adapter_id.partition("@")[0] for adapter_id in now.resident_adapter_ids})
    # There is no fixed number of places: room is counted in bytes. At least one more always fits beside those there.
    info.add_metric([str(len(names) + 1), ",".join(names), ""], time.time())
    yield info
