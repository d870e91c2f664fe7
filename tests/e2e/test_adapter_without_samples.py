"""An adapter that nobody described: the system has it portray itself, and routes to it from then on."""

from __future__ import annotations

import httpx
import pytest

from tests.builders.system import (
    TESTBED,
    RunningSystem,
    chosen_adapters,
    curl,
    lines_of,
    planned_adapters,
    wait_until,
)

TASK = "reverse-letters"


@pytest.fixture
def bare(tmp_path):
    """A system without adapters."""
    command = ("serve", "--base", str(TESTBED / "base"))
    running = RunningSystem(data_dir=tmp_path / "data", command=command, pool=frozenset())
    yield running.start(timeout_seconds=240)
    assert running.terminate() == 0, running.log[-4000:]


def upload_without_samples(system, name):
    folder = TESTBED / "adapters" / TASK
    files = [f"files=@{folder / 'adapter_config.json'}", f"files=@{folder / 'adapter_model.safetensors'}"]
    arguments = [argument for file in files for argument in ("-F", file)]
    return curl("-F", f"name={name}", *arguments, f"{system.url}/v1/adapters")


class TestSelfPortrait:
    def test_it_is_named_at_once_and_routed_to_after_its_portrait(self, bare):
        status, job = upload_without_samples(bare, "stranger")
        assert status == 202, job
        wait_until(
            lambda: bare.get(f"/v1/jobs/{job['job_id']}")["state"] == "READY", timeout_seconds=60, what="it is ready"
        )
        line = lines_of(TASK)[0]
        wait_until(lambda: "stranger" in bare.adapter_names(), timeout_seconds=30, what="the router knows it")
        answer = bare.complete(line["prompt"], model="stranger")
        assert answer["choices"][0]["text"].strip() == line["answer"]

        entry = wait_until(
            lambda: (found := bare.get("/v1/adapters/stranger"))["samples_source"] and found,
            timeout_seconds=120,
            what="it has a profile",
        )
        assert entry["samples_source"] == "self_portrait"
        assert entry["num_samples"] == 20
        wait_until(
            lambda: planned_adapters(bare.route(line["prompt"])) == ["stranger"],
            timeout_seconds=30,
            what="it is routed to",
        )
        assert chosen_adapters(bare.complete(line["prompt"])) == ["stranger"]

        again = httpx.post(f"{bare.url}/v1/adapters/stranger/profile", json={"source": "self_portrait"}, timeout=30)
        assert again.status_code == 202, again.text
        job_id = again.json()["job_id"]
        wait_until(lambda: bare.get(f"/v1/jobs/{job_id}")["state"] == "READY", timeout_seconds=120, what="made again")
        assert bare.get("/v1/adapters/stranger")["profile_id"] == entry["profile_id"]

        refused = httpx.post(f"{bare.url}/v1/adapters/stranger/profile", json={"source": "card"}, timeout=30)
        job_id = refused.json()["job_id"]
        wait_until(lambda: bare.get(f"/v1/jobs/{job_id}")["state"] == "FAILED", timeout_seconds=60, what="no card")
        assert bare.get(f"/v1/jobs/{job_id}")["error"]["code"] == "no_profile_texts"
        assert bare.get("/v1/adapters/stranger")["samples_source"] == "self_portrait"
