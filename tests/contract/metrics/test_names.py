"""The names of our figures: dashboards and alarms stand on them, so that a change here is a change for users."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from services.registry.entrypoints.metrics import RegistryMetrics
from services.router.decision_cache import DecisionCache
from services.router.entrypoints.router_metrics import RouterMetrics
from services.router.infra.batching_embedder import EmbedderFigures
from services.worker.engine.stats import EngineCounters, EngineStats
from services.worker.entrypoints.worker_metrics import WorkerMetrics
from services.worker.lora.pool.pool_stats import RocPoolStats
from tests.fakes.registry_stack import RegistryStack
from tests.fakes.router_ports import FakeWorkers, InMemoryCatalog, traffic_watch

ROUTER = {
    "adapter_decisions", "adapters", "adapters_ignored", "adapters_since_fit", "catalog_following",
    "catalog_generation", "circuits", "decide_seconds", "decisions", "e2e_latency_seconds", "encode_seconds",
    "decision_cache_hits", "encoder_cache_bytes", "encoder_cache_hits", "encoder_cache_texts", "encoder_passes",
    "encoder_refused", "encoder_shared", "encoder_texts", "encoder_waiting", "fit_generation", "generations",
    "index_kind", "index_recall", "inter_token_seconds", "out_of_distribution", "plans_repeated",
    "posterior_entropy_nats", "requests", "route_seconds", "sessions", "text_gap_seconds", "tokens", "top_posterior",
    "traffic_alarms", "traffic_alarms_raised", "ttft_seconds", "workers_configured", "workers_live",
}  # fmt: skip
WORKER = {
    "cached_tokens", "catalog_generation", "device_lost", "draining", "e2e_latency_seconds", "generation_tokens",
    "kv_cache_usage_ratio", "preemptions", "prompt_tokens", "queue_seconds", "queue_timeouts", "requests",
    "resident_adapters", "roc_pool_capacity_bytes", "roc_pool_evictions", "roc_pool_hits", "roc_pool_loads",
    "roc_pool_misses", "roc_pool_pinned_bytes", "roc_pool_used_bytes", "running", "slots", "steps", "stuck",
    "ttft_seconds", "waiting",
}  # fmt: skip
REGISTRY = {
    "adapters", "catalog_generation", "ingest_jobs", "ingest_outcomes", "ingest_queue_age_seconds",
    "ingest_queue_length", "ingest_seconds", "redis_up", "store_bytes", "store_free_bytes", "store_items",
    "upload_seconds", "uploads",
}  # fmt: skip
_DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"


def engine_stats(**changes) -> EngineStats:
    values = {
        "num_running": 2,
        "num_waiting": 3,
        "max_num_seqs": 16,
        "max_model_len": 512,
        "kv_cache_usage": 0.25,
        "resident_adapter_ids": ("sums@1", "poems@2"),
        "roc_pool_used_bytes": 10,
        "roc_pool_capacity_bytes": 20,
        "roc_pool": RocPoolStats(**dict.fromkeys(RocPoolStats.__dataclass_fields__, 0)),
        "is_draining": False,
        "is_stuck": True,
        "is_device_lost": False,
        "counters": EngineCounters(num_requests_finished=5, num_requests_failed=1),
    }
    return EngineStats(**(values | changes))


CERTIFICATE = {"certificate_expiration_timestamp_seconds"}
"""Only with TLS."""


def names(registry: CollectorRegistry) -> set[str]:
    return {family.name for family in registry.collect()}


async def shown_by(metrics: RegistryMetrics) -> set[str]:
    content, _ = await metrics.render()
    told = {family.name for family in text_string_to_metric_families(content.decode())}
    # Prometheus' own client says beside each counter and histogram since when it counts.
    return {name for name in told if not name.endswith("_created")}


def prefixed(service: str, figures: set[str]) -> set[str]:
    return {f"hilora_{service}_{figure}" for figure in figures}


def test_the_router_s_are_these():
    catalog = InMemoryCatalog()
    metrics = RouterMetrics(catalog=catalog, workers=FakeWorkers())
    metrics.watch_embedder(EmbedderFigures)
    metrics.watch_decisions(DecisionCache(max_entries=1))
    metrics.watch_traffic(traffic_watch(catalog))
    assert names(metrics._registry) == prefixed("router", ROUTER)
    metrics.watch_certificate(lambda: 1.0)
    assert names(metrics._registry) == prefixed("router", ROUTER | CERTIFICATE)


def test_a_worker_s_are_these():
    metrics = WorkerMetrics()
    metrics.attach(engine_stats, catalog_generation=lambda: 7)
    assert names(metrics.registry) == prefixed("worker", WORKER)
    metrics.watch_certificate(lambda: 1.0)
    assert names(metrics.registry) == prefixed("worker", WORKER | CERTIFICATE)


async def test_the_registry_s_are_these(tmp_path):
    stack = RegistryStack(tmp_path)
    assert await shown_by(stack.metrics) == prefixed("registry", REGISTRY)
    stack.metrics.watch_certificate(lambda: 1.0)
    assert await shown_by(stack.metrics) == prefixed("registry", REGISTRY | CERTIFICATE)


def test_the_documentation_lists_all_of_them_and_no_others():
    told = set(re.findall(r"`(hilora_(?:router|worker|registry)_[a-z0-9_]+)`", _DOCUMENT.read_text(encoding="utf-8")))
    services = {"router": ROUTER, "worker": WORKER, "registry": REGISTRY}
    assert told == set().union(*(prefixed(service, figures | CERTIFICATE) for service, figures in services.items()))


def test_under_vllm_s_names_there_is_what_its_schedulers_read():
    metrics = WorkerMetrics(as_vllm=True)
    metrics.attach(engine_stats, catalog_generation=lambda: 7)
    assert metrics.registry.get_sample_value("vllm:num_requests_waiting") == 3
    labels = {"max_lora": "3", "running_lora_adapters": "poems,sums", "waiting_lora_adapters": ""}
    assert metrics.registry.get_sample_value("vllm:lora_requests_info", labels) > 1_700_000_000
