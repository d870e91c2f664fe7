"""The router's own figures for Prometheus. Labels come from fixed sets; an adapter's name is never one."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hilora.errors import RegistryUnavailable
from services.common.metrics import LATENCY_BUCKETS_SECONDS, render_metrics
from services.router.answer import RouteResult
from services.router.ports import Catalog, Workers
from services.router.traffic import AdapterTraffic, TrafficWatch


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    """The client's fault."""
    EXHAUSTED = "exhausted"
    """A limit was reached."""
    FAILED = "failed"
    """Ours, before or in the middle of the answer."""
    ABORTED = "aborted"
    """The client left."""


class RouterMetrics:
    """Figures of one router; each instance has its own registry, so that several fit in one process.

    Args:
        catalog: read at every scrape.
        workers: read at every scrape.
    """

    def __init__(self, *, catalog: Catalog, workers: Workers) -> None:
        self._catalog = catalog
        self._workers = workers
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hilora_router_requests", "Requests by door and end.", ("endpoint", "outcome"), registry=self._registry
        )
        self._encode = self._histogram("encode", "Embedding of the text, waiting included.", ())
        self._decide = self._histogram("decide", "Choice of adapters and budgets.", ())
        self._route = self._histogram("route", "Embedding and choice.", ())
        self._ttft = self._histogram("ttft", "From the request's arrival to the first text.", ("endpoint",))
        self._e2e = self._histogram(
            "e2e_latency", "From the request's arrival to the end of the answer.", ("endpoint",)
        )
        self._traffic_alarms = Counter(
            "hilora_router_traffic_alarms_raised", "Traffic alarms by reason.", ("reason",), registry=self._registry
        )
        self._gauge("catalog_generation", "Generation of the catalogue in use; 0 before the first.", self._generation)
        self._gauge("adapters", "Adapters in the catalogue in use.", self._num_adapters)
        self._gauge("workers_live", "Workers that take requests.", lambda: float(workers.fleet().num_live))
        self._gauge("workers_configured", "Workers in the settings.", lambda: float(workers.fleet().num_configured))

    def watch_traffic(self, traffic: TrafficWatch) -> None:
        """Show the alarms of a traffic watch."""
        self._gauge(
            "traffic_alarms",
            "Recent or little trusted adapters with a suspicious share of the decisions; see GET /v1/route/stats.",
            lambda: float(len(traffic.alarms)),
        )

    def observe_traffic_alarm(self, traffic: AdapterTraffic) -> None:
        """An adapter began to alarm."""
        self._traffic_alarms.labels(traffic.alarm or "").inc()

    def count(self, endpoint: str, outcome: Outcome, *, seconds: float) -> None:
        """One request has ended."""
        self._requests.labels(endpoint, outcome.value).inc()
        self._e2e.labels(endpoint).observe(seconds)

    def observe_route(self, route: RouteResult) -> None:
        """One decision was made. A named model needs no embedding and does not count as one."""
        self._decide.observe(route.decide_seconds)
        if route.encode_seconds > 0:
            self._encode.observe(route.encode_seconds)
        self._route.observe(route.encode_seconds + route.decide_seconds)

    def observe_first_text(self, endpoint: str, *, seconds: float) -> None:
        """The first text of an answer is here."""
        self._ttft.labels(endpoint).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Text exposition and its content type."""
        return render_metrics(self._registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(
            f"hilora_router_{name}_seconds", text, labels, registry=self._registry, buckets=LATENCY_BUCKETS_SECONDS
        )

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(f"hilora_router_{name}", text, registry=self._registry).set_function(read)

    def _generation(self) -> float:
        try:
            return float(self._catalog.view().catalog_generation)
        except RegistryUnavailable:
            return 0.0

    def _num_adapters(self) -> float:
        try:
            return float(len(self._catalog.view().adapters))
        except RegistryUnavailable:
            return 0.0
