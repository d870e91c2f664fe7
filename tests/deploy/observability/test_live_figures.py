"""The running system under load, scraped by a real Prometheus: every panel and every rule finds what it reads."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml

from tests.builders.certificates import Authority
from tests.builders.dashboards import panel_queries, selectors_of
from tests.builders.patience import patient
from tests.builders.prometheus import OBSERVABILITY, prometheus_server, rules
from tests.builders.system import TESTBED, RunningSystem, lines_of, task_lines, wait_until, write_samples

TASKS = sorted({line["task"] for line in task_lines("fit")})
SECONDS_OF_LOAD = 75
"""The lag of the catalogue looks a minute back."""
SECONDS_BETWEEN_ROUNDS = 8
"""Panels look a minute back: they need some rounds, not all that fit."""
MAX_IN_FLIGHT = 4

pytestmark = pytest.mark.timeout(600)


class Load:
    """Requests and uploads of every kind, one round after the other."""

    def __init__(self, system, folder):
        self._system = system
        self._folder = folder
        self._round = 0
        self.statuses = set()

    def round(self):
        self._round += 1
        number = self._round
        tasks = [TASKS[(number * 3 + step) % len(TASKS)] for step in range(3)]
        for step, task in enumerate(tasks):
            prompt = lines_of(task)[0]["prompt"]
            self._ask({"model": "auto", "prompt": prompt, "max_tokens": 16, "stream": step == 1})
            # Another topic each time: the session is planned anew; the same one once more: it is kept.
            for _ in range(2):
                self._ask({"model": "auto", "prompt": prompt, "max_tokens": 4}, {"X-Session-Id": "one"})
        self._ask({"model": tasks[0], "prompt": "x", "max_tokens": 4})
        self._ask({"model": "auto", "prompt": "a long poem about the sea in winter", "max_tokens": 4})
        self._ask({"model": "nobody", "prompt": "x"})
        self._ask({"model": "auto", "prompt": "late", "max_tokens": 64}, {"X-Request-Timeout": "0.001"})
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: self._ask({"model": "auto", "prompt": "crowd", "max_tokens": 24}), range(16)))
        jobs = [
            self._upload(f"good-{number}", tasks[0], spoilt=False),
            self._upload(f"bad-{number}", tasks[1], spoilt=True),
        ]
        wait_until(
            lambda: all(self._system.get(f"/v1/jobs/{job}")["state"] in {"READY", "FAILED"} for job in jobs),
            timeout_seconds=60,
            what="both uploads are done",
        )

    def _ask(self, body, headers=None):
        answer = httpx.post(
            f"{self._system.url}/v1/completions", json={"temperature": 0, **body}, headers=headers, timeout=patient(60)
        )
        self.statuses.add(answer.status_code)

    def _upload(self, name, task, *, spoilt):
        source = TESTBED / "adapters" / task
        weights = (source / "adapter_model.safetensors").read_bytes()
        files = [
            ("files", ("adapter_config.json", (source / "adapter_config.json").read_bytes())),
            ("files", ("adapter_model.safetensors", weights[:-4] + b"\x00\x00\xc0\x7f" if spoilt else weights)),
            ("samples", ("samples.jsonl", write_samples(self._folder / f"{name}.jsonl", task).read_bytes())),
        ]
        answer = httpx.post(f"{self._system.url}/v1/adapters", data={"name": name}, files=files, timeout=patient(60))
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]


def configuration(system):
    """The shipped one, at the pace of a test, with the one process in the place of three."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(OBSERVABILITY / "rules" / "*.yml")]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{system.port}"]}]
        names = f"{job['job_name'].replace('-', '_')}_.*"
        job["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": names, "action": "keep"}]
    return config


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observed")
    files = Authority().write(folder / "tls", "hilora")
    variables = {
        "HILORA_ROUTER_METRICS_ADAPTERS": "100",
        "HILORA_ROUTER_MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
        # Uploads are then checked by the ingest process, so that a bad one becomes a job that fails.
        "HILORA_REGISTRY_MAX_EAGER_BYTES": "0",
    }
    for service in ("ROUTER", "WORKER", "REGISTRY"):
        variables |= {
            f"HILORA_{service}_TLS_CERT_FILE": str(files.certificate),
            f"HILORA_{service}_TLS_KEY_FILE": str(files.key),
            f"HILORA_{service}_TLS_CA_FILE": str(files.authorities),
            f"HILORA_{service}_TLS_SERVER_NAME": "hilora",
        }
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        system = RunningSystem(data_dir=folder / "data").start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    load = Load(system, folder)
    with prometheus_server(folder / "prometheus", configuration(system)) as server:
        started = time.monotonic()
        while (seconds := time.monotonic() - started) < SECONDS_OF_LOAD:
            load.round()
            time.sleep(max(0.0, seconds + SECONDS_BETWEEN_ROUNDS - (time.monotonic() - started)))
        # So that the last counts of the load lie between two scrapes.
        time.sleep(2.5)
        assert {200, 400, 404, 429, 503} >= load.statuses >= {200, 404, 429}, load.statuses
        yield server
    assert system.terminate() == 0, system.log[-4000:]


def values(samples):
    return [float(sample["value"][1]) for sample in samples]


def test_every_panel_shows_something(prometheus):
    empty = []
    for query in panel_queries():
        found = values(prometheus.query(query.expression))
        if not found or all(math.isnan(value) for value in found):
            empty.append(str(query))
    assert empty == []


def test_every_recording_rule_records(prometheus):
    names = {rule["record"] for rule in rules() if "record" in rule}
    assert [name for name in sorted(names) if not values(prometheus.query(name))] == []


def test_every_series_that_a_rule_reads_is_there(prometheus):
    missing = {
        selector for rule in rules() for selector in selectors_of(rule["expr"]) if not prometheus.query(selector)
    }
    assert missing == set()


def test_a_series_that_is_not_there_would_be_missed(prometheus):
    assert prometheus.query('hilora_router_requests_total{outcome="ok"}')
    assert prometheus.query('hilora_router_requests_total{outcome="nothing"}') == []


def test_prometheus_evaluates_every_rule_without_a_fault(prometheus):
    groups = prometheus.api("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(rules())
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_shares_of_adapters_are_shares(prometheus):
    shares = {
        sample["metric"]["adapter"]: float(sample["value"][1])
        for sample in prometheus.query("hilora:router_adapter_share:ratio_rate15m")
    }
    assert len(shares) > 1
    assert all(0 <= share <= 1.01 for share in shares.values())


def test_what_is_wrong_with_this_system_is_noticed_and_nothing_else(prometheus):
    alarms = {alarm["labels"]["alertname"] for alarm in prometheus.api("alerts")["alerts"]}
    # Its certificate ends in a day, and it refuses most of what comes in crowds.
    assert {"HiloraCertificateExpires", "HiloraRequestsRefusedForLoad"} <= alarms
    for quiet in (
        "RouterAbsent",
        "TargetDown",
        "NoLiveWorkers",
        "WorkerStuck",
        "RedisAway",
        "CatalogLag",
        "CircuitOpen",
    ):
        assert f"Hilora{quiet}" not in alarms
