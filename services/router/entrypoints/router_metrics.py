"""The router's own figures for Prometheus. Labels come from fixed sets; names of adapters are bounded, see
`DecisionMetrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from hilora.errors import RegistryUnavailable
from hilora.sequence_routing import SequenceRouter
from services.common.metrics import LATENCY_BUCKETS_SECONDS, render_metrics, show_certificate
from services.router.answer import RouteResult
from services.router.decision_cache import DecisionCache
from services.router.entrypoints.decision_metrics import DecisionMetrics
from services.router.infra.batching_embedder import EmbedderFigures
from services.router.infra.workers.circuit import CircuitState
from services.router.observation import GenerationRecord
from services.router.pool_index import IndexKind
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
        num_named_adapters: most adapters with a label of their own; 0 shows none.
        on_route: called with each decision that is counted.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        workers: Workers,
        num_named_adapters: int = 0,
        on_route: Callable[[RouteResult], None] = lambda _route: None,
    ) -> None:
        self._on_route = on_route
        self._catalog = catalog
        self._workers = workers
        self._registry = CollectorRegistry()
        self._decisions = DecisionMetrics(self._registry, num_named=num_named_adapters)
        self._requests = Counter(
            "hilora_router_requests", "Requests by door and end.", ("endpoint", "outcome"), registry=self._registry
        )
        self._sessions = Counter(
            "hilora_router_sessions",
            "Decisions of sessions by what became of the session's plan.",
            ("verdict",),
            registry=self._registry,
        )
        self._encode = self._histogram("encode", "Embedding of the text, waiting included.", ())
        self._decide = self._histogram("decide", "Choice of adapters and budgets.", ())
        self._route = self._histogram("route", "Embedding and choice.", ())
        self._ttft = self._histogram("ttft", "From the request's arrival to the first text.", ("endpoint",))
        self._e2e = self._histogram(
            "e2e_latency", "From the request's arrival to the end of the answer.", ("endpoint",)
        )
        self._inter_token = self._histogram("inter_token", "Mean time between the tokens of one generation.", ())
        self._text_gap = self._histogram("text_gap", "Each wait between two pieces of text of one answer.", ())
        self._generations = Counter(
            "hilora_router_generations", "Generations by end.", ("outcome",), registry=self._registry
        )
        self._tokens = Counter(
            "hilora_router_tokens",
            "Tokens of generations by kind; `cached` ones are among the prompts'.",
            ("kind",),
            registry=self._registry,
        )
        self._traffic_alarms = Counter(
            "hilora_router_traffic_alarms_raised", "Traffic alarms by reason.", ("reason",), registry=self._registry
        )
        self._index_kind = Gauge(
            "hilora_router_index_kind", "1 for the way the pool is searched.", ("kind",), registry=self._registry
        )
        self._gauge("catalog_generation", "Generation of the catalogue in use; 0 before the first.", self._generation)
        self._gauge("fit_generation", "Generation of the catalogue that the choice is fitted to.", self._fit_generation)
        self._gauge("adapters", "Adapters in the catalogue in use.", self._num_adapters)
        self._gauge(
            "adapters_since_fit",
            "Adapters that are chosen by the fit of the others until the next one.",
            self._newcomers,
        )
        self._gauge("index_recall", "Share of the nearest adapters that the index finds; 1 where exact.", self._recall)
        for kind in IndexKind:
            self._index_kind.labels(kind.value).set_function(partial(self._is_index, kind))
        self._gauge(
            "adapters_ignored",
            "Adapters in the catalogue that cannot be used here, or not be chosen: GET /readyz says why.",
            self._ignored,
        )
        self._gauge("workers_live", "Workers that take requests.", lambda: float(workers.fleet().num_live))
        circuits = Gauge("hilora_router_circuits", "Workers by circuit breaker.", ("state",), registry=self._registry)
        for state in CircuitState:
            circuits.labels(state.value).set_function(partial(self._num_circuits, state))
        self._gauge(
            "catalog_following", "1 while changes of the catalogue arrive.", lambda: float(catalog.is_following)
        )
        self._gauge("workers_configured", "Workers in the settings.", lambda: float(workers.fleet().num_configured))

    def watch_traffic(self, traffic: TrafficWatch) -> None:
        """Show the alarms of a traffic watch."""
        self._gauge(
            "traffic_alarms",
            "Recent or little trusted adapters with a suspicious share of the decisions; see GET /v1/route/stats.",
            lambda: float(len(traffic.alarms)),
        )

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Show when the router's certificate ends, in Unix seconds."""
        show_certificate(self._registry, service="router", expires_at=expires_at)

    def watch_embedder(self, figures: Callable[[], EmbedderFigures]) -> None:
        """Show what the sentence encoder does."""
        self._counts(
            {
                "encoder_cache_hits": ("Texts whose embedding was remembered.", lambda: figures().num_hits),
                "encoder_shared": ("Texts that were on their way for another request.", lambda: figures().num_shared),
                "encoder_texts": ("Texts that were embedded.", lambda: figures().num_embedded),
                "encoder_passes": ("Batches that were embedded.", lambda: figures().num_passes),
                "encoder_refused": ("Texts that found the queue full.", lambda: figures().num_refused),
            }
        )
        self._gauge("encoder_waiting", "Texts in the queue.", lambda: float(figures().num_waiting))
        self._gauge("encoder_cache_texts", "Texts that are remembered.", lambda: float(figures().num_remembered))
        self._gauge(
            "encoder_cache_bytes", "Memory of what is remembered.", lambda: float(figures().num_remembered_bytes)
        )

    def watch_decisions(self, decisions: DecisionCache) -> None:
        """Show what became of texts that came again."""
        self._counts({"decision_cache_hits": ("Decisions that were remembered.", lambda: decisions.num_hits)})

    def _counts(self, counts: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry.register(_Counts(counts))

    def observe_generation(self, record: GenerationRecord) -> None:
        """A generation has ended."""
        self._generations.labels(record.outcome).inc()
        self._tokens.labels("prompt").inc(record.num_prompt_tokens)
        self._tokens.labels("cached").inc(record.num_cached_tokens)
        self._tokens.labels("completion").inc(record.num_completion_tokens)
        if record.inter_token_seconds is not None:
            self._inter_token.observe(record.inter_token_seconds)
        for gap in record.text_gaps_seconds:
            self._text_gap.observe(gap)

    def observe_traffic_alarm(self, traffic: AdapterTraffic) -> None:
        """An adapter began to alarm."""
        self._traffic_alarms.labels(traffic.alarm or "").inc()

    def count(self, endpoint: str, outcome: Outcome, *, seconds: float) -> None:
        """One request has ended."""
        self._requests.labels(endpoint, outcome.value).inc()
        self._e2e.labels(endpoint).observe(seconds)

    def observe_route(self, route: RouteResult) -> None:
        """One decision was made. A named model needs no embedding and does not count as one."""
        self._on_route(route)
        self._decisions.observe(route.decision)
        if route.session is not None:
            self._sessions.labels(route.session.verdict.value).inc()
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

    def _fit_generation(self) -> float:
        try:
            return float(self._catalog.view().router_generation)
        except RegistryUnavailable:
            return 0.0

    def _num_adapters(self) -> float:
        try:
            return float(len(self._catalog.view().adapters))
        except RegistryUnavailable:
            return 0.0

    def _ignored(self) -> float:
        try:
            return float(len(self._catalog.view().ignored))
        except RegistryUnavailable:
            return 0.0

    def _num_circuits(self, state: CircuitState) -> float:
        return float(sum(worker.circuit == state.value for worker in self._workers.fleet().workers))

    def _newcomers(self) -> float:
        router = self._router()
        return 0.0 if router is None else float(router.num_newcomers)

    def _recall(self) -> float:
        router = self._router()
        return 1.0 if router is None or router.index is None else router.index.recall

    def _is_index(self, kind: IndexKind) -> float:
        router = self._router()
        return float(router is not None and router.index is not None and router.index.kind == kind.value)

    def _router(self) -> SequenceRouter | None:
        try:
            return self._catalog.view().router
        except RegistryUnavailable:
            return None


class _Counts(Collector):
    """Counters that somebody else keeps, read at every scrape."""

    def __init__(self, counts: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        for name, (text, read) in self._counts.items():
            yield CounterMetricFamily(f"hilora_router_{name}", text, value=read())
