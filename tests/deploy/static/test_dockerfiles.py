"""The Dockerfiles: what hadolint and checkov say, and what the four have to promise."""

from __future__ import annotations

import json
import re

import pytest

from services.common.sequence_encoder import DEFAULT_ENCODER
from tests.builders.deploy_files import OVERLAYS, rendered_text, run
from tests.builders.deploy_tools import ROOT, tool

SERVICES = ["router", "registry", "worker"]
DOCKERFILES = [ROOT / f"services/{service}/Dockerfile" for service in SERVICES] + [ROOT / "deploy/testbed/Dockerfile"]
by_name = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.parent.name)


@by_name
def test_hadolint_finds_nothing(dockerfile):
    result = run([tool("hadolint"), "--config", str(ROOT / ".hadolint.yaml"), str(dockerfile)])

    assert result.returncode == 0, result.stdout


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")

    assert run([tool("hadolint"), str(tmp_path / "Dockerfile")]).returncode != 0


def checkov(*arguments):
    result = run([tool("checkov"), "--config-file", str(ROOT / ".checkov.yaml"), *arguments, "-o", "json"])
    report = json.loads(result.stdout)
    return report if isinstance(report, dict) else report[0]


def findings(report):
    return [(check["check_id"], check["file_path"], check["resource"]) for check in report["results"]["failed_checks"]]


def test_checkov_finds_nothing_in_the_dockerfiles():
    report = checkov("-f", *map(str, DOCKERFILES), "--framework", "dockerfile")

    assert findings(report) == []
    assert report["summary"]["resource_count"] == len(DOCKERFILES)
    assert report["summary"]["passed"] > 5 * len(DOCKERFILES)


def test_checkov_finds_nothing_in_the_manifests(tmp_path):
    files = [tmp_path / f"{overlay}.yaml" for overlay in OVERLAYS]
    for file, overlay in zip(files, OVERLAYS, strict=True):
        file.write_text(rendered_text(overlay))

    report = checkov("-f", *map(str, files), "--framework", "kubernetes")

    assert findings(report) == []
    assert report["summary"]["passed"] > 100 * len(OVERLAYS)


def test_every_exception_of_checkov_is_needed(tmp_path):
    """One that is no longer needed would hide the next finding of its kind."""
    (tmp_path / "rendered.yaml").write_text(rendered_text("production"))
    # From another folder, where it does not find the list of exceptions.
    plain = [tool("checkov"), "--skip-download", "--compact", "--quiet", "-o", "json"]
    reports = [
        run([*plain, "-f", str(tmp_path / "rendered.yaml"), "--framework", "kubernetes"], cwd=tmp_path),
        run([*plain, "-f", str(DOCKERFILES[-2]), "--framework", "dockerfile"], cwd=tmp_path),
    ]
    found = {check["check_id"] for report in reports for check in json.loads(report.stdout)["results"]["failed_checks"]}

    listed = set(re.findall(r"^  - (CKV\w+)$", (ROOT / ".checkov.yaml").read_text(), flags=re.MULTILINE))

    assert listed <= found


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_s_image_is_as_all_of_them(service):
    text = (ROOT / f"services/{service}/Dockerfile").read_text()
    final = text.rpartition("\nFROM ")[2]

    assert "ARG BASE_IMAGE=" in text and final.startswith("installed\n"), "what was installed is copied once more"
    assert "\nUSER 10001:10001\n" in final
    assert "\nHEALTHCHECK " in final and "services.common.probe" in final
    assert 'ENTRYPOINT ["tini", "--"]' in final and f'CMD ["python", "-m", "services.{service}"]' in final
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in final
    conditional = re.search(r'^RUN if \[ "\$VARIANT" = cuda \].*?fi$', text, flags=re.MULTILINE | re.DOTALL)
    beneath = "".join(stage_texts(text)[name] for name in ancestry(text))
    unconditional = beneath.replace(conditional[0], "") if conditional else beneath
    assert "gcc" not in unconditional, "a compiler in the final image"


def stage_texts(text):
    """What is done in each stage, by name; that of the last one is empty."""
    stages = (stage.partition("\n") for stage in text.split("\nFROM ")[1:])
    return {first.partition(" AS ")[2]: re.sub(r"(?m)^#.*\n?", "", rest).strip() for first, _, rest in stages}


def ancestry(text):
    """The stages whose layers the final image has, the last one first."""
    parents = {name: parent for parent, name in re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, flags=re.MULTILINE)}
    found = [""]
    while (parent := parents[found[-1]]) in parents:
        found.append(parent)
    return found


def test_the_images_share_their_largest_layers():
    """A layer is shared where all instructions up to it are equal, and their arguments."""
    texts = {service: (ROOT / f"services/{service}/Dockerfile").read_text() for service in SERVICES}
    stages = {service: stage_texts(text) for service, text in texts.items()}

    def shared(name, *services):
        assert len({stages[service][name] for service in services}) == 1, name

    assert len({re.search(r"^ARG BASE_IMAGE=.*", text, flags=re.MULTILINE)[0] for text in texts.values()}) == 1
    for name in ("base", "pip", "torch"):
        shared(name, *SERVICES)
    # Torch converts the router's encoder, too: in layers that the registry's image has.
    for name in ("encoder", "converted"):
        shared(name, "router", "registry")
    assert ancestry(texts["worker"]) == ["", "installed", "torch", "base"]
    assert ancestry(texts["registry"]) == ["", "installed", "encoder", "torch", "base"]
    assert ancestry(texts["router"]) == ["", "installed", "base"]


@pytest.mark.parametrize("service", ["router", "registry"])
def test_an_image_that_embeds_has_its_encoder_converted(service):
    text = (ROOT / f"services/{service}/Dockerfile").read_text()

    assert f"-m services.common.keep_encoder {DEFAULT_ENCODER} /opt/encoders\n" in text
    assert f"HILORA_{service.upper()}_KEPT_ENCODERS_DIR=/opt/encoders\n" in text.rpartition("\nFROM ")[2]


@pytest.mark.parametrize("service", SERVICES)
def test_the_probe_knocks_at_a_port_that_the_service_has(service):
    from services.registry.settings import RegistrySettings
    from services.router.settings import RouterSettings
    from services.worker.settings import WorkerSettings

    final = (ROOT / f"services/{service}/Dockerfile").read_text().rpartition("\nFROM ")[2]
    settings = {"router": RouterSettings, "registry": RegistrySettings, "worker": WorkerSettings}[service]
    defaults = {field.default for name, field in settings.model_fields.items() if name.endswith("_port")}
    probed = int(re.search(r'probe", "\w+://127\.0\.0\.1:(\d+)', final)[1])

    assert str(probed) in re.search(r"^EXPOSE (.+)$", final, flags=re.MULTILINE)[1].split()
    # The registry's own default is the router's; compose and the manifests give it this one.
    assert probed in defaults | ({50052} if service == "registry" else set())


def test_the_context_holds_what_is_copied_and_no_secret():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert "*" in ignored
    assert not [line for line in ignored if line.startswith("!.env") or line in {"!tests", "!.git"}]
    for needed in ("pyproject.toml", "constraints.txt", "scripts/list_requirements.py", "hilora", "services", "proto"):
        assert f"!{needed}" in ignored
