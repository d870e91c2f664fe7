"""`docker compose up` as the README has it: healthy, routed answers, an upload that survives."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest
from openai import OpenAI

from tests.builders.deploy_tools import ROOT
from tests.builders.light_load import ANSWER, PROMPT

pytestmark = pytest.mark.timeout(2400)

TESTBED = ROOT / "examples/testbed"


@pytest.fixture
def url(environment):
    return f"http://127.0.0.1:{environment['ROUTER_PORT']}"


def upload(environment, name):
    """An adapter by the `hilora` command, through the published port of the registry."""
    tasks = [json.loads(line) for line in (TESTBED / "tasks.jsonl").read_text().splitlines()]
    samples = [{"text": task["prompt"]} for task in tasks if task["task"] == "sort-letters" and task["split"] == "fit"]
    file = ROOT / ".pytest_cache" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    arguments = [
        "adapters",
        "add",
        str(TESTBED / "adapters/sort-letters"),
        "--name",
        name,
        "--samples",
        str(file),
        "--wait",
    ]
    where = [
        "--url",
        f"http://127.0.0.1:{environment['REGISTRY_PORT']}",
        "--admin-key",
        environment["HILORA_ADMIN_KEY"],
    ]
    return subprocess.run(
        [sys.executable, "-c", "from hilora_cli.main import main; main()", *arguments, *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_openai_client_gets_a_routed_answer(system, url):
    client = OpenAI(base_url=f"{url}/v1", api_key="none")

    answer = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=16
    )

    assert answer.choices[0].message.content == ANSWER
    assert answer.hilora["adapters"][0]["name"] == "reverse-letters"


def test_a_container_of_the_network_gets_one_too(system):
    code = (
        "import httpx; body = {'model': 'auto', 'prompt': %r, 'max_tokens': 16, 'temperature': 0};"
        "print(httpx.post('http://router:8000/v1/completions', json=body).json()['choices'][0]['text'].strip())"
    )

    said = system.podman("exec", system.container("registry"), "python", "-c", code % PROMPT)

    assert said == ANSWER


def test_all_shipped_adapters_are_there_and_a_second_seeding_adds_none(system):
    said = system("run", "--rm", "--no-deps", "testbed")

    assert "0 adapters added, 36 were there, 0 refused" in said


def test_workers_have_no_way_to_redis_and_redis_none_to_the_world(system):
    reach = "import socket; socket.create_connection(('{}', {}), timeout=3)"
    worker = system.container("worker")

    with pytest.raises(AssertionError, match=r"gaierror|timed out|unreachable|refused"):
        system.podman("exec", worker, "python", "-c", reach.format("redis", 6379))
    assert "ports" in json.dumps(system.podman.inspect(system.container("redis")).get("NetworkSettings", {})).lower()
    assert not any((system.podman.inspect(system.container("redis"))["NetworkSettings"].get("Ports") or {}).values())


def test_the_admin_door_wants_its_key(system, environment):
    url = f"http://127.0.0.1:{environment['REGISTRY_PORT']}/v1/adapters"

    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {environment['HILORA_ADMIN_KEY']}"}).status_code == 200


def test_an_uploaded_adapter_is_used_and_survives_down_and_up(system, url, environment):
    result = upload(environment, "my-sorter")
    assert result.returncode == 0, result.stdout + result.stderr
    question = {
        "model": "my-sorter",
        "prompt": "put the letters in order : d a c =",
        "max_tokens": 16,
        "temperature": 0,
    }
    before = _await_known(url, question)

    system("down", "-t", "50")
    system("up", "-d", "--no-build", "--pull", "never", seconds=400)
    system.await_healthy("redis", "registry", "router", "worker")

    after = _await_known(url, question)
    assert after["choices"][0]["text"] == before["choices"][0]["text"]
    assert after["hilora"]["adapters"][0]["name"] == "my-sorter"


def _await_known(url, question, tries=100):
    """The router learns of a new adapter a moment after the registry said READY."""
    import time

    for _ in range(tries):
        answer = httpx.post(f"{url}/v1/completions", json=question, timeout=60)
        if answer.status_code == 200:
            return answer.json()
        assert answer.status_code in {404, 503}, answer.text
        time.sleep(0.2)
    raise AssertionError(answer.text)


def test_containers_run_as_the_file_says(system):
    for service in ("registry", "registry-ingest", "router", "worker", "redis"):
        container = system.podman.inspect(system.container(service))
        assert container["HostConfig"]["ReadonlyRootfs"] is True, service
        assert container["EffectiveCaps"] in (None, []), service
        user = system.podman("exec", system.container(service), "sh", "-c", "id -u")
        assert user == ("999" if service == "redis" else "10001")
        assert container["HostConfig"]["Memory"] > 0
