"""Every variable in compose and in the manifests is a setting of its service, with a value that the service accepts."""

from __future__ import annotations

import os

import pytest

from services.registry.settings import RegistrySettings
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings
from tests.builders.deploy_files import OVERLAYS, compose, environment_of, pod_of, rendered, workloads

SETTINGS = {
    "HILORA_ROUTER_": RouterSettings,
    "HILORA_REGISTRY_": RegistrySettings,
    "HILORA_WORKER_": WorkerSettings,
}
# Not of a service: the `hilora` command's, the hub library's, other programs'.
OTHERS = {"HILORA_ADMIN_KEY", "HF_TOKEN", "REDISCLI_AUTH"}
OTHER_PREFIXES = ("GF_",)


def settings_of(variables, monkeypatch):
    """What the service makes of its variables; fails as its start would."""
    for name in list(os.environ):
        if name.startswith("HILORA_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (settings,) = [kind for prefix, kind in SETTINGS.items() if any(name.startswith(prefix) for name in variables)]
    return settings()


def checked(variables, monkeypatch):
    known = {
        name
        for name in variables
        if name in OTHERS or name.startswith(OTHER_PREFIXES) or any(name.startswith(prefix) for prefix in SETTINGS)
    }
    assert set(variables) == known, "neither ours nor known as another's"
    if any(name.startswith(tuple(SETTINGS)) for name in variables):
        return settings_of(variables, monkeypatch)
    return None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_variables_are_settings(overlay, monkeypatch):
    documents = rendered(overlay)
    services = 0
    for workload in workloads(documents):
        for container in pod_of(workload)["containers"]:
            variables = environment_of(container, documents)
            if overlay == "alternatives" or "BASE_MODEL" in "".join(variables):
                services += checked(variables, monkeypatch) is not None
            else:
                checked(variables, monkeypatch)
    assert services >= 3


def test_the_compose_files_variables_are_settings(monkeypatch):
    kinds = {
        name: checked(service.get("environment") or {}, monkeypatch) for name, service in compose()["services"].items()
    }

    assert {name for name, kind in kinds.items() if kind} == {
        "router",
        "registry",
        "registry-ingest",
        "worker",
        "worker-gpu",
    }


def test_an_unknown_variable_would_be_found(monkeypatch):
    variables = environment_of(pod_of(workloads(rendered("local"))[0])["containers"][0], rendered("local"))

    with pytest.raises(Exception, match="HILORA_ROUTER_WORKERS"):
        settings_of({**variables, "HILORA_ROUTER_WORKERS": "worker:50053"}, monkeypatch)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_doors_are_open_to_others_and_closed_without_a_key(overlay, monkeypatch):
    documents = rendered(overlay)
    for workload in workloads(documents):
        for container in pod_of(workload)["containers"]:
            variables = environment_of(container, documents)
            assert all(value == "0.0.0.0" for name, value in variables.items() if name.endswith("_HOST"))
            assert not [name for name in variables if "ALLOW_ANONYMOUS" in name]
            if "HILORA_ROUTER_RPC_PORT" in variables:
                assert "HILORA_ROUTER_API_KEYS_FILE" in variables
