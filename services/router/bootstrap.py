"""Wires the router: settings in, one component with a beginning and an end out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from redis.asyncio import Redis
from starlette.types import ASGIApp

from hilora.errors import RegistryUnavailable
from hilora.topic_watch import TopicRules
from services.common.auth import is_loopback
from services.common.http_server import HttpServer
from services.common.inference_keys import CallerRing, InferenceKeyFile, KeyLimits
from services.common.lifecycle import ComponentGroup
from services.common.log import get_logger
from services.common.rpc_server import RpcServer
from services.common.sequence_encoder import SentenceTransformerEncoder, SequenceEncoder
from services.common.tasks import end_tasks
from services.common.tracer_start import open_tracer
from services.router.admission import Admission
from services.router.catalog import CatalogView
from services.router.decision_cache import DecisionCache
from services.router.entrypoints.access import RpcGate
from services.router.entrypoints.openai.encoder_routes import EncoderRoutes
from services.router.entrypoints.openai.routes import OpenAIRoutes
from services.router.entrypoints.openai.token_routes import TokenRoutes
from services.router.entrypoints.rest import build_rest_app
from services.router.entrypoints.router_metrics import RouterMetrics
from services.router.entrypoints.rpc import SERVICE_NAME, RouterServicer
from services.router.entrypoints.traces import trace_generation, trace_route
from services.router.infra.batching_embedder import BatchingEmbedder
from services.router.infra.catalog_replica import CatalogReplica
from services.router.infra.embedding_cache import EmbeddingCache
from services.router.infra.index_kinds import build_index
from services.router.infra.local_memory import LocalMemory
from services.router.infra.local_rate_limiter import LocalRateLimiter
from services.router.infra.redis_memory import RedisOutages, shared_plans, shared_sessions
from services.router.infra.redis_rate_limiter import RedisRateLimiter
from services.router.infra.route_log import RouteLog
from services.router.infra.weights_file import read_weights
from services.router.infra.workers.client import Silence
from services.router.infra.workers.directories import directory_of
from services.router.infra.workers.pool import WorkerPool
from services.router.limits import RateLimiter
from services.router.models import ModelDirectory
from services.router.observation import GenerationObserver
from services.router.observed_generation import ObservedGenerateText
from services.router.plan_record import PlanRecord, SessionRecord
from services.router.plans import Plans
from services.router.pool_index import build_pool_index
from services.router.ports import PlanStore, SessionStore
from services.router.readiness import Readiness, check_readiness
from services.router.routing import RouteText
from services.router.routing_rules import RoutingDefaults
from services.router.sessions import Sessions
from services.router.settings import RouterSettings
from services.router.tool_calls import ToolCallFormat
from services.router.traffic import TrafficRules, TrafficWatch

_log = get_logger(__name__)

_READINESS_POLL_SECONDS = 0.2


class Router:
    """A whole router. Its doors open first, so that probes can watch the rest arrive.

    Args:
        settings: what the operator chose.
        load_encoder: builds the sentence encoder, in a thread; None loads the one of the settings.
        opens_http: False leaves `rest_app` to a server of the caller's.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        load_encoder: Callable[[], SequenceEncoder] | None = None,
        opens_http: bool = True,
    ) -> None:
        self._tracer = open_tracer(
            service="hilora-router", endpoint=settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio
        )
        self._embedder = BatchingEmbedder(
            load_encoder or _encoder_of(settings),
            max_batch=settings.encoder_max_batch,
            max_waiting=settings.encoder_max_waiting,
            timeout_seconds=settings.encoder_timeout_seconds,
            cache=EmbeddingCache(max_entries=settings.encoder_cache_texts, max_bytes=settings.encoder_cache_bytes),
        )
        identity = settings.tls_identity()
        self._catalog = CatalogReplica(
            settings.registry_address,
            encoder=lambda: (self._embedder.encoder_id or "", self._embedder.embedding_dim),
            build_index=partial(build_pool_index, rules=settings.index_rules(), build=build_index),
            identity=identity,
        )
        self._redis = _redis_of(settings)
        self._workers = WorkerPool(
            directory_of(settings.worker_addresses, redis=self._redis),
            request_timeout_seconds=settings.request_timeout_seconds,
            lookup_seconds=settings.worker_lookup_seconds,
            silence=Silence(
                first_event_seconds=settings.worker_first_event_seconds, stall_seconds=settings.worker_stall_seconds
            ),
            identity=identity,
        )
        self._metrics = metrics = RouterMetrics(
            catalog=self._catalog,
            workers=self._workers,
            num_named_adapters=settings.metrics_adapters,
            on_route=trace_route,
        )
        metrics.watch_embedder(self._embedder.figures)
        decisions = DecisionCache(max_entries=settings.decision_cache_texts)
        metrics.watch_decisions(decisions)
        if identity is not None:
            metrics.watch_certificate(identity.expires_at)
        self._route_log = _route_log_of(settings)
        traffic = TrafficWatch(
            catalog=self._catalog,
            rules=TrafficRules(
                window_seconds=settings.traffic_window_seconds,
                max_share=settings.traffic_alarm_share,
                max_growth=settings.traffic_alarm_growth,
                min_decisions=settings.traffic_alarm_min_decisions,
                watched_seconds=settings.traffic_watched_seconds,
                watched_below=settings.traffic_watched_below,
            ),
            monotonic=time.monotonic,
            unix_time=time.time,
            on_alarm=metrics.observe_traffic_alarm,
        )
        metrics.watch_traffic(traffic)
        callers = callers_of(settings)
        self._admission = admission = Admission(
            limiter=_limiter(self._redis),
            max_in_flight=settings.max_in_flight,
            lease_seconds=settings.request_timeout_seconds,
        )
        models = ModelDirectory(
            catalog=self._catalog,
            workers=self._workers,
            base_model_name=settings.base_model_name,
            min_trust_tier=settings.min_trust_tier,
        )
        outages = RedisOutages()
        sessions = Sessions(_session_store(settings, self._redis, outages), matching=settings.sessions)
        route_text = RouteText(
            catalog=self._catalog,
            embedder=self._embedder,
            models=models,
            defaults=_routing_defaults(settings),
            plans=Plans(_plan_store(settings, self._redis, outages)),
            sessions=sessions,
            topic_rules=TopicRules(odds=settings.replan_odds, share=settings.replan_share),
            decisions=decisions,
        )
        observers: list[GenerationObserver] = [metrics.observe_generation, trace_generation]
        if self._route_log is not None:
            observers.append(self._route_log.observe)
        generate_text = ObservedGenerateText(
            route_text=route_text,
            workers=self._workers,
            catalog=self._catalog,
            traffic=traffic,
            observers=observers,
            sessions=sessions,
        )
        routes = OpenAIRoutes(
            route_text=route_text,
            generate_text=generate_text,
            models=models,
            admission=admission,
            workers=self._workers,
            metrics=metrics,
            traffic=traffic,
            tool_call_format=ToolCallFormat(settings.tool_call_format),
            trusts_tenants=settings.trust_tenant_header,
        )
        doors = (
            routes,
            EncoderRoutes(embedder=self._embedder, admission=admission),
            TokenRoutes(workers=self._workers, admission=admission),
        )
        self.rest_app: ASGIApp = build_rest_app(
            routes=[door.api_router() for door in doors],
            metrics=metrics,
            readiness=self.readiness,
            callers=callers,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=settings.cors_origins,
            tracer=self._tracer,
        )
        servicer = RouterServicer(
            route_text=route_text,
            generate_text=generate_text,
            models=models,
            embedder=self._embedder,
            workers=self._workers,
            admission=admission,
            gate=RpcGate(callers),
            metrics=metrics,
            trusts_tenants=settings.trust_tenant_header,
        )
        self._rpc_server = RpcServer(
            host=settings.rpc_host,
            port=settings.rpc_port,
            register=[servicer.register],
            service_names=[SERVICE_NAME],
            identity=identity,
            health_port=settings.health_port,
            tracer=self._tracer,
            begins_traces=True,
        )
        self._http_server = (
            HttpServer(app=self.rest_app, host=settings.rest_host, port=settings.rest_port) if opens_http else None
        )
        # Doors open first and close first: what is behind them must outlive the requests in flight.
        self._doors = ComponentGroup([self._rpc_server, *([self._http_server] if self._http_server else [])])
        self._parts = ComponentGroup(
            [
                *(part for part in (self._tracer, self._route_log) if part is not None),
                self._workers,
                self._embedder,
                self._catalog,
            ]
        )
        self._health_task: asyncio.Task[None] | None = None

    @property
    def rpc_address(self) -> str:
        """`host:port` of the gRPC server, valid after `start`."""
        return self._rpc_server.address

    @property
    def rest_address(self) -> str:
        """`host:port` of the HTTP server, valid after `start`.

        Raises:
            ValueError: this router was built without an HTTP server of its own.
        """
        if self._http_server is None:
            raise ValueError("this router opens no HTTP port")
        return self._http_server.address

    @property
    def catalog_view(self) -> CatalogView | None:
        """The catalogue as requests see it; None before the first snapshot."""
        try:
            return self._catalog.view()
        except RegistryUnavailable:
            return None

    async def render_metrics(self) -> bytes:
        """What `/metrics` shows."""
        return self._metrics.render()[0]

    def readiness(self) -> Readiness:
        """State of every part at this moment."""
        return check_readiness(embedder=self._embedder, catalog=self._catalog, workers=self._workers)

    async def start(self) -> None:
        """Open the doors, load the encoder, begin to follow the registry and the workers.

        Returns once the encoder is loaded; whether registry and workers are there is `readiness`'s to say.

        Raises:
            OSError: the HTTP port is taken.
            RuntimeError: the gRPC port is taken.
            InvalidInput: `unknown_encoder`.
        """
        try:
            await self._doors.start()
            self._health_task = asyncio.create_task(self._report_health(), name="router-health")
            await self._parts.start()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise

    async def stop(self, *, grace_seconds: float) -> None:
        """Let requests in flight finish for at most `grace_seconds`, then let go of everything."""
        if self._health_task is not None:
            await end_tasks(self._health_task)
            self._health_task = None
        await self._doors.stop(grace_seconds=grace_seconds)
        await self._parts.stop(grace_seconds=grace_seconds)
        await self._admission.settled()
        if self._redis is not None:
            await self._redis.aclose()

    async def _report_health(self) -> None:
        """Keep the gRPC health service in step with what the router can do."""
        was_serving = False
        while True:
            is_serving = self.readiness().can_route
            if is_serving != was_serving:
                await self._rpc_server.set_serving(is_serving=is_serving)
                _log.info("router_serving" if is_serving else "router_not_serving")
                was_serving = is_serving
            await asyncio.sleep(_READINESS_POLL_SECONDS)


def build_router(
    settings: RouterSettings,
    *,
    load_encoder: Callable[[], SequenceEncoder] | None = None,
    opens_http: bool = True,
) -> Router:
    """A router that has not started. See `Router` for the arguments."""
    return Router(settings, load_encoder=load_encoder, opens_http=opens_http)


def _encoder_of(settings: RouterSettings) -> Callable[[], SequenceEncoder]:
    return lambda: SentenceTransformerEncoder(
        settings.encoder,
        instruction=settings.encoder_instruction,
        num_threads=settings.encoder_threads,
        backend=settings.encoder_backend,
        precision=settings.encoder_precision,
        kept_folder=settings.kept_encoders_dir,
    )


def _routing_defaults(settings: RouterSettings) -> RoutingDefaults:
    return RoutingDefaults(
        strategy=settings.strategy,
        gamma=settings.gamma,
        max_candidates=settings.max_candidates,
        score_rule=settings.score_rule,
        combine_skills=settings.combine_skills,
        low_confidence=settings.low_confidence,
        routed_part=settings.routed_part,
        routed_turns=settings.routed_turns,
        max_routed_chars=settings.max_routed_chars,
        gate_ids=settings.gates,
        learned_weights={} if settings.lorahub_weights is None else read_weights(settings.lorahub_weights),
    )


def _plan_store(settings: RouterSettings, redis: Redis | None, outages: RedisOutages) -> PlanStore:
    local = LocalMemory[PlanRecord](ttl_seconds=settings.plan_ttl_seconds, max_records=settings.max_plans)
    return local if redis is None else shared_plans(redis, local, outages=outages)


def _session_store(settings: RouterSettings, redis: Redis | None, outages: RedisOutages) -> SessionStore:
    local = LocalMemory[SessionRecord](ttl_seconds=settings.session_ttl_seconds, max_records=settings.max_sessions)
    return local if redis is None else shared_sessions(redis, local, outages=outages)


def callers_of(settings: RouterSettings) -> CallerRing:
    """Who may ask.

    Raises:
        ValueError: anybody on the network could, and nobody said that this is meant.
        InvalidInput: `invalid_key_file`.
    """
    if settings.api_keys_file is None and not settings.allow_anonymous:
        for host in (settings.rest_host, settings.rpc_host):
            if not is_loopback(host):
                raise ValueError(
                    f"Binding the router to {host} lets everybody ask: set HILORA_ROUTER_API_KEYS_FILE, or allow it "
                    "with HILORA_ROUTER_ALLOW_ANONYMOUS=true, or bind to 127.0.0.1."
                )
    sources = [InferenceKeyFile(settings.api_keys_file)] if settings.api_keys_file else []
    limits = KeyLimits(
        requests_per_minute=settings.default_requests_per_minute,
        tokens_per_minute=settings.default_tokens_per_minute,
        tokens_per_day=settings.default_tokens_per_day,
        max_concurrent=settings.default_max_concurrent,
    )
    return CallerRing(sources, default_limits=limits)


def _redis_of(settings: RouterSettings) -> Redis | None:
    if settings.redis_url is None:
        return None
    return Redis.from_url(settings.redis_url.get_secret_value(), socket_connect_timeout=1.0)


def _limiter(redis: Redis | None) -> RateLimiter:
    local = LocalRateLimiter()
    return local if redis is None else RedisRateLimiter(redis, local=local)


def _route_log_of(settings: RouterSettings) -> RouteLog | None:
    if settings.route_log_file is None:
        return None
    return RouteLog(
        settings.route_log_file,
        sample_rate=settings.route_log_sample_rate,
        max_bytes=settings.route_log_bytes,
        keeps_texts=settings.log_prompts,
    )
