"""The rendered production pods run under their own securityContext, with their settings, keys and certificates."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest

from tests.builders.deploy_files import pod_of, rendered, workloads
from tests.builders.deploy_tools import ROOT
from tests.builders.light_load import ANSWER, PROMPT
from tests.builders.played_pods import ADMIN_KEY, INFERENCE_KEY, PlayedPods
from tests.builders.ports import free_port
from tests.builders.router_figures import has_fitted

pytestmark = pytest.mark.timeout(1200)

CONTAINERS = [
    ("hilora-redis", "redis"),
    ("hilora-registry", "registry"),
    ("hilora-registry", "ingest"),
    ("hilora-worker", "worker"),
    ("hilora-router", "router"),
]
each_container = pytest.mark.parametrize(("pod", "container"), CONTAINERS)


@pytest.fixture(scope="module")
def ports():
    return {8000: free_port(), 8081: free_port()}


@pytest.fixture(scope="module")
def pods(podman, images, ports, tmp_path_factory):
    with PlayedPods(podman, tmp_path_factory.mktemp("pods"), subnet="10.189.7", ports=ports).running():
        _await_answer(f"http://127.0.0.1:{ports[8000]}/readyz", podman)
        yield podman


def _await_answer(url, podman, seconds=240):
    deadline = time.monotonic() + seconds
    said = ""
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, timeout=5)
            said = answer.text
            if answer.status_code == 200:
                return
        except httpx.HTTPError as error:
            said = str(error)
        time.sleep(1)
    logs = [podman("logs", "--tail", "15", f"{pod}-{name}", check=False, with_errors=True) for pod, name in CONTAINERS]
    raise AssertionError("\n".join([said, *logs]))


def specified(pod, container):
    (workload,) = [one for one in workloads(rendered("production")) if one["metadata"]["name"] == pod]
    (spec,) = [one for one in pod_of(workload)["containers"] if one["name"] == container]
    return pod_of(workload)["securityContext"], spec


def test_no_container_of_the_overlay_is_left_out():
    of_overlay = [
        (workload["metadata"]["name"], container["name"])
        for workload in workloads(rendered("production"))
        for container in pod_of(workload)["containers"]
    ]

    assert sorted(of_overlay) == sorted(CONTAINERS)


@each_container
def test_the_security_context_holds(pods, pod, container):
    context, spec = specified(pod, container)
    name = f"{pod}-{container}"
    status = dict(
        line.split(":\t", 1) for line in pods("exec", name, "cat", "/proc/1/status").splitlines() if ":\t" in line
    )
    written = pods("exec", name, "sh", "-c", "touch /x 2>&1 || true; touch /tmp/x && echo tmp")

    assert status["Uid"].split()[0] == str(context["runAsUser"])
    assert status["Gid"].split()[0] == str(context["runAsGroup"])
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "Read-only file system" in written and written.endswith("tmp")
    limit = pods.inspect(name)["HostConfig"]["Memory"]
    assert limit == _bytes(spec["resources"]["limits"]["memory"])


def _bytes(quantity):
    units = {"Mi": 1 << 20, "Gi": 1 << 30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def await_fit(url, seconds=120):
    deadline = time.monotonic() + seconds
    while not has_fitted(httpx.get(url).text, num_adapters=36):
        assert time.monotonic() < deadline, "the router did not come to know all adapters"
        time.sleep(0.5)


def test_a_routed_answer_comes_through_certificates_keys_and_policies_of_access(pods, ports):
    registry = f"http://127.0.0.1:{ports[8081]}"
    where = ["--url", registry, "--admin-key", ADMIN_KEY]
    command = ["from hilora_cli.main import main; main()", "adapters", "add-pool", "examples/testbed", *where]
    seeded = subprocess.run(
        [sys.executable, "-c", *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    await_fit(f"http://127.0.0.1:{ports[8000]}/metrics")
    url = f"http://127.0.0.1:{ports[8000]}/v1/completions"
    body = {"model": "auto", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}

    assert httpx.post(url, json=body).status_code == 401
    headers = {"Authorization": f"Bearer {INFERENCE_KEY}"}
    answer = httpx.post(url, json=body, headers=headers, timeout=60)

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].strip() == ANSWER
    assert answer.json()["hilora"]["adapters"][0]["name"] == "reverse-letters"


def test_without_a_certificate_nobody_speaks_with_registry_or_worker(pods):
    code = (
        "import grpc, sys; channel = grpc.insecure_channel(sys.argv[1]);"
        "grpc.channel_ready_future(channel).result(timeout=5)"
    )
    for address in ("hilora-registry:50052", "hilora-workers:50053"):
        with pytest.raises(AssertionError, match="FutureTimeoutError"):
            pods("exec", "hilora-router-router", "python", "-c", code, address)


@pytest.mark.parametrize(
    ("pod", "container", "port"),
    [("hilora-router", "router", 50061), ("hilora-registry", "registry", 50062), ("hilora-worker", "worker", 50063)],
)
def test_the_ports_of_the_probes_answer_as_the_manifests_ask(pods, pod, container, port):
    _, spec = specified(pod, container)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        grpc = spec[probe]["grpc"]
        assert grpc["port"] == port
        target = f"grpc://127.0.0.1:{grpc['port']}/{grpc.get('service', '')}"
        pods("exec", f"{pod}-{container}", "python", "-m", "services.common.probe", target)


def test_they_end_by_themselves_within_their_grace(pods):
    for pod, container in CONTAINERS:
        began = time.monotonic()
        pods("stop", "-t", "60", f"{pod}-{container}")
        assert time.monotonic() - began < 50, f"{pod}-{container} had to be killed"
        assert pods.inspect(f"{pod}-{container}")["State"]["ExitCode"] in {0, 143}
