"""The deployment files as the tests see them: rendered by the real programs, then as plain dictionaries."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.builders.deploy_tools import ROOT, TOOLS, tool

OVERLAYS = {
    "local": ROOT / "deploy/k8s/overlays/local",
    "production": ROOT / "deploy/k8s/overlays/production",
    # The components that neither of them takes.
    "alternatives": ROOT / "tests/deploy/static/overlays/alternatives",
}
COMPOSE_FILES = [ROOT / "docker-compose.yml", ROOT / "deploy/compose/replicas.yml"]
PROFILES = ["cpu", "gpu", "testbed", "observe"]
SECRETS = {"REDIS_PASSWORD": "redis-secret", "HILORA_ADMIN_KEY": "admin-secret", "GRAFANA_PASSWORD": "grafana-secret"}

Document = dict[str, Any]


def run(command: list[str], *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's exit status and output; its environment is this process's with these changes."""
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


@functools.cache
def rendered_text(overlay: str) -> str:
    """What kustomize makes of an overlay.

    Raises:
        AssertionError: it refuses to.
    """
    kustomize = [tool("kubectl"), "kustomize"] if shutil.which("kubectl") else [tool("kustomize"), "build"]
    result = run([*kustomize, str(OVERLAYS[overlay])])
    assert result.returncode == 0, result.stderr
    return result.stdout


def rendered(overlay: str) -> list[Document]:
    """The objects of an overlay, parsed anew for each caller."""
    return [document for document in yaml.safe_load_all(rendered_text(overlay)) if document]


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """The objects of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[Document], kind: str, name: str) -> Document:
    """The object of a kind and name; a suffix that kustomize added to the name does not count."""
    found = [
        document
        for document in of_kind(documents, kind)
        if document["metadata"]["name"] == name or document["metadata"]["name"].startswith(f"{name}-")
    ]
    exact = [document for document in found if document["metadata"]["name"] == name]
    assert exact or found, f"no {kind} {name}"
    return (exact or found)[0]


def workloads(documents: list[Document]) -> list[Document]:
    """Everything that makes pods."""
    return of_kind(documents, "Deployment", "StatefulSet", "Job")


def pod_of(workload: Document) -> Document:
    """The pod's spec."""
    return workload["spec"]["template"]["spec"]


def labels_of(workload: Document) -> dict[str, str]:
    """The labels of its pods."""
    return workload["spec"]["template"]["metadata"]["labels"]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(_holds(expression, labels) for expression in selector.get("matchExpressions", []))


def _holds(expression: Document, labels: dict[str, str]) -> bool:
    assert expression["operator"] == "In", "teach this helper the other operators before using them"
    return labels.get(expression["key"]) in expression["values"]


def environment_of(container: Document, documents: list[Document]) -> dict[str, str]:
    """The variables that a container sees; those out of secrets hold a stand-in."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= named(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container.get("env", []):
        variables[entry["name"]] = entry.get("value", "redis://:secret@redis:6379/0")
    return variables


@functools.cache
def compose_text() -> str:
    """docker-compose.yml with every profile, as Docker Compose resolves it."""
    standalone = TOOLS / "bin" / "docker-compose"
    compose = [str(standalone)] if standalone.exists() else [tool("docker"), "compose"]
    profiles = [part for profile in PROFILES for part in ("--profile", profile)]
    result = run([*compose, "-f", str(COMPOSE_FILES[0]), *profiles, "config"], **SECRETS)
    assert result.returncode == 0, result.stderr
    return result.stdout


def compose() -> Document:
    """The same, parsed."""
    return yaml.safe_load(compose_text())
