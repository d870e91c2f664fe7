"""What the router is compared with, in an environment of their own: OpenAI endpoints in front of the same backend.

* semantic-router, a library that chooses by the embedding of a text, behind the small application that a team would
  write around it (`semantic_router_proxy`): the same work with the same encoder and the same sample texts.
* LiteLLM's proxy, which chooses nothing by content: the other half of a router's work, from one HTTP door to another.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hilora.errors import InvalidInput
from hilora_lab.bench.router_backend import MODEL
from hilora_lab.bench.router_feed import NUM_SAMPLES
from hilora_lab.bench.router_processes import ServerProcess, free_port
from hilora_lab.bench.router_texts import task_name, task_text
from services.common.sequence_encoder import DEFAULT_ENCODER, locate_encoder

CHOOSING_PEER = "semantic-router"
"""Compared by the contract's keys: it does what the router does."""
PROXY_PEER = "litellm"
_PACKAGES = ("semantic-router", "torch", "transformers", "litellm[proxy]")
_ASKED_VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
)
_PROXY_SCRIPT = Path(__file__).with_name("semantic_router_proxy.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerInstallation:
    """An interpreter that has both."""

    python: Path
    versions: Mapping[str, str]
    """By distribution, torch and transformers among them."""

    def name_of(self, peer: str) -> str:
        """A peer with its version, for the report."""
        return f"{peer} {self.versions[peer]}"


def find_peer(python: Path) -> PeerInstallation:
    """The peers of an interpreter.

    Raises:
        InvalidInput: `no_peer`.
    """
    names = [package.partition("[")[0] for package in _PACKAGES]
    try:
        done = subprocess.run(  # noqa: S603  (the interpreter that was asked for)
            [str(python), "-c", _ASKED_VERSIONS, *names], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        packages = " ".join(f"'{package}'" for package in _PACKAGES)
        raise InvalidInput(
            f"The interpreter {python} has not all of {', '.join(names)}.",
            code="no_peer",
            remedy=f"Install them there: {python} -m pip install {packages}; or use --peer install.",
            place="peer_python",
        ) from error
    return PeerInstallation(python=python, versions=json.loads(done.stdout))


def install_peer(folder: Path) -> PeerInstallation:
    """Make an environment with the peers, or take the one that is there.

    Raises:
        InvalidInput: `no_peer`, if they cannot be installed.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)  # noqa: S603
    try:
        return find_peer(python)
    except InvalidInput:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *_PACKAGES], check=False)  # noqa: S603
        return find_peer(python)


def choosing_process(
    installation: PeerInstallation, *, num_adapters: int, backend_port: int, folder: Path
) -> ServerProcess:
    """semantic-router in front of the backend: a route for each of the pool's adapters, with as many sample texts."""
    order = folder / "semantic-router.json"
    port = free_port()
    routes = {
        task_name(task): [task_text(task, number) for number in range(NUM_SAMPLES)] for task in range(num_adapters)
    }
    encoder = locate_encoder(DEFAULT_ENCODER)
    order.write_text(
        json.dumps({"encoder": encoder, "routes": routes, "backend_port": backend_port, "port": port}), encoding="utf-8"
    )
    return ServerProcess(
        [str(installation.python), str(_PROXY_SCRIPT), str(order)],
        port=port,
        ready_path="/health",
        environment={"NO_PROXY": "127.0.0.1", "TOKENIZERS_PARALLELISM": "false"},
        log=folder / "semantic-router.log",
    )


def proxy_process(installation: PeerInstallation, *, backend_port: int, folder: Path) -> ServerProcess:
    """LiteLLM's proxy in front of the backend: one process, without database, cache or callbacks."""
    config = folder / "litellm.json"
    endpoint = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{backend_port}/v1", "api_key": "none"}
    # Without keys, as the router here is without: neither looks any up. JSON is YAML.
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    models = [{"model_name": MODEL, "litellm_params": endpoint}]
    config.write_text(json.dumps({"model_list": models, "general_settings": general}))
    port = free_port()
    script = installation.python.parent / PROXY_PEER
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return ServerProcess(
        [str(installation.python), str(script), *options],
        port=port,
        ready_path="/health/liveliness",
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"},
        log=folder / "litellm.log",
    )
