"""The production overlay's pods, run by `podman kube play` with their own securityContext, settings and certificates.

What is changed, because podman is no cluster, and nothing else: probes and lifecycle (podman's translation of them is
wrong), what only schedulers read, names of services (written into the hosts file), claims and emptyDirs (volumes of
podman's), secrets (folders and values: podman 4.3 leaves them in base64, and it knows no fsGroup), and the GPU (there
is none: the worker's image and device are the CPU's, with the shipped testbed as its base).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from services.common.tls import TlsFiles
from tests.builders.certificates import Authority
from tests.builders.containers import Podman
from tests.builders.deploy_files import Document, of_kind, rendered, workloads
from tests.builders.deploy_tools import ROOT

NETWORK = "hilora-pods"
PLACES = {"hilora-redis": 2, "hilora-registry": 3, "hilora-worker": 4, "hilora-router": 5}
"""Last part of each pod's address; the order in which they start."""
SERVICE_NAMES = {"hilora-worker": "hilora-workers"}
INFERENCE_KEY = "inference-secret"
ADMIN_KEY = "admin-secret"
_REDIS_PASSWORD = "redissecret"
_CHANGED_SETTINGS = {
    "hilora-registry": {"HILORA_REGISTRY_BASE_MODEL": "/models/base", "HILORA_REGISTRY_ADMISSION": "open"},
    "hilora-worker": {
        "HILORA_WORKER_BASE_MODEL": "/models/base",
        "HILORA_WORKER_ROC_POOL_BYTES": "268435456",
        "HILORA_WORKER_HOST_CACHE_BYTES": "268435456",
    },
}
_NOT_FOR_PODMAN = ("serviceAccountName", "enableServiceLinks", "topologySpreadConstraints", "tolerations")


class PlayedPods:
    """All of them, on one network.

    Args:
        podman: with the images built.
        folder: for certificates and the files that podman plays.
        subnet: first three parts of the network's addresses.
        ports: published on loopback, by the container's port: the router's and the registry's HTTP.
    """

    def __init__(self, podman: Podman, folder: Path, *, subnet: str, ports: dict[int, int]) -> None:
        self._podman = podman
        self._folder = folder
        self._subnet = subnet
        self._ports = ports
        self._documents = rendered("production")

    @contextmanager
    def running(self) -> Iterator[None]:
        """They run for as long as the block does."""
        self._podman("network", "create", "--subnet", f"{self._subnet}.0/24", NETWORK)
        played: list[Path] = []
        try:
            self._write_secrets()
            for name, place in PLACES.items():
                file = self._written(name, [*self._config_maps(), self._pod(name)])
                played.append(file)
                self._podman("kube", "play", "--network", NETWORK, "--ip", f"{self._subnet}.{place}", str(file))
            yield
        finally:
            for file in reversed(played):
                self._podman("kube", "down", str(file), check=False)
            for volume in self._podman("volume", "ls", "-q").split():
                if volume.startswith(tuple(f"{name}-" for name in PLACES)):
                    self._podman("volume", "rm", "-f", volume, check=False)
            self._podman("network", "rm", NETWORK, check=False)

    def _written(self, name: str, documents: list[Document]) -> Path:
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        return file

    def _config_maps(self) -> list[Document]:
        maps = of_kind(self._documents, "ConfigMap")
        for document in maps:
            for name, changes in _CHANGED_SETTINGS.items():
                if document["metadata"]["name"].startswith(name):
                    document["data"] |= changes
        return maps

    def _write_secrets(self) -> None:
        """Each as a folder of files, readable by every user: podman knows no fsGroup."""
        for name, values in self._secrets().items():
            folder = self._folder / "secrets" / name
            folder.mkdir(parents=True, exist_ok=True)
            for key, value in values.items():
                (folder / key).write_text(value)
                (folder / key).chmod(0o444)
        for folder in (self._folder, self._folder / "secrets"):
            folder.chmod(0o755)

    @functools.cache  # noqa: B019  (one object a run; certificates must be the same for all pods)
    def _secrets(self) -> dict[str, dict[str, str]]:
        def key_file(key: str, scopes: list[str]) -> str:
            digest = hashlib.sha256(key.encode()).hexdigest()
            return json.dumps([{"name": "test", "sha256": digest, "scopes": scopes}])

        contents = {
            "hilora-redis": {
                "redis-password": _REDIS_PASSWORD,
                "redis-url": f"redis://:{_REDIS_PASSWORD}@hilora-redis:6379/0",
            },
            "hilora-keys": {
                "admin-keys.json": key_file(ADMIN_KEY, ["read", "write", "approve"]),
                "api-keys.json": key_file(INFERENCE_KEY, ["infer", "read"]),
            },
        }
        authority = Authority()
        for certificate in of_kind(self._documents, "Certificate"):
            spec = certificate["spec"]
            if spec.get("isCA"):
                continue
            own, *others = reversed(spec["dnsNames"])
            files = authority.write(self._folder / spec["secretName"], own, also=others)
            contents[spec["secretName"]] = _pem_of(files)
        return contents

    def _pod(self, name: str) -> Document:
        (workload,) = [one for one in workloads(self._documents) if one["metadata"]["name"] == name]
        template = workload["spec"]["template"]
        spec: Document = {key: value for key, value in template["spec"].items() if key not in _NOT_FOR_PODMAN}
        spec["hostAliases"] = [
            {"ip": f"{self._subnet}.{place}", "hostnames": [SERVICE_NAMES.get(other, other)]}
            for other, place in PLACES.items()
            if other != name
        ]
        claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
        spec["volumes"] = [self._volume(name, volume) for volume in spec["volumes"]]
        spec["volumes"] += [_claim(name, claim) for claim in claims]
        for container in spec["containers"]:
            self._fit(container)
        if name in {"hilora-registry", "hilora-worker"}:
            spec["volumes"].append({"name": "models", "hostPath": {"path": str(ROOT / "examples/testbed")}})
            for container in spec["containers"]:
                container["volumeMounts"].append({"name": "models", "mountPath": "/models", "readOnly": True})
        metadata = {"name": name, "labels": template["metadata"]["labels"]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _fit(self, container: Document) -> None:
        for key in ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle"):
            container.pop(key, None)
        image = container["image"].rpartition("/")[2].removesuffix("-cuda")
        container["image"] = f"docker.io/library/{image}"
        container["imagePullPolicy"] = "Never"
        for resources in container["resources"].values():
            for resource in ("nvidia.com/gpu", "ephemeral-storage"):
                resources.pop(resource, None)
        for entry in container.get("env", []):
            if entry["name"] == "HILORA_WORKER_DEVICE":
                entry["value"] = "cpu"
            if "valueFrom" in entry:
                secret = entry.pop("valueFrom")["secretKeyRef"]
                entry["value"] = self._secrets()[secret["name"]][secret["key"]]
        # Podman publishes each port that is named, on all addresses of the machine: there some connection may have it.
        container["ports"] = [
            port | {"hostIP": "127.0.0.1", "hostPort": self._ports[port["containerPort"]]}
            for port in container.get("ports", [])
            if port["containerPort"] in self._ports
        ]

    def _volume(self, pod: str, volume: Document) -> Document:
        if "ephemeral" in volume or "emptyDir" in volume:
            # Podman takes the names of emptyDirs for those of volumes, which pods would share.
            return _claim(pod, volume["name"])
        folder = self._folder / "secrets" / volume["secret"]["secretName"]
        return {"name": volume["name"], "hostPath": {"path": str(folder), "type": "Directory"}}


def _claim(pod: str, name: str) -> Document:
    return {"name": name, "persistentVolumeClaim": {"claimName": f"{pod}-{name}"}}


def _pem_of(files: TlsFiles) -> dict[str, str]:
    return {
        "tls.crt": files.certificate.read_text(),
        "tls.key": files.key.read_text(),
        "ca.crt": files.authorities.read_text(),
    }
