"""Every overlay is built by kustomize and valid for the oldest and the newest supported version of Kubernetes."""

from __future__ import annotations

import pytest
import yaml

from tests.builders.deploy_files import OVERLAYS, of_kind, rendered, rendered_text, run
from tests.builders.deploy_tools import ROOT, TOOLS, tool

# The oldest knows the `sleep` action of preStop; docs/deployment.md names both.
VERSIONS = ["1.30", "1.37"]
VALIDATOR = ROOT / "tests/deploy/static/validate_custom_resources.mjs"


def _written(tmp_path, text):
    file = tmp_path / "rendered.yaml"
    file.write_text(text)
    return str(file)


def _validated(file, version):
    result = run([tool("kubernetes-validate"), "-k", version, "--strict", file])
    lines = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("INFO")]
    # Other people's kinds have no schema there; they are the next test's.
    return result.returncode, [line for line in lines if "Couldn't find schema for kind" not in line]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_objects_are_valid(overlay, version, tmp_path):
    assert _validated(_written(tmp_path, rendered_text(overlay)), version) == (0, [])


def test_an_invalid_object_would_be_found(tmp_path):
    broken = rendered_text("local").replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: sometimes", 1)

    status, _ = _validated(_written(tmp_path, broken), VERSIONS[-1])

    assert status != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_are_valid_and_none_is_unknown(overlay, tmp_path):
    result = run([tool("node"), str(VALIDATOR), str(TOOLS), _written(tmp_path, rendered_text(overlay))])

    assert result.returncode == 0, result.stdout + result.stderr
    kinds = {"ScaledObject", "HTTPRoute", "GRPCRoute", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
    kinds |= {"Certificate", "Issuer"}
    assert result.stdout.count("checked ") == len(of_kind(rendered(overlay), *kinds))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ServiceMonitor", ("spec", "endpoints", 0, "port"), 8000),
        ("Certificate", ("spec", "issuerRef"), None),
        ("GRPCRoute", ("spec", "rules", 0, "matches", 0, "method", "type"), "Fuzzy"),
    ],
)
def test_an_invalid_custom_resource_would_be_found(kind, path, value, tmp_path):
    document = of_kind(rendered("production"), kind)[0]
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    result = run([tool("node"), str(VALIDATOR), str(TOOLS), _written(tmp_path, yaml.safe_dump(document))])

    assert result.returncode == 1
    assert f"invalid {kind}/" in result.stdout
