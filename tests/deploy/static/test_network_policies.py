"""The policies allow what the services do, and nothing else among them."""

from __future__ import annotations

import pytest

from tests.builders.deploy_files import labels_of, of_kind, pod_of, rendered, selects, workloads

# Who calls whom, by docs/architecture.md: (caller, called, port).
CALLS = {
    ("hilora-router", "hilora-registry", 50052),
    ("hilora-router", "hilora-worker", 50053),
    ("hilora-router", "hilora-redis", 6379),
    ("hilora-worker", "hilora-registry", 50052),
    ("hilora-registry", "hilora-worker", 50053),
    ("hilora-registry", "hilora-redis", 6379),
}
NAMES = ("hilora-router", "hilora-worker", "hilora-registry", "hilora-redis")


@pytest.fixture
def cluster():
    documents = rendered("production")
    pods = {w["metadata"]["name"]: w for w in workloads(documents)}
    return pods, of_kind(documents, "NetworkPolicy")


def _numbers(rule, workload):
    """The ports of a rule as numbers; names are those of the called pod's containers."""
    named = {p["name"]: p["containerPort"] for c in pod_of(workload)["containers"] for p in c.get("ports", [])}
    return {named.get(port["port"], port["port"]) for port in rule["ports"]}


def allows(policies, pods, caller, called, port):
    """Whether packets may leave the one and enter the other."""
    sides = {"egress": (caller, called, "to"), "ingress": (called, caller, "from")}
    for side, (own, peer, word) in sides.items():
        applied = [p for p in policies if selects(p["spec"]["podSelector"], labels_of(pods[own]))]
        assert [p for p in applied if side.capitalize() in p["spec"]["policyTypes"]], "nothing denies by default"
        if not any(
            port in _numbers(rule, pods[called])
            and any(
                "podSelector" in peer_ and selects(peer_["podSelector"], labels_of(pods[peer])) for peer_ in rule[word]
            )
            for policy in applied
            for rule in policy["spec"].get(side, [])
        ):
            return False
    return True


def test_exactly_the_calls_of_the_services_are_allowed(cluster):
    pods, policies = cluster
    ports = {
        name: {p["containerPort"] for c in pod_of(pods[name])["containers"] for p in c.get("ports", [])}
        for name in NAMES
    }

    allowed = {
        (caller, called, port)
        for caller in NAMES
        for called in NAMES
        if caller != called
        for port in ports[called]
        if allows(policies, pods, caller, called, port)
    }

    assert allowed == CALLS


def test_everybody_may_ask_for_names(cluster):
    pods, policies = cluster
    for name in NAMES:
        applied = [p for p in policies if selects(p["spec"]["podSelector"], labels_of(pods[name]))]
        ports = {
            (port["protocol"], port["port"])
            for policy in applied
            for rule in policy["spec"].get("egress", [])
            for port in rule["ports"]
        }
        assert {("UDP", 53), ("TCP", 53)} <= ports


def test_the_world_is_reached_on_443_alone_and_no_private_address_with_it(cluster):
    _, policies = cluster
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                assert [port["port"] for port in rule["ports"]] == [443]
                assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(block["except"])


def test_nobody_from_outside_reaches_registry_worker_or_redis(cluster):
    pods, policies = cluster
    for name in ("hilora-registry", "hilora-worker", "hilora-redis"):
        for policy in (p for p in policies if selects(p["spec"]["podSelector"], labels_of(pods[name]))):
            for rule in policy["spec"].get("ingress", []):
                namespaces = [
                    peer["namespaceSelector"]["matchLabels"] for peer in rule["from"] if "namespaceSelector" in peer
                ]
                assert all(labels == {"kubernetes.io/metadata.name": "monitoring"} for labels in namespaces)
