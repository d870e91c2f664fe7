"""docker-compose.yml: what Docker Compose itself says of it, and what it must promise."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.builders.deploy_files import COMPOSE_FILES, SECRETS, compose, run
from tests.builders.deploy_tools import ROOT, TOOLS, tool


def config(*arguments, **environment):
    own = TOOLS / "bin" / "docker-compose"
    command = [str(own)] if own.exists() else [tool("docker"), "compose"]
    return run([*command, *arguments, "config"], **environment)


def test_the_schema_of_compose_holds():
    result = run([tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILES[0])])

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_stops_it_with_a_hint(missing, tmp_path):
    others = {name: value for name, value in SECRETS.items() if name != missing}

    result = config("--env-file", "/dev/null", "-f", str(COMPOSE_FILES[0]), **others)

    assert result.returncode != 0
    assert f"{missing} is missing a value: set it in .env" in result.stderr


def test_the_example_names_every_secret_and_holds_none():
    lines = [line.strip() for line in (ROOT / ".env.example").read_text().splitlines()]
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert {name for name, value in values.items() if value == ""} >= SECRETS.keys()
    assert set(values) - SECRETS.keys() == {"HF_TOKEN", "COMPOSE_PROFILES"}


def test_the_environment_file_is_not_committed():
    assert subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT, check=False).returncode == 0


def test_only_loopback_is_published():
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_containers_are_hardened_alike():
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert "privileged" not in service and "network_mode" not in service


def test_who_waits_for_whom_is_healthy_first():
    services = compose()["services"]
    for name in ("registry", "router"):
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    for name in ("router", "registry-ingest", "testbed"):
        assert services[name]["depends_on"]["registry"]["condition"] == "service_healthy"


def test_containers_get_longer_than_their_service_takes_to_drain():
    from services.registry.settings import RegistrySettings
    from services.router.settings import RouterSettings
    from services.worker.settings import WorkerSettings

    longest = {
        "router": RouterSettings.model_fields["drain_seconds"].default,
        "registry": RegistrySettings.model_fields["drain_grace_seconds"].default,
        "worker": WorkerSettings.model_fields["drain_seconds"].default,
        "worker-gpu": WorkerSettings.model_fields["drain_seconds"].default,
    }
    for name, seconds in longest.items():
        grace = compose()["services"][name]["stop_grace_period"]
        assert _seconds(grace) >= seconds + 10, name


def _seconds(duration):
    minutes, _, rest = duration.rpartition("m")
    return int(minutes or 0) * 60 + int(rest.rstrip("s") or 0)


def test_redis_is_reached_by_those_who_need_it_alone():
    services = compose()["services"]
    with_redis = {name for name, service in services.items() if "data" in service.get("networks", {})}

    assert with_redis == {"redis", "registry", "registry-ingest", "router"}
    assert "ports" not in services["redis"]
    assert compose()["networks"]["data"]["internal"] is True


def test_both_kinds_of_worker_answer_to_the_name_the_router_looks_up():
    services = compose()["services"]
    target = services["router"]["environment"]["HILORA_ROUTER_WORKER_ADDRESSES"]

    for name in ("worker", "worker-gpu"):
        assert target == f"dns:///{services[name]['networks']['services']['aliases'][0]}:50053"


def test_images_are_built_from_the_dockerfiles_and_others_have_a_tag():
    for name, service in compose()["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name
        else:
            assert ":" in service["image"].rpartition("/")[2] and not service["image"].endswith(":latest")


def test_two_replicas_stand_behind_the_balancer():
    files = [part for file in COMPOSE_FILES for part in ("-f", str(file))]
    result = config(*files, "--profile", "cpu", **SECRETS)
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]

    assert services["router"]["scale"] == services["worker"]["scale"] == 2
    # The port belongs to the balancer; two routers could not have it.
    assert "ports" not in services["router"]
    assert services["balancer"]["ports"][0]["published"] == "8000"


def test_mounted_files_exist():
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert (ROOT / volume["source"]).exists(), f"{name}: {volume['source']}"
