"""What one object says of another is true: selectors, ports, names, times."""

from __future__ import annotations

import pytest
import yaml

from tests.builders.deploy_files import (
    OVERLAYS,
    environment_of,
    labels_of,
    named,
    of_kind,
    pod_of,
    rendered,
    selects,
    workloads,
)
from tests.builders.deploy_tools import ROOT

IMAGES = {"hilora-router", "hilora-registry", "hilora-worker", "hilora-testbed"}
# Made by hand or by cert-manager, never by these files.
SECRETS = {"hilora-redis", "hilora-keys", "hilora-seed"}
SLOW_ENDS = {
    "hilora-router": "HILORA_ROUTER_DRAIN_SECONDS",
    "hilora-worker": "HILORA_WORKER_DRAIN_SECONDS",
    "hilora-registry": "HILORA_REGISTRY_DRAIN_GRACE_SECONDS",
}
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def containers_of(workload):
    return [*pod_of(workload).get("initContainers", []), *pod_of(workload)["containers"]]


def port_of(container, wanted):
    return next((p for p in container.get("ports", []) if wanted in {p["name"], p["containerPort"]}), None)


@each_overlay
def test_selectors_take_the_pods_of_their_workload_and_no_others(overlay):
    for workload in workloads(rendered(overlay)):
        if workload["kind"] == "Job":
            continue
        name = workload["metadata"]["name"]
        taken = [
            w["metadata"]["name"]
            for w in workloads(rendered(overlay))
            if selects(workload["spec"]["selector"], labels_of(w))
        ]
        assert taken == [name]


@each_overlay
def test_services_lead_to_a_port_of_their_pods(overlay):
    documents = rendered(overlay)
    for service in of_kind(documents, "Service"):
        taken = [w for w in workloads(documents) if selects({"matchLabels": service["spec"]["selector"]}, labels_of(w))]
        assert len(taken) == 1, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            (owner,) = [c for c in pod_of(taken[0])["containers"] if port_of(c, port["targetPort"])]
            assert port_of(owner, port["targetPort"])["containerPort"] == port["port"]


@each_overlay
def test_every_stateful_set_has_its_service_and_addresses_lead_to_services(overlay):
    documents = rendered(overlay)
    for stateful_set in of_kind(documents, "StatefulSet"):
        named(documents, "Service", stateful_set["spec"]["serviceName"])
    services = {s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]} for s in of_kind(documents, "Service")}
    for settings in of_kind(documents, "ConfigMap"):
        for variable, value in settings["data"].items():
            if variable.endswith(("_REGISTRY_ADDRESS", "_WORKER_ADDRESS", "_WORKER_ADDRESSES")):
                host, _, port = value.removeprefix("dns:///").rpartition(":")
                assert int(port) in services[host], f"{variable}={value}"


def test_workers_are_looked_up_one_by_one():
    service = named(rendered("production"), "Service", "hilora-workers")

    assert service["spec"]["clusterIP"] == "None"


@each_overlay
def test_ports_of_settings_are_declared_and_probed(overlay):
    documents = rendered(overlay)
    for workload in workloads(documents):
        for container in pod_of(workload)["containers"]:
            variables = environment_of(container, documents)
            declared = {port["containerPort"] for port in container.get("ports", [])}
            if not declared:
                continue
            assert {int(value) for name, value in variables.items() if name.endswith("_PORT")} <= declared
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert probe in container, f"{container['name']} has no {probe}"
                if "grpc" in container[probe]:
                    # The one without TLS, whatever the others speak.
                    assert container[probe]["grpc"]["port"] == port_of(container, "health")["containerPort"]


@each_overlay
def test_liveness_asks_for_nothing_that_a_restart_would_not_mend(overlay):
    for workload in workloads(rendered(overlay)):
        for container in pod_of(workload)["containers"]:
            probe = container.get("livenessProbe", {})
            if "grpc" in probe:
                assert probe["grpc"]["service"] == "liveness"
                assert container["readinessProbe"]["grpc"].get("service", "") == ""


@each_overlay
def test_maps_secrets_accounts_and_volumes_exist(overlay):
    documents = rendered(overlay)
    certificates = {c["spec"]["secretName"] for c in of_kind(documents, "Certificate")}
    for workload in workloads(documents):
        pod = pod_of(workload)
        if "serviceAccountName" in pod:
            named(documents, "ServiceAccount", pod["serviceAccountName"])
        volumes = {v["name"]: v for v in pod.get("volumes", [])}
        claims = {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        assert len(volumes) == len(pod.get("volumes", [])), "a volume is there twice"
        secrets = {v["secret"]["secretName"] for v in volumes.values() if "secret" in v}
        for container in containers_of(workload):
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes.keys() | claims
            for source in container.get("envFrom", []):
                named(documents, "ConfigMap", source["configMapRef"]["name"])
            for entry in container.get("env", []):
                if "valueFrom" in entry:
                    secrets.add(entry["valueFrom"]["secretKeyRef"]["name"])
        assert secrets <= SECRETS | certificates


@each_overlay
def test_no_secret_stands_in_the_files(overlay):
    assert of_kind(rendered(overlay), "Secret") == []


@each_overlay
def test_budgets_autoscalers_and_monitors_have_their_target(overlay):
    documents = rendered(overlay)
    makers = [w for w in workloads(documents) if w["kind"] != "Job"]
    for budget in of_kind(documents, "PodDisruptionBudget", "PodMonitor"):
        assert [w for w in makers if selects(budget["spec"]["selector"], labels_of(w))], budget["metadata"]["name"]
    for monitor in of_kind(documents, "ServiceMonitor"):
        found = [
            s for s in of_kind(documents, "Service") if selects(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        assert len(found) == 1
        names = {port["name"] for port in found[0]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names
    for monitor in of_kind(documents, "PodMonitor"):
        (taken,) = [w for w in makers if selects(monitor["spec"]["selector"], labels_of(w))]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert port_of(pod_of(taken)["containers"][0], endpoint["port"])
    for scaler in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        target = named(documents, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        # Two who decide on the number would fight over it.
        assert "replicas" not in target["spec"]
        least = scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount"))
        assert least >= 2


@each_overlay
def test_routes_from_outside_lead_to_a_service(overlay):
    documents = rendered(overlay)
    backends = [
        (backend["name"], backend["port"])
        for route in of_kind(documents, "HTTPRoute", "GRPCRoute")
        for rule in route["spec"]["rules"]
        for backend in rule["backendRefs"]
    ]
    for ingress in of_kind(documents, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            backends += [
                (p["backend"]["service"]["name"], p["backend"]["service"]["port"]["name"])
                for p in rule["http"]["paths"]
            ]
    for name, port in backends:
        ports = named(documents, "Service", name)["spec"]["ports"]
        assert [p for p in ports if port in {p["port"], p["name"]}], f"{name}:{port}"


@each_overlay
def test_pods_get_longer_than_the_service_takes_to_drain(overlay):
    documents = rendered(overlay)
    for name, variable in SLOW_ENDS.items():
        (workload,) = [w for w in workloads(documents) if w["metadata"]["name"] == name]
        pod = pod_of(workload)
        first = pod["containers"][0]
        waits = first.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drains = float(environment_of(first, documents)[variable])
        assert pod["terminationGracePeriodSeconds"] >= waits + drains + 10


@each_overlay
def test_images_are_ours_with_a_dockerfile_or_named_with_a_tag(overlay):
    for workload in workloads(rendered(overlay)):
        for container in containers_of(workload):
            name, _, tag = container["image"].rpartition(":")
            assert tag and tag != "latest"
            assert name.rpartition("/")[2] in IMAGES or name == "docker.io/library/redis"


def test_every_image_has_its_dockerfile():
    for name in IMAGES - {"hilora-testbed"}:
        assert (ROOT / "services" / name.removeprefix("hilora-") / "Dockerfile").is_file()
    assert (ROOT / "deploy/testbed/Dockerfile").is_file()


@each_overlay
def test_pods_are_as_the_restricted_standard_wants_them(overlay):
    for workload in workloads(rendered(overlay)):
        pod = pod_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
        assert not [v for v in pod.get("volumes", []) if "hostPath" in v]


@each_overlay
def test_no_volume_has_to_be_mounted_by_two_pods(overlay):
    for workload in workloads(rendered(overlay)):
        claims = [c["spec"] for c in workload["spec"].get("volumeClaimTemplates", [])]
        claims += [
            v["ephemeral"]["volumeClaimTemplate"]["spec"]
            for v in pod_of(workload).get("volumes", [])
            if "ephemeral" in v
        ]
        assert all(claim["accessModes"] == ["ReadWriteOnce"] for claim in claims)
        assert not [v for v in pod_of(workload).get("volumes", []) if "persistentVolumeClaim" in v]


def test_production_spreads_its_replicas():
    documents = rendered("production")
    for name in ("hilora-router", "hilora-worker"):
        workload = named(documents, "Deployment", name)
        keys = {c["topologyKey"] for c in pod_of(workload)["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert all(
            selects(c["labelSelector"], labels_of(workload)) for c in pod_of(workload)["topologySpreadConstraints"]
        )


def test_alerts_and_dashboards_are_those_of_the_observability_folder():
    documents = rendered("production")
    (rules,) = of_kind(documents, "PrometheusRule")
    files = sorted((ROOT / "deploy/observability/rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]

    assert rules["spec"]["groups"] == groups, "python scripts/generate_prometheus_rule.py"
    shown = named(documents, "ConfigMap", "hilora-dashboards")
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(shown["data"]) == {file.name for file in (ROOT / "deploy/observability/dashboards").glob("*.json")}
