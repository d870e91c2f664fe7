"""What the router is compared with: LiteLLM's proxy, an OpenAI endpoint in front of others, in an environment of its
own.

It chooses nothing by content. It does the other half of a router's work, from one HTTP door to another, which is what
is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hilora.errors import InvalidInput
from hilora_lab.bench.router_backend import MODEL
from hilora_lab.bench.router_processes import ServerProcess, free_port

PEER = "litellm"
_PACKAGE = "litellm[proxy]"
_ASKED_VERSION = "import importlib.metadata as m; print(m.version('litellm'))"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerInstallation:
    """An interpreter that has it."""

    python: Path
    version: str

    @property
    def name(self) -> str:
        """For the report."""
        return f"{PEER} {self.version}"


def find_peer(python: Path) -> PeerInstallation:
    """The peer of an interpreter.

    Raises:
        InvalidInput: `no_peer`.
    """
    try:
        done = subprocess.run(  # noqa: S603  (the interpreter that was asked for)
            [str(python), "-c", _ASKED_VERSION], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(
            f"The interpreter {python} has no {PEER}.",
            code="no_peer",
            remedy=f"Install it there: {python} -m pip install '{_PACKAGE}'; or use --peer install.",
            place="peer_python",
        ) from error
    return PeerInstallation(python=python, version=done.stdout.strip())


def install_peer(folder: Path) -> PeerInstallation:
    """Make an environment with the peer, or take the one that is there.

    Raises:
        InvalidInput: `no_peer`, if it cannot be installed.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)  # noqa: S603
    try:
        return find_peer(python)
    except InvalidInput:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", _PACKAGE], check=False)  # noqa: S603
        return find_peer(python)


def peer_process(installation: PeerInstallation, *, backend_port: int, folder: Path) -> ServerProcess:
    """The proxy in front of the backend's OpenAI endpoint: one process, without database, cache or callbacks."""
    config = folder / "peer.json"
    endpoint = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{backend_port}/v1", "api_key": "none"}
    # Without keys, as the router here is without: neither looks any up. JSON is YAML.
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    models = [{"model_name": MODEL, "litellm_params": endpoint}]
    config.write_text(json.dumps({"model_list": models, "general_settings": general}))
    port = free_port()
    script = installation.python.parent / PEER
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return ServerProcess(
        [str(installation.python), str(script), *options],
        port=port,
        ready_path="/health/liveliness",
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"},
        log=folder / "peer.log",
    )
