"""The images as they were built: who runs in them, what is in them, what is not, and how long they take to begin."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest

pytestmark = [pytest.mark.usefixtures("images"), pytest.mark.timeout(2400)]

IMAGES = {service: f"docker.io/library/hilora-{service}:0.1.0" for service in ("router", "registry", "worker")}
BASE = "docker.io/library/python:3.11-slim-bookworm"
each_image = pytest.mark.parametrize("service", IMAGES)


def run(podman, service, *command, hardened=True):
    limits = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
    return podman(
        "run", "--rm", "--pull=never", "--network", "none", *(limits if hardened else []), IMAGES[service], *command
    )


@each_image
def test_it_runs_as_nobody_special(podman, service):
    assert run(podman, service, "python", "-c", "import os; print(os.getuid(), os.getgid())") == "10001 10001"


@each_image
def test_process_one_is_tini_and_the_labels_are_there(podman, service):
    image = podman.inspect(IMAGES[service])

    assert image["Config"]["Entrypoint"] == ["tini", "--"]
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == f"hilora-{service}"
    assert "services.common.probe" in " ".join((image.get("HealthCheck") or image["Healthcheck"])["Test"])


@each_image
def test_no_compiler_no_pip_and_no_root_shell_games(podman, service):
    found = run(podman, service, "sh", "-c", "command -v gcc cc clang tcc; ls /opt/venv/bin | grep -i '^pip' || true")

    assert found == ""


@each_image
def test_the_root_file_system_cannot_be_written_but_tmp_can(podman, service):
    said = run(podman, service, "sh", "-c", "touch /opt/venv/x 2>&1; touch /x 2>&1; touch /tmp/x && echo tmp")

    assert said.count("Read-only file system") == 2 and said.endswith("tmp")


def test_the_worker_s_kernels_are_compiled_and_usable(podman):
    code = "import torch; from services.worker.kernels.native_ops import is_native_usable as usable; "
    code += "print(usable(dtype=torch.float32, device=torch.device('cpu')))"

    assert run(podman, "worker", "python", "-c", code) == "True"


@pytest.mark.parametrize("service", ["router", "registry"])
def test_the_encoder_is_there_converted_and_gives_the_vectors_that_torch_gave(podman, service):
    # What is kept is compared with torch's vectors when it is loaded; the converter is not imported.
    code = "import sys; from pathlib import Path; "
    code += "from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder as Encoder; "
    code += "encoder = Encoder(backend=EncoderBackend.OPENVINO, kept_folder=Path('/opt/encoders')); "
    code += "print(encoder.encode(['a text']).shape, encoder.encoder_id, 'sentence_transformers' in sys.modules)"

    shape, encoder_id, has_converted = run(podman, service, "python", "-c", code).rsplit(" ", 2)
    assert (shape, has_converted) == ("(1, 384)", "False")
    assert encoder_id.startswith("all-MiniLM-L6-v2:")


@pytest.mark.parametrize(
    ("service", "absent"),
    [
        ("router", "celery"),
        ("router", "torch"),
        ("router", "transformers"),
        ("worker", "fastapi"),
        ("worker", "celery"),
        ("registry", "faiss"),
    ],
)
def test_a_service_s_image_has_not_what_another_needs(podman, service, absent):
    code = f"import importlib.util; print(importlib.util.find_spec({absent!r}))"

    assert run(podman, service, "python", "-c", code) == "None"


def test_the_registry_s_image_has_the_command_line(podman):
    assert re.match(r"\d+\.\d+\.\d+", run(podman, "registry", "hilora", "version"))


def test_a_setting_that_is_missing_ends_it_at_once_with_its_name(podman):
    podman("run", "--pull=never", "--name", "hilora-unset", "--network", "none", IMAGES["worker"], check=False)
    try:
        state = podman.inspect("hilora-unset")["State"]
        assert not state["Running"] and state["ExitCode"] != 0
        assert "base_model" in podman("logs", "hilora-unset", with_errors=True)
    finally:
        podman("rm", "-f", "hilora-unset", check=False)


@each_image
def test_sigterm_ends_it_even_while_it_imports(podman, service):
    """Process 1 has no default for signals; without tini the stop would wait for the kill."""
    name = f"hilora-early-{service}"
    settings = {
        "router": [],
        "registry": [
            *("-e", "HILORA_REGISTRY_BASE_MODEL=/nowhere", "-e", "HILORA_REGISTRY_DATA_DIR=/data"),
            *("-e", "HILORA_REGISTRY_REDIS_URL=redis://127.0.0.1:1/0", "-e", "HILORA_REGISTRY_ADMIN_API_KEY=k"),
        ],
        "worker": ["-e", "HILORA_WORKER_BASE_MODEL=/nowhere"],
    }[service]
    podman("run", "-d", "--pull=never", "--name", name, "--network", "none", *settings, IMAGES[service])
    try:
        time.sleep(0.5)
        began = time.monotonic()
        podman("stop", "-t", "30", name)
        assert time.monotonic() - began < 20
    finally:
        podman("rm", "-f", name, check=False)


def test_sizes_are_reported(podman, images, record_property):
    """Figures for docs/deployment.md; a limit is set so that a gigabyte by accident is found."""
    base = podman.inspect(BASE)["Size"]
    for service, image in IMAGES.items():
        own = podman.inspect(image)["Size"] - base
        figures = {"image": service, "mebibytes_above_base": own >> 20, "build_seconds": round(images.get(service, 0))}
        record_property(service, figures)
        sys.stdout.write(json.dumps(figures) + "\n")
        assert own < 3 << 30
