"""`hilora demo`: the shipped pool, served; what `make run` starts."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hilora.errors import InvalidInput
from hilora_cli.serve import PortOption, RpcPortOption, run_system

_CHECKOUT = Path(__file__).resolve().parents[1]
SHIPPED_TESTBED = _CHECKOUT / "examples" / "testbed"
_DEMO_DATA = _CHECKOUT / ".hilora"
_EXAMPLE_TASK = "reverse-letters"


def demo(
    port: PortOption = 8000,
    rpc_port: RpcPortOption = 0,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder of all that must survive. [default: .hilora/]")
    ] = None,
    testbed: Annotated[Path, typer.Option("--testbed", help="Testbed folder.", show_default=False)] = SHIPPED_TESTBED,
) -> None:
    """Serve the shipped pool of small adapters and print a request to try."""
    from hilora_cli.pool_seeding import uploads_of_testbed
    from services.standalone.settings import StandaloneSettings

    if not (testbed / "tasks.jsonl").is_file():
        raise InvalidInput(
            f"{testbed} is not a testbed: it has no tasks.jsonl.",
            code="invalid_testbed",
            remedy=f"Give one with --testbed, or build one: hilora lab build-testbed --out {testbed}",
            place=str(testbed),
        )
    settings = StandaloneSettings(
        base_model=str(testbed / "base"),
        base_model_name="testbed-base",
        data_dir=data_dir or _DEMO_DATA / f"demo-{_digest_of(testbed)}",
        port=port,
        rpc_port=rpc_port,
        log_level="WARNING",
    )
    print("Starting registry, router, worker and Redis ...", flush=True)

    def announce(url: str, rpc_address: str) -> None:
        print(invitation(url, rpc_address, testbed), flush=True)

    run_system(settings, uploads=uploads_of_testbed(testbed), announce=announce)


def invitation(url: str, rpc_address: str, testbed: Path) -> str:
    """The address, one request to paste, and what should answer it."""
    lines = [json.loads(line) for line in (testbed / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if line["split"] == "test" and (testbed / "adapters" / line["task"]).is_dir()]
    example = next((line for line in asked if line["task"] == _EXAMPLE_TASK), asked[0])
    body = {"model": "auto", "prompt": example["prompt"], "max_tokens": 16, "temperature": 0}
    request = shlex.quote(json.dumps(body, ensure_ascii=False))
    return "\n".join(
        [
            "",
            f"HiLoRA Serve listens on {url}, gRPC on {rpc_address}. Try:",
            "",
            f"curl -s {url}/v1/completions -H 'Content-Type: application/json' -d {request}",
            "",
            f"The adapter {example['task']} should answer: {example['answer']}",
            "Ctrl-C stops it; the registered adapters are kept.",
        ]
    )


def _digest_of(testbed: Path) -> str:
    """Twelve hex digits over the weights and texts: a rebuilt testbed gets a fresh data folder."""
    digest = hashlib.sha256()
    for file in sorted(testbed.rglob("*")):
        if file.suffix in {".safetensors", ".jsonl"}:
            digest.update(str(file.relative_to(testbed)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
