"""A worker's figures over real HTTP."""

from __future__ import annotations

import httpx
import pytest

from services.worker.engine.output.events import Finished, FinishReason
from services.worker.entrypoints.worker_metrics import MetricsPort, WorkerMetrics
from tests.contract.metrics.test_names import engine_stats


@pytest.fixture
async def metrics():
    return WorkerMetrics()


async def test_figures_are_read_when_they_are_asked_for(metrics):
    port = MetricsPort(metrics.registry, host="127.0.0.1", port=0)
    await port.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{port.address}") as plain:
            before = (await plain.get("/metrics")).text
            assert "hilora_worker_running" not in before
            running = [1]
            metrics.attach(lambda: engine_stats(num_running=running[0]), catalog_generation=lambda: 7)
            assert "hilora_worker_running 1.0" in (await plain.get("/metrics")).text
            running[0] = 4
            text = (await plain.get("/metrics")).text
    finally:
        await port.stop(grace_seconds=0)
    assert "hilora_worker_running 4.0" in text
    assert "hilora_worker_stuck 1.0" in text
    assert "hilora_worker_catalog_generation 7.0" in text
    assert 'hilora_worker_requests_total{outcome="ok"} 5.0' in text


async def test_a_taken_port_is_an_error(metrics):
    port = MetricsPort(metrics.registry, host="127.0.0.1", port=0)
    await port.start()
    with pytest.raises(OSError, match="in use"):
        await MetricsPort(metrics.registry, host="127.0.0.1", port=int(port.address.rpartition(":")[2])).start()
    await port.stop(grace_seconds=0)
    await port.stop(grace_seconds=0)


async def test_latencies_of_answers_are_kept(metrics):
    event = Finished(
        finish_reason=FinishReason.STOP,
        num_prompt_tokens=3,
        num_completion_tokens=2,
        ttft_seconds=0.2,
        e2e_latency_seconds=0.4,
        budgets_used=(),
    )
    metrics.observe(event)
    assert metrics.registry.get_sample_value("hilora_worker_ttft_seconds_sum") == 0.2
    assert metrics.registry.get_sample_value("hilora_worker_e2e_latency_seconds_sum") == 0.4
